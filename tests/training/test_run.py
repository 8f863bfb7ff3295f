# Copyright 2026 The dimple_hf team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Running recipes: the chain of stages, going on after an interruption, adapters, and what is refused before."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipe_run import STAGES, step_losses, write_recipe
from safetensors.torch import load_file
from training_run import CHECKPOINT
from transformers import Trainer, TrainingArguments

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.quantization import quantization_config
from dimple_hf.training import preflight, run
from dimple_hf.training.adapters import load_adapter
from dimple_hf.training.recipe import load_recipe
from dimple_hf.training.run import (
    describe_plan,
    load_model,
    micro_batches,
    save_whole_model,
    train_recipe,
    trainer_settings,
    write_stage_file,
)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a recipe are relative to the current directory."""
    monkeypatch.chdir(tmp_path)


def no_model(*args: object) -> None:
    raise AssertionError("a model was loaded")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((256, 8, 4), (8, 8)),
        ((128, None, 1), (8, 16)),
        ((6, None, 1), (6, 1)),
        ((12, None, 4), (3, 1)),
        ((7, None, 7), (1, 1)),
    ],
)
def test_micro_batches_multiply_to_the_batch(
    arguments: tuple[int, int | None, int], expected: tuple[int, int]
) -> None:
    """The batch of a recipe is that of the optimizer step, on however many processes."""
    assert micro_batches(*arguments) == expected
    assert expected[0] * expected[1] * arguments[2] == arguments[0]


@pytest.mark.parametrize("arguments", [(256, 8, 3), (4, 8, 1), (4, None, 8), (4, 0, 1)])
def test_micro_batches_that_do_not_divide_the_batch_are_refused(arguments: tuple[int, int | None, int]) -> None:
    """Rounding would silently change the batch of the recipe."""
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of"):
        micro_batches(*arguments)


def interrupt(trainer: Any) -> None:
    raise KeyboardInterrupt


def test_train_recipe_chains_its_stages(tmp_path: Path) -> None:
    """Each stage starts from the last one's output, in its own mode, and leaves a model with its processor."""
    stages = [{"name": "align", "max_steps": 2, "batch_size": 4}, *STAGES]
    result = train_recipe(load_recipe(write_recipe(tmp_path, stages=stages)))
    assert result == Path("out/diffusion")
    assert [DimpleConfig.from_pretrained(f"out/{stage['name']}").full_attn_mask for stage in stages] == [
        False, False, True,
    ]  # fmt: skip
    assert DimpleProcessor.from_pretrained(result).tokenizer.mask_token_id == 423
    weights = [DimpleForConditionalGeneration.from_pretrained(CHECKPOINT).state_dict()]
    weights += [load_file(f"out/{stage['name']}/model.safetensors") for stage in stages]
    moved = [
        {name.partition(".")[0] for name in after if not torch.equal(after[name], before[name])}
        for before, after in zip(weights, weights[1:], strict=False)
    ]
    # Had a stage started from another position, the parts that it does not train would differ, too.
    assert moved == [{"img_projector"}, {"img_projector", "model", "lm_head"}, {"model", "lm_head"}]


def test_train_recipe_again_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished recipe loads no model; with one more stage, only that one is trained."""
    stages = [stage | {"max_steps": 1} for stage in STAGES]
    train_recipe(load_recipe(write_recipe(tmp_path, stages=stages)))
    before = (tmp_path / "out" / "diffusion" / "model.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(run, "load_model", no_model)
    recipe = load_recipe(write_recipe(tmp_path, stages=stages))
    assert train_recipe(recipe) == Path("out/diffusion")
    assert [plan["to do"] for plan in describe_plan(recipe, 1)] == ["nothing, it is finished"] * 2
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    more = STAGES[1] | {"name": "again", "mode": "bidirectional", "train": ["head"], "max_steps": 1}
    assert train_recipe(load_recipe(write_recipe(tmp_path, stages=[*stages, more]))) == Path("out/again")
    assert (tmp_path / "out" / "diffusion" / "model.safetensors").stat().st_mtime_ns == before


def test_train_recipe_interrupted_in_each_stage_ends_with_the_same_losses_and_weights(tmp_path: Path) -> None:
    """
    A step reads 4 rows, so the 15th read is in step 4 of the first stage, past its checkpoint of step 2. A run that
    goes on reads the rows of 2 steps there, and the 7th read of its second stage is in step 2, before a checkpoint.
    """
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(whole)
        train_recipe(load_recipe(write_recipe(whole)))
        patch.chdir(broken)
        path = write_recipe(broken)
        for reads, todo in ((15, ["from out/instruct/checkpoint-2", "from its beginning"]),
                            (8 + 7, ["nothing, it is finished", "from its beginning"])):  # fmt: skip
            Path("interrupt_at").write_text(str(reads))
            with pytest.raises(KeyboardInterrupt):
                train_recipe(load_recipe(path))
            assert [plan["to do"] for plan in describe_plan(load_recipe(path), 1)] == todo
        train_recipe(load_recipe(path))
    for stage in ("instruct", "diffusion"):
        expected = step_losses(whole / "out" / stage)
        assert len(set(expected)) == 4  # control: the steps differ
        assert step_losses(broken / "out" / stage) == expected
        files = [folder / "out" / stage / "model.safetensors" for folder in (whole, broken)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_train_recipe_killed_after_its_last_step_takes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last checkpoint and the model's own files the Trainer, left to itself, would train once more."""
    stages = [stage | {"max_steps": 3} for stage in STAGES]  # of the 4 that an epoch has
    recipe = load_recipe(write_recipe(tmp_path, stages=stages))
    with monkeypatch.context() as patch:
        patch.setattr(run, "save_whole_model", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_recipe(recipe)
    assert [plan["to do"] for plan in describe_plan(recipe, 1)] == [
        "from out/instruct/checkpoint-3",
        "from its beginning",
    ]
    checkpoint = load_file("out/instruct/checkpoint-3/model.safetensors")
    train_recipe(recipe)
    assert not Path("out/instruct/checkpoint-4").exists()
    assert len(step_losses(Path("out/instruct"))) == 3
    for name, weight in load_file("out/instruct/model.safetensors").items():
        assert torch.equal(weight, checkpoint[name]), name


def test_stages_draw_from_seeds_of_their_own(tmp_path: Path) -> None:
    """Else two stages over the same data would see it in the same order and with the same masks."""
    seeds = []
    for seed in (0, 1):
        recipe = load_recipe(write_recipe(tmp_path, stages=STAGES, seed=seed))
        seeds += [trainer_settings(recipe, plan, 1)["seed"] for plan in recipe.plans]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_train_recipe_with_another_seed_draws_otherwise(tmp_path: Path) -> None:
    """Control for the test above: what is equal there is not equal by chance."""
    losses = []
    stages = [STAGES[1] | {"max_steps": 1}]
    for seed in (0, 1):
        train_recipe(load_recipe(write_recipe(tmp_path, seed=seed, output_dir=f"out{seed}", stages=stages)))
        losses.append(step_losses(tmp_path / f"out{seed}" / "diffusion"))
    assert losses[0] != losses[1]


def test_train_recipe_with_changed_settings_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a stage at one rate and half at another is no recipe. Only settings that weights depend on count."""
    monkeypatch.setattr(run, "load_model", no_model)
    recipe = load_recipe(write_recipe(tmp_path))
    for plan in recipe.plans:
        write_stage_file(recipe, plan, finished=True)
    assert train_recipe(recipe) == Path("out/diffusion")  # control
    changed = [STAGES[0], STAGES[1] | {"learning_rate": 2e-3}]
    with pytest.raises(ValueError, match="stage diffusion was begun with other settings .stage was .*0.001.*0.002"):
        train_recipe(load_recipe(write_recipe(tmp_path, stages=changed)))
    with pytest.raises(ValueError, match=r"other settings \(.*seed was 0 and is 1\): put them back, or use another"):
        train_recipe(load_recipe(write_recipe(tmp_path, seed=1)))
    free = {"logging_steps": 7, "save_steps": 1, "use_cpu": True, "per_device_train_batch_size": 1}
    train_recipe(load_recipe(write_recipe(tmp_path, trainer=free)))
    with pytest.raises(ValueError, match="weight_decay"):
        train_recipe(load_recipe(write_recipe(tmp_path, trainer=free | {"weight_decay": 0.1})))


def test_train_recipe_into_a_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    """Nobody's files are mixed with a stage's."""
    (tmp_path / "out" / "diffusion").mkdir(parents=True)
    recipe = load_recipe(write_recipe(tmp_path))
    assert [plan["to do"] for plan in describe_plan(recipe, 1)] == ["from its beginning"] * 2
    (tmp_path / "out" / "diffusion" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be new, empty or a stage's"):
        train_recipe(recipe)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"save_steps": 1.5}, "stage instruct: `trainer` is refused: .*save_steps must be an integer"),
        ({"per_device_train_batch_size": 3}, "`batch_size` must be a multiple"),
        ({"save_strategy": "steps", "load_best_model_at_end": True}, "`trainer` is refused"),  # on several lines
        (
            {"optim_args": "momentum"},
            "stage instruct: trainer: `optim` and `optim_args` must .* 'momentum': not enough",
        ),
        ({"report_to": "paper"}, r"trainer: `report_to` must be supported by the installed packages \(got .'paper'"),
        ({"torch_compile_backend": "gcc"}, "trainer: `torch_compile_backend` and .* 'gcc'"),
        ({"use_liger_kernel": True}, "trainer: `use_liger_kernel` must .*pip install liger-kernel"),
    ],
)
def test_train_recipe_with_refused_trainer_argument_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    """transformers checks its own arguments; that happens for every stage before the first model is loaded."""
    monkeypatch.setattr(run, "load_model", no_model)
    monkeypatch.setattr(preflight, "is_liger_kernel_available", lambda: False)
    data = {"train": "interrupting_rows:rows", "eval": "interrupting_rows:rows"}
    path = write_recipe(tmp_path, trainer={"use_cpu": True} | changes, data=data)
    with pytest.raises(ValueError, match=message) as caught:
        train_recipe(load_recipe(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "instruct" / "stage.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_projection"]}, "`peft` must suit the model .got .*q_projection.*: No modules"),
        ({"target_modules": []}, "`peft` must suit the model .got .*: No modules"),
        ({"layers_to_transform": [99], "target_modules": ["q_proj"]}, "`peft` must suit the model .*99"),
        ({"trainable_token_indices": [1 << 40]}, "`trainable_token_indices` must be from 0 to 431, .*1099511627776"),
        ({"trainable_token_indices": {"embed_tokens": [-1]}}, "`trainable_token_indices` must be from 0 to 431, .*-1"),
    ],
)
def test_train_recipe_with_adapter_that_does_not_suit_the_model_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    """PEFT's own checks of names need the layers, but no weights."""
    monkeypatch.setattr(run, "load_model", no_model)
    with pytest.raises(ValueError, match=f"recipe.yaml: .*{message}") as caught:
        train_recipe(load_recipe(write_recipe(tmp_path, peft=options)))
    assert "\n" not in str(caught.value)
    # Control: a good one gets as far as the model, also with an initialization that needs the weights.
    with pytest.raises(AssertionError, match="a model was loaded"):
        train_recipe(load_recipe(write_recipe(tmp_path, peft={"r": 2, "init_lora_weights": "pissa"})))


@pytest.mark.parametrize("optim", ["sgd", "adafactor", "rmsprop", "adamw_torch"])
def test_train_recipe_with_another_optimizer_gets_as_far_as_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optim: str
) -> None:
    """What is tried beforehand refuses nothing that works."""
    monkeypatch.setattr(run, "load_model", no_model)
    with pytest.raises(AssertionError, match="a model was loaded"):
        train_recipe(load_recipe(write_recipe(tmp_path, trainer={"use_cpu": True, "optim": optim})))


def test_train_recipe_with_optimizer_that_looks_at_the_layers_gets_as_far_as_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its refusal without a model is not one of the recipe."""
    monkeypatch.setattr(run, "load_model", no_model)

    def no_layers(args: TrainingArguments) -> None:
        raise ValueError("You need to pass a model")

    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(no_layers))
    with pytest.raises(AssertionError, match="a model was loaded"):
        train_recipe(load_recipe(write_recipe(tmp_path, trainer={"use_cpu": True, "optim": "galore_adamw"})))
    with pytest.raises(ValueError, match="You need to pass a model"):
        train_recipe(load_recipe(write_recipe(tmp_path, trainer={"use_cpu": True, "optim": "sgd"}, output_dir="b")))


def test_train_recipe_with_refused_collator_option_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collator checks its own options, with the processor alone."""
    monkeypatch.setattr(run, "load_model", no_model)
    with pytest.raises(ValueError, match="`on_bad_example` must be 'raise' or 'skip'"):
        train_recipe(load_recipe(write_recipe(tmp_path, collator={"on_bad_example": "ignore"})))


def test_train_recipe_on_several_devices_without_launcher_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`DataParallel`, which the Trainer would take, cannot split a batch of images."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 2))
    with pytest.raises(ValueError, match=r"one process must use one device \(got 2\): run `accelerate launch"):
        train_recipe(load_recipe(write_recipe(tmp_path)))


def test_train_recipe_with_evaluation_logs_answers(tmp_path: Path) -> None:
    """Held-out answers are in the log of each stage's end, in the mode of the stage."""
    data = {"train": "interrupting_rows:rows", "eval": "interrupting_rows:rows"}
    held_out = {"num_examples": 2, "max_new_tokens": 4}
    stages = [stage | {"max_steps": 1} for stage in STAGES]
    train_recipe(load_recipe(write_recipe(tmp_path, data=data, held_out=held_out, stages=stages)))
    for stage, phase in (("instruct", 0), ("diffusion", 1)):
        history = json.loads((tmp_path / "out" / stage / "trainer_state.json").read_text())["log_history"]
        entries = [entry for entry in history if "eval_loss" in entry]
        assert len(entries) == 1
        assert entries[0]["eval_answers"].count("What") == 2
        assert entries[0]["eval_phase"] == phase
    silent = {"held_out": {"num_examples": 0}, "output_dir": "silent", "stages": stages[1:]}
    train_recipe(load_recipe(write_recipe(tmp_path, data=data, **silent)))
    assert "eval_answers" not in (tmp_path / "silent" / "diffusion" / "trainer_state.json").read_text()


@pytest.mark.parametrize("use_dora", [False, True])
def test_train_recipe_with_peft_trains_one_adapter_through_both_phases(tmp_path: Path, use_dora: bool) -> None:
    """The adapter goes on from phase to phase and knows its last one; the base model is untouched."""
    stages = [stage | {"max_steps": 2} for stage in STAGES]
    recipe = load_recipe(write_recipe(tmp_path, peft={"r": 2, "use_dora": use_dora}, stages=stages))
    before = [plan.base for plan in recipe.plans]
    assert before == [str(CHECKPOINT)] * 2
    result = train_recipe(recipe)
    first, last = (load_file(f"out/{name}/adapter_model.safetensors") for name in ("instruct", "diffusion"))
    assert first.keys() == last.keys()
    for name in last:
        # The diffusion stage trains the language model's adapter alone; the projector is in the file as it was.
        assert torch.equal(first[name], last[name]) == ("img_projector" in name), name
    assert any("img_projector" in name for name in last)
    assert not any("visual" in name or "lm_head" in name for name in last)
    assert any("lora_magnitude_vector" in name for name in last) == use_dora

    base = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
    base.config.full_attn_mask = False
    model = load_adapter(base, str(result))
    assert model.config.full_attn_mask is True
    model.eval()
    tokens = torch.randint(0, 400, (1, 9))
    answer = model.generate(input_ids=tokens, max_new_tokens=4)
    assert answer.shape == (1, 13)
    expected = model(input_ids=tokens).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=tokens).logits, expected, atol=1e-4, rtol=1e-4)
    plain = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
    assert not torch.allclose(plain(input_ids=tokens).logits, expected, atol=1e-2)  # control: it does adapt


@pytest.mark.slow
def test_train_recipe_with_peft_goes_on_after_an_interruption(tmp_path: Path) -> None:
    """The same as for whole models: losses and adapter are those of the uninterrupted run."""
    peft = {"r": 2, "lora_dropout": 0.1}
    train_recipe(load_recipe(write_recipe(tmp_path, peft=peft, output_dir="whole")))
    path = write_recipe(tmp_path, peft=peft)
    Path("interrupt_at").write_text(str(16 + 15))
    with pytest.raises(KeyboardInterrupt):
        train_recipe(load_recipe(path))
    assert describe_plan(load_recipe(path), 1)[1]["to do"] == "from out/diffusion/checkpoint-2"
    train_recipe(load_recipe(path))
    assert step_losses(tmp_path / "out" / "diffusion") == step_losses(tmp_path / "whole" / "diffusion")
    files = [tmp_path / out / "diffusion" / "adapter_model.safetensors" for out in ("out", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_save_whole_model_under_fsdp_gathers_it_and_puts_the_kind_of_checkpoint_back() -> None:
    """The next stage shares the plugin: were it left as it is here, its shards could not be resumed from."""
    kinds = ["SHARDED_STATE_DICT"]

    class Plugin:
        @property
        def state_dict_type(self) -> str:
            return kinds[-1]

        def set_state_dict_type(self, kind: str) -> None:
            kinds.append(kind)

    state = SimpleNamespace(state=SimpleNamespace(fsdp_plugin=Plugin()))
    trainer = SimpleNamespace(is_fsdp_enabled=True, accelerator=state, save_model=lambda: kinds.append("saved"))
    plugin_kinds = ["SHARDED_STATE_DICT", "FULL_STATE_DICT", "saved", "SHARDED_STATE_DICT"]
    save_whole_model(trainer)
    assert kinds == plugin_kinds
    trainer.is_fsdp_enabled = False
    save_whole_model(trainer)
    assert kinds == [*plugin_kinds, "saved"]


def test_load_model_takes_the_attention_that_the_recipe_names(tmp_path: Path) -> None:
    """And without a name, transformers' choice."""
    recipe = load_recipe(write_recipe(tmp_path, attn_implementation="eager"))
    assert load_model(recipe, recipe.plans[0]).config._attn_implementation == "eager"
    recipe = load_recipe(write_recipe(tmp_path))
    assert load_model(recipe, recipe.plans[0]).config._attn_implementation == "sdpa"


def test_load_model_of_a_quantized_recipe_quantizes_the_language_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bitsandbytes itself needs a GPU; what it is told does not."""
    asked: dict[str, Any] = {}

    def load(model: str, **options: Any) -> None:
        asked.update(options, model=model)
        raise KeyboardInterrupt

    recipe = load_recipe(write_recipe(tmp_path, peft={"r": 2}))
    monkeypatch.setattr(DimpleForConditionalGeneration, "from_pretrained", load)
    with pytest.raises(KeyboardInterrupt):
        load_model(replace(recipe, quantization="nf4"), recipe.plans[0])
    assert (asked["model"], asked["dtype"]) == (str(CHECKPOINT), "auto")
    config = asked["quantization_config"]
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "nf4", True)
    assert config.llm_int8_skip_modules == ["visual", "img_projector", "lm_head"]
    assert quantization_config("int8").load_in_8bit is True

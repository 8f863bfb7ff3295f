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
"""Recipes: what they resolve to, and that every fault in them is found before a model or data is loaded."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow.parquet
import pytest
import yaml
from datasets import Dataset, DatasetDict, Features, Image, Value
from training_run import CHECKPOINT

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.data.examples import READ_ERROR, BadExampleError, read_example
from dimple_hf.data.sources import JsonLines, Source, load_named_dataset, read_source
from dimple_hf.training import recipe as recipe_module
from dimple_hf.training.recipe import Recipe, load_recipe
from dimple_hf.training.stages import STAGES

WriteRecipe = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_model_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paths in a recipe are relative to the current directory; loading a model here would be a fault."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(DimpleForConditionalGeneration, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write_recipe(tmp_path: Path) -> WriteRecipe:
    """Writes a recipe that is good but for `changes`; `None` takes a key away."""
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')

    def write(**changes: Any) -> Path:
        entries = {
            "model": str(CHECKPOINT), "output_dir": "out", "data": {"train": "rows.jsonl"}, "stages": ["align"]
        } | changes  # fmt: skip
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in entries.items() if value is not None}))
        return path

    return write


def refused(path: Path) -> str:
    """The message with which a recipe is refused, without the file's name, which it must begin with."""
    with pytest.raises(ValueError, match="recipe.yaml: ") as caught:
        load_recipe(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_recipe_with_names_of_stages_alone_has_the_papers_figures(write_recipe: WriteRecipe) -> None:
    """The shortest recipe is the paper's training; each stage starts from the one before."""
    recipe = load_recipe(write_recipe(stages=["align", "instruct", "diffusion"]))
    assert [plan.stage for plan in recipe.plans] == list(STAGES.values())
    assert [plan.base for plan in recipe.plans] == [str(CHECKPOINT), "out/align", "out/instruct"]
    assert [str(plan.directory) for plan in recipe.plans] == ["out/align", "out/instruct", "out/diffusion"]
    assert not any(plan.uses_peft or plan.adapter for plan in recipe.plans)
    assert (recipe.dtype, recipe.seed, recipe.held_out) == ("float32", 0, None)
    assert all(plan.collator == {"seed": 0} for plan in recipe.plans)


def test_recipe_with_changed_stage_keeps_the_other_figures(write_recipe: WriteRecipe) -> None:
    """`max_steps` takes the position of the preset's epoch."""
    entry = {"name": "diffusion", "max_steps": 5, "learning_rate": 1e-4, "train": ["language_model"]}
    stage = load_recipe(write_recipe(stages=[entry])).plans[0].stage
    assert (stage.max_steps, stage.num_epochs, stage.learning_rate) == (5, None, 1e-4)
    assert stage.train == ("language_model",)
    assert (stage.mode, stage.batch_size, stage.max_grad_norm) == ("bidirectional", 128, 0.1)


def test_recipe_with_stage_of_another_name_takes_all_from_its_entry(write_recipe: WriteRecipe) -> None:
    """A small model's own stage, for example one that trains the tower."""
    entry = {
        "name": "see", "mode": "causal", "train": ["vision"], "learning_rate": 1e-3, "batch_size": 8, "num_epochs": 2
    }  # fmt: skip
    stage = load_recipe(write_recipe(stages=[entry])).plans[0].stage
    assert (stage.name, stage.mode, stage.train, stage.num_epochs) == ("see", "causal", ("vision",), 2)


def test_recipe_of_a_stage_wins_over_the_recipes_own(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    """Data and Trainer arguments can differ by stage, as the paper's captions and instructions do."""
    for name in ("captions.jsonl", "held_out.jsonl"):
        (tmp_path / name).write_text("{}\n")
    stages = [
        {
            "name": "align",
            "data": {"train": "captions.jsonl"},
            "collator": {"max_length": 64},
            "trainer": {"per_device_train_batch_size": 2},
        },
        "instruct",
    ]
    trainer = {"per_device_train_batch_size": 4, "bf16": True}
    collator = {"max_length": 128, "on_bad_example": "skip"}
    data = {"train": "rows.jsonl", "eval": "held_out.jsonl"}
    align, instruct = load_recipe(write_recipe(stages=stages, data=data, trainer=trainer, collator=collator)).plans
    assert align.eval is not None
    assert align.eval.location == "held_out.jsonl"  # what a stage does not name stays
    assert align.collator == {"seed": 0, "max_length": 64, "on_bad_example": "skip"}
    assert instruct.collator == {"seed": 0} | collator
    assert (align.train.location, instruct.train.location) == ("captions.jsonl", "rows.jsonl")
    assert align.trainer == {"per_device_train_batch_size": 2, "bf16": True}
    assert instruct.trainer == trainer


def test_recipe_with_peft_chains_adapters(write_recipe: WriteRecipe) -> None:
    """The projector is aligned whole; then one adapter goes through both phases, and the head stays as it is."""
    recipe = load_recipe(write_recipe(stages=["align", "instruct", "diffusion"], peft={"r": 4, "use_dora": True}))
    align, instruct, diffusion = recipe.plans
    assert [plan.uses_peft for plan in recipe.plans] == [False, True, True]
    assert (instruct.base, instruct.adapter) == ("out/align", None)
    assert (diffusion.base, diffusion.adapter) == ("out/align", instruct.directory)
    assert instruct.stage.train == ("projector", "language_model")
    assert diffusion.stage.train == ("language_model",)
    assert recipe.dtype == "auto"
    assert recipe.peft == {"r": 4, "use_dora": True}
    # An empty entry is not a missing one: it asks for an adapter with the defaults.
    assert load_recipe(write_recipe(stages=["diffusion"], peft={})).plans[0].uses_peft is True


def test_recipe_numbers_without_a_point_are_numbers(tmp_path: Path, write_recipe: WriteRecipe) -> None:
    """YAML 1.1 takes `1e-3` for text, which nobody means."""
    path = write_recipe()
    path.write_text(path.read_text().replace("- align", "- {name: align, learning_rate: 1e-3, max_grad_norm: 2E+1}"))
    stage = load_recipe(path).plans[0].stage
    assert (stage.learning_rate, stage.max_grad_norm) == (1e-3, 20.0)


def test_recipe_held_out_follows_evaluation_data(write_recipe: WriteRecipe) -> None:
    """Answers are generated as soon as there are rows for them, in the recipe or in a stage."""
    data = {"train": "rows.jsonl", "eval": "rows.jsonl"}
    assert load_recipe(write_recipe(data=data)).held_out.num_examples == 4
    recipe = load_recipe(write_recipe(stages=[{"name": "align", "data": data}], held_out={"num_examples": 1}))
    assert (recipe.held_out.num_examples, recipe.held_out.max_new_tokens) == (1, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modell": "x"}, "`modell` is unknown; did you mean `model`?"),
        ({"model": None}, "`model` must be given (got nothing)"),
        ({"model": 7}, "`model` must be text (got 7)"),
        ({"model": "./nowhere"}, "`model` must be a directory or a Hub id"),
        ({"model": "."}, "`model` must be a model's directory (got ., which has no config.json)"),
        ({"seed": -1}, "`seed` must be >= 0 (got -1)"),
        ({"seed": True}, "`seed` must be a number (got True)"),
        ({"dtype": "half"}, "`dtype` must be one of float32, bfloat16, auto (got 'half')"),
        ({"attn_implementation": "flash"}, "`attn_implementation` must be one of eager, sdpa, flash_attention_2"),
        ({"quantization": "fp4"}, "`quantization` must be one of nf4, int8 (got 'fp4')"),
        ({"quantization": "nf4"}, "`quantization` must come with `peft`"),
        ({"output_dir": str(CHECKPOINT)}, "`output_dir` must be another directory than `model`"),
        ({"data": "rows.jsonl"}, "data: must be a mapping with keys of train, eval (got 'rows.jsonl')"),
        ({"data": {}}, "data: `train` must be given"),
        ({"data": {"train": "rows.jsonl", "evaluation": "x"}}, "data: `evaluation` is unknown"),
        ({"data": {"train": "nowhere.jsonl"}}, "data.train: nowhere.jsonl must be a file (got none there)"),
        ({"data": {"train": "rows.jsonl", "eval": "gone.jsonl"}}, "data.eval: gone.jsonl must be a file"),
        ({"data": {"train": {"locations": "x"}}}, "data.train: `locations` is unknown; did you mean `location`?"),
        ({"data": {"train": {"split": "train"}}}, "data.train: `location` must be given"),
        ({"data": {"train": {"location": 7}}}, "data.train: `location` must be text (got 7)"),
        ({"stages": []}, "stages: must name at least one stage (got none)"),
        ({"stages": "align"}, "`stages` must be a list (got 'align')"),
        ({"stages": ["align", "align"]}, "stages[1]: `name` must be different for each stage (got 'align' twice)"),
        ({"stages": [7]}, "stages[0]: must be a mapping"),
        ({"stages": [{"name": 7}]}, "stages[0]: `name` must be text (got 7)"),
        ({"stages": ["alingn"]}, "stages[0]: `mode` must be given for a stage that is none of align, instruct, diff"),
        (
            {"stages": ["align", {"name": "instruct", "learnin_rate": 1}]},
            "stages[1]: `learnin_rate` is unknown; did you mean `learning_rate`?",
        ),
        ({"stages": [{"name": "align", "train": "head"}]}, "stages[0]: `train` must be a list of vision, projector"),
        ({"stages": [{"name": "align", "learning_rate": 0}]}, "stages[0]: `learning_rate` must be > 0"),
        (
            {"stages": [{"name": "align", "data": {"train": "nowhere.jsonl"}}]},
            "stages[0]: data.train: nowhere.jsonl must be a file",
        ),
        (
            {"stages": [{"name": "align", "trainer": {"weight_dcay": 1}}]},
            "stages[0]: trainer: `weight_dcay` is unknown; did you mean `weight_decay`?",
        ),
        ({"trainer": {"save_step": 1}}, "trainer: `save_step` is unknown; did you mean `save_steps`?"),
        (
            {"trainer": {"learning_rate": 1}},
            "trainer: `learning_rate` must not be given here: use `learning_rate` of a stage",
        ),
        ({"trainer": {"gradient_checkpointing": True}}, "trainer: `gradient_checkpointing` must not be given here"),
        ({"trainer": {"eval_strategy": "steps"}}, "stages[0]: `trainer.eval_strategy` needs `data.eval` (got none)"),
        ({"collator": {"max_lenght": 1}}, "collator: `max_lenght` is unknown; did you mean `max_length`?"),
        ({"collator": {"processor": 1}}, "collator: `processor` is unknown"),
        ({"collator": {"max_length": "long"}}, "collator: `max_length` must be an integer >= 2 (got 'long')"),
        ({"collator": {"seed": -1}}, "collator: `seed` must be an integer >= 0 (got -1)"),
        ({"trainer": {"data_seed": -1}}, "trainer: `data_seed` must be an integer from 0 to 2**63 - 1 (got -1)"),
        (
            {"trainer": {"per_device_train_batch_size": "2"}},
            "trainer: `per_device_train_batch_size` must be an integer",
        ),
        (
            {"trainer": {"accelerator_config": "a"}},
            "trainer: `accelerator_config` must be a mapping with keys of split",
        ),
        (
            {"trainer": {"accelerator_config": {"dispatch_batches": "x"}}},
            "trainer: `accelerator_config`: `dispatch_batches` must be true or false (got 'x')",
        ),
        ({"trainer": {"adam_beta1": 2}}, "trainer: `adam_beta1` must be a number in [0, 1) (got 2)"),
        ({"trainer": {"weight_decay": "x"}}, "trainer: `weight_decay` must be a number >= 0 (got 'x')"),
        ({"trainer": {"bf16": "yes"}}, "trainer: `bf16` must be true or false (got 'yes')"),
        ({"trainer": {"save_steps": 0}}, "trainer: `save_steps` must be a number > 0 (got 0)"),
        ({"trainer": {"metric_for_best_model": 5}}, "trainer: `metric_for_best_model` must be text (got 5)"),
        (
            {"trainer": {"per_device_eval_batch_size": 0}},
            "trainer: `per_device_eval_batch_size` must be an integer >= 1",
        ),
        ({"trainer": {"log_level": "loud"}}, "trainer: `log_level` must be one of detail, debug, info, warning"),
        ({"trainer": {"optim": "adam"}}, "trainer: `optim` must be one of adamw_torch, adamw_torch_fused"),
        (
            {"trainer": {"save_strategy": False}},  # what YAML makes of the bare word
            "trainer: `save_strategy` must be one of no, steps, epoch, best (got False: put the word no in quotes)",
        ),
        ({"trainer": []}, "trainer: must be a mapping"),
        ({"collator": {"max_bad_share": True}}, "collator: `max_bad_share` must be in [0, 1] (got True)"),
        (
            {"stages": [{"name": "align", "batch_size": 1 << 31}]},
            "stages[0]: `batch_size` must be an integer from 1 to",
        ),
        ({"stages": [{"name": "align", "complementary_masks": 1}]}, "stages[0]: `complementary_masks` must"),
        (
            {"stages": [{"name": "align", "learning_rate_multipliers": []}]},
            "stages[0]: `learning_rate_multipliers` mus",
        ),
        ({"output_dir": "rows.jsonl"}, "`output_dir` must be a directory (got the file rows.jsonl)"),
        (
            {"data": {"train": {"location": "rows.jsonl", "columns": {"prompt": 1}}}},
            "data.train: `columns` must be na",
        ),
        ({"collator": {"image_folder": "nowhere"}}, "collator: `image_folder` must be a directory (got nowhere)"),
        ({"held_out": {"num_examples": 2}}, "held_out: answers are generated from `data.eval`, which must be given"),
        ({"held_out": {"num_examples": -1}}, "held_out: `num_examples` must be an integer >= 0 (got -1)"),
        ({"held_out": {"max_new_tokens": 0}}, "held_out: `max_new_tokens` must be an integer >= 1 (got 0)"),
        ({"held_out": {"examples": 1}}, "held_out: `examples` is unknown; did you mean `num_examples`?"),
        ({"peft": {"rank": 8}}, "peft: `rank` is unknown"),
        ({"peft": {"modules_to_save": ["x"]}}, "peft: `modules_to_save` is unknown"),
        ({"peft": {"r": 8}}, "`peft` needs a stage that trains `language_model` (got none)"),
        (
            {"peft": {"r": 8}, "stages": ["instruct", "align"]},
            "stages[1]: a stage that does not train `language_model` must come before the stages that train its ada",
        ),
        (
            {
                "peft": {"r": 8},
                "stages": [
                    {"name": "instruct", "train": ["language_model"]},
                    {"name": "diffusion", "train": ["language_model", "head"]},
                ],
            },
            "stages[1]: `train` must name no more parts than the first stage with an adapter does (got head too)",
        ),
    ],
)
def test_recipe_with_fault_is_refused_with_its_position(
    write_recipe: WriteRecipe, changes: dict[str, Any], message: str
) -> None:
    """Control: without the changes the recipe is good. No model is loaded either way."""
    assert isinstance(load_recipe(write_recipe()), Recipe)
    assert refused(write_recipe(**changes)).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, "`r` must be an integer >= 1 (got 0)"),
        ({"r": -1}, "`r` must be an integer >= 1 (got -1)"),
        ({"r": True}, "`r` must be an integer >= 1 (got True)"),
        ({"lora_alpha": "x"}, "`lora_alpha` must be a number > 0 (got 'x')"),
        ({"lora_alpha": float("nan")}, "`lora_alpha` must be a number > 0 (got nan)"),
        ({"lora_dropout": 2}, "`lora_dropout` must be a number in [0, 1) (got 2)"),
        ({"target_modules": 5}, "`target_modules` must be text or a list of text (got 5)"),
        ({"target_modules": ["q_proj", 5]}, "`target_modules` must be text or a list of text (got ['q_proj', 5])"),
        (
            {"target_modules": "("},
            "`target_modules` must be a list of names or a regular expression (got '(': missing",
        ),
        ({"bias": "banana"}, "`bias` must be one of none, all, lora_only (got 'banana')"),
        ({"use_dora": "yes"}, "`use_dora` must be true or false (got 'yes')"),
        ({"rank_pattern": {"q_proj": 0}}, "`rank_pattern` must be a mapping to integers >= 1 (got {'q_proj': 0})"),
        (
            {"layer_replication": [[0, 1], 2]},
            "`layer_replication` must be a list of lists of integers (got [[0, 1], 2])",
        ),
        ({"eva_config": {"rh": 1}}, "`eva_config`: `rh` is unknown; did you mean `rho`?"),
        ({"init_lora_weights": "pisa"}, "`init_lora_weights` must be true, false or one of PEFT's initializations"),
        ({"init_lora_weights": "corda"}, "`init_lora_weights` must be true, false or one of PEFT's initializations"),
        (True, "must be a mapping with keys of r, target_modules"),
        ([], "must be a mapping with keys of r, target_modules"),
    ],
)
def test_recipe_with_lora_option_of_another_type_or_range_is_refused(
    write_recipe: WriteRecipe, options: Any, message: str
) -> None:
    """PEFT takes most of them until it changes the layers of a model, which may take an hour to load."""
    found = refused(write_recipe(stages=["diffusion"], peft=options))
    assert found.startswith(f"peft: {message}")
    assert "\n" not in found


@pytest.mark.parametrize(
    "options",
    [
        {"r": None, "lora_alpha": None, "lora_dropout": None, "bias": None, "target_modules": None},
        {"lora_alpha": 1.5, "lora_dropout": 0, "rank_pattern": {}, "exclude_modules": [], "layers_pattern": None},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False, "target_modules": ["q_proj"], "layers_to_transform": [0]},
    ],
)
def test_recipe_with_empty_lora_options_and_those_within_range_is_good(
    write_recipe: WriteRecipe, options: dict[str, Any]
) -> None:
    """An empty entry stands for the default, so `r:` with nothing after it is no error."""
    assert load_recipe(write_recipe(stages=["diffusion"], peft=options)).peft == options


def test_recipe_with_empty_entries_has_the_defaults(write_recipe: WriteRecipe) -> None:
    """Where an option takes no `None`; where it does, `None` is a value, as for a stage without the recipe's limit."""
    stage = {
        "name": "align",
        "learning_rate": None,
        "batch_size": None,
        "mode": None,
        "collator": {"max_length": None},
    }
    recipe = load_recipe(
        write_recipe(
            stages=[stage],
            data={"train": {"location": "rows.jsonl", "columns": None}, "eval": "rows.jsonl"},
            held_out={"num_examples": None},
            collator={"max_length": 64, "on_bad_example": None, "seed": None},
            trainer={"bf16": None, "save_total_limit": None},
        )
    )
    plan = recipe.plans[0]
    assert plan.stage == STAGES["align"]
    assert plan.collator == {"seed": 0, "max_length": None}
    assert plan.trainer == {"save_total_limit": None}
    assert recipe.held_out.num_examples == 4


def test_recipe_with_bad_lora_option_is_refused(write_recipe: WriteRecipe) -> None:
    """What PEFT itself refuses is found before the model is loaded."""
    message = refused(write_recipe(stages=["diffusion"], peft={"r": 8, "layers_pattern": "layers"}))
    assert message.startswith("peft: ")


def test_recipe_with_a_key_twice_is_refused(write_recipe: WriteRecipe) -> None:
    """YAML would silently take the last one."""
    path = write_recipe()
    path.write_text(path.read_text() + "seed: 1\nseed: 2\n")
    assert "`seed` is there twice" in refused(path)


def test_recipe_that_is_no_yaml_or_no_file_is_refused(tmp_path: Path) -> None:
    """Control for the reading itself."""
    path = tmp_path / "recipe.yaml"
    with pytest.raises(ValueError, match="the recipe must be a file"):
        load_recipe(path)
    for text in ("stages: [", "[1]: 2", "[" * 5000):
        path.write_text(text)
        with pytest.raises(ValueError, match="the recipe must be YAML") as caught:
            load_recipe(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(b"PK\x03\x04\x81")
    with pytest.raises(
        ValueError, match=r"recipe.yaml: the recipe must be YAML \(got a ZIP archive: extract it first"
    ):
        load_recipe(path)
    with pytest.raises(ValueError, match=r"the recipe must be a file \(got a folder\)"):
        load_recipe(tmp_path)
    path.write_text("- align")
    with pytest.raises(ValueError, match="must be a mapping"):
        load_recipe(path)


def test_recipe_with_quantization_needs_bitsandbytes_and_adapters_throughout(
    write_recipe: WriteRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QLoRA is refused kindly where it cannot work, and accepted where it can."""
    good: dict[str, Any] = {"quantization": "nf4", "peft": {"r": 8}, "stages": ["diffusion"]}
    monkeypatch.setattr(recipe_module, "is_bitsandbytes_available", lambda: False)
    assert "`quantization` needs bitsandbytes: run `pip install bitsandbytes`" in refused(write_recipe(**good))
    monkeypatch.setattr(recipe_module, "is_bitsandbytes_available", lambda: True)
    assert load_recipe(write_recipe(**good)).quantization == "nf4"
    assert "`dtype` must be bfloat16 or auto" in refused(write_recipe(**good, dtype="float32"))
    message = refused(write_recipe(**good | {"stages": ["align", "diffusion"]}))
    assert message.startswith("stages[0]: with `quantization` every stage must train `language_model`")


@pytest.mark.parametrize(
    "name", ["dimple-7b-full-fsdp2", "dimple-7b-full-zero3", "dimple-7b-lora", "dimple-7b-qlora", "forms"]
)
def test_recipe_of_the_project_is_good(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every committed recipe passes its own checks once the files are there that it names."""
    monkeypatch.setattr(recipe_module, "is_bitsandbytes_available", lambda: True)
    for model in ("runs/dimple-7b/raw", "runs/forms/untrained"):
        (tmp_path / model).mkdir(parents=True)
        (tmp_path / model / "config.json").write_text("{}")
    (tmp_path / "data" / "images").mkdir(parents=True)
    for file in ("train", "captions-559k", "instructions-739k"):
        (tmp_path / "data" / f"{file}.jsonl").write_text("{}\n")
    path = repo_root / ("examples/forms/recipe.yaml" if name == "forms" else f"recipes/{name}.yaml")
    recipe = load_recipe(path)
    assert recipe.plans[-1].stage.full_attn_mask is True
    if "full" in name:
        assert [plan.stage.name for plan in recipe.plans] == ["align", "instruct", "diffusion"]
        for plan in recipe.plans:
            assert plan.stage.learning_rate == STAGES[plan.stage.name].learning_rate
    # Answers on the command line to a recipe whose files are missing come first, so the check above is not empty.
    (tmp_path / "data" / "train.jsonl").unlink()
    if name in ("dimple-7b-lora", "dimple-7b-qlora"):
        with pytest.raises(ValueError, match="data.train: data/train.jsonl must be a file"):
            load_recipe(path)


def test_json_lines_reads_rows_by_position_and_names_them(tmp_path: Path) -> None:
    """A row without an id is named by its line, so that an error about it finds it; empty lines do not count."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"id": "own", "text": "ä"}\n\n{"text": "second"}'.encode())
    rows = JsonLines(path)
    assert len(rows) == 2
    assert rows[0] == {"id": "own", "text": "ä"}
    assert rows[1] == {"id": "rows.jsonl:3", "text": "second"}
    with pytest.raises(IndexError):
        rows[2]


@pytest.mark.parametrize(
    ("line", "message"), [(b"{", "rows.jsonl:1 must be a JSON object .got an error"), (b"[]", r"\(got list\)"),
                          (b'{"a": "\xff"}', "got an error")]
)  # fmt: skip
def test_json_lines_with_a_line_that_is_no_object_is_refused_by_name(
    tmp_path: Path, line: bytes, message: str
) -> None:
    """The line is named, not only what is wrong with it."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line)
    rows = JsonLines(path)
    with pytest.raises(ValueError, match=message):
        rows[0]


def test_json_lines_without_rows_is_refused(tmp_path: Path) -> None:
    """An empty file would train on nothing."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n\n")
    with pytest.raises(ValueError, match="must hold at least one example"):
        JsonLines(path)


def test_source_function_comes_from_the_recipes_folder(tmp_path: Path) -> None:
    """A builder stands beside its recipe and imports its own siblings, wherever the command is run."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "sibling_of_rows.py").write_text("ANSWER = 42\n")
    (folder / "rows_of_test.py").write_text(
        "from sibling_of_rows import ANSWER\ndef rows(count=1):\n    return [{'a': ANSWER}] * count\nNUMBER = 7\n"
        "def stream():\n    return iter([1])\ndef none():\n    return []\n"
    )
    source = Source("rows_of_test:rows", arguments={"count": 3})
    source.check(folder)
    rows = source.load(folder)
    assert [rows[index] for index in range(len(rows))] == [
        {"id": f"rows_of_test:rows[{index}]", "a": 42} for index in range(3)
    ]
    for location, message in (
        ("rows_of_test:row", "must have a function row; did you mean `rows`"),
        ("rows_of_test:NUMBER", "must have a function NUMBER"),
        ("no_such_module_here:rows", "must name a module in .* or an installed one"),
    ):
        with pytest.raises(ValueError, match=message):
            Source(location).check(folder)
    with pytest.raises(ValueError, match="`arguments` must be those of rows_of_test:rows .*'number'"):
        Source("rows_of_test:rows", arguments={"number": 3}).check(folder)
    with pytest.raises(ValueError, match="`split` must only be given for a data set"):
        Source("rows_of_test:rows", split="train").check(folder)
    with pytest.raises(ValueError, match="must give examples that can be counted and indexed"):
        Source("rows_of_test:stream").load(folder)
    with pytest.raises(ValueError, match="must give at least one example"):
        Source("rows_of_test:none").load(folder)


def test_source_on_the_hub_without_a_network_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries would try six times, for half a minute, with a warning each."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()
    with pytest.raises(OSError, match="owner/name must be a directory, or a data set in the cache"):
        load_named_dataset("owner/name", "train")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("name", ["rows.json", "rows.csv"])
def test_source_file_may_begin_with_a_byte_order_mark(tmp_path: Path, name: str) -> None:
    """As Windows and Excel write it."""
    text = (
        json.dumps([{"prompt": "größe", "completion": "1"}]) if name == "rows.json" else "prompt,completion\ngröße,1\n"
    )
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert Source(str(tmp_path / name)).load(tmp_path)[0] == {"id": f"{name}[0]", "prompt": "größe", "completion": "1"}


def test_source_csv_with_cells_beyond_its_columns_is_a_bad_example(tmp_path: Path) -> None:
    """As a text with a comma that is not quoted. The other rows are read; another encoding is named with the file."""
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"Well, what?",1\nWell, what?,1\n')
    rows = Source(str(path)).load(tmp_path)
    assert rows[0]["prompt"] == "Well, what?"
    with pytest.raises(BadExampleError, match=r"must have a column for each cell \(got \['1'\] beyond\)"):
        read_example(rows[1])
    path.write_bytes("prompt\ngröße\n".encode("latin-1"))
    with pytest.raises(ValueError, match="rows.csv must be in UTF-8"):
        Source(str(path)).load(tmp_path)


@pytest.mark.parametrize("name", ["ROWS.JSONL", "rows.tsv", "Rows.Csv"])
def test_source_file_suffix_in_any_case_tells_its_format(tmp_path: Path, name: str) -> None:
    """Excel exports tabs too, and Windows writes suffixes in capitals."""
    text = {"ROWS.JSONL": '{"prompt": "What, now?"}\n', "rows.tsv": "prompt\nWhat, now?\n"}
    (tmp_path / name).write_text(text.get(name, 'prompt\n"What, now?"\n'))
    source = Source(str(tmp_path / name))
    source.check(tmp_path)
    assert source.load(tmp_path)[0]["prompt"] == "What, now?"


def test_source_csv_takes_long_cells_and_skips_empty_rows(tmp_path: Path) -> None:
    """A cell may hold an image; spreadsheets leave empty rows, and columns without a name, at the end."""
    path = tmp_path / "rows.csv"
    path.write_text(f"prompt,image,,\nWhat?,{'A' * 200_000},,\n,,,\n")
    rows = Source(str(path)).load(tmp_path)
    assert len(rows) == 1
    assert len(rows[0]["image"]) == 200_000
    path.write_text(f"prompt,image\nWhat?,data:image/png;base64,{'A' * 200_000}\n")
    assert len(Source(str(path)).load(tmp_path)[0][READ_ERROR]) < 200


BAD_TABLES = {
    "prompt,completion,completion\n1,2,3\n": "must have columns of different names .got completion more than once",
    'prompt,completion\n"a,1\nb,2\n': "rows.csv must be CSV .* in the row that begins in line 2: unexpected end",
    "prompt;completion\n1;2\n": "must have commas between its columns .got the header 'prompt;completion'",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_source_csv_whose_columns_are_not_clear_is_refused(tmp_path: Path, text: str) -> None:
    """Of two columns of one name the first would be lost; other separators make one column of all."""
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=BAD_TABLES[text]):
        Source(str(path)).load(tmp_path)


def test_source_example_that_is_no_mapping_or_has_no_id_is_named_by_its_position(tmp_path: Path) -> None:
    """So that a line of the output, or the error, can be matched to it."""
    (tmp_path / "rows.json").write_text('[1, {"id": null, "prompt": "a"}, {"id": 0, "prompt": "a"}]')
    rows = Source(str(tmp_path / "rows.json")).load(tmp_path)
    assert rows[0] == {"id": "rows.json[0]", READ_ERROR: "it must be a mapping (got int)"}
    assert [row["id"] for row in rows] == ["rows.json[0]", "rows.json[1]", 0]
    (tmp_path / "rows.jsonl").write_text('{"id": null, "prompt": "a"}')
    assert Source(str(tmp_path / "rows.jsonl")).load(tmp_path)[0]["id"] == "rows.jsonl:1"


def test_source_parquet_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    """`datasets` raises errors of its own, which do not name the file."""
    path = tmp_path / "rows.parquet"
    table = pyarrow.table([["What?"] * 9], names=["prompt"])
    pyarrow.parquet.write_table(table, path)
    assert len(Source(str(path)).load(tmp_path)) == 9
    damaged = bytearray(path.read_bytes())
    damaged[4:40] = b"\xff" * 36
    for content, message in (
        (b"PAR1", "must be a Parquet file"),
        (bytes(damaged), "must be readable"),
        (pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"]), "must have columns of different names"),
        (table.slice(0, 0), "must give at least one example"),
    ):
        path.unlink()
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pyarrow.parquet.write_table(content, path)
        with pytest.raises(ValueError, match=f"rows.parquet {message}"):
            Source(str(path)).load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.json", "[" * 100_000, "must be JSON .got an error: maximum recursion"),
        ("rows.json", '{"prompt": "a"}\n{"prompt": "b"}\n', "an object on each line is named .jsonl"),
        ("rows.jsonl", '\ufeff{"prompt": "a"}\n', "must be in UTF-8 .got UTF-16"),
    ],
)
def test_source_json_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    """With what to do about it."""
    (tmp_path / name).write_text(content, encoding="utf-16-le" if name == "rows.jsonl" else "utf-8")
    with pytest.raises(ValueError, match=message):
        Source(str(tmp_path / name)).load(tmp_path)


def test_source_directory_is_a_saved_data_set(tmp_path: Path) -> None:
    """With several splits one must be chosen."""
    Dataset.from_dict({"a": [1, 2]}).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_dict({"a": [1]}), test=Dataset.from_dict({"a": [2, 3]})).save_to_disk(
        tmp_path / "two"
    )
    (tmp_path / "empty").mkdir()
    for source, expected in ((Source("one"), [1, 2]), (Source("two", split="test"), [2, 3])):
        source.check(tmp_path)
        assert [row["a"] for row in source.load(tmp_path).examples] == expected
    with pytest.raises(ValueError, match=r"`split` must be one of train, test for two \(got None\)"):
        Source("two").load(tmp_path)
    with pytest.raises(ValueError, match="must hold a data set saved by `save_to_disk`"):
        Source("empty").check(tmp_path)
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "empty" / "a.png")
    (tmp_path / "empty" / "metadata.csv").write_text("file_name,question,answer\na.png,What?,Black.\n")
    images = Source("empty", columns={"prompt": "question", "completion": "answer"})
    images.check(tmp_path)
    conversation = read_example(images.load(tmp_path)[0])
    assert conversation.answer(1) == "Black."
    assert conversation.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]
    with pytest.raises(ValueError, match="`arguments` must only be given to a function"):
        Source("one", arguments={"a": 1}).check(tmp_path)


def test_source_on_the_hub_is_loaded_by_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The train split unless another one is named. A stream cannot go on where it was interrupted."""
    asked = []

    def load(location: str, split: str) -> Dataset:
        asked.append((location, split))
        return Dataset.from_dict({"a": [1]})

    monkeypatch.setattr("dimple_hf.data.sources.load_dataset", load)
    for source in (Source("owner/name"), Source("owner/name", split="validation")):
        source.check(tmp_path)
        assert len(source.load(tmp_path)) == 1
    assert asked == [("owner/name", "train"), ("owner/name", "validation")]
    monkeypatch.setattr(
        "dimple_hf.data.sources.load_dataset", lambda location, split: load(location, split).to_iterable_dataset()
    )
    with pytest.raises(ValueError, match=r"counted and indexed.*\(got IterableDataset\)"):
        Source("owner/name").load(tmp_path)
    monkeypatch.setattr(
        "dimple_hf.data.sources.load_dataset",
        lambda location, split, streaming: load(location, split).to_iterable_dataset(),
    )
    stream = Source("owner/name", streaming=True, columns={"b": "a"})
    stream.check(tmp_path)
    assert list(stream.load(tmp_path)) == [{"b": 1}]
    with pytest.raises(ValueError, match="`streaming` must only be given for a Hub data set"):
        Source("json:JSONDecoder", streaming=True).check(tmp_path)


def test_source_file_of_each_kind_is_read(tmp_path: Path) -> None:
    """Questions and answers under names of their own, in each format; what cannot be read is a bad example."""
    rows = [{"q": "What?", "a": "Red.", "image": "a.png"}, {"q": "And?", "a": "Blue.", "image": None}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    (tmp_path / "rows.json").write_text(json.dumps({"data": rows}))
    (tmp_path / "rows.csv").write_text("q,a,image\nWhat?,Red.,a.png\nAnd?,Blue.,\n")
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    for suffix in ("jsonl", "json", "csv", "parquet"):
        source = Source(str(tmp_path / f"rows.{suffix}"), columns={"prompt": "q", "completion": "a"})
        source.check(tmp_path)
        found = source.load(tmp_path)
        assert [read_example(found[index]).answer(1) for index in range(2)] == ["Red.", "Blue."], suffix
        assert [read_example(found[index]).images for index in range(2)] == [["a.png"], []], suffix
    broken = Source(str(tmp_path / "rows.jsonl")).load(tmp_path)[2]
    with pytest.raises(
        BadExampleError, match=r"it must be readable \(got ValueError: rows.jsonl:3 must be a JSON object"
    ):
        read_example(broken)
    with pytest.raises(BadExampleError, match=r"`columns` must name columns \(got b; there are id, q, a, image\)"):
        read_example(Source(str(tmp_path / "rows.jsonl"), columns={"prompt": "b"}).load(tmp_path)[0])
    for text, message in (("{", "must be JSON"), ('{"a": 1, "b": 2}', "must hold a list of examples \\(got dict")):
        (tmp_path / "rows.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            Source(str(tmp_path / "rows.json")).load(tmp_path)


def test_source_image_that_is_damaged_is_that_examples_fault(tmp_path: Path) -> None:
    """`datasets` would decode it where no row is named and nothing can be skipped."""
    data = io.BytesIO()
    PIL.Image.new("RGB", (40, 40), "red").save(data, "PNG")
    whole = data.getvalue()
    features = Features({"prompt": Value("string"), "completion": Value("string"), "image": Image()})
    rows = [{"prompt": "?", "completion": "!", "image": {"bytes": part}} for part in (whole, whole[:60])]
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    found = Source(str(tmp_path / "saved")).load(tmp_path)
    assert read_example(found[0]).images[0].size == (40, 40)
    with pytest.raises(BadExampleError, match=r"image 0 \(of 60 bytes\) must be"):
        read_example(found[1])


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("rows.json", "must be a file"),
        ("table.xls", "must be a file of .jsonl, .json, .csv, .tsv, .parquet"),
        ("", "data must be a file"),  # not the current directory
        ("other", "other must hold a data set saved by `save_to_disk`"),
        ("nothing", "data must be a file .*, a directory, 'module:function' or a Hub id"),
        ("a/b/c", "data must be a file"),
    ],
)
def test_source_that_is_nothing_is_refused(tmp_path: Path, location: str, message: str) -> None:
    """A mistyped path must not become a question to the Hub."""
    (tmp_path / "table.xls").write_text("a\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metadata.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        Source(location).check(tmp_path)


def test_read_source_with_field_of_another_type_is_refused() -> None:
    """YAML makes numbers and lists of what should be text."""
    assert read_source({"location": "x", "split": "y"}) == Source("x", "y")
    with pytest.raises(ValueError, match=r"`arguments` must be a mapping \(got \[1\]\)"):
        read_source({"location": "x", "arguments": [1]})
    with pytest.raises(ValueError, match="`split` must be text"):
        read_source({"location": "x", "split": 3})

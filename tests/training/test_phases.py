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
"""One Trainer run, causal first: the switch, its learning rates and its clipping, under all ways to run a step."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_run
from training_run import PHASES, losses, make_trainer
from transformers import AutoConfig, Trainer, TrainerCallback, get_linear_schedule_with_warmup

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration
from dimple_hf.training import Phase, PhaseCallback
from dimple_hf.training.phases import learning_rate_schedule, set_deepspeed_clipping


class ForwardRecorder(TrainerCallback):
    """Notes, for each forward pass, the step and what decided its mode."""

    def __init__(self) -> None:
        self.passes: list[tuple[int, bool, bool]] = []  # step, whether training, whether the loss was diffusion's
        self.noise_levels: list[torch.Tensor] = []
        self.step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        self.hook = model.register_forward_hook(self.record)
        self.step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.step = state.global_step

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.hook.remove()

    @torch.compiler.disable
    def record(self, model: torch.nn.Module, inputs: Any, output: Any) -> None:
        self.passes.append((self.step, model.training, output.token_noise_levels is not None))
        if output.token_noise_levels is not None:
            self.noise_levels.append(output.token_noise_levels[output.token_noise_levels != -100].unique())


def train(output_dir: Path, **options: Any) -> tuple[Trainer, ForwardRecorder]:
    recorder = ForwardRecorder()
    trainer = make_trainer(output_dir, callbacks=(recorder,), **options)
    trainer.train()
    return trainer, recorder


def test_phase_callback_switches_all_micro_batches_at_the_step(tmp_path: Path) -> None:
    """Both micro-batches of step 3, the fourth one, are the first of the diffusion phase."""
    trainer, recorder = train(tmp_path)
    assert recorder.passes == [(step, True, step >= 3) for step in range(6) for _ in range(2)]
    assert trainer.model.config.full_attn_mask is True


@pytest.mark.parametrize(
    ("switch_at", "switch_unit", "switch_step"),
    [(0, "steps", 0), (2, "steps", 2), (100, "steps", 6), (0.5, "fraction", 3), (1.0, "fraction", 6),
     (0.0, "fraction", 0), (1, "epochs", 4), (0.5, "epochs", 2)],
)  # fmt: skip
def test_phase_callback_units_give_the_step(
    tmp_path: Path, switch_at: float, switch_unit: str, switch_step: int
) -> None:
    """6 steps; 16 rows in micro-batches of 2 make an epoch of 8 micro-batches, that is 4 steps."""
    callback = PhaseCallback(switch_at, switch_unit)
    trainer = make_trainer(tmp_path)
    trainer.state.max_steps = 6
    assert callback.switch_step(trainer.args, trainer.state, trainer.get_train_dataloader()) == switch_step


def test_phase_callback_epochs_of_a_stream_are_refused(tmp_path: Path) -> None:
    """Nobody knows when an epoch of it ends."""
    trainer = make_trainer(tmp_path)
    trainer.state.max_steps = 6
    with pytest.raises(ValueError, match="`switch_unit` must be 'steps' or 'fraction' for a data set without a"):
        PhaseCallback(1, "epochs").switch_step(trainer.args, trainer.state, iter([]))
    assert PhaseCallback(1, "steps").switch_step(trainer.args, trainer.state, iter([])) == 1


def test_phase_callback_epoch_with_a_rest_counts_its_last_short_step(tmp_path: Path) -> None:
    """10 rows: 5 micro-batches, so 3 steps an epoch, the last of one micro-batch."""
    trainer, recorder = train(tmp_path, rows=training_run.make_rows(10), switch_at=1, switch_unit="epochs")
    assert [is_diffusion for step, _, is_diffusion in recorder.passes] == [False] * 5 + [True] * 5
    assert trainer.state.epoch == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1,), "`switch_at` must be >= 0 (got -1)"),
        ((1.5,), "`switch_at` must be a whole number of steps (got 1.5)"),
        ((1.5, "fraction"), "`switch_at` must lie in [0, 1] as a fraction of the run (got 1.5)"),
        ((1, "hours"), "`switch_unit` must be one of steps, epochs, fraction (got 'hours')"),
    ],
)
def test_phase_callback_bad_switch_is_refused(arguments: tuple, message: str) -> None:
    """Before a model is loaded."""
    with pytest.raises(ValueError, match="must") as error:
        PhaseCallback(*arguments)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be > 0 (got 0.0)"),
        ({"max_grad_norm": -1.0}, "`max_grad_norm` must be > 0 (got -1.0)"),
        ({"warmup_ratio": 1.1}, "`warmup_ratio` must lie in [0, 1] (got 1.1)"),
        ({"decay_ratio": -0.1}, "`decay_ratio` must lie in [0, 1] (got -0.1)"),
    ],
)
def test_phase_bad_number_is_refused(arguments: dict[str, float], message: str) -> None:
    """Every branch of the check."""
    with pytest.raises(ValueError, match="must") as error:
        Phase(**arguments)
    assert str(error.value) == message


def test_phase_default_shape_equals_transformers_linear_schedule() -> None:
    """The paper's: warm-up over 3 %, then linear to 0."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    linear = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=100).lr_lambdas[0]
    assert [Phase().learning_rate_factor(step, 100) for step in range(101)] == [linear(step) for step in range(101)]


def test_phase_decay_ratio_holds_the_rate_before() -> None:
    """Warm-up over 2 of 10 steps, decay over the last quarter of the other 8."""
    phase = Phase(warmup_ratio=0.2, decay_ratio=0.25)
    assert [phase.learning_rate_factor(step, 10) for step in range(11)] == [0, 0.5, 1, 1, 1, 1, 1, 1, 1, 0.5, 0]
    constant = Phase(warmup_ratio=0, decay_ratio=0)
    assert {constant.learning_rate_factor(step, 10) for step in range(11)} == {1.0}


def test_learning_rate_schedule_joins_the_phases() -> None:
    """Factors of the rate 1e-3; the diffusion phase, without a rate of its own, has that rate."""
    factor = learning_rate_schedule(Phase(2e-3, 0, 0), Phase(None, 0.5, 0), 1e-3, switch_step=2, max_steps=6)
    assert [factor(step) for step in range(7)] == [2, 2, 0, 0.5, 1, 1, 1]
    with pytest.raises(ValueError, match=r"`learning_rate` must be > 0 with phases \(got 0\)"):
        learning_rate_schedule(Phase(), Phase(), 0, 2, 6)


class ClippingRecorder(TrainerCallback):
    """Notes the learning rate and the norm of the clipped gradients that each optimizer step uses."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: torch.nn.Module, optimizer: Any, **kwargs: Any
    ) -> None:
        norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
        self.steps.append((optimizer.param_groups[0]["lr"], float(torch.stack(norms).norm())))


def test_phase_callback_sets_learning_rate_and_clipping_of_each_phase(tmp_path: Path) -> None:
    """What the optimizer uses, what is logged, and what is left when the run is over."""
    recorder = ClippingRecorder()
    trainer = make_trainer(tmp_path, phases=PHASES, callbacks=(recorder,))
    trainer.train()
    rates = [rate for rate, _ in recorder.steps]
    # One warm-up step of three (3 %, rounded up), then linear over the other two, in each phase.
    assert rates == pytest.approx([0, 1e-3, 5e-4, 0, 5e-4, 2.5e-4])
    assert rates == [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    assert [norm for _, norm in recorder.steps] == pytest.approx([1.0] * 3 + [0.1] * 3, rel=1e-4)
    assert trainer.args.max_grad_norm == 1.0


def test_phase_callback_without_phases_leaves_schedule_and_clipping_to_the_trainer(tmp_path: Path) -> None:
    """Control of the test before: the Trainer's linear decay over all 6 steps, and its default norm."""
    recorder = ClippingRecorder()
    make_trainer(tmp_path, callbacks=(recorder,)).train()
    assert [rate for rate, _ in recorder.steps] == pytest.approx([1e-3 * (6 - step) / 6 for step in range(6)])
    assert [norm for _, norm in recorder.steps] == pytest.approx([1.0] * 6, rel=1e-4)


def test_phase_callback_one_phase_given_makes_the_other_a_default_one(tmp_path: Path) -> None:
    """The causal phase then takes the rate and the norm of the arguments."""
    recorder = ClippingRecorder()
    phases = {"diffusion": Phase(learning_rate=1e-4, max_grad_norm=0.01)}
    make_trainer(tmp_path, phases=phases, callbacks=(recorder,), max_grad_norm=0.5).train()
    assert [rate for rate, _ in recorder.steps] == pytest.approx([0, 1e-3, 5e-4, 0, 1e-4, 5e-5])
    assert [norm for _, norm in recorder.steps] == pytest.approx([0.5] * 3 + [0.01] * 3, rel=1e-3)


def test_phase_callback_scheduler_of_another_kind_is_refused(tmp_path: Path) -> None:
    """A plateau scheduler has no function of the step that could be replaced."""
    arguments = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    with pytest.raises(ValueError, match="`lr_scheduler_type` must be one that is a function of the step"):
        make_trainer(tmp_path, phases=PHASES, **arguments).train()


def test_phase_callback_checkpoints_know_their_phase(tmp_path: Path) -> None:
    """The one at the switch was trained causally only; resumed from it, training goes on in the other phase."""
    trainer, _ = train(tmp_path, save_strategy="steps", save_steps=1)
    modes = [AutoConfig.from_pretrained(tmp_path / f"checkpoint-{step}").full_attn_mask for step in range(1, 7)]
    assert modes == [False, False, False, True, True, True]

    resumed = make_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert losses(resumed)[3:] == losses(trainer)[3:]
    # A complete run that is started again stays in its last phase.
    for switch_at, mode in ((3, True), (6, False)):
        complete = make_trainer(tmp_path, switch_at=switch_at)
        complete.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
        assert complete.model.config.full_attn_mask is mode


def test_phase_callback_evaluation_in_between_changes_nothing_and_repeats_its_masks(tmp_path: Path) -> None:
    """Evaluation runs in the phase of the step before it, and its losses differ by the weights only."""
    trainer, recorder = train(tmp_path, eval_strategy="steps", eval_steps=1, eval_on_start=True)
    alone, _ = train(tmp_path)
    assert losses(trainer) == losses(alone)
    evaluations = [(step, is_diffusion) for step, is_training, is_diffusion in recorder.passes if not is_training]
    assert evaluations == [(0, False)] + [(step, step > 3) for step in range(1, 7)]
    # Both of the diffusion phase's kinds of pass: evaluation repeats its noise levels, training never does.
    is_training = [passed[1] for passed in recorder.passes if passed[2]]
    levels = {
        kind: [tuple(level.tolist()) for level, training in zip(recorder.noise_levels, is_training, strict=True)
               if training is kind]
        for kind in (True, False)
    }  # fmt: skip
    assert len(levels[False]) == 3
    assert len(set(levels[False])) == 1
    assert len(levels[True]) == len(set(levels[True])) == 6


def test_phase_callback_evaluation_at_the_end_of_an_epoch_repeats_its_masks(tmp_path: Path) -> None:
    """The other of the Trainer's two ways to evaluate."""
    _, recorder = train(tmp_path, switch_at=0, max_steps=8, eval_strategy="epoch")
    is_training = [passed[1] for passed in recorder.passes]
    first, second = (level for level, training in zip(recorder.noise_levels, is_training, strict=True) if not training)
    assert torch.equal(first, second)


def test_phase_callback_masks_follow_seed_and_step_alone(tmp_path: Path) -> None:
    """A run that draws other numbers elsewhere, here in its first phase, has the same masks in its second."""

    class Disturbance(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            torch.rand(7)

    def noise_levels(*callbacks: TrainerCallback, **options: Any) -> list[list[float]]:
        recorder = ForwardRecorder()
        make_trainer(tmp_path, callbacks=(*callbacks, recorder), **options).train()
        return [level.tolist() for level in recorder.noise_levels]

    levels = noise_levels()
    assert noise_levels(Disturbance()) == levels
    assert noise_levels(seed=1, data_seed=42) != levels


def test_phase_callback_with_label_smoothing_is_refused(tmp_path: Path) -> None:
    """The Trainer would take the labels away from the model, which then masks nothing and learns to copy."""
    with pytest.raises(ValueError, match=r"`label_smoothing_factor` must be 0 \(got 0.1\)"):
        make_trainer(tmp_path, label_smoothing_factor=0.1)


@pytest.mark.parametrize("data_seed", [-1, 1 << 63, "x", 1.5])
def test_phase_callback_with_data_seed_out_of_range_is_refused(tmp_path: Path, data_seed: Any) -> None:
    """Before training, where torch names no argument. The Trainer itself refuses such a `seed`, before callbacks."""
    with pytest.raises(ValueError, match=r"`data_seed` must be an integer from 0 to 2\*\*63 - 1 \(got "):
        make_trainer(tmp_path, data_seed=data_seed)
    make_trainer(tmp_path, data_seed=(1 << 63) - 1)


@pytest.mark.parametrize("value", ["x", [1], -1, float("nan"), True])
def test_phase_and_its_callback_with_no_number_are_refused(value: Any) -> None:
    """The message names the argument."""
    for name in ("learning_rate", "max_grad_norm", "warmup_ratio", "decay_ratio"):
        with pytest.raises(ValueError, match=f"`{name}` must "):
            Phase(**{name: value})
    with pytest.raises(ValueError, match="`switch_at` must be >= 0"):
        PhaseCallback(value)
    with pytest.raises(ValueError, match="`causal` must be a Phase"):
        PhaseCallback(0, causal=value)


def test_training_with_label_smoothing_and_no_callback_is_refused(tmp_path: Path) -> None:
    """The model notices by itself that it is about to learn copying."""
    trainer = make_trainer(tmp_path, label_smoothing_factor=0.1, without_phases=True)
    with pytest.raises(ValueError, match="`labels` must be given in training in bidirectional mode"):
        trainer.train()


def test_neftune_noise_is_added_in_both_phases(tmp_path: Path) -> None:
    """Its hook on the embedding takes whole sequences; the mask token has to be embedded as such."""
    losses = {}
    for alpha in (None, 5.0):
        trainer, _ = train(tmp_path / str(alpha), neftune_noise_alpha=alpha)
        losses[alpha] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(plain != noisy for plain, noisy in zip(losses[None], losses[5.0], strict=True))


def test_evaluate_three_times_gives_one_loss(tmp_path: Path) -> None:
    """Without any callback, and whatever was drawn meanwhile."""
    trainer = make_trainer(tmp_path, without_phases=True)
    found = [trainer.evaluate()["eval_loss"] for _ in range(3)]
    assert len(set(found)) == 1
    other = make_trainer(tmp_path, without_phases=True, per_device_eval_batch_size=1)
    noise = other.predict(other.eval_dataset).predictions[2]
    assert sorted(noise.max(axis=1)) == sorted(trainer.predict(trainer.eval_dataset).predictions[2].max(axis=1))


def test_predict_gives_metrics_arrays_of_the_labels_shape(tmp_path: Path) -> None:
    """What `compute_metrics` gets; the same on two processes, which must gather rows of unequal length."""
    seen: dict[str, Any] = {}

    def accuracy(prediction: Any) -> dict[str, float]:
        predictions, token_losses, noise_levels = prediction.predictions
        counted = predictions != -100
        seen["shapes"] = {array.shape for array in (predictions, token_losses, noise_levels, prediction.label_ids)}
        return {"accuracy": float((predictions == prediction.label_ids)[counted].mean())}

    trainer = make_trainer(tmp_path, without_phases=True, per_device_eval_batch_size=1)
    trainer.compute_metrics = accuracy
    assert "eval_accuracy" in trainer.evaluate()
    assert len(seen["shapes"]) == 1


class Stream(torch.utils.data.IterableDataset):
    """Rows one after the other, without a length."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield from training_run.make_rows()


def test_training_on_a_stream_equals_training_on_its_rows(tmp_path: Path) -> None:
    """accelerate would cut all tensors of a batch to the number of its rows, patches included."""
    arguments = {"max_steps": 2, "switch_at": 1}
    with pytest.raises(ValueError, match=r'`accelerator_config` must be \{"dispatch_batches": False\}'):
        make_trainer(tmp_path, rows=Stream(), **arguments).train()
    whole = {"accelerator_config": {"dispatch_batches": False}}
    stream = make_trainer(tmp_path, rows=Stream(), **arguments, **whole)
    stream.train()
    in_order = make_trainer(tmp_path, train_sampling_strategy="sequential", **arguments)
    in_order.train()
    assert losses(stream) == losses(in_order)


@pytest.mark.parametrize(
    "options",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        pytest.param({"torch_compile": True, "torch_compile_backend": "aot_eager"}, marks=pytest.mark.slow),
    ],
    ids=["checkpointing", "reentrant", "compiled"],
)
def test_phase_callback_ways_to_run_a_step_agree_across_the_switch(tmp_path: Path, options: dict[str, Any]) -> None:
    """What is recomputed or compiled must not keep the mode of the first phase."""
    arguments = {"max_steps": 4, "switch_at": 2, "phases": PHASES, "gradient_accumulation_steps": 1}
    # Compilation takes its time for every layer and every shape.
    config = DimpleConfig.from_pretrained(training_run.CHECKPOINT, num_hidden_layers=1)
    config.vision_config.depth = 1
    rows = training_run.make_rows()[:1] * 8

    def train_small(**options: Any) -> tuple[list[float], ForwardRecorder]:
        torch.manual_seed(0)
        model = DimpleForConditionalGeneration(config)
        trainer, recorder = train(tmp_path, model=model, rows=rows, **arguments | options)
        return losses(trainer), recorder

    plain, _ = train_small()
    other, recorder = train_small(**options)
    assert other == pytest.approx(plain, rel=1e-4)
    assert [is_diffusion for _, _, is_diffusion in recorder.passes] == [False] * 2 + [True] * 2
    # Control: a mode that stayed would be seen in the loss.
    causal, _ = train_small(switch_at=4)
    assert abs(causal[2] - plain[2]) > 1e-2


@pytest.mark.parametrize("trained", [("img_projector",), ("img_projector", "model", "lm_head"), ("visual",)])
def test_training_moves_only_the_parts_that_require_a_gradient(
    tmp_path: Path, model: DimpleForConditionalGeneration, trained: tuple[str, ...]
) -> None:
    """Each stage of the paper freezes what it does not train; every parameter is compared."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] in trained)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(tmp_path, model=model, weight_decay=0.1)
    moved = {
        name.split(".")[0] for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert moved == set(trained)


def test_trainer_state_of_a_run_is_plain_json(tmp_path: Path) -> None:
    """Nothing of the callback is saved, so a checkpoint resumes with another one, or without."""
    train(tmp_path, save_strategy="steps", save_steps=6)
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert "PhaseCallback" not in state["stateful_callbacks"]


def test_each_phase_sets_the_clipping_of_deepspeeds_optimizer() -> None:
    """Whole runs under ZeRO are compared with one process in `test_distributed.py`."""
    wrapper = SimpleNamespace(optimizer=SimpleNamespace(clip_grad=1.0))
    set_deepspeed_clipping(wrapper, 0.1)
    assert wrapper.optimizer.clip_grad == 0.1
    for without_zero in (SimpleNamespace(optimizer=SimpleNamespace()), None):
        with pytest.raises(ValueError, match="DeepSpeed without ZeRO"):
            set_deepspeed_clipping(without_zero, 0.1)

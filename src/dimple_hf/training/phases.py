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
"""The two phases of training, autoregressive and diffusion, in one Trainer run.

Source: Dimple, section 3 (arXiv 2505.16990), "Autoregressive-then-Diffusion"; learning rates and clipping differ by
phase there. Everything is a function of the number of the optimizer step, so that a resumed run, every process and
every micro-batch of a step agree without talking to each other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import NoneType
from typing import Any

from accelerate.data_loader import DataLoaderDispatcher
from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from ..modeling import DimpleForConditionalGeneration
from .adapters import remember_mode
from .option_types import check_type
from .seeding import SeededSpan, derive_seed

SWITCH_UNITS = ("steps", "epochs", "fraction")

#: First number of the key of a seed, so that training and evaluation never draw the same masks.


@dataclass(frozen=True)
class Phase:
    """
    How one phase of training runs. The defaults are the paper's shape: 3 % warm-up, then linear decay to 0.

    Args:
        learning_rate (`float`, *optional*):
            Highest learning rate of the phase; that of `TrainingArguments` when missing.
        warmup_ratio (`float`, defaults to 0.03):
            Share of the phase's steps, in [0, 1], over which the learning rate rises linearly from 0.
        decay_ratio (`float`, defaults to 1.0):
            Share of the steps after the warm-up, in [0, 1], over which it falls linearly to 0 at the end of the phase.
            1: it falls at once. 0: it stays.
        max_grad_norm (`float`, *optional*):
            Norm to which gradients are clipped; that of `TrainingArguments` when missing.

    Raises:
        ValueError: If a number is out of range.
    """

    learning_rate: float | None = None
    warmup_ratio: float = 0.03
    decay_ratio: float = 1.0
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and value > 0):
                raise ValueError(f"`{name}` must be > 0 (got {value!r})")
        for name in ("warmup_ratio", "decay_ratio"):
            value = getattr(self, name)
            if not (is_number(value) and 0 <= value <= 1):
                raise ValueError(f"`{name}` must lie in [0, 1] (got {value!r})")

    def learning_rate_factor(self, step: int, num_steps: int) -> float:
        """
        Args:
            step (`int`):
                Steps of the phase already done.
            num_steps (`int`):
                Steps of the whole phase.

        Returns:
            `float`: The learning rate of the next step as a share of the highest, in [0, 1].
        """
        num_warmup_steps = math.ceil(self.warmup_ratio * num_steps)
        if step < num_warmup_steps:
            return step / num_warmup_steps
        num_decay_steps = round(self.decay_ratio * (num_steps - num_warmup_steps))
        if num_decay_steps == 0:
            return 1.0
        return min(1.0, max(0, num_steps - step) / num_decay_steps)


class PhaseCallback(TrainerCallback):
    """
    Trains the first part of a run causally and the rest by masked diffusion.

    ```text
    step         0 ............ switch ............ max_steps
    attention    causal       | bidirectional                  config.full_attn_mask
    loss         next token   | masked diffusion
    rate, clip   `causal`     | `diffusion`
    ```

    Before each optimizer step it

    1. sets `model.config.full_attn_mask`, from which `forward` takes attention and loss, and which checkpoints keep,
       as adapters do;
    2. sets `args.max_grad_norm`, which the Trainer reads at each step, or the bound of DeepSpeed's optimizer, which
       clips by itself;
    3. sets the model's `mask_seed` from `args.seed` and the step, so that masks follow from what an example holds and
       the step: they are the same in a resumed run, and however the step is divided into micro-batches and processes;
    4. seeds torch's generators from `args.seed`, the step and the rank, until the step is over, for dropout.

    Evaluation draws the same masks every time, which the model does by itself.

    All of it follows from `state.global_step`, so nothing needs to be saved. A checkpoint of step `switch` itself is
    still a causal one. The learning rate is set through the Trainer's own scheduler, whose functions are replaced,
    and only if `causal` or `diffusion` is given.

    Args:
        switch_at (`int` or `float`):
            Where the diffusion phase begins. 0: at once. The run's length or more: never.
        switch_unit (`str`, defaults to `"steps"`):
            What `switch_at` counts: optimizer `"steps"`, `"epochs"`, or the `"fraction"` of the run, in [0, 1].
        causal, diffusion ([`Phase`], *optional*):
            How the phases run. Without both, learning rate and clipping are those of `TrainingArguments` for the
            whole run; with one of them, the other is `Phase()`.

    Raises:
        ValueError: If the switch is out of range or its unit unknown; in the Trainer, if a seed is out of range or
            `label_smoothing_factor` is set; when training begins, if batches of a stream are dispatched, or if phases
            are given and the scheduler is none of transformers' functions of the step, or `learning_rate` is 0.

    Example:

    ```python
    >>> callback = PhaseCallback(
    ...     switch_at=0.5,
    ...     switch_unit="fraction",
    ...     causal=Phase(learning_rate=2e-5, max_grad_norm=1.0),
    ...     diffusion=Phase(learning_rate=5e-6, max_grad_norm=0.1),
    ... )
    >>> trainer = Trainer(model, args, data_collator=collator, train_dataset=dataset, callbacks=[callback])
    ```
    """

    def __init__(
        self,
        switch_at: int | float,
        switch_unit: str = "steps",
        causal: Phase | None = None,
        diffusion: Phase | None = None,
    ) -> None:
        if switch_unit not in SWITCH_UNITS:
            raise ValueError(f"`switch_unit` must be one of {', '.join(SWITCH_UNITS)} (got {switch_unit!r})")
        if not (is_number(switch_at) and 0 <= switch_at < math.inf):
            raise ValueError(f"`switch_at` must be >= 0 (got {switch_at!r})")
        if switch_unit == "steps" and switch_at != int(switch_at):
            raise ValueError(f"`switch_at` must be a whole number of steps (got {switch_at})")
        if switch_unit == "fraction" and switch_at > 1:
            raise ValueError(f"`switch_at` must lie in [0, 1] as a fraction of the run (got {switch_at})")
        for name, phase in (("causal", causal), ("diffusion", diffusion)):
            if not isinstance(phase, (Phase, NoneType)):
                raise ValueError(f"`{name}` must be a Phase (got {phase!r})")
        self.switch_at = switch_at
        self.switch_unit = switch_unit
        self.phases = None if causal is None and diffusion is None else (causal or Phase(), diffusion or Phase())
        self._span = SeededSpan()

    def switch_step(self, args: TrainingArguments, state: TrainerState, train_dataloader: DataLoader) -> int:
        """
        Returns:
            `int`: Number of causal optimizer steps, at most `state.max_steps`.

        Raises:
            ValueError: If epochs are counted and their length is unknown.
        """
        if self.switch_unit == "epochs" and not has_length(train_dataloader):
            raise ValueError("`switch_unit` must be 'steps' or 'fraction' for a data set without a length")
        if self.switch_unit == "epochs":
            steps = self.switch_at * math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        elif self.switch_unit == "fraction":
            steps = self.switch_at * state.max_steps
        else:
            steps = self.switch_at
        return min(round(steps), state.max_steps)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        check_arguments(args)

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        lr_scheduler: LRScheduler,
        train_dataloader: DataLoader,
        **kwargs: Any,
    ) -> None:
        check_arguments(args)
        check_dispatch(train_dataloader)
        self._switch_step = self.switch_step(args, state, train_dataloader)
        self._default_max_grad_norm = args.max_grad_norm
        if self.phases is not None:
            factor = learning_rate_schedule(*self.phases, args.learning_rate, self._switch_step, state.max_steps)
            replace_schedule(lr_scheduler, factor)
        self._set_phase(args, state, model)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        self._set_phase(args, state, model)
        if args.deepspeed_plugin is not None and any(phase.max_grad_norm is not None for phase in self.phases or ()):
            set_deepspeed_clipping(optimizer, args.max_grad_norm)
        base_model(model).mask_seed = derive_seed(args.seed, state.global_step)
        self._span.begin(args.seed, args.process_index, state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        base_model(model).mask_seed = None
        self._span.end()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        base_model(model).mask_seed = None
        self._span.end()
        args.max_grad_norm = self._default_max_grad_norm

    def _set_phase(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        # A complete run that is started again is past its last step, and stays in the mode of that.
        is_diffusion = min(state.global_step, state.max_steps - 1) >= self._switch_step
        model.config.full_attn_mask = is_diffusion
        if isinstance(model, PeftModel):
            remember_mode(model)
        if self.phases is not None:
            max_grad_norm = self.phases[is_diffusion].max_grad_norm
            args.max_grad_norm = self._default_max_grad_norm if max_grad_norm is None else max_grad_norm


def set_deepspeed_clipping(optimizer: Optimizer | None, max_grad_norm: float) -> None:
    """
    Sets the norm to which DeepSpeed clips gradients.

    Args:
        optimizer (`Optimizer`, *optional*):
            The Trainer's optimizer: accelerate's wrapper of DeepSpeed's.
        max_grad_norm (`float`):
            The norm.

    Raises:
        ValueError: If the optimizer clips by its configuration alone, as without ZeRO.
    """
    zero_optimizer: Any = getattr(optimizer, "optimizer", None)
    if not hasattr(zero_optimizer, "clip_grad"):
        raise ValueError(
            "`max_grad_norm` of a phase must not be set under DeepSpeed without ZeRO, which clips by its own "
            "configuration (got zero_stage 0; use stage 1, 2 or 3)"
        )
    zero_optimizer.clip_grad = max_grad_norm


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float, which a `bool` is not meant to be."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def base_model(model: nn.Module) -> DimpleForConditionalGeneration:
    """The model itself, also if PEFT has wrapped it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_arguments(args: TrainingArguments) -> None:
    """Refuses seeds out of range, and what would take the labels away from the model, which computes its own loss."""
    check_type("seed", args.seed, int, "from 0 to 2**32 - 1")
    check_type("data_seed", args.data_seed, int | None, "from 0 to 2**63 - 1")
    if args.label_smoothing_factor:
        raise ValueError(
            f"`label_smoothing_factor` must be 0 (got {args.label_smoothing_factor}): the Trainer would keep the "
            "labels from the model, which then masks nothing"
        )


def check_dispatch(dataloader: DataLoader) -> None:
    """Refuses accelerate's way with streams, which cuts all tensors of a batch to the number of its rows."""
    if isinstance(dataloader, DataLoaderDispatcher):
        raise ValueError(
            '`accelerator_config` must be {"dispatch_batches": False} in `TrainingArguments` for a streaming data set '
            "(got batches that are made in one process and cut up for the others)"
        )


def learning_rate_schedule(
    causal: Phase, diffusion: Phase, learning_rate: float, switch_step: int, max_steps: int
) -> Callable[[int], float]:
    """
    Args:
        causal, diffusion ([`Phase`]):
            The two phases.
        learning_rate (`float`):
            The rate that the factors multiply, > 0; also that of a phase without its own.
        switch_step, max_steps (`int`):
            Causal steps, and steps of both phases.

    Returns:
        `Callable[[int], float]`: From the number of steps done to the factor of the next step.

    Raises:
        ValueError: If `learning_rate` is not positive.
    """
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be > 0 with phases (got {learning_rate})")
    causal_share = (causal.learning_rate or learning_rate) / learning_rate
    diffusion_share = (diffusion.learning_rate or learning_rate) / learning_rate

    def factor(step: int) -> float:
        if step < switch_step:
            return causal_share * causal.learning_rate_factor(step, switch_step)
        return diffusion_share * diffusion.learning_rate_factor(step - switch_step, max_steps - switch_step)

    return factor


def replace_schedule(lr_scheduler: LRScheduler, factor: Callable[[int], float]) -> None:
    """
    Makes a scheduler follow another function of the step, from the step where it is.

    Args:
        lr_scheduler (`LambdaLR`):
            What the Trainer made, or loaded from a checkpoint.
        factor (`Callable[[int], float]`):
            The share of each parameter group's initial learning rate, by the number of steps done.

    Raises:
        ValueError: If the scheduler is not a `LambdaLR`, as most of transformers' are.
    """
    if not isinstance(lr_scheduler, LambdaLR):
        raise ValueError(
            "`lr_scheduler_type` must be one that is a function of the step, such as 'linear', for phases to set the "
            f"learning rate (got a {type(lr_scheduler).__name__})"
        )
    lr_scheduler.lr_lambdas = [factor] * len(lr_scheduler.base_lrs)
    rates = [rate * factor(lr_scheduler.last_epoch) for rate in lr_scheduler.base_lrs]
    for group, rate in zip(lr_scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    lr_scheduler.load_state_dict(lr_scheduler.state_dict() | {"_last_lr": rates})  # what the Trainer logs

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
"""Additional metrics: the phase, the accuracy on the learned tokens, the loss by noise level.

The forward pass returns the loss of every learned token ([`DimpleOutput`]); a hook adds them up, and each log entry
gets their averages since the last one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..modeling.objective_dimple import NOT_COUNTED


def add_before_reporters(trainer: Trainer, *callbacks: TrainerCallback) -> None:
    """
    Adds callbacks in front of the reporters (TensorBoard and others), so that these report what the callbacks add to
    the logs. The Trainer's own `callbacks` argument puts them after the reporters, where only the progress bar and
    `trainer.state.log_history` show it.

    Args:
        trainer (`Trainer`):
            A trainer that has not begun to train.
        callbacks (`TrainerCallback`):
            [`MetricsCallback`], [`GenerationCallback`] or others of that kind, in the order in which they run.
    """
    for callback in callbacks:
        trainer.add_callback(callback)
        callback.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)  # it has missed it
    handler = trainer.callback_handler
    # The first callback is the Trainer's own, which decides when to log, evaluate and save.
    others = [callback for callback in handler.callbacks[1:] if callback not in callbacks]
    handler.callbacks = [handler.callbacks[0], *callbacks, *others]


def add_to_logs(state: TrainerState, logs: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Adds values to a log entry for the callbacks that follow, and to the entry that the Trainer has kept already."""
    logs.update(values)
    state.log_history[-1].update(values)


def logged_prefix(logs: Mapping[str, Any]) -> str | None:
    """
    Returns:
        `str` or `None`: What the keys of a log entry begin with: `""` for training, `"eval_"` (or that of the data
        set) for an evaluation, `None` for entries of other kinds, such as the summary at the end.
    """
    if "loss" in logs:
        return ""
    return next((key.removesuffix("loss") for key in logs if key.endswith("_loss") and key != "train_loss"), None)


class ForwardHook:
    """
    Calls a function after each forward pass of a model, wherever the Trainer has wrapped it.

    Args:
        record (`Callable`):
            Called with the model, its keyword arguments and its output.
    """

    def __init__(self, record: Callable[[nn.Module, dict[str, Any], Any], None]) -> None:
        self._record = record
        self._handle: torch.utils.hooks.RemovableHandle | None = None

    def watch(self, model: nn.Module) -> None:
        """Moves to another model."""
        self.remove()
        self._handle = model.register_forward_hook(self._call, with_kwargs=True)

    def remove(self) -> None:
        """Takes the hook off. Nothing happens without one."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    @torch.compiler.disable
    def _call(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._record(model, kwargs, output)


class TokenAverages:
    """
    Sums over tokens, kept where they were computed, so that no step waits for the device.

    Args:
        num_noise_bins (`int`):
            Into how many equal parts the noise levels [0, 1] are divided.
    """

    def __init__(self, num_noise_bins: int) -> None:
        self.num_noise_bins = num_noise_bins
        self._sums: torch.Tensor | None = None

    def add(
        self, token_losses: torch.Tensor, token_hits: torch.Tensor, token_noise_levels: torch.Tensor | None
    ) -> None:
        """Adds tokens; all of shape `(num_tokens,)`. Without noise levels they are those of the causal loss."""
        sums = token_losses.new_zeros(4 + 2 * self.num_noise_bins, dtype=torch.float32)
        # Layout: causal tokens and hits, masked tokens and hits, then losses and tokens of each bin.
        position = 0 if token_noise_levels is None else 2
        sums[position] = len(token_hits)
        sums[position + 1] = token_hits.sum()
        if token_noise_levels is not None:
            bins = (token_noise_levels * self.num_noise_bins).long().clamp(max=self.num_noise_bins - 1)
            sums[4 : 4 + self.num_noise_bins].index_add_(0, bins, token_losses.float())
            sums[4 + self.num_noise_bins :].index_add_(0, bins, torch.ones_like(token_losses, dtype=torch.float32))
        self._sums = sums if self._sums is None else self._sums + sums

    def take(self, device: torch.device) -> dict[str, float]:
        """Averages over all processes since the last call. Every process must call it."""
        width = 4 + 2 * self.num_noise_bins
        sums = torch.zeros(width, device=device) if self._sums is None else self._sums.to(device)
        self._sums = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        causal, causal_hits, masked, masked_hits, *bins = sums.tolist()
        values = {}
        if causal:
            values["token_accuracy"] = causal_hits / causal
        if masked:
            values["masked_token_accuracy"] = masked_hits / masked
        for index in range(self.num_noise_bins):
            if tokens := bins[self.num_noise_bins + index]:
                low, high = (round(edge / self.num_noise_bins, 2) for edge in (index, index + 1))
                values[f"loss_noise_{low}_{high}"] = bins[index] / tokens
        return values


class MetricsCallback(TrainerCallback):
    """
    Adds to each log entry of training, and with the prefix `eval_` to each of an evaluation:

    - `phase`: 0 in the causal phase, 1 in the diffusion phase.
    - `token_accuracy` (causal) or `masked_token_accuracy` (diffusion): share of learned tokens whose most probable
      token is the right one.
    - `loss_noise_0.0_0.2` and so on: mean cross-entropy, in nats, of the masked tokens in rows of this noise level.

    Averages are over all tokens, micro-batches and processes since the last entry. Reporters show them if the callback
    stands before them; see [`add_before_reporters`].

    Args:
        num_noise_bins (`int`, defaults to 5):
            Into how many equal parts the noise levels [0, 1] are divided.

    Raises:
        ValueError: If `num_noise_bins` is below 1.
    """

    def __init__(self, num_noise_bins: int = 5) -> None:
        if num_noise_bins < 1:
            raise ValueError(f"`num_noise_bins` must be >= 1 (got {num_noise_bins})")
        self._averages = {is_training: TokenAverages(num_noise_bins) for is_training in (True, False)}
        self._hook = ForwardHook(self._record)

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._hook.watch(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._hook.watch(model)  # FSDP has wrapped it by now

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        prefix = logged_prefix(logs)
        if prefix is None:
            return
        values = self._averages[prefix == ""].take(args.device)
        values["phase"] = int(model.config.full_attn_mask)
        add_to_logs(state, logs, {prefix + name: value for name, value in values.items()})

    def _record(self, model: nn.Module, inputs: dict[str, Any], output: Any) -> None:
        if getattr(output, "token_losses", None) is None:
            return
        counted = output.token_losses != NOT_COUNTED
        hits = output.token_predictions[counted] == inputs["labels"].to(counted.device)[counted]
        levels = output.token_noise_levels
        averages = self._averages[model.training]
        averages.add(output.token_losses[counted], hits, None if levels is None else levels[counted])

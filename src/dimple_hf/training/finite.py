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
"""Stops a run whose loss or weights are no longer finite, before they reach a checkpoint.

The Trainer would log 0 for such a loss, go on, and rotate the good checkpoints away.
"""

from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .metrics import ForwardHook


class NonFiniteLossError(ValueError):
    """The loss or the weights of a run are infinite or not a number."""


class FiniteLossCallback(TrainerCallback):
    """
    Raises [`NonFiniteLossError`] before the optimizer takes a step on a loss that is not finite, and before weights
    that are not finite are saved. All processes stop together.
    """

    def __init__(self) -> None:
        self._hook = ForwardHook(self._record)
        self._is_finite: torch.Tensor | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._is_finite = None
        self._hook.watch(model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        is_finite, self._is_finite = self._is_finite, None
        if is_finite is not None and not _on_all_processes(is_finite):
            raise NonFiniteLossError(
                f"the loss of step {state.global_step + 1} must be finite (got infinity or NaN): lower the learning "
                "rate, or look for broken examples; the last checkpoint is from before"
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._check_weights(state, model)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._check_weights(state, model)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._hook.remove()
        self._check_weights(state, model)

    def _check_weights(self, state: TrainerState, model: nn.Module) -> None:
        shards = [getattr(p, "_local_tensor", p).detach() for p in model.parameters() if p.requires_grad]
        flags = [shard.isfinite().all() for shard in shards if shard.numel()]
        if flags and not _on_all_processes(torch.stack(flags).all()):
            raise NonFiniteLossError(
                f"the weights after step {state.global_step} must be finite (got infinity or NaN): lower the learning "
                "rate; the last checkpoint is from before"
            )

    def _record(self, model: nn.Module, inputs: dict[str, Any], output: Any) -> None:
        if model.training and output.loss is not None:
            is_finite = output.loss.detach().isfinite()
            self._is_finite = is_finite if self._is_finite is None else self._is_finite & is_finite


def _on_all_processes(flag: torch.Tensor) -> bool:
    flag = flag.int()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
    return bool(flag)

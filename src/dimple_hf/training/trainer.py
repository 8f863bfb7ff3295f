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
"""The `Trainer` of a stage: learning rates by part, and examples grouped by length without a column for it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from .stages import PARTS

#: What an image adds to an example's length, in characters: some hundred tokens.
IMAGE_LENGTH = 1000


class StageTrainer(Trainer):
    """
    A plain `Trainer` but for two methods.

    Args:
        learning_rate_multipliers (`Mapping[str, float]`):
            What the learning rate of a part (key of `PARTS`) is multiplied by.
        **arguments:
            Those of `Trainer`.
    """

    def __init__(self, learning_rate_multipliers: Mapping[str, float], **arguments: Any) -> None:
        self._multipliers = learning_rate_multipliers
        super().__init__(**arguments)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """CHANGED: parameter groups are divided by part where rates differ."""
        optimizer = super().create_optimizer(model)
        if self._multipliers:
            split_groups(optimizer, self.model if model is None else model, self._multipliers)
        return optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """CHANGED: lengths are those of the examples as they are written; the Trainer wants a column of them."""
        examples = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or not hasattr(examples, "__len__"):
            return super()._get_train_sampler(train_dataset)
        lengths = [example_length(examples[index]) for index in range(len(examples))]
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps, lengths=lengths
        )


def part_of(name: str) -> str:
    """The part (key of `PARTS`) that a parameter belongs to, by its name, also in a wrapped model."""
    modules = name.split(".")
    return next((part for part, module in PARTS.items() if module != "model" and module in modules), "language_model")


def split_groups(optimizer: torch.optim.Optimizer, model: nn.Module, multipliers: Mapping[str, float]) -> None:
    """
    Divides an optimizer's parameter groups by part, before its first step.

    Args:
        optimizer (`torch.optim.Optimizer`):
            What the Trainer made.
        model (`nn.Module`):
            Whose parameters it has.
        multipliers (`Mapping[str, float]`):
            What the learning rate of a part is multiplied by; 1 for those that are not named.
    """
    owner = {id(parameter): part_of(name) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for part in PARTS:
            parameters = [parameter for parameter in group["params"] if owner[id(parameter)] == part]
            if parameters:
                groups.append(group | {"params": parameters, "lr": group["lr"] * multipliers.get(part, 1.0)})
    optimizer.param_groups[:] = groups


def example_length(example: Mapping[str, Any]) -> int:
    """About how long an example is: its characters, and `IMAGE_LENGTH` for each image. No image is opened."""

    def length(value: Any) -> int:
        if isinstance(value, str):
            return len(value)
        if isinstance(value, Mapping):
            own = IMAGE_LENGTH if value.get("type") in ("image", "image_url") else 0
            return own or sum(length(part) for part in value.values())
        return sum(length(part) for part in value) if isinstance(value, (list, tuple)) else 0

    return sum(length(example.get(name)) for name in ("messages", "conversations", "prompt", "completion", "system"))

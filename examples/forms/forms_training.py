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
"""A training run that resumes after an interruption, for what no recipe of `dimple-hf train` can express."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn


class TrainingRun:
    """
    What a checkpoint holds. A subclass that has more of it extends `state` and `restore`.

    Args:
        model (`nn.Module`): What is trained.
        optimizer (`torch.optim.Optimizer`): Its optimizer.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model = model
        self.optimizer = optimizer
        self.step = 0

    def state(self) -> dict[str, Any]:
        """Tensors, numbers and containers of them, which `torch.load(weights_only=True)` reads."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what [`TrainingRun.state`] returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self, path: Path) -> None:
        """Writes a checkpoint; a run killed while it writes leaves the previous one whole."""
        torch.save(self.state(), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Takes up the run where its checkpoint left off."""
        self.restore(torch.load(path, weights_only=True))

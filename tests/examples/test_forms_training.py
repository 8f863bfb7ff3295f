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
"""Checkpoints of a training run."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_training import TrainingRun


def trained_run(num_steps: int) -> TrainingRun:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    run = TrainingRun(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    for _ in range(num_steps):
        model(torch.ones(1, 2)).sum().backward()
        run.optimizer.step()
        run.step += 1
    return run


def test_load_takes_up_weights_optimizer_and_step(tmp_path: Path) -> None:
    """Control: a fresh run has other weights."""
    path = tmp_path / "state.pt"
    saved, fresh = trained_run(3), trained_run(0)
    saved.save(path)
    assert not torch.equal(fresh.model.weight, saved.model.weight)
    fresh.load(path)
    assert torch.equal(fresh.model.weight, saved.model.weight)
    assert fresh.optimizer.state_dict()["state"][0]["step"] == 3
    assert fresh.step == 3


def test_save_that_fails_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.pt"
    run = trained_run(1)
    run.save(path)
    before = path.read_bytes()

    def half(state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        run.save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".pt"] == ["state.pt"]

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
"""A run that is killed and started again trains as if nothing had happened."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_run
from safetensors.torch import load_file

from dimple_hf.training import last_complete_checkpoint

#: Saved every 2 steps, switched after 5: one kill before the switch, one between the switch and the next checkpoint,
#: whose repetition crosses the switch, and one after both.
RUN = {
    "max_steps": 10,
    "save_steps": 2,
    "save_strategy": "steps",
    "switch_at": 5,
    "eval_strategy": "steps",
    "eval_steps": 3,
}
KILL_AFTER = (3, 5, 9)


def train_in_a_process(output_dir: Path, **options: object) -> int:
    """Runs `training_run.py` with the options of the module; returns its exit code."""
    command = [sys.executable, training_run.__file__, str(output_dir), json.dumps(RUN | options)]
    return subprocess.run(command, check=False, capture_output=True, timeout=120).returncode


def read_losses(output_dir: Path) -> list[list[float]]:
    """Step, loss and learning rate, in the order in which they were written."""
    return [json.loads(line) for line in (output_dir / "losses.jsonl").read_text().splitlines()]


@pytest.mark.slow  # test_run.py interrupts a recipe within one process
def test_training_killed_three_times_equals_uninterrupted_run_bit_for_bit(tmp_path: Path) -> None:
    """Every repeated or later step has the loss of the uninterrupted run: order, masks, phase, rates."""
    training_run.run(tmp_path / "whole", **RUN)
    whole = read_losses(tmp_path / "whole")
    assert [step for step, _, _ in whole] == list(range(1, 11))

    for kill_at in KILL_AFTER:
        assert train_in_a_process(tmp_path / "killed", kill_at=kill_at) == -signal.SIGKILL
    training_run.run(tmp_path / "killed", **RUN)
    killed = read_losses(tmp_path / "killed")

    assert [int(step) for step, _, _ in killed] == [1, 2, 3, 3, 4, 5, 5, 6, 7, 8, 9, 9, 10]
    assert killed == [whole[int(step) - 1] for step, _, _ in killed]
    # Control: two steps never have the same loss by chance.
    assert len({loss for _, loss, _ in whole}) == 10
    for name, tensor in load_file(tmp_path / "whole" / "final" / "model.safetensors").items():
        assert torch.equal(load_file(tmp_path / "killed" / "final" / "model.safetensors")[name], tensor), name


def test_last_complete_checkpoint_half_written_one_is_passed_over(tmp_path: Path) -> None:
    """A process may die while it saves; what it leaves must not stop the next one."""
    assert last_complete_checkpoint(tmp_path / "missing") is None
    for step in (8, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 1')
    assert last_complete_checkpoint(tmp_path) is None
    for step in (8, 10):
        torch.save({}, tmp_path / f"checkpoint-{step}" / "optimizer.pt")
    (tmp_path / "checkpoint-8" / "trainer_state.json").write_text('{"global_step": 8}')
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text('{"global_step": 10}')
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run of one step, whose only checkpoint is whole."""
    output = tmp_path_factory.mktemp("trained")
    training_run.run(output, max_steps=1, save_steps=1, save_strategy="steps")
    return output


@pytest.mark.parametrize("damage", ["optimizer.pt", "scheduler.pt", "model.safetensors"])
def test_last_complete_checkpoint_with_a_damaged_file_is_refused(trained: Path, tmp_path: Path, damage: str) -> None:
    """The Trainer goes on without an optimizer's state, silently and elsewhere, and can never read half of one."""
    folder = tmp_path / "checkpoint-1"
    shutil.copytree(trained / "checkpoint-1", folder)
    assert last_complete_checkpoint(tmp_path) == str(folder)  # control
    whole = (folder / damage).read_bytes()
    (folder / damage).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{damage} must be whole .*delete {folder} to go on from the checkpoint"):
        last_complete_checkpoint(tmp_path)
    if damage == "optimizer.pt":
        (folder / damage).unlink()
        with pytest.raises(ValueError, match=rf"{folder} must hold optimizer.pt .*save_only_model.*delete {folder}"):
            last_complete_checkpoint(tmp_path)


def test_training_with_loading_processes_equals_training_without(tmp_path: Path) -> None:
    """Nothing is drawn where rows are read, and no draw of a step reaches the order of rows."""

    def train(**options: object) -> list[float]:
        trainer = training_run.make_trainer(tmp_path, max_steps=4, switch_at=2, **options)
        trainer.train()
        return training_run.losses(trainer)

    alone = train()
    assert train(dataloader_num_workers=2) == alone
    assert train(seed=1) != alone

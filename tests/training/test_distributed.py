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
"""Two processes are one with the same global batch, and draw different masks."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from safetensors.torch import load_file
from training_run import CHECKPOINT

from dimple_hf import DimpleForConditionalGeneration


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def train(output_dir: Path, mode: str, world_size: int) -> list[dict[str, Any]]:
    """Runs the processes side by side, a single one right here; returns what each of them wrote."""
    output_dir.mkdir()
    if world_size == 1:
        two_processes.main(output_dir, mode)
        return [json.loads((output_dir / "0.json").read_text())]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    processes = [
        subprocess.Popen(
            [sys.executable, two_processes.__file__, str(output_dir), mode],
            env=os.environ | variables | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors.decode()[-3000:]
    return [json.loads((output_dir / f"{rank}.json").read_text()) for rank in range(world_size)]


def test_training_on_two_processes_equals_one_across_the_switch(tmp_path: Path) -> None:
    """Losses are normalised by the tokens of the whole step, so how its rows are divided does not matter."""
    (alone,) = train(tmp_path / "one", "fixed", 1)
    first, second = train(tmp_path / "two", "fixed", 2)
    names = ("loss", "grad_norm", "learning_rate", "phase", "token_accuracy", "masked_token_accuracy")
    for step, expected in enumerate(alone["history"][:4]):
        for process in (first, second):  # also the numbers that a callback adds are those of all processes
            entry = process["history"][step]
            for name in names:
                assert (name in entry) == (name in expected)
                if name in entry:
                    assert entry[name] == pytest.approx(expected[name], rel=1e-4), (step, name)
    weights = [load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    # Control: training has moved the weights further than that.
    start = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT).state_dict()
    assert (weights[0]["lm_head.weight"] - start["lm_head.weight"]).abs().max() > 1e-2


def test_training_on_two_processes_draws_different_masks(tmp_path: Path) -> None:
    """The Trainer seeds all processes alike; without a seed of their own they would learn from the same masks."""
    first, second = train(tmp_path / "two", "drawn", 2)
    assert len(first["levels"]) == len(second["levels"]) == 4  # 2 steps of 2 micro-batches of 1 row
    assert not set(first["levels"]) & set(second["levels"])
    assert first["trainers_own_seed_level"] == second["trainers_own_seed_level"]  # control

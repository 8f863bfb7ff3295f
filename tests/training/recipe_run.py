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
"""A recipe of two short stages on the toy checkpoint, for the tests of `train_recipe` and of `dimple-hf train`."""

import json
from pathlib import Path
from typing import Any

import yaml
from training_run import CHECKPOINT

#: Rows that can interrupt or kill the process when they are read for the n-th time, as n is found in a file.
ROWS_MODULE = """
import os
import signal
import sys

sys.path.insert(0, {folder!r})
from training_run import make_rows


class Rows(list):
    reads = 0

    def __init__(self, rows):
        super().__init__(rows)
        self.unchecked = len(rows)  # each is read once before training begins

    def __getitem__(self, index):
        if self.unchecked:
            self.unchecked -= 1
            return super().__getitem__(index)
        Rows.reads += 1
        if os.path.exists("interrupt_at") and Rows.reads == int(open("interrupt_at").read()):
            os.remove("interrupt_at")
            if os.path.exists("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt
        return super().__getitem__(index)


def rows(num_rows=16):
    Rows.reads = 0
    return Rows(make_rows(num_rows))
"""

STAGES = [
    {"name": "instruct", "max_steps": 4, "batch_size": 4, "learning_rate": 1e-3},
    {"name": "diffusion", "max_steps": 4, "batch_size": 4, "learning_rate": 1e-3},
]


def write_recipe(folder: Path, **changes: Any) -> Path:
    """Writes the recipe, and the module of its rows, into `folder`; it saves a checkpoint after each second step."""
    (folder / "interrupting_rows.py").write_text(ROWS_MODULE.format(folder=str(Path(__file__).parent)))
    trainer = {
        "logging_steps": 1, "save_steps": 2, "use_cpu": True, "dataloader_pin_memory": False, "disable_tqdm": True,
        "per_device_train_batch_size": 2,
    }  # fmt: skip
    entries = {
        "model": str(CHECKPOINT),
        "output_dir": "out",
        "data": {"train": "interrupting_rows:rows"},
        "stages": STAGES,
        "trainer": trainer,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(entries | changes))
    return path


def step_losses(directory: Path) -> list[float]:
    """The loss of every step of a finished stage."""
    history = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]

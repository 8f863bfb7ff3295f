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
"""A training run of some steps on the toy checkpoint, for the tests: in this process, or as a process to be killed.

`python training_run.py OUT '{"option": value}'` trains and appends each step's loss to `OUT/losses.jsonl`; for the
options see [`run`]. Tests import [`make_trainer`].
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import DimpleDataCollator, Phase, PhaseCallback, last_complete_checkpoint

CHECKPOINT = Path(__file__).resolve().parent.parent / "fixtures" / "parity" / "checkpoint"
COLORS = ("red", "blue", "green")

PHASES = {
    "causal": Phase(learning_rate=1e-3, max_grad_norm=1.0),
    "diffusion": Phase(learning_rate=5e-4, max_grad_norm=0.1),
}


def make_rows(num_rows: int = 16) -> list[dict[str, Any]]:
    """Questions about images of one color; answers of different lengths."""
    return [
        {
            "id": f"row-{index}",
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"What {index}?"}]},
                {"role": "assistant", "content": COLORS[index % 3] * (1 + index % 4)},
            ],
            "images": [PIL.Image.new("RGB", (56, 28 * (1 + index % 2)), COLORS[index % 3])],
        }
        for index in range(num_rows)
    ]


class LossFile(TrainerCallback):
    """Appends each step's loss to a file, in full precision; kills the process after step `kill_at`."""

    def __init__(self, path: Path, kill_at: int | None) -> None:
        self.path = path
        self.kill_at = kill_at

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if "loss" in logs:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps([state.global_step, logs["loss"], logs["learning_rate"]]) + "\n")
        if state.global_step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def make_trainer(
    output_dir: str | Path,
    switch_at: int | float = 3,
    switch_unit: str = "steps",
    phases: dict[str, Phase] | None = None,
    model: torch.nn.Module | None = None,
    callbacks: tuple[TrainerCallback, ...] = (),
    rows: Any = None,
    without_phases: bool = False,
    **arguments: Any,
) -> Trainer:
    """A plain Trainer: 6 steps of 2 micro-batches of 2 rows, causal for 3 of them."""
    model = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT) if model is None else model
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    rows = make_rows() if rows is None else rows
    return Trainer(
        model,
        TrainingArguments(str(output_dir), **defaults | arguments),
        train_dataset=rows,
        eval_dataset=make_rows(4),
        data_collator=DimpleDataCollator(DimpleProcessor.from_pretrained(CHECKPOINT)),
        callbacks=[] if without_phases else [PhaseCallback(switch_at, switch_unit, **phases or {}), *callbacks],
    )


def losses(trainer: Trainer) -> list[float]:
    """The loss of each step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def run(output_dir: Path, kill_at: int | None = None, **options: Any) -> None:
    """Trains from the last complete checkpoint, or from the start; `options` are those of [`make_trainer`]."""
    output_dir.mkdir(exist_ok=True)
    trainer = make_trainer(
        output_dir, phases=PHASES, callbacks=(LossFile(output_dir / "losses.jsonl", kill_at),), **options
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))
    trainer.save_model(str(output_dir / "final"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), **json.loads(sys.argv[2]))

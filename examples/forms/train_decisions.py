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
"""Teaches the small forms model decisions by a curriculum: few tasks at a time, the next when those are learned.

A task is one type of decision in one form: in words with the options listed, in words without them, or by the letter
of an option; lists without an image, which teach what an option's letter is, are tasks too. All tasks at once are not
learned (`docs/results.md`).

1. Open the tasks that are learned, and the first five in order that are not. A letter comes after the same decision
   in words, numbers of one length after numbers of different lengths. No task has several questions: `decide` keeps
   those of a row apart.
2. Draw a batch: a share of reading, the rest from the open tasks, those that are not learned more often.
3. Update. All answer tokens of a decision are masked, as when it is read; those of a reading at a random level. Each
   row weighs the same.
4. Update each task's running accuracy by what the model predicted in this step.

Commands:
    python examples/forms/train_decisions.py --model runs/forms/extended/words
    python examples/forms/train_decisions.py --model runs/forms/decisions runs/forms/extended/words \
        --output runs/forms/decisions_reading --steps 1200 --reading-share 0.45
    python examples/forms/export_checkpoint.py runs/forms/decisions_reading

The second starts from the mean of what decides and what reads, and keeps both. The same command again resumes after an
interruption. Hardware: one CPU core, 1.6 to 2.4 seconds a step.
"""

import argparse
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export_checkpoint import average_models
from forms_dataset import forms_row
from forms_decisions import FIXED_OPTIONS
from forms_training import TrainingRun
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from dimple_hf.modeling.diffusion_dimple import sample_masked_positions
from dimple_hf.training import DimpleDataCollator

READING_SHARES = {
    "text": 0.07, "json": 0.08, "schema": 0.04, "shuffled": 0.03, "nullable": 0.03, "field": 0.13, "fields": 0.08,
    "all_fields": 0.15, "repeat": 0.045, "rows": 0.025, "sum": 0.09, "worked": 0.015, "add": 0.015, "absent": 0.025,
    "unrelated": 0.14, "no_form": 0.01, "copy": 0.015, "reverse": 0.005, "shuffle": 0.005,
}  # fmt: skip
"""All kinds that the model has learned before: what is left out is forgotten."""
MAX_NEW_TASKS = 5
"""Open tasks that are not learned yet."""
LEARNED, NEARLY_LEARNED, CERTAIN = 0.88, 0.8, 0.97
"""Running accuracies: of a learned task; of one that others may follow; of one that is only kept."""
WEIGHTS = (1.0, 0.2, 0.07)
"""How often an open task is drawn that is not learned, learned, or certain."""
SMOOTHING = 0.02
"""Weight of one row in the running accuracy of its task."""
LAG = 4
"""Steps after which an accuracy counts: more than the loader draws ahead, so that a resumed run draws the same."""
WARMUP_STEPS = 20
DECAY_SHARE = 0.25
"""Share of the steps, at the end, in which the learning rate falls."""
MICRO_BATCH = 16
"""Rows of a forward pass. They are of alike length, so that one long prompt does not pad a whole batch."""


@dataclass(frozen=True)
class Task:
    """A kind of `forms_row`, the decision it asks for (if any), and the tasks to be learned before it."""

    kind: str
    decisions: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`"kind"` or `"decision/kind"`."""
        return "/".join((*self.decisions, self.kind))


def _by_letter(decision: str, *after: str) -> Task:
    return Task("decide_one", (decision,), (f"{decision}/freely", *after))


TASKS = [
    *(Task(kind) for kind in ("options", "letters", "choose")),
    *(task for decision in FIXED_OPTIONS for task in (Task("freely", (decision,)), _by_letter(decision))),
    *(Task("freely", (decision,)) for decision in ("which_row", "which_value")),
    *(Task("openly", (decision,)) for decision in ("which_row", "which_value", "num_rows", "num_digits", "is_there")),
    Task("freely", ("compare_lengths",)),
    _by_letter("compare_lengths"),
    Task("freely", ("largest_length",)),
    Task("freely", ("compare",), ("compare_lengths/freely",)),
    _by_letter("compare"),
    *(Task(kind, ("largest",), ("largest_length/freely",)) for kind in ("openly", "freely")),
    Task("freely", ("which_is_there",)),
    *(_by_letter(decision, "choose") for decision in ("which_row", "which_is_there", "which_value", "largest")),
]
"""In the order in which they open."""
LETTERS = "letters"
"""Always open, and not waited for: a whole list is right only if every letter is."""


def draw_tasks(accuracies: dict[str, float], number: int, rng: np.random.Generator) -> list[Task]:
    """Steps 1 and 2: draws tasks for the rows of a batch that are not about reading.

    Args:
        accuracies (`dict[str, float]`): Running accuracy of each task, in [0, 1].
        number (`int`): How many.
        rng (`np.random.Generator`): The source.
    """
    drawable, weights = [], []
    num_new = 0
    for task in TASKS:
        accuracy = accuracies[task.name]
        is_new = accuracy < LEARNED and task.kind != LETTERS
        if is_new and (num_new == MAX_NEW_TASKS or any(accuracies[name] < NEARLY_LEARNED for name in task.after)):
            continue
        num_new += is_new
        drawable.append(task)
        weights.append(WEIGHTS[2] if task.kind == LETTERS else WEIGHTS[(accuracy >= LEARNED) + (accuracy >= CERTAIN)])
    shares = np.array(weights) / sum(weights)
    return [drawable[index] for index in rng.choice(len(drawable), number, p=shares)]


class CurriculumRows(Dataset):
    """Rows by example index and task; `None` as the task is reading."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __getitem__(self, drawn: tuple[int, Task | None]) -> dict[str, object]:
        index, task = drawn
        if task is None:
            row = forms_row("train", index, self.seed, shares=READING_SHARES, words="all", rich_share=0.2)
        else:
            row = forms_row("train", index, self.seed, kind=task.kind, decisions=task.decisions, words="all")
        return row | {"index": index, "task": None if task is None else task.name}


@dataclass(frozen=True)
class MicroBatch:
    """Inputs of a forward pass, which of its answer tokens are masked, and the task of each row."""

    inputs: BatchFeature
    masked_positions: torch.Tensor
    tasks: list[str | None]


class Collate:
    """Puts the rows of a step into micro-batches of alike length, and draws what is masked in each."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self.collator = DimpleDataCollator(processor, canvas_length=16)

    def __call__(self, rows: Sequence[dict]) -> list[MicroBatch]:
        rows = sorted(rows, key=lambda row: 60 * len(row["images"]) + len(row["question"]) + len(row["answer"]))
        return [self._batch(rows[start : start + MICRO_BATCH]) for start in range(0, len(rows), MICRO_BATCH)]

    def _batch(self, rows: Sequence[dict]) -> MicroBatch:
        tasks = [row["task"] for row in rows]
        columns = ("messages", "images", "structure_prior")
        inputs = self.collator([{name: row[name] for name in columns if row[name] is not None} for row in rows])
        generator = torch.Generator().manual_seed(rows[0]["index"])  # the same after a resume
        drawn = torch.rand(len(tasks), generator=generator)
        levels = torch.where(torch.tensor([task is None for task in tasks]), drawn, 1.0)
        return MicroBatch(inputs, sample_masked_positions(inputs["labels"] != -100, levels, generator), tasks)


class Run(TrainingRun):
    """The curriculum: which tasks are drawn next depends on the running accuracies of the last steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        model = average_models(args.model, torch.float32)
        model.config.loss_normalization = "sequence"
        model.visual.requires_grad_(False)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        super().__init__(model, torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01))
        accuracies = dict.fromkeys((task.name for task in TASKS), 0.0)
        earlier = args.model[0] / "accuracies.json"
        if earlier.is_file():
            accuracies |= json.loads(earlier.read_text())
        self.accuracies = deque([accuracies], maxlen=LAG + 1)  # after each of the last steps

    def state(self) -> dict[str, Any]:
        return super().state() | {"accuracies": list(self.accuracies)}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.accuracies.extend(state["accuracies"])

    def draw(self) -> Iterator[list[tuple[int, Task | None]]]:
        """What each step is about, from the accuracies of `LAG` steps before it."""
        num_rows = self.args.batch_size
        num_reading = round(self.args.reading_share * num_rows)
        for step in range(self.step, self.args.steps):
            known = self.accuracies[max(0, len(self.accuracies) - 1 - LAG + step - self.step)]
            tasks = draw_tasks(known, num_rows - num_reading, np.random.default_rng([self.args.seed, step]))
            yield list(enumerate([*[None] * num_reading, *tasks], start=step * num_rows))

    def train_step(self, batches: Sequence[MicroBatch]) -> float:
        """Steps 3 and 4. Returns the loss."""
        progress = self.step / self.args.steps
        rate = min(1.0, (self.step + 1) / WARMUP_STEPS, (1 - progress) / DECAY_SHARE)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * rate
        self.optimizer.zero_grad()
        accuracies, loss = dict(self.accuracies[-1]), 0.0
        for batch in batches:
            outputs = self.model(**batch.inputs, masked_positions=batch.masked_positions)
            share = len(batch.tasks) / self.args.batch_size
            (outputs.loss * share).backward()
            loss += outputs.loss.item() * share
            is_right = (outputs.token_predictions == batch.inputs["labels"]) | ~batch.masked_positions
            for task, right in zip(batch.tasks, is_right.all(dim=1).tolist(), strict=True):
                if task is not None:
                    accuracies[task] += SMOOTHING * (right - accuracies[task])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.accuracies.append(accuracies)
        return loss


def train(args: argparse.Namespace) -> None:
    """Trains from the last checkpoint in `args.output`, or from `args.model`, and writes the model and accuracies."""
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "state.pt"
    run = Run(args)
    if checkpoint.exists():
        run.load(checkpoint)
    processor = AutoProcessor.from_pretrained(args.model[0])
    loader = DataLoader(
        CurriculumRows(args.seed), batch_sampler=run.draw(), collate_fn=Collate(processor), num_workers=1
    )
    bar = tqdm(loader, initial=run.step, total=args.steps, desc="decisions")
    run.model.train()
    for batches in bar:
        loss = run.train_step(batches)
        if run.step % args.save_steps == 0 or run.step == args.steps:
            run.save(checkpoint)
            known = {name: round(value, 2) for name, value in run.accuracies[-1].items() if value}
            bar.write(json.dumps({"step": run.step, "loss": round(loss, 3), **known}))
    run.model.config.loss_normalization = "token"  # the default
    run.model.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    (args.output / "accuracies.json").write_text(json.dumps(run.accuracies[-1], indent=2) + "\n")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="checkpoints: it starts from their mean")
    parser.add_argument("--output", type=Path, default=Path("runs/forms/decisions"))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--reading-share", type=float, default=0.1, help="of the rows (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--save-steps", type=int, default=100)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse_args())

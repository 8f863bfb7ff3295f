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
"""The thread that owns the model and schedules rows.

```text
  submit -> waiting --join--> row of the cheapest batch -----> steps -> leaves when finished or cancelled
                 ^                                                 |
                 +------- between any two steps ------------------+
```
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..data.image_features import ImageFeatures
from .batch import Batch, Row
from .jobs import FAILED, SHUTTING_DOWN, Job, ServerFault
from .metrics import Metrics

logger = logging.getLogger(__name__)

#: A forward pass costs about as much as this many positions in it: on an accelerator for the weights that it reads and
#: the kernels that it starts, on a CPU almost nothing. By this, rows of different lengths share passes or do not.
PASS_POSITIONS, CPU_PASS_POSITIONS = 256, 16

#: Most positions of all rows, padding included: as many as the model's context, but at least these.
MIN_BATCH_POSITIONS = 8192


def admit_first(running: Sequence[Job], waiting: Sequence[Job], max_rows: int, max_positions: int) -> int:
    """
    How many of the waiting jobs may join those that run.

    Args:
        running, waiting (`Sequence[Job]`):
            Jobs, the first to come first.
        max_rows (`int`):
            Maximum number of jobs that run.
        max_positions (`int`):
            Maximum number of positions of all rows, padding included. A job that runs alone may have more.

    Returns:
        `int`: As many as fit, in their order, so that nobody waits forever.
    """
    jobs = [*running, *waiting]
    for number in range(len(running), min(len(jobs), max_rows)):
        longest = max(job.num_tokens for job in jobs[: number + 1])
        if number and (number + 1) * longest > max_positions:
            return number - len(running)
    return max(min(len(jobs), max_rows) - len(running), 0)


def cheapest_batch(batches: Sequence[Sequence[int]], length: int, pass_positions: int) -> int | None:
    """
    The batch that a row joins: a forward pass runs as many positions of each row as the longest answer has, and each
    batch is a forward pass of its own in each step.

    Args:
        batches (`Sequence[Sequence[int]]`):
            Positions of the answers of each batch.
        length (`int`):
            Positions of the row's answer.
        pass_positions (`int`):
            Positions that cost as much as a forward pass.

    Returns:
        `int`, *optional*: Which batch the row makes least expensive; `None` for one of its own.
    """
    costs = [(len(rows) + 1) * max(*rows, length) - len(rows) * max(rows) for rows in batches]
    best = min(range(len(costs)), key=costs.__getitem__, default=None)
    return best if best is not None and costs[best] < pass_positions + length else None


class Worker:
    """
    Decodes jobs in a thread of its own. Jobs join and leave between two denoising steps.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model, which nobody else may use meanwhile.
        tokenizer ([`DimpleTokenizer`]):
            Its tokenizer.
        max_batch_size (`int`):
            Maximum number of rows.
        metrics ([`Metrics`], *optional*):
            Counts steps, answers and images.
    """

    def __init__(self, model: Any, tokenizer: Any, max_batch_size: int, metrics: Metrics | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.metrics = metrics or Metrics()
        self.features = ImageFeatures(model, count=self.metrics.count_image)
        self.pass_positions = CPU_PASS_POSITIONS if model.device.type == "cpu" else PASS_POSITIONS
        self.max_positions = max(model.config.max_position_embeddings, MIN_BATCH_POSITIONS)
        self.waiting: list[Job] = []
        self.calls: list[tuple[Callable[[], None], Callable[[str], None]]] = []
        self.batches: list[Batch] = []
        self.is_stopping = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="dimple-worker", daemon=True)

    def start(self) -> None:
        """Begins."""
        self.thread.start()

    def stop(self) -> None:
        """Fails what waits, ends what runs after its present step, and returns when the thread has ended."""
        with self.changed:
            self.is_stopping = True
            self.changed.notify()
        if self.thread.ident is not None:
            self.thread.join()

    def is_alive(self) -> bool:
        """Whether jobs are run."""
        return self.thread.is_alive() and not self.is_stopping

    def submit(self, *jobs: Job) -> None:
        """Lets `jobs` ([`Job`]) wait for their turn."""
        for job in jobs:
            job.submitted = time.monotonic()
        with self.changed:
            if self.is_stopping:
                fail(jobs, SHUTTING_DOWN)
                return
            self.waiting.extend(jobs)
            self.changed.notify()

    def run(self, function: Callable[[], None], fail: Callable[[str], None]) -> None:
        """
        Runs a function in the model's thread, between two steps.

        Args:
            function (`Callable`):
                Called without arguments. What it raises is logged.
            fail (`Callable`):
                Called with the reason instead, if the worker stops before.
        """
        with self.changed:
            if not self.is_stopping:
                self.calls.append((function, fail))
                self.changed.notify()
                return
        fail(SHUTTING_DOWN)

    def cancel(self, job: Job) -> None:
        """Ends `job` ([`Job`]): at once if it waits, after the present step if it runs."""
        with self.changed:
            job.is_cancelled = True
            if job in self.waiting:
                self.waiting.remove(job)

    @property
    def rows(self) -> list[Row]:
        """The rows that are decoded."""
        return [row for batch in self.batches for row in batch.rows]

    def _run(self) -> None:
        while self._wait():
            self.step()
        fail([*self.waiting, *(row.job for row in self.rows)], SHUTTING_DOWN)  # nothing is added any more
        for _, fail_call in self.calls:
            fail_call(SHUTTING_DOWN)

    def _wait(self) -> bool:
        """Waits for something to do; `False` at the end."""
        with self.changed:
            while not (self.waiting or self.calls or self.batches or self.is_stopping):
                self.changed.wait()
            return not self.is_stopping

    def step(self) -> None:
        """Runs the calls that wait, takes in the jobs that may join, and runs a denoising step of every batch."""
        self._run_calls()
        for job in self._take():
            self._add(job)
        for batch in self.batches:
            self._step(batch)
        self.batches = [batch for batch in self.batches if batch.rows]

    def _run_calls(self) -> None:
        with self.changed:
            calls, self.calls = self.calls, []
        for function, _ in calls:
            try:
                function()
            except Exception:  # whatever it is, the next clients are to be served
                logger.exception("a call failed")

    def _take(self) -> list[Job]:
        """The jobs that join now. One that has to run alone waits until nothing runs, and others wait for it."""
        with self.changed:
            running = [row.job for row in self.rows]
            number = admit_first(running, self.waiting, self.max_batch_size, self.max_positions)
            if any(job.runs_alone for job in running):
                number = 0
            elif any(job.runs_alone for job in self.waiting[:number]):
                first = next(index for index, job in enumerate(self.waiting) if job.runs_alone)
                number = first or (0 if running else 1)
            taken, self.waiting = self.waiting[:number], self.waiting[number:]
        for job in taken:
            self.metrics.observe_queue(time.monotonic() - job.submitted)
        return taken

    def _add(self, job: Job) -> None:
        """Makes a row of a job; a job that cannot be run takes no other with it."""
        try:
            row = Row(job, self.features, self.tokenizer, self._end_token_ids())
        except Exception:  # whatever it is, the next clients are to be served
            logger.exception("a request failed")
            fail([job], FAILED)
            return
        lengths = [[row.job.answer_length for row in batch.rows] for batch in self.batches]
        index = cheapest_batch(lengths, job.answer_length, self.pass_positions)
        if index is None:
            index = len(self.batches)
            self.batches.append(Batch(self.tokenizer.pad_token_id))
        self.batches[index].add(row)

    def _step(self, batch: Batch) -> None:
        """A step of one batch. If it fails, its jobs are tried again, each alone."""
        rows = list(batch.rows)
        try:
            left = batch.step()
            if batch.rows:  # else there was no forward pass
                self.metrics.count_step(len(batch.rows))
            for row in left:
                self.metrics.count_answer(row.num_tokens, row.step)
        except Exception:  # out of memory, say
            logger.exception("a step of %d rows failed", len(rows))
            jobs = [row.job for row in rows]
            del rows, batch.rows[:]
            if len(jobs) == 1 and jobs[0].runs_alone:
                fail(jobs, FAILED)
            else:
                for job in jobs:
                    job.runs_alone = True
                with self.changed:
                    self.waiting[:0] = [job for job in jobs if not job.is_cancelled]

    def _end_token_ids(self) -> frozenset[int]:
        """What ends a free answer: the model's end tokens, the tokenizer's, and padding."""
        config = self.model.generation_config
        of_model = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ends = (*of_model, config.pad_token_id, self.tokenizer.eos_token_id)
        return frozenset(token for token in ends if token is not None)


def fail(jobs: Sequence[Job], reason: str) -> None:
    """
    Args:
        jobs (`Sequence[Job]`):
            Jobs that come to no end.
        reason (`str`):
            What their clients are told.
    """
    for job in jobs:
        job.put(ServerFault(reason))

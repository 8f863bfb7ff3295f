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
"""The thread that owns the model: takes waiting jobs in their order, those of one kind together, and runs their steps.

```text
  submit -> waiting -> next_batch -> generate_steps -> progress of each row, after each step
                                          |
                                          +-> rows that are finished or whose client is gone leave
```

A row of a batch is decoded as if it were alone, so that jobs of different clients may share one. Imported by `app` and
`preparation`.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..processing import StructurePrior
from ..processing.structure_prior_dimple import canvas_inputs
from .metrics import Metrics

logger = logging.getLogger(__name__)

SHUTTING_DOWN = "the server is shutting down"


@dataclass(frozen=True)
class Progress:
    """
    How far an answer has come.

    Args:
        tokens (`list[int]`):
            Its tokens up to the first position that is open, or to its end, which is left out.
        is_last (`bool`):
            Whether it is finished.
        has_ended (`bool`):
            Whether it came to its end, not only to the end of its positions.
    """

    tokens: list[int]
    is_last: bool = False
    has_ended: bool = False


class ServerFault(RuntimeError):
    """What went wrong with a job and was not its client's fault."""


@dataclass(eq=False)
class Job:
    """
    What the model has to do for one request.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            One row, as [`DimpleProcessor`] makes it.
        prior ([`StructurePrior`], *optional*):
            The form of the answer.
        answer_length (`int`):
            Positions of the answer; with a prior those of its canvas.
        options (`dict[str, Any]`):
            Options of `generate` that say how tokens are chosen.
        seed (`int`, *optional*):
            Seeds what is drawn.
        put (`Callable`):
            Takes [`Progress`], or a [`ServerFault`] as the last thing. Called by the worker's thread.
        is_cancelled (`bool`):
            Whether nobody waits for the answer any more.
        submitted (`float`):
            When it began to wait for its turn.
    """

    inputs: dict[str, torch.Tensor]
    prior: StructurePrior | None
    answer_length: int
    options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    put: Callable[[Progress | ServerFault], None] = lambda update: None
    is_cancelled: bool = False
    submitted: float = 0.0

    @property
    def num_tokens(self) -> int:
        """Positions of prompt and answer."""
        return self.inputs["input_ids"].shape[1] + self.answer_length

    @property
    def kind(self) -> tuple[Any, ...]:
        """Jobs of one kind may share a batch: they differ in their prompts and priors only."""
        # What is drawn with a seed must not depend on others.
        alone = None if self.seed is None else id(self)
        return (self.prior is None, self.answer_length, tuple(sorted(self.options.items())), alone)


def next_batch(waiting: Sequence[Job], max_batch_size: int, max_tokens: int) -> list[Job]:
    """
    Args:
        waiting (`Sequence[Job]`):
            At least one job, the first to come first.
        max_batch_size (`int`):
            Most jobs.
        max_tokens (`int`):
            Most positions of all rows, padding included. The first job is taken whatever its length.

    Returns:
        `list[Job]`: The first job, so that nobody waits forever, and others of its kind in their order.
    """
    batch = [waiting[0]]
    longest = waiting[0].num_tokens
    for job in waiting[1:]:
        if len(batch) == max_batch_size:
            break
        width = max(longest, job.num_tokens)
        if job.kind == waiting[0].kind and (len(batch) + 1) * width <= max_tokens:
            batch.append(job)
            longest = width
    return batch


def collate(jobs: Sequence[Job], tokenizer: Any) -> dict[str, Any]:
    """
    Args:
        jobs (`Sequence[Job]`):
            Jobs of one kind.
        tokenizer ([`DimpleTokenizer`]):
            Its padding and mask token are used.

    Returns:
        `dict[str, Any]`: Inputs of `generate`, one row for each job: what the processor makes of all their chats.
    """
    prompts = [job.inputs["input_ids"][0] for job in jobs]
    width = max(map(len, prompts))
    input_ids = torch.full((len(jobs), width), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = prompt
        attention_mask[row, width - len(prompt) :] = 1
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    for name in ("pixel_values", "image_grid_thw"):
        images = [job.inputs[name] for job in jobs if name in job.inputs]
        if images:
            inputs[name] = torch.cat(images)
    if jobs[0].prior is not None:
        inputs |= canvas_inputs([job.prior for job in jobs], len(jobs), tokenizer)
    return inputs


def decided_beginning(
    tokens: Sequence[int], is_final: Sequence[bool], end_token_ids: frozenset[int]
) -> tuple[list[int], bool]:
    """
    Args:
        tokens (`Sequence[int]`), is_final (`Sequence[bool]`):
            An answer, and which of its positions no later step changes.
        end_token_ids (`frozenset[int]`):
            Tokens that end it.

    Returns:
        `tuple(list[int], bool)`: The tokens before the first open position or end, and whether it was an end.
    """
    beginning: list[int] = []
    for token, token_is_final in zip(tokens, is_final, strict=True):
        if not token_is_final:
            return beginning, False
        if token in end_token_ids:
            return beginning, True
        beginning.append(token)
    return beginning, False


class _Cancelled(StoppingCriteria):
    """Ends the rows of jobs that nobody waits for. `running` are the jobs of the rows that it is asked about."""

    def __init__(self, running: list[Job]):
        self.running = running

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return torch.tensor([job.is_cancelled for job in self.running], device=input_ids.device)


class Worker:
    """
    Runs jobs, one batch after the other, in a thread of its own.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model, which nobody else may use meanwhile.
        tokenizer ([`DimpleTokenizer`]):
            Its tokenizer.
        max_batch_size (`int`):
            Most jobs of a batch. Together they are never longer than one that fills the model's context.
        metrics ([`Metrics`], *optional*):
            Counts steps and answers.
    """

    def __init__(self, model: Any, tokenizer: Any, max_batch_size: int, metrics: Metrics | None = None):
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch_size = max_batch_size
        self.metrics = metrics or Metrics()
        self.waiting: list[Job] = []
        self.calls: list[tuple[Callable[[], None], Callable[[str], None]]] = []
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
                _fail(jobs, SHUTTING_DOWN)
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

    def _run(self) -> None:
        while self._wait():
            self._run_calls()
            if batch := self._take():
                self._try(batch)
        _fail(self.waiting, SHUTTING_DOWN)  # nothing is added any more
        for _, fail in self.calls:
            fail(SHUTTING_DOWN)

    def _run_calls(self) -> None:
        with self.changed:
            calls, self.calls = self.calls, []
        for function, _ in calls:
            try:
                function()
            except Exception:  # whatever it is, the next clients are to be served
                logger.exception("a call failed")

    def _try(self, batch: list[Job]) -> None:
        """Answers a batch. If that fails, its jobs are tried alone: one that cannot be run takes no other with it."""
        try:
            self._answer(batch)
        except Exception:  # whatever it is, the next clients are to be served
            logger.exception("a batch of %d failed", len(batch))
            if len(batch) == 1:
                _fail(batch, "the model failed")
            else:
                for job in batch:
                    self._try([job])

    def _wait(self) -> bool:
        """Waits for something to do; `False` at the end."""
        with self.changed:
            while not self.waiting and not self.calls and not self.is_stopping:
                self.changed.wait()
            return not self.is_stopping

    def _take(self) -> list[Job]:
        """The next batch; none if no job waits."""
        with self.changed:
            if not self.waiting:
                return []
            batch = next_batch(self.waiting, self.max_batch_size, self.model.config.max_position_embeddings)
            self.waiting = [job for job in self.waiting if job not in batch]
            for job in batch:
                self.metrics.observe_queue(time.monotonic() - job.submitted)
            return batch

    def _answer(self, jobs: list[Job]) -> None:
        """Runs a batch to its end, or until nobody waits for it any more."""
        first = jobs[0]
        end_token_ids = self._end_token_ids() if first.prior is None else frozenset[int]()
        ends = {"eos_token_id": sorted(end_token_ids)} if end_token_ids else {}
        inputs = {name: _moved(value, self.model.device) for name, value in collate(jobs, self.tokenizer).items()}
        cancelled = _Cancelled(jobs)
        unfinished = dict(enumerate(jobs))
        with _seeded(first.seed, self.model.device):
            steps = self.model.generate_steps(
                **inputs,
                **first.options,
                **ends,
                max_new_tokens=first.answer_length,
                stopping_criteria=StoppingCriteriaList([cancelled]),
            )
            for step in steps:
                self.metrics.count_step(len(unfinished))
                answers, is_final, finished = step.answer_ids.tolist(), step.is_final.tolist(), step.finished.tolist()
                for row, job in list(unfinished.items()):
                    beginning, has_ended = decided_beginning(answers[row], is_final[row], end_token_ids)
                    job.put(Progress(beginning, finished[row], has_ended or first.prior is not None))
                    if finished[row]:
                        self.metrics.count_answer(len(beginning), int(step.num_forward_passes[row]))
                        del unfinished[row]
                cancelled.running = list(unfinished.values())
                self._run_calls()
                if self.is_stopping:
                    _fail(cancelled.running, SHUTTING_DOWN)
                    return
                if all(job.is_cancelled for job in cancelled.running):
                    return

    def _end_token_ids(self) -> frozenset[int]:
        """What ends a free answer: the model's end tokens, the tokenizer's, and padding."""
        config = self.model.generation_config
        of_model = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        ends = (*of_model, config.pad_token_id, self.tokenizer.eos_token_id)
        return frozenset(token for token in ends if token is not None)


def _fail(jobs: Sequence[Job], reason: str) -> None:
    for job in jobs:
        job.put(ServerFault(reason))


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Sets a seed, if there is one; after the block the random numbers of others go on as before."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

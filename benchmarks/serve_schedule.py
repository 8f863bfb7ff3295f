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
"""Compares two ways to share the model among requests of mixed lengths and kinds, in one process and one run.

`steps`: the server's. Requests join and leave between two denoising steps, whatever their length, sampling or prior;
rows share a forward pass where their padding costs less than another pass. `wide`: the same with the cost of a pass on
accelerators, so that there are fewer passes and more padding.
`kinds`: what it did before. Requests that want the same kind of answer run as one batch to its end; others wait.

Both get the same requests at the same times: answers of 8 to 256 positions, free, drawn with a seed, and under a
structure prior. Every answer is compared with that of `generate` alone, in single precision. On a CPU the clock is the
processor time of the model's thread, so that other work on the machine does not count; else it is the wall's.

Command:
    python benchmarks/serve_schedule.py --output benchmarks/results/serve-schedule-cpu.json

Hardware: any.
"""

import argparse
import itertools
import json
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from serve_load import QUESTIONS, noise_image
from transformers import AutoModelForImageTextToText, AutoProcessor

import dimple_hf
from dimple_hf import StructurePrior
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.processing.structure_prior_dimple import canvas_inputs
from dimple_hf.serve.jobs import Job, Progress, collate
from dimple_hf.serve.worker import PASS_POSITIONS, Worker

LENGTHS = (8, 8, 16, 16, 32, 64, 128, 256)

#: Answers of at most so many positions count as short.
SHORT = 16

MAX_ROWS = 8


class KindBatches:
    """What the server did before: batches of one kind, one after the other, each to its end."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.waiting: list[Job] = []
        self.steps: Iterator[Any] | None = None
        self.unfinished: dict[int, Job] = {}

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.steps)

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def step(self) -> None:
        if self.steps is None:
            first = self.waiting[0]
            batch = [job for job in self.waiting if _kind(job) == _kind(first)][:MAX_ROWS]
            self.waiting = [job for job in self.waiting if job not in batch]
            if first.seed is not None:
                torch.manual_seed(first.seed)
            self.unfinished = dict(enumerate(batch))
            self.steps = self.model.generate_steps(**_inputs(batch, self.tokenizer), **_options(first))
        step = next(self.steps)
        answers, finished = step.answer_ids.tolist(), step.finished.tolist()
        for row in [row for row in self.unfinished if finished[row]]:
            self.unfinished.pop(row).put(Progress(answers[row], True))
        if not self.unfinished:
            self.steps = None


class StepBatches(Worker):
    """The server's worker, without its thread; with another cost of a pass if it is given."""

    def __init__(self, model: Any, tokenizer: Any, pass_positions: int | None = None):
        super().__init__(model, tokenizer, MAX_ROWS)
        self.pass_positions = pass_positions or self.pass_positions

    @property
    def is_busy(self) -> bool:
        return bool(self.waiting or self.batches)


def _kind(job: Job) -> Any:
    alone = None if job.seed is None else id(job)
    return job.prior is None, job.answer_length, tuple(sorted(job.options)), alone


def _options(job: Job) -> dict[str, Any]:
    return job.options | {"max_new_tokens": job.answer_length}


def _inputs(jobs: list[Job], tokenizer: Any) -> dict[str, Any]:
    inputs = collate(jobs, tokenizer)
    return (
        inputs if jobs[0].prior is None else inputs | canvas_inputs([job.prior for job in jobs], len(jobs), tokenizer)
    )


def make_jobs(processor: Any, num_requests: int, threshold: float | None, seed: int) -> list[Job]:
    """Requests about images of their own, in a random order of lengths and kinds."""
    common = {"confidence_threshold": threshold}
    choose = random.Random(seed)
    jobs = []
    for index in range(num_requests):
        content = [{"type": "image", "image": noise_image(index)}, {"type": "text", "text": QUESTIONS[index % 4]}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=False,
        )  # fmt: skip
        length, kind = choose.choice(LENGTHS), choose.choice(("letters", "letters", "free", "drawn"))
        if kind == "letters":
            schema = {"type": "string", "pattern": f"^[a-z]{{{length}}}$", "x-max-tokens": length}
            prior = StructurePrior.from_json_schema(schema)
            jobs.append(Job(dict(inputs), prior, len(prior.canvas(processor.tokenizer).ids), common))
        elif kind == "drawn":
            jobs.append(Job(dict(inputs), None, length, common | {"do_sample": True, "temperature": 1.5}, seed=index))
        else:
            jobs.append(Job(dict(inputs), None, length, common))
    return jobs


def own_answers(model: Any, processor: Any, jobs: list[Job]) -> list[str]:
    """What `generate` answers to each alone."""
    answers = []
    for job in jobs:
        torch.manual_seed(job.seed or 0)
        tokens = model.generate(**_inputs([job], processor.tokenizer), **_options(job))[
            0, job.inputs["input_ids"].shape[1] :
        ]
        answers.append(processor.decode(tokens, skip_special_tokens=True))
    return answers


class Clock:
    """Seconds of the clock, which can be put forward where there is nothing to do."""

    def __init__(self, is_cpu: bool):
        self.read = time.thread_time if is_cpu else time.monotonic
        self.offset = -self.read()

    def now(self) -> float:
        return self.read() + self.offset

    def forward_to(self, seconds: float) -> None:
        self.offset += max(seconds - self.now(), 0)


def run_arm(
    worker: Any, processor: Any, jobs: list[Job], arrivals: list[float], expected: list[str]
) -> dict[str, Any]:
    """Submits the jobs at their times and decodes them. Counts the forward passes and their positions."""
    passes: list[int] = []
    hook = worker.model.model.register_forward_pre_hook(
        lambda module, args, options: passes.append(options["inputs_embeds"].shape[:2].numel()), with_kwargs=True
    )
    clock = Clock(worker.model.device.type == "cpu")
    ends: dict[int, tuple[float, list[int]]] = {}

    def put(index: int, update: Any) -> None:
        if isinstance(update, Exception):
            raise update
        if update.is_last:
            ends[index] = clock.now(), update.tokens

    submitted = 0
    while len(ends) < len(jobs):
        if not worker.is_busy:
            clock.forward_to(arrivals[submitted])
        while submitted < len(jobs) and arrivals[submitted] <= clock.now():
            job = replace(jobs[submitted], put=partial(put, submitted))
            worker.submit(job)
            submitted += 1
        worker.step()
    hook.remove()
    seconds = [ends[index][0] - arrival for index, arrival in enumerate(arrivals)]
    answers = [processor.decode(ends[index][1], skip_special_tokens=True) for index in range(len(jobs))]
    short = [seconds[index] for index, job in enumerate(jobs) if job.answer_length <= SHORT + 2]
    return {
        "requests_per_second": round(len(jobs) / max(at for at, _ in ends.values()), 3),
        "forward_passes": len(passes),
        "positions": sum(passes),
        "median_seconds": round(statistics.median(seconds), 3),
        "median_seconds_of_short": round(statistics.median(short), 3),
        "answers_that_differ": sum(one != other for one, other in zip(answers, expected, strict=True)),
    }


def compare(num_requests: int, rates: list[float], threshold: float | None, device: str) -> dict[str, Any]:
    """Both arms at each rate of arrivals; at rate 0 all requests come at once."""
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).to(device).eval()
    jobs = make_jobs(processor, num_requests, threshold, seed=0)
    expected = own_answers(model, processor, jobs)
    arms: dict[str, Any] = {
        "steps": lambda: StepBatches(model, processor.tokenizer),
        "wide": lambda: StepBatches(model, processor.tokenizer, PASS_POSITIONS),
        "kinds": lambda: KindBatches(model, processor.tokenizer),
    }
    result: dict[str, Any] = {}
    for rate in rates:
        draw = random.Random(1)
        gaps = [draw.expovariate(rate) if rate else 0.0 for _ in jobs]
        arrivals = list(itertools.accumulate(gaps))
        runs = {name: run_arm(make(), processor, jobs, arrivals, expected) for name, make in arms.items()}
        steps, kinds = runs["steps"], runs["kinds"]
        result[f"{rate:g} requests per second" if rate else "all at once"] = {
            **runs,
            "throughput_ratio": round(steps["requests_per_second"] / kinds["requests_per_second"], 2),
            "short_latency_ratio": round(steps["median_seconds_of_short"] / kinds["median_seconds_of_short"], 3),
        }
    return result


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the comparison and prints the report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0, 0.5, 1], help="arrivals per second; 0: all at once"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        help="confidence threshold (default: none, one position a step, as where a model is never sure)",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    report = {
        "benchmark": "serve_schedule",
        "command": shlex.join(["python", "benchmarks/serve_schedule.py", *arguments]),
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dimple_hf": dimple_hf.__version__,
        },
        **compare(args.requests, args.rates, args.threshold, args.device),
    }
    text = json.dumps(report, indent=1)
    if args.output is not None:
        args.output.write_text(text + "\n")
    print(text)
    return report


if __name__ == "__main__":
    main()

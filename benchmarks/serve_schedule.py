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

`steps`: the server's. Requests join and leave between two denoising steps, whatever their length, sampling or prior.
`kinds`: what it did before. Requests that want the same kind of answer run as one batch to its end; others wait.

Both get the same requests at the same times: answers of 8 to 256 positions, free, drawn with a seed, and under a
structure prior. Every answer is compared with that of `generate` alone, in single precision.

Command:
    python benchmarks/serve_schedule.py --requests 60 --output benchmarks/results/serve-schedule-cpu.json

Hardware: any. The arms take turns, so that other work on the machine meets both.
"""

import argparse
import json
import os
import platform
import queue
import random
import shlex
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor

import dimple_hf
from dimple_hf import StructurePrior
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.processing.structure_prior_dimple import canvas_inputs
from dimple_hf.serve.jobs import Job
from dimple_hf.serve.worker import Worker

LENGTHS = (8, 8, 16, 16, 32, 64, 128, 256)

#: Answers of at most so many positions count as short.
SHORT = 16

MAX_ROWS = 8


class KindBatches:
    """What the server did before: batches of one kind, one after the other, each to its end."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model, tokenizer
        self.jobs: queue.Queue[Job | None] = queue.Queue()
        self.waiting: list[Job] = []
        self.thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.jobs.put(None)
        self.thread.join()

    def submit(self, job: Job) -> None:
        self.jobs.put(job)

    def _run(self) -> None:
        while True:
            while self.waiting == [] or not self.jobs.empty():
                job = self.jobs.get()
                if job is None:
                    return
                self.waiting.append(job)
            first = self.waiting[0]
            batch = [job for job in self.waiting if _kind(job) == _kind(first)][:MAX_ROWS]
            self.waiting = [job for job in self.waiting if job not in batch]
            self._answer(batch)

    def _answer(self, jobs: list[Job]) -> None:
        if jobs[0].seed is not None:
            torch.manual_seed(jobs[0].seed)
        unfinished = dict(enumerate(jobs))
        for step in self.model.generate_steps(**_collated(jobs, self.tokenizer), **_options(jobs[0])):
            answers = step.answer_ids.tolist()
            for row in [row for row, is_finished in enumerate(step.finished.tolist()) if is_finished]:
                if row in unfinished:
                    unfinished.pop(row).put(answers[row])


def _kind(job: Job) -> Any:
    alone = None if job.seed is None else id(job)
    return job.prior is None, job.answer_length, tuple(sorted(job.options)), alone


def _options(job: Job) -> dict[str, Any]:
    return job.options | {"max_new_tokens": job.answer_length}


def _collated(jobs: list[Job], tokenizer: Any) -> dict[str, Any]:
    width = max(job.inputs["input_ids"].shape[1] for job in jobs)
    ids, masks = (
        torch.full((len(jobs), width), tokenizer.pad_token_id),
        torch.zeros(len(jobs), width, dtype=torch.long),
    )
    for row, job in enumerate(jobs):
        prompt = job.inputs["input_ids"][0]
        ids[row, width - len(prompt) :], masks[row, width - len(prompt) :] = prompt, 1
    inputs = {"input_ids": ids, "attention_mask": masks}
    for name in ("pixel_values", "image_grid_thw"):
        inputs[name] = torch.cat([job.inputs[name] for job in jobs])
    return (
        inputs if jobs[0].prior is None else inputs | canvas_inputs([job.prior for job in jobs], len(jobs), tokenizer)
    )


def make_jobs(processor: Any, num_requests: int, seed: int) -> list[Job]:
    """Requests about images of their own, in a random order of lengths and kinds."""
    from serve_load import QUESTIONS, noise_image

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
            jobs.append(Job(dict(inputs), prior, len(prior.canvas(processor.tokenizer).ids)))
        elif kind == "drawn":
            jobs.append(Job(dict(inputs), None, length, {"do_sample": True, "temperature": 1.5}, seed=index))
        else:
            jobs.append(Job(dict(inputs), None, length))
    return jobs


def own_answers(model: Any, processor: Any, jobs: list[Job]) -> list[str]:
    """What `generate` answers to each alone."""
    answers = []
    for job in jobs:
        torch.manual_seed(job.seed or 0)
        inputs = job.inputs | ({} if job.prior is None else canvas_inputs(job.prior, 1, processor.tokenizer))
        tokens = model.generate(**inputs, **_options(job))[0, job.inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(tokens, skip_special_tokens=True))
    return answers


def run_arm(worker: Any, processor: Any, jobs: list[Job], gaps: list[float], expected: list[str]) -> dict[str, Any]:
    """Submits the jobs, each after its gap, and waits for their answers."""
    done: queue.Queue[tuple[int, float, Any]] = queue.Queue()
    submitted = []

    def put(index: int) -> Any:
        def take(update: Any) -> None:
            if isinstance(update, (list, Exception)) or update.is_last:
                done.put((index, time.monotonic(), update))

        return take

    worker.start()
    begin = time.monotonic()
    for index, (job, gap) in enumerate(zip(jobs, gaps, strict=True)):
        time.sleep(gap)
        job.put = put(index)
        submitted.append(time.monotonic())
        worker.submit(job)
    seconds, num_wrong, end = [0.0] * len(jobs), 0, begin
    for _ in jobs:
        index, at, update = done.get(timeout=1200)
        tokens = update if isinstance(update, list) else getattr(update, "tokens", [])
        seconds[index], end = at - submitted[index], max(end, at)
        num_wrong += processor.decode(tokens, skip_special_tokens=True) != expected[index]
    worker.stop()
    short = [seconds[index] for index, job in enumerate(jobs) if job.answer_length <= SHORT + 2]
    return {
        "requests_per_second": round(len(jobs) / (end - begin), 3),
        "median_seconds": round(statistics.median(seconds), 3),
        "median_seconds_of_short": round(statistics.median(short), 3),
        "answers_that_differ": num_wrong,
    }


def compare(num_requests: int, gap: float, repeats: int) -> dict[str, Any]:
    """Both arms, in turns; medians over the repeats."""
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()
    jobs = make_jobs(processor, num_requests, seed=0)
    expected = own_answers(model, processor, jobs)
    draw = random.Random(1)
    gaps = [draw.expovariate(1 / gap) if gap else 0.0 for _ in jobs]
    arms: dict[str, Any] = {
        "steps": lambda: Worker(model, processor.tokenizer, MAX_ROWS),
        "kinds": lambda: KindBatches(model, processor.tokenizer),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, make in arms.items():
            runs[name].append(run_arm(make(), processor, jobs, gaps, expected))
    result: dict[str, Any] = {
        name: {key: statistics.median(run[key] for run in several) for key in several[0]}
        for name, several in runs.items()
    }
    steps, kinds = result["steps"], result["kinds"]
    result["throughput_ratio"] = round(steps["requests_per_second"] / kinds["requests_per_second"], 2)
    result["short_latency_ratio"] = round(steps["median_seconds_of_short"] / kinds["median_seconds_of_short"], 3)
    return result


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the comparison and prints the report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--gap", type=float, default=0.02, help="mean seconds between two requests")
    parser.add_argument("--repeats", type=int, default=3)
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
        **compare(args.requests, args.gap, args.repeats),
    }
    text = json.dumps(report, indent=1)
    if args.output is not None:
        args.output.write_text(text + "\n")
    print(text)
    return report


if __name__ == "__main__":
    main()

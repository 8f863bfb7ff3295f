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
"""What `dimple-hf batch` costs next to the bare loop of `generate` over the same rows, at the same batch size.

Three arms take turns, round by round, in one process, so that a busy machine slows all of them alike:

- "generate": `model.generate` over inputs that lie ready, in row order, and nothing else: no file is read or written.
- "loop": what anybody would write: read the rows of a batch, prepare them, `generate`, decode, in row order.
- "batch": what the command does once the model is loaded: rows grouped by length, the next batches read and prepared
  in worker processes while the model works, lines written, and put together at the end.

Three sets of rows: questions about one small image each, whose prompts are nearly of one length, about one to four of
them, and about one large photograph each, which takes longer to decode and scale down than a form.

Command:
    python benchmarks/batch.py --output benchmarks/results/batch-small-cpu.json

Hardware: any; reading ahead takes a second core. The table that is printed stands in benchmarks/README.md.
"""

import argparse
import io
import json
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
import transformers
from decode import describe_machine
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature

import dimple_hf
from dimple_hf.batch.answers import Answerer, prepare
from dimple_hf.batch.buckets import padding_share, plan_batches
from dimple_hf.batch.prompts import PromptReader, open_rows
from dimple_hf.batch.results import ResultFiles, whole_lines
from dimple_hf.batch.run import answer_rows
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.data.image_features import ImageFeatures
from dimple_hf.data.sources import Source

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "forms"))

from forms_dataset import forms_row

SEED = 0

#: What time is taken by: the wall clock, the processor time of all threads, and that of the calling one.
CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "process": time.process_time,
    "thread": time.thread_time,
}

#: Kinds of question about an image whose answers are free, in turn.
KINDS = ("text", "json", "field", "rows", "sum")

#: Set of rows -> most images of a row.
ROW_SETS = {"one small image": 1, "one to four small images": 4, "one large image": 1}

#: Width of a large image, in pixels. The small model's processor scales it down to 26,000 pixels.
LARGE_WIDTH = 2048

DEFINITIONS = {
    "rows_per_second": "rows over the median wall time of a round",
    "batch_over_generate": "throughput of `batch` over that of bare `generate`: median and quartiles of the rounds, "
    "each of which runs all arms, by the wall clock; 1 is a loop that costs nothing",
    "batch_over_loop": "the same, over the plain loop",
    "batch_over_generate_one_core": "batch_over_generate by the processor time of all threads: nothing is hidden by "
    "reading ahead, as on a single core",
    "batch_over_generate_free_core": "batch_over_generate by the processor time of the thread that calls `generate`: "
    "reading ahead is free, as on a second core that nobody else uses",
    "padding": "share of the positions of a prompt's batch that hold padding, in row order and as planned",
    "same_answers": "share of rows that all three arms answer with the same text",
}


def write_rows(folder: Path, num_rows: int, most_images: int, is_large: bool = False) -> Path:
    """Writes `rows.jsonl` and the images beside it, large ones as JPEG files; returns the file."""
    rng = random.Random(SEED)
    lines = []
    for index in range(num_rows):
        row = forms_row("test", index, kind=KINDS[index % len(KINDS)])
        num_images = rng.randint(1, most_images)
        names = [f"{index}-{number}.{'jpg' if is_large else 'png'}" for number in range(num_images)]
        for number, name in enumerate(names):
            image = forms_row("test", index + number, kind="text")["images"][0].convert("RGB")
            if is_large:
                image = image.resize((LARGE_WIDTH, LARGE_WIDTH * image.height // image.width))
            image.save(folder / name)
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": row["question"]}]
        lines.append(json.dumps({"messages": [{"role": "user", "content": content}], "images": names}) + "\n")
    path = folder / "rows.jsonl"
    path.write_text("".join(lines))
    return path


class Arms:
    """The three arms over one set of rows; each returns the texts of the answers, in row order."""

    def __init__(
        self, model: Any, processor: Any, path: Path, batch_size: int, max_new_tokens: int | None = None
    ) -> None:
        rows, folder = open_rows(Source(str(path)))
        self.folder = path.parent
        self.batch_size = batch_size
        self.reader = PromptReader(rows, processor, folder)
        self.answerer = Answerer(model, processor, options={"max_new_tokens": max_new_tokens})
        self.options = self.answerer.options | {"do_sample": False}
        starts = range(0, len(rows), batch_size)
        self.batches = [list(range(start, min(start + batch_size, len(rows)))) for start in starts]
        self.ready = [self.prepare(batch) for batch in self.batches]
        self.num_runs = 0

    def prepare(self, batch: list[int]) -> BatchFeature:
        return prepare([self.reader.read(row) for row in batch], self.answerer.processor)

    def generate(self) -> list[str]:
        outputs = [self.answerer.model.generate(**inputs, **self.options) for inputs in self.ready]
        return [
            text for inputs, output in zip(self.ready, outputs, strict=True) for text in self.texts(inputs, output)
        ]

    def loop(self) -> list[str]:
        texts = []
        for batch in self.batches:
            inputs = self.prepare(batch)
            texts += self.texts(inputs, self.answerer.model.generate(**inputs, **self.options))
        return texts

    def texts(self, inputs: BatchFeature, output: torch.LongTensor) -> list[str]:
        answers = output[:, inputs["input_ids"].shape[1] :]
        return self.answerer.processor.batch_decode(answers, skip_special_tokens=True)

    def batch(self) -> list[str]:
        self.num_runs += 1
        self.answerer.features = ImageFeatures(self.answerer.model)  # each round encodes its images
        output = self.folder / f"answers-{self.num_runs}.jsonl"
        results = ResultFiles(output, range(len(self.reader.rows)), {})
        with redirect_stderr(io.StringIO()):  # its progress bar
            answer_rows(self.reader, self.answerer, results, set(), self.batch_size)
        results.merge()
        return [line["answer"] for _, line in whole_lines(output)]

    def padding(self) -> dict[str, float]:
        lengths = [self.reader.count_tokens(row) for row in range(len(self.reader.rows))]
        return {
            "row_order": padding_share(lengths, self.batches),
            "planned": padding_share(lengths, plan_batches(lengths, self.batch_size)),
        }


def timed(arm: Callable[[], list[str]]) -> tuple[dict[str, float], list[str]]:
    """Seconds that one run took by each of `CLOCKS`, and what it answers."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    texts = arm()
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}, texts


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def measure(arms: Arms, repeats: int) -> dict[str, Any]:
    """One line of the results."""
    order = ["generate", "loop", "batch"]
    rounds: list[dict[str, tuple[dict[str, float], list[str]]]] = []
    arms.generate()  # warms up
    for _ in range(repeats):
        rounds.append({name: timed(getattr(arms, name)) for name in order})
        order = [*order[1:], order[0]]  # so that no arm always comes first
    num_rows = len(arms.reader.rows)
    answers = zip(*(rounds[0][name][1] for name in order), strict=True)

    def ratio(clock: str, over: str) -> dict[str, float]:
        return spread([entry[over][0][clock] / entry["batch"][0][clock] for entry in rounds])

    return {
        "rows": num_rows,
        "batch_size": arms.batch_size,
        "rows_per_second": {
            name: num_rows / statistics.median(entry[name][0]["wall"] for entry in rounds) for name in sorted(order)
        },
        "batch_over_generate": ratio("wall", "generate"),
        "batch_over_loop": ratio("wall", "loop"),
        "batch_over_generate_one_core": ratio("process", "generate"),
        "batch_over_generate_free_core": ratio("thread", "generate"),
        "padding": arms.padding(),
        "same_answers": statistics.mean(len(set(texts)) == 1 for texts in answers),
    }


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    columns = {
        "batch / generate": "batch_over_generate",
        "batch / loop": "batch_over_loop",
        "on one core": "batch_over_generate_one_core",
        "on two": "batch_over_generate_free_core",
    }
    lines = ["| rows with | " + " | ".join(columns) + " | padding, row order | planned |", "|---|" + "---:|" * 6]
    for name, line in results.items():
        ratios = [
            f"{line[key]['median']:.2f} ({line[key]['lower_quartile']:.2f} to {line[key]['upper_quartile']:.2f})"
            for key in columns.values()
        ]
        shares = [f"{100 * line['padding'][order]:.1f} %" for order in ("row_order", "planned")]
        lines.append("| " + " | ".join([name, *ratios, *shares]) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(FORMS_CHECKPOINT), help="checkpoint (default: the package's)")
    parser.add_argument("--rows", type=int, default=64, help="rows of a round (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, help="positions of an answer (default: the model's)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)

    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(args.device).eval()
    results = {}
    for name, most_images in ROW_SETS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = write_rows(Path(folder), args.rows, most_images, is_large="large" in name)
            arms = Arms(model, processor, path, args.batch_size, args.max_new_tokens)
            results[name] = measure(arms, args.repeats)
    report = {
        "benchmark": "batch",
        "command": shlex.join(["python", "benchmarks/batch.py", *arguments]),
        "machine": describe_machine(torch.device(args.device)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dimple_hf": dimple_hf.__version__,
        },
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
        "definitions": DEFINITIONS,
        "results": results,
    }
    print(format_table(results))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()

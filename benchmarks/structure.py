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
"""Structure priors measured: JSON by prior against JSON by asking, length control, and what a constraint costs.

Three parts, of which the first two need a trained model:

- `json`: held-out forms, asked to be read as JSON. "asked": the answer as it comes. "padded" and "compact": the same
  question under a prior of the form's labels, with either layout of its padding. Each in confident decoding, and one
  position per pass, where passes count what was left to decide.
- `length`: held-out forms, asked to be read as text; the answer ends where it likes, or is forced to end at a length.
  Forms whose expected answer fits the shortest length.
- `cost`: the share of the denoising steps that the constraint takes at vocabulary 152,064, on random weights.

Command:
    python benchmarks/structure.py json length --output benchmarks/results/structure-forms-cpu.json
    python benchmarks/structure.py cost --output benchmarks/results/structure-cost-cpu.json

Hardware: any. The table that is printed stands in docs/results.md.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from decode import SHAPES, build_model, describe_machine
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf import DimpleTokenizer, OptionalPart, Slot, StructurePrior
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.processing.structure_prior_dimple import canvas_inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "forms"))

from forms_dataset import form_prior, forms_row
from forms_evaluation import DECODINGS, ask, score

SEED = 0
LENGTHS = (16, 32, 64)
ANSWER_LENGTH = 64
VOCAB_SIZE = 152064
NUM_TEXT_TOKENS = 151643

DEFINITIONS = {
    "valid": "share of answers that are JSON and an object with exactly the form's labels and numbers of 0 to 9999",
    "fields": "share of fields with exactly the right number",
    "whole": "share of forms with all fields right, and no others",
    "exact": "share of answers that equal the expected text",
    "ends": "share of answers that end at the length or before; of free ones, before the last of 64 positions",
    "passes": "passes of the model for one answer, mean",
    "tokens": "tokens of one answer, without padding, mean",
    "share": "time in the constraint's methods over time in `generate`, after the first pass, median over rounds",
    "largest_share": "the same, largest of the rounds; the first begins with empty memories",
    "step_ms": "median time of a denoising step after the first, constraint included",
    "build_ms": "time to lay a prior out for the tokenizer, automata included, the first time",
}


def is_valid(answer: str, labels: Iterable[str]) -> bool:
    """Whether an answer is valid for the schema of `form_prior(labels)`."""
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    is_form = isinstance(value, dict) and value.keys() == set(labels)
    return is_form and all(type(number) is int and 0 <= number <= 9999 for number in value.values())


def measure_json(model: Any, processor: Any, num_rows: int, batch_size: int) -> list[dict[str, Any]]:
    """One line for each way to ask for JSON, and each way to decode."""
    rows = [forms_row("test", index, kind="json") for index in range(num_rows)]
    fields = [json.loads(row["fields"]) for row in rows]
    results = []
    for decoding, way in product(DECODINGS, ("asked", "padded", "compact")):
        priors = None if way == "asked" else [form_prior(form, way) for form in fields]
        length = {"max_new_tokens": ANSWER_LENGTH} if priors is None else {}
        description = f"json, {way}, {decoding}"
        answers = ask(model, processor, rows, batch_size, priors, description, **DECODINGS[decoding], **length)
        scores = score(rows, answers)
        results.append(
            {
                "decoding": decoding,
                "way": way,
                "rows": num_rows,
                "valid": statistics.mean(is_valid(a.text, f) for a, f in zip(answers, fields, strict=True)),
                "fields": scores["json/fields"],
                "whole": scores["json/whole"],
                "passes": statistics.mean(answer.num_passes for answer in answers),
                "tokens": statistics.mean(answer.num_tokens for answer in answers),
            }
        )
    return results


def measure_length(model: Any, processor: Any, num_rows: int, batch_size: int) -> list[dict[str, Any]]:
    """One line for each length that answers are forced to end at, after one for answers that end where they like."""
    rows, index = [], 0
    while len(rows) < num_rows:
        row = forms_row("test", index, kind="text")
        if len(processor.tokenizer.encode(row["answer"])) <= min(LENGTHS):
            rows.append(row)
        index += 1
    results = []
    for length in (None, *LENGTHS):
        priors = None if length is None else [StructurePrior.from_anchors({}, length)] * num_rows
        limit = {"max_new_tokens": ANSWER_LENGTH} if priors is None else {}
        answers = ask(model, processor, rows, batch_size, priors, f"length, {length or 'free'}", **limit)
        results.append(
            {
                "length": length or "free",
                "rows": num_rows,
                "exact": statistics.mean(a.text == row["answer"] for a, row in zip(answers, rows, strict=True)),
                "ends": statistics.mean(answer.num_tokens <= (length or ANSWER_LENGTH - 1) for answer in answers),
                "passes": statistics.mean(answer.num_passes for answer in answers),
                "tokens": statistics.mean(answer.num_tokens for answer in answers),
            }
        )
    return results


def large_tokenizer() -> DimpleTokenizer:
    """A tokenizer with as many tokens as the released one, of the same mix of lengths and scripts, but made up."""
    rng = random.Random(SEED)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    char = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    vocab = {char[byte]: byte for byte in range(256)}
    scripts = (
        (0.55, lambda: " " * rng.randint(0, 1) + "".join(rng.choices("etaoinshrdlcumwfgypbv", k=rng.randint(2, 12)))),
        (0.15, lambda: "".join(rng.choices("(){}[]<>=+-*/;:,.\"'\\_#\n\t ", k=rng.randint(2, 6)))),
        (0.2, lambda: "".join(chr(rng.randint(0x4E00, 0x9FFF)) for _ in range(rng.randint(1, 4)))),
        (0.1, lambda: "".join(chr(rng.randint(0x400, 0x4FF)) for _ in range(rng.randint(1, 8)))),
    )  # fmt: skip
    while len(vocab) < NUM_TEXT_TOKENS:
        make = rng.choices([make for _, make in scripts], weights=[share for share, _ in scripts])[0]
        data = make().encode()
        data = data[: len(data) - rng.choice((0, 0, 0, 0, 1))]  # some end inside a character
        vocab.setdefault("".join(char[byte] for byte in data), len(vocab))
    return DimpleTokenizer(vocab=vocab, merges=[])


def cost_priors() -> dict[str, StructurePrior]:
    """Priors from simple to rich."""
    text = {"type": "string", "maxLength": 30}
    item = {
        "type": "object",
        "properties": {"what": text, "count": {"type": "integer"}},
        "required": ["what", "count"],
    }
    invoice = {
        "type": "object",
        "properties": {
            "name": text,
            "day": {"type": "string", "format": "date"},
            "note": {"type": "string"},
            "total": {"type": "number", "minimum": 0},
            "paid": {"type": "boolean"},
            "items": {"type": "array", "items": item, "maxItems": 3},
        },
        "required": ["name", "day", "total", "items"],
    }
    return {
        "template": StructurePrior.from_template("Reasoning: {reasoning:32}\nThe answer is {answer:4}."),
        "choices": StructurePrior.from_template(
            "Paid: {paid}", OptionalPart("\nOn {day:date}"), slots={"paid": Slot(choices=["yes", "no", "in part"])}
        ),
        "form": form_prior(["price", "floor", "table", "qty"], "compact"),
        "invoice": StructurePrior.from_json_schema(invoice),
    }


class TimedConstraint:
    """Passes everything on to a constraint and adds up the time that its methods take."""

    def __init__(self, constraint: Any, device: torch.device) -> None:
        self.constraint, self.device, self.calls = constraint, device, []
        self.constrained_rows = constraint.constrained_rows

    def repeat_interleave(self, repeats: int) -> "TimedConstraint":
        return self

    def mask_logits(self, *arguments: Any) -> torch.FloatTensor:
        return self._timed(self.constraint.mask_logits, arguments)

    def accept(self, *arguments: Any) -> torch.BoolTensor:
        return self._timed(self.constraint.accept, arguments)

    def _timed(self, method: Callable[..., torch.Tensor], arguments: tuple[Any, ...]) -> torch.Tensor:
        self._wait()
        start = time.perf_counter()
        result = method(*arguments)
        self._wait()
        self.calls.append((start, time.perf_counter() - start))
        return result

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def measure_cost(
    shape_name: str, device: str, dtype: str, batch_sizes: list[int], repeats: int
) -> list[dict[str, Any]]:
    """One line for each prior and batch size."""
    tokenizer = large_tokenizer()
    model = build_model(replace(SHAPES[shape_name], vocab_size=VOCAB_SIZE), device, getattr(torch, dtype), "sdpa")
    generator = torch.Generator().manual_seed(SEED)
    results = []
    for name, prior in cost_priors().items():
        start = time.perf_counter()
        positions = len(prior.canvas(tokenizer).ids)
        build_seconds = time.perf_counter() - start
        for batch_size, do_sample in product(batch_sizes, (False, True)):
            prompt = torch.randint(NUM_TEXT_TOKENS, (batch_size, 120), generator=generator).to(device)
            rounds = []
            for seed in range(repeats):
                torch.manual_seed(seed)
                inputs = canvas_inputs(prior, batch_size, tokenizer)
                timed = TimedConstraint(inputs["answer_constraint"], model.device)
                output = model.generate(
                    prompt, answer_ids=inputs["answer_ids"], answer_constraint=timed, do_sample=do_sample,
                    mask_token_id=tokenizer.mask_token_id, pad_token_id=tokenizer.pad_token_id,
                    max_denoising_steps=12, confidence_threshold=None, return_dict_in_generate=True,
                )  # fmt: skip
                timed._wait()
                end = time.perf_counter()
                # Each step begins with a call of `mask_logits` and one of `accept`; those of the first go.
                first_end = timed.calls[2][0]
                spent = sum(seconds for _, seconds in timed.calls[2:])
                steps = int(output.num_forward_passes.max()) - 1
                rounds.append((spent / (end - first_end), 1000 * (end - first_end) / steps))
            results.append(
                {
                    "prior": name,
                    "batch_size": batch_size,
                    "decoding": "sampled" if do_sample else "greedy",
                    "positions": positions,
                    "share": statistics.median(share for share, _ in rounds),
                    "largest_share": max(share for share, _ in rounds),
                    "step_ms": statistics.median(milliseconds for _, milliseconds in rounds),
                    "build_ms": 1000 * build_seconds,
                }
            )
    return results


def format_table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    names = list(results[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for result in results:
        values = [f"{value:.3f}" if isinstance(value, float) else str(value) for value in result.values()]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the parts that are asked for; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", choices=("json", "length", "cost"))
    parser.add_argument(
        "--model", default=str(FORMS_CHECKPOINT), help="checkpoint for `json` and `length` (default: the package's)"
    )
    parser.add_argument("--rows", type=int, default=200, help="held-out forms (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1], help="the first one for `json` and `length`")
    parser.add_argument("--shape", default="small", choices=SHAPES, help="model for `cost` (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of `cost` (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)

    report: dict[str, Any] = {
        "benchmark": "structure",
        "command": shlex.join(["python", "benchmarks/structure.py", *arguments]),
        "machine": describe_machine(torch.device(args.device)),
        "definitions": DEFINITIONS,
        "seed": SEED,
        "threads": torch.get_num_threads(),
    }
    if set(args.parts) != {"cost"}:
        processor = AutoProcessor.from_pretrained(args.model)
        model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=args.dtype).to(args.device).eval()
    for part in args.parts:
        if part == "cost":
            report[part] = measure_cost(args.shape, args.device, args.dtype, args.batch_size, args.repeats)
        else:
            measure = measure_json if part == "json" else measure_length
            report[part] = measure(model, processor, args.rows, args.batch_size[0])
        print(f"\n{part}\n\n{format_table(report[part])}")
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()

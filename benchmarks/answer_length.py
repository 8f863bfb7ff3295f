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
"""What a generous `max_new_tokens` costs a short answer: canvases of 32 and 256 positions side by side, on held-out
forms.

The small model of the package answers the same question three times in turn: on a canvas of 32 positions; under a
limit of 256 with a canvas that grows from 32; and on a whole canvas of 256 positions. Only answers that end within 32
positions are counted. A canvas that stayed at 32 positions must have the tokens of one of 32, or the run fails.

Command:
    python benchmarks/answer_length.py --threads 1 --clock cpu --output benchmarks/results/answer-length-cpu.json

Hardware: one CPU core, a minute.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from decode import describe_machine, make_clock, write_json
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "forms"))

from forms_dataset import forms_row
from forms_evaluation import chat_turn

SHORT, LONG = 32, 256

#: Name of a canvas -> options of `generate`. With as many steps as positions, schedules would differ; so all have 256.
CANVASES: dict[str, dict[str, Any]] = {
    "short": {"max_new_tokens": SHORT, "max_denoising_steps": LONG},
    "grown": {"max_new_tokens": LONG, "initial_answer_length": SHORT},
    "long": {"max_new_tokens": LONG},
}


def measure(kind: str, num_rows: int, clock_name: str) -> dict[str, Any]:
    """
    Asks `num_rows` forms one question each.

    Args:
        kind (`str`):
            Kind of question, see `forms_dataset`.
        num_rows (`int`):
            Held-out forms.
        clock_name (`str`):
            "wall" or "cpu".

    Returns:
        `dict[str, Any]`: Medians over the short answers of the passes, of the milliseconds of a call on each canvas,
        and of the ratios of neighbouring calls.

    Raises:
        RuntimeError: If a canvas that stayed at 32 positions has other tokens than one of 32, or no answer is short.
    """
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()
    clock = make_clock(clock_name, model.device)
    seconds: dict[str, list[float]] = {name: [] for name in CANVASES}
    passes: dict[str, list[int]] = {name: [] for name in CANVASES}
    num_short = num_equal_to_long = 0
    for index in tqdm(range(-1, num_rows), desc=kind, file=sys.stderr):
        inputs = processor.apply_chat_template(
            [chat_turn(forms_row("test", max(index, 0), kind=kind))], add_generation_prompt=True, tokenize=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        prompt_length = inputs["input_ids"].shape[1]
        times, outputs = {}, {}
        for name, canvas in CANVASES.items():
            started = clock()
            outputs[name] = model.generate(**inputs, **canvas, return_dict_in_generate=True)
            times[name] = clock() - started
        answers = {name: output.sequences[0, prompt_length:] for name, output in outputs.items()}
        is_short = bool((answers["short"] == model.config.pad_token_id).any())
        has_grown = bool((answers["grown"][SHORT:] != model.config.pad_token_id).any())
        if index < 0 or not is_short or has_grown:  # the first is a warm-up
            continue
        if not torch.equal(answers["grown"][:SHORT], answers["short"]):
            raise RuntimeError(
                f"a canvas that stayed at {SHORT} positions must have the tokens of one (got others, row {index})"
            )
        num_short += 1
        num_equal_to_long += torch.equal(answers["long"][:SHORT], answers["short"])
        for name in CANVASES:
            seconds[name].append(times[name])
            passes[name].append(int(outputs[name].num_forward_passes))
    if not num_short:
        raise RuntimeError("the model must give short answers (got none)")
    line: dict[str, Any] = {"kind": kind, "num_rows": num_rows, "num_short": num_short}
    line["same_answer_on_long"] = num_equal_to_long / num_short
    for name in CANVASES:
        line[name] = {"call_ms": 1e3 * statistics.median(seconds[name]), "passes": statistics.mean(passes[name])}
    for name in ("grown", "long"):
        ratios = [a / b for a, b in zip(seconds[name], seconds["short"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        line[f"{name}_over_short"] = {"median": median, "low": low, "high": high}
    return line


def format_table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| question | short answers | 32 positions, ms | grown from 32, ms | 256 positions, ms | passes "
        "| grown / 32 (quartiles) | 256 / 32 |",
        "|---|---:|---:|---:|---:|---|---:|---:|",
    ]
    for line in results:
        grown, long = line["grown_over_short"], line["long_over_short"]
        passes = " / ".join(f"{line[name]['passes']:.1f}" for name in CANVASES)
        times = " | ".join(f"{line[name]['call_ms']:.0f}" for name in CANVASES)
        lines.append(
            f"| {line['kind']} | {line['num_short']} of {line['num_rows']} | {times} | {passes} "
            f"| {grown['median']:.2f} ({grown['low']:.2f} to {grown['high']:.2f}) | {long['median']:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20, help="held-out forms of each kind (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=["text", "field"], help="of questions (default: text field)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its default when missing")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, all threads")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    if args.rows < 1:
        parser.error(f"--rows must be at least 1 (got {args.rows})")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    results = [measure(kind, args.rows, args.clock) for kind in args.kinds]
    report = {
        "benchmark": "answer_length",
        "command": shlex.join(["python", "benchmarks/answer_length.py", *arguments]),
        "machine": describe_machine(torch.device("cpu")),
        "settings": {"threads": torch.get_num_threads(), "clock": args.clock},
        "results": results,
    }
    if args.output is not None:
        write_json(args.output, report)
    print(format_table(results))
    return json.loads(json.dumps(report))


if __name__ == "__main__":
    main()

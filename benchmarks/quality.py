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
"""What each way to decode costs in passes, and what it loses: every rule and cache policy on held-out forms.

The small model of the package reads whole forms, as text and as JSON, once for each line of `DECODINGS`. Finished
lines are kept in the output file, so that the same command goes on after an interruption.

Command:
    python benchmarks/quality.py --output benchmarks/results/quality.json --figure docs/figures/quality.png

Hardware: one CPU core, about a minute a line. The table that is printed stands in docs/results.md.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from decode import describe_machine
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "forms"))

from forms_dataset import forms_row
from forms_evaluation import ask, score

KINDS = ("text", "json")
ANSWER_LENGTH = 64

REFERENCE = "one place per pass"

#: Family of lines, as in the figure -> line -> options of `generate`.
DECODINGS: dict[str, dict[str, dict[str, Any]]] = {
    "reference": {REFERENCE: {"confidence_threshold": None}},
    "threshold": {
        f"threshold {threshold}": {"confidence_threshold": threshold} for threshold in (0.99, 0.95, 0.9, 0.8, 0.7, 0.5)
    },
    "margin": {f"margin {gap}": {"unmasking": "margin", "confidence_threshold": gap} for gap in (0.95, 0.8)},
    "entropy": {
        f"entropy, exp(-H) {bound}": {"unmasking": "entropy", "confidence_threshold": bound} for bound in (0.9, 0.7)
    },
    "factor": {
        f"factor {factor}": {"parallel_rule": "factor", "confidence_factor": factor} for factor in (0.2, 0.5, 1.0, 2.0)
    },
    "entropy bound": {
        f"entropy bound {bound}": {"parallel_rule": "entropy_bound", "entropy_bound": bound}
        for bound in (0.01, 0.1, 0.3, 1.0)
    },
    "KLASS": {
        f"KLASS {threshold}": {"parallel_rule": "klass", "confidence_threshold": threshold}
        for threshold in (0.95, 0.8)
    },
    "Prophet": {"Prophet": {"parallel_rule": "prophet"}},
    "WINO": {f"WINO {draft}": {"parallel_rule": "wino", "draft_threshold": draft} for draft in (0.9, 0.8, 0.6)},
    "blocks": {f"blocks of {length}": {"block_length": length} for length in (4, 8, 16)},
    "no cache": {"no cache": {"cache_policy": "none"}},
    "refreshed cache": {"refreshed cache": {"cache_policy": "refresh", "cache_refresh_interval": 4}},
    "block cache": {"blocks of 8, block cache": {"block_length": 8, "cache_policy": "block"}},
    "dual cache": {"blocks of 8, dual cache": {"block_length": 8, "cache_policy": "dual"}},
    "left to right": {"left to right": {"unmasking": "left_to_right", "confidence_threshold": None}},
    "fixed steps": {
        f"{steps} steps": {"max_denoising_steps": steps, "confidence_threshold": None} for steps in (32, 16, 8, 4)
    },
}


def measure(
    model: Any, processor: Any, num_rows: int, batch_size: int, name: str, options: Mapping[str, Any]
) -> dict[str, float]:
    """Scores one line of `DECODINGS` over `num_rows` forms of each kind; see `forms_evaluation.score`."""
    rows = [forms_row("test", index, kind=kind) for kind in KINDS for index in range(num_rows)]
    answers = ask(model, processor, rows, batch_size, description=name, max_new_tokens=ANSWER_LENGTH, **options)
    scores = score(rows, answers)
    num_forms = len(rows)
    return {
        "fields": (scores["text/fields"] + scores["json/fields"]) / 2,
        "whole": (scores["text/whole"] + scores["json/whole"]) / 2,
        "parses": scores["json/parses"],
        "passes": sum(answer.num_passes for answer in answers) / num_forms,
        "tokens": sum(answer.num_tokens for answer in answers) / num_forms,
        "passes_per_token": scores["passes_per_token"],
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the report; what was there stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(unfinished, path)


def weights_checksum(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights: results of other weights are not gone on with."""
    digest = hashlib.sha256()
    for file in sorted(checkpoint.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def format_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The results as a Markdown table, with the difference of whole forms to one place per pass in points."""
    lines = [
        "| decoding | fields | whole forms | difference | JSON parses | passes | passes per token |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    reference = results[REFERENCE]["whole"]
    for name, line in results.items():
        lines.append(
            f"| {name} | {100 * line['fields']:.1f} % | {100 * line['whole']:.1f} % "
            f"| {100 * (line['whole'] - reference):+.1f} | {100 * line['parses']:.1f} % | {line['passes']:.2f} "
            f"| {line['passes_per_token']:.3f} |"
        )
    return "\n".join(lines)


def draw_figure(results: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Whole forms against passes for each answer token; lines of one family are joined."""
    import matplotlib  # only this function needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for family, lines in DECODINGS.items():
        points = [results[name] for name in lines if name in results]
        axes.plot(
            [point["passes_per_token"] for point in points],
            [100 * point["whole"] for point in points],
            marker="o",
            label=family,
        )
    axes.set_xscale("log")
    axes.set_xlabel("passes of the model for each answer token")
    axes.set_ylabel("whole forms right, %")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures the lines that are not yet in `--output`; returns what it then holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FORMS_CHECKPOINT, help="checkpoint (default: the package's)")
    parser.add_argument("--rows", type=int, default=200, help="held-out forms of each kind (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--families", nargs="+", choices=DECODINGS, default=list(DECODINGS))
    parser.add_argument("--output", type=Path, required=True, help="JSON file; finished lines in it are kept")
    parser.add_argument("--figure", type=Path, help="picture file to draw")
    args = parser.parse_args(arguments)

    settings = {"rows": args.rows, "answer_length": ANSWER_LENGTH, "weights": weights_checksum(args.model)}
    report: dict[str, Any] = {
        "benchmark": "quality",
        "command": shlex.join(["python", "benchmarks/quality.py", *arguments]),
        "machine": describe_machine(torch.device("cpu")),
        "settings": settings,
        "results": {},
    }
    if args.output.exists():
        earlier = json.loads(args.output.read_text())
        if earlier["settings"] != settings:
            parser.error(f"--output must be a new file: {args.output} holds results of other weights or settings")
        report["results"] = earlier["results"]

    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.float32).eval()
    for family in dict.fromkeys(("reference", *args.families)):
        for name, options in DECODINGS[family].items():
            if name not in report["results"]:
                report["results"][name] = measure(model, processor, args.rows, args.batch_size, name, options)
                write_json(args.output, report)
    print(format_table(report["results"]))
    if args.figure is not None:
        draw_figure(report["results"], args.figure)
    return report


if __name__ == "__main__":
    main()

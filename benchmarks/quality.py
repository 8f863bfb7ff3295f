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

The small model of the package reads whole forms, as text and as JSON, in three wordings, once for each line of
`DECODINGS`. It also lists their labels in order, backwards and in any order: positions that are committed together
easily name a label twice. All lines read the same forms, so each is compared with one position per pass form by form:
how many it loses, how many it wins. The last sentence that is printed says which line deserves to be the default: of
those that are at most half a point below one position per pass, the one with the fewest passes. Finished lines are
kept in the output file, so that the same command goes on after an interruption.

Command:
    python benchmarks/quality.py --output benchmarks/results/quality.json --figure docs/figures/quality.png

Hardware: one CPU core, some minutes a line. What is printed stands in docs/results.md.
"""

import argparse
import hashlib
import json
import runpy
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from decode import describe_machine, write_json
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf import EntropyBoundConfig, FactorConfig, KlassConfig, WinoConfig
from dimple_hf.checkpoints import FORMS_CHECKPOINT

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "forms"))

from forms_dataset import forms_row
from forms_evaluation import ask, score
from forms_questions import LIST_WORDINGS
from forms_scores import score_answer

KINDS = ("text", "json")
NUM_WORDINGS = 3
ANSWER_LENGTH = 64

REFERENCE = "one position per pass"

#: What the model does unless it is told otherwise, by its generation config. Lines that say nothing of it do so, too.
DEFAULT = "threshold 0.99"

#: Whole forms that a default may lose against `REFERENCE`, in points.
NO_LOSS = 0.5

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
    "factor": {f"factor {factor}": {"sampler_config": FactorConfig(factor)} for factor in (0.2, 0.5, 1.0, 2.0)},
    "entropy bound": {
        f"entropy bound {bound}": {"sampler_config": EntropyBoundConfig(bound)} for bound in (0.01, 0.1, 0.3, 1.0)
    },
    "KLASS": {f"KLASS {threshold}": {"sampler_config": KlassConfig(threshold)} for threshold in (0.95, 0.8)},
    "Prophet": {"Prophet": {"sampler": "prophet"}},
    "WINO": {f"WINO {draft}": {"sampler_config": WinoConfig(draft)} for draft in (0.9, 0.8, 0.6)},
    "blocks": {f"blocks of {length}": {"block_length": length} for length in (4, 8, 16)},
    "no cache": {"no cache": {"cache_policy": "none"}},
    "refreshed cache": {"refreshed cache": {"cache_policy": "refresh", "cache_refresh_interval": 4}},
    "prefix cache": {"blocks of 8, prefix cache": {"block_length": 8, "cache_policy": "prefix"}},
    "dual cache": {"blocks of 8, dual cache": {"block_length": 8, "cache_policy": "dual"}},
    "left to right": {"left to right": {"unmasking": "left_to_right", "confidence_threshold": None}},
    "fixed steps": {
        f"{steps} steps": {"max_denoising_steps": steps, "confidence_threshold": None} for steps in (32, 16, 8, 4)
    },
}


def measure(
    model: Any, processor: Any, num_rows: int, batch_size: int, name: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Scores one line of `DECODINGS` over `num_rows` forms of each kind and wording; see `forms_evaluation.score`.
    `"right"` has 1 for each form that is right as a whole, else 0; `"by_wording"` the share of these for each
    wording; `"copy"`, `"reverse"` and `"shuffle"` the share of right lists of labels; `"tokens_per_second"` counts the
    tokens of forms before the end, over processor time.
    """
    per_wording = len(KINDS) * num_rows
    rows = [
        forms_row("test", index, kind=kind, words=wording)
        for wording in range(NUM_WORDINGS)
        for kind in KINDS
        for index in range(num_rows)
    ]
    lists = [forms_row("test", index, kind=kind) for kind in LIST_WORDINGS for index in range(num_rows)]
    started = time.process_time()
    answers = ask(model, processor, rows, batch_size, description=name, max_new_tokens=ANSWER_LENGTH, **options)
    seconds = time.process_time() - started
    listed = ask(
        model, processor, lists, batch_size, description=f"{name}, lists", max_new_tokens=ANSWER_LENGTH, **options
    )
    num_tokens = sum(answer.num_tokens for answer in answers)
    right = [
        score_answer(row["kind"], answer.text, row["answer"], json.loads(row["fields"]))["whole"][0]
        for row, answer in zip(rows, answers, strict=True)
    ]
    scores, list_scores = score(rows, answers), score(lists, listed)
    num_forms = len(rows)
    return {
        "fields": (scores["text/fields"] + scores["json/fields"]) / 2,
        "whole": (scores["text/whole"] + scores["json/whole"]) / 2,
        "parses": scores["json/parses"],
        "by_wording": [
            sum(right[start : start + per_wording]) / per_wording for start in range(0, num_forms, per_wording)
        ],
        **{kind: list_scores[f"{kind}/exact"] for kind in LIST_WORDINGS},
        "passes": sum(answer.num_passes for answer in answers) / num_forms,
        "tokens": num_tokens / num_forms,
        "passes_per_token": scores["passes_per_token"],
        "tokens_per_second": num_tokens / seconds,
        "right": right,
    }


def weights_checksum(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's weights: results of other weights are not gone on with."""
    digest = hashlib.sha256()
    for file in sorted(checkpoint.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """
    The results as a Markdown table, with the difference of whole forms to one position per pass, in points, and forms
    lost and won; then how far the wordings differ, in points, and the lists of labels.
    """
    lines = [
        "| decoding | fields | whole forms | difference | lost, won | wordings | JSON parses | copy | reverse "
        "| shuffle | passes | passes per token | tokens/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    reference = results[REFERENCE]
    for name, line in results.items():
        pairs = list(zip(reference["right"], line["right"], strict=True))
        spread = max(line["by_wording"]) - min(line["by_wording"])
        lists = " | ".join(f"{100 * line[kind]:.1f} %" for kind in LIST_WORDINGS)
        lines.append(
            f"| {name} | {100 * line['fields']:.1f} % | {100 * line['whole']:.1f} % "
            f"| {100 * (line['whole'] - reference['whole']):+.1f} | {pairs.count((1, 0))}, {pairs.count((0, 1))} "
            f"| {100 * spread:.1f} | {100 * line['parses']:.1f} % | {lists} | {line['passes']:.2f} "
            f"| {line['passes_per_token']:.3f} | {line['tokens_per_second']:.0f} |"
        )
    return "\n".join(lines)


def best_without_loss(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of the line with the fewest passes per token, of those that lose at most `NO_LOSS` points."""
    least = results[REFERENCE]["whole"] - NO_LOSS / 100
    without_loss = [name for name, line in results.items() if line["whole"] >= least - 1e-9]
    return min(without_loss, key=lambda name: results[name]["passes_per_token"])


def verdict(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence that names it, and what the present default does."""
    best, sentence = best_without_loss(results), ""
    if DEFAULT in results:
        default = results[DEFAULT]
        difference = 100 * (default["whole"] - results[REFERENCE]["whole"])
        sentence = f" The default, {DEFAULT}: {default['passes_per_token']:.3f} and {difference:+.1f}."
    return (
        f"At most {NO_LOSS} points below {REFERENCE}, the fewest passes: **{best}**, "
        f"{results[best]['passes_per_token']:.3f} passes per token.{sentence}"
    )


def load_rule(reference: str) -> Any:
    """The object that `PATH:NAME` names, after running the file."""
    path, _, name = reference.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"`--rule` must be PATH:NAME with the path of a Python file (got {reference!r})")
    namespace = runpy.run_path(path)
    if not callable(namespace.get(name)):
        raise ValueError(f"`--rule` must name a function or callable object of {path} (got {name!r})")
    return namespace[name]


def draw_figure(
    results: Mapping[str, Mapping[str, Any]], path: Path, families: Mapping[str, Mapping[str, Any]] = DECODINGS
) -> None:
    """Whole forms against passes for each answer token; lines of one family are joined."""
    import matplotlib  # only this function needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.set_prop_cycle(color=pyplot.colormaps["tab20"].colors)  # one for each family
    for family, lines in families.items():
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
    parser.add_argument("--rule", action="append", default=[], help="a rule of your own, PATH:NAME; may be repeated")
    parser.add_argument("--output", type=Path, required=True, help="JSON file; finished lines in it are kept")
    parser.add_argument("--figure", type=Path, help="image file to draw")
    args = parser.parse_args(arguments)
    for name in ("rows", "batch_size"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1 (got {getattr(args, name)})")
    try:
        rules = {reference: load_rule(reference) for reference in args.rule}
    except ValueError as error:
        parser.error(str(error))
    own = {reference: {reference: {"sampler": rule}} for reference, rule in rules.items()}

    settings = {
        "rows": args.rows,
        "wordings": NUM_WORDINGS,
        "answer_length": ANSWER_LENGTH,
        "weights": weights_checksum(args.model),
    }
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
    families = DECODINGS | own
    for family in dict.fromkeys(("reference", *args.families, *own)):
        for name, options in families[family].items():
            if name not in report["results"]:
                report["results"][name] = measure(model, processor, args.rows, args.batch_size, name, options)
                write_json(args.output, report)
    print(f"{format_table(report['results'])}\n\n{verdict(report['results'])}")
    if args.figure is not None:
        draw_figure(report["results"], args.figure, families)
    return report


if __name__ == "__main__":
    main()

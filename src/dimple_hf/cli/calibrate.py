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
"""Fit the temperatures of decisions on labelled examples, and score the probabilities before and after."""

import argparse
import json
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answering import add_reading_arguments, check_batch_size, model_settings
from .arguments import add_device_argument, add_model_argument

if TYPE_CHECKING:
    import torch

    from ..decisions import Calibration, Question
    from ..decisions.labelled import LabelledExample

    Answered = Sequence[tuple[Question, torch.Tensor, int]]
    """Questions, the log-probabilities of their options, and the index of the right one."""

#: What the extra `decisions` installs, by the names that are imported.
LIBRARIES = ("matplotlib", "scipy", "sklearn")

HELP = "fit the probabilities of decisions to labelled examples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument(
        "data",
        type=Path,
        help="JSON lines, each with `image` (a path, relative to the file) or `text`, `questions` and `answers` (a "
        "boolean, the value of a choice, the label of a level)",
    )
    parser.add_argument("--output", type=Path, help="folder for the calibration (default: the model's, if it is one)")
    parser.add_argument("--diagram", type=Path, help="SVG file for a reliability diagram")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a calibration or diagram that is there already"
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, help="examples in one forward pass (default: %(default)s)"
    )
    add_reading_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as a JSON object")
    add_model_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command. The first half of the examples is fitted, the second half is scored."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ValueError(f"`calibrate` needs {', '.join(missing)}: run `pip install 'dimple_hf[decisions]'`")
    from ..decisions import Calibration
    from ..decisions.calibration import draw_reliability, fit_calibration
    from ..decisions.labelled import read_labelled

    check_batch_size(args.batch_size)
    output = checked_output(args)
    examples = read_labelled(args.data)
    if len(examples) < 2:
        raise ValueError(f"{args.data} must hold at least 2 examples (got {len(examples)})")
    answered = [
        list(zip(example.questions, log_probs, example.targets, strict=True))
        for example, log_probs in zip(examples, read_examples(args, examples), strict=True)
    ]
    half = len(answered) // 2
    fitted, scored = list(chain(*answered[:half])), list(chain(*answered[half:]))
    calibration = replace(fit_calibration(fitted), independent=args.independent, reading=args.reading)
    before, after = score(scored, Calibration()), score(scored, calibration)
    for remark in describe_doubts([*fitted, *scored], calibration):
        print(remark, file=sys.stderr)
    calibration.save_pretrained(output)
    if args.diagram is not None:
        draw_reliability(args.diagram, {"as read": before["reliability"], "calibrated": after["reliability"]})
    shutil.rmtree(readings_file(args).parent)
    report = {"temperatures": calibration.temperatures, "before": before, "after": after, "output": str(output)}
    print(json.dumps(report) if args.json else _table(report))
    return 0


def checked_output(args: argparse.Namespace) -> Path:
    """
    Args:
        args (`argparse.Namespace`):
            Arguments of the command.

    Returns:
        `Path`: The folder of the calibration.

    Raises:
        ValueError: If it is not known or no folder, the diagram is no SVG file, or a file that the command writes is
            there already.
    """
    from ..decisions.calibration import CALIBRATION_NAME

    output = Path(args.output or args.model)
    if args.output is None and not output.is_dir():
        raise ValueError(f"`--output` must be given for a model on the Hub (got {args.model})")
    if output.exists() and not output.is_dir():
        raise ValueError(f"`--output` must be a folder (got the file {output})")
    if args.diagram is not None and args.diagram.suffix.lower() != ".svg":
        raise ValueError(f"`--diagram` must be an SVG file, whose name ends in .svg (got {args.diagram})")
    for path in (output / CALIBRATION_NAME, args.diagram):
        if path is not None and path.exists() and not args.overwrite:
            raise ValueError(f"`--overwrite` must be given to replace a file that is there already (got {path})")
    return output


def readings_file(args: argparse.Namespace) -> Path:
    """What is read is kept here until the calibration is saved. A folder of its own is no part of a checkpoint."""
    return Path(args.output or args.model, "decision_calibration.partial", "readings.jsonl")


def read_examples(args: argparse.Namespace, examples: "Sequence[LabelledExample]") -> "list[list[torch.Tensor]]":
    """
    Asks the model what an earlier run has not asked, in the same batches, so that it reads the same numbers.

    Args:
        args (`argparse.Namespace`):
            Arguments of the command.
        examples (`Sequence[LabelledExample]`):
            The examples.

    Returns:
        `list[list[torch.FloatTensor]]`: For each example and question, the log-probabilities of its options.

    Raises:
        ValueError: If the earlier run had other examples, another model or other options.
    """
    import torch
    from tqdm import tqdm

    from ..batch.digests import row_digest
    from ..batch.results import ResultFiles, whole_lines
    from ..decisions.labelled import layout_of, read_log_probs
    from .loading import load_model, load_processor

    digest = row_digest({"examples": [[example.conversation, str(example.questions)] for example in examples]})
    options = {"independent": args.independent, "reading": args.reading}
    settings = {"data": str(args.data), "examples": digest, "batch_size": args.batch_size} | options
    file = readings_file(args)
    file.parent.mkdir(parents=True, exist_ok=True)
    results = ResultFiles(file, range(len(examples)), settings | model_settings(args.model))
    done = results.find_lines()
    batches = [range(first, len(examples))[: args.batch_size] for first in range(0, len(examples), args.batch_size)]
    batches = [batch for batch in batches if any(row not in done for row in batch)]
    if batches:
        model, processor = load_model(args.model, args.device), load_processor(args.model)
        for example in examples:
            layout_of(model, processor, example, **options)  # refuses the last one, too, before the first is read
        with results.new_part(0, 1) as part:
            for batch in tqdm(batches):
                asked = [examples[row] for row in batch]
                read = read_log_probs(model, processor, asked, args.batch_size, **options)
                lines = [
                    {"row": row, "log_probs": [of_question.tolist() for of_question in log_probs]}
                    for row, log_probs in zip(batch, read, strict=True)
                ]
                part.append(line for line in lines if line["row"] not in done)
    results.merge()
    return [[torch.tensor(of_question) for of_question in line["log_probs"]] for _, line in whole_lines(file)]


def kept(args: argparse.Namespace) -> str | None:
    """What an unfinished run leaves."""
    from ..batch.results import describe_kept

    return describe_kept(readings_file(args))


def describe_doubts(answered: "Answered", calibration: "Calibration") -> list[str]:
    """
    Args:
        answered (`Answered`):
            The questions of all examples.
        calibration ([`Calibration`]):
            What was fitted on the first half.

    Returns:
        `list[str]`: A line for each type of question whose temperature is missing, or was stopped by a bound.
    """
    from ..decisions.calibration import QUESTION_TYPES, TEMPERATURE_RANGE

    lines = []
    for name in (QUESTION_TYPES[kind] for kind in QUESTION_TYPES if any(isinstance(row[0], kind) for row in answered)):
        temperature = calibration.temperatures.get(name)
        if temperature is None:
            lines.append(f"{name}: no temperature, because the first half of the examples has no such question")
        elif any(math.isclose(temperature, bound, rel_tol=0.01) for bound in TEMPERATURE_RANGE):
            lines.append(
                f"{name}: the temperature is at a bound of its range, {temperature:.3g}: the first half of the "
                "examples has too few such questions, or the model is always right"
            )
    return lines


def score(answered: "Answered", calibration: "Calibration") -> dict[str, Any]:
    """Scores of questions under a calibration, see [`score_decisions`]."""
    from ..decisions.calibration import score_decisions

    rows = [(row / calibration.temperature(question)).softmax(dim=0).tolist() for question, row, _ in answered]
    return score_decisions(rows, [target for *_, target in answered])


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'':12}{'before':>10}{'after':>10}"]
    for name in ("accuracy", "ece", "brier", "auroc"):
        values = [report[when][name] for when in ("before", "after")]
        lines.append(
            f"{name:12}" + "".join(f"{'-' if value is None else format(value, '.4f'):>10}" for value in values)
        )
    temperatures = ", ".join(f"{name} {value:.3g}" for name, value in report["temperatures"].items())
    return "\n".join([*lines, f"temperatures: {temperatures}", f"saved in {report['output']}"])

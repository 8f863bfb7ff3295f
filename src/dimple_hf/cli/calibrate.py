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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import add_device_argument, add_model_argument

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
    parser.add_argument("--batch-size", type=int, default=8, help="rows at a time (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as a JSON object")
    add_model_argument(parser)
    add_device_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command. The first half of the examples is fitted, the second half is scored."""
    from ..decisions import Calibration
    from ..decisions.calibration import QUESTION_TYPES, draw_reliability, fit_temperature, score_decisions
    from .loading import load_model, load_processor

    output = args.output or Path(args.model)
    if args.output is None and not output.is_dir():
        raise ValueError(f"`--output` must be given for a model on the Hub (got {args.model})")
    examples = read_examples(args.data)
    model, processor = load_model(args.model, args.device), load_processor(args.model)
    answered = _ask(model, processor, examples)
    half = len(answered) // 2
    if half == 0:
        raise ValueError(f"{args.data} must hold at least 2 questions (got {len(answered)})")
    temperatures = {}
    for kind, name in QUESTION_TYPES.items():
        fitted = [(row.log(), right) for question, row, right in answered[:half] if isinstance(question, kind)]
        if fitted:
            temperatures[name] = fit_temperature(*map(list, zip(*fitted, strict=True)))
    calibration = Calibration(temperatures)
    targets = [right for *_, right in answered[half:]]
    before = score_decisions([row.tolist() for _, row, _ in answered[half:]], targets)
    after = score_decisions(
        [(row.log() / calibration.temperature(question)).softmax(0).tolist() for question, row, _ in answered[half:]],
        targets,
    )
    calibration.save_pretrained(output)
    if args.diagram is not None:
        draw_reliability(args.diagram, {"as read": before["reliability"], "calibrated": after["reliability"]})
    report = {"temperatures": temperatures, "before": before, "after": after, "output": str(output)}
    print(json.dumps(report) if args.json else _table(report))
    return 0


def read_examples(path: Path) -> list[tuple[Any, list[Any], list[int]]]:
    """
    Args:
        path (`Path`):
            The labelled examples.

    Returns:
        `list[tuple[Any, list[Question], list[int]]]`: Input, questions and the indices of their right options.

    Raises:
        ValueError: If a line is not written as it must be; the message names the file and the line.
    """
    from ..decisions import questions_from_json

    examples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
            if not isinstance(example, dict) or ("image" in example) == ("text" in example):
                raise ValueError("it must be an object with either `image` or `text`")
            questions = questions_from_json(example.get("questions"))
            answers = example.get("answers")
            if not isinstance(answers, list) or len(answers) != len(questions):
                raise ValueError(f"`answers` must be a list of {len(questions)} answers (got {answers!r})")
            right = [_right_option(*pair) for pair in zip(questions, answers, strict=True)]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        item = example["text"] if "text" in example else path.parent / example["image"]
        examples.append((item, questions, right))
    return examples


def _right_option(question: Any, answer: Any) -> int:
    from ..decisions import Predicate

    if isinstance(question, Predicate):
        if not isinstance(answer, bool):
            raise ValueError(f"the answer to {question.instructions!r} must be true or false (got {answer!r})")
        return 0 if answer else 1
    values = [(type(option.value), option.value) for option in question.options]
    if (type(answer), answer) not in values:
        raise ValueError(f"the answer to {question.instructions!r} must be one of its options (got {answer!r})")
    return values.index((type(answer), answer))


def _ask(
    model: Any, processor: Any, examples: Sequence[tuple[Any, list[Any], list[int]]]
) -> list[tuple[Any, Any, int]]:
    """Each question with the probabilities of its options, a tensor, and its right one."""
    import torch
    from tqdm import tqdm

    from ..decisions import decide

    answered = []
    for item, questions, right in tqdm(examples, desc="examples"):
        answers: Any = decide(model, processor, item, questions)
        for question, answer, option in zip(questions, answers, right, strict=True):
            answered.append((question, torch.tensor(answer.option_probabilities).clamp(min=1e-30), option))
    return answered


def _table(report: dict[str, Any]) -> str:
    lines = [f"{'':12}{'before':>10}{'after':>10}"]
    for name in ("accuracy", "ece", "brier", "auroc"):
        values = [report[when][name] for when in ("before", "after")]
        lines.append(
            f"{name:12}" + "".join(f"{'-' if value is None else format(value, '.4f'):>10}" for value in values)
        )
    temperatures = ", ".join(f"{name} {value:.3g}" for name, value in report["temperatures"].items())
    return "\n".join([*lines, f"temperatures: {temperatures}", f"saved in {report['output']}"])

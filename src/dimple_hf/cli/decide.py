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
"""Answer typed questions about images, with a probability for each option: one line for each image."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from .answering import (
    add_answering_arguments,
    add_reading_arguments,
    answer_into,
    check_batch_size,
    model_settings,
    read_json,
    this_process,
)
from .extract import ImageRows, add_image_arguments, dataset_images, file_images

HELP = "answer typed questions about images, with a probability for each option"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("--questions", type=Path, required=True, help="JSON file with a list of questions")
    add_image_arguments(parser)
    parser.add_argument(
        "--output", type=Path, help="file for the lines, gone on with where it is there (default: standard output)"
    )
    parser.add_argument(
        "--calibrated", action="store_true", help="divide by the temperatures that `calibrate` left beside the model"
    )
    add_reading_arguments(parser)
    parser.add_argument(
        "--permutations", type=int, default=1, help="rotated orders of options to average over (default: %(default)s)"
    )
    add_answering_arguments(parser, batch_size=8)


def run(args: argparse.Namespace) -> int:
    """Runs the command: a line for each image, then the counts on stderr."""
    from ..batch.decisions import DecisionAnswerer
    from ..batch.results import open_results
    from ..decisions import Calibration, questions_from_json
    from ..decisions.layout import lay_out
    from .loading import load_processor

    check_batch_size(args.batch_size)
    values = read_questions(args.questions)
    questions = questions_from_json(values)
    calibration = Calibration.from_pretrained(args.model) if args.calibrated else None
    if calibration is not None:
        calibration.check_ways(independent=args.independent, reading=args.reading)
    tokenizer = load_processor(args.model).tokenizer
    reading = {"permutations": args.permutations, "independent": args.independent, "reading": args.reading}
    layout = lay_out(tokenizer, tokenizer.mask_token_id, questions, **reading)
    sources, images = dataset_images(args) if args.dataset is not None else file_images(args.image)
    temperatures = None if calibration is None else dict(calibration.temperatures)
    settings = {"command": "decide", "questions": values, "temperatures": temperatures} | reading
    results = open_results(args.output, sources, settings | model_settings(args.model), key_name="source")
    options = {"layout": layout, "questions": questions, "calibration": calibration, "batch_size": args.batch_size}
    options["shows_progress"] = this_process()[0] == 0
    rows = ImageRows(images, layout.canvases(0)[0].prompt)
    return answer_into(results, rows, args, partial(DecisionAnswerer, options=options), sources=sources)


def read_questions(path: Path) -> list[Any]:
    """
    Args:
        path (`Path`):
            File with a list of questions, or an object that has one under `questions`.

    Returns:
        `list[Any]`: The list, as JSON holds it.

    Raises:
        ValueError: If the file cannot be read, or holds no list.
    """
    values = read_json(path, "--questions")
    found = values.get("questions") if isinstance(values, dict) else values
    if not isinstance(found, list):
        raise ValueError(
            f"`--questions` must be a file with a list of questions, or with an object that has one under `questions` "
            f"({path}: got {json.dumps(values)[:80]})"
        )
    return found


def kept(args: argparse.Namespace) -> str | None:
    """What an unfinished run leaves."""
    from ..batch.results import describe_kept

    return describe_kept(args.output)

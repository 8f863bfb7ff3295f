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
"""Write the model card, README.md, of a model or an adapter from what its files say. What they cannot say (license,
data, scores) is stated here or left out."""

import argparse
from pathlib import Path
from typing import Any

from .answering import read_json

HELP = "write the model card of a model or an adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="model or adapter; README.md is written there")
    parser.add_argument("--repo-id", help="Hub id that the snippet loads (default: the directory's name)")
    parser.add_argument("--description", help="what it was trained for; stands first")
    parser.add_argument("--question", default="What is in the image?", help="what the snippet asks")
    parser.add_argument("--scores", type=Path, help='JSON file: name -> number, such as {"text/fields": 0.97}')
    parser.add_argument(
        "--scores-data",
        default="evaluation data",
        help="what the scores were measured on: a name or a Hub id (default: %(default)s)",
    )
    parser.add_argument(
        "--base-model", action="append", default=[], help="Hub id of what it was made from; may be given several times"
    )
    parser.add_argument("--license", help="as the Hub abbreviates it, such as apache-2.0; left out when missing")
    parser.add_argument(
        "--dataset", action="append", default=[], help="Hub id of training data; may be given several times"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a README.md that is there already")


def run(args: argparse.Namespace) -> int:
    """Runs the command and prints where the card lies."""
    from ..hub.card import write_model_card

    print(
        write_model_card(
            args.directory,
            overwrite=args.overwrite,
            repo_id=args.repo_id,
            description=args.description,
            question=args.question,
            scores=None if args.scores is None else read_scores(args.scores),
            scores_data=args.scores_data,
            base_models=args.base_model,
            license=args.license,
            datasets=args.dataset,
        )
    )
    return 0


def read_scores(path: Path) -> dict[str, Any]:
    """
    Args:
        path (`Path`):
            JSON file with an object of numbers.

    Returns:
        `dict[str, Any]`: The object.

    Raises:
        ValueError: If there is none, or it holds something else.
    """
    scores = read_json(path, "--scores")
    if not isinstance(scores, dict):
        raise ValueError(f"`--scores` must hold an object, name -> number (got {type(scores).__name__} in {path})")
    return scores

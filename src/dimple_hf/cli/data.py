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
"""Check training data: read every example as training would, and show lengths, bad examples and one of them rendered.

DATA is a recipe, or what a recipe's `data.train` may be: a file, a directory, `module:function` or a Hub id.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import FORMS_CHECKPOINT
from .arguments import checkpoint_name

if TYPE_CHECKING:
    from ..data.sources import Source


HELP = "check training data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help=HELP, description=__doc__)
    check.add_argument("data", metavar="DATA", help="a recipe (.yaml), or a data set")
    check.add_argument(
        "--model",
        type=checkpoint_name,
        help="whose processor reads a data set, and counts its tokens: a directory or Hub id (default: the small "
        "model of the package; a recipe names its own)",
    )
    check.add_argument("--image-folder", type=Path, help="what relative image paths are relative to")
    check.add_argument("--max-length", type=int, help="most tokens of a row")
    check.add_argument("--columns", type=_mapping, default={}, help="other names of columns: '{prompt: question}'")
    check.add_argument("--split", help="which split of a data set")
    check.add_argument("--limit", type=int, help="how many examples to read (default: all)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; prints a report of each data set. 1 if an example is bad."""
    from ..training.collator import DimpleDataCollator
    from ..training.data_check import check_examples
    from .loading import load_processor

    if args.limit is not None and args.limit < 1:
        raise ValueError(f"`--limit` must be at least 1 (got {args.limit})")
    if args.image_folder is not None and not args.image_folder.is_dir():
        raise ValueError(f"`--image-folder` must be a folder (got {args.image_folder})")
    num_bad = 0
    for name, source, model, options in _data_sets(args):
        collator = DimpleDataCollator(load_processor(model), **options)
        report = check_examples(source.load(_folder(args)), collator, args.limit)
        print(f"{name}: {report}\n")
        num_bad += len(report.bad)
    return 1 if num_bad else 0


def _folder(args: argparse.Namespace) -> Path:
    return Path(args.data).resolve().parent if _is_recipe(args) else Path.cwd()


def _mapping(text: str) -> dict[str, str]:
    """YAML's `{a: b}`."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in (*value, *value.values())):
        raise argparse.ArgumentTypeError(f"must be a mapping such as '{{prompt: question}}' (got {text!r})")
    return value


def _is_recipe(args: argparse.Namespace) -> bool:
    return args.data.endswith((".yaml", ".yml"))


def _data_sets(args: argparse.Namespace) -> list[tuple[str, "Source", str, dict[str, Any]]]:
    """Name, source, model and options of the collator of each data set to read."""
    from ..data.sources import Source
    from ..training.recipe import load_recipe

    if not _is_recipe(args):
        source = Source(args.data, split=args.split, columns=args.columns)
        source.check(Path.cwd())
        if args.model is None:
            print("tokens are counted as for the small model of the package; `--model` names another", file=sys.stderr)
        model = args.model or str(FORMS_CHECKPOINT)
        return [(args.data, source, model, {"image_folder": args.image_folder, "max_length": args.max_length})]
    recipe = load_recipe(args.data)
    return [
        (f"{plan.stage.name}, data.{kind}", source, recipe.model, plan.collator)
        for plan in recipe.plans
        for kind, source in (("train", plan.train), ("eval", plan.eval))
        if source is not None
    ]

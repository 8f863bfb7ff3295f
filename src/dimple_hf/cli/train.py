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
"""Train a Dimple by a recipe. The same command again goes on where it was interrupted.

On several devices: `accelerate launch -m dimple_hf.cli.main train RECIPE.yaml`.
"""

import argparse
import os
from pathlib import Path

HELP = "train by a recipe"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="what to train; see docs/fine_tuning.md")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and load nothing")


def run(args: argparse.Namespace) -> int:
    """Runs the command; prints the plan, or where the last stage's result lies."""
    import yaml

    from ..training.recipe import load_recipe
    from ..training.run import describe_plan, train_recipe

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by `accelerate launch` and its kin
    recipe = load_recipe(args.recipe)
    if args.dry_run:
        print(yaml.safe_dump(describe_plan(recipe, num_processes), sort_keys=False, allow_unicode=True), end="")
        return 0
    result = train_recipe(recipe, num_processes)
    if os.environ.get("RANK", "0") == "0":
        print(result)
    return 0


def kept(args: argparse.Namespace) -> str | None:
    """What an unfinished run leaves."""
    return None if args.dry_run else "what the last checkpoint holds is kept; the same command goes on from there"

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
"""Build an untrained Dimple from a public language model and the vision tower of a Qwen2.5-VL."""

import argparse
from pathlib import Path

from .arguments import seed_number

HELP = "build an untrained Dimple from public parts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="directory to write; must be new or empty")
    parser.add_argument(
        "--vision-model",
        required=True,
        help="directory or Hub id of a Qwen2.5-VL, such as Qwen/Qwen2.5-VL-7B-Instruct",
    )
    parser.add_argument(
        "--language-model",
        help="directory or Hub id of a Dream or Qwen2, such as Dream-org/Dream-v0-Instruct-7B; the vision model's own "
        "language model when missing",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the projector's weights")


def run(args: argparse.Namespace) -> int:
    """Runs the command and prints where the model lies."""
    from ..hub.init import initialize_dimple

    print(initialize_dimple(args.output_dir, args.vision_model, args.language_model, seed=args.seed))
    return 0


def kept(args: argparse.Namespace) -> str | None:
    """What an unfinished run leaves."""
    return None if args.output_dir.exists() else f"{args.output_dir} was not written; run the same command again"

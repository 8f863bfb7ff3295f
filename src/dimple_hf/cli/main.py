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
"""Entry point of the `dimple-hf` command: finds the sub-command and turns expected errors into one line."""

import argparse
import sys
from collections.abc import Sequence

from . import batch, card, convert, data, demo, doctor, extract, generate, init, serve, train
from .arguments import CommandParser

#: Sub-command -> module with `HELP`, `add_arguments(parser)` and `run(args) -> int`.
COMMANDS = {
    "batch": batch,
    "card": card,
    "convert": convert,
    "data": data,
    "demo": demo,
    "doctor": doctor,
    "extract": extract,
    "generate": generate,
    "init": init,
    "serve": serve,
    "train": train,
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = CommandParser(prog="dimple-hf", description="Dimple, a discrete-diffusion vision-language model.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.__doc__)
        module.add_arguments(subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Runs one sub-command.

    Args:
        arguments (`Sequence[str]`, *optional*):
            Command line without the program's name; the process's own when missing.

    Returns:
        `int`: Exit status: 0, or 1 after an error that the user can mend, whose message went to stderr.
    """
    args = build_parser().parse_args(arguments)
    try:
        return COMMANDS[args.command].run(args)
    except (ValueError, OSError) as error:
        # What the package refuses, and files that are missing or broken. Anything else is a defect, with trace.
        print(f"dimple-hf {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":  # `accelerate launch -m dimple_hf.cli.main train RECIPE.yaml`
    sys.exit(main())

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
"""The parser of the `dimple-hf` command; runs a sub-command and turns an error into one line and a status."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from .arguments import CommandParser, VersionAction

#: Sub-commands: modules of this folder with `HELP`, `add_arguments(parser)`, `run(args) -> int` and, where a run is
#: long, `kept(args) -> str | None`: what an interrupted run leaves and how to go on. They import torch and
#: transformers only inside `run`, so that the parser is there at once.
COMMAND_NAMES = (
    "batch",
    "calibrate",
    "card",
    "convert",
    "data",
    "decide",
    "demo",
    "doctor",
    "extract",
    "generate",
    "init",
    "serve",
    "train",
)

#: What safetensors and torch say when they cannot write a file.
UNWRITTEN = ("No space left on device", "File too large", "Disk quota exceeded", "unexpected pos", "iostream error")

#: Sub-command -> its module.
COMMANDS: dict[str, ModuleType] = {name: importlib.import_module(f".{name}", __package__) for name in COMMAND_NAMES}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line."""
    parser = CommandParser(prog="dimple-hf", description="Dimple, a discrete-diffusion vision-language model.")
    parser.add_argument("--version", action=VersionAction)
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
        `int`: Exit status, see [`run_command`].
    """
    return run_command(build_parser().parse_args(arguments))


def run_command(args: argparse.Namespace) -> int:
    """
    Runs a sub-command whose arguments have been read.

    Args:
        args (`argparse.Namespace`):
            What [`build_parser`] returned for a command line.

    Returns:
        `int`: Exit status: the command's own; 1 after an error that the user can mend; 130 after Ctrl-C. The error
        and what an unfinished run leaves went to stderr, one line each.
    """
    module = COMMANDS[args.command]
    try:
        status = module.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what the interpreter flushes at its end
        return 128 + 13
    except KeyboardInterrupt:
        _report(args, module, "interrupted")
        return 130
    except ValueError as error:  # what the package refuses
        print(f"dimple-hf {args.command}: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a file that is missing or broken, a full disk, no network
        _report(args, module, str(error))
        return 1
    except Exception as error:
        message = _describe(error)
        _report(args, module, message)
        if message is None:
            raise
        return 1


def _describe(error: Exception) -> str | None:
    """What a library reports of a full memory or disk in an error of its own, on one line; `None` for any other."""
    first_line = str(error).partition("\n")[0]
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for its name
        return f"out of memory: {first_line}"
    if any(sign in first_line for sign in UNWRITTEN):
        return f"a file could not be written, the disk may be full: {first_line}"
    return None


def _report(args: argparse.Namespace, module: ModuleType, message: str | None) -> None:
    """Prints how a command has ended and what it leaves."""
    kept = module.kept(args) if hasattr(module, "kept") else None
    for line in (message, kept):
        if line:
            print(f"dimple-hf {args.command}: {line}", file=sys.stderr)


if __name__ == "__main__":  # `accelerate launch -m dimple_hf.cli.main train RECIPE.yaml`
    sys.exit(main())

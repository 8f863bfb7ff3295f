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
"""The command line's parser, and the arguments that several sub-commands share."""

import argparse
import difflib
import os
from pathlib import Path
from typing import Any, NoReturn

from ..checkpoints import FORMS_CHECKPOINT

#: Suffixes that a misplaced argument is taken for an image by, for a hint.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


class VersionAction(argparse.Action):
    """`--version`: prints the installed version and exits. It is looked up only then."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**(options | {"nargs": 0, "help": "print the version and exit"}))

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Prints the version."""
        from importlib.metadata import version

        parser.exit(message=f"{parser.prog} {version('dimple_hf')}\n")


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses what a sub-command does not take with a hint: the nearest option, or where images go."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but for unknown arguments."""
        known, unknown = super().parse_known_args(args, namespace)
        for argument in unknown:
            if argument.startswith("--"):
                self._refuse_option(argument.split("=", 1)[0])
            if argument.lower().endswith(IMAGE_SUFFIXES) and "--image" in self._option_string_actions:
                self.error(f"unexpected argument {argument}; an image is given by `--image {argument}`")
        return known, unknown

    def _refuse_option(self, option: str) -> NoReturn:
        nearest = difflib.get_close_matches(option, self._option_string_actions, n=1)
        self.error(f"unknown option {option}" + (f"; did you mean {nearest[0]}?" if nearest else ""))


def checkpoint_name(text: str) -> str:
    """
    A directory, or what may be an id on the Hub; for argparse.

    Raises:
        argparse.ArgumentTypeError: If it can be neither.
    """
    if text and Path(text).is_dir():  # an empty path is the current directory
        return text
    if os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"must be a directory or an id on the Hub (got the file {text})")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(f"must be a directory or an id on the Hub (got {text!r})") from error
    return text


def seed_number(text: str) -> int:
    """
    A seed that torch takes; for argparse.

    Raises:
        argparse.ArgumentTypeError: If it is none.
    """
    if not text.isdecimal() or len(text) > 20 or int(text) >= 1 << 64:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**64 - 1 (got {text[:40]!r})")
    return int(text)


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`: a checkpoint, by default the one of the package."""
    parser.add_argument(
        "--model",
        type=checkpoint_name,
        default=str(FORMS_CHECKPOINT),
        help="directory or Hub id of a checkpoint (default: the small one of the package, which reads forms)",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, which [`~dimple_hf.cli.loading.find_device`] reads."""
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: the GPU of this process, or the CPU)")


def default_question(model: str, own: str, other: str) -> str:
    """
    The question of a command that was given none: one that the package's small model was trained on, or one that any
    other understands.

    Args:
        model (`str`):
            The checkpoint.
        own (`str`), other (`str`):
            The question for the package's checkpoint, and for others.

    Returns:
        `str`
    """
    return own if model == str(FORMS_CHECKPOINT) else other

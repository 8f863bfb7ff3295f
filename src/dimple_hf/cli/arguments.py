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
"""The command line's parser, and what several sub-commands take. Imported by `cli.main` and the sub-commands."""

import argparse
import difflib
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..checkpoints import FORMS_CHECKPOINT


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses an unknown option under the sub-command that it was given to, with the nearest name."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but for options that it does not know."""
        known, unknown = super().parse_known_args(args, namespace)
        for argument in unknown:
            if argument.startswith("--"):
                self._refuse_option(argument.split("=", 1)[0])
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
    if Path(text).is_dir():
        return text
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(f"must be a directory or an id on the Hub (got {text!r})") from error
    return text


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`: a checkpoint, by default the one of the package."""
    parser.add_argument(
        "--model",
        type=checkpoint_name,
        default=str(FORMS_CHECKPOINT),
        help="directory or Hub id of a checkpoint (default: the small one of the package, which reads forms)",
    )

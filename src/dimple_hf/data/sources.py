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
"""Where a recipe's rows come from: a file of chats, a saved data set, the Hub, or a function beside the recipe.

Everything that can be missing is found by `check`, which loads no data. Imported by `recipe` and `run`.
"""

import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk

from ..modeling.generation_config_dimple import nearest_name

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class JsonLines:
    """
    Rows of a JSON Lines file, one JSON object a line, read when they are asked for.

    A row without an `id` gets one that says where it stands, so that an error about the row finds it.

    Args:
        path (`Path`):
            The file, UTF-8. Empty lines are skipped.

    Raises:
        ValueError: If the file has no rows; when a row is read, if it is not a JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        offsets, numbers = [], []
        with open(path, "rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if line.strip():
                    offsets.append(offset)
                    numbers.append(number)
                offset += len(line)
        if not offsets:
            raise ValueError(f"{path} must hold at least one row (got none)")
        # Arrays, because loading processes share their pages; a list of numbers would be copied into each.
        self._offsets = np.array(offsets)
        self._line_numbers = np.array(numbers)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        position = f"{self.path.name}:{self._line_numbers[index]}"
        try:
            row = json.loads(line)
        except ValueError as error:  # also of bytes that are not UTF-8
            raise ValueError(f"{position} must be a JSON object (got an error: {error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{position} must be a JSON object (got {type(row).__name__})")
        return {"id": position} | row


@dataclass(frozen=True)
class Source:
    """
    Where rows come from.

    Args:
        location (`str`):
            - `FILE.jsonl`: a chat on each line;
            - `DIRECTORY`: what `datasets` saved with `save_to_disk`;
            - `module:function`: a function, of a module in the recipe's folder or an installed one, that returns rows;
            - `OWNER/NAME`: a data set on the Hub.

            Paths are relative to the current directory.
        split (`str`, *optional*):
            Which split of a saved data set (if it has several) or of the Hub's (`"train"` by default).
        arguments (`dict[str, Any]`):
            Keyword arguments of the function.
    """

    location: str
    split: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`"file"`, `"directory"`, `"function"` or `"hub"`."""
        if Path(self.location).is_dir():
            return "directory"
        if self.location.endswith((".jsonl", ".json")) or Path(self.location).is_file():
            return "file"
        if _FUNCTION.fullmatch(self.location):
            return "function"
        return "hub"

    def check(self, recipe_dir: Path) -> None:
        """
        Refuses a source that is not there, as far as can be told without loading data (or asking the Hub).

        Args:
            recipe_dir (`Path`):
                Folder in which a function's module is looked for first.

        Raises:
            ValueError: If the file, directory, module or function is missing, is no data, or gets arguments that it
                does not take.
        """
        kind = self.kind
        if kind == "file":
            if not Path(self.location).is_file():
                raise ValueError(f"{self.location} must be a file (got none there)")
            if not self.location.endswith(".jsonl"):
                raise ValueError(f"{self.location} must be a .jsonl file with one chat on each line")
        elif kind == "function":
            self._check_arguments(self._function(recipe_dir))
        elif kind == "directory":
            names = ("dataset_info.json", "dataset_dict.json")
            if not any((Path(self.location) / name).is_file() for name in names):
                raise ValueError(f"{self.location} must hold a data set saved by `save_to_disk` (got no {names[0]})")
        elif not _HUB_ID.fullmatch(self.location):
            raise ValueError(
                "data must be a .jsonl file, a directory, 'module:function' or a Hub id 'owner/name' "
                f"(got {self.location!r}, where there is nothing)"
            )
        if self.arguments and kind != "function":
            raise ValueError(f"`arguments` must only be given to a function (got a {kind}, {self.location})")
        if self.split is not None and kind in ("function", "file"):
            raise ValueError(f"`split` must only be given for a data set (got a {kind}, {self.location})")

    def load(self, recipe_dir: Path) -> Any:
        """
        Args:
            recipe_dir (`Path`):
                Folder in which a function's module is looked for first.

        Returns:
            Rows: something with `len` and integer indices, whose entries [`DimpleDataCollator`] takes.

        Raises:
            ValueError: If the data set has several splits and none is chosen, or its length is not known.
        """
        if self.kind == "file":
            return JsonLines(Path(self.location))
        if self.kind == "function":
            rows = self._function(recipe_dir)(**self.arguments)
        elif self.kind == "directory":
            rows = load_from_disk(self.location)
        else:
            rows = load_dataset(self.location, split=self.split or "train")
        if isinstance(rows, DatasetDict):
            rows = self._choose_split(rows)
        if isinstance(rows, IterableDataset) or not isinstance(rows, Sized) or not hasattr(rows, "__getitem__"):
            raise ValueError(
                f"{self.location} must give rows that can be counted and indexed, so that an interrupted run can go "
                f"on (got {type(rows).__name__})"
            )
        if not len(rows):
            raise ValueError(f"{self.location} must give at least one row (got none)")
        return rows

    def _choose_split(self, rows: DatasetDict) -> Dataset:
        if self.split is None or self.split not in rows:
            raise ValueError(f"`split` must be one of {', '.join(rows)} for {self.location} (got {self.split!r})")
        return rows[self.split]

    def _function(self, recipe_dir: Path) -> Callable[..., Any]:
        module_name, _, name = self.location.partition(":")
        # For the whole run: the module imports its siblings whenever it likes, also in loading processes.
        if str(recipe_dir) not in sys.path:
            sys.path.insert(0, str(recipe_dir))
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{self.location} must name a module in {recipe_dir} or an installed one (got an error: {error})"
            ) from error
        function = vars(module).get(name)
        if not callable(function):
            known = [key for key, value in vars(module).items() if callable(value)]
            raise ValueError(f"{module_name} must have a function {name}{nearest_name(name, known)}")
        return function

    def _check_arguments(self, function: Callable[..., Any]) -> None:
        try:
            inspect.signature(function).bind(**self.arguments)
        except TypeError as error:
            raise ValueError(f"`arguments` must be those of {self.location} (got an error: {error})") from error


def read_source(value: str | Mapping[str, Any]) -> Source:
    """
    Args:
        value (`str` or `Mapping[str, Any]`):
            A location, or the fields of a [`Source`], which the caller has checked by name.

    Returns:
        [`Source`]

    Raises:
        ValueError: If a field is of another type.
    """
    if isinstance(value, str):
        return Source(value)
    source = Source(**value)
    for name, wanted in (("location", str), ("split", (str, type(None))), ("arguments", dict)):
        if not isinstance(getattr(source, name), wanted):
            raise ValueError(f"`{name}` must be {'a mapping' if wanted is dict else 'text'} (got {value[name]!r})")
    return source

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
"""Sources of a recipe's examples: a file, a folder of images, a saved data set, the Hub, or a function.

Everything that can be missing is found by `check`, which loads no data. An example that cannot be read, such as a
broken line, becomes one that the collator finds bad, so that it is named, or skipped, like any other.
"""

import csv
import importlib
import inspect
import json
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Image, IterableDataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.errors import HfHubHTTPError

from ..modeling.generation_config_dimple import nearest_name
from .examples import READ_ERROR
from .images import describe_no_data

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


#: What `save_to_disk` writes, of a data set and of several splits.
SAVED_NAMES = ("dataset_info.json", "dataset_dict.json")

#: What tells of the images of an ImageFolder.
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

#: What UTF-16 begins with, as Windows writes it.
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

#: Longest cell of a CSV file: an image as base64 is longer than the 128 KiB of Python's default.
MAX_CELL = (1 << 31) - 1

#: The name of cells beyond the columns of a CSV file.
SURPLUS_CELLS = "surplus cells"

#: Seconds that the Hub has to answer whether it is there.
HUB_TIMEOUT = 5


class JsonLines:
    """
    Examples of a JSON Lines file, one JSON object a line, read when they are indexed.

    One without an `id` gets its file and line, so that an error about it finds it.

    Args:
        path (`Path`):
            The file, UTF-8. Empty lines are skipped.

    Raises:
        ValueError: If the file has no examples or is in UTF-16; when one is read, if it is not a JSON object.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        offsets, numbers = [], []
        with open(path, "rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith(UTF16_MARKS):
                    raise ValueError(f"{path} must be in UTF-8 (got UTF-16)")
                if line.strip():
                    offsets.append(offset)
                    numbers.append(number)
                offset += len(line)
        if not offsets:
            raise ValueError(f"{path} must hold at least one example (got none)")
        # Arrays, because loading processes share their pages; a list of numbers would be copied into each.
        self._offsets = np.array(offsets)
        self._line_numbers = np.array(numbers)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        location = f"{self.path.name}:{self._line_numbers[index]}"
        try:
            example = json.loads(line)
        except ValueError as error:  # also of bytes that are not UTF-8
            raise ValueError(f"{location} must be a JSON object (got an error: {error})") from error
        if not isinstance(example, dict):
            raise ValueError(f"{location} must be a JSON object (got {type(example).__name__})")
        return with_id(example, location)


class Examples:
    """
    Examples that are always read: a reason instead of one that cannot be ([`READ_ERROR`]), other columns' names, and
    an `id` for each.

    Args:
        examples:
            Something with `len` and integer indices.
        name (`str`):
            What their ids begin with.
        columns (`Mapping[str, str]`):
            From the name that [`read_example`] reads to the column that holds it.
    """

    def __init__(self, examples: Any, name: str, columns: Mapping[str, str]) -> None:
        self.examples = examples
        self.name = name
        self.columns = columns

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= len(self):
            raise IndexError(index)  # ends a loop over the examples; all other errors are an example's
        location = f"{self.name}[{index}]"
        try:
            example = self.examples[index]
        except Exception as error:  # whatever a file, a decoder or a user's function raises
            return {"id": location, READ_ERROR: f"it must be readable (got {type(error).__name__}: {error})"}
        if not isinstance(example, Mapping):
            return {"id": location, READ_ERROR: f"it must be a mapping (got {type(example).__name__})"}
        return with_id(rename_columns(example, self.columns), location)


def with_id(example: Mapping[str, Any], location: str) -> dict[str, Any]:
    """An example with its `id`, or where it stands instead of one that is missing or `None`."""
    return {"id": location} | {name: value for name, value in example.items() if name != "id" or value is not None}


def rename_columns(example: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Gives columns the names that [`read_example`] reads; one that is not there is a [`READ_ERROR`]."""
    missing = [column for column in columns.values() if column not in example]
    if missing:
        return {READ_ERROR: f"`columns` must name columns (got {', '.join(missing)}; there are {', '.join(example)})"}
    renamed = {name: example[column] for name, column in columns.items()}
    return {name: value for name, value in example.items() if name not in columns.values()} | renamed


@dataclass(frozen=True)
class Source:
    """
    Where examples come from.

    Args:
        location (`str`):
            - `FILE.jsonl`: one example on each line; `FILE.json`: a list of them; `FILE.csv`, `FILE.tsv` and
              `FILE.parquet`;
            - `DIRECTORY`: what `datasets` saved with `save_to_disk`, or images with a `metadata.csv`, `metadata.jsonl`
              or `metadata.parquet` (an ImageFolder);
            - `module:function`: a function, of a module in the recipe's folder or an installed one, that returns
              examples;
            - `OWNER/NAME`: a data set on the Hub.

            Paths are relative to the current directory.
        split (`str`, *optional*):
            Which split of a saved data set (if it has several) or of the Hub's (`"train"` by default).
        columns (`dict[str, str]`):
            For examples whose columns have other names: from a name that [`read_example`] reads to the column's, such
            as `{"prompt": "question", "completion": "answer"}`.
        streaming (`bool`, defaults to `False`):
            Whether a data set of the Hub is read as it is trained on, without a length. An interrupted run then reads
            it again up to where it was.
        arguments (`dict[str, Any]`):
            Keyword arguments of the function.
    """

    location: str
    split: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    streaming: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """`"file"`, `"directory"`, `"function"` or `"hub"`."""
        if self.location and Path(self.location).is_dir():  # an empty path is the current directory
            return "directory"
        if self._suffix in FILE_SUFFIXES or Path(self.location).is_file():
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
            other = describe_no_data(self.location)
            if self._suffix not in FILE_SUFFIXES or other is not None:
                found = f" (got {other})" if other else ""
                raise ValueError(f"{self.location} must be a file of {', '.join(FILE_SUFFIXES)}{found}")
        elif kind == "function":
            self._check_arguments(self._function(recipe_dir))
        elif kind == "directory":
            if not _is_saved(self.location) and not self._is_image_folder:
                raise ValueError(
                    f"{self.location} must hold a data set saved by `save_to_disk`, or images with their metadata "
                    f"(got no {SAVED_NAMES[0]}, and no {', '.join(METADATA_NAMES)})"
                )
        elif not _HUB_ID.fullmatch(self.location):
            raise ValueError(
                f"data must be a file ({', '.join(FILE_SUFFIXES)}), a directory, 'module:function' or a Hub id "
                "'owner/name' "
                f"(got {self.location!r}, where there is nothing)"
            )
        if self.arguments and kind != "function":
            raise ValueError(f"`arguments` must only be given to a function (got a {kind}, {self.location})")
        if self.split is not None and kind in ("function", "file"):
            raise ValueError(f"`split` must only be given for a data set (got a {kind}, {self.location})")
        if self.streaming and kind != "hub":
            raise ValueError(f"`streaming` must only be given for a Hub data set (got a {kind}, {self.location})")

    def load(self, recipe_dir: Path) -> Any:
        """
        Args:
            recipe_dir (`Path`):
                Folder in which a function's module is looked for first.

        Returns:
            [`Examples`], or an `IterableDataset` with `streaming`: what [`DimpleDataCollator`] takes.

        Raises:
            ValueError: If the data set has several splits and none is chosen, its length is not known, or its files
                cannot be read.
        """
        with _readable(self.location):
            examples = self._load_examples(recipe_dir)
        if isinstance(examples, DatasetDict):
            examples = _choose_split(examples, self.split, self.location)
        if isinstance(examples, (Dataset, IterableDataset)):
            examples = _undecoded(examples)
        if self.streaming:
            return examples.rename_columns({column: name for name, column in self.columns.items()})
        if (
            isinstance(examples, IterableDataset)
            or not isinstance(examples, Sized)
            or not hasattr(examples, "__getitem__")
        ):
            raise ValueError(
                f"{self.location} must give examples that can be counted and indexed, so that an interrupted run can "
                f"go on (got {type(examples).__name__})"
            )
        if not len(examples):
            raise ValueError(f"{self.location} must give at least one example (got none)")
        name = Path(self.location).name if self.kind == "file" else self.location
        return Examples(examples, name, self.columns)

    def _load_examples(self, recipe_dir: Path) -> Any:
        if self.kind == "function":
            return self._function(recipe_dir)(**self.arguments)
        if self.kind == "hub":
            options = {"streaming": True} if self.streaming else {}
            return load_named_dataset(self.location, self.split or "train", **options)
        if self.kind == "directory":
            if self._is_image_folder:
                return load_dataset("imagefolder", data_dir=self.location, split=self.split or "train")
            return load_from_disk(self.location)
        return _FILE_READERS[self._suffix](Path(self.location))

    @property
    def _suffix(self) -> str:
        return Path(self.location).suffix.lower()

    @property
    def _is_image_folder(self) -> bool:
        return any(path.name in METADATA_NAMES for path in Path(self.location).glob("**/metadata.*"))

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


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns what `datasets` raises of files that it cannot read into a `ValueError` that names them."""
    try:
        yield
    except DatasetGenerationError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"{name} must be readable (got an error: {reason})") from error


def load_named_dataset(name: str, split: str, **options: Any) -> Any:
    """
    `datasets.load_dataset`, which takes no data set saved by `save_to_disk` and would try a Hub that cannot be reached
    for half a minute.

    Args:
        name (`str`):
            Directory, or data set on the Hub.
        split (`str`):
            Its split; ignored for a saved data set without splits.
        **options:
            As for `load_dataset`.

    Returns:
        `Dataset` or `IterableDataset`

    Raises:
        ValueError: If `name` is empty or a file, there is no such split, or its files cannot be read.
        OSError: If the Hub cannot be reached and the cache has no such data set.
    """
    if not name or Path(name).is_file():
        other = describe_no_data(name) if name else None
        found = f"{name!r}, {other}" if other else repr(name)
        raise ValueError(f"a data set must be a directory or a Hub id (got {found})")
    if _is_saved(name):
        saved = load_from_disk(name)
        return _choose_split(saved, split, name) if isinstance(saved, DatasetDict) else saved
    if Path(name).exists():
        with _readable(name):
            return load_dataset(name, split=split, **options)
    try:
        url = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset")
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except HfHubHTTPError:  # it is reached; what is wrong with the data set is not told by its README
        pass
    except Exception:  # of the HTTP library, which is not the same in all versions of huggingface_hub
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        with _readable(name):
            return load_dataset(name, split=split, **options)
    except ConnectionError as error:
        raise OSError(
            f"{name} must be a directory, or a data set in the cache while the Hub cannot be reached (got neither)"
        ) from error


def _is_saved(folder: str) -> bool:
    """Whether `datasets` has saved what is in a folder."""
    return any((Path(folder) / name).is_file() for name in SAVED_NAMES)


def _choose_split(splits: DatasetDict, split: str | None, location: str) -> Dataset:
    if split is None or split not in splits:
        raise ValueError(f"`split` must be one of {', '.join(splits)} for {location} (got {split!r})")
    return splits[split]


def _undecoded(examples: Any) -> Any:
    """Leaves images as bytes and paths, for the collator to open: so that a damaged one is that example's fault."""
    for name, feature in (examples.features or {}).items():
        if isinstance(feature, Image):
            examples = examples.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image):
            examples = examples.cast_column(name, type(feature)(Image(decode=False)))
    return examples


def _read_json(path: Path) -> list[Any]:
    """A list of examples, or the list that is the only one in an object, as some tools write it."""
    try:
        examples = json.loads(path.read_bytes())  # of bytes, as Windows writes a byte order mark
    except (ValueError, RecursionError) as error:
        hint = "; a file with an object on each line is named .jsonl" if str(error).startswith("Extra data") else ""
        raise ValueError(f"{path} must be JSON (got an error: {error}{hint})") from error
    if isinstance(examples, dict) and len(examples) == 1:
        examples = next(iter(examples.values()))
    if not isinstance(examples, list):
        raise ValueError(f"{path} must hold a list of examples (got {type(examples).__name__})")
    return examples


def _read_csv(path: Path, delimiter: str = ",") -> list[dict[str, Any]]:
    csv.field_size_limit(MAX_CELL)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel writes a byte order mark
            reader = csv.DictReader(file, restkey=SURPLUS_CELLS, delimiter=delimiter, strict=True)
            names = list(reader.fieldnames or ())
            _check_columns(path, [name for name in names if name])  # Excel leaves columns without a name at the end
            if len(names) == 1 and any(other in names[0] for other in ",;\t" if other != delimiter):
                wanted = "commas" if delimiter == "," else "tabs"
                raise ValueError(f"{path} must have {wanted} between its columns (got the header {names[0]!r})")
            examples = [example for example in reader if any(example.values())]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be in UTF-8 (got an error: {error})") from error
    except csv.Error as error:  # as of a quotation mark that is never closed: all rows after it would be one cell
        line = reader.line_num + 1
        raise ValueError(
            f"{path} must be CSV (got an error in the row that begins in line {line}: {error})"
        ) from error
    for example in examples:
        if SURPLUS_CELLS in example:  # as of a text with commas that is not quoted: its end would be lost
            surplus = reprlib.repr(example.pop(SURPLUS_CELLS))
            example[READ_ERROR] = f"it must have a column for each cell (got {surplus} beyond)"
    return [{name: value or None for name, value in example.items()} for example in examples]


def _read_tsv(path: Path) -> list[dict[str, Any]]:
    return _read_csv(path, delimiter="\t")


def _read_parquet(path: Path) -> Dataset | list[Any]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except ValueError as error:
        raise ValueError(f"{path} must be a Parquet file (got an error: {error})") from error
    with file:
        _check_columns(path, file.schema_arrow.names)
        if not file.metadata.num_rows:
            return []
    return Dataset.from_parquet(str(path), cache_dir=None)


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuses two columns of one name, of which only the last would be read."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path} must have columns of different names (got {', '.join(repeated)} more than once)")


_FILE_READERS: dict[str, Callable[[Path], Any]] = {
    ".jsonl": JsonLines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}

FILE_SUFFIXES = tuple(_FILE_READERS)


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
    for names, kind, wanted in (
        (("location", "split"), "text", (str, type(None))),
        (("arguments", "columns"), "a mapping", (dict,)),
        (("streaming",), "true or false", (bool,)),
    ):
        for name in names:
            if not isinstance(getattr(source, name), wanted):
                raise ValueError(f"`{name}` must be {kind} (got {value[name]!r})")
    for column in (*source.columns, *source.columns.values()):
        if not isinstance(column, str):
            raise ValueError(f"`columns` must be names of columns (got {column!r})")
    return source

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
"""The lines of one output: appended by many processes, resumed after an interruption, merged at the end.

```text
answers.jsonl.settings.json              what the run was begun with; stays
answers.jsonl.part-00001-of-00002.1      lines of process 0 of 2, first start
answers.jsonl.part-00002-of-00002.1
answers.jsonl.part-00001-of-00003.1      the same run, gone on with on 3 processes
answers.jsonl                            all lines in order, once every key has one; the parts go
```

Every start appends to a file of its own and no file is ever opened again for writing, so processes need no locks, a
line that was cut off stays the last of its file, and what is written is never touched.
"""

import json
import os
import stat
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Protocol, TypeGuard

from ..data.whole_file import whole_file

#: Names of standard output instead of a file.
STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")

#: What names the row of a line: its number in the data, or the source of its image.
Key = int | str


class Position(NamedTuple):
    """Where a line is (the file and the byte that it begins at), whether it is an error, and what it is about."""

    path: Path
    offset: int
    is_error: bool
    digest: str | None


class Part(Protocol):
    """What lines are appended to. A context manager."""

    def __enter__(self) -> "Part": ...

    def __exit__(self, *exception: Any) -> None: ...

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes `lines`."""


class Results(Protocol):
    """Where the lines of a run go: [`ResultFiles`], or [`ResultStream`] where nothing can be read back."""

    in_order: bool

    def find_lines(self) -> dict[Key, Position]:
        """Key -> its line, for the keys that have one."""

    def new_part(self, rank: int, num_processes: int) -> Part:
        """What one process writes its lines to."""

    def merge(self) -> dict[Key, Position]:
        """Puts the lines together where all are there; returns them."""


class ResultFiles:
    """
    The files of one output.

    Args:
        output (`Path`):
            The file that all lines come into at the end.
        keys (`range` or `Sequence[str]`):
            The key of each row, in the order of the lines: every key gets one line. Where keys are texts, lines of
            other keys may be there already, and stay.
        settings (`Mapping[str, Any]`):
            What the answers depend on, as JSON can hold it. A run that was begun with other settings is not gone on
            with.
        key_name (`str`, *optional*, defaults to `"row"`):
            The field of a line that holds its key.

    Raises:
        ValueError: If there are files of another run, or of another program.
    """

    in_order = False

    def __init__(self, output: Path, keys: Sequence[Key], settings: Mapping[str, Any], key_name: str = "row") -> None:
        self.output = output
        self.keys = keys
        self.key_name = key_name
        self.settings_file = output.with_name(f"{output.name}.settings.json")
        self._part_prefix = f"{output.name}.part-"
        self._merge_prefix = f"{output.name}.merging-"
        self.settings = dict(settings)
        self._check_settings()

    def find_lines(self) -> dict[Key, Position]:
        """
        Returns:
            `dict[int | str, Position]`: Key -> its line, for the keys that have one, in the order of the files. These
            may include keys of earlier runs over other data. The first answer of a key stays, and replaces errors.

        Raises:
            ValueError: If a file holds what this class has not written.
        """
        while True:
            paths = self._files()
            try:
                return self._find_lines(paths)
            except FileNotFoundError:
                continue  # another process has just put the parts together; the next list names none that is gone

    def new_part(self, rank: int, num_processes: int) -> "PartFile":
        """
        Args:
            rank (`int`), num_processes (`int`):
                Which of how many processes will write it.

        Returns:
            [`PartFile`]: A file that did not exist before.
        """
        stem = f"{self._part_prefix}{rank + 1:05d}-of-{num_processes:05d}"
        if not self.settings_file.exists():
            self._write_settings()
        start = 1
        while True:
            try:
                return PartFile(self.output.with_name(f"{stem}.{start}"))
            except FileExistsError:
                start += 1

    def merge(self) -> dict[Key, Position]:
        """
        Puts all lines together, in the order of the keys, if every key has one; lines of other keys come first. Any
        process may call it at any time, several at once, too: as soon as every key has a line, all of them would
        write the same file, and whatever a process may still write is there already.

        Returns:
            `dict[int | str, Position]`: As [`~ResultFiles.find_lines`]; where the lines were found.
        """
        lines = self.find_lines()
        if not all(key in lines for key in self.keys):
            return lines
        own = set(self.keys)
        order = [*(key for key in lines if key not in own), *self.keys]
        if any(position.path != self.output for position in lines.values()):
            # Under a name of its own, as two processes may be here at once.
            try:
                merged = self.output.with_name(f"{self._merge_prefix}{uuid.uuid4().hex}")
                with whole_file(self.output, merged) as file:
                    _copy_lines([lines[key] for key in order], file)
            except FileNotFoundError:
                return self.find_lines()  # the other one has finished, and removed what this one needs
        for path in [*self._named(self._part_prefix), *self._named(self._merge_prefix)]:
            path.unlink(missing_ok=True)
        return lines

    def _named(self, prefix: str) -> list[Path]:
        return sorted(path for path in self.output.parent.iterdir() if path.name.startswith(prefix))

    def _files(self) -> list[Path]:
        # The parts first: they are removed when the output is there, so that one of the two is always seen.
        parts = self._named(self._part_prefix)
        return [*([self.output] if self.output.exists() else []), *parts]

    def _find_lines(self, paths: Sequence[Path]) -> dict[Key, Position]:
        lines: dict[Key, Position] = {}
        for path in paths:
            for offset, line in whole_lines(path):
                key = line.get(self.key_name)
                if not self._is_key(key):
                    raise ValueError(f"{path} must hold lines with {self._keys_in_words()} (got {key!r})")
                position = Position(path, offset, "error" in line, line.get("digest"))
                # A process that outlived its run may have answered a row once more.
                if key not in lines or lines[key].is_error:
                    lines[key] = position
        return lines

    def _is_key(self, key: Any) -> TypeGuard[Key]:
        return type(key) is int and key in self.keys if isinstance(self.keys, range) else type(key) is str

    def _keys_in_words(self) -> str:
        return f"a `{self.key_name}`" + (f" below {len(self.keys)}" if isinstance(self.keys, range) else "")

    def _check_settings(self) -> None:
        begun = self._files()
        if self.settings_file.exists():
            earlier = _read_settings(self.settings_file)
            for name in sorted(earlier.keys() | self.settings.keys()):
                if earlier.get(name) != self.settings.get(name):
                    raise ValueError(
                        f"`--output` must be a new file for other settings: {self.output} was begun with "
                        f"{name}={earlier.get(name)!r} (got {self.settings.get(name)!r})"
                    )
        elif begun:
            raise ValueError(
                f"`--output` must be a new file, or one that was begun by this command (got {begun[0]}, without "
                f"{self.settings_file.name})"
            )

    def _write_settings(self) -> None:
        """Notes the settings; several processes may do so at once, as theirs are the same."""
        temporary = self.settings_file.with_name(f"{self.settings_file.name}.{uuid.uuid4().hex}")
        with whole_file(self.settings_file, temporary) as file:
            file.write(json.dumps(self.settings, indent=2, ensure_ascii=False).encode() + b"\n")


class PartFile:
    """
    Lines of one process, each flushed to the system as it is written. A context manager.

    Args:
        path (`Path`):
            The file, which must not exist.

    Raises:
        FileExistsError: If it does.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("xb", buffering=0)

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes `lines` (`Iterable[Mapping[str, Any]]`)."""
        data = memoryview(b"".join(encode_line(line) for line in lines))
        while data:  # a disk that is about to be full takes a part, and refuses the rest with the next write
            data = data[self._file.write(data) :]


class ResultStream:
    """
    Lines that go to standard output, a pipe or a device, in the order of the rows. Nothing is read back, so that an
    interrupted run starts again.

    Args:
        file (`BinaryIO`):
            Where they go.
    """

    in_order = True

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines: dict[Key, Position] = {}

    def __enter__(self) -> "ResultStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()

    def find_lines(self) -> dict[Key, Position]:
        """Returns the lines that this process has written; their positions mean nothing."""
        return self._lines

    def new_part(self, rank: int, num_processes: int) -> "ResultStream":
        """Returns this object."""
        return self

    def merge(self) -> dict[Key, Position]:
        """As `find_lines`."""
        return self._lines

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes `lines` (`Iterable[Mapping[str, Any]]`), whose first field is their key."""
        for line in lines:
            self._file.write(encode_line(line))
            key = next(iter(line.values()))
            self._lines[key] = Position(Path("-"), 0, "error" in line, None)
        self._file.flush()


def open_results(
    output: Path | None, keys: Sequence[Key], settings: Mapping[str, Any], key_name: str = "row"
) -> Results:
    """
    Args:
        output (`Path`, *optional*):
            A file, or `-` (the default), `/dev/stdout`, a named pipe or a device for lines that are not kept.
        keys (`Sequence[int | str]`), settings (`Mapping[str, Any]`), key_name (`str`, *optional*):
            As for [`ResultFiles`].

    Returns:
        [`ResultFiles`] or [`ResultStream`].

    Raises:
        ValueError: If the output is a folder, lies in none or in a read-only one, or belongs to another run or
            program.
    """
    if output is None or str(output) in STANDARD_OUTPUT:
        return ResultStream(sys.stdout.buffer)
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ValueError(f"`--output` must be a file in a folder that exists (got {output})")
    if not os.access(output.absolute().parent, os.W_OK):  # now, not when the first rows are answered
        raise ValueError(f"`--output` must be a file in a folder that can be written to (got {output})")
    if output.exists() and not stat.S_ISREG(output.stat().st_mode):
        return ResultStream(output.open("ab"))
    return ResultFiles(output, keys, settings, key_name)


def describe_kept(output: Path | None) -> str | None:
    """
    Args:
        output (`Path`, *optional*):
            The output of a run that has ended early.

    Returns:
        `str`, *optional*: What it has left and how to go on, in a line; `None` where it has left nothing.
    """
    if output is None or not output.absolute().parent.is_dir():
        return None
    parts = [path for path in output.absolute().parent.iterdir() if path.name.startswith(f"{output.name}.part-")]
    if not parts:
        return None
    num_lines = sum(path.read_bytes().count(b"\n") for path in parts)
    return (
        f"{num_lines} line{' of this run is' if num_lines == 1 else 's of this run are'} kept in {output}.part-*; "
        "the same command goes on from there"
    )


def encode_line(line: Mapping[str, Any]) -> bytes:
    """
    Args:
        line (`Mapping[str, Any]`):
            What to write. Values that JSON has no form for, such as dates, are written as text.

    Returns:
        `bytes`: One line of JSON with its end, in UTF-8.
    """
    try:
        return json.dumps(line, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:  # half characters, which an `id` may hold, have a spelling in ASCII only
        return json.dumps(line, default=str).encode() + b"\n"


def whole_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """
    Reads a file of lines, but for a last one that was cut off.

    Args:
        path (`Path`):
            The file.

    Returns:
        `Iterator[tuple[int, dict[str, Any]]]`: The byte that each line begins at, and what it holds.

    Raises:
        ValueError: If a line is not a JSON object.
    """
    offset = 0
    with path.open("rb") as file:
        for number, data in enumerate(file, start=1):
            if not data.endswith(b"\n"):
                return
            try:
                line = json.loads(data)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number} must be a JSON object (got an error: {error})") from error
            if not isinstance(line, dict):
                raise ValueError(f"{path}:{number} must be a JSON object (got {type(line).__name__})")
            yield offset, line
            offset += len(data)


def _read_settings(path: Path) -> dict[str, Any]:
    """What [`ResultFiles`] has noted; a `ValueError` that names the file where it holds something else."""
    try:
        settings = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be the settings of a run, in JSON (got an error: {error})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be the settings of a run, a JSON object (got {type(settings).__name__})")
    return settings


def _copy_lines(positions: Sequence[Position], target: BinaryIO) -> None:
    """Writes the lines at `positions` one after the other."""
    files = {path: path.open("rb") for path in {position.path for position in positions}}
    try:
        for position in positions:
            files[position.path].seek(position.offset)
            target.write(files[position.path].readline())
    finally:
        for file in files.values():
            file.close()

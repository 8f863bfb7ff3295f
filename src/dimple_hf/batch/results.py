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
"""The lines of one output: appended by many processes, resumed after any of them was killed, put together at the end.

```text
answers.jsonl.settings.json              what the run was begun with; stays
answers.jsonl.part-00001-of-00002.1      lines of process 0 of 2, first start
answers.jsonl.part-00002-of-00002.1
answers.jsonl.part-00001-of-00003.1      the same run, gone on with on 3 processes
answers.jsonl                            all lines in row order, once every row has one; the parts go
```

Every start appends to a file of its own and no file is ever opened again for writing, so processes need no locks, a
line that was cut off stays the last of its file, and what is written is never touched. Imported by `run` and the
commands `batch` and `extract`.
"""

import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple


class Position(NamedTuple):
    """Where a row's line is: the file, the byte that it begins at, and whether it is an error."""

    path: Path
    offset: int
    is_error: bool


class ResultFiles:
    """
    The files of one output.

    Args:
        output (`Path`):
            The file that all lines come into at the end.
        num_rows (`int`):
            Rows of the data set; each gets one line.
        settings (`Mapping[str, Any]`):
            What the answers depend on, as JSON can hold it. A run that was begun with other settings is not gone on
            with.

    Raises:
        ValueError: If there are files of another run.
    """

    def __init__(self, output: Path, num_rows: int, settings: Mapping[str, Any]) -> None:
        self.output = output
        self.num_rows = num_rows
        self.settings_file = output.with_name(f"{output.name}.settings.json")
        self._part_prefix = f"{output.name}.part-"
        self._merge_prefix = f"{output.name}.merging-"
        self.settings = dict(settings) | {"rows": num_rows}
        self._check_settings()

    def find_lines(self) -> dict[int, Position]:
        """
        Returns:
            `dict[int, Position]`: Row -> its line, for the rows that have one.

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

    def merge(self) -> dict[int, Position]:
        """
        Puts all lines together, in the order of the rows, if every row has one. Any process may call it at any time,
        several at once, too: as soon as every row has a line, all of them would write the same file, and whatever a
        process may still write is there already.

        Returns:
            `dict[int, Position]`: As [`~ResultFiles.find_lines`]; where the lines were found.
        """
        lines = self.find_lines()
        if len(lines) < self.num_rows:
            return lines
        if any(position.path != self.output for position in lines.values()):
            # Under a name of its own, as two processes may be here at once.
            unfinished = self.output.with_name(f"{self._merge_prefix}{uuid.uuid4().hex}")
            try:
                _copy_lines([lines[row] for row in range(self.num_rows)], unfinished)
                os.replace(unfinished, self.output)
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

    def _find_lines(self, paths: Sequence[Path]) -> dict[int, Position]:
        lines: dict[int, Position] = {}
        for path in paths:
            for offset, line in whole_lines(path):
                row = line.get("row")
                if type(row) is not int or not 0 <= row < self.num_rows:
                    raise ValueError(f"{path} must hold lines with a `row` below {self.num_rows} (got {row!r})")
                # The first one stays: a process that outlived its run may have answered a row once more.
                lines.setdefault(row, Position(path, offset, "error" in line))
        return lines

    def _check_settings(self) -> None:
        begun = self._files()
        if self.settings_file.exists():
            known = json.loads(self.settings_file.read_text(encoding="utf-8"))
            for name in sorted(known.keys() | self.settings.keys()):
                if known.get(name) != self.settings.get(name):
                    raise ValueError(
                        f"`--output` must be a new file for other settings: {self.output} was begun with "
                        f"{name}={known.get(name)!r} (got {self.settings.get(name)!r})"
                    )
        elif begun:
            raise ValueError(
                f"`--output` must be a new file, or one that was begun by this command (got {begun[0]}, without "
                f"{self.settings_file.name})"
            )

    def _write_settings(self) -> None:
        """Notes the settings; several processes may do so at once, as theirs are the same."""
        unfinished = self.settings_file.with_name(f"{self.settings_file.name}.{uuid.uuid4().hex}")
        unfinished.write_text(json.dumps(self.settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(unfinished, self.settings_file)


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
        self._file = path.open("xb")

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes `lines` (`Iterable[Mapping[str, Any]]`)."""
        self._file.write(b"".join(encode_line(line) for line in lines))
        self._file.flush()


def encode_line(line: Mapping[str, Any]) -> bytes:
    """
    Args:
        line (`Mapping[str, Any]`):
            What to write. Values that JSON does not know, such as an `id` that is a date, are written as text.

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
            except ValueError as error:
                raise ValueError(f"{path}:{number} must be a JSON object (got an error: {error})") from error
            if not isinstance(line, dict):
                raise ValueError(f"{path}:{number} must be a JSON object (got {type(line).__name__})")
            yield offset, line
            offset += len(data)


def _copy_lines(positions: Sequence[Position], target: Path) -> None:
    """Writes the lines at `positions` into a new file, whole and on disk when it returns."""
    files = {path: path.open("rb") for path in {position.path for position in positions}}
    try:
        with target.open("wb") as merged:
            for position in positions:
                files[position.path].seek(position.offset)
                merged.write(files[position.path].readline())
            merged.flush()
            os.fsync(merged.fileno())
    finally:
        for file in files.values():
            file.close()

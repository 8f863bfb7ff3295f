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
"""Result files: nothing written is lost, nothing is there twice, whoever was killed and whenever."""

import json
import os
import threading
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from dimple_hf.batch import results as results_module
from dimple_hf.batch.results import PartFile, ResultFiles, encode_line, whole_lines

SETTINGS = {"model": "m", "max_new_tokens": None}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "answers [1].jsonl"  # a name that a pattern would misread


def write(results: ResultFiles, rows: list[int], rank: int = 0, num_processes: int = 1, **fields: Any) -> Path:
    """A process that writes the lines of `rows`; returns its file."""
    with results.new_part(rank, num_processes) as part:
        part.append({"row": row, "answer": f"answer {row}"} | fields for row in rows)
    return Path(part.path)


def rows_in(path: Path) -> list[int]:
    return [line["row"] for _, line in whole_lines(path)]


def test_merge_puts_lines_in_row_order_and_removes_the_parts(output: Path) -> None:
    """Of several processes, and starts with other numbers of processes."""
    results = ResultFiles(output, range(6), SETTINGS)
    write(results, [4, 0], 0, 2)
    write(results, [5, 1], 1, 2)
    assert set(results.merge()) == {0, 1, 4, 5}
    assert not output.exists()  # control: two rows have no line yet
    write(results, [2, 3], 0, 3)
    assert set(results.merge()) == set(range(6))
    assert output.read_text() == "".join(f'{{"row": {row}, "answer": "answer {row}"}}\n' for row in range(6))
    assert sorted(path.name for path in output.parent.iterdir()) == [output.name, f"{output.name}.settings.json"]


def test_new_part_never_touches_an_earlier_one(output: Path) -> None:
    """The second start of a process writes beside what the first one left, torn end and all."""
    results = ResultFiles(output, range(3), SETTINGS)
    first = write(results, [0], 0, 2)
    first.write_bytes(first.read_bytes() + b'{"row": 1, "ans')
    before = first.read_bytes()
    second = write(results, [1], 0, 2)
    assert [first.name, second.name] == [f"{output.name}.part-00001-of-00002.{start}" for start in (1, 2)]
    assert first.read_bytes() == before
    with pytest.raises(FileExistsError):
        PartFile(first)


def test_find_lines_line_that_was_cut_off_is_none(output: Path) -> None:
    """Cut anywhere, even before its last byte alone: a torn line is a row that is not done."""
    results = ResultFiles(output, range(2), SETTINGS)
    part = write(results, [0, 1])
    whole = part.read_bytes()
    assert set(results.find_lines()) == {0, 1}
    first_end = whole.index(b"\n") + 1
    for length in range(len(whole)):
        part.write_bytes(whole[:length])
        assert set(results.find_lines()) == ({0} if length >= first_end else set()), length


def test_merge_row_answered_twice_has_one_line(output: Path) -> None:
    """A process that outlived its run answers on; the first line stays."""
    results = ResultFiles(output, range(2), SETTINGS)
    write(results, [0, 1], 0, 2)
    write(results, [1], 1, 2, answer="again")
    assert results.merge()[1].path.name.endswith(".part-00001-of-00002.1")
    assert output.read_text().count("\n") == 2
    assert "again" not in output.read_text()


def test_merge_killed_before_the_parts_are_removed_is_finished_by_the_next(output: Path) -> None:
    """Output and parts together, and the copy that a process was at when it was killed: only the output stays."""
    results = ResultFiles(output, range(2), SETTINGS)
    part = write(results, [1, 0])
    lines = part.read_bytes()
    results.merge()
    merged, modified = output.read_bytes(), output.stat().st_mtime_ns
    part.write_bytes(lines)
    unfinished = output.with_name(f"{output.name}.merging-elsewhere-1")
    unfinished.write_bytes(lines[:5])
    assert set(ResultFiles(output, range(2), SETTINGS).merge()) == {0, 1}
    assert (output.read_bytes(), output.stat().st_mtime_ns) == (merged, modified)
    assert not part.exists()
    assert not unfinished.exists()


def test_merge_by_many_at_once_gives_one_whole_file(output: Path) -> None:
    """All notice at the same time that every row has a line. Whoever is late finds files gone while it works."""
    num_rows = 200
    for attempt in range(10):
        results = ResultFiles(output, range(num_rows), SETTINGS)
        for rank in range(4):
            write(results, list(range(rank, num_rows, 4)), rank, 4)
        gate, found, errors = threading.Barrier(8), [], []

        def merge(gate: threading.Barrier = gate, found: list = found, errors: list = errors) -> None:
            mine = ResultFiles(output, range(num_rows), SETTINGS)
            gate.wait()
            try:
                found.append(len(mine.merge()))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=merge) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert found == [num_rows] * 8, attempt
        assert rows_in(output) == list(range(num_rows))
        assert len(list(output.parent.iterdir())) == 2
        output.unlink()


def test_merge_finished_by_another_meanwhile_leaves_its_result(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes between the look at the lines and the copy."""
    results = ResultFiles(output, range(2), SETTINGS)
    write(results, [0, 1])
    copy = results_module._copy_lines

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(results_module, "_copy_lines", copy)
        ResultFiles(output, range(2), SETTINGS).merge()
        copy(*arguments)

    monkeypatch.setattr(results_module, "_copy_lines", late)
    lines = results.merge()
    assert {position.path for position in lines.values()} == {output}
    assert rows_in(output) == [0, 1]


def test_line_removed_from_the_output_is_a_row_to_answer(output: Path) -> None:
    """So rows that failed are tried again, and nothing else."""
    results = ResultFiles(output, range(3), SETTINGS)
    write(results, [0, 2])
    with results.new_part(0, 1) as part:
        part.append([{"row": 1, "error": "no such file"}])
    assert results.merge()[1].is_error
    output.write_bytes(b"".join(line for line in output.read_bytes().splitlines(True) if b"error" not in line))
    assert set(results.find_lines()) == {0, 2}
    write(results, [1])
    assert not any(position.is_error for position in results.merge().values())
    assert rows_in(output) == [0, 1, 2]


def test_run_with_other_settings_is_refused(output: Path) -> None:
    """By the name of the setting, before and after the output is whole, and with another number of rows, too."""
    results = ResultFiles(output, range(1), SETTINGS)
    ResultFiles(output, range(2), SETTINGS)  # control: nothing is begun before the first part
    for _ in range(2):
        write(results, [0])
        ResultFiles(output, range(1), SETTINGS)  # control: the same run goes on
        with pytest.raises(ValueError, match=r"begun with max_new_tokens=None \(got 8\)"):
            ResultFiles(output, range(1), SETTINGS | {"max_new_tokens": 8})
        results.merge()


@pytest.mark.parametrize("name", ["{}", "{}.part-00001-of-00001.1"])
def test_files_without_settings_are_refused_and_stay(output: Path, name: str) -> None:
    """What this command did not begin is nothing to go on with, and nothing to write over."""
    foreign = output.with_name(name.format(output.name))
    foreign.write_text('{"row": 0, "answer": "mine"}\n')
    with pytest.raises(ValueError, match="must be a new file, or one that was begun by this command"):
        ResultFiles(output, range(1), SETTINGS)
    assert foreign.read_text() == '{"row": 0, "answer": "mine"}\n'
    assert len(list(output.parent.iterdir())) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no json", r"part-00001-of-00001\.1:1 must be a JSON object \(got an error: "),
        ("[1]", r"part-00001-of-00001\.1:1 must be a JSON object \(got list\)"),
        ('{"row": 2}', r"a `row` below 2 \(got 2\)"),
        ('{"row": -1}', r"a `row` below 2 \(got -1\)"),
        ('{"row": true}', r"a `row` below 2 \(got True\)"),
        ("{}", r"a `row` below 2 \(got None\)"),
    ],
)
def test_line_that_is_none_of_ours_is_refused(output: Path, line: str, message: str) -> None:
    """A damaged file is named, not passed over."""
    results = ResultFiles(output, range(2), SETTINGS)
    write(results, []).write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        results.merge()
    assert not output.exists()


def test_folder_that_goes_away_is_an_error(output: Path, tmp_path: Path) -> None:
    """And not waited for."""
    folder = tmp_path / "inner"
    folder.mkdir()
    results = ResultFiles(folder / "a.jsonl", range(1), SETTINGS)
    os.rmdir(folder)
    with pytest.raises(FileNotFoundError):
        results.find_lines()


def test_encode_line_takes_every_id() -> None:
    """One line whatever the text, readable where it can be; half characters and dates included."""
    assert encode_line({"answer": "é\n"}) == '{"answer": "é\\n"}\n'.encode()
    for line in ({"id": "\ud800"}, {"id": [1, None]}, {"answer": "a\u2028b\x85c"}):
        data = encode_line(line)
        assert data.count(b"\n") == 1
        assert json.loads(data) == line
    assert json.loads(encode_line({"id": date(2026, 1, 2)})) == {"id": "2026-01-02"}

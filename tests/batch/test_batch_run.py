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
"""The rows of a process: each in one batch, and after an interruption in the very same one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, ProcessorMixin

from dimple_hf.batch.answers import Answerer
from dimple_hf.batch.buckets import plan_batches
from dimple_hf.batch.prompts import PromptReader, open_rows
from dimple_hf.batch.results import ResultFiles, whole_lines
from dimple_hf.batch.run import WINDOW_BATCHES, answer_rows, batches_of, rows_of_process
from dimple_hf.data.sources import Source


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [line for _, line in whole_lines(path)]


def length(row: int) -> int:
    return row * 7919 % 101


@pytest.mark.parametrize("num_processes", [1, 2, 3, 50])
def test_rows_of_all_processes_are_all_rows_once(num_processes: int) -> None:
    """Also with more processes than rows."""
    parts = [rows_of_process(40, rank, num_processes) for rank in range(num_processes)]
    assert sorted(row for part in parts for row in part) == list(range(40))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_batches_of_has_every_row_once_in_windows() -> None:
    """Batches are those of the planner, window by window; a window is measured when its turn has come."""
    rows, measured = range(1, 401, 2), []

    def count_tokens(row: int) -> int:
        measured.append(row)
        return length(row)

    batches = batches_of(rows, 3, count_tokens, set())
    first = next(batches)
    window = rows[: 3 * WINDOW_BATCHES]
    assert measured == list(window)
    assert first == [window[index] for index in plan_batches([length(row) for row in window], 3)[0]]
    found = [first, *batches]
    assert sorted(row for batch in found for row in batch) == list(rows)
    assert measured == list(rows)


def test_batches_of_interrupted_run_are_those_of_the_whole_one() -> None:
    """So that not even rounding can differ; only batches and windows that are done are left out."""
    rows = range(400)
    whole = list(batches_of(rows, 4, length, set()))
    order = [row for batch in whole for row in batch]
    for num_done in (0, 1, 63, 64, 65, 130, 399, 400):
        done, measured = set(order[:num_done]), set()
        left = list(batches_of(rows, 4, lambda row, seen=measured: seen.add(row) or length(row), done))
        assert left == [batch for batch in whole if not done.issuperset(batch)]
        num_rows_of_windows = 400 if num_done == 400 else num_done // 64 * 64
        assert len(measured) == 400 - num_rows_of_windows  # a window that is done is not looked at
    assert left == []  # control: of the last one, with all rows done


def test_answer_rows_writes_what_is_missing_and_nothing_twice(
    tmp_path: Path, model: PreTrainedModel, processor: ProcessorMixin, write_forms: Callable[[Path, int], Path],
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Half of a batch may be done, after a kill in mid-write. The lines are those of the uninterrupted run."""
    rows, folder = open_rows(Source(str(write_forms(tmp_path, 7))))
    reader = PromptReader(rows, processor, folder)
    answerer = Answerer(model, processor, options={"max_new_tokens": 4})
    whole = ResultFiles(tmp_path / "whole.jsonl", range(7), {})
    answer_rows(reader, answerer, whole, set(), batch_size=3)
    whole.merge()
    lines = lines_of(whole.output)
    assert [line["row"] for line in lines] == list(range(7))
    assert "7/7" in capsys.readouterr().err

    results = ResultFiles(tmp_path / "resumed.jsonl", range(7), {})
    with results.new_part(0, 1) as part:
        part.append([lines[2], lines[5]])
    done = results.find_lines()
    assert set(done) == {2, 5}
    answer_rows(reader, answerer, results, done, batch_size=3, rank=1, num_processes=2)
    assert set(results.find_lines()) == {1, 2, 3, 5}
    assert capsys.readouterr().err == ""  # one bar for all processes
    answer_rows(reader, answerer, results, done, batch_size=3, rank=0, num_processes=2)
    assert "rows of process 1 of 2" in capsys.readouterr().err
    parts = [path for path in tmp_path.iterdir() if ".part-" in path.name]
    assert sorted(line["row"] for path in parts for line in lines_of(path)) == list(range(7))  # none twice
    results.merge()
    assert lines_of(results.output) == lines

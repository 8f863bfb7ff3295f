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
"""The rows of one process: in windows, each in batches of like length, each batch written as soon as it is answered.

A window is a stretch of the process's rows, so that a data set of any size needs little memory and no pass over it
beforehand. Windows and batches follow from the rows, the batch size and the number of processes alone, not from what
is done already: a run that was interrupted answers the rest in the very batches that it would have been in, so that
not even rounding differs. Imported by the command `batch` and the benchmark.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

from tqdm import tqdm

from .answers import Answerer, answer_batches
from .buckets import plan_batches
from .prompts import PromptReader
from .results import ResultFiles

#: Batches of a window. With 16, of rows of independent lengths hardly more is padding than with any number.
WINDOW_BATCHES = 16


def rows_of_process(num_rows: int, rank: int, num_processes: int) -> range:
    """The rows that process `rank` (from 0) of `num_processes` answers; together they are all rows, each once."""
    return range(rank, num_rows, num_processes)


def batches_of(
    rows: Sequence[int], batch_size: int, count_tokens: Callable[[int], int], done: Collection[int]
) -> Iterator[list[int]]:
    """
    Args:
        rows (`Sequence[int]`):
            A process's rows.
        batch_size (`int`):
            Most rows of a batch.
        count_tokens (`Callable[[int], int]`):
            The length of a row.
        done (`Collection[int]`):
            Rows that have a line.

    Returns:
        `Iterator[list[int]]`: Batches that have a row which is not done, with those of their rows that are.
    """
    size = WINDOW_BATCHES * batch_size
    for start in range(0, len(rows), size):
        window = rows[start : start + size]
        if all(row in done for row in window):
            continue
        for batch in plan_batches([count_tokens(row) for row in window], batch_size):
            indices = [window[index] for index in batch]
            if not all(row in done for row in indices):
                yield indices


def answer_rows(
    reader: PromptReader,
    answerer: Answerer,
    results: ResultFiles,
    done: Collection[int],
    batch_size: int,
    rank: int = 0,
    num_processes: int = 1,
) -> None:
    """
    Answers the rows of one process that have no line yet.

    Args:
        reader ([`PromptReader`]):
            Reads rows.
        answerer ([`Answerer`]):
            Answers them.
        results ([`ResultFiles`]):
            Takes the lines.
        done (`Collection[int]`):
            Rows that have a line.
        batch_size (`int`):
            Most rows of a batch.
        rank (`int`, defaults to 0), num_processes (`int`, defaults to 1):
            Which of how many processes this is. The first shows its progress.
    """
    rows = rows_of_process(len(reader.rows), rank, num_processes)
    batches = batches_of(rows, batch_size, reader.count_tokens, done)
    prompts = ([reader.read(row) for row in batch] for batch in batches)
    num_done = sum(row in done for row in rows)
    name = "rows" if num_processes == 1 else f"rows of process 1 of {num_processes}"
    with (
        results.new_part(rank, num_processes) as part,
        tqdm(total=len(rows), initial=num_done, desc=name, unit="row", disable=rank != 0) as progress,
    ):
        for lines in answer_batches(answerer, prompts):
            new = [line for line in lines if line["row"] not in done]
            part.append(new)
            progress.update(len(new))

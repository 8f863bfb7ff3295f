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
"""The run of one process: windows of rows, batches of similar length, each written as soon as it is answered.

A window is a stretch of the process's rows, so that a data set of any size needs little memory and no pass over it
beforehand. Windows and batches follow from the rows, the batch size and the number of processes alone, not from what
is done already: a run that was interrupted answers the rest in the very batches that it would have been in, so that
not even rounding differs.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from .answers import Answerer, answer_batches
from .buckets import plan_batches
from .prompts import PromptReader
from .results import Results

#: Batches of a window. With 16, of rows of independent lengths hardly more is padding than with any number.
WINDOW_BATCHES = 16

#: Most processes that read ahead.
MAX_WORKERS = 4

#: Rows that a message about changed ones names.
MAX_NAMED = 3


def rows_of_process(num_rows: int, rank: int, num_processes: int) -> range:
    """The rows that process `rank` (from 0) of `num_processes` answers; together they are all rows, each once."""
    return range(rank, num_rows, num_processes)


def default_workers(num_rows: int, batch_size: int) -> int:
    """Processes that read ahead: one core is the model's, and a single batch has nothing to be read after it."""
    return 0 if num_rows <= batch_size else min(MAX_WORKERS, (os.cpu_count() or 1) - 1)


def find_done(reader: PromptReader, results: Results, rows: Sequence[int], retry: bool = False) -> set[int]:
    """
    Finds the rows that an earlier run has answered, and makes sure that they have not changed since.

    Args:
        reader ([`PromptReader`]):
            Reads rows.
        results ([`Results`]):
            Their lines.
        rows (`Sequence[int]`):
            A process's rows.
        retry (`bool`, *optional*, defaults to `False`):
            Whether rows that failed are asked again.

    Returns:
        `set[int]`: Rows that are done. One that failed and has changed since is not.

    Raises:
        ValueError: If the texts or images of an answered row are others than when it was asked.
    """
    lines = results.find_lines()
    found = [row for row in rows if reader.key(row) in lines]
    with ThreadPoolExecutor() as threads:
        digests = dict(zip(found, threads.map(reader.digest, found), strict=True))
    done, changed = set(), []
    for row, digest in digests.items():
        line = lines[reader.key(row)]
        if line.is_error:
            if line.digest == digest and not retry:
                done.add(row)
        elif line.digest in (digest, None):
            done.add(row)
        else:
            changed.append(reader.key(row))
    if changed:
        names = ", ".join(str(key) for key in changed[:MAX_NAMED]) + (", ..." if len(changed) > MAX_NAMED else "")
        rows_have = "1 row has" if len(changed) == 1 else f"{len(changed)} rows have"
        raise ValueError(
            f"`--output` must be a new file for other data: {rows_have} changed since the answer (got other texts or "
            f"images in {names})"
        )
    return done


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
    results: Results,
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
        results ([`Results`]):
            Takes the lines.
        done (`Collection[int]`):
            Rows that have a line.
        batch_size (`int`):
            Most rows of a batch.
        rank (`int`, defaults to 0), num_processes (`int`, defaults to 1):
            Which of how many processes this is. The first shows its progress.
    """
    rows = rows_of_process(len(reader.rows), rank, num_processes)
    # Rows of one length stay in their order.
    length = reader.count_tokens if not results.in_order else lambda row: 0
    num_done = sum(row in done for row in rows)
    name = "rows" if num_processes == 1 else f"rows of process 1 of {num_processes}"
    with (
        results.new_part(rank, num_processes) as part,
        tqdm(total=len(rows), initial=num_done, desc=name, unit="row", disable=rank != 0) as progress,
    ):
        batches = batches_of(rows, batch_size, length, done)
        done_keys = {reader.key(row) for row in done}
        num_workers = default_workers(len(rows) - num_done, batch_size)
        for lines in answer_batches(answerer, reader, batches, num_workers):
            new = [line for line in lines if next(iter(line.values())) not in done_keys]
            part.append(new)
            progress.update(len(new))

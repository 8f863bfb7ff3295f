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
"""Batches waste little: less than any others of the same number."""

import random
from collections.abc import Iterator

import pytest

from dimple_hf.batch.buckets import padding_share, plan_batches


def partitions(indices: list[int], batch_size: int, num_batches: int) -> Iterator[list[list[int]]]:
    """All ways to put `indices` into so many batches, in any order."""
    if not indices:
        yield [[] for _ in range(num_batches)]
        return
    first, *rest = indices
    for smaller in partitions(rest, batch_size, num_batches):
        for batch in range(num_batches):
            if len(smaller[batch]) < batch_size:
                yield [[first, *indices] if number == batch else indices for number, indices in enumerate(smaller)]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_plan_batches_pads_as_little_as_any_other_plan(batch_size: int) -> None:
    """Against all other ways to make full batches, one by one."""
    rng = random.Random(0)
    num_improved = 0
    for _ in range(20):
        lengths = [rng.randint(1, 9) for _ in range(6)]
        share = padding_share(lengths, plan_batches(lengths, batch_size))
        others = list(partitions(list(range(6)), batch_size, 6 // batch_size))
        assert share == min(padding_share(lengths, plan) for plan in others)
        num_improved += share < padding_share(lengths, others[0])
    assert num_improved > 10  # control: it does make a difference


def test_plan_batches_has_every_row_once_and_the_longest_first() -> None:
    """Rows of one length stay in order, and the last batch takes what is left."""
    assert plan_batches([3, 9, 3, 5, 9], 2) == [[1, 4], [3, 0], [2]]
    assert plan_batches([], 4) == []
    assert plan_batches([0, 0, 0], 8) == [[0, 1, 2]]


def test_padding_share_is_that_of_the_positions() -> None:
    """Batches of 2 x 9, 2 x 5 and 1 x 3 positions hold 29 tokens."""
    assert padding_share([3, 9, 3, 5, 9], [[1, 4], [3, 0], [2]]) == pytest.approx(1 - 29 / 31)
    assert padding_share([3, 9, 3, 5, 9], [[0], [1], [2], [3], [4]]) == 0

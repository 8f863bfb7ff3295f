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
"""Grouping of rows into batches, by their lengths alone."""

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """
    Groups rows of like length. Of all ways to make full batches this one pads the least: the k-th longest batch can
    never be shorter than the longest row that is left when the k - 1 batches before it are full.

    Args:
        lengths (`Sequence[int]`):
            Tokens of each row, those of its images included.
        batch_size (`int`):
            Most rows of a batch, at least 1.

    Returns:
        `list[list[int]]`: The indices of each batch; longest first, so that what does not fit into memory fails at
        once. The last batch may have fewer rows.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def padding_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """
    Args:
        lengths (`Sequence[int]`):
            Tokens of each row.
        batches (`Sequence[Sequence[int]]`):
            Indices of each batch, none of them empty.

    Returns:
        `float`: The share of positions that hold padding when each batch is padded to its longest row.
    """
    positions = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - sum(lengths[index] for batch in batches for index in batch) / positions

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
"""The effect of every token of a vocabulary inside one segment.

Tokens whose bytes fall into the same columns of the segment's table act alike and form a class, so that nothing here
has the size of states times vocabulary.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from .byte_dfa_dimple import ByteDFA
from .vocabulary_dimple import Vocabulary

#: Most pairs of a state and a class.
MAX_TABLE = 1 << 22

#: Most tables that a vocabulary remembers.
MAX_TABLES = 96

#: Bits of a number of characters beside a state; tokens have at most 32 bytes.
_COUNT_BITS = 6


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """
    Args:
        dfa (`ByteDFA`):
            The segment.
        targets (`np.ndarray`):
            int32 of shape `(num_classes, num_states)`: the state after a text of each class, -1 where there is none.
        counts (`np.ndarray`):
            int32 of the same shape: how many characters the text begins on the way.
        tokens, token_class (`np.ndarray`):
            int32 of shape `(num_tokens,)`: the tokens, sorted, and their classes: 0 if they have no way on.
        split_tokens, split_class, split_rest (`np.ndarray`):
            int32 of shape `(num_splits,)`: tokens that end the segment: the class of what stands before the quotation
            mark, and the number of the rest after it.
        entry_class, entry_pair (`np.ndarray`):
            int32 of shape `(num_entries,)`: for each class and state inside, the class and the pair of states.
        entry_count (`np.ndarray`):
            int32 of shape `(num_entries,)`: and the characters.
        pair_source, pair_target, pair_count (`np.ndarray`):
            int32 of shape `(num_pairs,)`: the pairs of states that a token leads between, and its fewest characters.
    """

    dfa: ByteDFA
    targets: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    token_class: np.ndarray
    split_tokens: np.ndarray
    split_class: np.ndarray
    split_rest: np.ndarray
    entry_class: np.ndarray
    entry_pair: np.ndarray
    entry_count: np.ndarray
    pair_source: np.ndarray
    pair_target: np.ndarray
    pair_count: np.ndarray

    @classmethod
    def of(cls, dfa: ByteDFA, vocabulary: Vocabulary) -> "SegmentTable":
        """The table of one segment; made once for each vocabulary."""
        memory = vocabulary.memory
        if dfa not in memory:
            if len(memory) >= MAX_TABLES:
                memory.clear()
            memory[dfa] = cls._build(dfa, vocabulary)
        return memory[dfa]

    @classmethod
    def _build(cls, dfa: ByteDFA, vocabulary: Vocabulary) -> "SegmentTable":
        """
        1. Walk down the tree of tokens, a level at a time; texts that led everywhere to the same so far are one class.
        2. Order what was found by pairs of states.
        """
        # 1.
        rows, node_class = _walk(dfa, vocabulary)
        targets, counts = np.where(rows < 0, -1, rows >> _COUNT_BITS), rows & ((1 << _COUNT_BITS) - 1)
        node_class = node_class.astype(np.uint16 if len(rows) < 1 << 16 else np.int32)
        token_class, split_class = node_class[vocabulary.token_nodes], node_class[vocabulary.split_nodes]
        alive = np.flatnonzero(split_class)
        # 2.
        num_states = len(dfa.table)
        used = np.zeros(len(rows), dtype=bool)
        used[token_class] = True
        used[0] = False
        entry_class, entry_source = np.nonzero((targets >= 0) & used[:, None])
        entry_count = counts[entry_class, entry_source]
        pairs, entry_pair = np.unique(
            entry_source * num_states + targets[entry_class, entry_source], return_inverse=True
        )
        entry_class, entry_pair = entry_class.astype(np.int32), entry_pair.reshape(-1).astype(np.int32)
        pair_count = np.full(len(pairs), np.iinfo(np.int32).max, dtype=np.int32)
        np.minimum.at(pair_count, entry_pair, entry_count)
        return cls(
            dfa, targets, counts, vocabulary.tokens, token_class, vocabulary.split_tokens[alive], split_class[alive],
            vocabulary.split_rests[alive], entry_class, entry_pair, entry_count, pairs // num_states,
            pairs % num_states, pair_count,
        )  # fmt: skip

    def class_of(self, token: int) -> int:
        """The class of a token inside the segment: 0 if it has no way on."""
        index = int(np.searchsorted(self.tokens, token))
        return int(self.token_class[index]) if index < len(self.tokens) and self.tokens[index] == token else 0


def _walk(dfa: ByteDFA, vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """
    What the texts of the nodes of the tree of tokens do, from every state.

    Args:
        dfa (`ByteDFA`):
            The segment.
        vocabulary (`Vocabulary`):
            The tokens.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: int32 of shape `(num_classes, num_states)`, a state and a number of characters
        in one number, -1 where a state has no way on; and int32 of shape `(num_nodes,)`, the class of each node: 0 for
        those that have no way on from any state.
    """
    num_states, num_columns = dfa.table.shape
    table = np.full((num_states + 1, num_columns), -1, dtype=np.int32)  # the last row: no state
    table[:-1] = np.where(dfa.table < 0, -1, dfa.table << _COUNT_BITS)
    table[:-1] += dfa.is_char_start[:, None] & (table[:-1] >= 0)
    classes = _Classes(num_states)
    node_class = np.zeros(len(vocabulary.tree.byte), dtype=np.int32)
    node_class[0] = 1
    column = dfa.column.astype(np.int32)
    for low, high in itertools.pairwise(vocabulary.levels[1:]):
        parent_class = node_class[vocabulary.tree.parents[low:high]]
        alive = np.flatnonzero(parent_class)
        keys = parent_class[alive] * num_columns + column[vocabulary.tree.byte[low:high][alive]]
        is_present = np.zeros(len(classes) * num_columns, dtype=bool)
        is_present[keys] = True
        present = np.flatnonzero(is_present)
        if not len(present):
            break
        before = classes.rows[present // num_columns]
        steps = table[np.where(before < 0, num_states, before >> _COUNT_BITS), present[:, None] % num_columns]
        after = np.where(steps < 0, -1, steps + (before & ((1 << _COUNT_BITS) - 1)))
        number_of = np.zeros(len(is_present), dtype=np.int32)
        number_of[present] = classes.numbers_of(after)
        node_class[low + alive] = number_of[keys]
    return classes.rows[: len(classes)].copy(), node_class


class _Classes:
    """Different rows of numbers, in the order in which they came: first of nothing, then of all states themselves."""

    def __init__(self, num_states: int) -> None:
        self.rows = np.full((256, num_states), -1, dtype=np.int32)
        self.rows[1] = np.arange(num_states) << _COUNT_BITS
        self.number_of = {self.rows[0].tobytes(): 0, self.rows[1].tobytes(): 1}

    def __len__(self) -> int:
        return len(self.number_of)

    def numbers_of(self, rows: np.ndarray) -> list[int]:
        """The number of each row; new ones are added."""
        numbers = []
        for row in rows:
            data = row.tobytes()
            number = self.number_of.get(data)
            if number is None:
                number = self.number_of[data] = len(self.number_of)
                if number * self.rows.shape[1] > MAX_TABLE:
                    raise ValueError(f"a text must need fewer states (it needs {self.rows.shape[1]} for many tokens)")
                if number == len(self.rows):
                    self.rows = np.concatenate([self.rows, np.full_like(self.rows, -1)])
                self.rows[number] = row
            numbers.append(number)
        return numbers

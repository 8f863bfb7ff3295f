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

from dataclasses import dataclass

import numpy as np

from .byte_dfa_dimple import ByteDFA
from .vocabulary_dimple import Vocabulary

#: Most pairs of a state and a class of units.
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
            int32 of shape `(num_classes, num_states)`: the state after a unit of each class, -1 where there is none.
        counts (`np.ndarray`):
            int32 of the same shape: how many characters the unit begins on the way.
        tokens, token_class (`np.ndarray`):
            int32 of shape `(num_tokens,)`: the tokens that may stand inside the segment, sorted, and their classes.
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
        table = memory[dfa]
        assert isinstance(table, cls)
        return table

    @classmethod
    def _build(cls, dfa: ByteDFA, vocabulary: Vocabulary) -> "SegmentTable":
        """
        1. Leave out units with a byte that never occurs.
        2. Walk all units at once, byte by byte; those that led everywhere to the same so far are one kind.
        3. Order what was found by pairs of states.
        """
        # 1.
        units, tokens, order, split_tokens, split_rest = _units_of(dfa, vocabulary)
        # 2.
        rows, unit_class = _walk(dfa, vocabulary.unit_matrix[units], vocabulary.unit_lengths[units])
        targets, counts = np.where(rows < 0, -1, rows >> _COUNT_BITS), rows & ((1 << _COUNT_BITS) - 1)
        # 3.
        num_states = len(dfa.table)
        split = vocabulary.unit_rests[units] >= 0
        token_class = unit_class[~split][order].astype(np.uint16 if len(rows) < 2**16 else np.int32)
        used = np.zeros(len(rows), dtype=bool)
        used[token_class] = True
        entry_class, entry_source = np.nonzero((targets >= 0) & used[:, None])
        entry_count = counts[entry_class, entry_source]
        pairs, entry_pair = np.unique(
            entry_source * num_states + targets[entry_class, entry_source], return_inverse=True
        )
        entry_pair = entry_pair.reshape(-1)
        pair_count = np.full(len(pairs), np.iinfo(np.int32).max, dtype=np.int32)
        np.minimum.at(pair_count, entry_pair, entry_count)
        return cls(
            dfa, targets, counts, tokens, token_class, split_tokens, unit_class[split], split_rest,
            entry_class, entry_pair, entry_count, pairs // num_states, pairs % num_states, pair_count,
        )  # fmt: skip

    def class_of(self, token: int) -> int:
        """The class of a token inside the segment: 0 if it has no way on."""
        index = int(np.searchsorted(self.tokens, token))
        return int(self.token_class[index]) if index < len(self.tokens) and self.tokens[index] == token else 0


def _units_of(dfa: ByteDFA, vocabulary: Vocabulary) -> tuple[np.ndarray, ...]:
    """
    The units without a byte that never occurs; the tokens among them, sorted, and their order; of the others the
    tokens and the rests. Segments with the same bytes share these arrays.
    """
    dead = np.packbits(~dfa.alive_bytes, bitorder="little").view(np.uint64)
    key = ("units", dead.tobytes())
    if key not in vocabulary.memory:
        units = np.flatnonzero(((vocabulary.unit_bytes & dead) == 0).all(axis=1)).astype(np.int32)
        tokens, rests = vocabulary.unit_tokens[units], vocabulary.unit_rests[units]
        split = rests >= 0
        order = np.argsort(tokens[~split], kind="stable")
        vocabulary.memory[key] = (units, tokens[~split][order], order, tokens[split], rests[split])
    found = vocabulary.memory[key]
    assert isinstance(found, tuple)
    return found


def _walk(dfa: ByteDFA, matrix: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    What units do, from every state.

    Args:
        dfa (`ByteDFA`):
            The segment.
        matrix (`np.ndarray`):
            uint8 of shape `(num_units, width)`: the bytes of each unit, the longest units first.
        lengths (`np.ndarray`):
            int32 of shape `(num_units,)`: how many bytes each has.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: int32 of shape `(num_classes, num_states)`, a state and a number of characters
        in one number, -1 where a state has no way on; and int32 of shape `(num_units,)`, the class of each unit: 0 for
        those that have no way on from any state.
    """
    num_states, num_columns = dfa.table.shape
    table = np.full((num_states + 1, num_columns), -1, dtype=np.int32)  # the last row: no state
    table[:-1] = np.where(dfa.table < 0, -1, dfa.table << _COUNT_BITS)
    begins = np.append(dfa.is_char_start, False).astype(np.int32)
    identity = np.arange(num_states, dtype=np.int32) << _COUNT_BITS
    nowhere = np.full(num_states, -1, dtype=np.int32)
    rows, numbers = [nowhere, identity], {nowhere.tobytes(): 0, identity.tobytes(): 1}
    unit_class = np.ones(len(lengths), dtype=np.int32)
    num_longer = np.searchsorted(-lengths, -np.arange(matrix.shape[1]), "left")  # units of more bytes than each index
    for position, count in enumerate(num_longer.tolist()):
        keys = unit_class[:count] * num_columns + dfa.column[matrix[:count, position]]
        is_present = np.zeros(len(rows) * num_columns, dtype=bool)
        is_present[keys] = True
        is_present[:num_columns] = False  # those that had no way on stay so
        present = np.flatnonzero(is_present)
        before = np.stack(rows)[present // num_columns] if len(present) else np.zeros((0, num_states), dtype=np.int32)
        states = np.where(before < 0, num_states, before >> _COUNT_BITS)
        steps = table[states, present[:, None] % num_columns]
        after = np.where(steps < 0, -1, steps + (before & ((1 << _COUNT_BITS) - 1)) + begins[states])
        number_of = np.zeros(len(is_present), dtype=np.int32)
        for key, row in zip(present.tolist(), after, strict=True):
            data = row.tobytes()
            if data not in numbers:
                numbers[data] = len(rows)
                rows.append(row)
                if len(rows) * num_states > MAX_TABLE:
                    raise ValueError(f"a text must need fewer states (it needs {num_states} for many tokens)")
            number_of[key] = numbers[data]
        unit_class[:count] = number_of[keys]
    return np.stack(rows), unit_class

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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .byte_dfa_dimple import ByteDFA, written
from .char_dfa_dimple import free_text
from .vocabulary_dimple import TOKENS, Vocabulary, ranges

#: Most states of a segment, which tables hold in 16 bits.
MAX_STATES = (1 << 15) - 1

#: Most pairs of a state and a class.
MAX_TABLE = 1 << 22

#: Pairs that are stepped on together.
MAX_AT_ONCE = 1 << 18

#: Most tables that a vocabulary remembers, and most bytes that they take.
MAX_TABLES = 96
MAX_TABLE_BYTES = 1 << 26

#: Most texts on the way of exceptions to free text that are looked at one by one.
MAX_NEAR = 4096

#: Bits of a number of characters beside a state; tokens have at most 32 bytes.
_COUNT_BITS = 6


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """
    Args:
        dfa (`ByteDFA`):
            The segment.
        targets (`np.ndarray`):
            int16 of shape `(num_classes, num_states)`: the state after a text of each class, -1 where there is none.
        counts (`np.ndarray`):
            int8 of the same shape: how many characters the text begins on the way.
        tokens, token_class (`np.ndarray`):
            int32 of shape `(num_tokens,)`: the tokens, sorted, and their classes: 0 if they have no way on.
        split_tokens, split_class, split_rest (`np.ndarray`):
            int32 of shape `(num_splits,)`: tokens that end the segment: the class of what stands before the quotation
            mark, or up to the last digit, and the number of the rest after it.
        entry_class, entry_pair (`np.ndarray`):
            int32 of shape `(num_entries,)`: for each class and state inside, the class and the pair of states.
        entry_count (`np.ndarray`):
            int8 of shape `(num_entries,)`: and the characters.
        pair_source, pair_target (`np.ndarray`):
            int32 of shape `(num_pairs,)`: the pairs of states that a token leads between.
        pair_count (`np.ndarray`):
            int16 of the same shape: the fewest characters of these tokens.
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
        return _remembered(vocabulary, dfa, partial(cls._build, dfa, vocabulary))

    @classmethod
    def _build(cls, dfa: ByteDFA, vocabulary: Vocabulary) -> "SegmentTable":
        """
        1. Find the classes of the tokens: texts that lead everywhere to the same are one class.
        2. Order what was found by pairs of states.

        Raises:
            ValueError: If the segment has too many states, or too many in combination with the tokens.
        """
        if len(dfa.table) > MAX_STATES:
            raise ValueError(f"a text must need at most {MAX_STATES} states (it needs {len(dfa.table)})")
        # 1.
        found = _classes_beside_free_text(dfa, vocabulary) or _classes(dfa, vocabulary)
        targets, counts, token_class, split_class = found
        alive = np.flatnonzero(split_class)
        split_tokens, _, split_rests = vocabulary.splits[dfa.is_quoted][:, alive]
        tokens, kept = vocabulary.tokens, np.flatnonzero(token_class != 0)
        if 2 * len(kept) < len(tokens):
            tokens, token_class = tokens[kept], token_class[kept]
        # 2.
        num_states = len(dfa.table)
        used = np.bincount(token_class, minlength=len(targets)) > 0
        used[0] = False
        entries = np.flatnonzero((targets >= 0) & used[:, None]).astype(np.int32)
        entry_class, entry_source = np.divmod(entries, np.int32(num_states))
        entry_count = counts.reshape(-1)[entries]
        keys = entry_source * np.int32(num_states) + targets.reshape(-1)[entries]
        del entries, entry_source
        pairs = np.unique(keys)
        entry_pair = np.searchsorted(pairs, keys).astype(np.int32)
        pair_count = np.full(len(pairs), np.iinfo(np.int16).max, dtype=np.int16)
        np.minimum.at(pair_count, entry_pair, entry_count.astype(np.int16))  # of two types, it is slow
        return cls(
            dfa, targets, counts, tokens, token_class, split_tokens, split_class[alive], split_rests, entry_class,
            entry_pair, entry_count, pairs // num_states, pairs % num_states, pair_count,
        )  # fmt: skip

    def class_of(self, token: int) -> int:
        """The class of a token inside the segment: 0 if it has no way on."""
        index = int(np.searchsorted(self.tokens, token))
        return int(self.token_class[index]) if index < len(self.tokens) and self.tokens[index] == token else 0


#: Targets and counts of each class, the class of each token, the class of each split; see [`SegmentTable`].
_ClassArrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _classes(dfa: ByteDFA, vocabulary: Vocabulary) -> _ClassArrays:
    """The classes of any segment, by walking down the tree of tokens, a level at a time."""
    rows, node_class = _walk(dfa, vocabulary)
    targets = np.where(rows < 0, -1, rows >> _COUNT_BITS).astype(np.int16)
    counts = (rows & ((1 << _COUNT_BITS) - 1)).astype(np.int8)
    node_class = node_class.astype(_class_dtype(len(rows)))
    return targets, counts, node_class[vocabulary.token_nodes], node_class[vocabulary.splits[dfa.is_quoted][1]]


def _class_dtype(num_classes: int) -> type[np.integer[Any]]:
    """The smaller type that numbers of classes fit into: there is one for each token."""
    return np.uint16 if num_classes < 1 << 16 else np.int32


def _classes_beside_free_text(dfa: ByteDFA, vocabulary: Vocabulary) -> _ClassArrays | None:
    """
    The classes of a segment that is free text but for some beginnings, as names other than those of a schema are;
    `None` for others.

    1. Find which state of free text each state acts like, and which are *near*: on the way of an exception.
    2. What ends outside of near states ends where it does in free text. What stays in them is found by walking down
       the tree from them only.
    3. Each text that does is a class of its own: that of free text, but for these states.
    """
    # 1.
    free = written(free_text(), in_json=True, is_quoted=True)
    likeness = None if dfa is free or not dfa.is_quoted else _likeness(dfa, free)
    if likeness is None:
        return None
    like, is_near = likeness
    base_targets, base_counts, base_token_class, base_split_class = _classes_of_free_text(free, vocabulary)
    own = np.full(len(free.table), -1, dtype=np.int32)
    own[like[~is_near]] = np.flatnonzero(~is_near)
    # 2.
    near = _walk_near(dfa, is_near, vocabulary)
    if near is None:
        return None
    node, source, target = near
    nodes, index = np.unique(node, return_inverse=True)
    # 3.
    num_base = len(base_targets)
    dtype = _class_dtype(num_base + len(nodes))
    token_class, split_class = base_token_class.astype(dtype), base_split_class.astype(dtype)
    base_class = np.zeros(len(nodes), dtype=np.int32)
    split_nodes = vocabulary.splits[True][1]
    which, split = ranges(*(np.searchsorted(split_nodes, nodes, side) for side in ("left", "right")))
    base_class[which] = split_class[split]
    split_class[split] = num_base + which
    token = vocabulary.index_of_node[nodes]
    which = np.flatnonzero(token >= 0)
    base_class[which] = token_class[token[which]]
    token_class[token[which]] = num_base + which
    rows = np.concatenate([np.arange(num_base), base_class])
    targets, counts = base_targets[rows][:, like], base_counts[rows][:, like]
    targets = np.where(targets < 0, -1, own[targets])
    targets[num_base + index, source] = target
    return targets.astype(np.int16), counts, token_class, split_class


def _classes_of_free_text(free: ByteDFA, vocabulary: Vocabulary) -> _ClassArrays:
    """The classes of free text, remembered with the tables of the vocabulary."""
    return _remembered(vocabulary, (free, "classes"), partial(_classes, free, vocabulary))


def _remembered(vocabulary: Vocabulary, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns, from the memory of the vocabulary if it is there; what was used least recently goes."""
    memory = vocabulary.memory
    found, size = memory.pop(key, (None, 0))
    if found is None:
        found = make()
        size = _num_bytes(found)
        total = size + sum(size for _, size in list(memory.values()))  # other threads may add to it
        while memory and (len(memory) >= MAX_TABLES or total > MAX_TABLE_BYTES):
            oldest = next(iter(memory))
            total -= memory.pop(oldest, (None, 0))[1]
    memory[key] = found, size
    return found


def _num_bytes(found: "SegmentTable | _ClassArrays") -> int:
    """What a table, or the classes of one, takes."""
    arrays = found if isinstance(found, tuple) else vars(found).values()
    return sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))


def _likeness(dfa: ByteDFA, free: ByteDFA) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Which state of `free` each state acts like, byte by byte, and whether a text from there may end otherwise than in
    `free`; `None` if some byte acts otherwise.
    """
    columns = np.unique(dfa.column.astype(np.int32) * 256 + free.column)
    own, others = dfa.table[:, columns // 256], free.table[:, columns % 256]
    source, column = np.nonzero(own >= 0)
    target = own[source, column]
    _, kept = np.unique(source * len(own) + target, return_index=True)
    # Lists: of few transitions, arrays cost more.
    after: list[list[tuple[int, int]]] = [[] for _ in own]
    before: list[list[int]] = [[] for _ in own]
    for state, number, following in zip(*(array[kept].tolist() for array in (source, column, target)), strict=True):
        after[state].append((number, following))
        before[following].append(state)
    likes, rows, queue = [0] + [-1] * (len(own) - 1), others.tolist(), [0]
    for state in queue:  # grows meanwhile
        for number, following in after[state]:
            if likes[following] < 0:
                likes[following] = rows[likes[state]][number]
                queue.append(following)
                if likes[following] < 0:
                    return None
    like = np.array(likes, dtype=np.int32)
    if (like < 0).any() or (np.where(own < 0, -1, like[own]) != others[like]).any():
        return None
    if (dfa.is_char_start != free.is_char_start[like]).any():
        return None
    queue = np.flatnonzero(dfa.accepting != free.accepting[like]).tolist()
    found = set(queue)
    for state in queue:
        new = [other for other in before[state] if other not in found]
        found.update(new)
        queue += new
    is_near = np.zeros(len(own), dtype=bool)
    is_near[queue] = True
    # Of the other states each must be the only one that acts like its own.
    is_distinct = len(np.unique(like[~is_near])) == (~is_near).sum()
    return (like, is_near) if is_near.any() and is_distinct else None


def _walk_near(dfa: ByteDFA, is_near: np.ndarray, vocabulary: Vocabulary) -> tuple[np.ndarray, ...] | None:
    """
    The tokens, and the splits, whose texts lead from a near state to a near one: node, first and last state. `None` if
    they are so many that walking down the whole tree costs less.
    """
    table = dfa.table[:, dfa.column]
    state, byte = np.nonzero((table >= 0) & is_near[table] & is_near[:, None])
    first = np.searchsorted(state, np.arange(len(table) + 1))
    source = target = np.flatnonzero(is_near)
    node = np.full_like(source, TOKENS)
    found = [(node, source, target)]  # no text at all
    num_found = 0
    while len(source):
        index, edge = ranges(first[target], first[target + 1])
        child = vocabulary.tree.children(node[index], byte[edge])
        kept = np.flatnonzero(child >= 0)
        node, source, target = child[kept], source[index[kept]], table[state[edge[kept]], byte[edge[kept]]]
        ends = vocabulary.ends_text[node]
        found.append((node[ends], source[ends], target[ends]))
        num_found += len(node)
        if num_found > MAX_NEAR:
            return None
    return tuple(np.concatenate(column) for column in zip(*found, strict=True))


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
    node_class[TOKENS] = 1
    column, tree = dfa.column.astype(np.int32), vocabulary.tree
    for first, last in tree.levels[1:]:
        nodes: slice | np.ndarray = slice(first, last)
        parent_class = node_class[tree.parents[nodes]]
        alive = np.flatnonzero(parent_class)
        if 2 * len(alive) < len(parent_class):  # most texts have no way on, as where few characters are allowed
            nodes, parent_class = first + alive, parent_class[alive]
        keys = parent_class * num_columns + column[tree.byte[nodes]]
        is_present = np.zeros(len(classes) * num_columns, dtype=bool)
        is_present[keys] = True
        is_present[:num_columns] = False  # after no way on there is none
        present = np.flatnonzero(is_present)
        if not len(present):
            break
        number_of = np.zeros(len(is_present), dtype=np.int32)
        for some in np.array_split(present, 1 + len(present) * num_states // MAX_AT_ONCE):
            before = classes.rows[some // num_columns]
            steps = table[np.where(before < 0, num_states, before >> _COUNT_BITS), some[:, None] % num_columns]
            after = np.where(steps < 0, -1, steps + (before & ((1 << _COUNT_BITS) - 1)))
            number_of[some] = classes.numbers_of(after)
        node_class[nodes] = number_of[keys]
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

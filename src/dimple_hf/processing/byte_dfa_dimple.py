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
"""Texts as bytes: UTF-8, and the escapes of a JSON string.

A `ByteDFA` writes the texts of a `CharDFA`. It also says where a character begins, so that tokens can be told by how
many characters they add to a text.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from .char_dfa_dimple import CharDFA

#: How JSON writes what it does not take as it is; other control characters are never written.
JSON_ESCAPES = {'"': '"', "\\": "\\", "\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f"}

#: First and last code point that UTF-8 writes in 2, 3 and 4 bytes.
_LENGTHS = {2: (0x80, 0x7FF), 3: (0x800, 0xFFFF), 4: (0x10000, 0x10FFFF)}
_LEAD_BYTE = {2: 0xC0, 3: 0xE0, 4: 0xF0}


@dataclass(frozen=True, eq=False)
class ByteDFA:
    """
    A deterministic automaton over bytes. State 0 is the start.

    Args:
        table (`np.ndarray`):
            int32 of shape `(num_states, num_columns)`: the next state, -1 where there is none.
        column (`np.ndarray`):
            uint8 of shape `(256,)`: column of each byte.
        accepting (`np.ndarray`):
            bool of shape `(num_states,)`: `True` where a text may end.
        is_char_start (`np.ndarray`):
            bool of shape `(num_states,)`: `True` where a byte begins a character.
        is_quoted (`bool`):
            Whether a quotation mark ends it: that of a JSON string.
    """

    table: np.ndarray
    column: np.ndarray
    accepting: np.ndarray
    is_char_start: np.ndarray
    is_quoted: bool

    def accepts(self, data: bytes) -> bool:
        """Whether the automaton accepts exactly these bytes, without the closing quotation mark."""
        state = 0
        for byte in data:
            state = int(self.table[state, self.column[byte]])
            if state < 0:
                return False
        return bool(self.accepting[state])

    @cached_property
    def _rows(self) -> dict[int, list[int]]:
        return {}

    def row(self, state: int) -> list[int]:
        """The state after each byte, -1 where there is none."""
        found = self._rows.get(state)
        if found is None:
            found = self._rows[state] = self.table[state][self.column].tolist()
        return found

    @property
    def alive_bytes(self) -> np.ndarray:
        """bool of shape `(256,)`: which bytes ever occur."""
        return np.asarray((self.table >= 0).any(axis=0))[self.column]


@lru_cache(maxsize=512)
def written(dfa: CharDFA, in_json: bool = False, is_quoted: bool = False, is_open: bool = False) -> ByteDFA:
    """
    The texts of `dfa` in bytes.

    Args:
        dfa (`CharDFA`):
            The texts.
        in_json (`bool`, *optional*, defaults to `False`):
            Whether they are written as inside a JSON string.
        is_quoted (`bool`, *optional*, defaults to `False`):
            Whether they stand between quotation marks; see [`ByteDFA`].
        is_open (`bool`, *optional*, defaults to `False`):
            Whether the opening one stands before them already.
    """
    return _Writer(dfa, in_json, is_quoted, is_open).run()


class _Writer:
    """Builds the table; states that do the same are shared."""

    def __init__(self, dfa: CharDFA, in_json: bool, is_quoted: bool, is_open: bool) -> None:
        self.dfa, self.in_json, self.is_quoted = dfa, in_json, is_quoted
        self.has_mark = is_quoted and not is_open
        self.rows: list[dict[int, int]] = []
        self.shared: dict[tuple[tuple[int, int], ...], int] = {}

    def run(self) -> ByteDFA:
        dfa, num_chars = self.dfa, len(self.dfa.table)
        first = int(self.has_mark)
        self.rows = [{} for _ in range(num_chars + first)]
        if self.has_mark:
            self.rows[0] = {0x22: 1}
        codes = np.array(
            [code for code in range(128) if not self.in_json or (code >= 0x20 and code not in (0x22, 0x5C))]
        )
        ascii_columns = dfa.columns[np.searchsorted(dfa.starts, codes, "right") - 1]
        codes, ascii_columns = codes[ascii_columns >= 0], ascii_columns[ascii_columns >= 0]
        escapes = [(ord(letter), dfa.column_of(ord(char))) for char, letter in JSON_ESCAPES.items()] * self.in_json
        escapes = [(letter, column) for letter, column in escapes if column >= 0]
        targets = np.where(dfa.table < 0, -1, dfa.table + first)
        # What escapes and characters of several bytes lead to is the same for most states.
        wide = dfa.columns[np.searchsorted(dfa.starts, 0x80, "right") - 1 :]
        others = sorted({int(column) for column in wide if column >= 0} | {column for _, column in escapes})
        _, representatives, number_of = np.unique(targets[:, others], axis=0, return_index=True, return_inverse=True)
        rows = [self._row(targets[state], escapes, bool((wide >= 0).any())) for state in representatives.tolist()]
        table = np.full((len(self.rows), 256), -1, dtype=np.int32)
        table[first : num_chars + first, codes] = targets[:, ascii_columns]
        for number, row in enumerate(rows):
            states = np.flatnonzero(number_of.reshape(-1) == number) + first
            table[states[:, None], list(row)] = list(row.values())
        for state, row in enumerate(self.rows):
            if row:
                table[state, list(row)] = list(row.values())
        accepting = np.zeros(len(table), dtype=bool)
        accepting[first : num_chars + first] = dfa.accepting
        is_char_start = np.zeros(len(table), dtype=bool)
        is_char_start[first : num_chars + first] = True
        return ByteDFA(*_without_equal_columns(table), accepting, is_char_start, self.is_quoted)

    def _row(self, targets: np.ndarray, escapes: list[tuple[int, int]], is_wide: bool) -> dict[int, int]:
        """The first bytes of escapes and of characters of several bytes, and the states after them."""
        row: dict[int, int] = {}
        escaped = {letter: int(targets[column]) for letter, column in escapes if targets[column] >= 0}
        if escaped:
            row[0x5C] = self._shared(escaped)
        return row | self._wide(targets) if is_wide else row

    def _shared(self, row: dict[int, int]) -> int:
        key = tuple(sorted(row.items()))
        if key not in self.shared:
            self.shared[key] = len(self.rows)
            self.rows.append(row)
        return self.shared[key]

    def _wide(self, targets: np.ndarray) -> dict[int, int]:
        """The lead bytes of characters of several bytes, and the states after them."""
        dfa = self.dfa
        following = np.where(dfa.columns < 0, -1, targets[dfa.columns])
        kept = np.flatnonzero(np.append(True, following[1:] != following[:-1]))
        starts, following = dfa.starts[kept].tolist(), following[kept].tolist()
        first = bisect_right(starts, 0x80) - 1
        states = [state for state in dict.fromkeys(following[first:]) if state >= 0]
        label_of = {-1: -1} | {state: label for label, state in enumerate(states)}
        labels = tuple(label_of[state] for state in following[first:])
        *rows, lead = _wide_rows((0x80, *starts[first + 1 :]), labels)
        for row in rows:
            states.append(self._shared({byte: states[number] for byte, number in row.items()}))
        return {byte: states[number] for byte, number in lead.items()}


@lru_cache(maxsize=512)
def _wide_rows(starts: tuple[int, ...], following: tuple[int, ...]) -> list[dict[int, int]]:
    """
    How characters of several bytes are read, whatever the states are that they lead to.

    Args:
        starts, following (`tuple[int, ...]`):
            First code point of each range, the first of all being 0x80, and the number of the state that its
            characters lead to: -1 for none.

    Returns:
        `list[dict[int, int]]`: For each state between two bytes, the bytes and the states after them. Their numbers go
        on after those of `following`. The last one is that before the lead byte.
    """
    rows: list[dict[int, int]] = []
    number_of: dict[tuple[tuple[int, int], ...], int] = {}
    num_states = max(following) + 1

    def shared(row: dict[int, int]) -> int:
        key = tuple(row.items())
        if key not in number_of:
            number_of[key] = num_states + len(rows)
            rows.append(row)
        return number_of[key]

    def block(first: int, left: int, low: int, high: int) -> int:
        """The state before the `left` continuation bytes of the characters from `first` on; -1 if there is none."""
        size = 1 << (6 * left)
        last = first + size - 1
        if last < low or first > high:
            return -1
        index = bisect_right(starts, first) - 1
        is_constant = (index + 1 == len(starts) or starts[index + 1] > last) and first >= low and last <= high
        if left == 0 or (is_constant and following[index] < 0):
            return following[index]
        if is_constant:  # continuation bytes of any value
            state = following[index]
            for _ in range(left):
                state = shared(dict.fromkeys(range(0x80, 0xC0), state))
            return state
        step = size >> 6
        row = {0x80 + number: block(first + number * step, left - 1, low, high) for number in range(64)}
        row = {byte: state for byte, state in row.items() if state >= 0}
        return shared(row) if row else -1

    lead: dict[int, int] = {}
    for length, (low, high) in _LENGTHS.items():
        size = 1 << (6 * (length - 1))  # characters of one lead byte
        for number in range(low // size, high // size + 1):
            state = block(number * size, length - 1, low, high)
            if state >= 0:
                lead[_LEAD_BYTE[length] + number] = state
    return [*rows, lead]


def _without_equal_columns(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different columns of a table of bytes, and which of them each byte has."""
    weights = np.random.default_rng(0).integers(1 << 62, size=len(table))
    _, first, column = np.unique(weights @ table, return_index=True, return_inverse=True)
    if (table[:, first[column]] != table).any():  # different columns of one sum
        _, first, column = np.unique(table, axis=1, return_index=True, return_inverse=True)
    return np.ascontiguousarray(table[:, first]), column.reshape(-1).astype(np.uint8)

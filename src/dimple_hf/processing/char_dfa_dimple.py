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
"""Character sets, and deterministic automata over characters: the languages of unescaped values.

A `CharDFA` knows neither bytes nor JSON; `byte_dfa_dimple` writes it. Languages are combined here, where automata are
small: lengths, patterns and exclusions are products of two automata.
"""

import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

#: Most states of an automaton over characters; what needs more is refused.
MAX_CHAR_STATES = 4096

#: Most steps to compile one automaton; a small pattern can ask for hours.
MAX_STEPS = 1 << 19

#: Inclusive ranges of code points, sorted, without overlaps.
CharSet = tuple[tuple[int, int], ...]

#: All that can be written in UTF-8: no surrogates.
ANY_CHAR: CharSet = ((0, 0xD7FF), (0xE000, 0x10FFFF))

#: What free text may hold: no control characters but tab, line feed and carriage return.
TEXT_CHARS: CharSet = ((9, 10), (13, 13), (0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF))


class EmptyLanguageError(ValueError):
    """No text is possible."""


def union(*sets: CharSet) -> CharSet:
    """The code points of any of `sets`."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for chars in sets for pair in chars):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def complement(chars: CharSet) -> CharSet:
    """All code points that are not in `chars`, surrogates included."""
    ranges, start = [], 0
    for low, high in chars:
        if start < low:
            ranges.append((start, low - 1))
        start = high + 1
    return (*ranges, (start, sys.maxunicode)) if start <= sys.maxunicode else tuple(ranges)


def intersection(first: CharSet, second: CharSet) -> CharSet:
    """The code points of both sets."""
    return complement(union(complement(first), complement(second)))


class CharNFA:
    """
    Transitions between numbered states over sets of characters, built from the end of a language to its beginning.

    An assertion is a transition that takes no character, and is possible only where its test holds: the test gets the
    character before (`None`: there is none) as its memberships in `tracked`, and likewise the one after.
    """

    def __init__(self) -> None:
        self.edges: list[list[tuple[CharSet, int]]] = []
        self.free: list[list[int]] = []
        self.assertions: list[list[tuple[Callable[..., bool], int]]] = []
        self.tracked: list[CharSet] = []
        self.end = self.state()

    def state(self) -> int:
        """Adds a state."""
        if len(self.edges) > 4 * MAX_CHAR_STATES:
            raise ValueError(f"the pattern must need at most {MAX_CHAR_STATES} states (it needs more)")
        self.edges.append([])
        self.free.append([])
        self.assertions.append([])
        return len(self.edges) - 1

    def char(self, chars: CharSet, target: int) -> int:
        """One character of a set."""
        start = self.state()
        self.edges[start].append((intersection(chars, ANY_CHAR), target))
        return start

    def either(self, states: Iterable[int]) -> int:
        """A state that is any of `states`."""
        start = self.state()
        self.free[start].extend(states)
        return start

    def assertion(self, test: Callable[..., bool], target: int) -> int:
        """A state that leads to `target` where `test` holds."""
        start = self.state()
        self.assertions[start].append((test, target))
        return start

    def track(self, chars: CharSet) -> int:
        """The index of a set whose members assertions need to tell."""
        if chars not in self.tracked:
            self.tracked.append(chars)
        return self.tracked.index(chars)

    def repeat(self, build: Callable[[int], int], min_times: int, max_times: int | None, target: int) -> int:
        """What `build(target)` builds, between `min_times` and `max_times` times (`None`: any number)."""
        if max_times is None:
            loop = self.state()
            self.free[loop] += [target, build(loop)]
            target = loop
        else:
            after = target
            for _ in range(max_times - min_times):
                target = self.either([after, build(target)])
        for _ in range(min_times):
            target = build(target)
        return target

    def embed(self, dfa: "CharDFA", target: int) -> int:
        """A text that `dfa` accepts."""
        states = [self.state() for _ in dfa.table]
        sets = dfa.column_sets()
        for state, row, accepts in zip(states, dfa.table.tolist(), dfa.accepting.tolist(), strict=True):
            grouped: dict[int, list[CharSet]] = {}
            for column, following in enumerate(row):
                if following >= 0:
                    grouped.setdefault(following, []).append(sets[column])
            self.edges[state] += [(union(*chars), states[following]) for following, chars in grouped.items()]
            if accepts:
                self.free[state].append(target)
        return states[0]


@dataclass(frozen=True, eq=False)
class CharDFA:
    """
    A deterministic automaton over characters. State 0 is the start; every state can still be completed.

    Args:
        starts (`np.ndarray`):
            int32 of shape `(num_ranges,)`: first code point of each range of characters that act alike; begins with 0.
        columns (`np.ndarray`):
            int32 of shape `(num_ranges,)`: column of each range, -1 for characters that never occur.
        table (`np.ndarray`):
            int32 of shape `(num_states, num_columns)`: the next state, -1 where there is none.
        accepting (`np.ndarray`):
            bool of shape `(num_states,)`: `True` where a text may end.
    """

    starts: np.ndarray
    columns: np.ndarray
    table: np.ndarray
    accepting: np.ndarray

    @classmethod
    def from_nfa(cls, nfa: CharNFA, start: int) -> "CharDFA":
        """
        Raises:
            EmptyLanguageError: If no text is accepted.
            ValueError: If more than `MAX_CHAR_STATES` states or `MAX_STEPS` steps are needed.
        """
        return _Determinizer(nfa).run(start)

    @classmethod
    def of_chars(cls, chars: CharSet, min_chars: int = 0, max_chars: int | None = None) -> "CharDFA":
        """Between `min_chars` and `max_chars` characters of a set."""
        size = (min_chars if max_chars is None else max_chars) + 1
        if size > MAX_CHAR_STATES:
            raise ValueError(f"the length must be at most {MAX_CHAR_STATES - 1} characters (got {size - 1})")
        table = np.arange(1, size + 1, dtype=np.int32)[:, None]
        table[-1] = size - 1 if max_chars is None else -1
        starts, columns = _ranges_of([chars])
        return cls(starts, columns, table, np.arange(size) >= min_chars)._trimmed()

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "CharDFA":
        """Exactly these texts."""
        children, ends = _prefix_tree(texts)
        chars = sorted({char for row in children for char in row})
        starts, columns = _ranges_of([((ord(char), ord(char)),) for char in chars])
        column_of = {char: int(columns[np.searchsorted(starts, ord(char), "right") - 1]) for char in chars}
        table = np.full((len(children), max(1, len(chars))), -1, dtype=np.int32)
        for state, row in enumerate(children):
            for char, target in row.items():
                table[state, column_of[char]] = target
        return cls(starts, columns, table, np.array([state in ends for state in range(len(children))]))._trimmed()

    @classmethod
    def all_but(cls, texts: Iterable[str]) -> "CharDFA":
        """Any text but these."""
        children, ends = _prefix_tree(texts)
        free = len(children)  # the state of texts that none of these begins with
        codes = sorted({ord(char) for row in children for char in row})
        own = tuple((code, code) for code in codes)
        others = intersection(TEXT_CHARS, complement(union(own)))
        starts, columns = _ranges_of([*((pair,) for pair in own), others])
        column_of = {code: int(columns[np.searchsorted(starts, code, "right") - 1]) for code in codes}
        table = np.full((free + 1, int(columns.max()) + 1), free, dtype=np.int32)
        for code in codes:
            if not intersection(((code, code),), TEXT_CHARS):
                table[:, column_of[code]] = -1
        for state, row in enumerate(children):
            for char, target in row.items():
                table[state, column_of[ord(char)]] = target
        return cls(starts, columns, table, np.array([state not in ends for state in range(free + 1)]))

    def column_sets(self) -> list[CharSet]:
        """The characters of each column."""
        sets: list[list[tuple[int, int]]] = [[] for _ in range(self.table.shape[1])]
        ends = [*(self.starts[1:] - 1).tolist(), sys.maxunicode]
        for low, high, column in zip(self.starts.tolist(), ends, self.columns.tolist(), strict=True):
            if column >= 0:
                sets[column].append((low, high))
        return [union(tuple(ranges)) for ranges in sets]

    def column_of(self, code: int) -> int:
        """The column of a code point, -1 if it never occurs."""
        return int(self.columns[np.searchsorted(self.starts, code, "right") - 1])

    def accepts(self, text: str) -> bool:
        """Whether the automaton accepts exactly this text."""
        state = 0
        for char in text:
            column = self.column_of(ord(char))
            state = -1 if column < 0 else int(self.table[state, column])
            if state < 0:
                return False
        return bool(self.accepting[state])

    def intersect(self, other: "CharDFA") -> "CharDFA":
        """The texts that both accept."""
        return self._product(other, lambda left, right: left & right, keep_alone=False)

    def subtract(self, other: "CharDFA") -> "CharDFA":
        """The texts of this automaton that `other` does not accept."""
        return self._product(other, lambda left, right: left & ~right, keep_alone=True)

    def is_disjoint(self, other: "CharDFA") -> bool:
        """Whether no text is accepted by both."""
        try:
            self.intersect(other)
        except EmptyLanguageError:
            return True
        return False

    def _product(self, other: "CharDFA", accept: Callable[..., np.ndarray], keep_alone: bool) -> "CharDFA":
        starts = np.union1d(self.starts, other.starts)
        left = self.columns[np.searchsorted(self.starts, starts, "right") - 1]
        right = other.columns[np.searchsorted(other.starts, starts, "right") - 1]
        right_or_none = np.where(right < 0, other.table.shape[1], right)
        alive = (left >= 0) & ((right >= 0) | keep_alone)
        pairs, inverse = np.unique(np.stack([left, right_or_none])[:, alive], axis=1, return_inverse=True)
        columns = np.full(len(starts), -1, dtype=np.int32)
        columns[alive] = inverse.reshape(-1)
        # One more state and one more column on the right: where `other` has given up.
        lost = len(other.table)
        table = np.full((lost + 1, other.table.shape[1] + 1), lost, dtype=np.int64)
        table[:-1, :-1] = np.where(other.table < 0, lost, other.table)
        other_accepting = np.append(other.accepting, False)
        left_table = self.table[:, pairs[0]] if pairs.size else np.zeros((len(self.table), 0), dtype=np.int32)
        right_table = table[:, pairs[1]] if pairs.size else np.zeros((lost + 1, 0), dtype=np.int64)
        size = lost + 1
        numbers, queue, rows = {0: 0}, [0], []
        for code in queue:
            one, two = divmod(code, size)
            first, second = left_table[one], right_table[two]
            dead = (first < 0) | ((second == lost) & (not keep_alone))
            targets = np.where(dead, -1, first.astype(np.int64) * size + second).tolist()
            row = []
            for target in targets:
                if target >= 0 and target not in numbers:
                    numbers[target] = len(numbers)
                    queue.append(target)
                    if len(numbers) > MAX_CHAR_STATES:
                        raise ValueError(f"the pattern must need at most {MAX_CHAR_STATES} states (it needs more)")
                row.append(-1 if target < 0 else numbers[target])
            rows.append(row)
        codes = np.array(queue)
        accepting = accept(self.accepting[codes // size], other_accepting[codes % size])
        return CharDFA(starts, columns, np.array(rows, dtype=np.int32).reshape(len(queue), -1), accepting)._trimmed()

    def _trimmed(self) -> "CharDFA":
        """Without states that cannot be completed or reached, equal states merged, equal columns joined."""
        table, accepting = self.table, self.accepting
        if table.shape[1] == 0:
            table = np.full((len(table), 1), -1, dtype=np.int32)
        completable = _completable(table, accepting)
        if not completable[0]:
            raise EmptyLanguageError("it must match something (it matches nothing)")
        table = np.where(np.append(completable, False)[table], table, -1)
        block = _partition(table, accepting)
        # Renumber blocks in the order in which they are reached, the start first; dead states have no block.
        representative: dict[int, int] = {}
        for state, number in enumerate(block.tolist()):
            representative.setdefault(number, state)
        order, numbers = [int(block[0])], {int(block[0]): 0}
        for number in order:
            for target in table[representative[number]].tolist():
                if target >= 0 and int(block[target]) not in numbers:
                    numbers[int(block[target])] = len(numbers)
                    order.append(int(block[target]))
        states = np.array([representative[number] for number in order])
        renumbered = np.array([numbers.get(int(number), -1) for number in block] + [-1], dtype=np.int32)
        table = renumbered[table[states]]
        used = (table >= 0).any(axis=0)
        compressed, inverse = np.unique(table, axis=1, return_inverse=True)
        inverse = np.where(used, inverse.reshape(-1), -1)
        columns = np.where(self.columns < 0, -1, inverse[self.columns]).astype(np.int32)
        kept = np.flatnonzero(np.append(True, columns[1:] != columns[:-1]))
        return CharDFA(self.starts[kept], columns[kept], compressed.astype(np.int32), accepting[states])

    @cached_property
    def longest(self) -> int | None:
        """Characters of the longest accepted text, `None` if there is none."""
        targets = [{target for target in row if target >= 0} for row in self.table.tolist()]
        missing = [len(row) for row in targets]
        sources: list[list[int]] = [[] for _ in targets]
        for state, row in enumerate(targets):
            for target in row:
                sources[target].append(state)
        length = [0 if accepts else -math.inf for accepts in self.accepting]
        ready = [state for state, count in enumerate(missing) if not count]
        for state in ready:  # states whose followers are all done; those of a loop never are
            for source in sources[state]:
                length[source] = max(length[source], length[state] + 1)
                missing[source] -= 1
                if not missing[source]:
                    ready.append(source)
        return int(length[0]) if len(ready) == len(targets) else None

    @cached_property
    def shortest(self) -> int:
        """Characters of the shortest accepted text."""
        steps, frontier, seen = 0, {0}, {0}
        while not self.accepting[list(frontier)].any():
            steps += 1
            frontier = {target for state in frontier for target in self.table[state].tolist() if target >= 0} - seen
            seen |= frontier
        return steps

    def texts(self, limit: int) -> list[str] | None:
        """All accepted texts, `None` if there are more than `limit`."""
        if self.longest is None:
            return None
        sets = self.column_sets()
        found, stack = [], [(0, "")]
        while stack:
            state, text = stack.pop()
            if self.accepting[state]:
                found.append(text)
            for column, target in enumerate(self.table[state].tolist()):
                if target >= 0:
                    if sum(high - low + 1 for low, high in sets[column]) > limit:
                        return None
                    stack += [(target, text + chr(c)) for low, high in sets[column] for c in range(low, high + 1)]
            if len(found) + len(stack) > 4 * limit:
                return None
        return sorted(found) if len(found) <= limit else None


class _Determinizer:
    """
    The subset construction. A state is a set of states of the network and what assertions need to know of the
    character before; which transitions without a character are possible is known when the next character is.
    """

    def __init__(self, nfa: CharNFA) -> None:
        self.nfa = nfa
        self.has_assertions = any(nfa.assertions)
        sets = sorted({chars for edges in nfa.edges for chars, _ in edges})
        self.starts, self.columns = _ranges_of(sets, nfa.tracked)
        num_columns = int(self.columns.max(initial=-1)) + 1
        first = np.full(num_columns, 0)
        first[self.columns[self.columns >= 0]] = self.starts[self.columns >= 0]
        member = {chars: _membership(chars, first) for chars in (*sets, *nfa.tracked)}
        self.columns_of = {chars: np.flatnonzero(member[chars]).tolist() for chars in sets}
        tracked = [member[chars] for chars in nfa.tracked]
        self.kinds = [tuple(bool(flags[column]) for flags in tracked) for column in range(num_columns)]
        self.closures: dict[tuple[int, object, object], frozenset[int]] = {}
        self.num_steps = 0

    def run(self, start: int) -> CharDFA:
        begin: tuple[frozenset[int], tuple[bool, ...] | None] = (frozenset((start,)), None)
        numbers, queue, rows, accepting = {begin: 0}, [begin], [], []
        for states, before in queue:
            accepting.append(self.nfa.end in self.closure(states, before, None))
            row = []
            targets: list[set[int]] = [set() for _ in self.kinds]
            kinds = set(self.kinds) if self.has_assertions else {()}
            for kind in kinds:
                for state in self.closure(states, before, kind):
                    for chars, target in self.nfa.edges[state]:
                        for column in self.columns_of[chars]:
                            if not self.has_assertions or self.kinds[column] == kind:
                                targets[column].add(target)
                                self.num_steps += 1
            for column, reached in enumerate(targets):
                following = (frozenset(reached), self.kinds[column])
                if reached and following not in numbers:
                    numbers[following] = len(numbers)
                    queue.append(following)
                row.append(numbers[following] if reached else -1)
            rows.append(row)
            if len(numbers) > MAX_CHAR_STATES:
                raise ValueError(f"the pattern must need at most {MAX_CHAR_STATES} states (it needs more)")
            if self.num_steps > MAX_STEPS:
                raise ValueError(f"the pattern must need at most {MAX_STEPS} steps to be compiled (it needs more)")
        table = np.array(rows, dtype=np.int32).reshape(len(queue), -1)
        return CharDFA(self.starts, self.columns, table, np.array(accepting))._trimmed()

    def closure(self, states: frozenset[int], before: object, after: object) -> set[int]:
        """The states that can be reached without a character; `before` and `after` are `None` at the borders."""
        reached: set[int] = set()
        for state in states:
            key = (state, before, after) if self.has_assertions else (state, None, None)
            if key not in self.closures:
                seen, stack = {state}, [state]
                while stack:
                    current = stack.pop()
                    possible = [target for test, target in self.nfa.assertions[current] if test(before, after)]
                    for target in (*self.nfa.free[current], *possible):
                        if target not in seen:
                            seen.add(target)
                            stack.append(target)
                # States with no character of their own need not be told apart.
                self.closures[key] = frozenset(s for s in seen if self.nfa.edges[s] or s == self.nfa.end)
            self.num_steps += len(self.closures[key])
            reached |= self.closures[key]
        return reached


def _prefix_tree(texts: Iterable[str]) -> tuple[list[dict[str, int]], set[int]]:
    """Of each state the states after a character, and the states where a text ends."""
    children: list[dict[str, int]] = [{}]
    ends = set()
    for text in texts:
        state = 0
        for char in text:
            if char not in children[state]:
                children[state][char] = len(children)
                children.append({})
                if len(children) > 16 * MAX_CHAR_STATES:
                    raise ValueError("the texts must be fewer or shorter (they need too many states)")
            state = children[state][char]
        ends.add(state)
    return children, ends


def _ranges_of(sets: Iterable[CharSet], tracked: Iterable[CharSet] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Ranges of characters, and a column for those that are in the same of `sets`; -1 for those that are in none."""
    sets = list(sets)
    cuts = {0, *(cut for chars in (*sets, *tracked) for low, high in chars for cut in (low, high + 1))}
    starts = np.array(sorted(cut for cut in cuts if cut <= sys.maxunicode), dtype=np.int32)
    flags = np.stack([_membership(chars, starts) for chars in (*sets, *tracked)] or [np.zeros(len(starts), bool)])
    alive = flags[: len(sets)].any(axis=0)
    columns = np.full(len(starts), -1, dtype=np.int32)
    if alive.any():
        packed = np.packbits(flags[:, alive], axis=0)
        _, inverse = np.unique(packed, axis=1, return_inverse=True)
        columns[alive] = inverse.reshape(-1)
    return starts, columns


def _membership(chars: CharSet, codes: np.ndarray) -> np.ndarray:
    """Which code points are in a set: bool of the shape of `codes`."""
    if not chars:
        return np.zeros(len(codes), dtype=bool)
    lows, highs = np.array(chars).T
    index = np.searchsorted(lows, codes, "right") - 1
    return (index >= 0) & (codes <= highs[index])


def _completable(table: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """Which states lead to an accepting one."""
    sources = np.repeat(np.arange(len(table)), table.shape[1])
    targets = table.reshape(-1)
    sources, targets = sources[targets >= 0], targets[targets >= 0]
    order = np.argsort(targets, kind="stable")
    sources, borders = sources[order], np.searchsorted(targets[order], np.arange(len(table) + 1))
    completable = accepting.copy()
    stack = np.flatnonzero(accepting).tolist()
    while stack:
        state = stack.pop()
        for source in sources[borders[state] : borders[state + 1]].tolist():
            if not completable[source]:
                completable[source] = True
                stack.append(source)
    return completable


def _partition(table: np.ndarray, accepting: np.ndarray) -> np.ndarray:
    """The block of each state: states of one block accept the same texts (Moore's algorithm)."""
    block = accepting.astype(np.int64)
    num_blocks = len(np.unique(block))
    weights = np.random.default_rng(0).integers(1, 2**61, table.shape[1] + 1, dtype=np.uint64) | np.uint64(1)
    while True:
        following = np.append(block, -1)[table]
        keys = np.concatenate([block[:, None], following], axis=1)
        hashed = (keys.astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)
        _, first, inverse = np.unique(hashed, return_index=True, return_inverse=True)
        inverse = inverse.reshape(-1)
        if not np.array_equal(keys, keys[first][inverse]):  # two keys of one hash: compare the keys themselves
            _, inverse = np.unique(keys, axis=0, return_inverse=True)
            inverse = inverse.reshape(-1)
        count = int(inverse.max()) + 1
        block = inverse
        if count == num_blocks:
            return block
        num_blocks = count


@lru_cache(maxsize=1)
def free_text() -> CharDFA:
    """Any text."""
    return CharDFA.of_chars(TEXT_CHARS)

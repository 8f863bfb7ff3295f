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
"""Finite automata over bytes: regular expressions, numbers within bounds, and text in JSON's spelling.

A language of strings becomes a network of byte transitions (`ByteNetwork`, built from its end to its beginning), and
the network a deterministic table without dead ends (`ByteAutomaton`). Patterns are read by Python's own parser, so
that they mean what `re` says. Imported by `token_dfa_dimple` and `answer_parts_dimple`.
"""

import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np

#: Most states of an automaton; what needs more is refused.
MAX_STATES = 8192

#: Most steps that it takes to find them; a small pattern can ask for hours.
MAX_STEPS = 1 << 22

#: Inclusive ranges of code points, sorted, without overlaps.
CharSet = tuple[tuple[int, int], ...]

#: All that can be written in UTF-8: no surrogates.
ANY_CHAR: CharSet = ((0, 0xD7FF), (0xE000, 0x10FFFF))

#: What free text may hold: no control characters but tab and line feed.
TEXT_CHARS: CharSet = ((9, 10), (0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF))

#: What `.` does not match, in Python or in ECMAScript, whose dialect JSON Schema recommends.
_LINE_ENDS: CharSet = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))

#: Characters that JSON does not take as they are: controls, the quotation mark and the backslash.
_JSON_ESCAPED: CharSet = ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C))

_ASCII_CLASSES: dict[str, CharSet] = {
    "CATEGORY_DIGIT": ((48, 57),),
    "CATEGORY_WORD": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "CATEGORY_SPACE": ((9, 13), (32, 32)),
}
_UNICODE_CLASSES = {
    "CATEGORY_NOT_DIGIT": str.isdecimal,
    "CATEGORY_NOT_WORD": lambda char: char.isalnum() or char == "_",
    "CATEGORY_NOT_SPACE": str.isspace,
}


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
    gaps, start = [], 0
    for low, high in chars:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    return (*gaps, (start, sys.maxunicode)) if start <= sys.maxunicode else tuple(gaps)


def intersection(first: CharSet, second: CharSet) -> CharSet:
    """The code points of both sets."""
    return complement(union(complement(first), complement(second)))


@cache
def _char_class(name: str) -> CharSet:
    """
    A class of `re` such as `\\d`. Python takes them over Unicode, ECMAScript over ASCII; here a class is ASCII and a
    negated one leaves out all of Unicode's, so that both dialects agree on what is written. "Anything else" never asks
    for control characters: see `TEXT_CHARS`.
    """
    if name in _ASCII_CLASSES:
        return _ASCII_CLASSES[name]
    holds = _UNICODE_CLASSES[name]
    members = union(tuple((code, code) for code in range(sys.maxunicode + 1) if holds(chr(code))))
    return intersection(complement(members), TEXT_CHARS)


@lru_cache(maxsize=4096)
def _utf8_ranges(low: int, high: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The UTF-8 spellings of the code points `low` to `high`: products of byte ranges that do not overlap."""
    for boundary in (0x7F, 0x7FF, 0xFFFF):  # spellings of one length only
        if low <= boundary < high:
            return _utf8_ranges(low, boundary) + _utf8_ranges(boundary + 1, high)
    first, last = chr(low).encode(), chr(high).encode()
    for position in range(1, len(first)):  # from here on all continuation bytes, or the same ones before
        block = 1 << (6 * (len(first) - position))
        if low // block != high // block:
            if low % block:
                split = (low // block + 1) * block
                return _utf8_ranges(low, split - 1) + _utf8_ranges(split, high)
            if (high + 1) % block:
                split = high // block * block
                return _utf8_ranges(low, split - 1) + _utf8_ranges(split, high)
    return (tuple(zip(first, last, strict=True)),)


class ByteNetwork:
    """
    Byte transitions between numbered states, some of them free (taken without a byte).

    Each method takes the state to end in and returns the state to begin in, so that a sequence is built from its end
    to its beginning and alternatives share what follows them.

    Args:
        in_json (`bool`, *optional*, defaults to `False`):
            Whether characters are written as inside a JSON string, with `\\"` for a quotation mark and so on.
    """

    def __init__(self, in_json: bool = False) -> None:
        self.in_json = in_json
        self.edges: list[list[tuple[int, int, int]]] = []
        self.free: list[list[int]] = []
        self._shared: dict[tuple[int, int, int], int] = {}
        self.end = self.state()

    def state(self) -> int:
        """Adds a state."""
        if len(self.edges) > 8 * MAX_STATES:
            raise ValueError(f"the pattern must need at most {MAX_STATES} states (it needs more)")
        self.edges.append([])
        self.free.append([])
        return len(self.edges) - 1

    def byte_range(self, low: int, high: int, target: int) -> int:
        """One byte from `low` to `high`; the same request gets the same state."""
        key = (low, high, target)
        if key not in self._shared:
            self._shared[key] = self.state()
            self.edges[self._shared[key]].append(key)
        return self._shared[key]

    def literal(self, data: bytes, target: int) -> int:
        """Exactly these bytes."""
        for byte in reversed(data):
            target = self.byte_range(byte, byte, target)
        return target

    def text(self, text: str, target: int) -> int:
        """Exactly this text."""
        return self.literal((json.dumps(text, ensure_ascii=False)[1:-1] if self.in_json else text).encode(), target)

    def embed(self, automaton: "ByteAutomaton", target: int) -> int:
        """A string that `automaton` accepts."""
        states = [self.state() for _ in automaton.table]
        runs = np.flatnonzero(np.diff(np.frombuffer(automaton.byte_class, dtype=np.uint8))) + 1
        for state, row, accepts in zip(states, automaton.table, automaton.accepting, strict=True):
            for low, high in zip([0, *runs.tolist()], [*runs.tolist(), 256], strict=True):
                following = int(row[automaton.byte_class[low]])
                if following >= 0:
                    self.edges[state].append((low, high - 1, states[following]))
            if accepts:
                self.free[state].append(target)
        return states[0]

    def char(self, chars: CharSet, target: int) -> int:
        """One character of a set."""
        start = self.state()
        chars = intersection(chars, ANY_CHAR)
        if self.in_json:
            for low, high in intersection(chars, _JSON_ESCAPED):
                for code in range(low, high + 1):
                    self.free[start].append(self.text(chr(code), target))
            chars = intersection(chars, complement(_JSON_ESCAPED))
        for low, high in chars:
            for ranges in _utf8_ranges(low, high):
                state = target
                for pair in reversed(ranges[1:]):
                    state = self.byte_range(*pair, state)
                self.edges[start].append((*ranges[0], state))
        return start

    def either(self, states: Iterable[int]) -> int:
        """A state that is any of `states`."""
        start = self.state()
        self.free[start].extend(states)
        return start

    def chars(self, chars: CharSet, at_least: int, at_most: int | None, target: int) -> int:
        """Characters of a set, between `at_least` and `at_most` of them (`None`: any number)."""
        return self.repeat(lambda state: self.char(chars, state), at_least, at_most, target)

    def repeat(self, build: Any, at_least: int, at_most: int | None, target: int) -> int:
        """What `build(target)` builds, between `at_least` and `at_most` times (`None`: any number)."""
        if at_most is None:
            loop = self.state()
            self.free[loop] += [target, build(loop)]
            target = loop
        else:
            after = target
            for _ in range(at_most - at_least):
                target = self.either([after, build(target)])
        for _ in range(at_least):
            target = build(target)
        return target

    def pattern(self, pattern: str, target: int, search: bool = False) -> int:
        """
        A regular expression.

        Args:
            pattern (`str`):
                In the dialect of `re`, without look-around, back references and flags.
            target (`int`):
                State to end in.
            search (`bool`, *optional*, defaults to `False`):
                Whether the pattern may match anywhere in the text, as JSON Schema has it, instead of all of it.

        Returns:
            `int`: State to begin in.

        Raises:
            ValueError: If the pattern is no regular expression, or uses what is not supported.
        """
        tree = _parse(pattern)
        branches = [tree]
        if len(tree) == 1 and str(tree[0][0]) == "BRANCH":
            branches = tree[0][1][1]
        starts = []
        for branch in branches:
            items = list(branch)
            at_start, at_end = bool(items) and _is_anchor(items[0], "AT_BEGINNING"), False
            items = items[1:] if at_start else items
            if items and _is_anchor(items[-1], "AT_END"):
                at_end, items = True, items[:-1]
            state = target
            if search and not at_end:
                state = self.chars(TEXT_CHARS, 0, None, state)
            state = self._sequence(items, state)
            if search and not at_start:
                state = self.chars(TEXT_CHARS, 0, None, state)
            starts.append(state)
        return self.either(starts)

    def _sequence(self, items: Iterable[tuple[Any, Any]], target: int) -> int:
        for operation, argument in reversed(list(items)):
            target = self._item(str(operation), argument, target)
        return target

    def _item(self, operation: str, argument: Any, target: int) -> int:
        if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self.char(_chars_of(operation, argument), target)
        if operation == "BRANCH":
            return self.either([self._sequence(branch, target) for branch in argument[1]])
        if operation == "SUBPATTERN" and not argument[1] and not argument[2]:
            return self._sequence(argument[3], target)
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            at_least, at_most, items = argument
            most = None if str(at_most) == "MAXREPEAT" else int(at_most)
            return self.repeat(lambda state: self._sequence(items, state), int(at_least), most, target)
        name = {"AT": "anchors inside", "ASSERT": "look-around", "ASSERT_NOT": "look-around", "GROUPREF": "references"}
        raise ValueError(f"the pattern must not use {name.get(operation, operation.lower().replace('_', ' '))}")

    def number(
        self, low: float | int | None, high: float | int | None, int_digits: int, frac_digits: int, target: int
    ) -> int:
        """
        A decimal number in JSON's spelling, without exponent and without leading zeros.

        Args:
            low, high (`float` or `int`, *optional*):
                Inclusive bounds.
            int_digits (`int`):
                Most digits before the point.
            frac_digits (`int`):
                Most digits after it; 0 for integers.
            target (`int`):
                State to end in.

        Returns:
            `int`: State to begin in; one without a way out if no number fits.
        """
        unit = Fraction(1, 10**frac_digits)
        largest = 10**int_digits - unit
        bottom = -largest if low is None else max(exact(low), -largest)
        top = largest if high is None else min(exact(high), largest)
        starts = []
        if top >= 0:
            starts.append(_Decimals(self, max(bottom, Fraction(0)), top, int_digits, frac_digits, target).start())
        if bottom < 0:  # not -0, nor -0.0
            start = _Decimals(self, max(-top, unit), -bottom, int_digits, frac_digits, target).start()
            starts.append(self.literal(b"-", start))
        return self.either(starts)


class _Decimals:
    """
    The numbers from `low` to `high`, both at least 0, digit by digit.

    After some digits of the integer part it is known, for each number of digits still to come, whether all numbers
    that begin so are within the bounds, none, or some. As long as it is never "some", states that agree in this are
    one state; prefixes of a bound, of which there are few, keep their value.
    """

    def __init__(
        self, network: ByteNetwork, low: Fraction, high: Fraction, int_digits: int, frac_digits: int, end: int
    ):
        self.network, self.low, self.high, self.end = network, low, high, end
        self.int_digits, self.frac_digits = int_digits, frac_digits
        self.states: dict[Any, int] = {}

    def start(self) -> int:
        start = self.network.state()
        if self.int_digits:
            for digit in range(1, 10):
                self._add_digit(start, digit, self._integer(digit, 1))
        self._add_digit(start, 0, self._integer(0, self.int_digits))  # no digit may follow a leading zero
        return start

    def _add_digit(self, state: int, digit: int, target: int | None) -> None:
        if target is not None:
            self.network.edges[state].append((48 + digit, 48 + digit, target))

    def _status(self, first: Fraction, last: Fraction) -> str:
        if self.low <= first and last <= self.high:
            return "all"
        return "none" if last < self.low or first > self.high else "some"

    def _integer(self, value: int, num_digits: int) -> int | None:
        """The state after an integer part that begins with `value`; `None` if nothing within the bounds does."""
        unit = Fraction(1, 10**self.frac_digits)
        left = range(self.int_digits - num_digits + 1)
        statuses = tuple(self._status(Fraction(value * 10**k), (value + 1) * 10**k - unit) for k in left)
        if "all" not in statuses and "some" not in statuses:
            return None
        key = ("integer", num_digits, value if "some" in statuses else statuses)
        if key not in self.states:
            self.states[key] = state = self.network.state()
            if self.low <= value <= self.high:
                self.network.free[state].append(self.end)
            if self.frac_digits and statuses[0] != "none":
                point = self.network.state()
                for digit in range(10):
                    self._add_digit(point, digit, self._fraction(value * 10 + digit, 1))
                self.network.edges[state].append((46, 46, point))
            for digit in range(10 if num_digits < self.int_digits else 0):
                self._add_digit(state, digit, self._integer(value * 10 + digit, num_digits + 1))
        return self.states[key]

    def _fraction(self, value: int, num_digits: int) -> int | None:
        """The same after `num_digits` digits after the point; `value` counts units of the last one."""
        scale, unit = 10**num_digits, Fraction(1, 10**self.frac_digits)
        status = self._status(Fraction(value, scale), Fraction(value + 1, scale) - unit)
        if status == "none":
            return None
        key = ("fraction", num_digits, value if status == "some" else status)
        if key not in self.states:
            self.states[key] = state = self.network.state()
            if self.low <= Fraction(value, scale) <= self.high:
                self.network.free[state].append(self.end)
            for digit in range(10 if num_digits < self.frac_digits else 0):
                self._add_digit(state, digit, self._fraction(value * 10 + digit, num_digits + 1))
        return self.states[key]


def exact(number: float | int) -> Fraction:
    """
    The number as it is written. Reading a decimal rounds it monotonically, so a decimal within bounds that are taken
    so is within them when it has been read, too.
    """
    return Fraction(str(number))


def _is_anchor(item: tuple[Any, Any], name: str) -> bool:
    return str(item[0]) == "AT" and str(item[1]) in (name, f"{name}_STRING")


def _parse(pattern: str) -> Any:
    """The syntax tree of Python's own parser of regular expressions."""
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"the pattern must be a regular expression ({error})") from error
    if compiled.flags != re.UNICODE:
        raise ValueError("the pattern must not set flags")
    return re._parser.parse(pattern)  # type: ignore[attr-defined]  # what `re.compile` itself calls


def _chars_of(operation: str, argument: Any) -> CharSet:
    """The characters of one item of the syntax tree that matches a single character."""
    if operation == "LITERAL":
        return ((argument, argument),)
    if operation == "NOT_LITERAL":
        return intersection(complement(((argument, argument),)), TEXT_CHARS)
    if operation == "ANY":
        return intersection(TEXT_CHARS, complement(_LINE_ENDS))
    negated = False
    chars: list[CharSet] = []
    for kind, value in argument:
        name = str(kind)
        if name == "NEGATE":
            negated = True
        elif name == "LITERAL":
            chars.append(((value, value),))
        elif name == "RANGE":
            chars.append((tuple(value),))
        elif name == "CATEGORY" and negated and str(value) in _ASCII_CLASSES:
            # What a negated set excludes is all of Unicode's class, see `_char_class`.
            chars.append(complement(_char_class(str(value).replace("CATEGORY_", "CATEGORY_NOT_"))))
        elif name == "CATEGORY" and negated:
            # [^\D] may only hold what both dialects call a digit.
            chars.append(complement(_char_class(str(value).replace("CATEGORY_NOT_", "CATEGORY_"))))
        elif name == "CATEGORY":
            chars.append(_char_class(str(value)))
    merged = union(*chars)
    return intersection(complement(merged), TEXT_CHARS) if negated else merged


@dataclass(frozen=True)
class ByteAutomaton:
    """
    A deterministic automaton over bytes. State 0 is the start; every state can still be completed.

    Args:
        table (`np.ndarray`):
            int32 of shape `(num_states, num_byte_classes)`: the next state, -1 where there is none.
        byte_class (`bytes`):
            Column of each of the 256 bytes.
        accepting (`np.ndarray`):
            bool of shape `(num_states,)`: `True` where a string may end.
    """

    table: np.ndarray
    byte_class: bytes
    accepting: np.ndarray

    @classmethod
    def from_network(cls, network: ByteNetwork, start: int) -> "ByteAutomaton":
        """
        Args:
            network (`ByteNetwork`):
                The transitions.
            start (`int`):
                Its state to begin in; `network.end` is the one to end in.

        Raises:
            ValueError: If no string is accepted, or more than `MAX_STATES` states or `MAX_STEPS` steps are needed.
        """
        cuts = sorted({0, 256, *(cut for edges in network.edges for low, high, _ in edges for cut in (low, high + 1))})
        column_of = {cut: column for column, cut in enumerate(cuts)}
        byte_class = np.repeat(np.arange(len(cuts) - 1), np.diff(cuts))
        closures: dict[int, frozenset[int]] = {}

        def closed(states: Iterable[int]) -> frozenset[int]:
            reached: set[int] = set()
            for state in states:
                if state not in closures:
                    seen, stack = {state}, [state]
                    while stack:
                        for target in network.free[stack.pop()]:
                            if target not in seen:
                                seen.add(target)
                                stack.append(target)
                    # States with no byte of their own need not be told apart.
                    closures[state] = frozenset(s for s in seen if network.edges[s] or s == network.end)
                reached |= closures[state]
            return frozenset(reached)

        first = closed([start])
        numbers, queue, rows = {first: 0}, [first], []
        num_steps = 0
        for states in queue:
            targets: list[set[int]] = [set() for _ in cuts[1:]]
            for state in states:
                for low, high, target in network.edges[state]:
                    for column in range(column_of[low], column_of[high + 1]):
                        targets[column].add(target)
            row = []
            for reached in targets:
                following = closed(reached)
                num_steps += sum(len(closures[state]) for state in reached)
                if following and following not in numbers:
                    numbers[following] = len(numbers)
                    queue.append(following)
                row.append(numbers.get(following, -1))
            rows.append(row)
            if len(numbers) > MAX_STATES:
                raise ValueError(f"the pattern must need at most {MAX_STATES} states (it needs more)")
            if num_steps > MAX_STEPS:
                raise ValueError(f"the pattern must need at most {MAX_STEPS} steps to be compiled (it needs more)")
        accepting = np.array([network.end in states for states in queue])
        return cls._trimmed(np.array(rows, dtype=np.int32).reshape(len(queue), -1), byte_class, accepting)

    @classmethod
    def _trimmed(cls, table: np.ndarray, byte_class: np.ndarray, accepting: np.ndarray) -> "ByteAutomaton":
        """Drops states that cannot be completed or reached, and joins equal columns."""
        completable = accepting.copy()
        while True:
            more = completable | np.append(completable, False)[table].any(axis=1)
            if (more == completable).all():
                break
            completable = more
        if not completable[0]:
            raise ValueError("the pattern must match something (it matches nothing)")
        table = np.where(np.append(completable, False)[table], table, -1)
        reached, frontier = np.zeros(len(table), dtype=bool), np.array([0])
        while len(frontier):
            reached[frontier] = True
            following = np.unique(table[frontier])
            frontier = following[(following >= 0) & ~reached[following]]
        renumbered = np.append(np.cumsum(reached) - 1, -1)
        table = renumbered[table[reached]].astype(np.int32)
        table, columns = np.unique(table, axis=1, return_inverse=True)
        return cls(table, columns.reshape(-1)[byte_class].astype(np.uint8).tobytes(), accepting[reached])

    def intersect(self, other: "ByteAutomaton") -> "ByteAutomaton":
        """
        The strings that both accept.

        Raises:
            ValueError: If there is none, or too many states are needed.
        """
        pairs = sorted(set(zip(self.byte_class, other.byte_class, strict=True)))
        numbers, queue, rows = {(0, 0): 0}, [(0, 0)], []
        for left, right in queue:
            row = []
            for left_class, right_class in pairs:
                target = (int(self.table[left, left_class]), int(other.table[right, right_class]))
                if min(target) < 0:
                    row.append(-1)
                    continue
                if target not in numbers:
                    numbers[target] = len(numbers)
                    queue.append(target)
                row.append(numbers[target])
            rows.append(row)
            if len(numbers) > MAX_STATES:
                raise ValueError(f"the pattern must need at most {MAX_STATES} states (it needs more)")
        accepting = np.array([bool(self.accepting[left] and other.accepting[right]) for left, right in queue])
        byte_class = [pairs.index(pair) for pair in zip(self.byte_class, other.byte_class, strict=True)]
        return self._trimmed(np.array(rows, dtype=np.int32), np.array(byte_class), accepting)

    def accepts(self, data: bytes) -> bool:
        """Whether the automaton accepts exactly these bytes."""
        state = 0
        for byte in data:
            state = int(self.table[state, self.byte_class[byte]])
            if state < 0:
                return False
        return bool(self.accepting[state])

    def longest(self) -> int | None:
        """Bytes of the longest accepted string, `None` if there is none."""
        targets: list[Sequence[int]] = [[t for t in np.unique(row).tolist() if t >= 0] for row in self.table]
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

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
"""What an answer can consist of: fixed text, gaps with a kind of value, sequences and alternatives; and its layout.

Parts know no tokenizer. `lay_out` gives each its positions, in tokens, and makes the canvas of one tokenizer. Imported
by `schema_dimple`, which makes parts of JSON schemas, and by `structure_prior_dimple`, which makes them of templates.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from .answer_layout_dimple import Canvas, Piece
from .byte_dfa_dimple import TEXT_CHARS, ByteAutomaton, ByteNetwork, exact
from .token_dfa_dimple import TokenAutomaton, Vocabulary

#: Most positions of a canvas.
MAX_POSITIONS = 8192

#: Digits that a number has where its bounds do not ask for more.
INT_DIGITS, FRAC_DIGITS = 9, 6

_YEAR = r"[12]\d\d\d"
_LEAP_YEAR = r"(?:[12]\d(?:0[48]|[2468][048]|[13579][26])|(?:1[26]|2[048])00)"
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    rf"|02-(?:0[1-9]|1\d|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"

#: Formats of RFC 3339, in the years 1000 to 2999: name -> pattern.
FORMATS = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}T{_TIME}"}


@dataclass(frozen=True)
class Choices:
    """One of several texts, each in the tokens that the tokenizer gives it."""

    texts: tuple[str, ...]

    @lru_cache(maxsize=256)  # noqa: B019  # values are small, hashable and compared by content
    def automaton(self) -> ByteAutomaton:
        """The automaton of all texts that it can be."""
        network = ByteNetwork()
        return ByteAutomaton.from_network(network, network.either(network.text(t, network.end) for t in self.texts))


@dataclass(frozen=True)
class String:
    """
    Text.

    Args:
        pattern (`str`, *optional*):
            Regular expression that it matches.
        search (`bool`, *optional*, defaults to `False`):
            Whether the pattern may match anywhere, instead of from beginning to end.
        min_chars, max_chars (`int`, *optional*):
            Bounds of its length in characters.
        in_json (`bool`, *optional*, defaults to `False`):
            Whether it is written as between the quotation marks of JSON.
    """

    pattern: str | None = None
    search: bool = False
    min_chars: int = 0
    max_chars: int | None = None
    in_json: bool = False

    @lru_cache(maxsize=256)  # noqa: B019
    def automaton(self) -> ByteAutomaton:
        """The automaton of all texts that it can be."""
        network = ByteNetwork(self.in_json)
        counted = ByteAutomaton.from_network(
            network, network.chars(TEXT_CHARS, self.min_chars, self.max_chars, network.end)
        )
        if self.pattern is None:
            return counted
        network = ByteNetwork(self.in_json)
        matching = ByteAutomaton.from_network(network, network.pattern(self.pattern, network.end, self.search))
        return matching if self.min_chars == 0 and self.max_chars is None else matching.intersect(counted)


@dataclass(frozen=True)
class Number:
    """
    A decimal number in JSON's spelling, without exponent.

    Args:
        low, high (`float` or `int`, *optional*):
            Inclusive bounds.
        is_integer (`bool`):
            Whether it has no fraction.
    """

    low: float | int | None
    high: float | int | None
    is_integer: bool

    @lru_cache(maxsize=256)  # noqa: B019
    def automaton(self) -> ByteAutomaton:
        """The automaton of all texts that it can be."""
        bounds = [exact(bound) for bound in (self.low, self.high) if bound is not None]
        digits = [len(str(abs(int(bound)))) for bound in bounds]
        int_digits = max(digits) if len(digits) == 2 else max([INT_DIGITS, *(count + 1 for count in digits)])
        frac_digits = 0 if self.is_integer else FRAC_DIGITS
        if len(bounds) == 2 and not self.is_integer:  # so narrow that only longer fractions lie between
            while frac_digits < 400 and math.ceil(bounds[0] * 10**frac_digits) > bounds[1] * 10**frac_digits:
                frac_digits += 1
        network = ByteNetwork()
        start = network.number(self.low, self.high, int_digits, frac_digits, network.end)
        return ByteAutomaton.from_network(network, start)


Value = Choices | String | Number


@dataclass(frozen=True)
class Text:
    """Fixed text."""

    text: str


@dataclass(frozen=True)
class Gap:
    """
    A value to be generated.

    Args:
        value (`Value`):
            What it may be.
        where (`str`):
            Names the gap in errors.
        room (`int`, *optional*):
            Most tokens; as many as the longest value has bytes when missing.
        min_tokens (`int`, *optional*, defaults to 0):
            Fewest tokens.
        until (`int`, *optional*):
            In place of `room`: the position of the answer, or its length, where the gap ends.
        label (`tuple`, *optional*):
            Names the gap when the answer is read.
        lead (`str`, *optional*, defaults to `""`):
            Text that stands before the value in the gap: a space, which most tokens of words begin with.
    """

    value: Value
    where: str
    room: int | None = None
    min_tokens: int = 0
    until: int | None = None
    label: tuple[Any, ...] | None = None
    lead: str = ""


@dataclass(frozen=True)
class Sequence:
    """Parts one after the other."""

    parts: tuple["Part", ...]


@dataclass(frozen=True)
class Either:
    """One of several parts; an empty sequence among them makes it optional."""

    options: tuple["Part", ...]


@dataclass(frozen=True)
class FirstOf:
    """
    The first few of several parts.

    Args:
        items (`tuple`):
            The parts.
        at_least (`int`):
            How many of them must come.
    """

    items: tuple["Part", ...]
    at_least: int


Part = Text | Gap | Sequence | Either | FirstOf

EMPTY = Sequence(())


def flattened(part: Part) -> list[Part]:
    """The parts of nested sequences in one list, with neighbouring texts joined, so that they share tokens."""
    parts: list[Part] = []
    items = [inner for outer in part.parts for inner in flattened(outer)] if isinstance(part, Sequence) else [part]
    for item in items:
        if isinstance(item, Text) and parts and isinstance(parts[-1], Text):
            parts[-1] = Text(parts[-1].text + item.text)
        elif item != Text(""):
            parts.append(item)
    return parts


class _Layout:
    """Gives parts their positions, from left to right; see `lay_out`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ids: list[int] = []
        self.pieces: list[Piece] = []
        self.num_nodes = 1

    def canvas(self, part: Part) -> Canvas:
        last_node, _ = self.sequence(part, 0, 0, is_certain=True)
        return Canvas(self.vocabulary, self.ids, self.pieces, last_node)

    def sequence(self, part: Part, node: int, start: int, is_certain: bool) -> tuple[int, int]:
        """Lays out `part` from `node` at position `start`; returns the node and the position after it."""
        for item in flattened(part):
            if isinstance(item, Text):
                node, start = self.text(item, node, start, is_certain)
            elif isinstance(item, Gap):
                node, start = self.gap(item, node, start)
            elif isinstance(item, Either):
                ends = [self.sequence(option, node, start, is_certain=False) for option in item.options]
                node, start = self.join(ends)
            elif isinstance(item, FirstOf):
                ends = []
                for index, inner in enumerate(item.items):
                    if index >= item.at_least:
                        ends.append((node, start))
                    node, start = self.sequence(inner, node, start, is_certain and index < item.at_least)
                node, start = self.join([*ends, (node, start)])
        return node, start

    def text(self, item: Text, node: int, start: int, is_certain: bool) -> tuple[int, int]:
        ids = self.vocabulary.encode(item.text)
        end = start + len(ids)
        self._reserve(end)
        if is_certain:  # stands in every answer, so no piece has to allow it
            self.ids[start:end] = ids
            return node, end
        automaton = self.vocabulary.automaton(
            ("ids", tuple(ids)), lambda: TokenAutomaton.from_sequences([ids], self.vocabulary)
        )
        return self._piece(automaton, start, end, node), end

    def gap(self, gap: Gap, node: int, start: int) -> tuple[int, int]:
        automaton, longest = _gap_automaton(gap, self.vocabulary)
        room = longest if gap.room is None else gap.room
        if gap.until is not None:
            room = gap.until - start
            if room < 0:
                raise ValueError(
                    f"{gap.where} must begin before position {gap.until} (the text before it needs {start})"
                )
        if room is None:
            raise ValueError(f"{gap.where} must have a length in tokens, as its pattern matches text of any length")
        if isinstance(gap.value, Choices) and longest is not None and longest > room:
            choice = max(gap.value.texts, key=lambda text: len(self.vocabulary.encode(gap.lead + text)))
            raise ValueError(f"{gap.where} must be as long as its choice {choice!r}, {longest} tokens (got {room})")
        self._reserve(start + room)
        node = self._piece(automaton, start, start + room, node, gap.min_tokens, gap.label)
        if not self.pieces[-1].can_hold((None,) * room):
            raise ValueError(
                f"{gap.where} must be longer: nothing that it may hold has between {gap.min_tokens} and {room} tokens"
            )
        return node, start + room

    def join(self, ends: list[tuple[int, int]]) -> tuple[int, int]:
        """Leads several ends, each a node and a position, to one, with fillers after those that come before the
        last."""
        end = max(position for _, position in ends)
        exit_node = self._node()
        filler = self.vocabulary.automaton("filler", lambda: TokenAutomaton.from_sequences([()], self.vocabulary))
        for node, position in ends:
            self.pieces.append(Piece(filler, position, end, node, exit_node))
        return exit_node, end

    def _piece(
        self,
        automaton: TokenAutomaton,
        start: int,
        end: int,
        node: int,
        min_tokens: int = 0,
        label: tuple[Any, ...] | None = None,
    ) -> int:
        exit_node = self._node()
        self.pieces.append(Piece(automaton, start, end, node, exit_node, min_tokens, label))
        return exit_node

    def _node(self) -> int:
        self.num_nodes += 1
        return self.num_nodes - 1

    def _reserve(self, end: int) -> None:
        if end > MAX_POSITIONS:
            raise ValueError(f"the prior must need at most {MAX_POSITIONS} tokens (it needs more)")
        self.ids += [self.vocabulary.mask_id] * (end - len(self.ids))


def _gap_automaton(gap: Gap, vocabulary: Vocabulary) -> tuple[TokenAutomaton, int | None]:
    """What a gap may hold, and its most tokens (`None`: any number)."""
    if isinstance(gap.value, Choices):
        sequences = [vocabulary.encode(gap.lead + text) for text in gap.value.texts]
        build = lambda: TokenAutomaton.from_sequences(sequences, vocabulary)  # noqa: E731
        return vocabulary.automaton((gap.value, gap.lead), build), max(map(len, sequences))
    try:
        automaton = gap.value.automaton()
    except ValueError as error:
        raise ValueError(f"{gap.where}: {error}") from error
    if gap.lead:
        network = ByteNetwork()
        start = network.literal(gap.lead.encode(), network.embed(automaton, network.end))
        automaton = ByteAutomaton.from_network(network, start)
    build = lambda: TokenAutomaton.from_bytes(automaton, vocabulary)  # noqa: E731
    return vocabulary.automaton((gap.value, gap.lead), build), automaton.longest()


def lay_out(part: Part, vocabulary: Vocabulary) -> Canvas:
    """
    The canvas in which every gap has its own positions, with fillers after a value that does not need them all.

    Args:
        part (`Part`):
            The answer.
        vocabulary (`Vocabulary`):
            The tokens.

    Returns:
        `Canvas`

    Raises:
        ValueError: If a gap cannot hold any of its values, or the canvas gets too long.
    """
    return _Layout(vocabulary).canvas(part)


def lay_out_compactly(part: Part, vocabulary: Vocabulary) -> Canvas:
    """
    The canvas with as many positions as [`lay_out`] gives, in which all fillers stand after the answer's text: only
    the text that an answer begins with has fixed positions, everything after it moves with the lengths of the values.

    Arguments, result and errors as for [`lay_out`].
    """
    room = len(lay_out(part, vocabulary).ids)
    parts = flattened(part)
    prefix = []
    if parts and isinstance(parts[0], Text):
        prefix, parts = vocabulary.encode(parts[0].text), parts[1:]
    if not parts:
        return Canvas(vocabulary, prefix, [], 0)
    network = ByteNetwork()

    def build(part: Part, target: int) -> int:
        if isinstance(part, Text):
            return network.text(part.text, target)
        if isinstance(part, Gap):
            return network.literal(part.lead.encode(), network.embed(part.value.automaton(), target))
        if isinstance(part, Either):
            return network.either([build(option, target) for option in part.options])
        if isinstance(part, FirstOf):
            state = target
            for index, item in reversed(list(enumerate(part.items))):
                state = build(item, state)
                state = network.either([state, target]) if index >= part.at_least else state
            return state
        for item in reversed(flattened(part)):
            target = build(item, target)
        return target

    rest = Sequence(tuple(parts))
    automaton = vocabulary.automaton(
        ("compact", rest),
        lambda: TokenAutomaton.from_bytes(ByteAutomaton.from_network(network, build(rest, network.end)), vocabulary),
    )
    ids = prefix + [vocabulary.mask_id] * (room - len(prefix))
    return Canvas(vocabulary, ids, [Piece(automaton, len(prefix), room, 0, 1)], 1)


def with_prefix(part: Part, prefix: tuple[Any, ...]) -> Part:
    """The part with `prefix` before the label of every gap."""
    if isinstance(part, Gap):
        return replace(part, label=prefix + (part.label or ()))
    if isinstance(part, Sequence):
        return Sequence(tuple(with_prefix(item, prefix) for item in part.parts))
    if isinstance(part, Either):
        return Either(tuple(with_prefix(item, prefix) for item in part.options))
    if isinstance(part, FirstOf):
        return FirstOf(tuple(with_prefix(item, prefix) for item in part.items), part.at_least)
    return part


def repeated(item: Part, separator: Part, at_least: int, at_most: int) -> Part:
    """`item` between `at_least` and `at_most` times, with `separator` between; labels get the index before them."""
    items = [with_prefix(item, (index,)) for index in range(at_most)]
    rest = (Sequence((separator, item)) for item in items[1:])
    return FirstOf((*items[:1], *rest), at_least)


def num_parts(part: Part) -> int:
    """How many texts and gaps a part consists of, as its layout will see them."""
    return 1 if isinstance(part, Text | Gap) else sum(map(num_parts, _inside(part)))


def gaps_of(part: Part) -> Iterable[Gap]:
    """All gaps, in order."""
    if isinstance(part, Gap):
        yield part
    for item in _inside(part):
        yield from gaps_of(item)


def _inside(part: Part) -> tuple[Part, ...]:
    """The parts that a part is made of."""
    if isinstance(part, Sequence):
        return part.parts
    if isinstance(part, Either):
        return part.options
    return part.items if isinstance(part, FirstOf) else ()

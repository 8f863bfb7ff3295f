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
"""What an answer can consist of: literals, value slots, concatenations, alternations, repetitions, members of an
object.

Parts know no tokenizer. `padded_canvas` gives each value its own positions, `compact_canvas` lets the values share
one run of positions; both make the canvas of one tokenizer.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .answer_layout_dimple import Canvas, Segment
from .byte_dfa_dimple import written
from .byte_nfa_dimple import MAX_NODES, ByteNFA, TooLargeError
from .char_dfa_dimple import CharDFA, CharNFA
from .token_automaton_dimple import TokenAutomaton, build_automaton
from .vocabulary_dimple import Vocabulary

#: Most positions of a canvas.
MAX_POSITIONS = 8192

#: Most positions of a compact canvas whose length is not given; values share them.
MAX_SHARED_POSITIONS = 2048

#: Most parts that are looked at to find how long a compact canvas should be; parts of schemas share their own parts.
MAX_COUNTED_PARTS = 50_000

#: Most characters of a literal that neighbours are joined to: more than any canvas has positions for.
MAX_JOINED_CHARS = 1 << 16

#: Positions for properties that a schema does not mention, but does not forbid either.
OPEN_TOKENS = 24


@dataclass(frozen=True)
class Choices:
    """One of several texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Language:
    """
    A text of an automaton.

    Args:
        dfa (`CharDFA`):
            What it may be.
        max_chars (`int`, *optional*):
            Its most characters, where `dfa` does not count them.
        is_string (`bool`, *optional*, defaults to `False`):
            Whether it is a JSON string: written with escapes, between quotation marks.
    """

    dfa: CharDFA
    max_chars: int | None = None
    is_string: bool = False

    @property
    def longest(self) -> int | None:
        """Most characters, `None` if there is no limit."""
        bounds = [bound for bound in (self.dfa.longest, self.max_chars) if bound is not None]
        return min(bounds, default=None)


@dataclass(frozen=True, eq=False)
class Literal:
    """Fixed text."""

    text: str


@dataclass(frozen=True, eq=False)
class ValueSlot:
    """
    A value to be generated.

    Args:
        value (`Choices` or `Language`):
            What it may be.
        where (`str`):
            Names the slot in errors.
        max_tokens (`int`, *optional*):
            Most tokens in positions of its own; as many as the longest value has characters when missing.
        min_tokens (`int`, *optional*, defaults to 0):
            Fewest tokens.
        until (`int`, *optional*):
            In place of `max_tokens`: the position of the answer, or its length, where the slot ends.
        label (`tuple`, *optional*):
            Names the slot when the answer is read.
        prefix (`str`, *optional*, defaults to `""`):
            Text that stands before the value in the slot: a space, which most tokens of words begin with.
        is_open (`bool`, *optional*, defaults to `False`):
            Whether the opening quotation mark of a string stands before the slot.
    """

    value: Choices | Language
    where: str
    max_tokens: int | None = None
    min_tokens: int = 0
    until: int | None = None
    label: tuple[Any, ...] | None = None
    prefix: str = ""
    is_open: bool = False


@dataclass(frozen=True, eq=False)
class Concat:
    """Parts one after the other."""

    parts: tuple["Part", ...]


@dataclass(frozen=True, eq=False)
class Alternation:
    """One of several parts; an empty concatenation among them makes it optional."""

    options: tuple["Part", ...]


@dataclass(frozen=True, eq=False)
class Repeat:
    """
    A part that comes several times.

    Args:
        item (`Part`):
            The part.
        separator (`str`):
            What stands between two of them.
        min_times (`int`), max_times (`int`, *optional*):
            How often it comes; any number of times when `max_times` is missing.
        usual_times (`int`):
            How many of them a canvas is made for.
        label (`tuple`, *optional*, defaults to `()`):
            Stands before the index in the labels of the slots.
    """

    item: "Part"
    separator: str
    min_times: int
    max_times: int | None
    usual_times: int
    label: tuple[Any, ...] = ()


@dataclass(frozen=True, eq=False)
class Members:
    """
    The members of a JSON object, with commas between, without its braces.

    Args:
        named (`tuple`):
            Of each property, in order: its name and colon as they are written, its value, whether it must come.
        generated (`tuple`, *optional*):
            Members whose names are generated, after the named ones: name and colon, and value.
        separator (`str`):
            The comma.
        min_members (`int`), max_members (`int`, *optional*):
            How many members there are.
        usual_generated (`int`):
            How many generated members a canvas is made for.
        num_before (`int`, *optional*, defaults to 0):
            How many members stand before these.
        any_order (`bool`, *optional*, defaults to `False`):
            Whether the named ones may come in any order, in the compact layout.
    """

    named: tuple[tuple[str, "Part", bool], ...]
    generated: tuple[tuple["Part", "Part"], ...] = ()
    separator: str = ","
    min_members: int = 0
    max_members: int | None = None
    usual_generated: int = 0
    num_before: int = 0
    any_order: bool = False

    @cached_property
    def with_commas(self) -> "Part":
        """The members with their commas, from parts that no longer depend on each other."""
        return _with_commas(self)


Part = Literal | ValueSlot | Concat | Alternation | Repeat | Members

EMPTY = Concat(())


def flattened(part: Part, keep_wide: bool = False) -> Iterator[Part]:
    """
    The parts of nested concatenations one after the other, with neighbouring literals joined, so that they share
    tokens. `keep_wide`: members that `_is_wide` tells stay whole.
    """
    text = ""
    for item in _spread(part, keep_wide):
        if isinstance(item, Literal):
            text += item.text
            if len(text) < MAX_JOINED_CHARS:
                continue
        if text:
            yield Literal(text)
            text = ""
        if not isinstance(item, Literal):
            yield item
    if text:
        yield Literal(text)


def _spread(part: Part, keep_wide: bool) -> Iterator[Part]:
    if isinstance(part, Members) and not (keep_wide and _is_wide(part)):
        part = part.with_commas
    if isinstance(part, Concat):
        for inner in part.parts:
            yield from _spread(inner, keep_wide)
    elif isinstance(part, ValueSlot) and isinstance(part.value, Language) and part.value.is_string:
        yield from (Literal('"'), part, Literal('"'))
    else:
        yield part


def _with_commas(members: Members) -> Part:
    """
    Named members with their commas. One that must come anchors the commas: optional ones before it bring theirs after
    them, those after it before them. Without one, every member may be the first.
    """
    comma = Literal(members.separator)
    pairs: list[tuple[Part, bool]]
    pairs = [(Concat((Literal(key), value)), is_required) for key, value, is_required in members.named]
    if members.generated and members.usual_generated:
        item = Alternation(tuple(Concat(pair) for pair in members.generated))
        pairs.append((Repeat(item, members.separator, 1, None, members.usual_generated), False))
    anchor = next((index for index, (_, is_required) in enumerate(pairs) if is_required), None)

    after: list[Part] = [Concat((comma, part)) for part, _ in pairs]
    after = [
        part if is_required else Alternation((part, EMPTY))
        for part, (_, is_required) in zip(after, pairs, strict=True)
    ]

    if anchor is not None:
        before = [Alternation((Concat((part, comma)), EMPTY)) for part, _ in pairs[:anchor]]
        return Concat((*before, pairs[anchor][0], *after[anchor + 1 :]))
    firsts = [Concat((part, *after[index + 1 :])) for index, (part, _) in enumerate(pairs)]
    return Alternation((*firsts, EMPTY)) if firsts else EMPTY


def _refuse_counted_members(part: Part, checked: set[Part]) -> None:
    """Positions of their own leave each optional member free to come or not, so their number cannot be kept."""
    if part in checked:
        return
    checked.add(part)
    if isinstance(part, Concat):
        for inner in part.parts:
            _refuse_counted_members(inner, checked)
    elif isinstance(part, Members):
        if part.min_members or part.max_members is not None:
            raise ValueError('`layout` must be "compact" for `minProperties` and `maxProperties` (got "padded")')
        if _is_wide(part) and len(part.named) ** 2 > 2 * MAX_POSITIONS:  # each may be the first, with all others after
            raise TooLargeError(f"the prior must need at most {MAX_POSITIONS} tokens (it needs more)")
        for _, value, _ in part.named:
            _refuse_counted_members(value, checked)


def with_prefix(part: Part, prefix: tuple[Any, ...]) -> Part:
    """The part with `prefix` before the label of every slot."""
    if isinstance(part, ValueSlot):
        return replace(part, label=prefix + (part.label or ()))
    if isinstance(part, Concat):
        return Concat(tuple(with_prefix(item, prefix) for item in part.parts))
    if isinstance(part, Alternation):
        return Alternation(tuple(with_prefix(item, prefix) for item in part.options))
    if isinstance(part, Repeat):
        return replace(part, label=prefix + part.label)
    return part


def slots_of(part: Part) -> Iterable[ValueSlot]:
    """All slots of a template, in order."""
    if isinstance(part, ValueSlot):
        yield part
    inner: tuple[Part, ...] = ()
    if isinstance(part, Concat):
        inner = part.parts
    elif isinstance(part, Alternation):
        inner = part.options
    elif isinstance(part, Repeat):
        inner = (with_prefix(part.item, part.label),)
    for item in inner:
        yield from slots_of(item)


# Padded: a value has positions of its own.


class _PaddedLayout:
    """Gives parts their positions, from left to right; see `padded_canvas`."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ids: list[int] = []
        self.segments: list[Segment] = []
        self.num_nodes = 1
        self.automata: dict[Any, TokenAutomaton] = {}
        self.checked: set[Part] = set()

    def canvas(self, part: Part) -> Canvas:
        last_node, _ = self.concat(part, 0, 0, is_certain=True)
        return Canvas(self.vocabulary, self.ids, self.segments, last_node)

    def concat(self, part: Part, node: int, start: int, is_certain: bool) -> tuple[int, int]:
        """Lays out `part` from `node` at position `start`; returns the node and the position after it."""
        _refuse_counted_members(part, self.checked)
        for item in flattened(part):
            if isinstance(item, Literal):
                node, start = self.literal(item, node, start, is_certain)
            elif isinstance(item, ValueSlot):
                node, start = self.slot(item, node, start)
            elif isinstance(item, Alternation):
                ends = [self.concat(option, node, start, is_certain=False) for option in item.options]
                node, start = self.join(ends)
            elif isinstance(item, Repeat):
                node, start = self.repeat(item, node, start, is_certain)
        return node, start

    def repeat(self, item: Repeat, node: int, start: int, is_certain: bool) -> tuple[int, int]:
        times = item.usual_times if item.max_times is None else item.max_times
        ends = []
        for index in range(max(times, item.min_times)):
            if index >= item.min_times:
                ends.append((node, start))
            inner = Concat((Literal(item.separator if index else ""), with_prefix(item.item, (*item.label, index))))
            node, start = self.concat(inner, node, start, is_certain and index < item.min_times)
        return self.join([*ends, (node, start)])

    def literal(self, item: Literal, node: int, start: int, is_certain: bool) -> tuple[int, int]:
        ids = self.vocabulary.encode(item.text)
        end = start + len(ids)
        self._reserve(end)
        if is_certain:  # stands in every answer, so no segment has to allow it
            self.ids[start:end] = ids
            return node, end
        return self._segment(self._sequences((tuple(ids),)), start, end, node), end

    def slot(self, slot: ValueSlot, node: int, start: int) -> tuple[int, int]:
        automaton, longest = self._automaton(slot)
        size = longest if slot.max_tokens is None else slot.max_tokens
        if slot.until is not None:
            size = slot.until - start
            if size < 0:
                raise ValueError(
                    f"{slot.where} must begin before position {slot.until} (the text before it needs {start})"
                )
        if size is None:
            raise ValueError(f"{slot.where} must have a length in tokens, as its pattern matches text of any length")
        if isinstance(slot.value, Choices) and longest is not None and longest > size:
            choice = max(slot.value.texts, key=lambda text: len(self.vocabulary.encode(slot.prefix + text)))
            raise ValueError(f"{slot.where} must be as long as its choice {choice!r}, {longest} tokens (got {size})")
        self._reserve(start + size)
        node = self._segment(automaton, start, start + size, node, slot.min_tokens, slot.label)
        if not self.segments[-1].can_hold((None,) * size):
            raise ValueError(
                f"{slot.where} must be longer: nothing that it may hold has between {slot.min_tokens} and {size} "
                "tokens"
            )
        return node, start + size

    def join(self, ends: list[tuple[int, int]]) -> tuple[int, int]:
        """Leads several ends, each a node and a position, to one, with padding after those that come before the
        last."""
        end = max(position for _, position in ends)
        exit_node = self._node()
        for node, position in ends:
            self.segments.append(Segment(self._sequences(((),)), position, end, node, exit_node))
        return exit_node, end

    def _automaton(self, slot: ValueSlot) -> tuple[TokenAutomaton, int | None]:
        """What a slot may hold, and its most tokens (`None`: any number)."""
        if isinstance(slot.value, Choices):
            sequences = tuple(tuple(self.vocabulary.encode(slot.prefix + text)) for text in slot.value.texts)
            return self._sequences(sequences), max(map(len, sequences))
        key = (slot.value, slot.prefix)
        if key not in self.automata:
            self.automata[key] = _value_automaton(slot.value, slot.prefix, self.vocabulary)
        longest = slot.value.longest
        return self.automata[key], None if longest is None else longest + len(slot.prefix)

    def _sequences(self, sequences: tuple[tuple[int, ...], ...]) -> TokenAutomaton:
        if sequences not in self.automata:
            self.automata[sequences] = TokenAutomaton.from_sequences(sequences, self.vocabulary)
        return self.automata[sequences]

    def _segment(
        self,
        automaton: TokenAutomaton,
        start: int,
        end: int,
        node: int,
        min_tokens: int = 0,
        label: tuple[Any, ...] | None = None,
    ) -> int:
        exit_node = self._node()
        self.segments.append(Segment(automaton, start, end, node, exit_node, min_tokens, label))
        return exit_node

    def _node(self) -> int:
        self.num_nodes += 1
        return self.num_nodes - 1

    def _reserve(self, end: int) -> None:
        if end > MAX_POSITIONS or len(self.segments) > MAX_POSITIONS:
            raise TooLargeError(f"the prior must need at most {MAX_POSITIONS} tokens (it needs more)")
        self.ids += [self.vocabulary.mask_id] * (end - len(self.ids))


def _value_automaton(value: Language, prefix: str, vocabulary: Vocabulary) -> TokenAutomaton:
    """The automaton of a value alone."""
    dfa, max_chars = value.dfa, value.max_chars
    if prefix:
        nfa = CharNFA()
        start = nfa.embed(dfa, nfa.end)
        for char in reversed(prefix):
            start = nfa.char(((ord(char), ord(char)),), start)
        dfa = CharDFA.from_nfa(nfa, start)
        max_chars = None if max_chars is None else max_chars + len(prefix)
    content = written(dfa, in_json=value.is_string)
    return build_automaton(lambda network: network.segment(content, max_chars, network.end), vocabulary)


def padded_canvas(
    part: Part, vocabulary: Vocabulary, length: int | None = None, max_states: int = MAX_NODES
) -> Canvas:
    """
    The canvas in which every slot has its own positions, with padding after a value that does not need them all.

    Args:
        part (`Part`):
            The answer.
        vocabulary (`Vocabulary`):
            The tokens.
        length (`int`, *optional*):
            Must be `None`: the parts give the length.
        max_states (`int`, *optional*):
            Not used: positions of their own are bounded by `MAX_POSITIONS`.

    Returns:
        `Canvas`

    Raises:
        TooLargeError: If the canvas gets too long.
        ValueError: If a slot cannot hold any of its values.
    """
    if length is not None:
        raise ValueError(f'`max_tokens` must be None with the layout "padded" (got {length})')
    return _PaddedLayout(vocabulary).canvas(part)


# Compact: values share one run of positions.


def compact_canvas(
    part: Part, vocabulary: Vocabulary, length: int | None = None, max_states: int = MAX_NODES
) -> Canvas:
    """
    The canvas in which all padding stands after the answer's text: only the text that an answer begins with has fixed
    positions, everything after it moves with the lengths of the values.

    Args:
        part, vocabulary:
            As for [`padded_canvas`].
        length (`int`, *optional*):
            Its positions. When missing, as many as the values usually need, at most `MAX_SHARED_POSITIONS`.
        max_states (`int`, *optional*):
            Most states of its automaton.

    Returns:
        `Canvas`

    Raises:
        TooLargeError: If the answer needs more states.
        ValueError: If nothing that it may be is as short as the canvas.
    """
    text, parts = _fixed_beginning(part)
    prefix = vocabulary.encode(text) if text else []
    if not parts:
        return Canvas(vocabulary, prefix, [], 0)
    rest = Concat(tuple(parts))
    automaton = build_automaton(lambda nfa: _Builder(nfa).build(rest, nfa.end), vocabulary, max_states)
    is_free = length is None
    if length is None:
        length = min(usual_tokens(part, vocabulary), MAX_SHARED_POSITIONS)
    segment = Segment(automaton, len(prefix), max(length, len(prefix)), 0, 1)
    shortest = segment.shortest(MAX_POSITIONS)
    if shortest is None or (not is_free and shortest > length):
        raise ValueError(
            f"`max_tokens` must be at least {MAX_POSITIONS if shortest is None else shortest}, the tokens of the "
            f"shortest possible answer (got {length})"
        )
    segment.end = max(segment.end, shortest)
    ids = prefix + [vocabulary.mask_id] * (segment.end - len(prefix))
    return Canvas(vocabulary, ids, [segment], 1)


def _fixed_beginning(part: Part) -> tuple[str, list[Part]]:
    """The text that every answer begins with, and the parts after it."""
    text, parts = "", [part]
    while parts and len(text) < MAX_JOINED_CHARS:
        first, *rest = parts
        if isinstance(first, Literal):
            text, parts = text + first.text, rest
        elif isinstance(first, Concat):
            parts = [*first.parts, *rest]
        elif (
            isinstance(first, Members)
            and first.named
            and first.named[0][2]
            and not (first.max_members or first.any_order)
        ):
            key, value, _ = first.named[0]
            text += (first.separator if first.num_before else "") + key
            parts = [value, replace(first, named=first.named[1:], num_before=1), *rest]
        elif isinstance(first, ValueSlot) and isinstance(first.value, Language) and first.value.is_string:
            return text + '"', [replace(first, is_open=True), *rest]
        else:
            break
    return text, parts


def usual_tokens(part: Part, vocabulary: Vocabulary) -> int:
    """The positions of the padded canvas, without making it; may stop when it is more than `MAX_SHARED_POSITIONS`."""
    sizes: dict[Part, int] = {}
    nums_open: dict[Part, int] = {}
    num_left = MAX_COUNTED_PARTS

    def size(part: Part) -> int:
        nonlocal num_left
        if part not in sizes:
            total = OPEN_TOKENS * _num_open(part, nums_open)
            for item in flattened(part, keep_wide=True):
                num_left -= 1
                if num_left < 0 or total > MAX_SHARED_POSITIONS:
                    return MAX_SHARED_POSITIONS
                total += size_of(item)
            sizes[part] = total
        return sizes[part]

    def size_of(item: Part) -> int:
        if isinstance(item, Literal):
            return len(vocabulary.encode(item.text))
        if isinstance(item, ValueSlot):
            return _slot_size(item, vocabulary)
        if isinstance(item, Alternation):
            return max(map(size, item.options))
        if isinstance(item, Members):
            return sum(len(key) // 4 + 2 + size(value) for key, value, _ in item.named)
        assert isinstance(item, Repeat)
        times = max(item.min_times, item.usual_times if item.max_times is None else item.max_times)
        return times * (size(item.item) + 1)

    return size(part)


def _is_wide(part: Part) -> bool:
    """Whether these are so many members, all of them optional, that their commas are not worth counting one by one."""
    return (
        isinstance(part, Members) and len(part.named) > 24 and not any(is_required for _, _, is_required in part.named)
    )


def _num_open(part: Part, known: dict[Part, int]) -> int:
    """Objects of this part itself, and not inside its values, that may have properties which no one asked for."""
    if part not in known:
        if isinstance(part, Concat):
            known[part] = sum(_num_open(inner, known) for inner in part.parts)
        else:
            is_open = isinstance(part, Members) and bool(part.generated) and not part.usual_generated
            known[part] = int(is_open and not _is_wide(part))
    return known[part]


def _slot_size(slot: ValueSlot, vocabulary: Vocabulary) -> int:
    if isinstance(slot.value, Choices):
        return max(len(vocabulary.encode(text)) for text in slot.value.texts)
    longest = slot.value.longest if slot.max_tokens is None else slot.max_tokens
    if longest is None:
        raise ValueError(f"{slot.where} must have a length in tokens, as its pattern matches text of any length")
    return longest


class _Builder:
    """Turns parts into a network, from its end to its beginning."""

    def __init__(self, nfa: ByteNFA) -> None:
        self.nfa = nfa
        self.built: dict[tuple[Part, int], int] = {}

    def build(self, part: Part, target: int) -> int:
        """The node before `part`; parts are told by identity, so that shared ones are built once for each target."""
        if (part, target) not in self.built:
            self.built[part, target] = self._build(part, target)
        return self.built[part, target]

    def _build(self, part: Part, target: int) -> int:
        nfa = self.nfa
        if isinstance(part, Literal):
            return nfa.literal(part.text.encode(), target)
        if isinstance(part, ValueSlot):
            return self._slot(part, target)
        if isinstance(part, Alternation):
            return nfa.either(self.build(option, target) for option in part.options)
        if isinstance(part, Repeat):
            return self._repeat(part, target)
        if isinstance(part, Members):
            builder = _UnorderedMemberBuilder if part.any_order else _MemberBuilder
            return builder(self, part, target).run()
        for item in reversed(part.parts):
            target = self.build(item, target)
        return target

    def _slot(self, slot: ValueSlot, target: int) -> int:
        nfa, value = self.nfa, slot.value
        if isinstance(value, Choices):
            start = nfa.literals([text.encode() for text in value.texts], target)
        elif value.is_string:
            dfa = written(value.dfa, in_json=True, is_quoted=True, is_open=slot.is_open)
            start = nfa.segment(dfa, value.max_chars, target)
        else:
            start = nfa.embed(written(value.dfa), target)
        return nfa.literal(slot.prefix.encode(), start)

    def _repeat(self, part: Repeat, target: int) -> int:
        nfa = self.nfa
        separator = part.separator.encode()
        if part.max_times is None:
            after = nfa.placeholder()
            following = nfa.literal(separator, self.build(part.item, after))
            nfa.close(after, (target, following))
            first = self.build(part.item, after)
            num_after = max(part.min_times, 1)
        else:
            after, first, num_after = target, target, part.max_times
        for count in range(num_after - 1, 0, -1):  # the node after `count` items
            following = nfa.literal(separator, self.build(part.item, after))
            after = nfa.either((target, following)) if count >= part.min_times else following
        if num_after > 0:
            first = self.build(part.item, after)
        return nfa.either((target, first)) if part.min_times == 0 else first


class _MemberBuilder:
    """
    The members of one object. A node stands before each named member, once for objects that are still empty and once
    for those that are not; with a number of members to keep, once for each number of members so far.
    """

    def __init__(self, builder: _Builder, members: Members, target: int) -> None:
        self.builder, self.nfa, self.members, self.target = builder, builder.nfa, members, target
        # After so many members, one more changes nothing, or is one too many.
        self.top = max(members.min_members, members.max_members or 0, 1)
        self.nodes: dict[tuple[int, int], int] = {}
        self.keys: dict[tuple[int, int], int] = {}

    def run(self) -> int:
        num_named = len(self.members.named)
        for count in range(self.top, -1, -1):
            for index in range(num_named, -1, -1):
                self.nodes[index, count] = self._before(index, count)
        return self.nodes[0, min(self.members.num_before, self.top)]

    def _before(self, start: int, count: int) -> int:
        """The node before the named members from `start` on, after `count` members."""
        members, nfa = self.members, self.nfa
        is_full = members.max_members is not None and count >= members.max_members
        following = min(count + 1, self.top)
        keys = []
        for index in range(start, len(members.named)):
            if not is_full:
                keys.append(self._key(index, following))
            if members.named[index][2]:
                return self._separated([nfa.literal(b'"', nfa.either(keys))], count) if keys else nfa.either(())
        # No named member has to come any more.
        ends = [self.target] if count >= members.min_members else []
        node = nfa.placeholder()
        nexts = [nfa.literal(b'"', nfa.either(keys))] if keys else []
        if members.generated and not is_full:
            after = (
                node
                if count == self.top and start == len(members.named)
                else self.nodes.get((len(members.named), following), node)
            )
            nexts += [self.builder.build(Concat(pair), after) for pair in members.generated]
        nfa.close(node, (*ends, *([self._separated(nexts, count)] if nexts else ())))
        return node

    def _key(self, index: int, following: int) -> int:
        """The node before the name of one member, after its quotation mark; there are `following` members after it."""
        if (index, following) not in self.keys:
            key, value, _ = self.members.named[index]
            before_value = self.builder.build(value, self.nodes[index + 1, following])
            self.keys[index, following] = self.nfa.literal(key[1:].encode(), before_value)
        return self.keys[index, following]

    def _separated(self, nodes: list[int], count: int) -> int:
        """A comma before `nodes`, unless they are the first member."""
        node = self.nfa.either(nodes)
        return self.nfa.literal(self.members.separator.encode(), node) if count else node


class _UnorderedMemberBuilder:
    """The members of one object, the named ones in any order: a node for each set of those that have come."""

    def __init__(self, builder: _Builder, members: Members, target: int) -> None:
        self.builder, self.nfa, self.members, self.target = builder, builder.nfa, members, target
        self.nodes: dict[int, int] = {}

    def run(self) -> int:
        members, nfa = self.members, self.nfa
        after = nfa.placeholder()
        generated = [self.builder.build(Concat(pair), after) for pair in members.generated]
        comma = members.separator.encode()
        nfa.close(after, (self.target, nfa.literal(comma, nfa.either(generated))) if generated else (self.target,))
        required = sum(1 << index for index, (_, _, is_required) in enumerate(members.named) if is_required)
        for used in range((1 << len(members.named)) - 1, -1, -1):
            keys = [self._key(index, used) for index in range(len(members.named)) if not used >> index & 1]
            nexts = [nfa.literal(b'"', nfa.either(keys))] if keys else []
            nexts += generated if used & required == required else []
            ends = [self.target] if used & required == required else []
            if nexts:
                node = nfa.either(nexts)
                ends.append(nfa.literal(comma, node) if used else node)
            self.nodes[used] = nfa.either(ends)
        return self.nodes[0]

    def _key(self, index: int, used: int) -> int:
        """The node before the name of a member, after its quotation mark, when those of `used` have come."""
        key, value, _ = self.members.named[index]
        return self.nfa.literal(key[1:].encode(), self.builder.build(value, self.nodes[used | 1 << index]))

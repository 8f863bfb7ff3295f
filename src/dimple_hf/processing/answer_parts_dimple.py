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

Parts know no tokenizer. `answer_canvas_dimple` makes a canvas of them, `answer_network_dimple` an automaton.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from .char_dfa_dimple import CharDFA

#: Most characters of a literal that neighbours are joined to: more than any canvas has positions for.
MAX_JOINED_CHARS = 1 << 16


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
class FreeValue(Alternation):
    """
    Any JSON value, so that its network is made once.

    Args:
        key (`tuple`):
            Parts of one key have the same network.
    """

    key: tuple[Any, ...]


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
    tokens. `keep_wide`: members that `is_wide` tells stay whole.
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
    if isinstance(part, Members) and not (keep_wide and is_wide(part)):
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


def is_wide(part: Part) -> bool:
    """Whether these are so many members, all of them optional, that their commas are not worth counting one by one."""
    return (
        isinstance(part, Members) and len(part.named) > 24 and not any(is_required for _, _, is_required in part.named)
    )


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

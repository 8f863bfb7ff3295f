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
"""The canvas of an answer: `padded_canvas` gives each value its own positions, `compact_canvas` lets the values share
one run of positions. Both make the canvas of one tokenizer.
"""

from dataclasses import replace
from typing import Any

from .answer_layout_dimple import Canvas, Segment
from .answer_network_dimple import NetworkBuilder
from .answer_parts_dimple import (
    MAX_JOINED_CHARS,
    Alternation,
    Choices,
    Concat,
    Language,
    Literal,
    Members,
    Part,
    Repeat,
    ValueSlot,
    flattened,
    is_wide,
    with_prefix,
)
from .answer_sizes_dimple import MAX_SHARED_POSITIONS, usual_tokens
from .byte_dfa_dimple import written
from .byte_nfa_dimple import TooLargeError
from .char_dfa_dimple import CharDFA, CharNFA
from .token_automaton_dimple import TokenAutomaton, build_automaton
from .vocabulary_dimple import Vocabulary

#: Most positions of a canvas.
MAX_POSITIONS = 8192


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
        if is_wide(part) and len(part.named) ** 2 > 2 * MAX_POSITIONS:  # each may be the first, with all others after
            raise TooLargeError(f"the prior must need at most {MAX_POSITIONS} tokens (it needs more)")
        for _, value, _ in part.named:
            _refuse_counted_members(value, checked)


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


def padded_canvas(part: Part, vocabulary: Vocabulary, length: int | None = None) -> Canvas:
    """
    The canvas in which every slot has its own positions, with padding after a value that does not need them all.

    Args:
        part (`Part`):
            The answer.
        vocabulary (`Vocabulary`):
            The tokens.
        length (`int`, *optional*):
            Must be `None`: the parts give the length.

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


def compact_canvas(part: Part, vocabulary: Vocabulary, length: int | None = None) -> Canvas:
    """
    The canvas in which all padding stands after the answer's text: only the text that an answer begins with has fixed
    positions, everything after it moves with the lengths of the values.

    Args:
        part, vocabulary:
            As for [`padded_canvas`].
        length (`int`, *optional*):
            Its positions. When missing, as many as the values usually need, at most `MAX_SHARED_POSITIONS`.

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
    prefix, bracket = _open_bracket(prefix, vocabulary)
    rest = Concat((*bracket, *parts))
    automaton = build_automaton(lambda nfa: NetworkBuilder(nfa).build(rest, nfa.end), vocabulary)
    is_free = length is None
    if length is None:
        usual = usual_tokens(part, vocabulary)
        length = min(usual + max(0, usual - 32) // 8, MAX_SHARED_POSITIONS)  # some room, which values share
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


def _open_bracket(prefix: list[int], vocabulary: Vocabulary) -> tuple[list[int], list[Part]]:
    """Takes the last token from a beginning that ends with an opening bracket, and returns it as a part: a tokenizer
    joins it with what may follow, as in `{"`, and a model that expects such a token has no position for two."""
    last = vocabulary.to_bytes(prefix[-1:])
    text = last.decode(errors="ignore")  # a token may begin within a character
    if text.endswith(("{", "[")) and text.encode() == last:
        return prefix[:-1], [Literal(text)]
    return prefix, []


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

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
"""The walk of a network and the tree of tokens: what it finds is what trying every token from every state finds."""

import numpy as np
import pytest

from dimple_hf.processing import token_walk_dimple
from dimple_hf.processing.byte_dfa_dimple import written
from dimple_hf.processing.byte_nfa_dimple import ByteNFA, TooLargeError
from dimple_hf.processing.char_dfa_dimple import free_text
from dimple_hf.processing.token_walk_dimple import FlatNFA
from dimple_hf.processing.value_languages_dimple import number_dfa
from dimple_hf.processing.vocabulary_dimple import TokenTree, _tree_of

#: Every ASCII byte, and tokens that lie in a name, begin a string, pass through one, or end one.
TOKENS = [
    *(bytes([byte]) for byte in range(128)), b'{"', b"an", b'":', b'":"', b':"ab', b':"abc', b':"a",', b':""}',
    b'n":1', b'n":"\xc3', "é".encode(), b"12", b"120", b"121", b"20}", b'0,"n":1', b":1},",
]  # fmt: skip
RESTS = [b"", b"}", b',"n"', b',"n":12', b"x"]
TREE = TokenTree(*_tree_of([(data, i) for i, data in enumerate(TOKENS)], [(data, i) for i, data in enumerate(RESTS)]))

Configurations = dict[tuple[int, int], int]  # node and state inside it, or bytes that came -> characters


def some_network() -> tuple[ByteNFA, int]:
    """Two names before a number or a string of at most two characters, and the end or another number after it."""
    nfa = ByteNFA()
    text = written(free_text(), in_json=True, is_quoted=True)
    number = written(number_dfa(0, 120, is_integer=True))
    after = nfa.either((nfa.literal(b"}", nfa.end), nfa.literal(b',"n":', nfa.segment(number, None, nfa.end))))
    value = nfa.either((nfa.segment(text, 2, after), nfa.segment(number, None, after)))
    return nfa, nfa.literals([b'{"an":', b'{"a":'], value)


def stepped(nfa: ByteNFA, current: Configurations, byte: int) -> Configurations:
    """Where a network is after one more byte, the plain way."""
    found: Configurations = {}
    for (node, inner), count in current.items():
        segment, text = nfa.segment_of.get(node), nfa.text_of.get(node)
        after: dict[tuple[int, int], int] = {}
        if text is not None:
            if text.data[inner] == byte and inner + 1 < len(text.data):
                after = {(node, inner + 1): 0}
            elif text.data[inner] == byte:
                after = {(core, 0): 0 for core in nfa.cores(text.target)}
        elif segment is None:
            targets = [target for one, target in nfa.edges[node] if one == byte]
            after = {(core, 0): 0 for target in targets for core in nfa.cores(target)}
        else:
            state, count = segment.dfa.row(inner)[byte], count + bool(segment.dfa.is_char_start[inner])
            if state >= 0 and count <= segment.max_chars:
                after = {(node, state): count}
                if not segment.dfa.is_quoted and segment.dfa.accepting[state]:
                    after |= {(core, 0): 0 for core in nfa.cores(segment.target)}
            elif byte == 0x22 and segment.dfa.accepting[inner]:
                after = {(core, 0): 0 for core in nfa.cores(segment.target)}
        for key, number in after.items():
            found[key] = min(number, found.get(key, number))
    return found


def test_walk_finds_what_trying_every_token_finds() -> None:
    """The states of the tokens, and how many characters they begin, decide what an answer can be."""
    nfa, start = some_network()
    flat = FlatNFA(nfa, start)
    steps, _ = flat.walk(TREE)
    found: dict[tuple[int, int, int], int] = {}
    for origin, token, state, count in zip(steps.origin, steps.token, steps.state, steps.count, strict=True):
        key = (int(origin), int(token), int(state))
        found[key] = min(int(count), found.get(key, int(count)))

    number_of = dict(zip(flat.base.tolist(), flat.exit_number.tolist(), strict=True))
    begins: list[tuple[int, Configurations, list[tuple[int, bytes]]]] = []
    for node, first in flat._state_of.items():
        if node in nfa.segment_of:
            after = {(core, 0): 0 for core in nfa.cores(nfa.segment_of[node].target)}
            rests = [(-2 - number, data) for number, data in enumerate(RESTS)]
            begins.append((flat.num_states + number_of[first], after, rests))
        elif node != nfa.end:
            for state in range(len(nfa.text_of[node].data) if node in nfa.text_of else 1):
                begins.append((first + state, {(node, state): 0}, list(enumerate(TOKENS))))
    expected: dict[tuple[int, int, int], int] = {}
    for origin, begin, tokens in begins:
        for token, data in tokens:
            current = begin
            for byte in data:
                current = stepped(nfa, current, byte)
            for (core, inner), count in current.items():
                expected[origin, token, flat._state_of[core] + inner] = count

    assert found == expected
    # The controls: tokens that end inside a string, with characters, and such as pass through one.
    assert any(count for count in expected.values())
    assert len({state for _, _, state in expected}) > 10
    assert not any(token == TOKENS.index(b':"abc') for _, token, _ in expected)  # three characters are too many


def test_walk_stops_at_too_many_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's schema must not fill the memory."""
    nfa, start = some_network()
    flat = FlatNFA(nfa, start)
    assert len(flat.walk(TREE)[0].token) > 20  # the control
    monkeypatch.setattr(token_walk_dimple, "MAX_TRANSITIONS", 20)
    with pytest.raises(TooLargeError, match="must need at most 20 transitions"):
        flat.walk(TREE)


def test_children_are_those_of_the_tree() -> None:
    """Every node is the child of its parent with its byte; other bytes have none."""
    nodes = np.arange(1, len(TREE.byte))
    assert (TREE.children(TREE.parents[1:], TREE.byte[1:].astype(np.int32)) == nodes).all()
    leaf = int(np.flatnonzero(np.diff(TREE.first_child) == 0)[0])
    assert TREE.children(np.array([leaf]), np.array([65])).tolist() == [-1]


def test_literals_accept_exactly_their_texts_however_long() -> None:
    """Texts that begin alike share their beginning, which may be longer than Python nests calls."""
    texts = [b"", b"a", b"ab", b"b" * 3000 + b"x", b"b" * 3000 + b"y"]
    nfa = ByteNFA()
    start = nfa.literals(texts, nfa.end)
    for text in (*texts, b"b", b"ba", b"abc", b"b" * 3000):
        current = {(core, 0): 0 for core in nfa.cores(start)}
        for byte in text:
            current = stepped(nfa, current, byte)
        assert ((nfa.end, 0) in current) == (text in texts)
    assert FlatNFA(nfa, start).num_states < 3020  # the beginning is there once

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
"""Networks of answers: free values are copies of one network, and act as if they were built each time."""

from dataclasses import replace

import numpy as np
import pytest

from dimple_hf.processing import DimpleTokenizer, answer_network_dimple
from dimple_hf.processing.answer_network_dimple import NetworkBuilder
from dimple_hf.processing.answer_parts_dimple import Alternation, Concat, FreeValue, Literal, Part, Repeat
from dimple_hf.processing.byte_nfa_dimple import ByteNFA, TooLargeError
from dimple_hf.processing.free_value_dimple import free_value
from dimple_hf.processing.token_automaton_dimple import TokenAutomaton, build_automaton
from dimple_hf.processing.vocabulary_dimple import Vocabulary

LENGTH = 24
"""Positions of an answer."""


def without_copies(part: Part) -> Part:
    """The same parts, without free values that share a network."""
    if isinstance(part, Alternation):
        return Alternation(tuple(map(without_copies, part.options)))
    if isinstance(part, Concat):
        return Concat(tuple(map(without_copies, part.parts)))
    if isinstance(part, Repeat):
        return replace(part, item=without_copies(part.item))
    if hasattr(part, "generated"):
        return replace(part, generated=tuple(tuple(map(without_copies, pair)) for pair in part.generated))
    return part


def automaton_of(part: Part, vocabulary: Vocabulary) -> TokenAutomaton:
    return build_automaton(lambda nfa: NetworkBuilder(nfa).build(part, nfa.end), vocabulary)


def allowed_along(automaton: TokenAutomaton, tokens: list[int]) -> list[list[int]]:
    """What each position of an answer can take after the first of `tokens`."""
    rights = [automaton.accepting]
    for _ in range(LENGTH):
        rights.append(automaton.before(rights[-1], None))
    left, found = automaton.start, []
    for position in range(len(tokens) + 1):
        found.append(automaton.allowed(left, rights[LENGTH - 1 - position]).ids.tolist())
        if position < len(tokens):
            left = automaton.after(left, tokens[position])
    return found


@pytest.mark.parametrize("levels", [0, 1, 3])
def test_copies_of_a_network_act_as_the_network_itself(levels: int, tokenizer: DimpleTokenizer) -> None:
    """Two free values with different text after them: tokens lie before, inside, across the end, and after them."""
    vocabulary = Vocabulary.of(tokenizer)
    value = free_value(levels, (",", ":"), 8)
    part = Concat((Literal('{"a":'), value, Literal(',"b":['), Repeat(value, ",", 1, None, 1), Literal("]}")))
    automaton, plain = automaton_of(part, vocabulary), automaton_of(without_copies(part), vocabulary)
    rng = np.random.default_rng(levels)
    ends = set()
    for _ in range(60):
        tokens: list[int] = []
        for _ in range(LENGTH - 1):
            choices = allowed_along(automaton, tokens)[-1]
            tokens.append(int(rng.choice(choices)))
        assert allowed_along(automaton, tokens) == allowed_along(plain, tokens)
        ends.add(vocabulary.to_bytes(tokens)[5:6])
    assert len(ends) > 3  # the control: strings, numbers, words, brackets
    # The control: other values differ.
    other = automaton_of(Concat((Literal('{"a":'), free_value(levels + 1, (",", ":"), 8))), vocabulary)
    assert other.num_states != automaton.num_states


def test_free_values_of_one_key_have_one_network() -> None:
    """The canvas is made for different lengths, but the automaton does not depend on them."""
    first, second = free_value(3, (",", ":"), 8), free_value(3, (",", ":"), 16)
    assert first is not second
    assert answer_network_dimple._network_of(first) is answer_network_dimple._network_of(second)
    # The controls.
    assert answer_network_dimple._network_of(free_value(2, (",", ":"), 8)) is not answer_network_dimple._network_of(
        first
    )
    spaced = free_value(3, (", ", ": "), 8)
    assert answer_network_dimple._network_of(spaced) is not answer_network_dimple._network_of(first)


def test_networks_of_free_values_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is asked for many forms does not keep them all."""
    monkeypatch.setattr(answer_network_dimple, "_FREE_NETWORKS", {})
    monkeypatch.setattr(answer_network_dimple, "_MAX_FREE_NETWORKS", 3)
    for number in range(5):
        part = FreeValue((Literal(str(number)),), (number,))
        answer_network_dimple._network_of(part)
        assert len(answer_network_dimple._FREE_NETWORKS) <= 3


def test_copies_count_with_all_their_states() -> None:
    """The budget of an answer is about what it will need, not about what is written once."""
    part = Concat((free_value(3, (",", ":"), 8), Literal(","), free_value(3, (",", ":"), 8)))
    nfa = ByteNFA()
    NetworkBuilder(nfa).build(part, nfa.end)
    assert nfa.size > 2 * answer_network_dimple._network_of(free_value(3, (",", ":"), 8))[0].size
    small = ByteNFA(200)
    with pytest.raises(TooLargeError, match="must need at most 200 states"):
        NetworkBuilder(small).build(part, small.end)

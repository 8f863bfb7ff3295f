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
"""Token automata: they read tokens as byte automata read bytes, however few classes they keep."""

import random
import tracemalloc

import numpy as np
import pytest

from dimple_hf.processing import DimpleTokenizer
from dimple_hf.processing.byte_dfa_dimple import ByteAutomaton, ByteNetwork
from dimple_hf.processing.token_dfa_dimple import MAX_REMEMBERED, MAX_WALKS, TokenAutomaton, Vocabulary


@pytest.fixture
def vocabulary(tokenizer: DimpleTokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer)


def byte_automaton(pattern: str) -> ByteAutomaton:
    network = ByteNetwork()
    return ByteAutomaton.from_network(network, network.pattern(pattern, network.end))


def accepts(automaton: TokenAutomaton, ids: list[int]) -> bool:
    states = automaton.start
    for token in ids:
        states = automaton.after(states, token)
    return bool(states & automaton.accepting)


def test_vocabulary_spells_every_token_in_bytes(tokenizer: DimpleTokenizer, vocabulary: Vocabulary) -> None:
    """Joined bytes must be what the tokenizer decodes, also where a token ends inside a character."""
    spelled = [i for i, data in enumerate(vocabulary.token_bytes) if data is not None]
    assert len(spelled) == 420  # all but the 9 added ones
    for token in spelled:
        assert vocabulary.token_bytes[token].decode(errors="replace") == tokenizer.decode([token])
    ids = tokenizer.encode("naïve 日本語 \U0001f600")
    assert vocabulary.to_bytes(ids).decode() == "naïve 日本語 \U0001f600"
    assert vocabulary.to_bytes([tokenizer.pad_token_id, *ids, 10**6]) == vocabulary.to_bytes(ids)
    assert Vocabulary.of(tokenizer) is vocabulary


@pytest.mark.parametrize("text", ["", "The answer is", "e\u0301", "\u212b", "<|im_end|>", "a<|mask|>b", "\x00\r\n"])
def test_encode_decodes_to_exactly_the_text(vocabulary: Vocabulary, text: str) -> None:
    """The tokenizer normalizes and knows special tokens; fixed text must stay as it is asked."""
    ids = vocabulary.encode(text)
    assert vocabulary.to_bytes(ids).decode() == text
    assert not set(ids) & {420, 421, 422, 423}


def test_encode_prefers_the_tokens_of_the_tokenizer(tokenizer: DimpleTokenizer, vocabulary: Vocabulary) -> None:
    """The model knows text in these tokens; bytes are for what they cannot spell."""
    assert vocabulary.encode("The answer is") == tokenizer.encode("The answer is")
    assert len(vocabulary.encode("e\u0301")) == 3  # control: not in normal form C, so byte by byte


def test_vocabulary_grows_with_its_tokenizer(tokenizer: DimpleTokenizer, vocabulary: Vocabulary) -> None:
    """A token that is added later must not be taken for text."""
    tokenizer.add_tokens(["<new>"])
    assert Vocabulary.of(tokenizer) is not vocabulary
    assert Vocabulary.of(tokenizer).token_bytes[-1] is None


def test_vocabulary_without_a_mask_token_is_refused(tokenizer: DimpleTokenizer) -> None:
    """Without it nothing marks the gaps."""
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="`tokenizer.mask_token_id` must be set"):
        Vocabulary(tokenizer)


@pytest.mark.parametrize("pattern", [r"\d{1,3}", "( the| three| number)s?", "[^x]{2,4}", "é+", r"\w* \w*"])
def test_token_automaton_accepts_what_the_bytes_of_tokens_spell(vocabulary: Vocabulary, pattern: str) -> None:
    """Against the byte automaton, on all single tokens and on random sequences of those that occur."""
    automaton = byte_automaton(pattern)
    tokens = TokenAutomaton.from_bytes(automaton, vocabulary)
    rng = random.Random(0)
    used = [t for t in range(vocabulary.size) if tokens.after(tokens.start, t) and t != vocabulary.filler_id]
    sequences = [[token] for token in range(vocabulary.size) if token != vocabulary.filler_id]
    sequences += [rng.choices(used, k=rng.randint(2, 4)) for _ in range(2000)]
    verdicts = [accepts(tokens, ids) for ids in sequences]
    special = [any(vocabulary.token_bytes[i] is None for i in ids) for ids in sequences]
    expected = [
        not is_special and automaton.accepts(vocabulary.to_bytes(ids))
        for ids, is_special in zip(sequences, special, strict=True)
    ]
    assert verdicts == expected
    assert any(verdicts)
    assert not all(verdicts)


def test_token_automaton_takes_fillers_after_content_only(vocabulary: Vocabulary) -> None:
    """A filler inside a value would be dropped when it is read, and join what it parts."""
    automaton = TokenAutomaton.from_bytes(byte_automaton(r"\d{2}"), vocabulary)
    one, filler = vocabulary.encode("1")[0], vocabulary.filler_id
    verdicts = [accepts(automaton, ids) for ids in ([one, one], [one, one, filler, filler], [one, filler], [filler])]
    assert verdicts == [True, True, False, False]
    assert not accepts(automaton, [one, one, filler, one])


def test_allowed_is_what_leads_from_the_past_to_the_future(vocabulary: Vocabulary) -> None:
    """Both sides bind: between 4 and 6 of `4[0-5]6|7\\d8` stands one of six digits."""
    automaton = TokenAutomaton.from_bytes(byte_automaton(r"4[0-5]6|7\d8"), vocabulary)
    four, six, eight = (vocabulary.encode(digit)[0] for digit in "468")
    before = automaton.after(automaton.start, four)
    assert sorted(automaton.members(automaton.allowed(before, automaton.before(automaton.accepting, six)))) == sorted(
        vocabulary.encode(digit)[0] for digit in "012345"
    )
    assert automaton.size(automaton.allowed(before, automaton.before(automaton.accepting, eight))) == 0
    either = automaton.after(automaton.start, None)
    key = automaton.allowed(either, automaton.before(automaton.accepting, None))
    assert automaton.size(key) == len(automaton.members(key)) == 10
    assert sorted([*automaton.members(key), *automaton.others(key)]) == list(range(vocabulary.size))
    assert automaton.holds(key, np.array([four, vocabulary.filler_id, 423])).tolist() == [True, False, False]


def test_automaton_of_sequences_accepts_exactly_them(vocabulary: Vocabulary) -> None:
    """A choice is written in the tokenizer's own tokens, in no other way."""
    automaton = TokenAutomaton.from_sequences([[5, 6], [5, 7, 8], [9]], vocabulary)
    for ids, expected in (([5, 6], True), ([5, 7, 8], True), ([9], True), ([5], False), ([5, 7], False), ([], False)):
        assert accepts(automaton, ids) == expected
        assert accepts(automaton, [*ids, vocabulary.filler_id]) == expected
    assert accepts(TokenAutomaton.from_sequences([[]], vocabulary), [vocabulary.filler_id])


def ask_everything(automaton: TokenAutomaton, num_entries: int) -> None:
    """Fills the memories with so many entries of either kind; no two sets of states are the same."""
    for number in range(num_entries):
        states = int.from_bytes(random.Random(number).randbytes(automaton.num_states // 8), "little") + (number << 1)
        automaton.after(states, None)
        automaton.allowed(states, automaton.accepting)


def test_memory_of_steps_is_bounded(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server runs for weeks."""
    assert MAX_REMEMBERED > 1000  # control: the bound of the test is not the real one
    monkeypatch.setattr("dimple_hf.processing.token_dfa_dimple.MAX_REMEMBERED", 5)
    automaton = TokenAutomaton.from_bytes(byte_automaton(r"[a-z]{1,9}"), vocabulary)
    states = automaton.start
    for _ in range(9):
        states = automaton.after(states, vocabulary.encode("q")[0])
        automaton.before(states, None)
        automaton.allowed(states, automaton.accepting)
    assert len(automaton._steps) <= 5
    assert len(automaton._allowed) <= 5


@pytest.mark.parametrize("pattern", ["[a-z]{40}", "[a-z]{200}", "([a-z]{1,9}-){60}"])
def test_size_of_an_automaton_holds_whatever_it_is_asked(pattern: str, vocabulary: Vocabulary) -> None:
    """The bound of all automata together is made of it."""
    tracemalloc.start()
    try:
        automaton = TokenAutomaton.from_bytes(byte_automaton(pattern), vocabulary)
        own = tracemalloc.get_traced_memory()[0]
        ask_everything(automaton, MAX_REMEMBERED)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert own < used  # control: the memories count
    assert automaton.num_bytes / 3 < used <= automaton.num_bytes


def test_vocabulary_forgets_the_automata_that_were_not_used_for_the_longest(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client of a server may bring a schema of its own."""

    def ask(key: str) -> bool:
        """Whether the automaton had to be made anew."""
        made = []
        vocabulary.automaton(key, lambda: made.append(key) or TokenAutomaton.from_sequences([[5, 6]], vocabulary))
        return bool(made)

    vocabulary._automata.clear()
    keys = ["a", "b", "c", "d", "e"]
    assert [ask(key) for key in keys * 2] == [True] * 5 + [False] * 5  # control: the real bound has room for them
    size = vocabulary.automaton("a", lambda: None).num_bytes
    monkeypatch.setattr("dimple_hf.processing.token_dfa_dimple.MAX_AUTOMATA_BYTES", int(2.5 * size))
    vocabulary._automata.clear()
    assert [ask(key) for key in ("a", "b", "a", "c")] == [True, True, False, True]
    assert list(vocabulary._automata) == ["a", "c"]
    assert [ask(key) for key in ("a", "b", "c")] == [False, True, True]
    # One that is larger than the bound is kept alone: whoever laid it out is about to use it.
    monkeypatch.setattr("dimple_hf.processing.token_dfa_dimple.MAX_AUTOMATA_BYTES", size - 1)
    assert [ask(key) for key in ("d", "d")] == [True, False]
    assert list(vocabulary._automata) == ["d"]


def test_automaton_too_large_for_the_vocabulary_is_refused(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Better a clear word than a machine without memory."""
    monkeypatch.setattr("dimple_hf.processing.token_dfa_dimple.MAX_WALKS", 20)
    with pytest.raises(ValueError, match="must need fewer states for 429 tokens"):
        TokenAutomaton.from_bytes(byte_automaton("[a-z]{9}"), vocabulary)
    assert MAX_WALKS > 10**8

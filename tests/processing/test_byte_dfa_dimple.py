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
"""Byte automata: they accept exactly what `re`, arithmetic and JSON say, and have no dead ends."""

import json
import random
import re
from decimal import Decimal

import pytest

from dimple_hf.processing.byte_dfa_dimple import ANY_CHAR, TEXT_CHARS, ByteAutomaton, ByteNetwork, complement, union


def pattern_automaton(pattern: str, in_json: bool = False, search: bool = False) -> ByteAutomaton:
    network = ByteNetwork(in_json)
    return ByteAutomaton.from_network(network, network.pattern(pattern, network.end, search))


def number_automaton(low: float | None, high: float | None, int_digits: int, frac_digits: int) -> ByteAutomaton:
    network = ByteNetwork()
    return ByteAutomaton.from_network(network, network.number(low, high, int_digits, frac_digits, network.end))


def random_string(automaton: ByteAutomaton, rng: random.Random) -> bytes:
    """A string that the automaton accepts, or one of 60 bytes that it has not refused yet."""
    state, data = 0, b""
    while not (automaton.accepting[state] and rng.random() < 0.3) and len(data) < 60:
        following = [byte for byte in range(256) if automaton.table[state, automaton.byte_class[byte]] >= 0]
        if not following:
            break
        data += bytes([rng.choice(following)])
        state = int(automaton.table[state, automaton.byte_class[data[-1]]])
    return data


PATTERNS = [
    "a|bc", r"\d{2,4}-[A-Z]+", r'[^"\\]{0,5}', "(foo|bar){1,3}?x*", "[äöü]+.", r"[^\d]x", r"[^\D]", r"\S+", r"^a$|b$",
    "", "(?:ab){2}", r"\w\s", "[^a]", r"\x41é\.", "日本(語|人)?",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_automaton_accepts_what_re_matches(pattern: str) -> None:
    """Whatever it writes must match, else a parsed answer would not fit its own pattern."""
    automaton, rng = pattern_automaton(pattern), random.Random(0)
    accepted = [data for data in (random_string(automaton, rng) for _ in range(200)) if automaton.accepts(data)]
    assert len(accepted) > 20
    for data in accepted:
        assert re.fullmatch(pattern, data.decode()), data
    # control: it does not accept everything
    assert not automaton.accepts(b"\x00")


@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        ("a|bc", ["a", "bc"], ["", "b", "abc"]),
        (r"\d{2,4}", ["12", "1234"], ["1", "12345", "\u0663\u0663"]),  # ASCII digits only, as ECMAScript has it
        (r"[^\d]", ["a", "é"], ["1", "\u0663"]),  # and what is no digit for either dialect
        (r"\w+", ["a_1"], ["é", "a b"]),
        (".", ["a", "\U0001f600"], ["\n", "\r", "\u2028", "ab"]),
        ("é", ["é"], ["e\u0301"]),
        ("(ab?){2}", ["aa", "aba", "abab"], ["ab", "aaa"]),
    ],
)
def test_pattern_automaton_accepts_exactly_the_language(pattern: str, accepted: list[str], refused: list[str]) -> None:
    """Both sides of the border, where the two dialects of regular expressions differ."""
    automaton = pattern_automaton(pattern)
    assert [automaton.accepts(text.encode()) for text in accepted] == [True] * len(accepted)
    assert [automaton.accepts(text.encode()) for text in refused] == [False] * len(refused)


def test_pattern_automaton_searches_as_json_schema_asks() -> None:
    """A schema's pattern is not anchored; each alternative may bring its own anchors."""
    automaton = pattern_automaton("^ab|c$|d", search=True)
    assert [automaton.accepts(text) for text in (b"abx", b"xc", b"xdx", b"xab", b"cx")] == [True] * 3 + [False] * 2


def test_pattern_automaton_in_json_writes_escapes() -> None:
    """The language is that of the decoded string; its spelling must survive `json.loads`."""
    automaton, rng = pattern_automaton('[a"\\\\\n\x01é]{1,6}', in_json=True), random.Random(0)
    texts = {random_string(automaton, rng) for _ in range(300)}
    decoded = {json.loads(b'"' + text + b'"') for text in texts if automaton.accepts(text)}
    assert all(re.fullmatch('[a"\\\\\n\x01é]{1,6}', text) for text in decoded)
    assert set("".join(decoded)) == set('a"\\\n\x01é')
    assert automaton.accepts(rb"\"\\\n\u0001")
    assert not automaton.accepts(b'"')


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "must be a regular expression"),
        ("(?i)a", "must not set flags"),
        ("(?=a)b", "must not use look-around"),
        (r"(a)\1", "must not use references"),
        (r"a\bc", "must not use anchors inside"),
        ("(?i:a)", "must not use subpattern"),
        ("[a-c]{0}x{99999}", "must need at most 8192 states"),
        ("^(a|b|ab|[a-z]{1,50}){0,60}$", "must need at most 4194304 steps"),  # it was minutes
        (r"[\ud800]", "must match something"),
    ],
)
def test_pattern_automaton_refuses_what_it_cannot_guarantee(pattern: str, message: str) -> None:
    """A pattern that is half understood would break the guarantee."""
    with pytest.raises(ValueError, match=message):
        pattern_automaton(pattern)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 9), (5, 1234), (-17, 23), (None, None), (1000000, 9999999), (-50, -3), (99, 101), (0, 0)]
)
def test_number_automaton_accepts_exactly_the_integers_within_bounds(low: int | None, high: int | None) -> None:
    """Against arithmetic, densely around zero and the bounds, sparsely elsewhere."""
    automaton, rng = number_automaton(low, high, 9, 0), random.Random(0)
    values = {*range(-1500, 1500), *(rng.randint(-(10**8), 10**8) for _ in range(300))}
    values |= {bound + step for bound in (low or 0, high or 0) for step in (-1, 0, 1)}
    for value in values:
        expected = (low is None or value >= low) and (high is None or value <= high)
        assert automaton.accepts(str(value).encode()) == expected, value
    assert not any(automaton.accepts(text) for text in (b"", b"-", b"-0", b"007", b"+1", b"1.0", b"1e3"))


def test_number_automaton_needs_few_states_for_wide_bounds() -> None:
    """Prefixes that are alike share a state, or a seven-digit bound would need a million of them."""
    assert len(number_automaton(1234567, 7654321, 9, 0).table) < 40


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.5, 2.75), (0.125, 0.25), (3.3, 3.4), (None, 7.5), (-9.25, -9)])
def test_number_automaton_accepts_exactly_the_decimals_within_bounds(low: float | None, high: float) -> None:
    """Against exact decimals, with up to four digits after the point."""
    automaton, rng = number_automaton(low, high, 6, 4), random.Random(0)
    for _ in range(3000):
        text = f"{rng.uniform((low if low is not None else -20) - 1, high + 1):.{rng.randint(0, 4)}f}"
        if Decimal(text) == 0 and text.startswith("-"):
            continue
        expected = (low is None or Decimal(text) >= Decimal(str(low))) and Decimal(text) <= Decimal(str(high))
        assert automaton.accepts(text.encode()) == expected, text
    assert not any(automaton.accepts(text) for text in (b".5", b"1.", b"00.1", b"-0.0", b"1.00000"))


def test_number_automaton_without_a_number_within_bounds_is_refused() -> None:
    """Bounds that contradict each other must not wait for the model."""
    with pytest.raises(ValueError, match="must match something"):
        number_automaton(5, 4, 9, 0)


def test_byte_automaton_has_no_dead_ends() -> None:
    """Every state can be completed: a position that is unmasked early must never be a trap."""
    automaton = pattern_automaton(r"ab(c[^\x00-\U0010ffff]|d)")  # the first alternative matches nothing
    assert len(automaton.table) == 4  # before a, b, d and at the end
    assert automaton.accepts(b"abd")


def test_intersection_accepts_what_both_accept() -> None:
    """A pattern and a length together."""
    network = ByteNetwork()
    short = ByteAutomaton.from_network(network, network.chars(TEXT_CHARS, 0, 3, network.end))
    both = pattern_automaton("(äb)*").intersect(short)
    assert [both.accepts(text.encode()) for text in ("", "äb", "äbäb", "äbä")] == [True, True, False, False]
    with pytest.raises(ValueError, match="must match something"):
        pattern_automaton("a{4}").intersect(short)


def test_longest_counts_bytes_and_knows_loops() -> None:
    """It bounds the room of a slot."""
    assert pattern_automaton("a|bcd|é{2}").longest() == 4
    assert pattern_automaton("ab*c").longest() is None
    assert number_automaton(-5, 1234, 9, 0).longest() == 4


def test_char_of_any_range_writes_valid_utf8() -> None:
    """The borders of UTF-8's lengths, and of the surrogates between, are where such code goes wrong."""
    network = ByteNetwork()
    automaton = ByteAutomaton.from_network(network, network.char(ANY_CHAR, network.end))
    for code in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x10FFFF):
        assert automaton.accepts(chr(code).encode())
    for data in (b"\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"):
        assert not automaton.accepts(data)
    chars = ((0x7FE, 0x801), (0xFFFE, 0x10001), (0x20, 0x20))
    network = ByteNetwork()
    automaton = ByteAutomaton.from_network(network, network.char(union(chars), network.end))
    inside = [code for low, high in chars for code in range(low, high + 1)]
    assert all(automaton.accepts(chr(code).encode()) for code in inside)
    outside = [0x7FD, 0x802, 0xFFFD, 0x10002, 0x1F, 0x21]
    assert not any(automaton.accepts(chr(code).encode()) for code in outside)
    assert complement(complement(union(chars))) == union(chars)

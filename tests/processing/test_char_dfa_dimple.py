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
"""Automata over characters, and how they are written in bytes."""

import json
import random

import pytest
from test_patterns_dimple import random_text

from dimple_hf.processing.byte_dfa_dimple import written
from dimple_hf.processing.char_dfa_dimple import (
    ANY_CHAR,
    TEXT_CHARS,
    CharDFA,
    EmptyLanguageError,
    complement,
    free_text,
    union,
)
from dimple_hf.processing.patterns_dimple import pattern_dfa


def test_products_accept_what_both_accept_or_only_the_first() -> None:
    """A pattern and a length together, and names without those that are taken."""
    both = pattern_dfa("(äb)*")[0].intersect(CharDFA.of_chars(TEXT_CHARS, 0, 3))
    assert [both.accepts(text) for text in ("", "äb", "äbäb", "äbä")] == [True, True, False, False]
    names = free_text().subtract(CharDFA.of_texts(["name", "na"]))
    assert [names.accepts(text) for text in ("name", "na", "nam", "names", "", "x")] == [False, False, *[True] * 4]
    with pytest.raises(EmptyLanguageError, match="must match something"):
        pattern_dfa("a{4}")[0].intersect(CharDFA.of_chars(TEXT_CHARS, 0, 3))
    assert pattern_dfa("a+")[0].is_disjoint(pattern_dfa("b+")[0])
    assert not pattern_dfa("a+")[0].is_disjoint(pattern_dfa("[ab]+")[0])


def test_dfa_has_no_dead_ends_and_no_two_equal_states() -> None:
    """A position that is unmasked early must never be a trap, and what is larger costs more at every step."""
    assert len(pattern_dfa(r"ab(c[^\x00-\U0010ffff]|d)")[0].table) == 4  # before a, b, d and at the end
    assert len(pattern_dfa("(a|b)(a|b)|(a|b){2}")[0].table) == 3


def test_longest_and_shortest_count_characters_and_know_loops() -> None:
    """They bound the positions of a slot."""
    assert [pattern_dfa(pattern)[0].longest for pattern in ("a|bcd|é{2}", "ab*c")] == [3, None]
    assert [pattern_dfa(pattern)[0].shortest for pattern in ("abc|de", "", "ab*c")] == [2, 0, 2]


def test_texts_enumerates_small_languages() -> None:
    """And gives up on others at once."""
    assert pattern_dfa("a[bc]?|d")[0].texts(9) == ["a", "ab", "ac", "d"]
    assert pattern_dfa(".")[0].texts(9) is None
    assert pattern_dfa("a*")[0].texts(9) is None


def test_written_text_is_what_json_reads() -> None:
    """The language is that of the decoded string; its spelling must survive `json.loads`."""
    pattern = '[a"\\\\\n\té]{1,6}'
    dfa, rng = pattern_dfa(pattern)[0], random.Random(0)
    in_bytes = written(dfa, in_json=True, is_quoted=True)
    for text in filter(None, (random_text(dfa, rng) for _ in range(200))):
        data = json.dumps(text, ensure_ascii=False).encode()
        assert in_bytes.accepts(data[:-1])
        assert not in_bytes.accepts(data)  # the closing mark is not the text's
        assert not in_bytes.accepts(data[1:-1])
        assert written(dfa, in_json=True).accepts(data[1:-1])
    assert not written(dfa, in_json=True).accepts(b'"')  # control: raw marks do not stand inside
    assert written(dfa).accepts(b'"')


def test_written_characters_of_any_range_are_valid_utf8() -> None:
    """The borders of UTF-8's lengths, and of the surrogates between, are where such code goes wrong."""
    dfa = written(CharDFA.of_chars(ANY_CHAR, 1, 1))
    for code in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFF, 0x1000, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x3FFFF, 0x10FFFF):
        assert dfa.accepts(chr(code).encode())
    for data in (b"\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc3"):
        assert not dfa.accepts(data)
    chars = ((0x7FE, 0x801), (0xFFFE, 0x10001), (0x20, 0x20))
    dfa = written(CharDFA.of_chars(union(chars), 1, 1))
    inside = [code for low, high in chars for code in range(low, high + 1)]
    assert all(dfa.accepts(chr(code).encode()) for code in inside)
    assert not any(dfa.accepts(chr(code).encode()) for code in (0x7FD, 0x802, 0xFFFD, 0x10002, 0x1F, 0x21))
    assert complement(complement(union(chars))) == union(chars)

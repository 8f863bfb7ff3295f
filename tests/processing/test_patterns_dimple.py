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
"""Regular expressions as automata: what they write matches, whichever dialect judges it."""

import itertools
import random
import re

import pytest

from dimple_hf.processing.char_dfa_dimple import CharDFA, EmptyLanguageError
from dimple_hf.processing.patterns_dimple import UnsupportedPatternError, pattern_dfa


def random_text(dfa: CharDFA, rng: random.Random) -> str | None:
    """A text that the automaton accepts; `None` if 40 characters were not enough."""
    sets, state, text = dfa.column_sets(), 0, ""
    while not (dfa.accepting[state] and rng.random() < 0.3):
        options = [(column, target) for column, target in enumerate(dfa.table[state].tolist()) if target >= 0]
        if not options or len(text) == 40:
            break
        column, state = rng.choice(options)
        low, high = rng.choice(sets[column])
        text += chr(rng.randint(low, min(high, low + 50)))
    return text if dfa.accepting[state] else None


PATTERNS = [
    "a|bc", r"\d{2,4}-[A-Z]+", r'[^"\\]{0,5}', "(foo|bar){1,3}?x*", "[äöü]+.", r"[^\d]x", r"[^\D]", r"\S+", r"^a$|b$",
    "", "(?:ab){2}", r"\w\s", "[^a]", r"\x41é\.", "日本(語|人)?", r"^(?!foo)[a-z]+$", r"(?i)abc", r"\bfoo\b",
    r"^$|^[a-z]+$", r"(^a|b$)", r"^(?=.*\d)(?=.*[a-z]).{4,8}$", r"(?<!x)y", r"(?<=x)y", "^(?!.*foo).*$", r"a\Bb",
    r"(?m)^a$", r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$", r"^(?!\.\.?$)[^/]+$", r"(?s)^.$", r"(?P<x>a)b", "^[^@]+@[^@]+$",
]  # fmt: skip


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_dfa_writes_what_re_matches(pattern: str, search: bool) -> None:
    """Whatever it writes must match, else a parsed answer would not fit its own pattern."""
    if pattern == r"(?<=x)y" and not search:
        with pytest.raises(EmptyLanguageError):  # nothing stands before the text
            pattern_dfa(pattern)
        return
    dfa, rng = pattern_dfa(pattern, search)[0], random.Random(0)
    texts = [text for text in (random_text(dfa, rng) for _ in range(100)) if text is not None]
    assert len(texts) > 3
    for text in texts:
        assert (re.search if search else re.fullmatch)(pattern, text), text
    assert not dfa.accepts("\x00")  # control: it does not accept everything


@pytest.mark.parametrize(
    ("pattern", "accepted", "refused"),
    [
        ("a|bc", ["a", "bc"], ["", "b", "abc"]),
        (r"\d{2,4}", ["12", "1234"], ["1", "12345", "\u0663\u0663"]),  # ASCII digits only, as ECMAScript has it
        (r"[^\d]", ["a", "é"], ["1", "\u0663"]),  # and what is no digit for either dialect
        (r"\w+", ["a_1"], ["é", "a b"]),
        (".", ["a", "\t", "\U0001f600"], ["\n", "\r", "\u2028", "ab"]),
        ("é", ["é"], ["e\u0301"]),
        ("(ab?){2}", ["aa", "aba", "abab"], ["ab", "aaa"]),
        ("(?i)straße", ["STRAße", "straße"], ["STRASSE"]),
        (r"(?<year>\d{4})-\p{Lu}\p{Ll}*", ["2024-May", "2024-Ä"], ["2024-may"]),  # as ECMAScript writes them
        (r"[\p{L}\d]+", ["aé1"], ["a b"]),
        (r"\P{L}", ["1"], ["a"]),
        (r"\u{1F600}", ["\U0001f600"], ["u"]),
        ("^(?!foo|bar)[a-z]{3}$", ["fox", "baz"], ["foo", "bar"]),
        ("^$|^[a-z]+$", ["", "a"], ["A"]),
        ("a(?=)b|(?!)c", ["ab"], ["a", "c"]),  # nothing follows anywhere
    ],
)
def test_pattern_dfa_accepts_exactly_the_language(pattern: str, accepted: list[str], refused: list[str]) -> None:
    """Both sides of the border, where the two dialects of regular expressions differ."""
    dfa, _ = pattern_dfa(pattern)
    assert [dfa.accepts(text) for text in accepted] == [True] * len(accepted)
    assert [dfa.accepts(text) for text in refused] == [False] * len(refused)


def test_pattern_dfa_searches_as_json_schema_does() -> None:
    """A schema's pattern is not anchored; each alternative may bring its own anchors."""
    dfa, _ = pattern_dfa("^ab|c$|d", search=True)
    assert [dfa.accepts(text) for text in ("abx", "xc", "xdx", "xab", "cx")] == [True] * 3 + [False] * 2


def test_pattern_dfa_counts_many_characters_without_a_state_for_each() -> None:
    """`^.{1,2000}$` is a length."""
    dfa, max_chars = pattern_dfa("^.{1,2000}$", search=True)
    assert (len(dfa.table), max_chars) == (2, 2000)
    assert pattern_dfa("^.{1,9}$", search=True)[1] is None  # control: few are counted by the automaton
    assert pattern_dfa("^.{1,2000}", search=True)[1] is None  # and what is not anchored has no such length


#: Pieces of patterns whose meaning depends on what stands beside them, and characters to stand there.
BORDERS = (
    "a", "b", "x", ",", "[ax]", "[^a]", r"\b", r"\B", "^", "$", "(?=a)", "(?!a)", "(?=ax)", "(?!x,)", "a?", "(?:a|,)",
    "(?<=a)", "(?<!x)", "b{0,2}", ".", "(?=.*,)", r"(?!\b)", r"(?=\b)", r"^(?!b\b)", r"^(?=.*\bx)",
)  # fmt: skip


def test_pattern_dfa_of_borders_accepts_what_re_matches_or_refuses() -> None:
    """Every text of up to four characters. Of the empty one Python and ECMAScript say different things at `\\B`."""
    rng, num_compared, num_refused = random.Random(0), 0, 0
    texts = ["".join(text) for length in range(1, 5) for text in itertools.product("abx,", repeat=length)]
    for _ in range(200):
        pattern = "".join(rng.choices(BORDERS, k=rng.randint(2, 5)))
        expected = [text for text in texts if re.fullmatch(pattern, text)]
        try:
            dfa = pattern_dfa(pattern)[0]
        except UnsupportedPatternError:
            num_refused += 1
        except EmptyLanguageError:
            assert expected == [], pattern
        else:
            assert [text for text in texts if dfa.accepts(text)] == expected, pattern
            num_compared += bool(expected)
    assert num_compared > 30  # controls: most are understood, and some are not
    assert num_refused > 20


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("(", UnsupportedPatternError, "must be a regular expression"),
        ("(?x)a b", UnsupportedPatternError, "must not set flags"),
        (r"(a)\1", UnsupportedPatternError, "must not use back references"),
        (r"(?<n>a)\k<n>", UnsupportedPatternError, "must not use back references"),
        ("(?<=ab)c", UnsupportedPatternError, "look-behind of more than one"),
        ("(?:(?=a)a)*", UnsupportedPatternError, "look-ahead in a repetition"),
        (r"x(?=y)\by", UnsupportedPatternError, r"before `\^` or `\\b`"),
        (r"x(?!y)\b,", UnsupportedPatternError, r"before `\^` or `\\b`"),
        (r"(?=a)(?:b?|c)^a", UnsupportedPatternError, r"before `\^` or `\\b`"),
        (r"a(?=\b)", UnsupportedPatternError, r"look-ahead that begins with"),
        (r"a(?!x?\b),", UnsupportedPatternError, r"look-ahead that begins with"),
        (r"\p{Klingon}", UnsupportedPatternError, "a known Unicode property"),
        ("(?>a)b", UnsupportedPatternError, "atomic"),
        ("[a-c]{0}(xy){99999}", ValueError, "must need at most 4096 states"),
        ("^(a|b|ab|[a-z]{1,50}){0,60}$", ValueError, "must need at most"),  # it was minutes
        ("(((((a?){30}){30})){30})", ValueError, "must need at most"),
        (r"[\ud800]", EmptyLanguageError, "must match something"),
    ],
)
def test_pattern_dfa_refuses_what_it_cannot_guarantee(pattern: str, error: type[Exception], message: str) -> None:
    """A pattern that is half understood would break the guarantee."""
    with pytest.raises(error, match=message):
        pattern_dfa(pattern)

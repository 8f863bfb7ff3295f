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
"""Regular expressions as automata over characters.

Patterns are read by Python's own parser, after what only ECMAScript writes has been translated. Where the two dialects
differ (`\\d`, `\\w`, `\\s`, `.`), only what both match is written: classes are ASCII, negated ones leave out all of
Unicode's. So an answer is valid whichever dialect judges it.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from .char_dfa_dimple import (
    TEXT_CHARS,
    CharDFA,
    CharNFA,
    CharSet,
    EmptyLanguageError,
    complement,
    intersection,
    union,
)

#: What `.` does not match, in Python or in ECMAScript.
_LINE_ENDS: CharSet = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))

_ASCII_CLASSES: dict[str, CharSet] = {
    "CATEGORY_DIGIT": ((48, 57),),
    "CATEGORY_WORD": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "CATEGORY_SPACE": ((9, 10), (13, 13), (32, 32)),
}
_UNICODE_CLASSES = {
    "CATEGORY_NOT_DIGIT": str.isdecimal,
    "CATEGORY_NOT_WORD": lambda char: char.isalnum() or char == "_",
    "CATEGORY_NOT_SPACE": lambda char: char.isspace() or char == "\ufeff",
}

#: Stands for `\p{...}` while Python's parser reads a pattern.
_FIRST_PROPERTY = 0xF0000

#: How the parser names a repetition without a limit.
_UNBOUNDED = "MAXREPEAT"

#: `[X]{m,n}` of more repetitions becomes a length.
MAX_REPEATS_WRITTEN = 24


class UnsupportedPatternError(ValueError):
    """A pattern that is not regular, or not supported."""


@lru_cache(maxsize=512)
def pattern_dfa(pattern: str, search: bool = False) -> tuple[CharDFA, int | None]:
    """
    A regular expression.

    Args:
        pattern (`str`):
            In the dialect of Python's `re` or of ECMAScript, without back references.
        search (`bool`, *optional*, defaults to `False`):
            Whether the pattern may match anywhere in the text, as JSON Schema has it, instead of all of it.

    Returns:
        `tuple[CharDFA, int | None]`: The texts, and the most characters they may have, where the automaton itself does
        not count so far.

    Raises:
        EmptyLanguageError: If it matches nothing.
        UnsupportedPatternError: If it is no regular expression, or uses what is not supported.
        ValueError: If it needs too many states.
    """
    reader = _Reader(pattern)
    items, max_chars = _without_long_count(list(reader.tree), search)
    nfa = reader.nfa
    target = nfa.end
    if search:
        target = nfa.repeat(lambda state: nfa.char(TEXT_CHARS, state), 0, None, target)
    start = reader.sequence(items, target, reader.flags)
    if search:
        start = nfa.repeat(lambda state: nfa.char(TEXT_CHARS, state), 0, None, start)
    return CharDFA.from_nfa(nfa, start), max_chars


def _without_long_count(items: list[Any], search: bool) -> tuple[list[Any], int | None]:
    """`^[X]{m,n}$` counts to n elsewhere: an automaton would have n states."""
    core = items
    if search:
        if len(items) != 3 or not _is_anchor(items[0], "BEGINNING") or not _is_anchor(items[2], "END"):
            return items, None
        core = items[1:2]
    while len(core) == 1 and str(core[0][0]) == "SUBPATTERN" and not core[0][1][1] and not core[0][1][2]:
        core = list(core[0][1][3])
    if len(core) != 1 or str(core[0][0]) not in ("MAX_REPEAT", "MIN_REPEAT"):
        return items, None
    low, high, body = core[0][1]
    if str(high) == _UNBOUNDED or int(high) <= MAX_REPEATS_WRITTEN or len(body) != 1:
        return items, None
    if str(body[0][0]) not in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
        return items, None
    unbounded = (core[0][0], (low, _UNBOUNDED, body))
    return ([items[0], unbounded, items[2]] if search else [unbounded]), int(high)


def _is_anchor(item: tuple[Any, Any], name: str) -> bool:
    return str(item[0]) == "AT" and str(item[1]) in (f"AT_{name}", f"AT_{name}_STRING")


def _num_at_start(items: list[Any], flags: int) -> int:
    """How many of the first items stand at the start of the text for certain: after `^`, with no character between."""
    anchor = "AT_BEGINNING_STRING" if flags & re.MULTILINE else "AT_BEGINNING"
    is_anchored = False
    for index, item in enumerate(items):
        if str(item[0]) not in ("AT", "ASSERT", "ASSERT_NOT"):
            return index if is_anchored else 0
        is_anchored = is_anchored or str(item[0]) == "AT" and str(item[1]) in (anchor, "AT_BEGINNING_STRING")
    return len(items) if is_anchored else 0


def _borders_matter(nfa: CharNFA, start: int) -> bool:
    """Whether an assertion at `start`, with no character between, depends on what stands before it."""
    num_tracked = len(nfa.tracked)
    members = [tuple(index == other for other in range(num_tracked)) for index in range(num_tracked)]
    kinds = (None, (False,) * num_tracked, *members)
    seen, stack = {start}, [start]
    while stack:
        state = stack.pop()
        for test, _ in nfa.assertions[state]:
            if any(len({test(before, after) for before in kinds}) > 1 for after in kinds):
                return True
        for other in (*nfa.free[state], *(other for _, other in nfa.assertions[state])):
            if other not in seen:
                seen.add(other)
                stack.append(other)
    return False


class _Reader:
    """Turns a pattern's syntax tree into a network, from its end to its beginning."""

    def __init__(self, pattern: str) -> None:
        self.properties: list[CharSet] = []
        translated = self._translate(pattern)
        try:
            # Python has no public parser of patterns; this is the one that `re.compile` calls.
            self.tree = re._parser.parse(translated)  # type: ignore[attr-defined]
        except (re.error, OverflowError, RecursionError) as error:
            raise UnsupportedPatternError(f"the pattern must be a regular expression ({error})") from error
        self.flags = self.tree.state.flags
        if self.flags & (re.LOCALE | re.VERBOSE):
            raise UnsupportedPatternError("the pattern must not set flags but i, s, m and u")
        self.nfa = CharNFA()
        self.depth_of_loops = 0

    def _translate(self, pattern: str) -> str:
        """Named groups and Unicode properties as ECMAScript writes them, in Python's spelling."""
        pattern = re.sub(r"(?<!\\)\(\?<([A-Za-z_]\w*)>", r"(?P<\1>", pattern)
        pattern = re.sub(r"\\k<(\w+)>", r"(?P=\1)", pattern)
        pattern = re.sub(r"\\u\{([0-9A-Fa-f]{1,6})\}", lambda match: re.escape(chr(int(match[1], 16))), pattern)

        def stand_in(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0]
            chars = _property(match[2])
            self.properties.append(complement(chars) if match[1] == "P" else chars)
            return chr(_FIRST_PROPERTY + len(self.properties) - 1)

        return re.sub(r"\\(?:([pP])\{\^?([^}]*)\}|.)", stand_in, pattern, flags=re.DOTALL)

    def sequence(self, items: Iterable[tuple[Any, Any]], target: int, flags: int) -> int:
        items = list(items)
        num_at_start = _num_at_start(items, flags)
        for index in reversed(range(len(items))):
            operation, argument = str(items[index][0]), items[index][1]
            if operation in ("ASSERT", "ASSERT_NOT"):
                is_wanted = operation == "ASSERT"
                target = self._look_around(argument, is_wanted, target, flags, index < num_at_start)
            else:
                target = self._item(operation, argument, target, flags)
        return target

    def _item(self, operation: str, argument: Any, target: int, flags: int) -> int:
        if operation in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
            return self.nfa.char(self._chars(operation, argument, flags), target)
        if operation == "BRANCH":
            return self.nfa.either([self.sequence(branch, target, flags) for branch in argument[1]])
        if operation == "SUBPATTERN":
            _, added, removed, items = argument
            return self.sequence(items, target, (flags | added) & ~removed)
        if operation in ("MAX_REPEAT", "MIN_REPEAT"):
            min_times, max_times, items = argument
            most = None if str(max_times) == _UNBOUNDED else int(max_times)
            self.depth_of_loops += most is None
            start = self.nfa.repeat(lambda state: self.sequence(items, state, flags), int(min_times), most, target)
            self.depth_of_loops -= most is None
            return start
        if operation == "AT":
            return self._anchor(str(argument), target, flags)
        if operation == "FAILURE":  # `(?!)`, as later versions of Python read it
            return self.nfa.either([])
        names = {"GROUPREF": "back references", "GROUPREF_EXISTS": "back references", "ATOMIC_GROUP": "atomic groups"}
        name = names.get(operation, operation.lower().replace("_", " "))
        raise UnsupportedPatternError(f"the pattern must not use {name}")

    def _anchor(self, name: str, target: int, flags: int) -> int:
        nfa = self.nfa
        if name in ("AT_BOUNDARY", "AT_NON_BOUNDARY"):
            index = nfa.track(_ASCII_CLASSES["CATEGORY_WORD"])
            # What one dialect takes for a letter and the other does not must not stand beside a boundary.
            unsure = nfa.track(intersection(complement(((0, 127),)), complement(_char_class("CATEGORY_NOT_WORD"))))
            wanted = name == "AT_BOUNDARY"

            def test(before: Any, after: Any) -> bool:
                if (before is not None and before[unsure]) or (after is not None and after[unsure]):
                    return False
                return ((before is not None and before[index]) != (after is not None and after[index])) == wanted

            return nfa.assertion(test, target)
        at_start = name in ("AT_BEGINNING", "AT_BEGINNING_STRING")
        if flags & re.MULTILINE and not name.endswith("_STRING"):
            line = nfa.track(((10, 10),))
            if at_start:
                return nfa.assertion(lambda before, after: before is None or before[line], target)
            return nfa.assertion(lambda before, after: after is None or after[line], target)
        if at_start:
            return nfa.assertion(lambda before, after: before is None, target)
        return nfa.assertion(lambda before, after: after is None, target)

    def _look_around(
        self, argument: tuple[int, Any], is_wanted: bool, target: int, flags: int, is_at_start: bool
    ) -> int:
        """
        Look-ahead: the rest of the text, which begins at `target`, with or without the texts that begin so. Its
        automata take it for a whole text, so that no `^` and no `\\b` may ask what stands before it, unless it is one.
        Look-behind: of a single character, which the automaton remembers.
        """
        direction, items = argument
        items = list(items)
        if direction < 0:
            if len(items) == 1 and str(items[0][0]) in ("LITERAL", "NOT_LITERAL", "ANY", "IN"):
                index = self.nfa.track(self._chars(str(items[0][0]), items[0][1], flags))
                return self.nfa.assertion(
                    lambda before, after: (before is not None and before[index]) == is_wanted, target
                )
            raise UnsupportedPatternError("the pattern must not use look-behind of more than one character")
        if not items:  # (?!) never matches, (?=) always
            return target if is_wanted else self.nfa.state()
        ahead = CharNFA()
        inner, self.nfa = self.nfa, ahead
        anything = ahead.repeat(lambda state: ahead.char(TEXT_CHARS, state), 0, None, ahead.end)
        start = self.sequence(items, anything, flags)
        self.nfa = inner
        borders_matter = not is_at_start and (_borders_matter(inner, target) or _borders_matter(ahead, start))
        if self.depth_of_loops or borders_matter:
            raise UnsupportedPatternError(
                "the pattern must not use look-ahead in a repetition, or look-ahead that begins with or stands before "
                "`^` or `\\b`"
            )
        try:
            rest = CharDFA.from_nfa(inner, target)
        except EmptyLanguageError:
            return inner.state()
        try:
            begun = CharDFA.from_nfa(ahead, start)
            rest = rest.intersect(begun) if is_wanted else rest.subtract(begun)
        except EmptyLanguageError:
            return self.nfa.state() if is_wanted or not rest.is_disjoint(rest) else target
        return self.nfa.embed(rest, self.nfa.end)

    def _chars(self, operation: str, argument: Any, flags: int) -> CharSet:
        """The characters of one item of the syntax tree that matches a single character."""
        if operation == "LITERAL":
            return self._literal(argument, flags)
        if operation == "NOT_LITERAL":
            return intersection(complement(self._literal(argument, flags)), TEXT_CHARS)
        if operation == "ANY":
            return TEXT_CHARS if flags & re.DOTALL else intersection(TEXT_CHARS, complement(_LINE_ENDS))
        negated = False
        chars: list[CharSet] = []
        for kind, value in argument:
            name = str(kind)
            if name == "NEGATE":
                negated = True
            elif name == "LITERAL":
                chars.append(self._literal(value, flags))
            elif name == "RANGE":
                chars.append(_any_case((tuple(value),)) if flags & re.IGNORECASE else (tuple(value),))
            elif negated and str(value) in _ASCII_CLASSES:
                # What a negated set excludes is all of Unicode's class, see `_char_class`.
                chars.append(complement(_char_class(str(value).replace("CATEGORY_", "CATEGORY_NOT_"))))
            elif negated:
                # [^\D] may only hold what both dialects call a digit.
                chars.append(complement(_char_class(str(value).replace("CATEGORY_NOT_", "CATEGORY_"))))
            else:
                chars.append(_char_class(str(value)))
        merged = union(*chars)
        return intersection(complement(merged), TEXT_CHARS) if negated else merged

    def _literal(self, code: int, flags: int) -> CharSet:
        if 0 <= code - _FIRST_PROPERTY < len(self.properties):
            return self.properties[code - _FIRST_PROPERTY]
        return _any_case(((code, code),)) if flags & re.IGNORECASE else ((code, code),)


def _any_case(chars: CharSet) -> CharSet:
    """The set with the other case of its ASCII letters; of others, both cases are kept only as they are."""
    both = list(chars)
    for first, shift in ((65, 32), (97, -32)):
        for low, high in intersection(chars, ((first, first + 25),)):
            both.append((low + shift, high + shift))
    return union(tuple(sorted(both)))


@cache
def _char_class(name: str) -> CharSet:
    """
    A class such as `\\d`. Python takes them over Unicode, ECMAScript over ASCII; here a class is ASCII and a negated
    one leaves out all of Unicode's. Of the planes above the first only symbols and pictographs are looked at.
    """
    if name in _ASCII_CLASSES:
        return _ASCII_CLASSES[name]
    holds = _UNICODE_CLASSES[name]
    looked_at = (*range(0x10000), *range(0x1F300, 0x1FB00))
    return intersection(_set_of(code for code in looked_at if not holds(chr(code))), TEXT_CHARS)


@cache
def _property(name: str) -> CharSet:
    """A general category or one of the common scripts, as in `\\p{L}`."""
    scripts = {"Latin": "LATIN", "Greek": "GREEK", "Cyrillic": "CYRILLIC", "Han": "CJK UNIFIED", "Arabic": "ARABIC",
               "Hiragana": "HIRAGANA", "Katakana": "KATAKANA", "Hebrew": "HEBREW", "Thai": "THAI"}  # fmt: skip
    longer = {"Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Number": "N", "Mark": "M",
              "Decimal_Number": "Nd", "Punctuation": "P", "Symbol": "S", "Separator": "Z", "Other": "C",
              "Alphabetic": "L", "Uppercase": "Lu", "Lowercase": "Ll"}  # fmt: skip
    name = name.split("=")[-1].removeprefix("Is")
    category = longer.get(name, name)
    if name in scripts:
        prefix = scripts[name]
        return _set_of(code for code in range(0x10000) if unicodedata.name(chr(code), "").startswith(prefix))
    if not re.fullmatch(r"[CLMNPSZ][a-z&]?", category):
        raise UnsupportedPatternError(f"the pattern must use a known Unicode property (got {name!r})")
    chars = _set_of(c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)).startswith(category))
    return intersection(chars, TEXT_CHARS)


def _set_of(codes: Iterable[int]) -> CharSet:
    ranges: list[list[int]] = []
    for code in codes:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return tuple((low, high) for low, high in ranges)

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
"""Any JSON value: what an answer may hold where a schema says nothing."""

from functools import lru_cache

from .answer_parts_dimple import Choices, Concat, FreeValue, Language, Literal, Members, Part, Repeat, ValueSlot
from .char_dfa_dimple import free_text
from .value_languages_dimple import format_dfa

#: Levels of arrays and objects that a canvas is made for.
USUAL_LEVELS = 2

#: Levels inside arrays.
MAX_LEVELS_IN_ARRAY = 4

#: Numbers, booleans and null, and the most characters of numbers.
SCALAR = r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d{1,2})?|true|false|null"
MAX_NUMBER_CHARS = 32


def free_value(levels: int, separators: tuple[str, str], max_string_tokens: int) -> FreeValue:
    """
    Any JSON value. Arrays hold few levels, and those in arrays none but empty ones, so that the automaton does not
    double with each level.

    Args:
        levels (`int`):
            Levels of arrays and objects.
        separators (`tuple(str, str)`):
            The comma and the colon.
        max_string_tokens (`int`):
            Positions of a string.
    """
    return _free_value(levels, min(levels, USUAL_LEVELS), False, separators, max_string_tokens)


@lru_cache(maxsize=256)
def _free_value(
    levels: int, usual_levels: int, in_array: bool, separators: tuple[str, str], max_string_tokens: int
) -> FreeValue:
    comma, colon = separators
    text = Language(free_text(), None, True)
    # Numbers and words in one automaton: fewer nodes than with the words in bytes.
    scalar = Language(format_dfa(SCALAR), MAX_NUMBER_CHARS)
    options: list[Part] = [ValueSlot(text, "$", max_string_tokens), ValueSlot(scalar, "$", 8)]
    if levels:
        usual, inner_usual = min(1, usual_levels), max(0, usual_levels - 1)
        item_levels = 0 if in_array else min(levels - 1, MAX_LEVELS_IN_ARRAY)
        item = _free_value(item_levels, inner_usual, True, separators, max_string_tokens)
        value = _free_value(levels - 1, inner_usual, False, separators, max_string_tokens)
        pair = (ValueSlot(text, "$", 8), Concat((Literal(colon), value)))
        members = Members((), (pair,), comma, usual_generated=usual)
        options.append(Concat((Literal("["), Repeat(item, comma, 0, None, usual), Literal("]"))))
        options.append(Concat((Literal("{"), members, Literal("}"))))
    else:
        options.append(ValueSlot(Choices(("[]", "{}")), "$"))
    return FreeValue(tuple(options), (levels, in_array, separators))

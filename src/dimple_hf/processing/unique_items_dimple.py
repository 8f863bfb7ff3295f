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
"""Arrays with `uniqueItems`: shapes are split into kinds that share no value, and no kind comes twice.

An automaton cannot compare two items, but items of different kinds are never equal.
"""

from collections.abc import Iterable
from typing import Any

from .schema_shapes_dimple import Shape, same, search, type_of

#: Ways to tell strings, and how many kinds each tells: by the last character, by the length, by the first character.
PARTITIONS = (("[{letters}]$", 4), (r"^(?:[\s\S]{{{count}}})*[\s\S]{{{number}}}$", 3), ("^[{letters}]", 5))

#: Enumerated items that may come in any order, each a kind of its own.
MAX_UNORDERED = 7

#: Of each of several sums of shapes, the shapes of one kind.
Kind = list[list[Shape]]


def different(values: Iterable[Any]) -> list[Any]:
    """The values without those that equal one before them."""
    found: list[Any] = []
    for value in values:
        if not any(same(value, other) for other in found):
            found.append(value)
    return found


def by_type(shapes: Iterable[Shape]) -> list[Shape]:
    """The same values as shapes of one type each, one for each enumerated value, integers apart from fractions."""
    found = []
    for shape in shapes:
        for name in sorted(shape.types):
            own = shape.changed(types=frozenset((name,)))
            values = shape.values
            if values is None and name in ("boolean", "null"):
                values = tuple(
                    value
                    for value in ((True, False) if name == "boolean" else (None,))
                    if not any(same(value, other) for other in shape.excluded)
                )
            if values is not None:
                found += [own.changed(values=(value,)) for value in values if type_of(value) == name]
            elif name == "number" and not (shape.is_integer or shape.not_integer):
                found += [own.changed(is_integer=True), own.changed(not_integer=True)]
            else:
                found.append(own)
    return found


def enumerated(shapes: Iterable[Shape]) -> list[Any] | None:
    """The values of shapes as `by_type` returns them, if they are enumerated."""
    values = [shape.values for shape in shapes]
    return None if None in values else different(value for own in values for value in own or ())


def partitions(sums: list[list[Shape]]) -> list[list[Kind]]:
    """
    Ways to split the items of an array into kinds that share no value.

    Args:
        sums (`list[list[Shape]]`):
            What `by_type` returns, for each of the first items of an array, and for all items after them.

    Returns:
        `list[list[Kind]]`: The kinds of each way. Items after the first ones are strings or integers where any are, as
        they may be many.
    """
    values = [enumerated(shapes) for shapes in sums]
    if None not in values:
        choices = different(value for own in values for value in own or ())
        if len(choices) <= MAX_UNORDERED:
            return [[[[s for s in own if s.values and same(s.values[0], one)] for own in sums] for one in choices]]
    of_first = dict.fromkeys(_kind_name(shape) for shapes in sums[:-1] for shape in shapes)
    of_rest = dict.fromkeys(_kind_name(shape) for shape in sums[-1])
    has_strings = any(shape.types == {"string"} for shapes in sums for shape in shapes)
    has_characters = "character" in of_first | of_rest
    names = [
        name for name in (of_first if has_characters or not of_first else of_first | of_rest) if name != "character"
    ]
    named = [[[shape for shape in shapes if _kind_name(shape) == name] for shapes in sums] for name in names]
    found = [
        [*named, *_character_kinds(sums, pattern, max(2, count - len(named)))]
        for pattern, count in PARTITIONS[: len(PARTITIONS) if has_strings else has_characters]
    ]
    return found or [named]


def _character_kinds(sums: list[list[Shape]], pattern: str, count: int) -> list[Kind]:
    """Kinds of strings, and of integers by their last digit."""
    kinds = []
    for number in range(count):
        letters = "".join(rf"\x{code:02x}" for code in range(33, 127) if code % count == number)
        digits = "".join(str(digit) for digit in range(10) if digit % count == number)
        own = pattern.format(letters=letters, count=count, number=number)
        kinds.append([[one for shape in shapes for one in _narrowed(shape, own, digits)] for shapes in sums])
    return kinds


def _kind_name(shape: Shape) -> str:
    """What tells the values of a shape from others: a character of theirs, or their type; each boolean for itself."""
    (name,) = shape.types
    is_whole = shape.is_integer if shape.values is None else name == "number" and shape.values[0] % 1 == 0
    if name == "string" or (name == "number" and is_whole):
        return "character"
    return repr(shape.values) if name == "boolean" else name


def _narrowed(shape: Shape, pattern: str, digits: str) -> Iterable[Shape]:
    """The strings of a shape that match a pattern, or its integers with such a last digit."""
    if _kind_name(shape) != "character":
        return
    if shape.values is None:
        is_string = shape.types == {"string"}
        yield shape.changed(**{"patterns": (*shape.patterns, pattern)} if is_string else {"last_digits": digits})
        return
    value = shape.values[0]
    if search(pattern, value, "$") if isinstance(value, str) else str(int(value))[-1] in digits:
        yield shape

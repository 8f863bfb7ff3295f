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
"""Types and ranges of options that a recipe passes on to other libraries, which check few of them before training.

The types are those of the fields of the library's own dataclass, so a new option of it is checked as well.
"""

import math
import numbers
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..modeling.generation_config_dimple import nearest_name

#: Types that stand for a plain value -> their name in an error, and that of several.
TYPE_NAMES: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    types.NoneType: ("nothing", "nothing"),
}

#: The same types -> what is accepted.
TYPE_TESTS: dict[Any, Callable[[Any], bool]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool),
    float: lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value),
    str: lambda value: isinstance(value, str),
    types.NoneType: lambda value: value is None,
}

#: Ranges of numbers, as an error names them -> what is accepted.
RANGES: dict[str, Callable[[float], bool]] = {
    "> 0": lambda value: value > 0,
    ">= 0": lambda value: value >= 0,
    ">= 1": lambda value: value >= 1,
    "in [0, 1)": lambda value: 0 <= value < 1,
    "from 0 to 2**32 - 1": lambda value: 0 <= value < 1 << 32,
    "from 0 to 2**63 - 1": lambda value: 0 <= value < 1 << 63,
}


def check_fields(
    options: Mapping[str, Any], owner: Any, ranges: Mapping[str, str], other_types: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Args:
        options (`Mapping[str, Any]`):
            Names of fields, and their values.
        owner (`type`):
            The dataclass that has the fields.
        ranges (`Mapping[str, str]`):
            Options that are numbers, lists of them or mappings to them, and the key of `RANGES` for each.
        other_types (`Mapping[str, Any]`):
            Options that `owner` takes in other types than it announces, and these types.

    Returns:
        `dict[str, Any]`: The options without those that are `None` where `owner` takes no `None`: they stand for the
        default, as an empty entry of YAML does.

    Raises:
        ValueError: If an option is unknown, of another type or out of range.
    """
    hints = get_type_hints(owner) | dict(other_types)
    known = {field.name: field for field in fields(owner) if field.init}
    checked = {}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"`{name}` is unknown{nearest_name(str(name), known)}")
        if value is None and not accepts(None, hints[name]):
            continue
        choices = known[name].metadata.get("choices")
        hint = Literal[tuple(choices)] if choices else hints[name]
        check_type(name, value, hint, ranges.get(name))
        checked[name] = value
    return checked


def check_type(name: str, value: Any, hint: Any, number_range: str | None = None) -> None:
    """
    Args:
        name (`str`):
            The option.
        value (`Any`):
            What was given for it.
        hint (`Any`):
            Its type.
        number_range (`str`, *optional*):
            Key of `RANGES` for its numbers.

    Raises:
        ValueError: If the value is of another type or out of range.
    """
    if isinstance(value, Mapping):
        for alternative in alternatives(hint):
            if not is_dataclass(alternative):
                continue
            try:
                check_fields(value, alternative, {}, {})
            except ValueError as error:
                raise ValueError(f"`{name}`: {error}") from error
    in_range = RANGES[number_range] if number_range else lambda _: True
    if not accepts(value, hint) or not all(map(in_range, _numbers(value))):
        # In an order of their own, because `typing` takes unions of the same members for one.
        wanted = " or ".join(sorted(set(map(describe, alternatives(hint))), key=lambda name: (len(name), name)))
        end = f" {number_range}" if number_range else ""
        # YAML reads the bare word as false.
        quotes = ": put the word no in quotes" if value is False and "no" in re.split(r"\W+", wanted) else ""
        raise ValueError(f"`{name}` must be {wanted}{end} (got {value!r}{quotes})")


def alternatives(hint: Any) -> list[Any]:
    """The types of a union without `None`, or the only type. Of an enumeration and text, only the enumeration's."""
    members = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    if any(isinstance(member, type) and issubclass(member, Enum) for member in members) and str in members:
        members.remove(str)
    return [member for member in members if member is not types.NoneType]


def accepts(value: Any, hint: Any) -> bool:
    """Whether a value is of a type. Lists may be tuples or sets, dataclasses mappings, and enumerations their text."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        accepted = True
    elif hint in TYPE_TESTS:
        accepted = TYPE_TESTS[hint](value)
    elif kind in (Union, types.UnionType):
        members = alternatives(hint) + [types.NoneType] * (types.NoneType in arguments)
        accepted = any(accepts(value, member) for member in members)
    elif kind is Literal:
        accepted = any(type(value) is type(known) and value == known for known in arguments)
    elif kind is tuple:
        accepted = isinstance(value, (list, tuple)) and len(value) == len(arguments)
        accepted = accepted and all(map(accepts, value, arguments))
    elif kind is list:
        accepted = isinstance(value, (list, tuple, set)) and _are_all(value, arguments[:1])
    elif kind is dict:
        accepted = isinstance(value, Mapping) and _are_all(value, arguments[:1])
        accepted = accepted and _are_all(value.values(), arguments[1:])
    elif issubclass(kind, Enum):
        accepted = isinstance(value, str) and value in [member.value for member in kind]
    else:
        accepted = isinstance(value, kind) or (is_dataclass(kind) and isinstance(value, Mapping))
    return accepted


def _are_all(values: Iterable[Any], hints: tuple[Any, ...]) -> bool:
    return all(accepts(value, hint) for value in values for hint in hints)


def _numbers(value: Any) -> list[Any]:
    """The numbers that a value is, lists or maps to."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, numbers.Real)]


def describe(hint: Any, index: int = 0) -> str:
    """A type as an error names it; with `index` 1, several values of it."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if hint in TYPE_NAMES:
        return TYPE_NAMES[hint][index]
    if kind in (Union, types.UnionType):
        return " or ".join(describe(member, index) for member in alternatives(hint))
    if kind is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(member.value for member in kind)}"
    if kind in (list, tuple):
        items = dict.fromkeys(describe(argument, 1) for argument in arguments)
        return f"{('a list', 'lists')[index]} of {' and '.join(items)}"
    if kind is dict:
        return "a mapping" + "".join(
            f" to {describe(argument, 1)}" for argument in arguments[1:2] if argument is not Any
        )
    names = [field.name for field in fields(kind)] if is_dataclass(kind) else []
    return f"a mapping with keys of {', '.join(names)}" if names else kind.__name__


def on_one_line(error: Exception) -> str:
    """The message of another library's error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__

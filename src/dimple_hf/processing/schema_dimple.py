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
"""JSON Schema (draft 2020-12, a subset) as parts of an answer.

What cannot be guaranteed by construction is refused with the JSON path where it stands. Imported by
`structure_prior_dimple`.
"""

import json
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .answer_parts_dimple import (
    EMPTY,
    FORMATS,
    Choices,
    Either,
    Gap,
    Number,
    Part,
    Sequence,
    String,
    Text,
    num_parts,
    repeated,
)

#: Deepest nesting of a schema.
MAX_DEPTH = 16

#: Most texts and gaps of an array or object; nested repetitions multiply.
MAX_PARTS = 1 << 14

#: Keywords that say nothing about what is valid.
ANNOTATIONS = frozenset(
    ("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "deprecated",
     "readOnly", "writeOnly", "x-max-tokens")
)  # fmt: skip

#: Keywords of each type. `additionalProperties` needs no care, as no property is made up.
KEYWORDS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set[str](),
    "null": set[str](),
}

_JSON_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: (
        not isinstance(value, bool) and (isinstance(value, int) or (isinstance(value, float) and value.is_integer()))
    ),
    "number": lambda value: not isinstance(value, bool) and isinstance(value, (int, float)),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}


class _Position(NamedTuple):
    """Where the reader is: the JSON path, the references on the way, and how deep it is nested."""

    path: str
    references: tuple[str, ...] = ()
    depth: int = 0

    def inside(self, step: str) -> "_Position":
        return _Position(self.path + step, self.references, self.depth + 1)


class SchemaReader:
    """
    Makes the parts of JSON texts that a schema accepts.

    Args:
        schema (`dict`):
            The whole schema; references are looked up in it.
        room (`int`):
            Positions of a value whose schema does not bound it, unless `x-max-tokens` stands there.
        max_items (`int`):
            Most items of an array without `maxItems`.
        separators (`tuple[str, str]`):
            What stands between items, and between a name and its value, as for `json.dumps`.

    Raises:
        ValueError: From [`~SchemaReader.part`], if a keyword is not supported, bounds contradict each other, or the
            schema is recursive or nested too deeply.
    """

    def __init__(self, schema: dict[str, Any], room: int, max_items: int, separators: tuple[str, str]) -> None:
        self.root = schema
        self.room, self.max_items = room, max_items
        self.comma, self.colon = separators

    def part(self) -> Part:
        """The parts of the whole text."""
        return self._part(self.root, _Position("$"))

    def _dumps(self, value: Any, position: _Position) -> str:
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(self.comma, self.colon))
            text.encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"`schema` must hold JSON values only ({error} at {position.path})") from error
        return text

    def _part(self, schema: Any, position: _Position) -> Part:
        if position.depth > MAX_DEPTH:
            raise ValueError(f"`schema` must be nested at most {MAX_DEPTH} deep (it is deeper at {position.path})")
        if not isinstance(schema, dict):
            raise ValueError(f"`schema` must be an object at {position.path} (got {schema!r})")
        if "$ref" in schema:
            return self._reference(schema, position)
        for keyword in ("anyOf", "allOf"):
            if keyword in schema:
                return self._combination(schema, keyword, position)
        if "const" in schema or "enum" in schema:
            return self._literals(schema, position)
        types = schema.get("type")
        types = types if isinstance(types, list) else [types]
        self._check_types(types, position)
        self._check_keywords(schema, {"type"}.union(*KEYWORDS.values()), position)
        options = [getattr(self, f"_{name}")(schema, position) for name in types]
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _check_types(self, types: list[Any], position: _Position) -> None:
        if not types or not all(isinstance(name, str) and name in KEYWORDS for name in types):
            raise ValueError(f"`schema` must name a type of {', '.join(KEYWORDS)} at {position.path} (got {types!r})")

    def _check_keywords(self, schema: dict[str, Any], known: Iterable[str], position: _Position) -> None:
        for keyword in schema:
            if keyword not in known and keyword not in ANNOTATIONS:
                raise ValueError(f"`schema` must not use {keyword!r} here, it is not supported (at {position.path})")

    def _reference(self, schema: dict[str, Any], position: _Position) -> Part:
        reference = schema["$ref"]
        self._check_keywords(schema, {"$ref"}, position)
        if reference in position.references:
            raise ValueError(f"`schema` must not be recursive ({reference!r} refers to itself at {position.path})")
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise ValueError(f"`schema` must refer to itself only, by '#/...', at {position.path} (got {reference!r})")
        target: Any = self.root
        for name in reference[1:].split("/")[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or name not in target:
                raise ValueError(f"`schema` must define {reference!r}, which is asked for at {position.path}")
            target = target[name]
        return self._part(target, _Position(position.path, (*position.references, reference), position.depth + 1))

    def _combination(self, schema: dict[str, Any], keyword: str, position: _Position) -> Part:
        self._check_keywords(schema, {keyword}, position)
        options = schema[keyword]
        if not isinstance(options, list) or not options:
            raise ValueError(f"`schema` must have a list with at least one schema at {position.path}.{keyword}")
        if keyword == "allOf" and len(options) > 1:
            raise ValueError(f"`schema` must not use 'allOf' with more than one schema (at {position.path})")
        parts = [self._part(option, position.inside(f".{keyword}[{i}]")) for i, option in enumerate(options)]
        return parts[0] if len(parts) == 1 else Either(tuple(parts))

    def _literals(self, schema: dict[str, Any], position: _Position) -> Part:
        self._check_keywords(schema, {"const", "enum", "type"}, position)
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        if not isinstance(values, list):
            raise ValueError(f"`schema` must have a list at {position.path}.enum (got {values!r})")
        types = schema.get("type", list(_JSON_TYPES))
        types = [types] if isinstance(types, str) else types
        self._check_types(types, position)
        texts = [self._dumps(value, position) for value in values if any(_JSON_TYPES[name](value) for name in types)]
        if "const" in schema and "enum" in schema:
            texts = [text for text in texts if text == self._dumps(schema["const"], position)]
        if not texts:
            raise ValueError(f"`schema` must allow at least one value at {position.path} (its keywords allow none)")
        if len(texts) == 1:
            return Text(texts[0])
        return Gap(Choices(tuple(dict.fromkeys(texts))), position.path, self._room_asked(schema, position))

    def _room_asked(self, schema: dict[str, Any], position: _Position) -> int | None:
        return self._count(schema, "x-max-tokens", position, at_least=1)

    def _count(self, schema: dict[str, Any], keyword: str, position: _Position, at_least: int = 0) -> int | None:
        value = schema.get(keyword)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < at_least):
            raise ValueError(
                f"`schema` must have an integer >= {at_least} at {position.path}.{keyword} (got {value!r})"
            )
        return value

    def _value_gap(
        self, value: String | Number, schema: dict[str, Any], position: _Position, longest: int | None
    ) -> Gap:
        try:
            automaton = value.automaton()
        except ValueError as error:
            raise ValueError(f"`schema` must allow at least one value at {position.path} ({error})") from error
        bounds = [bound for bound in (longest, automaton.longest()) if bound is not None]
        if isinstance(value, String) and value.pattern is None or not bounds:
            bounds.append(self.room)
        return Gap(value, position.path, self._room_asked(schema, position) or max(1, min(bounds)))

    def _string(self, schema: dict[str, Any], position: _Position) -> Part:
        at_least, at_most = self._count(schema, "minLength", position) or 0, self._count(schema, "maxLength", position)
        if at_most is not None and at_most < at_least:
            raise ValueError(
                f"`schema` must have minLength <= maxLength at {position.path} (got {at_least}, {at_most})"
            )
        pattern, name = schema.get("pattern"), schema.get("format")
        if pattern is not None and name is not None:
            raise ValueError(f"`schema` must not use 'pattern' and 'format' together (at {position.path})")
        if name is not None and name not in FORMATS:
            raise ValueError(f"`schema` must have a format of {', '.join(FORMATS)} at {position.path} (got {name!r})")
        if pattern is not None and not isinstance(pattern, str):
            raise ValueError(f"`schema` must have a string at {position.path}.pattern (got {pattern!r})")
        if at_most == 0 and pattern is None and name is None:
            return Text('""')
        # Counting further than the room can hold would only make the automaton larger.
        room = self._room_asked(schema, position) or self.room
        counted = None if at_most is None else min(at_most, max(at_least, 4 * room))
        value = String(FORMATS[name] if name is not None else pattern, name is None, at_least, counted, in_json=True)
        gap = self._value_gap(value, schema, position, counted)
        if "x-max-tokens" not in schema and gap.room is not None and gap.room < at_least:
            gap = Gap(value, position.path, at_least)  # a token for each character always does
        return Sequence((Text('"'), gap, Text('"')))

    def _integer(self, schema: dict[str, Any], position: _Position) -> Part:
        low, high = self._bounds(schema, position)
        low = None if low is None else math.ceil(low[0]) + (low[1] and low[0] == math.ceil(low[0]))
        high = None if high is None else math.floor(high[0]) - (high[1] and high[0] == math.floor(high[0]))
        return self._value_gap(Number(low, high, is_integer=True), schema, position, None)

    def _number(self, schema: dict[str, Any], position: _Position) -> Part:
        low, high = self._bounds(schema, position)
        return self._value_gap(
            Number(_double(low, math.inf), _double(high, -math.inf), is_integer=False), schema, position, None
        )

    def _bounds(self, schema: dict[str, Any], position: _Position) -> tuple[Any, Any]:
        """The tighter bound of each side as `(value, is_exclusive)`, or `None`."""
        found: dict[str, Any] = {}
        for keyword, is_exclusive in (
            ("minimum", False), ("exclusiveMinimum", True), ("maximum", False), ("exclusiveMaximum", True)
        ):  # fmt: skip
            value = schema.get(keyword)
            if value is None:
                continue
            if not _JSON_TYPES["number"](value) or not abs(value) < 1e300:
                raise ValueError(
                    f"`schema` must have a number below 1e300 at {position.path}.{keyword} (got {value!r})"
                )
            side = keyword[-7:].lower()
            sign = 1 if side == "minimum" else -1
            if side not in found or (sign * value, is_exclusive) > (sign * found[side][0], found[side][1]):
                found[side] = (value, is_exclusive)
        return found.get("minimum"), found.get("maximum")

    def _boolean(self, schema: dict[str, Any], position: _Position) -> Part:
        return Gap(Choices(("true", "false")), position.path, self._room_asked(schema, position))

    def _null(self, schema: dict[str, Any], position: _Position) -> Part:
        return Text("null")

    def _array(self, schema: dict[str, Any], position: _Position) -> Part:
        at_least, at_most = self._count(schema, "minItems", position) or 0, self._count(schema, "maxItems", position)
        at_most = max(at_least, self.max_items) if at_most is None else at_most
        if at_most < at_least:
            raise ValueError(f"`schema` must have minItems <= maxItems at {position.path} (got {at_least}, {at_most})")
        if at_most == 0:
            return Text("[]")
        if "items" not in schema:
            raise ValueError(f"`schema` must have 'items' at {position.path}, as free values are not supported")
        item = self._part(schema["items"], position.inside(".items"))
        if num_parts(item) * at_most > MAX_PARTS:
            raise ValueError(
                f"`schema` must have fewer items, or smaller ones, at {position.path} (got up to {at_most})"
            )
        return Sequence((Text("["), repeated(item, Text(self.comma), at_least, at_most), Text("]")))

    def _object(self, schema: dict[str, Any], position: _Position) -> Part:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise ValueError(f"`schema` must have an object in 'properties', a list in 'required' at {position.path}")
        for name in required:
            if name not in properties:
                raise ValueError(f"`schema` must define the required property {name!r} at {position.path}.properties")
        members: list[tuple[Part, bool]] = []
        for name, value in properties.items():
            key = self._dumps(name, position) + self.colon
            part = self._part(value, position.inside(f".properties.{name}"))
            members.append((Sequence((Text(key), part)), name in required))
        part = self._members(members)
        if num_parts(part) > MAX_PARTS:
            raise ValueError(f"`schema` must have fewer optional properties at {position.path} (got {len(members)})")
        return Sequence((Text("{"), part, Text("}")))

    def _members(self, members: list[tuple[Part, bool]]) -> Part:
        """
        Properties with commas between. One that is required anchors the commas: optional ones before it bring theirs
        after them, those after it before them. Without one, every property may be the first.
        """
        comma = Text(self.comma)
        anchor = next((position for position, (_, is_required) in enumerate(members) if is_required), None)
        if anchor is not None:
            before = [Either((Sequence((part, comma)), EMPTY)) for part, _ in members[:anchor]]
            return Sequence((*before, members[anchor][0], self._followers(members[anchor + 1 :])))
        firsts = [Sequence((part, self._followers(members[i + 1 :]))) for i, (part, _) in enumerate(members)]
        return Either((*firsts, EMPTY)) if firsts else EMPTY

    def _followers(self, members: list[tuple[Part, bool]]) -> Part:
        parts: list[Part] = [Sequence((Text(self.comma), part)) for part, _ in members]
        return Sequence(
            tuple(
                part if is_required else Either((part, EMPTY))
                for part, (_, is_required) in zip(parts, members, strict=True)
            )
        )


def _double(bound: tuple[float | int, bool] | None, inward: float) -> float | None:
    """The outermost double that a bound of `(value, is_exclusive)` allows, as numbers with a fraction are read so."""
    if bound is None:
        return None
    value, is_exclusive = bound
    nearest = float(value)
    is_outside = nearest < value if inward > 0 else nearest > value
    return math.nextafter(nearest, inward) if is_outside or (is_exclusive and nearest == value) else nearest

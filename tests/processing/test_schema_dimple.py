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
"""JSON schemas as answers: what each keyword makes possible, and what is refused, by path."""

import datetime
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from jsonschema import Draft202012Validator

from dimple_hf.processing import DimpleTokenizer, StructurePrior
from dimple_hf.processing.answer_parts_dimple import (
    Choices,
    Either,
    FirstOf,
    Gap,
    Number,
    Part,
    Sequence,
    String,
    Text,
)
from dimple_hf.processing.schema_dimple import MAX_DEPTH, SchemaReader


def part_of(schema: Any, **options: Any) -> Part:
    arguments = {"room": 16, "max_items": 4, "separators": (",", ":")} | options
    return SchemaReader(schema, **arguments).part()


def gaps_of(part: Part) -> Iterator[Gap]:
    if isinstance(part, Gap):
        yield part
    for name in ("parts", "options", "items"):
        for inner in getattr(part, name, ()):
            yield from gaps_of(inner)


def texts(part: Part) -> set[str]:
    """Every text of a part whose gaps hold choices; other gaps are written as `_`."""
    if isinstance(part, Text):
        return {part.text}
    if isinstance(part, Gap):
        return set(part.value.texts) if isinstance(part.value, Choices) else {"_"}
    if isinstance(part, Either):
        return set().union(*map(texts, part.options))
    if isinstance(part, FirstOf):
        counts = range(part.at_least, len(part.items) + 1)
        return set().union(*(texts(Sequence(part.items[:count])) for count in counts))
    return {"".join(pieces) for pieces in itertools.product(*map(texts, part.parts))}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "boolean"}, {"true", "false"}),
        ({"type": "null"}, {"null"}),
        ({"const": {"a": [1, None]}}, {'{"a":[1,null]}'}),
        ({"enum": ["x", 1, 1, True, "é"]}, {'"x"', "1", "true", '"é"'}),
        ({"enum": ["x", 1, 2.0, True, None], "type": "integer"}, {"1", "2.0"}),
        ({"enum": ["x", 1, None], "type": ["string", "null"]}, {'"x"', "null"}),
        ({"type": "string", "title": "Name", "description": "d", "default": "x"}, {'"_"'}),
        ({"type": "string", "maxLength": 0}, {'""'}),
        ({"type": ["null", "integer"]}, {"null", "_"}),
        ({"anyOf": [{"type": "null"}, {"const": 1}]}, {"null", "1"}),
        ({"allOf": [{"type": "null"}]}, {"null"}),
        ({"type": "array", "items": {"const": 1}, "maxItems": 2}, {"[]", "[1]", "[1,1]"}),
        ({"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 3}, {"[1]", "[1,1]", "[1,1,1]"}),
        ({"type": "array", "maxItems": 0}, {"[]"}),
        ({"type": "object"}, {"{}"}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 5}}}, {"5"}),
    ],
)
def test_schema_allows_exactly_these_texts(schema: dict[str, Any], expected: set[str]) -> None:
    """One keyword after the other."""
    assert texts(part_of(schema)) == expected


def test_schema_of_the_whole_document_may_be_a_reference_to_a_definition() -> None:
    """As pydantic writes recursive or shared models."""
    row = {"type": "array", "items": {"$ref": "#/$defs/One"}, "maxItems": 1}
    schema = {"$ref": "#/$defs/Row", "$defs": {"Row": row, "One": {"const": 1}}}
    assert texts(part_of(schema)) == {"[]", "[1]"}


@pytest.mark.parametrize("required", [[], ["a"], ["b"], ["c"], ["a", "c"], ["a", "b", "c"]])
def test_object_writes_every_set_of_properties_with_commas_between(required: list[str]) -> None:
    """Optional properties come and go; the commas must fit in all cases, wherever the first required one stands."""
    schema = {"type": "object", "properties": {name: {"const": 1} for name in "abc"}, "required": required}
    sets = [names for size in range(4) for names in itertools.combinations("abc", size) if set(required) <= set(names)]
    expected = {json.dumps(dict.fromkeys(names, 1), separators=(",", ":")) for names in sets}
    assert texts(part_of(schema)) == expected
    assert len(expected) == 2 ** (3 - len(required))


def test_separators_are_those_of_json_dumps() -> None:
    """A model writes JSON as it has learned it; the form must not force another one on it."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [[1, 2]]}, "b": {"const": {"c": 3}}},
        "required": ["a", "b"],
    }
    assert texts(part_of(schema, separators=(", ", ": "))) == {json.dumps({"a": [1, 2], "b": {"c": 3}})}


def test_max_items_bounds_arrays_that_do_not() -> None:
    """A canvas has an end."""
    schema = {"type": "array", "items": {"const": 1}}
    assert len(texts(part_of(schema, max_items=2))) == 3
    assert texts(part_of(schema | {"minItems": 3}, max_items=2)) == {"[1,1,1]"}


@pytest.mark.parametrize(
    ("schema", "value", "room"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 120}, Number(3, 120, True), 3),
        ({"type": "integer", "minimum": -3.5, "maximum": 9.5}, Number(-3, 9, True), 2),
        ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 120}, Number(4, 119, True), 3),
        ({"type": "integer", "exclusiveMinimum": 3.5, "exclusiveMaximum": 9.5}, Number(4, 9, True), 1),
        ({"type": "integer", "minimum": 3, "exclusiveMinimum": 3}, Number(4, None, True), 9),
        ({"type": "integer"}, Number(None, None, True), 10),
        ({"type": "number", "minimum": 0.5, "maximum": 1}, Number(0.5, 1.0, False), 8),
        ({"type": "number", "exclusiveMinimum": 0.5}, Number(0.5000000000000001, None, False), 16),
        ({"type": "number", "minimum": 2**53 + 1}, Number(9007199254740994.0, None, False), 24),
        ({"type": "string"}, String(None, True, 0, None, True), 16),
        ({"type": "string", "maxLength": 5, "minLength": 2}, String(None, True, 2, 5, True), 5),
        ({"type": "string", "maxLength": 1000}, String(None, True, 0, 64, True), 16),
        ({"type": "string", "minLength": 20}, String(None, True, 20, None, True), 20),
        ({"type": "string", "x-max-tokens": 3}, String(None, True, 0, None, True), 3),
        ({"type": "string", "pattern": "^a{2,30}$"}, String("^a{2,30}$", True, 0, None, True), 30),
        ({"type": "string", "pattern": "a+"}, String("a+", True, 0, None, True), 16),
    ],
)
def test_value_has_the_room_and_bounds_of_its_schema(schema: dict[str, Any], value: object, room: int) -> None:
    """Bounds are made inclusive, outward rounding included; what the schema does not bound gets the default."""
    (gap,) = gaps_of(part_of(schema))
    assert gap.value == value
    assert gap.room == room


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31", "2023-11-30"],
         ["2023-02-29", "1900-02-29", "2024-11-31", "0999-01-01", "2024-1-01"]),
        ("time", ["23:59:59Z", "00:00:00+05:30"], ["24:00:00Z", "12:00:00", "12:60:00Z"]),
        ("date-time", ["2024-02-29T00:00:00Z"], ["2023-02-29T00:00:00Z", "2024-02-29 00:00:00Z"]),
    ],
)  # fmt: skip
def test_format_accepts_exactly_real_dates_and_times(name: str, valid: list[str], invalid: list[str]) -> None:
    """The 29th of February exists in leap years only."""
    (gap,) = gaps_of(part_of({"type": "string", "format": name}))
    automaton = gap.value.automaton()
    assert [automaton.accepts(text.encode()) for text in valid] == [True] * len(valid)
    assert [automaton.accepts(text.encode()) for text in invalid] == [False] * len(invalid)


def test_format_date_knows_every_day_of_four_centuries() -> None:
    """Against the calendar of `datetime`."""
    (gap,) = gaps_of(part_of({"type": "string", "format": "date"}))
    automaton = gap.value.automaton()
    accepted = 0
    for year, month, day in itertools.product(range(1899, 2101), range(1, 13), range(1, 32)):
        try:
            datetime.date(year, month, day)
        except ValueError:
            assert not automaton.accepts(f"{year}-{month:02}-{day:02}".encode())
        else:
            accepted += automaton.accepts(f"{year}-{month:02}-{day:02}".encode())
    assert accepted == (datetime.date(2101, 1, 1) - datetime.date(1899, 1, 1)).days


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({}, r"must name a type of object, .* at \$ \(got \[None\]\)"),
        ({"type": "text"}, r"must name a type of .* \(got \['text'\]\)"),
        ({"type": []}, r"must name a type"),
        ({"type": "object", "properties": {"a": True}}, r"must be an object at \$\.properties\.a \(got True\)"),
        ({"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "base64"}}},
         r"must not use 'contentEncoding' here.*at \$\.properties\.a\)"),
        ({"type": "integer", "multipleOf": 2}, "must not use 'multipleOf'"),
        ({"oneOf": [{"type": "null"}]}, "must name a type"),
        ({"anyOf": []}, r"a list with at least one schema at \$\.anyOf"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "must not use 'type' here"),
        ({"anyOf": [{"type": "null"}, {"not": {}}]}, r"must name a type .*\$\.anyOf\[1\]"),
        ({"allOf": [{"type": "null"}, {"type": "null"}]}, "must not use 'allOf' with more than one"),
        ({"enum": []}, r"must allow at least one value at \$"),
        ({"enum": "ab"}, r"must have a list at \$\.enum"),
        ({"enum": ["a"], "type": "integer"}, "must allow at least one value"),
        ({"enum": ["a"], "const": "b"}, "must allow at least one value"),
        ({"enum": ["a"], "minLength": 3}, "must not use 'minLength' here"),
        ({"const": float("inf")}, "must hold JSON values only"),
        ({"const": "\ud800"}, "must hold JSON values only"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, r"must allow at least one value at \$ .*matches nothing"),
        ({"type": "integer", "exclusiveMinimum": 4, "exclusiveMaximum": 5}, "must allow at least one value"),
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1}, "must allow at least one value"),
        ({"type": "integer", "minimum": "1"}, r"must have a number below 1e300 at \$\.minimum \(got '1'\)"),
        ({"type": "number", "maximum": float("nan")}, "must have a number below 1e300"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, r"minLength <= maxLength at \$ \(got 5, 4\)"),
        ({"type": "string", "maxLength": -1}, r"an integer >= 0 at \$\.maxLength \(got -1\)"),
        ({"type": "string", "x-max-tokens": 0}, r"an integer >= 1 at \$\.x-max-tokens \(got 0\)"),
        ({"type": "string", "format": "email"}, r"a format of date, time, date-time at \$ \(got 'email'\)"),
        ({"type": "string", "format": "date", "pattern": "a"}, "must not use 'pattern' and 'format' together"),
        ({"type": "string", "format": "date", "maxLength": 3}, "must allow at least one value"),
        ({"type": "string", "pattern": "(?=a)b"}, "must allow at least one value .*look-around"),
        ({"type": "string", "pattern": 5}, r"must have a string at \$\.pattern"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, r"minItems <= maxItems"),
        ({"type": "array"}, r"must have 'items' at \$"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "must not use 'uniqueItems'"),
        ({"type": "object", "properties": {}, "required": ["a"]}, r"must define the required property 'a'"),
        ({"type": "object", "properties": []}, "must have an object in 'properties'"),
        ({"type": "object", "patternProperties": {}}, "must not use 'patternProperties'"),
        ({"$ref": "#/$defs/a", "$defs": {}}, r"must define '#/\$defs/a', which is asked for at \$"),
        ({"$ref": "http://x/y"}, "must refer to itself only"),
        ({"$ref": "#/$defs/a", "type": "null", "$defs": {"a": {"type": "null"}}}, "must not use 'type' here"),
        ({"$ref": "#"}, "must not be recursive"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
         r"must not be recursive \('#/\$defs/a' refers to itself at \$\.items\)"),
        (nested(9), r"must have fewer items, or smaller ones, at \$(\.items)* \(got up to 4\)"),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 10**9}, "must have fewer items"),
        ({"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(200)}},
         r"must have fewer optional properties at \$ \(got 200\)"),
        (nested(MAX_DEPTH + 1), f"must be nested at most {MAX_DEPTH} deep"),
    ],
)  # fmt: skip
def test_schema_that_cannot_be_guaranteed_is_refused_by_path(schema: dict[str, Any], message: str) -> None:
    """Bad schemas must not wait for a model, and their owner must see where they are bad."""
    with pytest.raises(ValueError, match=message):
        part_of(schema)


def test_schema_nested_to_the_limit_is_taken() -> None:
    """The control of the limit on depth."""
    assert texts(part_of(nested(4), max_items=1)) >= {"[[[[null]]]]", "[]"}
    part_of(nested(MAX_DEPTH), max_items=1)


class Row(pydantic.BaseModel):
    what: str = pydantic.Field(max_length=12)
    quantity: int = pydantic.Field(ge=1, le=99)


class Order(pydantic.BaseModel):
    number: int = pydantic.Field(gt=0)
    day: datetime.date
    paid: bool = False
    note: str | None = None
    rows: list[Row] = pydantic.Field(min_length=1, max_length=2)


def test_pydantic_schema_is_taken_as_it_is_written() -> None:
    """Nested models are references, optional fields unions with null, constraints keywords."""
    part = part_of(Order.model_json_schema())
    assert isinstance(part, Sequence)
    wheres = [gap.where for gap in gaps_of(part)]
    assert wheres[:2] == ["$.properties.number", "$.properties.day"]
    assert "$.properties.rows.items.properties.quantity" in wheres


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schema": [1]}, r"`schema` must be a dict or a pydantic model class \(got list\)"),
        ({"schema": int}, r"`schema` must be a dict or a pydantic model class \(got int\)"),
        ({"schema": {"type": "null"}, "room": 0}, r"`room` must be at least 1 \(got 0\)"),
        ({"schema": {"type": "null"}, "max_items": 0}, r"`max_items` must be at least 1 \(got 0\)"),
        ({"schema": {"type": "null"}, "separators": (";", ":")}, r"`separators` must be ',' with white space"),
        ({"schema": {"type": "null"}, "layout": "loose"}, r"`layout` must be one of aligned, compact \(got 'loose'\)"),
    ],
)
def test_prior_from_a_schema_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    """Each argument has its own word."""
    with pytest.raises(ValueError, match=message):
        StructurePrior.from_json_schema(**arguments)


@pytest.mark.parametrize("layout", ["aligned", "compact"])
def test_prior_from_a_schema_reads_what_json_says(tokenizer: DimpleTokenizer, layout: str) -> None:
    """By hand what the model would write: the fillers lie where the layout has them."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}, "s": {"type": "string"}},
        "required": ["n", "s"],
    }
    prior = StructurePrior.from_json_schema(schema, layout=layout, room=4)
    canvas = prior.canvas(tokenizer)
    encode, filler = canvas.vocabulary.encode, canvas.vocabulary.filler_id
    if layout == "aligned":
        ids = [*encode('{"n":'), *encode("7"), filler, filler, *encode(',"s":"'), *[filler] * 4, *encode('"}')]
    else:
        ids = [*encode('{"n":'), *encode("7"), *encode(',"s":"'), *encode('"}'), *[filler] * 6]
    assert len(ids) == len(canvas.ids)
    assert prior.read(tokenizer, ids) == {"n": 7, "s": ""}
    Draft202012Validator(schema).validate(prior.read(tokenizer, ids))
    with pytest.raises(ValueError, match="must be a complete filling"):
        prior.read(tokenizer, ids[::-1])

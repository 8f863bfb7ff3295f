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
"""JSON schemas as priors: what each keyword allows, what is refused by path, and what no schema may cost."""

import cProfile
import datetime
import itertools
import json
import re
from typing import Any

import pydantic
import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

from dimple_hf.processing import DimpleTokenizer, StructurePrior
from dimple_hf.processing.schema_dimple import Depth, ReaderOptions, SchemaReader


def can_write(tokenizer: DimpleTokenizer, schema: Any, value: Any, **options: Any) -> bool:
    """Whether an answer under a schema can be this value; long values get a long canvas."""
    prior = StructurePrior.from_json_schema(schema, **({"max_tokens": 400} | options))
    try:
        ids, _ = prior.write(tokenizer, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    except ValueError:
        return False
    return bool(ids)


#: Schema, values that it allows, values that it does not. A judge of its own confirms both.
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": "boolean"}, [True, False], [None, 0]),
    ({"type": ["null", "integer"]}, [None, 5, -12], [1.5, "a"]),
    ({"const": {"a": [1, None]}}, [{"a": [1, None]}], [{"a": [1]}]),
    ({"enum": ["x", 1, 1, True, "é"]}, ["x", 1, True, "é"], [2, False, "y"]),
    ({"enum": ["x", 1, None], "type": ["string", "null"]}, ["x", None], [1]),
    ({"enum": ["abc", "x"], "minLength": 2}, ["abc"], ["x"]),
    ({}, [1, "a", None, [1, {"a": "b"}], {"x": [True]}], []),
    (True, [1, "a"], []),
    ({"enum": ["ab", "cd"], "pattern": "^a"}, ["ab"], ["cd"]),
    ({"type": "string", "maxLength": 3}, ["", "abc", "日本語"], ["abcd"]),
    ({"type": "string", "minLength": 2, "maxLength": 500}, ["ab", "a" * 200], ["a"]),
    ({"type": "string", "pattern": "^a+$", "maxLength": 3}, ["a", "aaa"], ["aaaa", "b"]),
    ({"type": "string", "pattern": "^[a-z]*$", "format": "date"}, [], ["2024-01-01", "a"]),
    ({"type": "string", "format": "date"}, ["2024-02-29"], ["2023-02-29"]),
    ({"type": "string", "format": "no-such-format"}, ["x"], [1]),
    ({"minimum": 3, "maximum": 5}, [3, 4.25, "text", None], [2, 6]),
    ({"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 6}, [4, 5], [3, 6]),
    ({"type": "number", "minimum": 0, "exclusiveMinimum": True, "$schema": "http://json-schema.org/draft-04/schema#"},
     [1, 0.5], [0, -1]),
    ({"type": "integer", "multipleOf": 7, "minimum": 0}, [0, 7, 49], [8]),
    ({"type": "array", "items": {"const": 1}, "minItems": 1, "maxItems": 3}, [[1], [1, 1, 1]], [[], [1] * 4, [2]]),
    ({"type": "array", "items": {"type": "integer"}}, [[], list(range(9))], [["a"]]),
    ({"type": "array", "prefixItems": [{"const": 1}, {"type": "string"}], "items": False}, [[], [1], [1, "a"]],
     [["a"], [1, "a", 2]]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array", "items": [{"const": 1}],
      "additionalItems": {"type": "string"}}, [[], [1], [1, "a", "b"]], [[2], [1, 2]]),
    ({"type": "array", "items": {"enum": [1, 2, 3]}, "uniqueItems": True}, [[], [3, 1], [2, 1, 3]], [[1, 1]]),
    ({"type": "array", "items": {"type": ["boolean", "null"]}, "uniqueItems": True}, [[True, None, False]],
     [[True, True]]),
    ({"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 2}, [["a"], ["a", "b"]],
     [["a", "a"]]),
    ({"type": "array", "items": {"type": ["string", "number"]}, "uniqueItems": True},
     [[], [0.5], ["-ab", "+a"], [1, "b", 20]], [["a", "b", "a"], [0.5, 0.5], [1, 1.0]]),
    ({"oneOf": [{"type": "array"}, {"not": {"type": "array", "contains": {"const": 1}}}]}, ["a", [1]], [[], [2]]),
    ({"oneOf": [{"type": "object", "properties": {name: {}}, "additionalProperties": False} for name in "abc"]},
     [{"a": 1}, {"c": 1}], [{}, {"a": 1, "b": 1}]),
    ({"properties": {"a": {"const": 1}}, "type": "object"}, [{"$schema": "x", "a": 1}, {"a": 1, "$schema": "x"}],
     [{"$schema": "x", "a": 2}]),
    ({"type": "array", "items": {"type": "object"}, "uniqueItems": True}, [[], [{}], [{"a": 1}]], [[{}, {}]]),
    ({"type": "array", "prefixItems": [{"type": "boolean"}] * 2, "uniqueItems": True},
     [[], [True], [False, True], [True, False, "foo", "bar"]], [[True, True], [False, True, "foo", "foo"], ["a"]]),
    ({"type": "array", "prefixItems": [{"enum": [1, 2]}, {"enum": [2, 3]}], "items": False, "uniqueItems": True},
     [[2], [2, 3], [1, 2]], [[2, 2], [3], [1, 3, 2]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "number"}], "uniqueItems": True, "minItems": 2},
     [[1, 2], [1, 1.5], [1, 22, "c"]], [[1, 1], [1, 1.0], [1], [1, 2, 2]]),
    ({"type": "array", "prefixItems": [{"type": "object"}, {"const": "a"}], "uniqueItems": True, "maxItems": 2},
     [[{"a": 1}, "a"]], [["a", "a"]]),
    ({"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "maxItems": 3}, [[5], [1, 5], [5, 5,
     2]],
     [[], [1]]),
    ({"type": "array", "items": {"type": ["integer", "boolean"]}, "contains": {"type": "integer"}, "maxContains": 2,
      "prefixItems": [{"type": "boolean"}]}, [[True, 1], [True, 1, False, 2]], [[1], [True], [True, 1, 2, 3]]),
    ({"type": "array", "items": {"enum": [1, 2]}, "contains": {"const": 1}, "uniqueItems": True}, [[1]], [[1, 1]]),
    ({"type": "array", "items": {"enum": [1, 5]}, "contains": {"const": 5}, "minContains": 2, "maxContains": 2,
      "maxItems": 4}, [[5, 5], [5, 1, 5]], [[5], [5, 5, 5]]),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": 2}], [{"a": "x"}]),
    ({"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}, "type": "object"},
     [{}, {"a": 1}, {"a": 1, "b": "x"}, {"ab": "x"}], [{"a": "x"}, {"b": 1}]),
    ({"type": "object", "properties": {"a": {"const": 1}}}, [{}, {"a": 1}, {"a": 1, "z": [1]}], [{"a": 2}]),
    ({"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": False}, [{}, {"a": 1}], [{"z": 1}]),
    ({"type": "object", "patternProperties": {"^x": {"type": "integer"}, "y$": {"type": "string"}},
      "additionalProperties": False}, [{}, {"x": 1}, {"x1": 1, "ay": "s"}], [{"x": "s"}, {"b": 1}]),
    ({"type": "object", "propertyNames": {"pattern": "^[a-z]{1,3}$"}, "additionalProperties": {"const": 1}},
     [{"abc": 1}], [{"abcd": 1}, {"A": 1}]),
    ({"type": "object", "properties": dict.fromkeys("abc", {"const": 1}), "minProperties": 1, "maxProperties": 2,
      "additionalProperties": False}, [{"a": 1}, {"b": 1, "c": 1}], [{}, {"a": 1, "b": 1, "c": 1}]),
    ({"type": "object", "additionalProperties": {"const": 1}, "minProperties": 1}, [{"a": 1}, {"a": 1, "b": 1}], [{}]),
    ({"type": "object", "required": ["z"], "properties": {"a": {"const": 1}}}, [{"a": 1, "z": "x"}, {"z": 1}],
     [{"a": 1}]),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}}, "dependentRequired": {"a": ["b"]}},
     [{}, {"b": 2}, {"a": 1, "b": 2}], [{"a": 1}]),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {}}, "additionalProperties": False,
      "dependentSchemas": {"a": {"properties": {"b": {"const": 2}}}}}, [{"b": 3}, {"a": 1, "b": 2}], [{"a": 1,
       "b": 3}]),
    ({"anyOf": [{"type": "null"}, {"const": 1}]}, [None, 1], [2]),
    ({"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^b"}]}, ["", "a", "bcd"], ["acd", 1]),
    ({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"properties": {"a": {"minimum": 5}, "b": {"const": 1}}, "required": ["b"]}]},
     [{"a": 5, "b": 1}], [{"a": 4, "b": 1}, {"a": 5}]),
    ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], [None]),
    ({"type": "integer", "oneOf": [{"maximum": 5}, {"minimum": 3}]}, [2, 6], [3, 5]),
    ({"type": "string", "oneOf": [{"pattern": "^a"}, {"pattern": "b$"}]}, ["ac", "cb"], ["ab", "c"]),
    ({"oneOf": [{"type": "object", "properties": {"k": {"const": "x"}, "v": {"type": "integer"}}, "required": ["k",
     "v"]},
                {"type": "object", "properties": {"k": {"const": "y"}, "v": {"type": "string"}}, "required": ["k",
                 "v"]}]},
     [{"k": "x", "v": 1}, {"k": "y", "v": "s"}], [{"k": "x", "v": "s"}]),
    ({"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 1}}, "additionalProperties": False,
      "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{}, {"a": 1, "b": 1}]),
    ({"type": "string", "not": {"enum": ["a", "b"]}}, ["c", "ab", ""], ["a", "b"]),
    ({"type": "integer", "not": {"minimum": 5}}, [4, -1], [5]),
    ({"type": "string", "not": {"pattern": "x"}}, ["a"], ["axb"]),
    ({"not": {"type": ["object", "array", "number"]}}, ["a", None, True], [1, {}, []]),
    ({"type": "object", "properties": {"k": {"enum": ["a", "b"]}, "v": {}}, "required": ["k", "v"],
      "if": {"properties": {"k": {"const": "a"}}}, "then": {"properties": {"v": {"type": "integer"}}},
      "else": {"properties": {"v": {"type": "string"}}}}, [{"k": "a", "v": 1}, {"k": "b", "v": "s"}],
     [{"k": "a", "v": "s"}, {"k": "b", "v": 1}]),
    ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 5}}}, [5], [6]),
    ({"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {"type": "string"}},
      "not": {"$ref": "#/definitions/a", "type": "integer"}}, [5, None], ["a"]),  # nothing counts beside a reference
    ({"$ref": "#/$defs/a%25b", "$defs": {"a%b": {"const": 5}}}, [5], [6]),
    ({"$ref": "#n", "$defs": {"x": {"$anchor": "n", "const": 5}}}, [5], [6]),
    ({"$id": "http://x.org/root.json", "$ref": "other.json", "$defs": {"x": {"$id": "other.json", "const": 5}}}, [5],
     [6]),
    ({"$ref": "#/$defs/a", "maximum": 5, "$defs": {"a": {"type": "integer"}}}, [5], [6, "a"]),
    ({"type": "object", "properties": {"v": {"const": 1}, "next": {"$ref": "#"}}, "required": ["v"],
      "additionalProperties": False}, [{"v": 1}, {"v": 1, "next": {"v": 1, "next": {"v": 1}}}], [{"next": {"v": 1}}]),
    ({"type": "object", "properties": {"a": {"const": 1}}, "allOf": [{"properties": {"b": {"const": 2}}}],
      "unevaluatedProperties": False}, [{}, {"a": 1, "b": 2}], [{"c": 3}]),
    ({"type": "array", "items": {"type": "integer"}, "x-note": 1, "title": "A", "default": []}, [[1]], [["a"]]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "valid", "invalid"), CASES, ids=[str(index) for index in range(len(CASES))])
def test_schema_allows_these_values_and_not_those(
    tokenizer: DimpleTokenizer, schema: Any, valid: list[Any], invalid: list[Any]
) -> None:
    """One keyword after the other, confirmed by a judge that shares no line with us."""
    cls = validator_for(schema, default=Draft202012Validator) if isinstance(schema, dict) else Draft202012Validator
    judge = cls(schema, format_checker=cls.FORMAT_CHECKER)
    assert [judge.is_valid(value) for value in valid] == [True] * len(valid)
    if not valid:
        with pytest.raises(ValueError, match="must allow at least one value"):
            StructurePrior.from_json_schema(schema)
        return
    assert not any(judge.is_valid(value) for value in invalid)
    assert [can_write(tokenizer, schema, value) for value in valid] == [True] * len(valid)
    assert [can_write(tokenizer, schema, value) for value in invalid] == [False] * len(invalid)


@pytest.mark.parametrize("example", [{"price": 5, "qty": 1}, {"name": "form", "schema": {"type": "object"}}])
def test_schema_without_any_keyword_is_refused_with_its_keys(example: dict[str, Any]) -> None:
    """An example of the answer, or a schema one level too deep: any JSON would be valid. `{}` says so on purpose."""
    keys = ", ".join(example)
    with pytest.raises(ValueError, match=rf"`schema` must have a keyword .* or be {{}} .* \(got the keys {keys}\)"):
        StructurePrior.from_json_schema(example)
    for schema in ({}, {"title": "Any"}, {"type": "object", "properties": {"price": {"x-note": 1}, "qty": {}}}):
        assert StructurePrior.from_json_schema(schema).ignored in ([], ["$.properties.price.x-note"])


def test_canvas_of_a_free_value_is_short(tokenizer: DimpleTokenizer) -> None:
    """A value may nest deeper and hold more than usual; every answer would pay for a canvas that has room for it."""
    assert 100 < len(StructurePrior.from_json_schema({}).canvas(tokenizer).ids) < 300
    assert can_write(tokenizer, {}, [1, {"a": [2, 3]}])


@pytest.mark.parametrize("required", [[], ["a"], ["b"], ["c"], ["a", "c"], ["a", "b", "c"]])
@pytest.mark.parametrize("layout", ["compact", "padded"])
def test_object_writes_every_set_of_properties_with_commas_between(
    tokenizer: DimpleTokenizer, required: list[str], layout: str
) -> None:
    """Optional properties come and go; the commas must fit in all cases, wherever the first required one stands."""
    schema = {"type": "object", "properties": {name: {"const": 1} for name in "abc"}, "required": required}
    schema["additionalProperties"] = False
    prior = StructurePrior.from_json_schema(schema, layout=layout)
    for size in range(4):
        for names in itertools.combinations("abc", size):
            text = json.dumps(dict.fromkeys(names, 1), separators=(",", ":"))
            if set(required) <= set(names):
                prior.write(tokenizer, text)
            else:
                with pytest.raises(ValueError, match="must have the prior's form"):
                    prior.write(tokenizer, text)


def test_separators_are_those_of_json_dumps(tokenizer: DimpleTokenizer) -> None:
    """A model writes JSON as it has learned it; the form must not force another one on it."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [[1, 2]]}, "b": {"const": {"c": 3}}},
        "required": ["a", "b"],
    }
    prior = StructurePrior.from_json_schema(schema, separators=(", ", ": "))
    canvas = prior.canvas(tokenizer)
    text = json.dumps({"a": [1, 2], "b": {"c": 3}})
    assert canvas.fill(text)
    with pytest.raises(ValueError, match="must have the prior's form"):
        canvas.fill('{"a":[1,2],"b":{"c":3}}')
    assert canvas.text(prior.write(tokenizer, '{"b":{"c":3},"a":[1,2]}')[0]) == text


def test_unknown_keywords_and_formats_are_listed() -> None:
    """As annotations they change nothing, but nobody must be misled."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "format": "color-name", "x-unit": "m"}}}
    prior = StructurePrior.from_json_schema(schema | {"widget": 1})
    assert sorted(prior.ignored) == [
        "$.properties.a.format (color-name)", "$.properties.a.x-unit", "$.widget",
    ]  # fmt: skip
    assert StructurePrior.from_json_schema({"type": "string", "title": "T", "format": "date"}).ignored == []


def test_bounds_that_the_schema_does_not_have_are_listed(tokenizer: DimpleTokenizer) -> None:
    """The length of the canvas, the digits of numbers, the levels of recursion."""
    node = {"type": "object", "properties": {"v": {"type": "number"}, "next": {"$ref": "#"}}}
    prior = StructurePrior.from_json_schema(node, max_tokens=90)
    prior.canvas(tokenizer)
    assert prior.bounds["length"] == "90 tokens in all"
    assert re.search(r"at most [2-5] levels", prior.bounds["recursion"])
    assert "18 digits" in prior.bounds["numbers"]
    ids, _ = prior.write(tokenizer, '{"v":1}')
    assert not prior.touched_bound(tokenizer, ids)
    short = StructurePrior.from_json_schema(node, max_tokens=len([i for i in ids if i != tokenizer.pad_token_id]))
    ids, _ = short.write(tokenizer, '{"v":1}')
    assert short.touched_bound(tokenizer, ids)


def test_free_values_are_as_deep_as_the_budget_allows(tokenizer: DimpleTokenizer) -> None:
    """Where a schema says nothing, arrays and objects some levels deep; fewer beside much else."""
    assert can_write(tokenizer, {}, {"a": [{"b": 1}]})
    assert not can_write(tokenizer, {}, {"a": [{"b": [{"c": [{"d": [{"e": 1}]}]}]}]})
    assert can_write(tokenizer, {}, {"a": [[1, "x"], [2]]})
    assert not can_write(tokenizer, {}, {"a": [[[1]]]})  # an array in an array holds neither
    mentioned = {"type": "object", "properties": {"a": {"type": "object"}}}
    assert can_write(tokenizer, mentioned, {"a": {"b": {"c": {"d": 1}}}, "other": [{"b": 1}]})
    large = {"type": "object", "properties": {f"p{index}": {} for index in range(60)}}
    prior = StructurePrior.from_json_schema(large, max_tokens=400)
    prior.canvas(tokenizer)
    assert re.search("at most [01] deep", prior.bounds["free values"])


def test_free_values_of_arrays_hold_objects_in_objects(tokenizer: DimpleTokenizer) -> None:
    """As the fields of Kubernetes do, which no schema describes; arrays further inside hold few levels."""
    schema = {"type": "object", "properties": {"kind": {"type": "string"}}}
    fields = {"f:metadata": {"f:labels": {".": {}}}}
    assert can_write(tokenizer, schema, {"kind": "a", "managedFields": [{"fieldsV1": fields}]})
    assert can_write(tokenizer, schema, {"kind": "a", "terms": [{"match": [{"key": "b", "values": ["c", "d"]}]}]})
    assert not can_write(tokenizer, schema, {"kind": "a", "managedFields": [{"fieldsV1": {"f": {"g": fields}}}]})


def test_alternatives_that_end_alike_share_their_states(tokenizer: DimpleTokenizer) -> None:
    """An expression of many operators nests as deep as one of few; without that it would nest in one level only."""
    both = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"$ref": "#"}}
    values: dict[str, Any] = {name: {"$ref": "#"} for name in ("exp", "log", "not", "neg", "abs")}
    values |= dict.fromkeys(("add", "mul", "div", "sub", "pow"), both)
    calls = [
        {"type": "object", "required": [name], "additionalProperties": False, "properties": {name: value}}
        for name, value in values.items()
    ]
    schema = {"anyOf": [{"type": "number"}, {"type": "string"}, *calls]}
    assert can_write(tokenizer, schema, {"pow": [{"exp": 2}, {"log": {"neg": {"not": "x"}}}]})
    assert not can_write(tokenizer, schema, {"pow": [{"exp": 2}]})
    assert not can_write(
        tokenizer, schema, {"pow": [{"exp": 2}, {"log": {"neg": {"not": {"abs": {"exp": {"abs": 1}}}}}}]}
    )


def test_last_level_of_recursion_has_the_alternatives_without_it(tokenizer: DimpleTokenizer) -> None:
    """Five levels of arrays, and a number in the innermost, though that may not hold an array any more."""
    schema = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}}]}
    assert can_write(tokenizer, schema, [[[[[[1, 2]]]]]])
    assert not can_write(tokenizer, schema, [[[[[[[1]]]]]]])
    required = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}
    with pytest.raises(ValueError, match="must allow at least one value"):
        StructurePrior.from_json_schema(required)


def test_types_that_no_keyword_is_about_are_flat_values(tokenizer: DimpleTokenizer) -> None:
    """Where a schema gives no types, its keywords tell which are meant; the others must not cost many states."""
    schema: dict[str, Any] = {"pattern": "^[.]"}
    assert can_write(tokenizer, schema, {"a": 1, "b": [], "c": {}})
    assert can_write(tokenizer, schema, [1, ".a", {}])
    assert not can_write(tokenizer, schema, {"a": {"b": 1}})
    assert can_write(tokenizer, schema | {"type": ["string", "object"]}, {"a": {"b": 1}})
    assert can_write(tokenizer, {"required": ["a"]}, {"a": {"b": 1}})
    assert not can_write(tokenizer, {"required": ["a"]}, [{"b": 1}])


def test_string_that_is_the_whole_answer_has_more_positions(tokenizer: DimpleTokenizer) -> None:
    """It shares them with no other value; in the padded layout `max_string_tokens` is what it can have."""
    assert len(StructurePrior.from_json_schema({"type": "string"}).canvas(tokenizer).ids) >= 32
    padded = StructurePrior.from_json_schema({"type": "string"}, layout="padded").canvas(tokenizer)
    assert len(padded.ids) == 2 + 16  # with its quotation marks


def test_unmentioned_properties_inside_objects_are_less_deep(tokenizer: DimpleTokenizer) -> None:
    """Of the answer itself they have some levels, further inside fewer, so that many open objects stay small."""
    inner = {"type": "object", "properties": {"n": {"type": "integer"}}}
    schema = {"type": "object", "properties": {"a": inner}}
    deep = {"x": {"y": {"z": 1}}}
    assert can_write(tokenizer, schema, {"other": deep})
    assert can_write(tokenizer, schema, {"a": {"other": {"y": 1}}})
    assert not can_write(tokenizer, schema, {"a": {"other": {"y": [deep]}}})


def test_properties_come_in_any_order_on_request(tokenizer: DimpleTokenizer) -> None:
    """All orders of few properties, each property once."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"const": None}},
        "required": ["a"],
        "additionalProperties": {"type": "boolean"},
    }
    in_order = StructurePrior.from_json_schema(schema, max_tokens=100).canvas(tokenizer)
    canvas = StructurePrior.from_json_schema(schema, max_tokens=100, any_order=True).canvas(tokenizer)
    for names in itertools.permutations("abc"):
        value = {name: {"a": 1, "b": "x", "c": None}[name] for name in names}
        text = json.dumps(value, separators=(",", ":"))
        assert canvas.fill(text)
        if names != ("a", "b", "c"):
            with pytest.raises(ValueError, match="must have the prior's form"):
                in_order.fill(text)
    assert canvas.fill('{"b":"x","a":1,"more":true}')
    for text in ('{"b":"x"}', '{"a":1,"b":"x","a":2}', '{"b":1,"a":1}', '{"more":true,"a":1}'):
        with pytest.raises(ValueError, match="must have the prior's form"):
            canvas.fill(text)
    with pytest.raises(ValueError, match="`any_order` must be False"):
        StructurePrior.from_json_schema(schema, any_order=True, layout="padded")


def test_properties_of_large_objects_come_in_the_orders_of_the_schema(tokenizer: DimpleTokenizer) -> None:
    """
    A state for each set of many properties would be too much. Those of `required` may come first, in its order, where
    that is another one than the schema's; no property comes twice, and what must come does.
    """
    names = [f"p{index:02}" for index in range(12)]
    required = ["p11", "p07"]
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: {"const": index} for index, name in enumerate(names)},
        "required": required,
        "additionalProperties": False,
    }
    value = {name: names.index(name) for name in (*required, "p00")}
    prior = StructurePrior.from_json_schema(schema, any_order=True, max_tokens=200)
    prior.canvas(tokenizer)
    assert prior.bounds["$"] == "properties in the order of the schema, or of 'required'"
    for order in (value, dict(sorted(value.items()))):
        for any_order in (True, False):
            assert can_write(tokenizer, schema, order, any_order=any_order)
    canvas = prior.canvas(tokenizer)
    members = [f'"{name}":{number}' for name, number in value.items()]
    assert canvas.fill("{" + ",".join(members) + "}")  # the control
    for texts in (members[1:], [*members, members[0]], [*members, members[2]], [*members, '"other":1']):
        with pytest.raises(ValueError, match="must have the prior's form"):
            canvas.fill("{" + ",".join(texts) + "}")


def test_order_of_required_counts_where_the_names_of_the_schema_are_sorted(tokenizer: DimpleTokenizer) -> None:
    """A tool that sorts the properties loses the author's order; otherwise the schema's order is that order."""
    integers = {"type": "integer"}
    in_order = {"type": "object", "properties": {"b": integers, "a": integers, "c": integers}, "required": ["b", "c"]}
    is_sorted = in_order | {"properties": {"a": integers, "b": integers, "c": integers}}
    text = '{"b":1,"c":2,"a":3}'
    for schema, is_possible in ((is_sorted, True), (in_order, False)):
        canvas = StructurePrior.from_json_schema(schema, max_tokens=40).canvas(tokenizer)
        if is_possible:
            assert canvas.fill(text)
        else:
            with pytest.raises(ValueError, match="must have the prior's form"):
                canvas.fill(text)


def test_written_answers_have_their_properties_in_an_order_of_the_canvas(tokenizer: DimpleTokenizer) -> None:
    """Objects with the same properties are equal; whatever is no such object is still an error."""
    inner = {"type": "object", "properties": {"x": {"type": "number"}, "y": {"type": "string"}}}
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "rows": {"type": "array", "items": inner}}}
    schema["required"] = ["n"]
    prior = StructurePrior.from_json_schema(schema, max_tokens=80)
    text = '{"rows":[{"y":"é\\n","x":1.50},{"y":"b"}],"n":1}'
    ids, is_learned = prior.write(tokenizer, text)
    assert prior.canvas(tokenizer).text(ids) == '{"n":1,"rows":[{"x":1.50,"y":"é\\n"},{"y":"b"}]}'
    assert prior.read(tokenizer, ids) == json.loads(text)
    assert not is_learned[0]
    assert is_learned[-1]
    for wrong in (
        '{"rows":[],"n":"1"}',
        '{"rows":[]}',
        '{"rows":[],"n":1',
        "[]",
        '{"rows":[' + "{}," * 60 + '{}],"n":1}',
    ):
        with pytest.raises(ValueError, match="must have the prior's form"):
            prior.write(tokenizer, wrong)


def test_unique_strings_differ_by_their_first_or_last_letter(tokenizer: DimpleTokenizer) -> None:
    """Or by their length, where both are alike; equal strings never come."""
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    assert can_write(tokenizer, schema, [".js", ".md", ".a"])
    assert not can_write(tokenizer, schema, ["mc:stone", "mc:plate"])  # these are not told apart
    assert can_write(tokenizer, schema, ["mc:stone", "mc:deepslate"])
    assert not can_write(tokenizer, schema, [".js", ".js"])


def test_pairs_of_unique_strings_take_few_states(tokenizer: DimpleTokenizer) -> None:
    """Where sets of more kinds would need too many, two items of different kinds may still come."""
    schema = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    assert can_write(tokenizer, schema, ["1234567890", "9876543210"])
    assert not can_write(tokenizer, schema, ["1234567890", "9876543210", "5678901230"])
    assert not can_write(tokenizer, schema, ["10", "10"])


def test_unique_strings_of_large_schemas_come_in_pairs(tokenizer: DimpleTokenizer) -> None:
    """Told in each way, and items without a type are strings where they have a pattern."""
    suffixes = {"type": "array", "uniqueItems": True, "items": {"pattern": "^[.]"}}
    large = {"type": "object", "properties": {f"p{index}": suffixes for index in range(24)}}
    assert can_write(tokenizer, large, {"p1": [".js", ".css"]})  # they end and begin alike, but differ in length
    assert can_write(tokenizer, large, {"p1": [1], "p2": [{}], "p3": [".js"]})
    assert not can_write(tokenizer, large, {"p1": [".js", ".md", ".a"]})
    assert not can_write(tokenizer, large, {"p1": [".js", ".js"]})
    assert can_write(tokenizer, suffixes, [".js", ".md", ".a"])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "text"}, r"must have a type or a list of types at \$\.type \(got 'text'\)"),
        ({"type": []}, r"a type or a list of types at \$\.type"),
        ({"enum": [1], "type": 5}, r"a type or a list of types at \$\.type \(got 5\)"),
        ({"required": [[]]}, r"a list of names at \$\.required"),
        ({"format": []}, r"a string at \$\.format"),
        ({"type": "object", "properties": {"a": 5}}, r"an object of schemas at \$\.properties"),
        ({"anyOf": []}, r"a list with at least one schema at \$\.anyOf"),
        ({"type": "array", "items": {"anyOf": [{"type": "null"}, {"minimum": "1"}]}},
         r"a number below 1e300 at \$\.items\.anyOf\[1\]\.minimum \(got '1'\)"),
        ({"enum": []}, r"must allow at least one value at \$"),
        ({"enum": "ab"}, r"must have a list at \$\.enum"),
        ({"enum": ["a"], "type": "integer"}, "must allow at least one value"),
        ({"enum": ["a"], "const": "b"}, "must allow at least one value"),
        ({"const": float("inf")}, "must hold JSON values only|must allow at least one value"),
        ({"const": "\ud800"}, "must hold JSON values only"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, r"must allow at least one value at \$"),
        ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1}, "must allow at least one value"),
        ({"type": "number", "maximum": float("nan")}, "a number below 1e300"),
        ({"type": "number", "maximum": 1e300}, "a number below 1e300"),
        ({"type": "number", "exclusiveMinimum": -1e300}, "a number below 1e300"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "must allow at least one value"),
        ({"type": "string", "maxLength": -1}, r"an integer >= 0 at \$\.maxLength \(got -1\)"),
        ({"type": "string", "x-max-tokens": 0}, r"an integer >= 1 at \$\.x-max-tokens \(got 0\)"),
        ({"type": "string", "pattern": r"(a)\1"}, r"a supported pattern at \$\.pattern .*back references"),
        ({"type": "string", "pattern": 5}, r"a string at \$\.pattern"),
        ({"type": "array", "items": {"type": "null"}, "minItems": 3, "maxItems": 2}, "at least one value"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, r"at least one value at \$"),
        ({"oneOf": [{"$dynamicRef": "#a"}]}, r"must not use '\$dynamicRef', .*\(at \$\.oneOf\[0\]\)"),
        ({"$ref": "#/$defs/a", "$defs": {}}, r"must define '#/\$defs/a', which is referred to at \$\.\$ref"),
        ({"$ref": "http://x/y"}, r"must refer to itself only at \$\.\$ref"),
        ({"type": "integer", "multipleOf": 0}, "a number above 0"),
        ({"items": {"type": "array", "contains": {"const": 1}, "minItems": 2, "uniqueItems": True}},
         r"'contains' of several items with 'uniqueItems' \(at \$\.items\)"),
    ],
)  # fmt: skip
def test_schema_that_cannot_be_guaranteed_is_refused_by_path(schema: dict[str, Any], message: str) -> None:
    """Bad schemas must not wait for a model, and their owner must see where they are bad."""
    with pytest.raises(ValueError, match=message):
        SchemaReader(schema, ReaderOptions()).part(Depth())


def test_bound_of_three_hundred_digits_is_kept() -> None:
    """The largest that is accepted."""
    assert SchemaReader({"type": "number", "minimum": 9e299}, ReaderOptions()).part(Depth()) is not None


def references(fan_out: int, levels: int, is_required: bool = True) -> dict[str, Any]:
    """Objects of so many properties, each of which is such an object, and so on."""
    definitions = {
        f"level{level}": {
            "type": "object",
            "properties": {f"p{index}": {"$ref": f"#/$defs/level{level + 1}"} for index in range(fan_out)},
            "required": [f"p{index}" for index in range(fan_out)] if is_required else [],
        }
        for level in range(levels)
    }
    return {"$ref": "#/$defs/level0", "$defs": definitions | {f"level{levels}": {"type": "string"}}}


def nested_any_of(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        inner = {"anyOf": [inner, {"allOf": [inner, {"minLength": 1}]}]}
    return inner


def nested_lists(levels: int) -> dict[str, Any]:
    """Arrays of eleven arrays of eleven arrays, and so on."""
    definitions = {f"level{n}": {"prefixItems": [{"$ref": f"#/$defs/level{n + 1}"}] * 11} for n in range(levels)}
    definitions = {name: {"type": "array", "minItems": 11, "items": False} | one for name, one in definitions.items()}
    return {"$ref": "#/$defs/level0", "$defs": definitions | {f"level{levels}": {"type": "null"}}}


HOSTILE = {
    "nested repetitions": {"type": "string", "pattern": "(((((a?){30}){30})){30})"},
    "nested references": references(11, 7),
    "enum of many strings": {"enum": [f"value number {index}" for index in range(20_000)]},
    "bounds of 299 digits": {"type": "integer", "minimum": 0, "maximum": 10**299 - 7},
    "nested anyOf": nested_any_of(6),
    "shared anyOf": nested_any_of(40),
    "many oneOf": {"oneOf": [{"type": "object", "required": [f"a{i}"]} for i in range(40)]},
    "many items": {"type": "array", "items": {"type": "string"}, "minItems": 10**9},
    "long string": {"type": "string", "minLength": 10**9},
    "deep arrays": {"$ref": "#", "items": {"$ref": "#"}, "type": "array", "minItems": 1},
    "many optional properties": {
        "type": "object",
        "properties": {f"property{i}": {"type": "string"} for i in range(3000)},
    },
    "many optional properties inside": {
        "type": "object",
        "properties": {
            "a": {"type": "object", "properties": {f"property{i}": {"type": "string"} for i in range(3000)}}
        },
        "required": ["a"],
    },
    "nested optional references": references(20, 7, is_required=False),
    "nested lists": nested_lists(6),
}

#: Most function calls of building one of them, whatever the machine.
MAX_CALLS = 4_000_000


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, "compact") for name in HOSTILE if "optional" not in name),
        ("many optional properties", "compact"),
        *(
            pytest.param(name, layout, marks=pytest.mark.slow)
            for name in HOSTILE
            for layout in ("compact", "padded")
            if "inside" in name or "nested" in name
        ),
    ],
)
def test_hostile_schema_is_built_or_refused_with_bounded_work(
    tokenizer: DimpleTokenizer, name: str, layout: str
) -> None:
    """The budget is checked while building: a schema of two kilobytes must not occupy a machine for minutes."""
    with cProfile.Profile() as profile:
        try:
            StructurePrior.from_json_schema(HOSTILE[name], layout=layout).canvas(tokenizer)
        except ValueError as error:
            assert "must" in str(error)  # noqa: PT017
    assert 0 < sum(entry.callcount for entry in profile.getstats()) <= MAX_CALLS


class Row(pydantic.BaseModel):
    what: str = pydantic.Field(max_length=12)
    quantity: int = pydantic.Field(ge=1, le=99)


class Order(pydantic.BaseModel):
    number: int = pydantic.Field(gt=0)
    day: datetime.date
    paid: bool = False
    note: str | None = None
    rows: list[Row] = pydantic.Field(min_length=1, max_length=2)


def test_pydantic_class_gets_no_properties_that_it_does_not_have(tokenizer: DimpleTokenizer) -> None:
    """It would drop them; a dict's schema leaves them open."""
    rows = [{"what": "tea", "quantity": 2}]
    order = {"number": 1, "day": "2024-01-01", "rows": rows}
    assert can_write(tokenizer, Order, order)
    assert not can_write(tokenizer, Order, order | {"extra": 1})
    assert can_write(tokenizer, Order.model_json_schema(), order | {"extra": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schema": [1]}, r"`schema` must be a dict or a pydantic model class \(got list\)"),
        ({"schema": type("Plain", (), {})}, "`schema` must be a dict or what pydantic has a JSON schema for"),
        ({"schema": {"type": "null"}, "max_string_tokens": 0}, r"`max_string_tokens` must lie between 1 and 131072"),
        ({"schema": {"type": "null"}, "max_items": 0}, r"`max_items` must lie between 1 and 131072 \(got 0\)"),
        ({"schema": {"type": "null"}, "max_digits": 0}, r"`max_digits` must lie between 1 and 256 \(got 0\)"),
        ({"schema": {"type": "null"}, "max_tokens": 0}, r"`max_tokens` must lie between 1 and 131072 \(got 0\)"),
        ({"schema": {"type": "null"}, "max_tokens": 10**20}, r"`max_tokens` must lie between 1 and 131072 \(got 1000"),
        ({"schema": {"type": "null"}, "max_digits": 257}, r"`max_digits` must lie between 1 and 256 \(got 257\)"),
        ({"schema": {"type": "null"}, "separators": (";", ":")}, r"`separators` must be ',' with white space"),
        ({"schema": {"type": "null"}, "layout": "loose"}, r"`layout` must be one of padded, compact \(got 'loose'\)"),
    ],
)
def test_prior_from_a_schema_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    """Each argument has its own word."""
    with pytest.raises(ValueError, match=message):
        StructurePrior.from_json_schema(**arguments)


@pytest.mark.parametrize("layout", ["padded", "compact"])
def test_prior_from_a_schema_reads_what_json_says(tokenizer: DimpleTokenizer, layout: str) -> None:
    """By hand what the model would write: padding lies where the layout has it."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 999}, "s": {"type": "string"}},
        "required": ["n", "s"],
    }
    prior = StructurePrior.from_json_schema(schema, layout=layout, max_string_tokens=4)
    canvas = prior.canvas(tokenizer)
    encode, pad = canvas.vocabulary.encode, canvas.vocabulary.pad_id
    if layout == "padded":
        ids = [*encode('{"n":'), *encode("7"), pad, pad, *encode(',"s":"'), *[pad] * 4, *encode('"}')]
    else:
        ids = [*encode('{"n":'), *encode("7"), *encode(',"s":"'), *encode('"}')]
        ids += [pad] * (len(canvas.ids) - len(ids))
    assert len(ids) == len(canvas.ids)
    assert prior.read(tokenizer, ids) == {"n": 7, "s": ""}
    Draft202012Validator(schema).validate(prior.read(tokenizer, ids))
    with pytest.raises(ValueError, match="must be a complete filling"):
        prior.read(tokenizer, ids[::-1])


def test_confidences_have_the_shape_of_the_value(tokenizer: DimpleTokenizer) -> None:
    """Each value has the probability of its own tokens; names, commas and padding belong to none."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "items": {"type": "array", "items": {"type": "string"}}},
        "required": ["n", "items"],
    }
    prior = StructurePrior.from_json_schema(schema)
    ids, _ = prior.write(tokenizer, '{"n":12,"items":["é"]}')
    logprobs = [0.0] * len(ids)
    assert prior.confidences(tokenizer, ids, logprobs) == {"n": 1.0, "items": [1.0]}
    one = ids.index(tokenizer.encode("1")[0])
    logprobs[one], logprobs[-1] = -0.5, float("nan")
    logprobs[0] = -9.0
    tree = prior.confidences(tokenizer, ids, logprobs)
    assert tree["n"] == pytest.approx(0.6065, abs=1e-4)  # exp(-0.5)
    assert tree["items"] == [1.0]
    template = StructurePrior.from_template("x={x:int} {y:2}")
    ids, _ = template.write(tokenizer, "x=5 a")
    assert template.confidences(tokenizer, ids, [-1.0] * len(ids))["x"] < 1


@pytest.mark.parametrize(
    "alternatives",
    [
        [{"$ref": "#/definitions/v"}, {"type": "string"}],
        [
            {"type": "object", "properties": {"a": {"$ref": "#/definitions/v"}}},
            {"type": "array", "items": {"$ref": "#/definitions/v"}},
            {"oneOf": [{"$ref": "#/definitions/v"}, {"type": "string"}]},
        ],
    ],
)
def test_circle_of_one_of_is_refused(alternatives: list[dict[str, Any]]) -> None:
    """Whether alternatives are disjoint would be asked of themselves; no RecursionError reaches the caller."""
    with pytest.raises(ValueError, match="must be nested less deeply"):
        StructurePrior.from_json_schema({"definitions": {"v": {"oneOf": alternatives}}, "$ref": "#/definitions/v"})
    # Control: the same without a circle.
    plain = [{"type": "integer"}, {"type": "string"}]
    StructurePrior.from_json_schema({"definitions": {"v": {"oneOf": plain}}, "$ref": "#/definitions/v"})


def test_identifiers_inside_unknown_keywords_are_none(tokenizer: DimpleTokenizer) -> None:
    """What an unknown keyword holds is no schema, so another one with the same identifier is meant."""
    name = "https://example.com/item"
    schema = {
        "$defs": {"other": {"unknown": [{"$id": name, "type": "null"}]}, "item": {"$id": name, "type": "string"}},
        "properties": {"a": {"$ref": name}},
        "type": "object",
    }
    for definitions in (schema["$defs"], dict(reversed(schema["$defs"].items()))):
        assert can_write(tokenizer, schema | {"$defs": definitions}, {"a": "x"})
        assert not can_write(tokenizer, schema | {"$defs": definitions}, {"a": None})


def test_what_no_limit_is_about_is_read_once() -> None:
    """The same part for all limits, with what it is bounded to; open objects and sets are read for each."""
    closed = {"type": "object", "properties": {"n": {"type": "number"}}, "additionalProperties": False}
    unordered = {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
        "required": ["a", "b"],
    }
    unique = {"type": "array", "uniqueItems": True, "items": {"type": ["string", "number"]}}
    properties = {"closed": closed, "open": {"type": "object"}, "unordered": unordered, "unique": unique}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    reader = SchemaReader(schema, ReaderOptions(any_order=True))
    limits = Depth(1, 0, 0, unique=0), Depth(2, 4, 3, 4_000, unique=2_000)
    found, bounds = [], []
    for one in (*limits, limits[0]):
        found.append({key: value for key, value, _ in reader.part(one).parts[1].named})
        bounds.append(reader.bounds)
    small, large, again = found
    assert small['"closed":'] is large['"closed":'] is again['"closed":']
    assert all("numbers" in one for one in bounds)
    for name in ("open", "unordered", "unique"):
        assert small[f'"{name}":'] is not large[f'"{name}":']
    assert bounds[0] == bounds[2] != bounds[1]
    fresh = SchemaReader(schema, ReaderOptions(any_order=True))
    fresh.part(limits[1])
    assert fresh.bounds == bounds[1]  # what was read before changes nothing

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
"""Random JSON schemas of the supported subset, with what is awkward in them."""

import random
from typing import Any

#: Patterns with something awkward each: anchors, alternatives, classes, escapes of JSON, characters beyond ASCII.
PATTERNS = (
    "^[A-Z]{2}-[0-9]{1,4}$", "[0-9]", "^(red|green|blue)$", r"^\w{1,8}$", r'^[^"]*"[^"]*$', r"^\S+@\S+\.com$",
    "^[äöü]+$", r"^\\?[a-c]*$", "a|^b|c$", r"^[^\d\s]{2}", "^日本(語|人)$", r"^(ab?|[cd]{2}){1,3}$",
    r"^\d+(\.\d{1,2})?$",
)  # fmt: skip
LITERALS = (
    None, True, False, 0, -7, 12.5, "", "yes", "no", 'say "hi"', "\\", "naïve\n", "e\u0301", "<|im_end|>", [1, "a"],
    {"k": None},
)  # fmt: skip
NAMES = ("a", "qty", "total amount", 'q"', "日付", "tags", "é", "x.y", "$ref2", "")


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of any kind; objects and arrays nest up to three deep."""
    kinds = ["string", "pattern", "format", "integer", "number", "boolean", "null", "literal", "union", "types"]
    kinds += ["one_of", "not", "conditional", "multiple", "free", "dependent", "named", "all_of", "contains"]
    kinds += ["object", "array"] * (3 if depth == 0 else 2 if depth < 3 else 0)
    kind = "object" if depth == 0 and rng.random() < 0.6 else rng.choice(kinds)
    return _BUILDERS[kind](rng, depth)


def _string(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.6:
        schema["maxLength"] = rng.choice((0, 1, 3, 8, 40))
    if rng.random() < 0.3:
        schema["minLength"] = rng.randint(0, schema.get("maxLength", 10))
    if rng.random() < 0.2:
        schema["x-max-tokens"] = max(rng.randint(1, 6), schema.get("minLength", 0))
    return schema


def _pattern(rng: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "pattern": rng.choice(PATTERNS)}
    if rng.random() < 0.3:
        schema["maxLength"] = 12
    return schema


def _number(rng: random.Random, kind: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    scale = rng.choice((1, 10, 1000, 123456))
    low = rng.randint(-scale, scale) if kind == "integer" else round(rng.uniform(-scale, scale), rng.randint(0, 4))
    if rng.random() < 0.6:
        schema[rng.choice(("minimum", "exclusiveMinimum"))] = low
    if rng.random() < 0.6:
        schema[rng.choice(("maximum", "exclusiveMaximum"))] = low + 2 + rng.randint(0, 2 * scale)
    return schema


def _union(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]}


def _types(rng: random.Random, depth: int) -> dict[str, Any]:
    return {"type": rng.sample(["string", "integer", "number", "boolean", "null"], rng.randint(1, 3)), "maximum": 99}


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    at_least = rng.randint(0, 2)
    schema = {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": at_least + rng.randint(0, 2)}
    return schema | ({"minItems": at_least} if at_least or rng.random() < 0.3 else {})


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    names = rng.sample(NAMES, rng.randint(0, 4))
    schema: dict[str, Any] = {
        "type": "object",
        "title": "A form",
        "properties": {name: random_schema(rng, depth + 1) for name in names},
        "required": [name for name in names if rng.random() < 0.5],
    }
    if rng.random() < 0.5:
        schema["additionalProperties"] = False
    return schema


def _one_of(rng: random.Random, depth: int) -> dict[str, Any]:
    """Options that overlap or not: what both allow is valid for neither."""
    return {"oneOf": [{"type": "integer", "minimum": rng.randint(0, 9)}, {"type": "integer", "maximum": 12},
                      {"type": "string", "pattern": rng.choice(PATTERNS)}][: rng.randint(2, 3)]}  # fmt: skip


def _not(rng: random.Random, depth: int) -> dict[str, Any]:
    others = [{"enum": ["a", "b", 5]}, {"minLength": 3}, {"pattern": "[aeiou]"}, {"type": "object"}, {"maximum": 7}]
    return {"type": ["string", "integer"], "not": rng.choice(others)}


def _conditional(rng: random.Random, depth: int) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"k": {"enum": ["x", "y"]}, "v": {"type": ["string", "integer"]}},
        "required": ["k"],
        "additionalProperties": False,
        "if": {"properties": {"k": {"const": "x"}}},
        "then": {"required": ["v"], "properties": {"v": {"type": "integer"}}},
        "else": {"properties": {"v": {"type": "string"}}},
    }


def _free(rng: random.Random, depth: int) -> dict[str, Any]:
    """Generated names and items."""
    return rng.choice([
        {"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 2},
        {"type": "object", "patternProperties": {"^x": {"type": "boolean"}}, "additionalProperties": {"type": "null"}},
        {"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}, "maxItems": 3},
        {"type": "array", "items": {"enum": [1, "a", None]}, "uniqueItems": True},
        {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 2},
        {"type": "object", "properties": {"n": {"type": "integer"}}, "minProperties": 1},
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False},
    ])  # fmt: skip


def _dependent(rng: random.Random, depth: int) -> dict[str, Any]:
    """Properties that others ask for, by name or by schema."""
    return {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "qty": {"type": "null"}},
        "additionalProperties": False,
        rng.choice(("dependentRequired", "dependencies")): {"a": ["b"]},
        "dependentSchemas": {"qty": {"required": ["a"], "properties": {"a": {"minimum": rng.randint(-5, 5)}}}},
        "minProperties": rng.randint(0, 1),
    }


def _named(rng: random.Random, depth: int) -> dict[str, Any]:
    """Generated names that a pattern, a length or a list allows, of properties with and without a pattern."""
    names = rng.choice([{"pattern": "^[a-z]{1,3}$"}, {"maxLength": 4}, {"enum": ["a", "b", "long name"]}])
    schema = {"type": "object", "propertyNames": names, "additionalProperties": {"type": ["integer", "null"]}}
    if rng.random() < 0.5:
        schema["patternProperties"] = {"^a": {"type": "boolean"}, "b$": {"type": ["boolean", "integer"]}}
    if rng.random() < 0.5:
        schema["properties"] = {"a": {"type": "boolean"}}
    return schema


def _all_of(rng: random.Random, depth: int) -> dict[str, Any]:
    """Several schemas that hold together, some with properties that only one of them mentions."""
    options: list[list[dict[str, Any]]] = [
        [{"type": "integer", "minimum": -20}, {"maximum": rng.randint(-20, 50)}, {"multipleOf": rng.choice((1, 5))}],
        [{"type": "string", "maxLength": 6}, {"pattern": "^[a-c]"}, {"not": {"const": "a"}}],
        [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}, "a": {"maximum": 3}}},
        ],
    ]
    schema: dict[str, Any] = {"allOf": rng.choice(options)}
    if "properties" in schema["allOf"][-1] and rng.random() < 0.5:
        schema["unevaluatedProperties"] = False
    return schema


def _contains(rng: random.Random, depth: int) -> dict[str, Any]:
    """Arrays that begin with given items, or hold some number of items of a kind."""
    least = rng.randint(0, 2)
    schema = {"type": "array", "items": {"type": ["integer", "boolean"]}, "contains": {"type": "integer"},
              "minContains": least, "maxContains": least + rng.randint(0, 1), "maxItems": 3}  # fmt: skip
    if rng.random() < 0.5:
        schema["prefixItems"] = [{"type": "boolean"}]
    return schema


_BUILDERS = {
    "dependent": _dependent,
    "named": _named,
    "all_of": _all_of,
    "contains": _contains,
    "one_of": _one_of,
    "not": _not,
    "conditional": _conditional,
    "multiple": lambda rng, depth: {"type": "number", "multipleOf": rng.choice((3, 0.5, 0.01)), "minimum": 0},
    "free": _free,
    "string": _string,
    "pattern": _pattern,
    "format": lambda rng, depth: {"type": "string", "format": rng.choice(("date", "time", "date-time"))},
    "integer": lambda rng, depth: _number(rng, "integer"),
    "number": lambda rng, depth: _number(rng, "number"),
    "boolean": lambda rng, depth: {"type": "boolean"},
    "null": lambda rng, depth: {"type": "null"},
    "literal": lambda rng, depth: {"enum": rng.sample(LITERALS, rng.randint(1, 5))},
    "union": _union,
    "types": _types,
    "array": _array,
    "object": _object,
}

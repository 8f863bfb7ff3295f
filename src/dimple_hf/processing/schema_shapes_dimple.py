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
"""JSON schemas as sums of shapes: the values that a conjunction of schemas allows, type by type.

An *atom* is a schema that must hold, or must not. `Expander.shapes` turns a conjunction of atoms into alternatives
without `anyOf`, `oneOf`, `not` and the like; together they allow what the conjunction does, or less where a negation
has no simple form. Nothing that it leaves open is ever invalid.
"""

import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache, partial
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from .char_dfa_dimple import CharDFA
from .patterns_dimple import pattern_dfa

#: Most alternatives of one value.
MAX_ALTERNATIVES = 256

#: Most atoms that are looked at for one schema; nested `anyOf` multiply.
MAX_ATOMS = 20_000

#: Most values of one schema, nested ones included.
MAX_VALUES = 100_000

TYPES = ("object", "array", "string", "number", "boolean", "null")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def _is_anything(value: Any) -> bool:
    return True


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return is_number(value) and value >= 0 and value == int(value)


def _is_positive_count(value: Any) -> bool:
    return _is_count(value) and value >= 1


def _is_bounded_number(value: Any) -> bool:
    return is_number(value) and abs(value) < 1e300


def _is_positive_number(value: Any) -> bool:
    return _is_bounded_number(value) and value > 0


def _is_bound(value: Any) -> bool:
    return isinstance(value, bool) or _is_bounded_number(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_type(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and (name in TYPES or name == "integer") for name in names)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_required(value: Any) -> bool:
    return isinstance(value, bool) or _is_names(value)  # a boolean in draft 3


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_schema_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_schema, value))


def _is_filled_schema_list(value: Any) -> bool:
    return bool(value) and _is_schema_list(value)


def _is_schema_or_list(value: Any) -> bool:
    return _is_schema(value) or _is_schema_list(value)


def _is_object_of(is_valid: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_valid, value.values()))


def _is_dependency(value: Any) -> bool:
    return _is_schema(value) or _is_names(value) or isinstance(value, str)


_is_schema_map = partial(_is_object_of, _is_schema)
_is_names_map = partial(_is_object_of, _is_names)
_is_dependency_map = partial(_is_object_of, _is_dependency)

#: Keywords that are understood, and what their values must be.
KEYWORDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "type": (_is_type, "a type or a list of types"),
    "enum": (_is_list, "a list"),
    "const": (_is_anything, ""),
    **dict.fromkeys(("anyOf", "allOf", "oneOf"), (_is_filled_schema_list, "a list with at least one schema")),
    **dict.fromkeys(("not", "if", "then", "else"), (_is_schema, "a schema")),
    "$ref": (_is_string, "a string"),
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas"), (_is_schema_map, "an object of schemas")),
    **dict.fromkeys(
        ("additionalProperties", "unevaluatedProperties", "propertyNames", "additionalItems", "unevaluatedItems",
         "contains"),
        (_is_schema, "a schema"),
    ),
    "required": (_is_required, "a list of names"),
    "dependentRequired": (_is_names_map, "an object of names"),
    "dependencies": (_is_dependency_map, "an object of schemas or names"),
    "items": (_is_schema_or_list, "a schema"),
    "prefixItems": (_is_schema_list, "a list of schemas"),
    **dict.fromkeys(
        ("minProperties", "maxProperties", "minContains", "maxContains", "minItems", "maxItems", "minLength",
         "maxLength"),
        (_is_count, "an integer >= 0"),
    ),
    "uniqueItems": (_is_bool, "true or false"),
    "pattern": (_is_string, "a string"),
    "format": (_is_string, "a string"),
    **dict.fromkeys(("minimum", "maximum"), (_is_bounded_number, "a number below 1e300")),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), (_is_bound, "a number below 1e300")),
    "multipleOf": (_is_positive_number, "a number above 0"),
    "x-max-tokens": (_is_positive_count, "an integer >= 1"),
}  # fmt: skip

#: Keywords whose values are schemas, or lists of them, and objects of them.
SCHEMA_KEYWORDS = frozenset(
    ("anyOf", "allOf", "oneOf", "not", "if", "then", "else", "items", "prefixItems", "additionalItems",
     "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties", "propertyNames")
)  # fmt: skip
SCHEMA_MAPS = frozenset(
    ("properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions")
)

#: Keywords of which `not` has a form here; without the others a negation allows less.
NEGATED = frozenset(
    ("type", "enum", "const", "anyOf", "allOf", "oneOf", "not", "if", "then", "else", "$ref", "properties", "required",
     "minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength", "uniqueItems", "pattern",
     "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "x-max-tokens")
)  # fmt: skip

#: Keywords that only name, describe or locate.
SILENT = frozenset(
    ("$schema", "$id", "id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default",
     "examples", "deprecated", "readOnly", "writeOnly", "$vocabulary", "x-max-tokens", "discriminator")
)  # fmt: skip

#: Keywords that would change what is valid, and that are not supported.
REFUSED = frozenset(("$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy"))

KEYWORD_GROUPS = (KEYWORDS, SILENT, REFUSED)


def same(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right or is_number(left) and is_number(right) and left == right


class Made(dict[str, Any]):
    """A schema that is made here, with keywords of its own: `branches`, `excluded`, `not-pattern` and so on."""


@dataclass(frozen=True)
class Atom:
    """
    A schema that holds, or does not.

    Args:
        schema (`dict` or `bool`):
            The schema.
        path (`str`):
            Where it stands.
        holds (`bool`):
            Whether it must hold.
        owners (`tuple[int, ...]`):
            The schemas that brought it, by identity, for `unevaluatedProperties`.
        order (`tuple[int, ...]`):
            Where it stands among others about the same value: properties come in the order in which they are written.
    """

    schema: Any
    path: str
    holds: bool = True
    owners: tuple[int, ...] = ()
    order: tuple[int, ...] = ()

    @cached_property
    def key(self) -> tuple[bool, int]:
        """Names the atom: schemas are told by identity."""
        return (self.holds, id(self.schema))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Atom) and self.key == other.key


Conjunction = tuple[Atom, ...]


@dataclass(frozen=True)
class Entry:
    """One schema's keywords for properties, or for items."""

    named: dict[str, Conjunction]
    patterns: dict[str, Conjunction]
    rest: Conjunction | None  # `None`: nothing is said
    owners: tuple[int, ...] = ()
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shape:
    """
    What one alternative allows; see the JSON schema keywords of the same names.

    `unevaluated` holds, for each schema with such a keyword, its identity and what else must hold; `closed_by` the
    deepest path of a schema that says what other properties may be.
    """

    types: frozenset[str] = frozenset(TYPES)
    is_typed: bool = False  # whether a schema gives the types
    values: tuple[Any, ...] | None = None
    excluded: tuple[Any, ...] = ()
    is_integer: bool = False
    not_integer: bool = False
    low: tuple[float | int, bool] | None = None
    high: tuple[float | int, bool] | None = None
    multiples: tuple[float | int, ...] = ()
    last_digits: str = ""  # of integers, where not all are possible
    patterns: tuple[str, ...] = ()
    not_patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    min_length: int = 0
    max_length: int | None = None
    max_tokens: int | None = None
    properties: tuple[Entry, ...] = ()
    unevaluated: tuple[tuple[int, Conjunction], ...] = ()
    names: Conjunction = ()
    required: tuple[str, ...] = ()
    min_properties: int = 0
    max_properties: int | None = None
    items: tuple[Entry, ...] = ()
    unevaluated_items: tuple[tuple[int, Conjunction], ...] = ()
    contains: tuple[tuple[Conjunction, int, int | None], ...] = ()
    is_unique: bool = False
    not_unique: bool = False
    min_items: int = 0
    max_items: int | None = None

    def changed(self, **changes: Any) -> "Shape":
        """The shape with other values of some attributes, as `dataclasses.replace` makes it, but faster."""
        other = object.__new__(Shape)
        vars(other).update(vars(self), **changes)
        return other

    @property
    def meant_types(self) -> frozenset[str]:
        """The types that are meant: where none is given, those that the keywords are about, if they are about any."""
        if self.is_typed or self.values is not None:
            return self.types
        about = {
            "object": self.properties or self.required or self.names or self.unevaluated or self.min_properties
            or self.max_properties is not None,
            "array": self.items or self.unevaluated_items or self.contains or self.is_unique or self.min_items
            or self.max_items is not None,
            "string": self.patterns or self.formats or self.min_length or self.max_length is not None,
            "number": self.low or self.high or self.multiples,
        }  # fmt: skip
        return frozenset(name for name, is_meant in about.items() if is_meant) or self.types

    @property
    def is_empty(self) -> bool:
        """Whether it is plain that nothing is allowed."""
        return not self.types or (self.values is not None and not self.values)


def refuse_large(schema: Any) -> None:
    """Raises `ValueError` if a schema has more than `MAX_VALUES` values; one that is shared counts each time."""
    stack, num_values = [schema], 1
    while stack:
        value = stack.pop()
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        num_values += len(inner)
        if num_values > MAX_VALUES:
            raise ValueError(f"`schema` must have at most {MAX_VALUES} values (it has more)")
        stack += inner


def refuse_example(schema: Any, name: str = "schema") -> None:
    """
    Raises `ValueError` if a schema, the argument `name`, has keys but no keyword, as an example of the answer does: by
    the standard, which takes unknown keys for annotations, any JSON would be valid for it.
    """
    if isinstance(schema, dict) and schema and not any(key in names for key in schema for names in KEYWORD_GROUPS):
        raise ValueError(
            f'`{name}` must have a keyword of JSON Schema, such as "type" or "properties", or be {{}} for any JSON '
            f"(got the keys {', '.join(map(str, schema))[:80]})"
        )


class SchemaReferences:
    """Finds what `$ref` refers to: the schema itself, its identified parts, and pointers into them."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.documents: dict[str, Any] = {"": root}
        self.anchors: dict[str, Any] = {}
        self.base_of: dict[int, str] = {}
        self._collect(root)

    def _collect(self, root: Any) -> None:
        stack: list[tuple[Any, str]] = [(root, "")]
        others: list[tuple[Any, str]] = []  # in unknown keywords: identifiers only where no schema has them
        seen: set[tuple[int, str]] = set()  # parts of a Python object may be shared
        while stack or others:
            value, base = stack.pop() if stack else others.pop()
            if isinstance(value, (list, dict)):
                if (id(value), base) in seen:
                    continue
                seen.add((id(value), base))
            if isinstance(value, list):
                stack += [(inner, base) for inner in value]
            if not isinstance(value, dict):
                continue
            identifier = value.get("$id", value.get("id"))
            if isinstance(identifier, str) and not (identifier.startswith("#") and len(identifier) > 1):
                base = _join(base, identifier)
                self.documents.setdefault(urldefrag(base)[0], value)
            elif isinstance(identifier, str):
                self.anchors.setdefault(_join(base, identifier), value)
            for name in ("$anchor", "$dynamicAnchor"):
                if isinstance(value.get(name), str):
                    self.anchors.setdefault(urldefrag(base)[0] + "#" + value[name], value)
            self.base_of[id(value)] = base
            for key, inner in value.items():
                if key in SCHEMA_MAPS and isinstance(inner, dict):
                    stack += [(one, base) for one in inner.values()]
                elif key in SCHEMA_KEYWORDS:
                    stack.append((inner, base))
                elif key not in ("enum", "const", "default"):
                    others.append((inner, base))

    def resolve(self, reference: str, schema: dict[str, Any], path: str) -> Any:
        """The schema that `reference`, inside `schema`, refers to."""
        target = _join(self.base_of.get(id(schema), ""), reference)
        address, fragment = urldefrag(target)
        if target in self.anchors:
            return self.anchors[target]
        if address not in self.documents:
            if address + "#" in self.documents:
                address += "#"
            else:
                raise ValueError(f"`schema` must refer to itself only at {path}.$ref (got {reference!r})")
        found = self.documents[address]
        if not fragment:
            return found
        names = unquote(fragment).split("/")
        if names[0]:
            raise ValueError(f"`schema` must define {reference!r}, which is referred to at {path}.$ref")
        for name in names[1:]:
            name = name.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise ValueError(f"`schema` must define {reference!r}, which is referred to at {path}.$ref")
        return found


def _join(base: str, reference: str) -> str:
    if reference.startswith("#"):
        return urldefrag(base)[0] + reference
    joined = urljoin(base, reference)
    # `urljoin` does not know the scheme of names such as urn:... and then keeps the reference as it is.
    return joined[:-1] if joined.endswith("#") else joined


class Expander:
    """
    Turns conjunctions of schemas into alternatives.

    Args:
        root (`dict` or `bool`):
            The whole schema.
        separators (`tuple[str, str]`):
            As for `json.dumps`.

    Raises:
        ValueError: From its methods, where a schema is malformed or uses what is not supported, with the path.
    """

    def __init__(self, root: Any) -> None:
        self.references = SchemaReferences(root)
        dialect = root.get("$schema", "") if isinstance(root, dict) else ""
        match = re.search(r"draft-0(\d)", dialect) if isinstance(dialect, str) else None
        self.draft = int(match[1]) if match else 8
        self.ignored: dict[str, None] = {}
        self.known: dict[frozenset[tuple[bool, int]], list[Shape]] = {}
        self.narrowed: set[frozenset[tuple[bool, int]]] = set()  # conjunctions that allow more than their shapes
        self.num_narrowings = 0
        self.kept: list[Any] = []  # schemas made here, which are told by identity
        self.made: dict[object, Made] = {}
        self.num_atoms = 0

    def shapes(self, conjunction: Conjunction) -> list[Shape]:
        """The alternatives of a conjunction; none if it allows nothing."""
        key = frozenset(atom.key for atom in conjunction)
        if key not in self.known:
            before = self.num_narrowings
            self.known[key] = [
                shape for shape in self._expand(Shape(), list(conjunction), frozenset()) if not self._is_empty(shape)
            ]
            if self.num_narrowings > before:
                self.narrowed.add(key)
        return self.known[key]

    def all_shapes(self, conjunction: Conjunction) -> list[Shape] | None:
        """The alternatives of a conjunction, `None` if it allows more than they do."""
        shapes = self.shapes(conjunction)
        return None if frozenset(atom.key for atom in conjunction) in self.narrowed else shapes

    def make(self, key: object, schema: dict[str, Any]) -> Made:
        """A schema made here, once for each key."""
        return self.made.setdefault(key, Made(schema))

    def _expand(self, shape: Shape, atoms: list[Atom], seen: frozenset[tuple[bool, int]]) -> list[Shape]:
        """All ways to satisfy `atoms` within `shape`. What does not branch goes first."""
        choices: list[list[list[Atom]]] = []
        atoms = list(atoms)
        while atoms:
            atom = atoms.pop()
            self.num_atoms += 1
            if self.num_atoms > MAX_ATOMS:
                raise ValueError(f"`schema` must be simpler: too many combinations of schemas (at {atom.path})")
            if isinstance(atom.schema, bool):
                if atom.schema != atom.holds:
                    return []
                continue
            if atom.key in seen:
                continue
            if (not atom.holds, id(atom.schema)) in seen:
                return []
            seen |= {atom.key}
            if not isinstance(atom.schema, dict):
                raise ValueError(f"`schema` must be an object, true or false at {atom.path} (got {atom.schema!r})")
            self._check(atom)
            if atom.holds:
                shape = self._restricted(shape, atom)
                atoms += self._consequences(atom)
                choices += self._choices(atom)
            else:
                choices.append(self._negations(atom))
            if shape.is_empty:
                return []
        shape = self._with_values_filtered(shape)
        if shape.is_empty:
            return []
        if not choices:
            return [shape]
        # The choice with the fewest branches first; the others come again after it.
        choices.sort(key=len)
        found: list[Shape] = []
        for branch in choices[0]:
            pending = [*branch]
            for others in choices[1:]:
                pending.append(self._any_of(others))
            found += self._expand(shape, pending, seen)
            if len(found) > MAX_ALTERNATIVES:
                path = branch[0].path if branch else "$"
                raise ValueError(f"`schema` must have fewer alternatives (more than {MAX_ALTERNATIVES} at {path})")
        return found

    def _any_of(self, branches: list[list[Atom]]) -> Atom:
        """One atom that stands for a choice of conjunctions."""
        path = next((branch[0].path for branch in branches if branch), "$")
        schema = Made({"branches": branches})
        self.kept.append(schema)
        return Atom(schema, path)

    def _check(self, atom: Atom) -> None:
        if isinstance(atom.schema, Made):
            return
        for keyword, value in atom.schema.items():
            if keyword in REFUSED and not (keyword in ("extends", "disallow", "divisibleBy") and self.draft > 3):
                raise ValueError(f"`schema` must not use {keyword!r}, it is not supported (at {atom.path})")
            if keyword not in KEYWORDS:
                if keyword not in SILENT:
                    self.ignored[f"{atom.path}.{keyword}"] = None
                continue
            is_valid, form = KEYWORDS[keyword]
            if keyword == "type" and self.draft == 3:
                continue
            if not is_valid(value):
                raise ValueError(f"`schema` must have {form} at {atom.path}.{keyword} (got {_short(value)})")

    # What must hold.

    def _consequences(self, atom: Atom) -> list[Atom]:
        """Schemas that must hold because `atom` does."""
        schema, path = atom.schema, atom.path
        owners = (*atom.owners, id(schema))
        found = []
        if "$ref" in schema:
            target = self.references.resolve(schema["$ref"], schema, path)
            found.append(Atom(target, path, owners=owners, order=_order(atom, "$ref")))
            if self.draft <= 7:
                return found
        for index, inner in enumerate(schema.get("allOf", [])):
            found.append(Atom(inner, f"{path}.allOf[{index}]", True, owners, _order(atom, "allOf", index)))
        return found

    def _choices(self, atom: Atom) -> list[list[list[Atom]]]:
        """For each keyword that branches, its branches: schemas of which one branch must hold."""
        schema, path = atom.schema, atom.path
        if _own(schema, "branches"):
            return [schema["branches"]]
        if "$ref" in schema and self.draft <= 7:
            return []
        owners = (*atom.owners, id(schema))
        found = []
        if "anyOf" in schema:
            order = _order(atom, "anyOf")
            found.append([[Atom(s, f"{path}.anyOf[{i}]", True, owners, order)] for i, s in enumerate(schema["anyOf"])])
        if "oneOf" in schema:
            found.append(self._one_of(schema["oneOf"], f"{path}.oneOf", owners, _order(atom, "oneOf")))
        if "not" in schema:
            found.append([[Atom(schema["not"], f"{path}.not", holds=False)]])
        if "if" in schema and ("then" in schema or "else" in schema):
            condition, path_if = schema["if"], f"{path}.if"
            order = (*atom.order, len(schema))
            then = Atom(schema.get("then", True), f"{path}.then", True, owners, order)
            other = Atom(schema.get("else", True), f"{path}.else", True, owners, order)
            first = Atom(condition, path_if, True, owners, order)
            found.append([[first, then], [Atom(condition, path_if, False), other]])
        for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            for name, needed in schema.get(keyword, {}).items():
                needed = [needed] if isinstance(needed, str) else needed
                if isinstance(needed, list):
                    needed = self.make(("required", *needed), {"required": needed})
                has = self.make(("required", name), {"required": [name]})
                path_of = f"{path}.{keyword}.{name}"
                found.append(
                    [
                        [Atom(has, path_of), Atom(needed, path_of, True, owners, (*atom.order, len(schema)))],
                        [Atom(has, path_of, False)],
                    ]
                )
        return found

    def _one_of(
        self, options: list[Any], path: str, owners: tuple[int, ...], order: tuple[int, ...]
    ) -> list[list[Atom]]:
        """Each option alone; the others need not be excluded where it is plain that they do not overlap."""
        atoms = [Atom(option, f"{path}[{index}]", True, owners, order) for index, option in enumerate(options)]
        alone = [self.all_shapes((atom,)) for atom in atoms]
        branches = []
        for index, atom in enumerate(atoms):
            others = [
                self._without(other, alone[index], alone[number])
                for number, other in enumerate(atoms)
                if number != index and not self._are_disjoint(alone[index], alone[number])
            ]
            branches.append([atom, *others])
        return branches

    def _without(self, other: Atom, own: list[Shape] | None, others: list[Shape] | None) -> Atom:
        """
        What holds where `other` does not: its negation, or a property of the shapes beside it that it does not allow.
        """
        names = [
            name
            for name in names_of(entry for shape in own or () for entry in shape.properties)
            if others is not None
            and not any(
                self.all_shapes(self.property_conjunction(shape, name)) != []
                for shape in others
                if "object" in shape.types
            )
        ]
        negation = Atom(other.schema, other.path, False)
        if not names:
            return negation
        required = [
            [Atom(self.make(("object with", name), {"type": "object", "required": [name]}), other.path)]
            for name in names
        ]
        has_name = Atom(self.make(("object with one of", *names), {"branches": required}), other.path)
        return Atom(
            self.make((id(other.schema), "without", *names), {"branches": [[negation], [has_name]]}), other.path
        )

    def _are_disjoint(self, left: list[Shape] | None, right: list[Shape] | None) -> bool:
        """Whether it is plain that no value has a shape of both; not if there are shapes that have not been found."""
        return (
            left is not None and right is not None and all(self._is_apart(one, two) for one in left for two in right)
        )

    def _is_apart(self, one: Shape, two: Shape, depth: int = 0) -> bool:
        """Whether it is plain that no value has both shapes."""
        types = one.types & two.types
        if one.values is not None and two.values is not None:
            return not any(same(a, b) for a in one.values for b in two.values)
        for left, right in ((one, two), (two, one)):
            if left.values is not None:
                return not any(self.allows(right, value) for value in left.values)
        if types - {"object", "number"} and types - {"object"}:
            return False
        if "number" in types and not _are_apart_numbers(one, two):
            return False
        if "object" not in types:
            return True
        for left, right in ((one, two), (two, one)):
            for name in left.required:
                shapes = self.all_shapes(self.property_conjunction(right, name))
                if shapes is not None and name in right.required and depth < 2:
                    own = self.all_shapes(self.property_conjunction(left, name))
                    if own is not None and all(self._is_apart(a, b, depth + 1) for a in own for b in shapes):
                        return True
                elif shapes == []:
                    return True
        return False

    # What must not hold.

    def _negations(self, atom: Atom) -> list[list[Atom]]:
        """Ways in which a schema does not hold. Some keywords have none here, which only allows less."""
        schema, path = atom.schema, atom.path
        meant = schema.keys() if isinstance(schema, Made) else schema.keys() & KEYWORDS.keys()
        self.num_narrowings += not meant <= NEGATED
        if _own(schema, "branches"):
            raise ValueError(f"`schema` must not use 'not' here, it is not supported (at {path})")
        found: list[list[Atom]] = []
        if "$ref" in schema:
            found.append([Atom(self.references.resolve(schema["$ref"], schema, path), path, False)])
            if self.draft <= 7:
                return found
        made = self._simple_negations(schema)
        found += [[Atom(self.make((id(schema), "not", index), one), path)] for index, one in enumerate(made)]
        for keyword in ("allOf", "anyOf"):
            atoms = [Atom(s, f"{path}.{keyword}[{i}]", False) for i, s in enumerate(schema.get(keyword, []))]
            found += [[one] for one in atoms] if keyword == "allOf" else ([atoms] if atoms else [])
        if "oneOf" in schema:
            options = [(s, f"{path}.oneOf[{i}]") for i, s in enumerate(schema["oneOf"])]
            found.append([Atom(s, p, False) for s, p in options])
            for i, (one, path_one) in enumerate(options):
                found += [[Atom(one, path_one), Atom(two, path_two)] for two, path_two in options[i + 1 :]]
        if "not" in schema:
            found.append([Atom(schema["not"], f"{path}.not")])
        if "if" in schema:
            condition = schema["if"]
            for keyword, holds in (("then", True), ("else", False)):
                if keyword in schema:
                    found.append(
                        [Atom(condition, f"{path}.if", holds), Atom(schema[keyword], f"{path}.{keyword}", False)]
                    )
        for name, inner in schema.get("properties", {}).items():
            key = (id(schema), "not property", name)
            wrong = self.make(key, {"type": "object", "required": [name], "not-properties": {name: inner}})
            found.append([Atom(wrong, f"{path}.properties.{name}")])
        return found

    @staticmethod
    def _simple_negations(schema: dict[str, Any]) -> list[dict[str, Any]]:
        """Schemas of which one holds where a keyword of `schema` does not."""
        found: list[dict[str, Any]] = []
        if "type" in schema:
            names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
            others = [name for name in TYPES if name not in names]
            if "integer" in names and "number" not in names:
                others.remove("number")
                found.append({"type": "number", "not-integer": True})
            if others:
                found.append({"type": others})
        for keyword in ("const", "enum"):
            if keyword in schema:
                found.append({"excluded": [schema["const"]] if keyword == "const" else schema["enum"]})
        for keyword, opposite in (("minimum", "exclusiveMaximum"), ("exclusiveMinimum", "maximum"),
                                  ("maximum", "exclusiveMinimum"), ("exclusiveMaximum", "minimum")):  # fmt: skip
            if is_number(schema.get(keyword)):
                strict = schema.get(f"exclusive{keyword[0].upper()}{keyword[1:]}") is True
                opposite = keyword.replace("min", "max") if strict and "min" in keyword else opposite
                opposite = keyword.replace("max", "min") if strict and "max" in keyword else opposite
                found.append({"type": "number", opposite: schema[keyword]})
        for low, high, name in (("minLength", "maxLength", "string"), ("minItems", "maxItems", "array"),
                                ("minProperties", "maxProperties", "object")):  # fmt: skip
            if schema.get(low, 0) >= 1:
                found.append({"type": name, high: schema[low] - 1})
            if high in schema:
                found.append({"type": name, low: schema[high] + 1})
        if "pattern" in schema:
            found.append({"type": "string", "not-pattern": schema["pattern"]})
        if isinstance(schema.get("required"), list):
            found += [{"type": "object", "properties": {name: False}} for name in schema["required"]]
        if schema.get("uniqueItems"):
            found.append({"type": "array", "not-unique": True})
        return found

    # Keywords of one type.

    def _restricted(self, shape: Shape, atom: Atom) -> Shape:
        """`shape` with the keywords of a schema that do not branch."""
        schema = atom.schema
        if "$ref" in schema and self.draft <= 7:
            return shape
        changes: dict[str, Any] = {}
        if "type" in schema:
            changes |= self._typed(shape, schema["type"])
        for keyword in ("enum", "const"):
            if keyword in schema:
                values = schema["enum"] if keyword == "enum" else [schema["const"]]
                known = changes.get("values", shape.values)
                kept = values if known is None else [v for v in values if any(same(v, w) for w in known)]
                changes["values"] = tuple(kept)
        if _own(schema, "excluded"):
            changes["excluded"] = (*shape.excluded, *schema["excluded"])
        if _own(schema, "not-integer"):
            changes["not_integer"] = True
        changes |= _with_numbers(shape, schema) | _with_strings(shape, schema)
        changes |= self._with_arrays(shape, atom) | self._with_objects(shape, atom)
        return shape.changed(**changes) if changes else shape

    def _typed(self, shape: Shape, names: Any) -> dict[str, Any]:
        names = names if isinstance(names, list) else [names]
        if self.draft == 3 and not _is_type(names):
            if any(name == "any" for name in names):
                return {}
            raise ValueError("`schema` must name types at $.type, schemas as types are not supported")
        types = frozenset("number" if name == "integer" else name for name in names)
        is_integer = "integer" in names and "number" not in names
        return {"types": shape.types & types, "is_typed": True, "is_integer": shape.is_integer or is_integer}

    def _with_arrays(self, shape: Shape, atom: Atom) -> dict[str, Any]:
        schema, path = atom.schema, atom.path
        changes: dict[str, Any] = {}
        if "minItems" in schema:
            changes["min_items"] = max(shape.min_items, int(schema["minItems"]))
        if "maxItems" in schema:
            changes["max_items"] = _least(shape.max_items, int(schema["maxItems"]))
        if schema.get("uniqueItems"):
            changes["is_unique"] = True
        if _own(schema, "not-unique"):
            changes["not_unique"] = True
        items = schema.get("items")
        prefix, rest = schema.get("prefixItems"), items
        path_rest = f"{path}.items"
        if isinstance(items, list):
            prefix, rest, path_rest = items, schema.get("additionalItems"), f"{path}.additionalItems"
        if prefix is not None or rest is not None:
            name = "prefixItems" if "prefixItems" in schema else "items"
            named: dict[str, Conjunction] = {
                str(i): (Atom(s, f"{path}.{name}[{i}]"),) for i, s in enumerate(prefix or [])
            }
            entry = Entry(named, {}, None if rest is None else (Atom(rest, path_rest),), (*atom.owners, id(schema)))
            changes["items"] = (*shape.items, entry)
        if "unevaluatedItems" in schema and schema["unevaluatedItems"] is not True:
            rest_atom = Atom(schema["unevaluatedItems"], f"{path}.unevaluatedItems")
            changes["unevaluated_items"] = (*shape.unevaluated_items, (id(schema), (rest_atom,)))
        if "contains" in schema:
            low = int(schema.get("minContains", 1))
            high = schema.get("maxContains")
            high = None if high is None else int(high)
            item = (Atom(schema["contains"], f"{path}.contains"),)
            if low or high is not None:
                changes["contains"] = (*shape.contains, (item, low, high))
        return changes

    def _with_objects(self, shape: Shape, atom: Atom) -> dict[str, Any]:
        schema, path = atom.schema, atom.path
        changes: dict[str, Any] = {}
        required = list(schema["required"]) if isinstance(schema.get("required"), list) else []
        named: dict[str, Conjunction] = {
            name: (Atom(s, f"{path}.properties.{name}"),) for name, s in schema.get("properties", {}).items()
        }
        for name, inner in schema.get("properties", {}).items():
            if isinstance(inner, dict) and inner.get("required") is True:  # draft 3
                required.append(name)
        for name, inner in (_own(schema, "not-properties") or {}).items():
            named[name] = (Atom(inner, f"{path}.{name}", False),)
        patterns: dict[str, Conjunction] = {
            name: (Atom(s, f"{path}.patternProperties.{name}"),)
            for name, s in schema.get("patternProperties", {}).items()
        }
        rest = schema.get("additionalProperties")
        if named or patterns or rest is not None:
            rest_atoms = None if rest is None else (Atom(rest, f"{path}.additionalProperties"),)
            order = _order(atom, "properties") if "properties" in schema else (*atom.order, len(schema))
            entry = Entry(named, patterns, rest_atoms, (*atom.owners, id(schema)), order)
            changes["properties"] = tuple(sorted((*shape.properties, entry), key=lambda entry: entry.order))
        if required:
            changes["required"] = tuple(dict.fromkeys((*shape.required, *required)))
        if "propertyNames" in schema:
            changes["names"] = (*shape.names, Atom(schema["propertyNames"], f"{path}.propertyNames"))
        if "minProperties" in schema:
            changes["min_properties"] = max(shape.min_properties, int(schema["minProperties"]))
        if "maxProperties" in schema:
            changes["max_properties"] = _least(shape.max_properties, int(schema["maxProperties"]))
        if "unevaluatedProperties" in schema and schema["unevaluatedProperties"] is not True:
            rest_atom = Atom(schema["unevaluatedProperties"], f"{path}.unevaluatedProperties")
            changes["unevaluated"] = (*shape.unevaluated, (id(schema), (rest_atom,)))
        return changes

    # Values.

    def property_conjunction(self, shape: Shape, name: str) -> Conjunction:
        """What must hold for the property `name` of an object."""
        found: list[Atom] = []
        for entry in shape.properties:
            own = list(entry.named.get(name, ()))
            for pattern, atoms in entry.patterns.items():
                if search(pattern, name, atoms[0].path):
                    own += atoms
            if not own and name not in entry.named and entry.rest is not None:
                own = list(entry.rest)
            found += own
        for owner, atoms in shape.unevaluated:
            if not any(
                owner in entry.owners
                and (name in entry.named or entry.rest is not None
                     or any(search(p, name, "$") for p in entry.patterns))
                for entry in shape.properties
            ):  # fmt: skip
                found += atoms
        return tuple(dict.fromkeys(found))

    def item_conjunction(self, shape: Shape, index: int) -> Conjunction:
        """What must hold for the item `index` of an array."""
        found: list[Atom] = []
        for entry in shape.items:
            if str(index) in entry.named:
                found += entry.named[str(index)]
            elif entry.rest is not None:
                found += entry.rest
        for owner, atoms in shape.unevaluated_items:
            if not any(
                owner in entry.owners and (str(index) in entry.named or entry.rest is not None)
                for entry in shape.items
            ):
                found += atoms
        return tuple(dict.fromkeys(found))

    def _with_values_filtered(self, shape: Shape) -> Shape:
        """Of enumerated values, those that the other keywords allow; of excluded ones, nothing else."""
        if shape.values is None:
            return shape
        others = shape.changed(values=None)
        return shape.changed(values=tuple(value for value in shape.values if self.allows(others, value)))

    def holds(self, conjunction: Conjunction, value: Any) -> bool:
        """Whether a JSON value satisfies a conjunction, as far as its shapes say."""
        return any(self.allows(shape, value) for shape in self.shapes(conjunction))

    def allows(self, shape: Shape, value: Any) -> bool:
        """Whether a JSON value has a shape. Where it is hard to say, no."""
        kind = type_of(value)
        if kind not in shape.types or any(same(value, other) for other in shape.excluded):
            return False
        if shape.values is not None and not any(same(value, other) for other in shape.values):
            return False
        if kind == "number":
            return _allows_number(shape, value, self.draft)
        if kind == "string":
            return self._allows_string(shape, value)
        if kind == "array":
            return self._allows_array(shape, value)
        return kind != "object" or self._allows_object(shape, value)

    def _allows_string(self, shape: Shape, value: str) -> bool:
        from .value_languages_dimple import FORMATS, format_dfa

        if not shape.min_length <= len(value) <= (math.inf if shape.max_length is None else shape.max_length):
            return False
        for name in shape.formats:
            if name in FORMATS and not format_dfa(FORMATS[name][0]).accepts(value):
                return False
        if not all(search(pattern, value, "$") for pattern in shape.patterns):
            return False
        return not any(search(pattern, value, "$") for pattern in shape.not_patterns)

    def _allows_array(self, shape: Shape, value: list[Any]) -> bool:
        if not shape.min_items <= len(value) <= (math.inf if shape.max_items is None else shape.max_items):
            return False
        is_unique = not any(same(a, b) for i, a in enumerate(value) for b in value[i + 1 :])
        if (shape.is_unique and not is_unique) or (shape.not_unique and is_unique):
            return False
        if not all(self.holds(self.item_conjunction(shape, index), item) for index, item in enumerate(value)):
            return False
        for item, low, high in shape.contains:
            count = sum(self.holds(item, one) for one in value)
            if count < low or (high is not None and count > high):
                return False
        return True

    def _allows_object(self, shape: Shape, value: dict[str, Any]) -> bool:
        if (
            not shape.min_properties
            <= len(value)
            <= (math.inf if shape.max_properties is None else shape.max_properties)
        ):
            return False
        if any(name not in value for name in shape.required):
            return False
        if shape.names and not all(self.holds(shape.names, name) for name in value):
            return False
        return all(self.holds(self.property_conjunction(shape, name), inner) for name, inner in value.items())

    def _is_empty(self, shape: Shape) -> bool:
        """Whether it is plain that a shape allows nothing, required properties without a value included."""
        if shape.is_empty:
            return True
        if shape.types == {"object"} and shape.values is None:
            return any(
                all(isinstance(atom.schema, bool) for atom in conjunction)
                and not all(atom.schema == atom.holds for atom in conjunction)
                for conjunction in (self.property_conjunction(shape, name) for name in shape.required)
            )
        return False


def _order(atom: Atom, keyword: str, index: int = 0) -> tuple[int, ...]:
    """Where a keyword of an atom's schema stands."""
    return (*atom.order, list(atom.schema).index(keyword), index)


def search(pattern: str, text: str, path: str) -> bool:
    """Whether a pattern matches somewhere in a text, as both dialects of regular expressions have it."""
    dfa, max_chars = compiled(pattern, path)
    return dfa.accepts(text) and (max_chars is None or len(text) <= max_chars)


def compiled(pattern: str, path: str) -> tuple[CharDFA, int | None]:
    """The automaton of a schema's pattern, which may match anywhere."""
    try:
        return pattern_dfa(pattern, search=True)
    except ValueError as error:
        raise ValueError(f"`schema` must have a supported pattern at {path} ({error}, in {pattern!r})") from error


def type_of(value: Any) -> str:
    """The JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, (int, float)):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _own(schema: dict[str, Any], keyword: str) -> Any:
    """The value of a keyword that only schemas made here have."""
    return schema.get(keyword) if isinstance(schema, Made) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _least(*counts: int | None) -> int | None:
    return min((count for count in counts if count is not None), default=None)


def _with_numbers(shape: Shape, schema: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for side, keyword, sign in (("low", "minimum", 1), ("high", "maximum", -1)):
        strict = f"exclusive{keyword[0].upper()}{keyword[1:]}"
        bounds = [getattr(shape, side)]
        if keyword in schema:
            bounds.append((schema[keyword], schema.get(strict) is True))
        if strict in schema and not isinstance(schema[strict], bool):
            bounds.append((schema[strict], True))
        found = [bound for bound in bounds if bound is not None]
        if len(bounds) > 1 and found:
            changes[side] = max(found, key=lambda bound: (sign * bound[0], bound[1]))
    if "multipleOf" in schema:
        changes["multiples"] = (*shape.multiples, schema["multipleOf"])
    return changes


def _with_strings(shape: Shape, schema: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if "minLength" in schema:
        changes["min_length"] = max(shape.min_length, int(schema["minLength"]))
    if "maxLength" in schema:
        changes["max_length"] = _least(shape.max_length, int(schema["maxLength"]))
    if "x-max-tokens" in schema:
        changes["max_tokens"] = int(schema["x-max-tokens"])
    for keyword, name in (("pattern", "patterns"), ("format", "formats"), ("not-pattern", "not_patterns")):
        if keyword in schema and (keyword != "not-pattern" or _own(schema, keyword)):
            changes[name] = tuple(dict.fromkeys((*getattr(shape, name), schema[keyword])))
    return changes


def _allows_number(shape: Shape, value: float | int, draft: int) -> bool:
    is_whole = isinstance(value, int) or (value.is_integer() and draft > 4)
    if (shape.is_integer and not is_whole) or (shape.not_integer and is_whole):
        return False
    if shape.low is not None and (value < shape.low[0] or (shape.low[1] and value == shape.low[0])):
        return False
    if shape.high is not None and (value > shape.high[0] or (shape.high[1] and value == shape.high[0])):
        return False
    # Exactly, and as floating point divides.
    return all(
        (Fraction(str(value)) / Fraction(str(multiple))).denominator == 1 and float(value / multiple).is_integer()
        for multiple in shape.multiples
    )


def _are_apart_numbers(one: Shape, two: Shape) -> bool:
    if (one.is_integer and two.not_integer) or (two.is_integer and one.not_integer):
        return True
    for left, right in ((one, two), (two, one)):
        if left.high is not None and right.low is not None:
            if left.high[0] < right.low[0] or (left.high[0] == right.low[0] and (left.high[1] or right.low[1])):
                return True
    return False


@lru_cache(maxsize=16)
def _encoder(separators: tuple[str, str]) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=separators)


def dumps(value: Any, separators: tuple[str, str], path: str) -> str:
    """A JSON value as it is written."""
    try:
        text = _encoder(separators).encode(value)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"`schema` must hold JSON values only ({error} at {path})") from error
    return text


def names_of(entries: Iterable[Entry]) -> list[str]:
    """All names of entries, in order."""
    return list(dict.fromkeys(name for entry in entries for name in entry.named))

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
"""JSON schemas as parts of an answer: the JSON texts that a schema allows.

What cannot be guaranteed by construction is refused with the JSON path where it stands; what has to be bounded is
listed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial, reduce
from typing import Any

from .answer_parts_dimple import (
    EMPTY,
    Alternation,
    Choices,
    Concat,
    Language,
    Literal,
    Members,
    Part,
    Repeat,
    ValueSlot,
)
from .answer_sizes_dimple import num_states
from .char_dfa_dimple import TEXT_CHARS, CharDFA, CharNFA, EmptyLanguageError, free_text
from .free_value_dimple import MAX_NUMBER_CHARS, free_value
from .patterns_dimple import pattern_dfa
from .schema_shapes_dimple import (
    Atom,
    Conjunction,
    Expander,
    Shape,
    compiled,
    dumps,
    is_number,
    names_of,
    same,
)
from .unique_items_dimple import MAX_UNORDERED, by_type, enumerated, partitions
from .value_languages_dimple import FORMATS, MAX_DIGITS, PYDANTIC_FORMATS, exact, format_dfa, number_dfa

#: Deepest nesting of a schema.
MAX_DEPTH = 64

#: Most properties of an object of which each set is a state, where they may come in any order.
MAX_UNORDERED_MEMBERS = 10

#: Most enumerated values of one enum, in characters.
MAX_CHOICE_CHARS = 100_000


@dataclass(frozen=True)
class Depth:
    """
    How deep values may be nested where the schema sets no limit.

    Args:
        recursion (`int`):
            How often a schema that refers to itself is entered on the way to a value.
        free_levels (`int`):
            Levels of arrays and objects, from the answer's own on, down to which a value may be anything.
        open_levels (`int`):
            Levels of arrays and objects of a property of the answer that its schema does not mention; two fewer for
            one of an object inside it, and so on.
        unordered (`int`):
            Most states of an object whose properties may come in any order, each once.
        unique (`int`):
            Most states of an array whose items are different, where it can hold a single item instead.
    """

    recursion: int = 3
    free_levels: int = 5
    open_levels: int = 3
    unordered: int = 0
    unique: int = 2_000

    @cached_property
    def inside(self) -> "Depth":
        """What is left for the values of an array or object; where levels are left at all, one always is."""
        free_levels = max(self.free_levels - 1, min(self.free_levels, 1))
        return replace(self, free_levels=free_levels, open_levels=max(self.open_levels - 1, min(self.open_levels, 1)))

    @cached_property
    def flat(self) -> "Depth":
        """What is left for an array or object that a schema allows only because it gives no types: no nesting."""
        return replace(self, free_levels=0, open_levels=0)

    @cached_property
    def entered(self) -> "Depth":
        """What is left inside a schema that refers to itself."""
        return replace(self, recursion=self.recursion - 1)


@dataclass(frozen=True)
class ReaderOptions:
    """
    How a schema is read.

    Args:
        max_string_tokens, max_items, max_digits, separators, any_order:
            See [`~StructurePrior.from_json_schema`].
        is_open (`bool`):
            Whether an object may have properties that its schema does not mention, where it does not say so.
        is_pydantic (`bool`):
            Whether a pydantic class reads the answer.
        is_shared (`bool`):
            Whether values share their positions, so that properties can come in more than one order.
    """

    max_string_tokens: int = 16
    max_items: int = 4
    max_digits: int = MAX_DIGITS
    separators: tuple[str, str] = (",", ":")
    any_order: bool = False
    is_open: bool = True
    is_pydantic: bool = False
    is_shared: bool = True


class SchemaReader:
    """
    Makes the parts of JSON texts that a schema accepts.

    Args:
        schema (`dict` or `bool`):
            The whole schema; references are looked up in it.
        options (`ReaderOptions`):
            How it is read.

    Attributes:
        ignored (`list[str]`): The paths of keywords that are annotations: unknown ones, and unknown formats.
        bounds (`dict[str, str]`): Path -> what the answer is bounded to that the schema does not bound.

    Raises:
        ValueError: From [`~SchemaReader.part`], if the schema is malformed, allows nothing, or uses what is not
            supported; with the path.
    """

    def __init__(self, schema: Any, options: ReaderOptions) -> None:
        self.root = schema
        self.options = options
        self.limits = Depth()
        self.comma, self.colon = options.separators
        self.expander = Expander(schema)
        self.bounds: dict[str, str] = {}
        self.formats_ignored: dict[str, None] = {}
        self.recursive: set[frozenset[tuple[bool, int]]] = set()
        self.leading: set[frozenset[tuple[bool, int]]] = set()  # those that contain recursive ones
        self.parts: dict[tuple[Any, ...], Part | None] = {}
        # Parts that are the same for all limits, with what they are bounded to.
        self.fixed: dict[frozenset[tuple[bool, int]], tuple[Part | None, dict[str, str]]] = {}
        self.is_limited = False  # whether the part that is being read depends on the limits
        self.unique: dict[tuple[Any, ...], tuple[Part | None, int]] = {}
        self.languages: dict[tuple[Any, ...], Language] = {}
        self.sizes: dict[Part, int] = {}  # states of parts
        self.nothing_at: str | None = None
        self.is_adjustable = False  # whether other limits give other parts
        self.depth = 0
        self._find_recursion((Atom(schema, "$"),))

    @property
    def ignored(self) -> list[str]:
        """The paths of keywords that are annotations."""
        return [*self.expander.ignored, *self.formats_ignored]

    def part(self, limits: Depth) -> Part:
        """The parts of the whole text; `bounds` are then those of these limits."""
        if limits != self.limits:
            self.limits, self.parts, self.unique, self.bounds, self.nothing_at = limits, {}, {}, {}, None
        part = self._value((Atom(self.root, "$"),), "$", limits)
        if part is None:
            raise ValueError(
                f"`schema` must allow at least one value at {self.nothing_at or '$'} (its keywords allow none)"
            )
        return part

    def _find_recursion(self, root: Conjunction) -> None:
        """Which conjunctions contain themselves, and which contain such ones."""
        on_path: set[frozenset[tuple[bool, int]]] = set()
        inside: dict[frozenset[tuple[bool, int]], list[frozenset[tuple[bool, int]]]] = {}
        stack: list[tuple[Conjunction, bool]] = [(root, False)]
        while stack:
            conjunction, is_leaving = stack.pop()
            key = _key(conjunction)
            if is_leaving:
                on_path.discard(key)
                if any(inner in self.recursive or inner in self.leading for inner in inside[key]):
                    self.leading.add(key)
                continue
            if key in on_path:
                self.recursive.add(key)
                continue
            if key in inside or not conjunction:
                continue
            on_path.add(key)
            stack.append((conjunction, True))
            inner = [one for shape in self.expander.shapes(conjunction) for one in self._inner(shape)]
            inside[key] = list(map(_key, inner))
            stack += [(one, False) for one in inner]

    def _inner(self, shape: Shape) -> Iterable[Conjunction]:
        """The conjunctions of a shape's items and properties."""
        if shape.values is not None:
            return
        expander = self.expander
        if "array" in shape.types:
            num_named = max((int(n) + 1 for entry in shape.items for n in entry.named), default=0)
            for index in range(num_named + 1):
                yield expander.item_conjunction(shape, index)
            for item, _, _ in shape.contains:
                yield tuple(dict.fromkeys((*expander.item_conjunction(shape, num_named), *item)))
        if "object" in shape.types:
            for name in dict.fromkeys((*names_of(shape.properties), *shape.required)):
                yield expander.property_conjunction(shape, name)
            for _, value, _ in self._generated_kinds(shape):
                yield value

    # Values.

    def _value(self, conjunction: Conjunction, path: str, left: Depth) -> Part | None:
        """What a conjunction allows; `None` if nothing. `left`: how deep it may still be."""
        if all(isinstance(atom.schema, bool) for atom in conjunction):
            if all(atom.schema == atom.holds for atom in conjunction):
                return self._anything(left.free_levels)
            self._found_nothing(path)
            return None
        key = _key(conjunction)
        entered = self._entered(conjunction, left)
        is_last = entered is None  # only what does not lead on to such a conjunction
        if left.recursion < 0 and is_last:
            return None
        left = left.entered if entered is None else entered
        if key in self.fixed:
            part, bounds = self.fixed[key]
            self.bounds |= bounds
        elif (key, left) in self.parts:
            part, self.is_limited = self.parts[key, left], True
        else:
            part = self._read(conjunction, path, left, is_last)
        if part is None:
            self._found_nothing(path)
        return part

    def _read(self, conjunction: Conjunction, path: str, left: Depth, is_last: bool) -> Part | None:
        """What a conjunction allows, and remembers it: for all limits, or for what is left of them."""
        outer_bounds, outer_is_limited = self.bounds, self.is_limited
        self.bounds, self.is_limited = {}, is_last
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"`schema` must be nested at most {MAX_DEPTH} deep (it is deeper at {path})")
        options: list[Part] = []
        for shape in self.expander.shapes(conjunction):
            if not (is_last and self._leads_on(shape)):
                options += self._shape(shape, path, left)
        self.depth -= 1
        part, key = _one_of(options), _key(conjunction)
        if self.is_limited or key in self.recursive:
            self.parts[key, left] = part
            outer_is_limited = True
        else:
            self.fixed[key] = part, self.bounds
        self.bounds, self.is_limited = outer_bounds | self.bounds, outer_is_limited
        return part

    def _entered(self, conjunction: Conjunction, left: Depth) -> Depth | None:
        """What is left inside a conjunction; `None` if it contains itself and has been entered often enough."""
        if _key(conjunction) not in self.recursive:
            return left
        self.is_adjustable = self.is_limited = True
        self.bounds["recursion"] = f"at most {self.limits.recursion} levels of schemas that refer to themselves"
        return left.entered if left.recursion > 0 else None

    def _leads_on(self, shape: Shape) -> bool:
        """Whether a shape contains a schema that refers to itself."""
        keys = map(_key, self._inner(shape)) if self.recursive else ()
        return any(key in self.recursive or key in self.leading for key in keys)

    def _found_nothing(self, path: str) -> None:
        self.nothing_at = self.nothing_at or path

    def _anything(self, levels: int) -> Part:
        """Any JSON value, with arrays and objects of `levels` levels."""
        self.is_adjustable = self.is_limited = True
        self.bounds["free values"] = (
            f"arrays and objects nested at most {self.limits.free_levels} deep, numbers of at most {MAX_NUMBER_CHARS} "
            "characters"
        )
        return free_value(levels, self.options.separators, self.options.max_string_tokens)

    def _shape(self, shape: Shape, path: str, left: Depth) -> list[Part]:
        """The parts of one alternative, one for each type."""
        if shape.values is not None:
            return self._choices(shape.values, shape, path)
        readers = {"object": self._object, "array": self._array}
        found: list[Part | None] = []
        for name in ("object", "array", "string", "number", "boolean", "null"):
            if name not in shape.types:
                continue
            if name in readers:
                found.append(readers[name](shape, path, left if name in shape.meant_types else left.flat))
            elif name == "string":
                found.append(self._string(shape, path))
            elif name == "number":
                found.append(self._number(shape, path))
            else:
                values = (True, False) if name == "boolean" else (None,)
                kept = [value for value in values if not any(same(value, other) for other in shape.excluded)]
                found += self._choices(kept, shape, path)
        return [part for part in found if part is not None]

    def _choices(self, values: Iterable[Any], shape: Shape, path: str) -> list[Part]:
        texts = tuple(dict.fromkeys(dumps(value, self.options.separators, path) for value in values))
        if sum(map(len, texts)) > MAX_CHOICE_CHARS:
            raise ValueError(f"`schema` must have fewer enumerated values at {path} (got {len(texts)})")
        if len(texts) == 1:
            return [Literal(texts[0])]
        return [ValueSlot(Choices(texts), path, shape.max_tokens)] if texts else []

    def _number(self, shape: Shape, path: str) -> Part | None:
        low, high = _inclusive(shape)
        try:
            dfa = number_dfa(low, high, shape.is_integer, self.options.max_digits, shape.multiples)
            if shape.not_integer:
                dfa = dfa.intersect(pattern_dfa(r"-?\d+\.\d*[1-9]\d*")[0])
            if shape.last_digits:
                dfa = _in_all((dfa, pattern_dfa(f".*[{shape.last_digits}]")[0]))
            for value in shape.excluded:
                if is_number(value):
                    dfa = dfa.subtract(_spellings(value))
        except EmptyLanguageError:
            self._found_nothing(path)
            return None
        except ValueError as error:
            raise ValueError(f"`schema` must be simpler at {path}: {error}") from error
        self.bounds["numbers"] = f"at most {self.options.max_digits} digits before and after the point"
        usual = _usual_digits(low, high, shape.is_integer, dfa)
        return ValueSlot(Language(dfa), path, shape.max_tokens or usual)

    def _string(self, shape: Shape, path: str) -> Part | None:
        language = self._string_language(shape, path)
        return None if language is None else self._string_slot(language, shape, path)

    def _string_slot(self, language: Language, shape: Shape, path: str) -> Part:
        if language.longest == 0:
            return Literal('""')
        # A string that is the whole answer shares its positions with no other.
        usual = self.options.max_string_tokens * (2 if path == "$" and self.options.is_shared else 1)
        bounds = [bound for bound in (language.longest,) if bound is not None]
        if not (shape.patterns or shape.formats) or not bounds:
            # A quarter of the most characters, where that is more: words have about four.
            bounds.append(max(usual, min(4 * usual, (shape.max_length or 0) // 4)))
        size = max(1, min(bounds), language.dfa.shortest)
        return ValueSlot(language, path, shape.max_tokens or size)

    def _string_language(self, shape: Shape, path: str) -> Language | None:
        """The strings of one shape; `None` if there is none."""
        limits = [] if shape.max_length is None else [shape.max_length]
        dfas: list[CharDFA] = []
        try:
            for pattern in shape.patterns:
                dfa, most = compiled(pattern, f"{path}.pattern")
                dfas.append(dfa)
                limits += [] if most is None else [most]
            for name in shape.formats:
                known = (PYDANTIC_FORMATS if self.options.is_pydantic else {}).get(name, FORMATS.get(name))
                if known is None:
                    self.formats_ignored[f"{path}.format ({name})"] = None
                    continue
                dfas.append(format_dfa(known[0]))
                limits += [] if known[1] is None else [known[1]]
            if shape.min_length:
                dfas.append(_at_least(shape.min_length))
            others: list[CharDFA] = []
            for pattern in shape.not_patterns:
                other, most = compiled(pattern, f"{path}.pattern")
                if most is not None:
                    raise ValueError(f"`schema` must not use 'not' with a pattern of so many repetitions (at {path})")
                others.append(other)
            excluded = [value for value in shape.excluded if isinstance(value, str)]
            if excluded:
                dfas.append(_all_but(tuple(sorted(excluded))))
            dfa = _in_all(tuple(dfas or [free_text()]), tuple(others))
        except EmptyLanguageError:
            self._found_nothing(path)
            return None
        max_chars = min(limits, default=None)
        if max_chars is not None and dfa.shortest > max_chars:
            self._found_nothing(path)
            return None
        return Language(dfa, max_chars, True)

    # Arrays.

    def _array(self, shape: Shape, path: str, left: Depth) -> Part | None:
        shape = _without_empty(shape, [], "min_items")
        if shape.not_unique or any(isinstance(value, list) for value in shape.excluded):
            return None
        left = left.inside
        expander = self.expander
        least, most = shape.min_items, shape.max_items
        num_named = max((int(n) + 1 for entry in shape.items for n in entry.named), default=0)
        content: Part | None
        if shape.contains:
            content = self._containing(shape, num_named, path, left)
        elif shape.is_unique:
            content = self._unique(shape, num_named, f"{path}.items", left)
        else:
            items: list[Part] = []
            for index in range(num_named if most is None else min(num_named, most)):
                item = self._value(expander.item_conjunction(shape, index), f"{path}[{index}]", left)
                if item is None:
                    most = index
                    break
                items.append(item)
            rest = None
            if most is None or most > len(items):
                rest = self._value(expander.item_conjunction(shape, num_named), f"{path}.items", left)
            content = self._items(items, rest, least, most)
        return None if content is None else Concat((Literal("["), content, Literal("]")))

    def _items(self, items: list[Part], rest: Part | None, least: int, most: int | None) -> Part | None:
        """First the given items, each its own, then any number of `rest`."""
        count = len(items)
        if rest is None:
            most = count if most is None else min(most, count)
        if most is not None and least > most:
            return None
        comma, usual = self.comma, self.options.max_items
        if not items:
            return EMPTY if rest is None or most == 0 else Repeat(rest, comma, least, most, usual)
        tail: Part = EMPTY
        if rest is not None and (most is None or most > count):
            more = Repeat(rest, comma, max(1, least - count), None if most is None else most - count, usual)
            tail = Concat((Literal(comma), more))
            tail = tail if least > count else Alternation((tail, EMPTY))
        for index in range(count - 1, -1, -1):
            if most is not None and index >= most:
                continue
            tail = Concat((Literal(comma if index else ""), items[index], tail))
            tail = tail if least > index else Alternation((tail, EMPTY))
        return tail

    def _containing(self, shape: Shape, num_named: int, path: str, left: Depth) -> Part | None:
        """
        Arrays with so many items of a kind: a part for each number of items and of those that count. The first
        `num_named` items have schemas of their own.
        """
        wanted = tuple(dict.fromkeys(atom for item, _, _ in shape.contains for atom in item))
        low = max(low for _, low, _ in shape.contains)
        if shape.is_unique:  # one item never equals another
            if max(shape.min_items, low) > 1:
                raise ValueError(f"`schema` must not use 'contains' of several items with 'uniqueItems' (at {path})")
            shape = shape.changed(max_items=min(1, 1 if shape.max_items is None else shape.max_items))
        highs = [high for _, _, high in shape.contains if high is not None]
        if len(shape.contains) > 1 and highs:
            raise ValueError(f"`schema` must not use 'maxContains' with several 'contains' (at {path})")
        if highs and len(wanted) > 1:
            raise ValueError(f"`schema` must not use 'maxContains' here, it is not supported (at {path})")
        unwanted = (replace(wanted[0], holds=not wanted[0].holds),) if highs else ()
        kinds: list[tuple[tuple[Part | None, int], ...]] = []  # of each item: those that count, and others
        for index in range(num_named + 1):
            conjunction = self.expander.item_conjunction(shape, index)
            counting = self._value(tuple(dict.fromkeys((*conjunction, *wanted))), f"{path}.contains", left)
            kinds.append(((counting, 1), (self._value((*conjunction, *unwanted), f"{path}.items", left), 0)))
        most = max(shape.min_items, low) + self.options.max_items if shape.max_items is None else shape.max_items
        most = min(most, max(shape.min_items, low) + 16)
        self.bounds[path] = f"at most {most} items"
        top = max([low, *(high for high in highs)])
        known: dict[tuple[int, int], Part | None] = {}
        for index in range(most, -1, -1):
            for count in range(min(index, top), -1, -1):
                options: list[Part] = []
                if index >= shape.min_items and count >= low:
                    options.append(EMPTY)
                for item, more in kinds[min(index, num_named)]:
                    following = min(count + more, top)
                    if highs and more and count + 1 > highs[0]:
                        continue
                    rest = known.get((index + 1, following))
                    if item is not None and rest is not None:
                        options.append(Concat((Literal(self.comma if index else ""), item, rest)))
                known[index, count] = _one_of(options)
        return known[0, 0]

    def _unique(self, shape: Shape, num_named: int, path: str, left: Depth) -> Part | None:
        """Arrays of different items: each is of some kind, and no kind comes twice."""
        conjunctions = [self.expander.item_conjunction(shape, index) for index in range(num_named + 1)]
        shapes = list(map(self.expander.shapes, conjunctions))
        sums = list(map(by_type, shapes))
        values = enumerated(sums[0])
        if not num_named and values is not None and len(values) > MAX_UNORDERED:
            self.bounds[path] = "different items in the order of the schema"
            return self._ordered([dumps(value, self.options.separators, path) for value in values], shape)
        self.is_limited = True
        depths = [self._entered(conjunction, left) for conjunction in conjunctions]
        every = [one for own in sums for one in own]
        if any(one.types & {"object", "array"} or one.properties or one.items or one.excluded for one in every):
            part, num_kinds = self._different(shapes[0], sums, depths, shape, path)
        else:  # many arrays of a schema may be alike
            key = (*map(tuple, sums), shape.min_items, shape.max_items)
            if key not in self.unique:
                self.unique[key] = self._different(shapes[0], sums, depths, shape, path)
            part, num_kinds = self.unique[key]
        if None in map(enumerated, sums):
            self.bounds[path] = f"at most {max(1, num_kinds)} different items, of different kinds"
            self.is_adjustable = True
        return part

    def _different(
        self, shapes: list[Shape], sums: list[list[Shape]], depths: list[Depth | None], shape: Shape, path: str
    ) -> tuple[Part | None, int]:
        """Arrays of different items, and how many kinds they have; `shapes`: those of the first item."""
        num_named = len(sums) - 1
        is_exact, must = None not in map(enumerated, sums), bool(num_named or shape.min_items > 1)
        options: list[Part] = [EMPTY] if shape.min_items == 0 else []
        whole: Part | None = None
        if not (is_exact or must):  # a single item may be of any kind, several are of the types that are meant
            whole = None if shape.max_items == 0 else self._sum(shapes, depths[0], path)
            sums = [[one for one in own if one.types <= one.meant_types] for own in sums]
        ways = []
        for chosen in partitions(sums):
            kinds = [[self._sum(*one, path) for one in zip(kind, depths, strict=True)] for kind in chosen]
            ways.append([kind for kind in kinds if any(kind)])
        # Of two items, those that come second share their states; of more, each set of kinds has its own. So where
        # states are few, two items are told in each way before more of them are in any.
        attempts = [(number, is_pair) for number in range(len(ways)) for is_pair in (False, True)]
        if self.limits.unique < Depth.unique:
            attempts.sort(key=lambda attempt: not attempt[1])
        found: dict[int, tuple[Part, int]] = {}  # by way: the arrays, and their most items
        for number, is_pair in attempts:
            most = min(len(ways[number]), 2) if is_pair else len(ways[number])
            if most <= (found[number][1] if number in found else int(whole is not None)):
                continue
            arrays = self._of_kinds(ways[number], num_named, shape, most)
            if arrays is None:
                continue
            is_wanted = is_exact or (must and next(iter(found), number) == number)
            others = [part for other, (part, _) in found.items() if other != number]
            size = num_states(Alternation((*options, *others, arrays)), self.sizes)
            if is_wanted or size <= self.limits.unique:
                found[number] = arrays, most
        options += [part for part, _ in found.values()]
        num_kinds = max((most for _, most in found.values()), default=0)
        return _one_of(options if whole is None else [*options, whole]), num_kinds

    def _of_kinds(self, kinds: list[list[Part | None]], num_named: int, shape: Shape, max_items: int) -> Part | None:
        """
        Arrays of at most `max_items` items of different kinds. Each kind has a part for each of the first items, and
        for all others.
        """
        least, most = shape.min_items, max_items if shape.max_items is None else min(shape.max_items, max_items)
        known: dict[int, Part | None] = {}
        for used in range((1 << len(kinds)) - 1, -1, -1):
            count = used.bit_count()
            options: list[Part] = [EMPTY] if least <= count <= most else []
            for number, own in enumerate(kinds):
                item = own[min(count, num_named)]
                rest = known.get(used | 1 << number) if not used >> number & 1 and count < most else None
                if item is not None and rest is not None:
                    parts = (Literal(self.comma if count else ""), item, rest)
                    options.append(Concat(parts[: 2 if rest is EMPTY else 3]))
            known[used] = _one_of(options)
        return known[0]

    def _sum(self, shapes: list[Shape], left: Depth | None, path: str) -> Part | None:
        """The parts of some shapes."""
        return None if left is None else _one_of([part for one in shapes for part in self._shape(one, path, left)])

    def _ordered(self, texts: list[str], shape: Shape) -> Part | None:
        """Some of the texts, each at most once, in their order."""
        most = len(texts) if shape.max_items is None else min(shape.max_items, len(texts))
        top = max(shape.min_items, most if most < len(texts) else 0, 1)
        known: dict[tuple[int, int], Part | None] = {}
        for index in range(len(texts), -1, -1):
            for count in range(min(index, top), -1, -1):
                options: list[Part] = [EMPTY] if count >= shape.min_items else []
                if not (count >= most):
                    for number in range(index, len(texts)):
                        rest = known[number + 1, min(count + 1, top)]
                        if rest is not None:
                            options.append(Concat((Literal((self.comma if count else "") + texts[number]), rest)))
                known[index, count] = _one_of(options)
        return known[0, 0]

    # Objects.

    def _object(self, shape: Shape, path: str, left: Depth) -> Part | None:
        shape = _without_empty(shape, {}, "min_properties")
        if any(isinstance(value, dict) for value in shape.excluded):
            return None
        left, open_levels = left.inside, left.open_levels
        expander = self.expander
        named = self._schema_member(shape, path, left)
        for name in dict.fromkeys((*names_of(shape.properties), *shape.required)):
            is_required = name in shape.required
            value: Part | None = None
            if not shape.names or expander.holds(shape.names, name):
                value = self._value(expander.property_conjunction(shape, name), f"{path}.properties.{name}", left)
            if value is not None:
                named.append((dumps(name, self.options.separators, path) + self.colon, value, is_required))
            elif is_required:
                self._found_nothing(f"{path}.properties.{name}")
                return None
        generated = self._generated(shape, path, left, open_levels)
        if shape.min_properties >= 2:
            generated = []  # two generated names may be the same
        least, most = shape.min_properties, shape.max_properties
        num_required = sum(is_required for _, _, is_required in named)
        if least > len(named) + len(generated) or (most is not None and most < max(num_required, least)):
            self._found_nothing(path)
            return None
        most = None if most is not None and not generated and most >= len(named) else most
        least = 0 if least <= num_required else least
        is_said = any(entry.patterns or entry.rest is not None for entry in shape.properties) or not shape.properties
        usual = 0 if not is_said else self.options.max_items if not named else 1
        members = Members(tuple(named), tuple(generated), self.comma, least, most, usual if generated else 0)
        return Concat((Literal("{"), self._in_orders(members, shape, path), Literal("}")))

    def _schema_member(self, shape: Shape, path: str, left: Depth) -> list[tuple[str, Part, bool]]:
        """
        `$schema`, which documents name before all else, though few schemas mention it. It may come where generated
        names may, unless the first property must come: then that is fixed text.
        """
        names = names_of(shape.properties)
        is_open = any(is_said or self.options.is_open for _, _, is_said in self._generated_kinds(shape)[-1:])
        if (
            path != "$"
            or not names
            or names[0] in shape.required
            or "$schema" in (*names, *shape.required)
            or not is_open
        ):
            return []
        if shape.names and not self.expander.holds(shape.names, "$schema"):
            return []
        is_string = Atom(self.expander.make("string", {"type": "string"}), path)
        value = self._value((*self.expander.property_conjunction(shape, "$schema"), is_string), path, left)
        return [] if value is None else [(f'"$schema"{self.colon}', value, False)]

    def _in_orders(self, members: Members, shape: Shape, path: str) -> Part:
        """The members of an object in the order of the schema, and in other ones."""
        named = members.named
        if len(named) < 2 or not self.options.is_shared:
            return members
        unordered = replace(members, any_order=True)
        is_counted = members.min_members or members.max_members is not None
        self.is_limited = self.is_limited or self.options.any_order
        if self.limits.unordered and not is_counted and len(named) <= MAX_UNORDERED_MEMBERS:
            if num_states(unordered, self.sizes) <= self.limits.unordered:
                return unordered
        rank = {dumps(name, self.options.separators, path) + self.colon: i for i, name in enumerate(shape.required)}
        ranks = [rank[key] for key, _, is_required in named if is_required]
        if self.options.any_order:
            self.bounds[path] = "properties in the order of the schema, or of 'required'"
        rank.setdefault(f'"$schema"{self.colon}', -1)
        by_required = tuple(sorted(named, key=lambda entry: rank.get(entry[0], len(rank))))
        keys = [key for key, _, _ in named]
        # Where names are in alphabetical order, a tool has sorted them; 'required' keeps the author's order.
        if by_required == named or (ranks == sorted(ranks) and keys != sorted(keys)):
            return members
        return Alternation((members, replace(members, named=by_required)))

    def _generated(self, shape: Shape, path: str, left: Depth, open_levels: int) -> list[tuple[Part, Part]]:
        """Members whose names are generated: for each kind of names, the name and what stands after it."""
        found: list[tuple[Part, Part]] = []
        for language, conjunction, is_said in self._generated_kinds(shape, path):
            if not conjunction:
                levels = left.free_levels if is_said else open_levels
                value: Part | None = self._anything(levels)
            else:
                value = self._value(conjunction, f"{path}.additionalProperties", left)
            if value is not None and language is not None:
                name = self._string_slot(language, Shape(max_tokens=8), path)
                found.append((name, Concat((Literal(self.colon), value))))
        return found

    def _generated_kinds(
        self, shape: Shape, path: str | None = None
    ) -> list[tuple[Language | None, Conjunction, bool]]:
        """
        For each kind of generated names: their language (only with a path), what their values must be, and whether the
        schema says that there may be such names.
        """
        patterns = list(dict.fromkeys(pattern for entry in shape.properties for pattern in entry.patterns))
        kinds: list[tuple[Language | None, Conjunction, bool]] = []
        for pattern in (*patterns, None):
            atoms: list[Atom] = []
            is_said = pattern is not None or not shape.properties
            is_unmentioned = pattern is None
            for entry in shape.properties:
                if pattern in entry.patterns:
                    atoms += entry.patterns[pattern]
                elif entry.rest is not None:
                    atoms += entry.rest
                    is_said = True
            for owner, extra in shape.unevaluated:
                if not any(
                    owner in entry.owners and (pattern in entry.patterns or entry.rest is not None)
                    for entry in shape.properties
                ):
                    atoms += extra
                    is_said = True
            if is_unmentioned and not is_said and not self.options.is_open:
                continue
            if any(isinstance(atom.schema, bool) and atom.schema != atom.holds for atom in atoms):
                continue
            atoms = [atom for atom in atoms if not isinstance(atom.schema, bool)]
            language = None
            if path is not None:
                others = [other for other in patterns if other != pattern]
                language = self._name_language(shape, pattern, others, path)
            kinds.append((language, tuple(dict.fromkeys(atoms)), is_said))
        return kinds

    def _name_language(self, shape: Shape, pattern: str | None, others: list[str], path: str) -> Language | None:
        """Names that match `pattern` and none of the others, and are no property's of the schema."""
        limit: int | None = None
        known = frozenset((*names_of(shape.properties), *shape.required))
        key = ("names", pattern, *others, known)
        if not shape.names and key in self.languages:
            return self.languages[key]
        try:
            dfas = [_all_but(tuple(sorted(known)))]
            if pattern is not None:
                own, limit = compiled(pattern, f"{path}.patternProperties")
                dfas.insert(0, own)
            excluded: list[CharDFA] = []
            for other in others:
                dfa, most = compiled(other, f"{path}.patternProperties")
                if most is not None:
                    return None
                excluded.append(dfa)
            if shape.names:
                allowed = self._names(shape.names, path)
                if allowed is None:
                    return None
                dfas.append(allowed.dfa)
                limit = min((x for x in (limit, allowed.max_chars) if x is not None), default=None)
            dfa = _in_all(tuple(dfas), tuple(excluded))
        except EmptyLanguageError:
            return None
        self.languages[key] = Language(dfa, limit, True)
        return self.languages[key] if not shape.names else self.languages.pop(key)

    def _names(self, conjunction: Conjunction, path: str) -> Language | None:
        """The strings that a conjunction allows."""
        languages = []
        for shape in self.expander.shapes(conjunction):
            if "string" not in shape.types:
                continue
            if shape.values is not None:
                languages.append(Language(CharDFA.of_texts(v for v in shape.values if isinstance(v, str))))
                continue
            language = self._string_language(shape, f"{path}.propertyNames")
            if language is not None:
                languages.append(language)
        if len(languages) < 2:
            return languages[0] if languages else None
        nfa = CharNFA()
        dfas = []
        for language in languages:
            dfa = language.dfa
            if language.max_chars is not None:
                dfa = dfa.intersect(CharDFA.of_chars(TEXT_CHARS, 0, language.max_chars))
            dfas.append(dfa)
        return Language(CharDFA.from_nfa(nfa, nfa.either([nfa.embed(dfa, nfa.end) for dfa in dfas])))


# Languages are made once for all schemas, and with them the tables of their tokens.

_at_least = lru_cache(maxsize=64)(partial(CharDFA.of_chars, TEXT_CHARS))
_all_but = lru_cache(maxsize=512)(CharDFA.all_but)


@lru_cache(maxsize=512)
def _in_all(dfas: tuple[CharDFA, ...], others: tuple[CharDFA, ...] = ()) -> CharDFA:
    """The texts of all of `dfas` and of none of `others`."""
    return reduce(CharDFA.subtract, others, reduce(CharDFA.intersect, dfas))


def _key(conjunction: Conjunction) -> frozenset[tuple[bool, int]]:
    return frozenset(atom.key for atom in conjunction)


def _one_of(options: list[Part]) -> Part | None:
    if not options:
        return None
    return options[0] if len(options) == 1 else Alternation(tuple(options))


def _without_empty(shape: Shape, empty: Any, least: str) -> Shape:
    """An excluded empty array or object is a least number of items or properties."""
    if not any(same(value, empty) for value in shape.excluded):
        return shape
    others = tuple(value for value in shape.excluded if not same(value, empty))
    return shape.changed(excluded=others, **{least: max(1, getattr(shape, least))})


def _inclusive(shape: Shape) -> tuple[float | int | None, float | int | None]:
    """The bounds of numbers, inclusive."""
    import math

    low, high = shape.low, shape.high
    if shape.is_integer:
        least = None if low is None else math.ceil(low[0]) + (low[1] and low[0] == math.ceil(low[0]))
        most = None if high is None else math.floor(high[0]) - (high[1] and high[0] == math.floor(high[0]))
        return least, most
    return _double(low, math.inf), _double(high, -math.inf)


def _double(bound: tuple[float | int, bool] | None, inward: float) -> float | None:
    """The outermost double that a bound of `(value, is_exclusive)` allows, as numbers with a fraction are read so."""
    import math

    if bound is None:
        return None
    value, is_exclusive = bound
    nearest = float(value)
    is_outside = nearest < value if inward > 0 else nearest > value
    return math.nextafter(nearest, inward) if is_outside or (is_exclusive and nearest == value) else nearest


def _usual_digits(low: float | int | None, high: float | int | None, is_integer: bool, dfa: CharDFA) -> int:
    """
    The tokens that a number usually needs: 9 digits before the point and 6 after it, where bounds do not ask for more.
    """
    bounds = [exact(bound) for bound in (low, high) if bound is not None]
    digits = [len(str(abs(int(bound)))) for bound in bounds]
    count = max(digits) if len(digits) == 2 else max([9, *(number + 1 for number in digits)])
    size = count + (0 if low is not None and low >= 0 else 1) + (0 if is_integer else 7)
    longest = dfa.longest
    return max(size if longest is None else min(size, longest), dfa.shortest)


def _spellings(value: float | int) -> CharDFA:
    """The ways to write a number, but with an exponent other than none: those are left out with it."""
    text = f"{exact(value):.20f}".rstrip("0").rstrip(".") if not isinstance(value, int) else str(value)
    pattern = text.replace(".", r"\.").replace("-", r"\-")
    zeros = r"(?:\.0+)?" if "." not in text else "0*"
    return pattern_dfa(rf"(?:{pattern}{zeros}|-?\d+(?:\.\d+)?[eE][+-]?\d+)")[0]

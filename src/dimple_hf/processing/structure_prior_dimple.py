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
"""Structure priors: the form that an answer must have, written as a template or as a JSON schema.

Source: "structure priors" in Dimple, section 4.4 (arXiv 2505.16990), which sets positions of fixed tokens by hand;
here a prior also says what the slots may hold. A prior becomes a canvas (`answer_layout_dimple`) for one tokenizer.
"""

import datetime
import gc
import json
import numbers
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase

from .answer_canvas_dimple import compact_canvas, padded_canvas
from .answer_confidence_dimple import confidences_of_json, confidences_of_slots
from .answer_layout_dimple import Canvas, CanvasConstraint
from .answer_network_dimple import fits
from .answer_order_dimple import text_in_order
from .answer_parts_dimple import (
    EMPTY,
    Alternation,
    Choices,
    Concat,
    Language,
    Literal,
    Part,
    Repeat,
    ValueSlot,
    slots_of,
    with_prefix,
)
from .answer_sizes_dimple import num_states
from .byte_nfa_dimple import MAX_NODES, TooLargeError
from .char_dfa_dimple import free_text
from .patterns_dimple import pattern_dfa
from .schema_dimple import Depth, ReaderOptions, SchemaReader
from .schema_shapes_dimple import refuse_example, refuse_large
from .value_languages_dimple import FORMATS, MAX_DIGITS
from .vocabulary_dimple import Vocabulary

#: How an answer's values lie on the canvas.
LAYOUTS = {"padded": padded_canvas, "compact": compact_canvas}

#: Bounds of values that a schema leaves open, and the most states that they may take: the first that are few enough.
DEPTHS = (
    (Depth(5, 6, 5), 16_500),
    (Depth(4, 5, 4), 16_500),
    (Depth(3, 5, 4), 16_500),
    (Depth(3, 4, 4), 21_000),
    (Depth(2, 4, 3, unique=1_000), 16_500),
    (Depth(2, 3, 2, unique=1_000), 16_500),
    (Depth(1, 2, 1, unique=500), 16_500),
    (Depth(1, 1, 1, unique=0), MAX_NODES),
    (Depth(1, 0, 0, unique=0), MAX_NODES),
)

#: The same where properties may come in any order.
UNORDERED_DEPTHS = (
    (Depth(5, 4, 3, 4_000), 5_000),
    (Depth(3, 4, 2, 2_000), 8_000),
    (Depth(2, 2, 1, 2_000), 12_000),
    (Depth(2, 2, 1, 500), 16_000),
    (Depth(1, 1, 1, 500), MAX_NODES),
    (Depth(1, 1, 1, unique=0), MAX_NODES),
    (Depth(1, 0, 0, unique=0), MAX_NODES),
)

#: The same in the padded layout, where every value has positions of its own.
PADDED_DEPTHS = ((Depth(5, 4, 3), MAX_NODES), (Depth(3, 2, 2), MAX_NODES), (Depth(1, 1, 1), MAX_NODES))

#: How many times fewer states an answer of a schema that refers to itself is hoped to have than are estimated.
MAX_SHARING = 500

#: Largest values of the options that bound an answer.
LARGEST = {"max_tokens": 1 << 17, "max_string_tokens": 1 << 17, "max_items": 1 << 17, "max_digits": 256}

#: Priors of schemas that are remembered.
MAX_REMEMBERED = 16

#: `type` itself, where a field of that name hides it.
_Type = type

#: What a slot can be: name of a type -> pattern of its text (`None`: free text), and how its text is read.
_TYPES: dict[str, Any] = {
    "str": (None, str),
    "int": (r"0|-?[1-9]\d{0,8}", int),
    "float": (r"-?(?:0|[1-9]\d{0,8})(?:\.\d{1,6})?", float),
    "bool": ("true|false", lambda text: text == "true"),
    "date": (FORMATS["date"][0], datetime.date.fromisoformat),
}


@dataclass(frozen=True)
class Slot:
    """
    What a named slot of a template may hold.

    Args:
        length (`int` or `tuple[int, int]`, *optional*):
            Most tokens, or fewest and most. Needed for free text and for patterns without a longest match.
        choices (`Sequence[str]`, *optional*):
            The texts that it may hold.
        pattern (`str`, *optional*):
            A regular expression that its whole text matches, in the dialect of Python's `re`, without
            back references.
        type (`str` or `type`, *optional*, defaults to `"str"`):
            `"int"`, `"float"`, `"bool"`, `"date"` (written YYYY-MM-DD) or `"str"`, or the Python type: how it is
            written, and what [`~DimpleProcessor.parse`] makes of it.

    Raises:
        ValueError: If `length` is less than 1 or a range upside down, a choice is no text or comes twice, the type is
            unknown, or more than one of `choices`, `pattern` and a `type` is given.
    """

    length: int | tuple[int, int] | None = None
    choices: Sequence[str] | None = None
    pattern: str | None = None
    type: "str | _Type" = "str"

    def __post_init__(self) -> None:
        if not isinstance(self.length, int | tuple | list | None):
            raise ValueError(f"`length` must be a number of tokens, or a range of such (got {self.length!r})")
        lengths = (0, self.length or 1) if isinstance(self.length, int | None) else tuple(self.length)
        if self.length == 0 or len(lengths) != 2 or lengths[0] < 0 or lengths[1] < 1:
            raise ValueError(f"`length` must be at least 1 token, or a range of such (got {self.length!r})")
        if lengths[0] > lengths[1]:
            raise ValueError(f"`length` must not be a range upside down (got {self.length!r})")
        if self.type_name not in _TYPES:
            raise ValueError(f"`type` must be one of {', '.join(_TYPES)} (got {self.type!r})")
        if self.pattern is not None:
            _check_text(self.pattern, "`pattern`")
        given = [self.choices is not None, self.pattern is not None, self.type_name != "str"]
        if sum(given) > 1:
            raise ValueError("a slot must have only one of `choices`, `pattern` and a `type` (got several)")
        if self.choices is not None:
            if not isinstance(self.choices, (list, tuple)) or not self.choices:
                raise ValueError(f"`choices` must be a list of at least one text (got {self.choices!r})")
            for choice in self.choices:
                _check_text(choice, "a choice")
                if not choice:
                    raise ValueError(f"`choices` must be texts that are not empty (got {choice!r})")
            if len(set(self.choices)) < len(self.choices):
                raise ValueError(f"`choices` must differ from each other (got {list(self.choices)!r})")

    @property
    def bounds(self) -> tuple[int, int | None]:
        """Fewest and most tokens; `None` for as many as its values need."""
        return self.length if isinstance(self.length, tuple) else (0, self.length)

    @property
    def type_name(self) -> str:
        """The type, by name."""
        return self.type if isinstance(self.type, str) else self.type.__name__

    def slot(self, name: str, prefix: str) -> ValueSlot:
        """The part of a slot called `name`; a space before it in `prefix`."""
        min_tokens, max_tokens = self.bounds
        pattern = _TYPES[self.type_name][0] if self.pattern is None else self.pattern
        value: Choices | Language
        if self.choices is not None or self.type_name == "bool":
            value = Choices(tuple(self.choices or ("true", "false")))
        elif pattern is None:
            value = Language(free_text())
            if max_tokens is None:
                raise ValueError(f"slot {name!r} must have a length, as in {{{name}:16}}")
        else:
            try:
                value = Language(*pattern_dfa(pattern))
            except ValueError as error:
                raise ValueError(f"slot {name!r}: {error}") from error
        return ValueSlot(value, f"slot {name!r}", max_tokens, min_tokens, label=(name,), prefix=prefix)

    def read(self, text: str) -> Any:
        """The value that a text stands for."""
        return _TYPES[self.type_name][1](text)


@dataclass(frozen=True)
class OptionalPart:
    """
    A part of a template that an answer may lack; its slots are then `None`.

    Args:
        template (`str`):
            Text and slots.
    """

    template: str


@dataclass(frozen=True)
class RepeatedPart:
    """
    A part of a template that comes several times. It is read as a list of dicts.

    Args:
        name (`str`):
            What the list is called.
        template (`str`):
            Text and slots of one repetition.
        min_times (`int`, *optional*, defaults to 0), max_times (`int`):
            How often it comes.
        separator (`str`, *optional*, defaults to `""`):
            Text between two repetitions.
    """

    name: str
    template: str
    max_times: int
    min_times: int = 0
    separator: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.min_times <= self.max_times or self.max_times < 1:
            raise ValueError(
                f"`min_times` and `max_times` of {self.name!r} must satisfy 0 <= min_times <= max_times and "
                f"max_times >= 1 (got {self.min_times} and {self.max_times})"
            )


class StructurePrior:
    """
    The form that an answer must have. Made by [`~StructurePrior.from_template`],
    [`~StructurePrior.from_json_schema`] or [`~StructurePrior.from_anchors`]; used by [`DimpleProcessor`].

    Whatever the weights, and in whatever order the positions of the answer are unmasked, the answer has this form: the
    fixed text stands where it should, and each slot holds a value of its kind. Positions that values do not need hold
    the tokenizer's padding token, which [`~DimpleProcessor.parse`] and `skip_special_tokens` leave out.

    Attributes:
        layout (`str`): `"padded"` or `"compact"`, see [`~StructurePrior.from_json_schema`].
        ignored (`list[str]`): Paths of a schema's keywords that are annotations: unknown ones, and unknown formats.
        bounds (`dict[str, str]`): What the answer is bounded to that the schema does not bound: path -> bound.
    """

    def __init__(self, part: Part, slots: dict[tuple[str, ...], Slot], layout: str = "padded") -> None:
        # Use the class methods; here is only what they share.
        if layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)} (got {layout!r})")
        self._part = part
        self._slots = slots
        self._reader: SchemaReader | None = None
        self._model: Any = None
        self.layout = layout
        self.max_tokens: int | None = None
        self.ignored: list[str] = []
        self.bounds: dict[str, str] = {}
        self._canvases: WeakKeyDictionary[Vocabulary, Canvas] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """All but the canvases, which another process builds again."""
        return {name: value for name, value in vars(self).items() if name != "_canvases"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({"_canvases": WeakKeyDictionary()} | state)

    @classmethod
    def from_template(
        cls, *parts: str | OptionalPart | RepeatedPart, slots: Mapping[str, Slot | dict[str, Any]] | None = None
    ) -> "StructurePrior":
        r"""
        An answer of fixed text and named slots.

        Args:
            parts (`str`, [`OptionalPart`] or [`RepeatedPart`]):
                Templates, one after the other. `{name:32}` is a slot of at most 32 tokens, `{name:8-32}` of at least
                8, `{name:int}` one of a type of [`Slot`], `{name:6:int}` both, `{name}` one that `slots` describes.
                `{{` and `}}` stand for braces.
            slots (`Mapping[str, Slot | dict]`, *optional*):
                What slots may hold, by name, where the template does not say it; a dict holds the arguments of
                [`Slot`].

        Returns:
            [`StructurePrior`]. It is read as a dict: name -> value.

        Raises:
            ValueError: If a name comes twice or is missing, a slot has no length or length 0, or a template is none.

        Example:

        ```python
        >>> from dimple_hf import RepeatedPart, Slot, StructurePrior

        >>> prior = StructurePrior.from_template("Reasoning: {reasoning:32}\nThe answer is {answer:4}.")
        >>> prior = StructurePrior.from_template(
        ...     "Total: {total:int}\nPaid: {paid}", RepeatedPart("items", "\n- {item:8}", max_times=5),
        ...     slots={"paid": Slot(choices=["yes", "no"])},
        ... )
        ```
        """
        if not parts:
            raise ValueError("`parts` must hold at least one template (got none)")
        if slots is not None and not isinstance(slots, Mapping):
            raise ValueError(f"`slots` must be a dict from names to slots (got {slots!r})")
        given = {
            name: slot if isinstance(slot, Slot) else _slot_of(name, slot) for name, slot in (slots or {}).items()
        }
        found: dict[tuple[str, ...], Slot] = {}
        unused = set(given)
        built: list[Part] = []
        for part in parts:
            prefix: tuple[str, ...] = (part.name,) if isinstance(part, RepeatedPart) else ()
            template = part.template if isinstance(part, (OptionalPart, RepeatedPart)) else part
            _check_text(template, "a template")
            content = _template_part(template, given, prefix, found, unused)
            if isinstance(part, OptionalPart):
                content = Alternation((content, EMPTY))
            if isinstance(part, RepeatedPart):
                _check_text(part.separator, "`separator`")
                if (part.name,) in found:
                    raise ValueError(f"each name must come once (got {part.name!r} twice)")
                if not any(path[0] == part.name for path in found):
                    raise ValueError(f"{part.name!r} must have a slot (got {template!r})")
                repeat = Repeat(content, part.separator, part.min_times, part.max_times, part.max_times)
                content = with_prefix(repeat, (part.name,))
                found.setdefault(prefix, Slot(length=1))  # marks the list itself
            built.append(content)
        if unused:
            raise ValueError(f"`slots` must name slots of the template (got {sorted(unused)})")
        return cls(Concat(tuple(built)), found)

    @classmethod
    def from_anchors(cls, anchors: Mapping[int, str], length: int) -> "StructurePrior":
        """
        Free text of a given length with texts at given positions: a stem for the beginning, an ending for the end.

        Args:
            anchors (`Mapping[int, str]`):
                Position of its first token -> text. Positions from 0 count from the beginning; -k is the position k
                tokens before the end.
            length (`int`):
                Positions of the answer. What the free text does not need is padding.

        Returns:
            [`StructurePrior`]. It is read as a dict: `"text"`, the whole answer, and `"gap0"`, `"gap1"`, ... the free
            texts between the anchors.

        Raises:
            ValueError: If `length` is less than 1, or a position lies outside of it. (Whether texts overlap depends on
                the tokenizer: [`~StructurePrior.canvas`] raises.)

        Example:

        ```python
        >>> from dimple_hf import StructurePrior

        >>> prior = StructurePrior.from_anchors({0: "Reasoning:", -8: "\\nThe answer is"}, length=64)
        ```
        """
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"`length` must be an integer >= 1 (got {length!r})")
        if not isinstance(anchors, Mapping) or not all(isinstance(position, int) for position in anchors):
            raise ValueError(f"`anchors` must be a dict from positions to texts (got {anchors!r})")
        placed: dict[int, str] = {}
        for position, text in anchors.items():
            absolute = position + length if position < 0 else position
            if not 0 <= absolute < length or absolute in placed:
                raise ValueError(f"`anchors` must lie on different positions of {length} (got {position})")
            _check_text(text, "an anchor")
            placed[absolute] = text
        parts: list[Part] = []
        slots: dict[tuple[str, ...], Slot] = {}
        for position, text in sorted(placed.items()):
            if position or slots:
                name = f"gap{len(slots)}"
                slots[(name,)] = Slot(length=length)
                parts.append(
                    ValueSlot(Language(free_text()), f"the text before {text!r}", until=position, label=(name,))
                )
            parts.append(Literal(text))
        name = f"gap{len(slots)}"
        slots[(name,)] = Slot(length=length)
        parts.append(ValueSlot(Language(free_text()), "the text at the end", until=length, label=(name,)))
        return cls(Concat(tuple(parts)), slots)

    @classmethod
    def from_json_schema(
        cls,
        schema: dict[str, Any] | bool | type | Any,
        *,
        max_tokens: int | None = None,
        max_string_tokens: int = 16,
        max_items: int = 4,
        max_digits: int = MAX_DIGITS,
        separators: tuple[str, str] = (",", ":"),
        any_order: bool = False,
        layout: str = "compact",
    ) -> "StructurePrior":
        """
        An answer that is a JSON text and valid for a schema. docs/structured_extraction.md has the table of keywords.

        Args:
            schema (`dict`, `bool`, `type` or `pydantic.TypeAdapter`):
                A JSON schema of draft 4 to 2020-12, a pydantic model class, or whatever a `TypeAdapter` takes: a typed
                dict, a dataclass, `list[Model]`.
            max_tokens (`int`, *optional*):
                Positions of a compact canvas, 1 to 131,072; when missing, as many as the values usually need, at most
                2048.
            max_string_tokens (`int`, *optional*, defaults to 16):
                Tokens, 1 to 131,072, that a canvas has for a string whose length the schema does not bound. In the
                padded layout that is the most it can have; in the compact one values share their positions, so it may
                be longer, and a string that is the whole answer has twice as many.
                The keyword `x-max-tokens` beside a value's type sets it for that value.
            max_items (`int`, *optional*, defaults to 4):
                The same for the items of an array without `maxItems`.
            max_digits (`int`, *optional*, defaults to 18):
                Most digits of a number before the point, and after it, where bounds do not need more; 1 to 256.
            separators (`tuple[str, str]`, *optional*, defaults to `(",", ":")`):
                What stands between items, and between a name and its value, as for `json.dumps`.
            any_order (`bool`, *optional*, defaults to `False`):
                Whether the properties of an object may come in any order. It takes a state for each set of properties;
                where these are too many, they come in the order of the schema or of `required`, and `bounds` says so.
                Only in the compact layout.
            layout (`str`, *optional*, defaults to `"compact"`):
                `"compact"`: the text has no padding inside, and moves with the lengths of the values.
                `"padded"`: each value has positions of its own, all fixed text is placed before the first step; only
                for models that were trained with padding inside answers.

        Returns:
            [`StructurePrior`]. It is read as what the JSON text stands for, or as an object of the pydantic class.

        Raises:
            ValueError: If the schema is malformed, has keys but no keyword, uses what is not supported, or allows
                nothing; the message names the JSON path.
        """
        counts = {"max_string_tokens": max_string_tokens, "max_items": max_items, "max_digits": max_digits}
        if max_tokens is not None:
            counts["max_tokens"] = max_tokens
        for name, value in counts.items():
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or not 1 <= value <= LARGEST[name]:
                raise ValueError(f"`{name}` must lie between 1 and {LARGEST[name]} (got {value!r})")
        for separator, mark in zip(separators, ",:", strict=True):
            if separator.strip(" \t\n\r") != mark:
                raise ValueError(f"`separators` must be {mark!r} with white space around (got {separator!r})")
        if any_order and layout == "padded":
            raise ValueError('`any_order` must be False with the layout "padded" (got True)')
        model, schema = _schema_of(schema)
        refuse_large(schema)
        options = ReaderOptions(
            max_string_tokens,
            max_items,
            max_digits,
            separators,
            any_order,
            model is None,
            model is not None,
            layout == "compact",
        )
        try:
            key = (json.dumps(schema), options, layout, max_tokens, id(model))
        except (TypeError, ValueError, RecursionError):
            key = None
        if key in _REMEMBERED:
            return _REMEMBERED[key]
        try:
            with _garbage_left_alone():
                reader = SchemaReader(schema, options)
                depths = PADDED_DEPTHS if layout == "padded" else UNORDERED_DEPTHS if any_order else DEPTHS
                prior = cls(reader.part(depths[0][0]), {}, layout)
        except RecursionError as error:
            raise ValueError(
                "`schema` must be nested less deeply, and alternatives of `oneOf` be distinct without following "
                "references around a circle (got one that exceeds Python's recursion limit)"
            ) from error
        prior._reader, prior._model, prior.max_tokens = reader, model, max_tokens
        prior.ignored, prior.bounds = reader.ignored, reader.bounds
        if key is not None:
            while len(_REMEMBERED) >= MAX_REMEMBERED:
                _REMEMBERED.pop(next(iter(_REMEMBERED)), None)
            _REMEMBERED[key] = prior
        return prior

    def canvas(self, tokenizer: PreTrainedTokenizerBase) -> Canvas:
        """
        The prior's positions for one tokenizer; made once.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                A byte-level BPE tokenizer with a mask token and a padding token.

        Raises:
            ValueError: If a slot cannot hold any of its values (a choice has more tokens than the slot, a pattern
                matches nothing as short), texts overlap, or the answer needs too many states.
        """
        vocabulary = Vocabulary.of(tokenizer)
        if vocabulary not in self._canvases:
            with _garbage_left_alone():
                canvas = self._lay_out(vocabulary)
            if not canvas.ids:
                raise ValueError("the prior must hold at least one token (it is empty)")
            self._canvases[vocabulary] = canvas
            if self._reader is not None and self.layout == "compact":
                self.bounds["length"] = f"{len(canvas.ids)} tokens in all"
        return self._canvases[vocabulary]

    def _lay_out(self, vocabulary: Vocabulary) -> Canvas:
        """The canvas; where values have no limit of their own, the deepest that is small enough."""
        reader = self._reader
        any_order = reader is not None and reader.options.any_order
        if reader is None or not (any_order or reader.is_adjustable):
            return LAYOUTS[self.layout](self._part, vocabulary, self.max_tokens)
        if self.layout == "padded":
            return self._first_canvas(vocabulary, PADDED_DEPTHS)
        depths = UNORDERED_DEPTHS if any_order else DEPTHS
        # What the shallowest needs is not tried with less, so that large schemas are not read once for each depth.
        least = 0
        sizes: dict[Part, int] = {}
        for depth, max_states in depths:
            if max_states < MAX_NODES and max_states >= least:
                part = reader.part(depth)
                estimate = num_states(part, sizes)
                if estimate > max_states:
                    least = least or num_states(reader.part(depths[-1][0]), sizes)
                # Alternatives that end alike share their ends, which counts where a schema refers to itself.
                is_doubtful = bool(reader.recursive) and max(least, estimate / MAX_SHARING) <= max_states
                if estimate <= max_states or (is_doubtful and fits(part, max_states)):
                    return self._first_canvas(vocabulary, [(depth, max_states), *depths[-2:]])
        if least > 2 * MAX_NODES:  # the number is about right
            raise TooLargeError(f"the answer must need at most {MAX_NODES} states (it needs more)")
        return self._first_canvas(vocabulary, depths[-2:])

    def _first_canvas(self, vocabulary: Vocabulary, depths: Iterable[tuple[Depth, int]]) -> Canvas:
        """The first of some depths that is not too large."""
        assert self._reader is not None
        for depth, _ in depths:
            try:
                self._part = self._reader.part(depth)
                self.bounds = self._reader.bounds
                return LAYOUTS[self.layout](self._part, vocabulary, self.max_tokens)
            except TooLargeError as error:
                reason = error
        raise reason

    def read(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Any:
        """
        What an answer says.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                The tokenizer.
            ids (`Sequence[int]`):
                The answer's tokens, as many as the canvas has positions.

        Returns:
            A dict of slots, a JSON value, or an object of the pydantic class.

        Raises:
            ValueError: If the answer does not have the prior's form: it was not generated under it, or not to its end;
                or if the pydantic class does not take it.
        """
        canvas = self.canvas(tokenizer)
        path = canvas.path(ids)
        text = canvas.text(ids)
        if self._reader is not None:
            return json.loads(text) if self._model is None else self._model.validate_json(text)
        values = self._absent_values()
        slots = {slot.label: slot for slot in slots_of(self._part)}
        for segment in path:
            if segment.label is None:
                continue
            name = tuple(step for step in segment.label if isinstance(step, str))
            content = canvas.text(ids[segment.start : segment.end]).removeprefix(slots[name].prefix)
            value = self._slots[name].read(content)
            _put(values, segment.label, value)
        if "text" not in values and any(slot.until is not None for slot in slots.values()):
            values = {"text": text, **values}
        return values

    def confidences(
        self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], token_logprobs: Sequence[float]
    ) -> Any:
        """
        How probable each value of an answer was.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                The tokenizer.
            ids (`Sequence[int]`):
                The answer's tokens, as many as the canvas has positions.
            token_logprobs (`Sequence[float]`):
                Log-probability of each token when it was committed; 0 at given tokens. NaN counts as 0.

        Returns:
            A tree of the shape of the JSON value, or of the slots, with a probability in [0, 1] instead of each
            value: that of all tokens of its text together.

        Raises:
            ValueError: If the answer does not have the prior's form.
        """
        canvas = self.canvas(tokenizer)
        path = canvas.path(ids)
        if self._reader is not None:
            return confidences_of_json(canvas, ids, token_logprobs)
        values = self._absent_values()
        for label, confidence in confidences_of_slots(path, token_logprobs):
            _put(values, label, confidence)
        return values

    def touched_bound(self, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> bool:
        """
        Whether an answer may be shorter than it would be on a longer canvas: a compact one is filled to its last
        position, or in a padded one a value is.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                The tokenizer.
            ids (`Sequence[int]`):
                The answer's tokens, as many as the canvas has positions.
        """
        canvas = self.canvas(tokenizer)
        pad = canvas.vocabulary.pad_id
        return any(
            segment.end > segment.start and ids[segment.end - 1] != pad
            for segment in canvas.path(ids)
            if segment.automaton.is_extensible(segment.end - segment.start)
        )

    def write(self, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[bool]]:
        """
        An answer as it lies on the canvas, for training: a model that learns to fill a canvas fills it well.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                The tokenizer.
            text (`str`):
                The answer, in the prior's form. The properties of a JSON text may come in any order, with any white
                space between them; where the canvas does not have that, an equal text is written that it has.

        Returns:
            `tuple(list[int], list[bool])`: A token for each position of the canvas, and whether it is to be generated
            (`False`: fixed text, which stands there before the first step).

        Raises:
            ValueError: If the text does not have the prior's form, or a value does not fit its positions.
        """
        canvas = self.canvas(tokenizer)
        is_learned = [token == tokenizer.mask_token_id for token in canvas.ids]
        try:
            return canvas.fill(text), is_learned
        except ValueError:
            ordered = None
            if self._reader is not None and self.layout == "compact":
                ordered = text_in_order(canvas, text, self._reader.options.separators)
            if ordered is None:
                raise
            return canvas.fill(ordered), is_learned

    def _absent_values(self) -> dict[str, Any]:
        repeated_names = {path[0] for path in self._slots if len(path) == 2}
        return {path[0]: [] if path[0] in repeated_names else None for path in self._slots}


#: Priors of schemas that were made last, by schema and options.
_REMEMBERED: dict[Any, StructurePrior] = {}


@contextmanager
def _garbage_left_alone() -> Iterator[None]:
    """Building makes many objects that stay; Python would search all memory for garbage each time they have grown."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _put(values: dict[str, Any], label: tuple[Any, ...], value: Any) -> None:
    """Sets the value of a slot: of its name, or of a name inside an item of a list."""
    if len(label) == 1:
        values[label[0]] = value
        return
    name, index, slot_name = label
    items = values[name]
    items += [{} for _ in range(index + 1 - len(items))]
    items[index][slot_name] = value


def _schema_of(schema: Any) -> tuple[Any, Any]:
    """What reads the answer (`None`: it stays as `json` reads it), and the JSON schema."""
    if isinstance(schema, (dict, bool)):
        refuse_example(schema)
        return None, schema
    try:
        from pydantic import PydanticInvalidForJsonSchema, PydanticUserError, TypeAdapter
        from pydantic.json_schema import GenerateJsonSchema
    except ImportError as error:
        raise ValueError(f"`schema` must be a dict, or pydantic be installed (got {schema!r})") from error
    if isinstance(schema, (list, tuple, str, int, float)) or schema is None:
        raise ValueError(f"`schema` must be a dict or a pydantic model class (got {type(schema).__name__})")

    class AsValidated(GenerateJsonSchema):
        """Pydantic's own schemas of decimals, JSON in strings and keys take any string, but its validators do not."""

        def json_schema(self, schema: Any) -> dict[str, Any]:
            raise PydanticInvalidForJsonSchema("a string that holds JSON is not supported")

        def decimal_schema(self, schema: Any) -> dict[str, Any]:
            options = super().decimal_schema(schema)
            return next((one for one in options.get("anyOf", []) if one.get("type") == "number"), options)

        def dict_schema(self, schema: Any) -> dict[str, Any]:
            made = super().dict_schema(schema)
            if schema.get("keys_schema", {}).get("type") == "int":
                made["propertyNames"] = {"pattern": "^(0|-?[1-9][0-9]{0,8})$"}
            return made

    try:
        adapter = schema if isinstance(schema, TypeAdapter) else TypeAdapter(schema)
        return adapter, adapter.json_schema(mode="validation", schema_generator=AsValidated)
    except (PydanticUserError, TypeError) as error:
        raise ValueError(f"`schema` must be a dict or what pydantic has a JSON schema for ({error})") from error


def canvas_inputs(
    priors: StructurePrior | Sequence[StructurePrior | None], num_rows: int, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """
    The inputs of `generate` that hold the answers' form.

    Args:
        priors ([`StructurePrior`] or `Sequence[StructurePrior | None]`):
            One for all rows, or one for each.
        num_rows (`int`):
            Rows of the batch.
        tokenizer (`PreTrainedTokenizerBase`):
            The tokenizer.

    Returns:
        `dict[str, Any]`: `answer_ids` (int64 of shape `(num_rows, answer_length)`), `answer_constraint`, and, if
        canvases differ in length, `answer_attention_mask` (int64 of the same shape): 0 at the padding after shorter
        ones. A row without a prior is as long as the longest canvas.

    Raises:
        ValueError: If the number of priors differs from the rows, none is one, or one cannot be laid out.
    """
    rows = _checked_priors(priors, num_rows)
    canvases = [None if prior is None else prior.canvas(tokenizer) for prior in rows]
    length = max(len(canvas.ids) for canvas in canvases if canvas is not None)
    answers, attended = [], []
    for canvas in canvases:
        ids = [tokenizer.mask_token_id] * length if canvas is None else canvas.ids
        answers.append(ids + [tokenizer.pad_token_id] * (length - len(ids)))
        attended.append([1] * len(ids) + [0] * (length - len(ids)))
    inputs = {"answer_ids": torch.tensor(answers), "answer_constraint": CanvasConstraint(canvases)}
    mask = torch.tensor(attended)
    return inputs if bool(mask.all()) else inputs | {"answer_attention_mask": mask}


def read_answers(
    output: Any,
    priors: StructurePrior | Sequence[StructurePrior | None],
    tokenizer: PreTrainedTokenizerBase,
    return_confidence: bool = False,
) -> Any:
    """What the answers at the end of `output` say; see [`~DimpleProcessor.parse`]."""
    try:
        sequences = torch.as_tensor(getattr(output, "sequences", output))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`output` must be an integer tensor of shape (rows, length) (got {output!r})") from error
    if sequences.ndim != 2 or torch.is_floating_point(sequences):
        raise ValueError(f"`output` must be an integer tensor of shape (rows, length) (got {tuple(sequences.shape)})")
    is_single = isinstance(priors, StructurePrior)
    per_input = _checked_priors(priors, len(sequences) if is_single else None)
    repeats = max(1, len(sequences) // len(per_input))
    rows = [prior for prior in per_input for _ in range(repeats)]
    if len(rows) != len(sequences):
        raise ValueError(f"`prior` must hold one for each of {len(sequences)} rows (got {len(per_input)})")
    lengths = [0 if prior is None else len(prior.canvas(tokenizer).ids) for prior in rows]
    if max(lengths) > sequences.shape[1]:
        raise ValueError(f"`output` must hold the answer's {max(lengths)} positions (got {sequences.shape[1]})")
    answers = sequences[:, -max(lengths) :].tolist()
    values = [
        tokenizer.decode(answer, skip_special_tokens=True)
        if prior is None
        else _read(prior, tokenizer, answer[:length])
        for prior, length, answer in zip(rows, lengths, answers, strict=True)
    ]
    if not return_confidence:
        return values[0] if is_single and len(values) == 1 else values
    if getattr(output, "token_logprobs", None) is None:
        raise ValueError("`output` must have `token_logprobs` for confidences: use `return_dict_in_generate=True`")
    logprobs = output.token_logprobs[:, -max(lengths) :].tolist()
    confidences = [
        None if prior is None else prior.confidences(tokenizer, answer[:length], row[:length])
        for prior, length, answer, row in zip(rows, lengths, answers, logprobs, strict=True)
    ]
    return (values[0], confidences[0]) if is_single and len(values) == 1 else (values, confidences)


def _read(prior: StructurePrior, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Any:
    """What an answer of the prior's form says, or why the class that reads it does not take it."""
    if prior._model is None:
        return prior.read(tokenizer, ids)
    prior.canvas(tokenizer).path(ids)  # raises where the form is another one
    try:
        return prior.read(tokenizer, ids)
    except Exception as error:  # a validator of the caller's may raise anything; it must not cost the other rows
        return error


def _checked_priors(
    priors: StructurePrior | Sequence[StructurePrior | None], num_rows: int | None
) -> Sequence[StructurePrior | None]:
    """One prior a row, as many as `num_rows` if that is known."""
    rows = [priors] * (num_rows or 1) if isinstance(priors, StructurePrior) else priors
    if not isinstance(rows, (list, tuple)) or not all(isinstance(row, StructurePrior | None) for row in rows):
        raise ValueError(f"`structure_prior` must be a StructurePrior or a list of them and None (got {priors!r})")
    if num_rows is not None and len(rows) != num_rows:
        raise ValueError(f"`structure_prior` must hold one for each of {num_rows} rows (got {len(rows)})")
    if all(prior is None for prior in rows):
        raise ValueError("`structure_prior` must hold at least one prior (got None for each row)")
    return rows


def _check_text(text: Any, name: str) -> None:
    """Refuses what is no text, and half characters, which no tokenizer takes."""
    if not isinstance(text, str):
        raise ValueError(f"{name} must be text (got {text!r})")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} must be valid Unicode (got {text!r})") from error


def _slot_of(name: str, arguments: dict[str, Any]) -> Slot:
    try:
        return Slot(**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"slot {name!r}: {error}") from error


def _template_part(
    template: str,
    given: dict[str, Slot],
    prefix: tuple[str, ...],
    found: dict[tuple[str, ...], Slot],
    unused: set[str],
) -> Part:
    """The parts of one template; adds its slots to `found` and takes their names out of `unused`."""
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"the template must be text with slots as {{name:8}} ({error} in {template!r})") from error
    parts: list[Part] = []
    for text, name, spec, conversion in fields:
        prefix_text = ""
        if name is not None:
            if not name.isidentifier() or conversion:
                raise ValueError(f"the template must name its slots, as {{name:8}} (got {name!r} in {template!r})")
            path = (*prefix, name)
            if path in found or (path[0],) in found:
                raise ValueError(f"each name must come once (got {name!r} twice)")
            unused.discard(name)
            slot = found[path] = _inline_slot(name, spec or "", given.get(name))
            # Tokens of words begin with their space, so it goes with the word; numbers have no such tokens.
            if text.endswith(" ") and slot.type_name in ("str", "bool"):
                text, prefix_text = text[:-1], " "
        parts.append(Literal(text))
        if name is not None:
            parts.append(slot.slot(name, prefix_text))
    return Concat(tuple(parts))


def _inline_slot(name: str, spec: str, given: Slot | None) -> Slot:
    """The slot that `{name:spec}` describes, with what `slots` says of it."""
    arguments: dict[str, Any] = {} if given is None else dict(vars(given))
    for item in filter(None, spec.split(":")):
        lengths = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if lengths is None and item not in _TYPES:
            raise ValueError(
                f"slot {name!r} must be followed by a length such as 16 or 8-32, or by a type of {', '.join(_TYPES)} "
                f"(got {item!r})"
            )
        if lengths is None:
            arguments["type"] = item
        else:
            first, last = lengths.groups()
            arguments["length"] = int(first) if last is None else (int(first), int(last))
    return _slot_of(name, arguments)


__all__ = ["OptionalPart", "RepeatedPart", "Slot", "StructurePrior"]

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

Source: "structure priors" in Dimple, section 4.4 (arXiv 2505.16990), which positions fixed tokens by hand; here a
prior also says what the gaps may hold. A prior becomes a canvas (`answer_layout_dimple`) when the processor meets it
with a tokenizer. Imported by `processing_dimple`.
"""

import datetime
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase

from .answer_layout_dimple import Canvas, CanvasConstraint
from .answer_parts_dimple import (
    EMPTY,
    FORMATS,
    Choices,
    Either,
    Gap,
    Number,
    Part,
    String,
    Text,
    gaps_of,
    lay_out,
    lay_out_compactly,
    repeated,
    with_prefix,
)
from .answer_parts_dimple import Sequence as PartSequence
from .schema_dimple import SchemaReader
from .token_dfa_dimple import Vocabulary

#: How an answer's values lie on the canvas.
LAYOUTS = {"aligned": lay_out, "compact": lay_out_compactly}

#: `type` itself, where a field of that name hides it.
_Type = type

#: What a slot can be: name of a type -> value that it may hold (`None`: free text), and how its text is read.
_TYPES: dict[str, Any] = {
    "str": (None, str),
    "int": (Number(None, None, is_integer=True), int),
    "float": (Number(None, None, is_integer=False), float),
    "bool": (Choices(("true", "false")), lambda text: text == "true"),
    "date": (String(FORMATS["date"]), datetime.date.fromisoformat),
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
            A regular expression that its whole text matches, in the dialect of `re` without look-around, back
            references and flags.
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
        lengths = (0, self.length or 1) if isinstance(self.length, int | None) else tuple(self.length)
        if self.length == 0 or len(lengths) != 2 or lengths[0] < 0 or lengths[1] < 1:
            raise ValueError(f"`length` must be at least 1 token, or a range of such (got {self.length!r})")
        if lengths[0] > lengths[1]:
            raise ValueError(f"`length` must not be a range upside down (got {self.length!r})")
        if self.type_name not in _TYPES:
            raise ValueError(f"`type` must be one of {', '.join(_TYPES)} (got {self.type!r})")
        given = [self.choices is not None, self.pattern is not None, self.type_name != "str"]
        if sum(given) > 1:
            raise ValueError("a slot must have only one of `choices`, `pattern` and a `type` (got several)")
        if self.choices is not None:
            if isinstance(self.choices, str) or not self.choices:
                raise ValueError(f"`choices` must be a list of at least one text (got {self.choices!r})")
            for choice in self.choices:
                if not isinstance(choice, str) or not choice:
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

    def gap(self, name: str, lead: str) -> Gap:
        """The gap of a slot called `name`; a space before it in `lead`."""
        shortest, longest = self.bounds
        value = _TYPES[self.type_name][0]
        if self.choices is not None:
            value = Choices(tuple(self.choices))
        elif self.pattern is not None or value is None:
            value = String(self.pattern)
            if longest is None and self.pattern is None:
                raise ValueError(f"slot {name!r} must have a length, as in {{{name}:16}}")
        return Gap(value, f"slot {name!r}", longest, shortest, label=(name,), lead=lead)

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
        at_least (`int`, *optional*, defaults to 0), at_most (`int`):
            How often it comes.
        separator (`str`, *optional*, defaults to `""`):
            Text between two repetitions.
    """

    name: str
    template: str
    at_most: int
    at_least: int = 0
    separator: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.at_least <= self.at_most or self.at_most < 1:
            raise ValueError(
                f"`at_least` and `at_most` of {self.name!r} must satisfy 0 <= at_least <= at_most and at_most >= 1 "
                f"(got {self.at_least} and {self.at_most})"
            )


class StructurePrior:
    """
    The form that an answer must have. Made by [`~StructurePrior.from_template`],
    [`~StructurePrior.from_json_schema`] or [`~StructurePrior.from_anchors`]; used by [`DimpleProcessor`].

    Whatever the weights, and in whatever order the positions of the answer are unmasked, the answer has this form: the
    fixed text stands where it should, and each gap holds a value of its kind. A gap that needs less than its room is
    filled up with the tokenizer's padding token, which [`~DimpleProcessor.parse`] and `skip_special_tokens` leave out.
    """

    def __init__(self, part: Part, slots: dict[tuple[str, ...], Slot], model: Any = None, layout: str = "aligned"):
        # Use the class methods; here is only what they share.
        if layout not in LAYOUTS:
            raise ValueError(f"`layout` must be one of {', '.join(LAYOUTS)} (got {layout!r})")
        self._part = part
        self._slots = slots
        self._model = model
        self.layout = layout
        self._canvases: WeakKeyDictionary[Vocabulary, Canvas] = WeakKeyDictionary()

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
        ...     "Total: {total:int}\nPaid: {paid}", RepeatedPart("items", "\n- {item:8}", at_most=5),
        ...     slots={"paid": Slot(choices=["yes", "no"])},
        ... )
        ```
        """
        if not parts:
            raise ValueError("`parts` must hold at least one template (got none)")
        given = {
            name: slot if isinstance(slot, Slot) else _slot_of(name, slot) for name, slot in (slots or {}).items()
        }
        found: dict[tuple[str, ...], Slot] = {}
        unused = set(given)
        built: list[Part] = []
        for part in parts:
            prefix: tuple[str, ...] = (part.name,) if isinstance(part, RepeatedPart) else ()
            template = part if isinstance(part, str) else part.template
            content = _template_part(template, given, prefix, found, unused)
            if isinstance(part, OptionalPart):
                content = Either((content, EMPTY))
            if isinstance(part, RepeatedPart):
                if (part.name,) in found:
                    raise ValueError(f"each name must come once (got {part.name!r} twice)")
                if not any(path[0] == part.name for path in found):
                    raise ValueError(f"{part.name!r} must have a slot (got {template!r})")
                content = with_prefix(
                    repeated(content, Text(part.separator), part.at_least, part.at_most), (part.name,)
                )
                found.setdefault(prefix, Slot(length=1))  # marks the list itself
            built.append(content)
        if unused:
            raise ValueError(f"`slots` must name slots of the template (got {sorted(unused)})")
        return cls(PartSequence(tuple(built)), found)

    @classmethod
    def from_anchors(cls, anchors: Mapping[int, str], length: int) -> "StructurePrior":
        """
        Free text of a given length with texts at given positions: a stem for the beginning, an ending for the end.

        Args:
            anchors (`Mapping[int, str]`):
                Position of its first token -> text. Positions from 0 count from the beginning; -k is the position k
                tokens before the end.
            length (`int`):
                Positions of the answer. What the free text does not need is filler.

        Returns:
            [`StructurePrior`]. It is read as a dict: `"text"`, the whole answer, and `"gap0"`, `"gap1"`, ... the free
            texts between the anchors.

        Raises:
            ValueError: If `length` is less than 1, or a position lies outside of it. (That texts overlap shows when
            the
                processor meets the tokenizer.)

        Example:

        ```python
        >>> from dimple_hf import StructurePrior

        >>> prior = StructurePrior.from_anchors({0: "Reasoning:", -8: "\\nThe answer is"}, length=64)
        ```
        """
        if length < 1:
            raise ValueError(f"`length` must be at least 1 (got {length})")
        placed: dict[int, str] = {}
        for position, text in anchors.items():
            absolute = position + length if position < 0 else position
            if not 0 <= absolute < length or absolute in placed:
                raise ValueError(f"`anchors` must lie on different positions of {length} (got {position})")
            placed[absolute] = text
        parts: list[Part] = []
        slots: dict[tuple[str, ...], Slot] = {}
        for position, text in sorted(placed.items()):
            if position or slots:
                name = f"gap{len(slots)}"
                slots[(name,)] = Slot(length=length)
                parts.append(Gap(String(), f"the text before {text!r}", until=position, label=(name,)))
            parts.append(Text(text))
        name = f"gap{len(slots)}"
        slots[(name,)] = Slot(length=length)
        parts.append(Gap(String(), "the text at the end", until=length, label=(name,)))
        return cls(PartSequence(tuple(parts)), slots)

    @classmethod
    def from_json_schema(
        cls,
        schema: dict[str, Any] | type,
        *,
        room: int = 16,
        max_items: int = 4,
        separators: tuple[str, str] = (",", ":"),
        layout: str = "compact",
    ) -> "StructurePrior":
        """
        An answer that is a JSON text and valid for a schema.

        Supported, of draft 2020-12: `type` (also a list), `properties`, `required`, `additionalProperties`, `items`,
        `minItems`, `maxItems`, `minLength`, `maxLength`, `pattern`, `format` (`date`, `time`, `date-time`), `minimum`,
        `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `enum`, `const`, `anyOf`, `allOf` of one schema, local
        `$ref` that do not recurse, and annotations. Properties stand in the order of the schema.

        Args:
            schema (`dict` or `type`):
                A JSON schema, or a pydantic model class.
            room (`int`, *optional*, defaults to 16):
                Most tokens of a string that has no `pattern` or `format`. The keyword `x-max-tokens` beside a value's
                type says it for that value.
            max_items (`int`, *optional*, defaults to 4):
                Most items of an array without `maxItems`.
            separators (`tuple[str, str]`, *optional*, defaults to `(",", ":")`):
                What stands between items, and between a name and its value, as for `json.dumps`.
            layout (`str`, *optional*, defaults to `"compact"`):
                `"compact"`: the text has no fillers inside, and moves with the lengths of the values.
                `"aligned"`: each value has positions of its own, all fixed text is placed before the first step; only
                for models that have seen fillers inside answers.

        Returns:
            [`StructurePrior`]. It is read as what the JSON text stands for, or as an object of the pydantic class.

        Raises:
            ValueError: If the schema uses what is not supported, is recursive, nested too deeply, or allows nothing;
                the message names the JSON path.
        """
        model = schema if isinstance(schema, type) else None
        if model is not None:
            if not hasattr(model, "model_json_schema"):
                raise ValueError(f"`schema` must be a dict or a pydantic model class (got {model.__name__})")
            schema = model.model_json_schema()
        if not isinstance(schema, dict):
            raise ValueError(f"`schema` must be a dict or a pydantic model class (got {type(schema).__name__})")
        for name, value in (("room", room), ("max_items", max_items)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1 (got {value})")
        for separator, mark in zip(separators, ",:", strict=True):
            if separator.strip(" \t\n\r") != mark:
                raise ValueError(f"`separators` must be {mark!r} with white space around (got {separator!r})")
        part = SchemaReader(schema, room, max_items, separators).part()
        return cls(part, {}, model or dict, layout)

    def canvas(self, tokenizer: PreTrainedTokenizerBase) -> Canvas:
        """
        The prior's positions for one tokenizer; made once.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                A byte-level BPE tokenizer with a mask token and a padding token.

        Raises:
            ValueError: If a slot cannot hold any of its values (a choice has more tokens than the slot, a pattern
                matches nothing as short), or texts overlap.
        """
        vocabulary = Vocabulary.of(tokenizer)
        if vocabulary not in self._canvases:
            canvas = LAYOUTS[self.layout](self._part, vocabulary)
            if not canvas.ids:
                raise ValueError("the prior must hold at least one token (it is empty)")
            self._canvases[vocabulary] = canvas
        return self._canvases[vocabulary]

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
            ValueError: If the answer does not have the prior's form: it was not generated under it, or not to its end.
        """
        canvas = self.canvas(tokenizer)
        path = canvas.path(ids)
        text = canvas.text(ids)
        if self._model is not None:
            return json.loads(text) if self._model is dict else self._model.model_validate_json(text)
        values = self._absent_values()
        labels = {gap.label: gap for gap in gaps_of(self._part) if gap.label is not None}
        for piece in path:
            if piece.label is None:
                continue
            content = canvas.text(ids[piece.start : piece.end]).removeprefix(labels[piece.label].lead)
            value = self._slots[tuple(step for step in piece.label if isinstance(step, str))].read(content)
            if len(piece.label) == 1:
                values[piece.label[0]] = value
                continue
            name, index, slot_name = piece.label
            items = values[name]
            items += [{} for _ in range(index + 1 - len(items))]
            items[index][slot_name] = value
        if "text" not in values and any(gap.until is not None for gap in labels.values()):
            values = {"text": text, **values}
        return values

    def write(self, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[bool]]:
        """
        An answer as it lies on the canvas, for training: a model that learns to fill a canvas fills it well.

        Args:
            tokenizer (`PreTrainedTokenizerBase`):
                The tokenizer.
            text (`str`):
                The answer, in the prior's form.

        Returns:
            `tuple(list[int], list[bool])`: A token for each position of the canvas, and whether it is to be generated
            (`False`: fixed text, which stands there before the first step).

        Raises:
            ValueError: If the text does not have the prior's form, or a value does not fit its positions.
        """
        canvas = self.canvas(tokenizer)
        return canvas.fill(text), [token == tokenizer.mask_token_id for token in canvas.ids]

    def _absent_values(self) -> dict[str, Any]:
        repeated_names = {path[0] for path in self._slots if len(path) == 2}
        return {path[0]: [] if path[0] in repeated_names else None for path in self._slots}


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
    sequences: Any, priors: StructurePrior | Sequence[StructurePrior | None], tokenizer: PreTrainedTokenizerBase
) -> Any:
    """What the answers at the end of `sequences` say; see [`~DimpleProcessor.parse`]."""
    sequences = torch.as_tensor(sequences)
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
    values = []
    for prior, length, sequence in zip(rows, lengths, sequences[:, -max(lengths) :].tolist(), strict=True):
        if prior is None:
            values.append(tokenizer.decode(sequence, skip_special_tokens=True))
        else:
            values.append(prior.read(tokenizer, sequence[:length]))
    return values[0] if is_single and len(values) == 1 else values


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
        lead = ""
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
                text, lead = text[:-1], " "
        parts.append(Text(text))
        if name is not None:
            parts.append(slot.gap(name, lead))
    return PartSequence(tuple(parts))


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

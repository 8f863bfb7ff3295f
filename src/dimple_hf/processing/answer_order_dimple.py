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
"""The order in which an answer can have the properties of a JSON value: objects with the same properties are equal."""

import json
from collections.abc import Iterator
from typing import Any

from .answer_layout_dimple import Canvas
from .token_automaton_dimple import NEVER, StateSet

#: Most bytes that are tried for one value.
MAX_TRIED_BYTES = 20_000


class _Number(str):
    """A number as it is written."""


#: How many bytes of the fixed beginning have come, and the states after it.
_Reached = tuple[int, StateSet]


def text_in_order(canvas: Canvas, text: str, separators: tuple[str, str]) -> str | None:
    """
    A JSON text with the properties of its objects in an order that a canvas has.

    Args:
        canvas (`Canvas`):
            A compact canvas.
        text (`str`):
            A JSON text.
        separators (`tuple[str, str]`):
            As for `json.dumps`.

    Returns:
        `str`, *optional*: `None` if the text is no JSON, has a property twice in one object or is nested too deeply,
        or no order was found. Its length is not considered.
    """
    if not canvas.segments:
        return None
    try:
        value = json.loads(text, parse_float=_Number, parse_int=_Number, object_pairs_hook=_object)
        return next((found for found, _ in _Search(canvas, separators).value(value)), None)
    except (ValueError, RecursionError):
        return None
    finally:
        canvas.segments[0].automaton.trim()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose properties is lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a property must come once")
    return found


class _Search:
    """Tries the properties of each object in the given order, and others where the canvas does not have it."""

    def __init__(self, canvas: Canvas, separators: tuple[str, str]) -> None:
        self.comma, self.colon = separators
        self.segment = canvas.segments[0]
        self.beginning = canvas.text(canvas.ids[: self.segment.start]).encode()
        self.byte_ids = canvas.vocabulary.byte_ids
        self.num_left = MAX_TRIED_BYTES

    def value(self, value: Any) -> Iterator[tuple[str, _Reached]]:
        """The texts of a value that a canvas can begin with."""
        yield from self._value(value, (0, self.segment.automaton.start))

    def _after(self, text: str, reached: _Reached) -> _Reached | None:
        """Where the canvas is after a text; `None` if it does not have it there."""
        count, states = reached
        for byte in text.encode():
            self.num_left -= 1
            if self.num_left < 0:
                return None
            if count < len(self.beginning):
                if self.beginning[count] != byte:
                    return None
                count += 1
                continue
            states = self.segment.automaton.after(states, self.byte_ids[byte])
            if not (states.values < NEVER).any():
                return None
        return count, states

    def _value(self, value: Any, reached: _Reached) -> Iterator[tuple[str, _Reached]]:
        if isinstance(value, dict):
            yield from self._inside("{", [(key, value[key]) for key in value], "}", reached, any_order=True)
        elif isinstance(value, list):
            yield from self._inside("[", [(None, item) for item in value], "]", reached, any_order=False)
        else:
            text = str(value) if isinstance(value, _Number) else json.dumps(value, ensure_ascii=False)
            after = self._after(text, reached)
            if after is not None:
                yield text, after

    def _inside(
        self, opening: str, items: list[tuple[str | None, Any]], closing: str, reached: _Reached, any_order: bool
    ) -> Iterator[tuple[str, _Reached]]:
        """An array or object: `opening` and then its items; of an object, any of them may be the next."""
        if not items:
            text = opening + closing if opening in "[{" else closing
            after = self._after(text, reached)
            if after is not None:
                yield text, after
            return
        for index in range(len(items) if any_order else 1):
            key, item = items[index]
            text = opening if key is None else opening + json.dumps(key, ensure_ascii=False) + self.colon
            after = self._after(text, reached)
            if after is None:
                continue
            rest = items[:index] + items[index + 1 :]
            for item_text, after_item in self._value(item, after):
                for rest_text, after_rest in self._inside(self.comma, rest, closing, after_item, any_order):
                    yield text + item_text + rest_text, after_rest

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
"""The confidence of each value of an answer, from the probabilities of its tokens."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from json import JSONDecoder
from typing import Any

from .answer_layout_dimple import Canvas, Segment

_SCALAR = re.compile(r"-?[0-9.eE+-]+|true|false|null")
_SPACE = re.compile(r"[ \t\n\r]*")


def confidences_of_slots(
    path: Iterable[Segment], token_logprobs: Sequence[float]
) -> Iterable[tuple[tuple[Any, ...], float]]:
    """The label of each labelled segment, and the probability of its tokens."""
    for segment in path:
        if segment.label is not None:
            yield segment.label, _probability(token_logprobs[segment.start : segment.end])


def confidences_of_json(canvas: Canvas, ids: Sequence[int], token_logprobs: Sequence[float]) -> Any:
    """
    A tree of the shape of the answer's JSON value, with a probability instead of each value that is neither an array
    nor an object.

    Args:
        canvas (`Canvas`):
            The positions.
        ids (`Sequence[int]`):
            The answer's tokens.
        token_logprobs (`Sequence[float]`):
            Their log-probabilities. A token that spans the border of two values counts for both.
    """
    ends, text = [], ""
    data = b""
    for token in ids:
        data += canvas.vocabulary.to_bytes([token])
        ends.append(len(data))
    text = data.decode()
    # Offsets in the text are of characters, those of tokens of bytes.
    byte_of = [0]
    for char in text:
        byte_of.append(byte_of[-1] + len(char.encode()))

    def probability(start: int, end: int) -> float:
        low, high = byte_of[start], byte_of[end]
        begins = [0, *ends[:-1]]
        return _probability(
            [p for p, first, last in zip(token_logprobs, begins, ends, strict=True) if first < high and last > low]
        )

    def value(start: int) -> tuple[Any, int]:
        start = _skip(text, start)
        if text[start] == '"':
            _, end = JSONDecoder().raw_decode(text, start)
            return probability(start, end), end
        if text[start] not in "[{":
            match = _SCALAR.match(text, start)
            assert match is not None
            return probability(start, match.end()), match.end()
        return container(start)

    def container(start: int) -> tuple[Any, int]:
        is_object = text[start] == "{"
        found: Any = {} if is_object else []
        start = _skip(text, start + 1)
        while text[start] not in "]}":
            if is_object:
                name, start = JSONDecoder().raw_decode(text, start)
                found[name], start = value(_skip(text, start) + 1)
            else:
                inner, start = value(start)
                found.append(inner)
            start = _skip(text, start)
            if text[start] == ",":
                start = _skip(text, start + 1)
        return found, start + 1

    json.loads(text)  # raises where the text is none
    return value(0)[0]


def _skip(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return start if match is None else match.end()


def _probability(logprobs: Sequence[float]) -> float:
    return math.exp(sum(logprob for logprob in logprobs if not math.isnan(logprob)))

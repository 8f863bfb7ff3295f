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
"""Questions written as JSON, in the form of OpenAI's `POST /v1/decisions` (`openai.types.decision_create_params`)."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from .questions import Choice, Option, Predicate, Question, Score

MAX_QUESTIONS = 400
"""Most questions of a call, as in OpenAI's API."""

MAX_OPTIONS = 255
"""Most options of a question, as in OpenAI's API."""


def questions_from_json(values: Any) -> list[Question]:
    """
    Reads questions.

    Args:
        values (`list[dict]`):
            `{"type": "predicate", "instructions": ...}`, `{"type": "choice", "instructions": ..., "choices":
            [{"value": ..., "description": ...}, ...]}` or `{"type": "score", "instructions": ..., "levels":
            [{"label": ..., "description": ...}, ...]}`, each with an optional `name`. An option may be a plain value.
            `instructions` is a text or a list of `{"type": "input_text", "text": ...}` and
            `{"type": "input_json", "data": ...}`.

    Returns:
        `list[Predicate | Choice | Score]`

    Raises:
        ValueError: If they are not written so. The message begins with the path, such as `questions[2].choices[0]`.
    """
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_QUESTIONS:
        got = len(values) if isinstance(values, list) else type(values).__name__
        raise ValueError(f"`questions` must be a list of 1 to {MAX_QUESTIONS} questions (got {got})")
    return [_read_question(value, f"questions[{index}]") for index, value in enumerate(values)]


def _read_question(value: Any, path: str) -> Question:
    if not isinstance(value, Mapping):
        raise ValueError(f"`{path}` must be an object (got {type(value).__name__})")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"`{path}.type` must be one of {', '.join(_READERS)} (got {kind!r})")
    name = value.get("name")
    if not isinstance(name, str | None):
        raise ValueError(f"`{path}.name` must be text (got {name!r})")
    instructions = _read_instructions(value.get("instructions"), f"{path}.instructions")
    try:
        return _READERS[kind](value, path, instructions, name)
    except ValueError as error:
        message = str(error)
        raise error if path in message else ValueError(f"`{path}`: {message}") from error


def _read_predicate(value: Mapping[str, Any], path: str, instructions: str, name: str | None) -> Question:
    _refuse_unknown(value, path, ())
    return Predicate(instructions, name)


def _read_choice(value: Mapping[str, Any], path: str, instructions: str, name: str | None) -> Question:
    _refuse_unknown(value, path, ("choices",))
    return Choice(instructions, _read_options(value.get("choices"), f"{path}.choices", "value"), name)


def _read_score(value: Mapping[str, Any], path: str, instructions: str, name: str | None) -> Question:
    _refuse_unknown(value, path, ("levels",))
    return Score(instructions, _read_options(value.get("levels"), f"{path}.levels", "label"), name)


_READERS: dict[str, Callable[[Mapping[str, Any], str, str, str | None], Question]] = {
    "predicate": _read_predicate,
    "choice": _read_choice,
    "score": _read_score,
}


def _refuse_unknown(value: Mapping[str, Any], path: str, own: tuple[str, ...]) -> None:
    known = ("type", "name", "instructions", *own)
    for key in value:
        if key not in known:
            raise ValueError(f"`{path}` must hold {', '.join(known)} only (got {key!r})")


def _read_instructions(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{path}` must be text or a list of parts (got {value!r})")
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "input_text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "input_json" and isinstance(part.get("data"), dict | list):
            texts.append(json.dumps(part["data"], ensure_ascii=False))
        else:
            raise ValueError(
                f"`{path}[{index}]` must be an input_text or input_json part; put images into the input (got {kind!r})"
            )
    return " ".join(texts)


def _read_options(values: Any, path: str, key: str) -> list[Option]:
    if not isinstance(values, list) or not 2 <= len(values) <= MAX_OPTIONS:
        got = len(values) if isinstance(values, list) else type(values).__name__
        raise ValueError(f"`{path}` must be a list of 2 to {MAX_OPTIONS} options (got {got})")
    options = []
    for index, value in enumerate(values):
        value = value if isinstance(value, Mapping) else {key: value}
        if key not in value or not set(value) <= {key, "description"}:
            raise ValueError(f"`{path}[{index}]` must hold `{key}` and optionally `description` (got {dict(value)!r})")
        try:
            options.append(Option(value[key], value.get("description")))
        except ValueError as error:
            raise ValueError(f"`{path}[{index}]`: {error}") from error
    return options

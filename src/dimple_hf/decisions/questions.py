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
"""The three types of decision: a statement that may hold, a choice among options, a score on ordered levels.

Their fields are those of OpenAI's `POST /v1/decisions` (`openai.types.decision_create_params`).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """
    One option of a question.

    Args:
        value (`str` or `bool`):
            What the answer is when this option is chosen. The text `"true"` and the boolean `True` are two values.
        description (`str`, *optional*):
            What the option means.

    Raises:
        ValueError: If `value` is neither text nor boolean, or a text is blank.
    """

    value: str | bool
    description: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.value, str | bool):
            raise ValueError(f"`value` of an option must be text or a boolean (got {self.value!r})")
        if isinstance(self.value, str):
            _check_text("value", self.value)
        if self.description is not None:
            _check_text("description", self.description)

    @property
    def text(self) -> str:
        """The value as text, with its description after a colon."""
        value = self.value if isinstance(self.value, str) else str(self.value).lower()
        return value if self.description is None else f"{value}: {self.description}"


@dataclass(frozen=True)
class Predicate:
    """
    How likely is it that a statement about the input is true?

    Args:
        instructions (`str`):
            The statement, or a question that is answered with yes or no.
        name (`str`, *optional*):
            Name of the answer.

    Raises:
        ValueError: If `instructions` is blank.
    """

    instructions: str
    name: str | None = None

    def __post_init__(self) -> None:
        _check_text("instructions", self.instructions)

    @property
    def options(self) -> tuple[Option, ...]:
        """Yes, then no."""
        return Option("yes"), Option("no")


@dataclass(frozen=True)
class Choice:
    """
    Which of the options fits the input?

    Args:
        instructions (`str`):
            The question.
        choices (`Sequence[str | bool | Option]`):
            Two or more options with different values.
        name (`str`, *optional*):
            Name of the answer.

    Raises:
        ValueError: If `instructions` is blank, there are fewer than two choices, or a value comes twice.
    """

    instructions: str
    choices: Sequence[str | bool | Option]
    name: str | None = None

    def __post_init__(self) -> None:
        _check_text("instructions", self.instructions)
        _check_options("choices", self.choices)

    @property
    def options(self) -> tuple[Option, ...]:
        """The choices, in their order."""
        return _as_options(self.choices)


@dataclass(frozen=True)
class Score:
    """
    Where does the input stand on a scale?

    Args:
        instructions (`str`):
            What is rated.
        levels (`Sequence[str | Option]`):
            Two or more different levels, from the lowest, which counts 0.
        name (`str`, *optional*):
            Name of the answer.

    Raises:
        ValueError: If `instructions` is blank, there are fewer than two levels, a level comes twice or is no text.
    """

    instructions: str
    levels: Sequence[str | Option]
    name: str | None = None

    def __post_init__(self) -> None:
        _check_text("instructions", self.instructions)
        _check_options("levels", self.levels)
        for option in self.options:
            if not isinstance(option.value, str):
                raise ValueError(f"`levels` must be texts (got {option.value!r})")

    @property
    def options(self) -> tuple[Option, ...]:
        """The levels, in their order."""
        return _as_options(self.levels)


Question = Predicate | Choice | Score


def _as_options(values: Sequence[str | bool | Option]) -> tuple[Option, ...]:
    return tuple(value if isinstance(value, Option) else Option(value) for value in values)


def _check_text(name: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"`{name}` must be a text that is not blank (got {text!r})")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half characters, which JSON can spell and no tokenizer takes
        raise ValueError(f"`{name}` must be valid Unicode (got {text!r})") from error


def _check_options(name: str, values: Sequence[str | bool | Option]) -> None:
    # A set has no order, and what a mapping holds beside its keys would be lost.
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < 2:
        raise ValueError(f"`{name}` must be a list of at least 2 options (got {values!r})")
    seen = set()
    for option in _as_options(values):
        key = (type(option.value), option.value)
        if key in seen:
            raise ValueError(f"`{name}` must have different values (got {option.value!r} twice)")
        seen.add(key)

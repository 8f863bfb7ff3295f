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
"""Answers to typed questions: a probability for each option.

`to_dict` writes them as OpenAI's `POST /v1/decisions` does (`openai.types.decision`), with `label_mass` beside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .questions import Predicate, Question, Score


@dataclass(frozen=True)
class OptionProbability:
    """
    Args:
        value (`str` or `bool`):
            Value of the option.
        probability (`float`):
            In [0, 1]; those of a question sum to 1.
    """

    value: str | bool
    probability: float


@dataclass(frozen=True)
class PredicateAnswer:
    """
    Args:
        probability (`float`):
            Probability that the statement is true, in [0, 1].
        label_mass (`float`):
            Probability in [0, 1] that the model gave to all labels together before they were normalised. A small one
            means that the model would rather have answered something else.
        name (`str`, *optional*):
            Name of the question.
    """

    probability: float
    label_mass: float
    name: str | None = None

    @property
    def option_probabilities(self) -> tuple[float, ...]:
        """Probabilities of yes and no."""
        return self.probability, 1 - self.probability

    @property
    def confidence(self) -> float:
        """Probability of the likelier of yes and no."""
        return max(self.probability, 1 - self.probability)

    def to_dict(self) -> dict[str, Any]:
        """The answer in OpenAI's form."""
        return {
            "type": "predicate",
            "name": self.name,
            "probability": self.probability,
            "label_mass": self.label_mass,
        }


@dataclass(frozen=True)
class OptionsAnswer:
    """
    An answer with a probability for each of several options.

    Args:
        probabilities (`tuple[OptionProbability, ...]`):
            One for each option, in the question's order; the levels of a score from the lowest.
        label_mass (`float`):
            See [`PredicateAnswer`].
        name (`str`, *optional*):
            Name of the question.
    """

    probabilities: tuple[OptionProbability, ...]
    label_mass: float
    name: str | None = None

    @property
    def option_probabilities(self) -> tuple[float, ...]:
        """Probabilities of the options, in the question's order."""
        return tuple(option.probability for option in self.probabilities)

    @property
    def confidence(self) -> float:
        """Probability of the most probable option."""
        return max(self.option_probabilities)


class ChoiceAnswer(OptionsAnswer):
    """An [`OptionsAnswer`] to a [`Choice`]."""

    @property
    def choice(self) -> str | bool:
        """Value of the most probable choice."""
        return max(self.probabilities, key=lambda option: option.probability).value

    def to_dict(self) -> dict[str, Any]:
        """The answer in OpenAI's form."""
        return {
            "type": "choice",
            "name": self.name,
            "choice": self.choice,
            "confidence": self.confidence,
            "probabilities": [
                {"value": option.value, "probability": option.probability} for option in self.probabilities
            ],
            "label_mass": self.label_mass,
        }


class ScoreAnswer(OptionsAnswer):
    """An [`OptionsAnswer`] to a [`Score`]."""

    @property
    def score(self) -> float:
        """Expected level, where the lowest is 0 and the highest is the number of levels less 1."""
        return sum(level * option.probability for level, option in enumerate(self.probabilities))

    def to_dict(self) -> dict[str, Any]:
        """The answer in OpenAI's form."""
        return {
            "type": "score",
            "name": self.name,
            "score": self.score,
            "confidence": self.confidence,
            "probabilities": [
                {"label": option.value, "value": level, "probability": option.probability}
                for level, option in enumerate(self.probabilities)
            ],
            "label_mass": self.label_mass,
        }


Answer = PredicateAnswer | ChoiceAnswer | ScoreAnswer


def answer_of(question: Question, probabilities: Sequence[float], label_mass: float) -> Answer:
    """
    Builds the answer to a question.

    Args:
        question ([`Predicate`], [`Choice`] or [`Score`]):
            The question.
        probabilities (`Sequence[float]`):
            One for each of its options, in order.
        label_mass (`float`):
            See [`PredicateAnswer`].

    Returns:
        [`PredicateAnswer`], [`ChoiceAnswer`] or [`ScoreAnswer`]
    """
    if isinstance(question, Predicate):
        return PredicateAnswer(probabilities[0], label_mass, question.name)
    options = tuple(
        OptionProbability(option.value, probability)
        for option, probability in zip(question.options, probabilities, strict=True)
    )
    answer_type = ScoreAnswer if isinstance(question, Score) else ChoiceAnswer
    return answer_type(options, label_mass, question.name)

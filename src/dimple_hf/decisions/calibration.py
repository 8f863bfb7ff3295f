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
"""Calibration of decisions: one temperature for each type of question, and how good probabilities are.

Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599), section 4.2. It keeps
which option is most probable. Fitting and scores need the extra `decisions`.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file

from ..data.whole_file import whole_file
from .questions import Choice, Predicate, Question, Score

CALIBRATION_NAME = "decision_calibration.json"
"""Name of the file beside a checkpoint's weights."""

QUESTION_TYPES: dict[type, str] = {Predicate: "predicate", Choice: "choice", Score: "score"}

#: Options of [`decide`] that a calibration holds for.
WAYS = ("independent", "reading")

TEMPERATURE_RANGE = (0.05, 20.0)


@dataclass(frozen=True)
class Calibration:
    """
    Temperatures by which log-probabilities of options are divided.

    Args:
        temperatures (`dict[str, float]`):
            `"predicate"`, `"choice"` and `"score"` -> positive temperature; 1 where a type is missing.
        independent (`bool`, *optional*), reading (`str`, *optional*):
            The options of [`decide`] that the temperatures were fitted with, and hold for; `None`: not known.

    Raises:
        ValueError: If a type is unknown, a temperature is not positive and finite, or an option is out of range.
    """

    temperatures: Mapping[str, float] = field(default_factory=dict)
    independent: bool | None = None
    reading: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.independent, bool | None):
            raise ValueError(f"`independent` must be True, False or None (got {self.independent!r})")
        if self.reading not in ("label", "text", None):
            raise ValueError(f'`reading` must be "label", "text" or None (got {self.reading!r})')
        if not isinstance(self.temperatures, Mapping):
            raise ValueError(f"`temperatures` must map question types to numbers (got {self.temperatures!r})")
        for name, value in self.temperatures.items():
            if name not in QUESTION_TYPES.values():
                raise ValueError(
                    f"`temperatures` must have the keys {', '.join(QUESTION_TYPES.values())} only (got {name!r})"
                )
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise ValueError(f"`temperatures[{name!r}]` must be a positive number (got {value!r})")

    def temperature(self, question: Question) -> float:
        """The temperature of a question's type."""
        return self.temperatures.get(QUESTION_TYPES[type(question)], 1.0)

    @property
    def ways(self) -> dict[str, Any]:
        """The options of [`decide`] that it was fitted with, by name; those that are known."""
        return {name: getattr(self, name) for name in WAYS if getattr(self, name) is not None}

    def check_ways(self, **options: Any) -> None:
        """
        Args:
            **options:
                `independent` and `reading`, with which decisions are to be read.

        Raises:
            ValueError: If it was fitted with others.
        """
        for name, value in self.ways.items():
            if options[name] != value:
                raise ValueError(f"`{name}` must be {value!r}, as the calibration was fitted (got {options[name]!r})")

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `decision_calibration.json` into a folder."""
        path = Path(save_directory, CALIBRATION_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(
                json.dumps({"temperatures": self.temperatures} | self.ways, indent=2, default=dict).encode() + b"\n"
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str]) -> "Calibration":
        """
        Reads `decision_calibration.json`.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Folder or Hub id of a checkpoint.

        Raises:
            ValueError: If the file is not what `save_pretrained` writes.
            OSError: If there is none.
        """
        try:
            path = cached_file(pretrained_model_name_or_path, CALIBRATION_NAME)
        except OSError as error:
            raise OSError(
                "a calibration must be beside the model, as `dimple-hf calibrate` saves it "
                f"(got no {CALIBRATION_NAME} in {pretrained_model_name_or_path})"
            ) from error
        try:
            content = json.loads(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path} must be JSON ({error})") from error
        if not isinstance(content, dict) or not {"temperatures"} <= set(content) <= {"temperatures", *WAYS}:
            raise ValueError(f"{path} must hold `temperatures`, {', '.join(WAYS)} and nothing else (got {content!r})")
        try:
            return cls(**content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def fit_temperature(log_probs: Sequence[torch.Tensor], targets: Sequence[int]) -> float:
    """
    Fits the temperature that makes the right options most likely.

    Args:
        log_probs (`Sequence[torch.FloatTensor]`):
            Log-probabilities of the options of each example, `(num_options,)`.
        targets (`Sequence[int]`):
            Index of the right option of each example.

    Returns:
        `float`: In [0.05, 20].

    Raises:
        ValueError: If there are no examples, a log-probability is NaN, or an index is out of range.
    """
    from scipy.optimize import minimize_scalar

    if len(log_probs) == 0 or len(log_probs) != len(targets):
        raise ValueError(f"`targets` must hold one index for each example (got {len(targets)} for {len(log_probs)})")
    for row, target in zip(log_probs, targets, strict=True):
        if not isinstance(row, torch.Tensor) or bool(row.isnan().any()):
            raise ValueError(f"`log_probs` must be tensors of numbers (got {row!r})")
        if target not in range(len(row)):
            raise ValueError(f"`targets` must be indices of options (got {target} of {len(row)})")

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = [(row.double() / math.exp(log_temperature)).log_softmax(dim=0) for row in log_probs]
        return -sum(float(row[target]) for row, target in zip(scaled, targets, strict=True)) / len(targets)

    bounds = [math.log(bound) for bound in TEMPERATURE_RANGE]
    return math.exp(minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded").x)


def fit_calibration(answered: Sequence[tuple[Question, torch.Tensor, int]]) -> Calibration:
    """
    Fits a temperature for each type of question that occurs.

    Args:
        answered (`Sequence[tuple[Question, torch.FloatTensor, int]]`):
            Questions, log-probabilities of their options, `(num_options,)`, and indices of the right ones.
    """
    temperatures = {}
    for kind, name in QUESTION_TYPES.items():
        of_kind = [(row, target) for question, row, target in answered if isinstance(question, kind)]
        if of_kind:
            temperatures[name] = fit_temperature([row for row, _ in of_kind], [target for _, target in of_kind])
    return Calibration(temperatures)


def expected_calibration_error(confidences: torch.Tensor, correct: torch.Tensor, num_bins: int = 10) -> float:
    """
    Mean distance of confidence and accuracy over bins of equal width, weighted by their number of examples
    (arXiv 1706.04599, equation 3).

    Args:
        confidences (`torch.FloatTensor` of shape `(num_examples,)`):
            In [0, 1].
        correct (`torch.BoolTensor` of shape `(num_examples,)`):
            Whether each answer is right.
        num_bins (`int`, defaults to 10):
            Number of bins.
    """
    return sum(
        abs(mean_confidence - accuracy) * share
        for mean_confidence, accuracy, share in reliability(confidences, correct, num_bins)
    )


def reliability(
    confidences: torch.Tensor, correct: torch.Tensor, num_bins: int = 10
) -> list[tuple[float, float, float]]:
    """
    What a reliability diagram draws.

    Args:
        confidences, correct, num_bins:
            See [`expected_calibration_error`].

    Returns:
        `list[tuple[float, float, float]]`: Mean confidence, accuracy and share of the examples of each bin that has
        any.
    """
    bins = (confidences * num_bins).long().clamp(max=num_bins - 1)
    return [
        (
            float(confidences[bins == number].double().mean()),
            float(correct[bins == number].double().mean()),
            float((bins == number).double().mean()),
        )
        for number in bins.unique().tolist()
    ]


def brier_score(probabilities: Sequence[Sequence[float]], targets: Sequence[int]) -> float:
    """
    Mean squared distance of the probabilities from 1 at the right option and 0 elsewhere (Brier, 1950); in [0, 2].

    Args:
        probabilities (`Sequence[Sequence[float]]`):
            Of the options of each example.
        targets (`Sequence[int]`):
            Index of the right option of each example.
    """
    total = 0.0
    for row, target in zip(probabilities, targets, strict=True):
        total += sum((probability - (index == target)) ** 2 for index, probability in enumerate(row))
    return total / len(targets)


def score_confidence(confidences: torch.Tensor, correct: torch.Tensor) -> dict[str, Any]:
    """
    Scores confidences against correctness. Needs scikit-learn.

    Args:
        confidences (`torch.FloatTensor` of shape `(num_examples,)`):
            In [0, 1].
        correct (`torch.BoolTensor` of shape `(num_examples,)`):
            Whether each answer is right.

    Returns:
        `dict[str, Any]`: `number`, `accuracy`, `ece`, `auroc` (`None` if all are right or all are wrong) and
        `reliability`, see [`reliability`].
    """
    from sklearn.metrics import roc_auc_score

    is_mixed = 0 < int(correct.sum()) < len(correct)
    return {
        "number": len(correct),
        "accuracy": float(correct.double().mean()),
        "ece": expected_calibration_error(confidences, correct),
        "auroc": float(roc_auc_score(correct, confidences)) if is_mixed else None,
        "reliability": reliability(confidences, correct),
    }


def score_decisions(probabilities: Sequence[Sequence[float]], targets: Sequence[int]) -> dict[str, Any]:
    """
    Scores probabilities against right options. Needs scikit-learn.

    Args:
        probabilities (`Sequence[Sequence[float]]`):
            Of the options of each example.
        targets (`Sequence[int]`):
            Index of the right option of each example.

    Returns:
        `dict[str, Any]`: The scores of [`score_confidence`] for the most probable options, and `brier`.
    """
    confidences = torch.tensor([max(row) for row in probabilities])
    correct = torch.tensor([max(row) == row[right] for row, right in zip(probabilities, targets, strict=True)])
    return score_confidence(confidences, correct) | {"brier": brier_score(probabilities, targets)}


def draw_reliability(path: Path, lines: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    """
    Draws a reliability diagram: accuracy over confidence, and the diagonal of perfect calibration. Needs matplotlib.

    Args:
        path (`Path`):
            SVG file to write.
        lines (`Mapping[str, Sequence[tuple[float, float, float]]]`):
            Name of a line -> what [`reliability`] returned. The share of a bin is the size of its point.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.5, 4.5))
    axes.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    for (name, points), color in zip(lines.items(), cycle(("#4c72b0", "#dd8452", "#55a868")), strict=False):
        confidence, accuracy, share = zip(*points, strict=True)
        axes.plot(confidence, accuracy, color=color, linewidth=1)
        axes.scatter(confidence, accuracy, [10 + 400 * value for value in share], color=color, alpha=0.6)
        axes.annotate(name, (confidence[0], accuracy[0]), textcoords="offset points", xytext=(8, -4), color=color)
    axes.set(xlabel="confidence", ylabel="accuracy")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)

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
"""Calibration: the fit finds a temperature that is known, the measures have values that can be counted."""

import json
from pathlib import Path

import pytest
import torch

from dimple_hf.decisions import Calibration, Choice, Predicate
from dimple_hf.decisions.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    reliability,
)


def test_temperature_of_overconfident_probabilities_is_found() -> None:
    """Targets drawn from softmax(x); log-probabilities given as softmax(3 x): the temperature is 3."""
    scores = torch.randn(4000, 4).double() * 2
    targets = scores.softmax(dim=1).multinomial(1).squeeze(1)
    given = list((3 * scores).log_softmax(dim=1))
    temperature = fit_temperature(given, targets.tolist())
    assert temperature == pytest.approx(3, rel=0.05)
    before = torch.stack(given).exp()
    after = torch.stack([row / temperature for row in given]).softmax(dim=1)

    def error(probabilities: torch.Tensor) -> float:
        return expected_calibration_error(probabilities.amax(dim=1), probabilities.argmax(dim=1) == targets)

    assert error(after) < 0.03 < error(before)


def test_temperature_needs_one_target_for_each_example() -> None:
    with pytest.raises(ValueError, match=r"\(got 0 for 0\)"):
        fit_temperature([], [])
    with pytest.raises(ValueError, match=r"\(got 2 of 2\)"):
        fit_temperature([torch.zeros(2)], [2])
    with pytest.raises(ValueError, match=r"\(got 0.5 of 2\)"):
        fit_temperature([torch.zeros(2)], [0.5])
    with pytest.raises(ValueError, match=r"`log_probs` must be tensors of numbers \(got \[0.0, 0.0\]\)"):
        fit_temperature([[0.0, 0.0]], [1])
    with pytest.raises(ValueError, match=r"`log_probs` must be tensors of numbers \(got tensor\(\[nan, nan\]\)\)"):
        fit_temperature([torch.zeros(2) / 0], [1])


def test_calibration_error_and_reliability_are_counted() -> None:
    """Bin [0.9, 1]: confidence 0.95, half right. Bin [0.5, 0.6): 0.5, all right. (0.45 * 2 + 0.5 * 2) / 4."""
    confidences, correct = torch.tensor([0.95, 0.95, 0.5, 0.5]), torch.tensor([True, False, True, True])
    assert expected_calibration_error(confidences, correct) == pytest.approx(0.475)
    assert reliability(confidences, correct) == [
        pytest.approx((0.5, 1.0, 0.5)),
        pytest.approx((0.95, 0.5, 0.5)),
    ]
    assert expected_calibration_error(torch.ones(3), torch.ones(3).bool()) == 0  # 1 is in the last bin


def test_brier_score_is_counted() -> None:
    """0.2^2 + 0.2^2 = 0.08 and 1 + 1 = 2."""
    assert brier_score([[0.8, 0.2], [0.0, 1.0]], [0, 0]) == pytest.approx(1.04)


def test_calibration_is_saved_and_loaded(tmp_path: Path) -> None:
    calibration = Calibration({"choice": 1.5})
    calibration.save_pretrained(tmp_path)
    assert Calibration.from_pretrained(tmp_path) == calibration
    assert calibration.temperature(Choice("?", ["a", "b"])) == 1.5
    assert calibration.temperature(Predicate("?")) == 1.0


def test_calibration_keeps_the_way_of_reading_that_it_was_fitted_with(tmp_path: Path) -> None:
    """Temperatures of another way of reading would be wrong without a sign of it."""
    calibration = Calibration({"choice": 1.5}, independent=True, reading="text")
    calibration.save_pretrained(tmp_path)
    assert Calibration.from_pretrained(tmp_path) == calibration
    calibration.check_ways(independent=True, reading="text")
    with pytest.raises(ValueError, match=r"`independent` must be True, as the calibration was fitted \(got False\)"):
        calibration.check_ways(independent=False, reading="text")
    Calibration({"choice": 1.5}).check_ways(independent=False, reading="text")  # control: not known
    with pytest.raises(ValueError, match=r"`independent` must be True, False or None \(got 1\)"):
        Calibration(independent=1)
    with pytest.raises(ValueError, match=r"""`reading` must be "label", "text" or None \(got 'letter'\)"""):
        Calibration(reading="letter")


def test_missing_calibration_is_named_with_the_command_that_saves_it(tmp_path: Path) -> None:
    with pytest.raises(
        OSError, match=f"as `dimple-hf calibrate` saves it .got no decision_calibration.json in {tmp_path}"
    ):
        Calibration.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "must hold `temperatures`"),
        (json.dumps({"temperatures": {}, "permutations": 2}), "must hold `temperatures`, independent, reading and"),
        (json.dumps({"temperatures": {}, "independent": 1}), "`independent` must be True, False or None"),
        (json.dumps({"temperatures": {}, "reading": "mind"}), "`reading` must be"),
        (json.dumps({"temperatures": {"choice": 0}}), "must be a positive number"),
        (json.dumps({"temperatures": {"vote": 1}}), "must have the keys predicate, choice, score only"),
        (json.dumps({"temperatures": 3}), "must map question types to numbers"),
        (json.dumps({"temperatures": {"choice": True}}), "must be a positive number"),
    ],
)
def test_broken_calibration_files_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "decision_calibration.json").write_text(content)
    with pytest.raises(ValueError, match=f"decision_calibration.json.*{message}"):
        Calibration.from_pretrained(tmp_path)

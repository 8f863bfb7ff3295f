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
"""The small model decides what its card says it has learned, about forms that training never saw."""

import sys
from pathlib import Path
from typing import Any

import pytest

from dimple_hf.decisions import decide

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_data import draw_form, form_rng, render_form
from forms_decisions import DECISIONS, FIXED_OPTIONS

NUM_FORMS = 25
SEED = 6


@pytest.fixture(scope="module")
def asked() -> list[tuple[Any, list[Any], list[int]]]:
    """Images, a question of each type, and the right options. Half of the questions have held-out wordings."""
    examples = []
    for index in range(NUM_FORMS):
        rng = form_rng("test", index, SEED)
        form = draw_form("test", rng)
        questions, right = zip(*(DECISIONS[name](form, "test", rng) for name in FIXED_OPTIONS), strict=True)
        examples.append((render_form(form, "test", rng), list(questions), list(right)))
    return examples


def share_right(answers: list[list[Any]], rights: list[list[int]]) -> float:
    """Share of questions whose most probable option is the right one."""
    hits = [
        max(range(len(answer.option_probabilities)), key=answer.option_probabilities.__getitem__) == right
        for of_form, of_right in zip(answers, rights, strict=True)
        for answer, right in zip(of_form, of_right, strict=True)
    ]
    return sum(hits) / len(hits)


def test_single_questions_are_answered(
    forms_model: Any, forms_processor: Any, asked: list[tuple[Any, list[Any], list[int]]]
) -> None:
    """The control: the answers of other forms are often wrong."""
    answers: Any = [
        decide(forms_model, forms_processor, image, questions, independent=True) for image, questions, _ in asked
    ]
    rights = [right for *_, right in asked]
    assert share_right(answers, rights) >= 0.96
    assert share_right(answers, [*rights[1:], rights[0]]) < 0.8


def test_questions_of_a_row_are_answered(
    forms_model: Any, forms_processor: Any, asked: list[tuple[Any, list[Any], list[int]]]
) -> None:
    """All four at once; the control is that of single questions."""
    answers: Any = [decide(forms_model, forms_processor, image, questions) for image, questions, _ in asked]
    rights = [right for *_, right in asked]
    assert share_right(answers, rights) >= 0.96
    assert share_right(answers, [*rights[1:], rights[0]]) < 0.8

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
"""Tests of the forms as a task of lmms-eval: its rows and scores are those of the project's own evaluation.

The functions of the task alone, which need no lmms-eval; `tests/integrations/test_lmms_eval.py` runs the task in it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms" / "lmms_eval"))

import forms_task
from forms_dataset import forms_row
from forms_evaluation import Answer, score

TASK = Path(forms_task.__file__).parent


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """The rows of two forms, as lmms-eval reads them."""
    return list(forms_task.compose_rows(Dataset.from_list([{"split": "test", "forms": 2}])))


def test_rows_are_the_held_out_forms_with_a_question_of_each_kind(rows: list[dict[str, Any]]) -> None:
    """The first rows are whole forms, so that `--limit` gives a fair sample; their images are the evaluation's."""
    assert [row["kind"] for row in rows] == [*forms_task.KINDS, *forms_task.KINDS]
    for number, row in enumerate(rows):
        expected = forms_row("test", number // len(forms_task.KINDS), kind=row["kind"])
        assert forms_task.doc_to_text(row) == expected["question"]
        assert forms_task.doc_to_target(row) == expected["answer"]
        assert forms_task.doc_to_visual(row)[0].tobytes() == expected["images"][0].tobytes()
    assert rows[0]["image"].tobytes() != rows[len(forms_task.KINDS)]["image"].tobytes()


def test_description_of_the_rows_is_read_by_datasets(tmp_path: Path) -> None:
    """The committed file says how many rows there are; nothing of them is stored."""
    described = Dataset.from_json(str(TASK / "forms.json"), cache_dir=str(tmp_path))
    assert len(forms_task.compose_rows(described)) == 200 * len(forms_task.KINDS)


def test_scores_equal_those_of_the_projects_evaluation(rows: list[dict[str, Any]]) -> None:
    """lmms-eval strips answers before it scores them; with right, wrong and padded answers the shares are the same."""
    right = [row["answer"] for row in rows]
    answers = [f" {answer}\n" if number % 3 else answer[:-1] for number, answer in enumerate(right)]
    points: dict[str, list[tuple[int, int]]] = {}
    for row, answer in zip(rows, answers, strict=True):
        for name, value in forms_task.process_results(row, [answer.strip()]).items():
            points.setdefault(name, []).append(value)
    shares = {name: forms_task.share(values) for name, values in points.items()}

    own = score(rows, [Answer(answer, 1, 1) for answer in answers])
    own.pop("passes_per_token")
    assert shares == own
    assert 0 < min(shares.values(), default=0) or min(shares.values()) == 0 < max(
        shares.values()
    )  # control: no constant


def test_task_lists_every_score_that_a_row_can_have(rows: list[dict[str, Any]]) -> None:
    """lmms-eval drops a score without a metric in the YAML file, and says nothing."""
    text = (TASK / "forms.yaml").read_text().replace("!function ", "")
    metrics = {metric["metric"] for metric in yaml.safe_load(text)["metric_list"]}
    assert metrics == {name for row in rows for name in forms_task.process_results(row, [row["answer"]])}
    assert json.loads(rows[0]["fields"])  # what the scores are counted over

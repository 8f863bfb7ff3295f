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
"""The handwritten forms as a task of lmms-eval: which rows, what is asked, how answers are scored.

Named by `forms.yaml` beside this file, whose `--include_path` is this folder. Rows and scores are those of
`forms_dataset.py` and `forms_scores.py`, so that a score here is a score of `forms_evaluation.py`. Images are drawn
when a row is read: nothing is downloaded or stored.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

sys.path.append(str(Path(__file__).resolve().parent.parent))  # lmms-eval loads this file by its path

from forms_dataset import forms_row
from forms_scores import score_answer

KINDS = ("text", "json", "field", "fields", "rows", "sum")
"""The kinds of question that are asked in words; a schema is no part of lmms-eval's messages."""


def compose_rows(described: Dataset) -> Dataset:
    """The rows of the task: for each form, a question of each kind, so that `--limit 12` is two forms.

    Args:
        described (`Dataset`): Its only row says how many `forms` there are and of which `split`.

    Returns:
        `Dataset`: Rows of `forms_dataset`, with the image as `image`, drawn when they are read.
    """
    split, num_forms = described[0]["split"], described[0]["forms"]
    columns = {"kind": list(KINDS) * num_forms, "index": [form for form in range(num_forms) for _ in KINDS]}

    def compose(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [forms_row(split, index, kind=kind) for kind, index in zip(batch["kind"], batch["index"], strict=True)]
        texts = {name: [row[name] for row in rows] for name in ("kind", "question", "answer", "fields")}
        return texts | {"image": [row["images"][0] for row in rows]}

    return Dataset.from_dict(columns).with_transform(compose)


def doc_to_visual(doc: Mapping[str, Any]) -> list[Any]:
    """The image, which comes before the question."""
    return [doc["image"]]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    return doc["question"]


def doc_to_target(doc: Mapping[str, Any]) -> str:
    return doc["answer"]


def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, tuple[int, int]]:
    """Scores an answer: `"KIND/SCORE"` to (points, possible points), for the scores of the question's kind."""
    scores = score_answer(doc["kind"], results[0], doc["answer"], json.loads(doc["fields"]))
    return {f"{doc['kind']}/{name}": points for name, points in scores.items()}


def share(scores: Iterable[tuple[int, int]]) -> float:
    """All points as a share of all possible ones."""
    points, possible = zip(*scores, strict=True)
    return sum(points) / sum(possible)

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
"""The evaluation of checkpoints on held-out forms: what is asked, what is counted, and that wrong answers score 0."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

import forms_evaluation
from forms_dataset import KINDS, forms_row
from forms_evaluation import GROUPS, Answer
from forms_questions import LIST_WORDINGS, WORDINGS, wordings_of


def test_score_of_the_expected_answers_is_full_and_counts_passes_over_all_tokens() -> None:
    """A pass too many in a short answer weighs as much as in a long one."""
    rows = [forms_row("test", index, kind=kind) for index, kind in enumerate(KINDS)]
    answers = [Answer(row["answer"], num_passes=index + 1, num_tokens=10) for index, row in enumerate(rows)]
    scores = forms_evaluation.score(rows, answers)
    assert scores.pop("passes_per_token") == pytest.approx((len(KINDS) + 1) / 20)
    assert set(scores.values()) == {1.0}
    wrong = forms_evaluation.score(rows, [Answer("", 1, 0)] * len(rows))
    assert set(wrong.values()) == {0.0, len(rows)}  # no token at all: as if there were one


def test_ask_in_batches_gives_the_answers_of_single_rows(parity_dir: Path) -> None:
    """Random weights say nothing sensible, but the same; padding counts as no token."""
    processor = AutoProcessor.from_pretrained(parity_dir / "checkpoint")
    model = AutoModelForImageTextToText.from_pretrained(parity_dir / "checkpoint").eval()
    rows = [forms_row("test", index) for index in range(3)]
    batched = forms_evaluation.ask(model, processor, rows, batch_size=2, max_new_tokens=6)
    assert batched == forms_evaluation.ask(model, processor, rows, max_new_tokens=6)
    assert all(1 <= answer.num_passes <= 6 and answer.num_tokens <= 6 for answer in batched)


def test_main_writes_the_scores_of_both_decodings(
    parity_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One token per pass makes more passes than confident decoding ever can."""
    output = tmp_path / "scores.json"
    arguments = ["--model", str(parity_dir / "checkpoint"), "--rows", "1", "--max-new-tokens", "8"]
    report = forms_evaluation.main([*arguments, "--output", str(output)])
    assert json.loads(output.read_text()) == report
    assert list(report["scores"]) == ["confident", "one_by_one"]
    assert {name.split("/")[0] for name in report["scores"]["confident"]} == set(GROUPS)
    assert report["cases"]["json/parses"] == 1
    # Of one case nothing is certain.
    assert "| json/parses | 1 | 0.0 % (0.0 to 79.3) | 0.0 % (0.0 to 79.3) |" in capsys.readouterr().out


def test_main_asks_the_forms_of_a_seed_in_a_dtype(parity_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other forms of the same digits; the model is asked in the type that was named."""
    asked: dict[str, list[str]] = {}

    def record(model: Any, processor: Any, rows: Sequence[dict[str, Any]], *args: Any, **options: Any) -> list[Answer]:
        asked.setdefault(str(model.dtype), []).extend(row["fields"] for row in rows)
        return [Answer(row["answer"], 1, 1) for row in rows]

    monkeypatch.setattr(forms_evaluation, "ask", record)
    arguments = ["--model", str(parity_dir / "checkpoint"), "--rows", "1", "--decodings", "confident"]
    for seed, dtype in (("0", "float32"), ("1", "bfloat16")):
        report = forms_evaluation.main([*arguments, "--seed", seed, "--dtype", dtype])
        assert (report["seed"], report["dtype"]) == (int(seed), dtype)
    first, other = asked["torch.float32"], asked["torch.bfloat16"]
    assert first == [forms_row("test", 0, **group)["fields"] for group in GROUPS.values()]
    assert other == [forms_row("test", 0, 1, **group)["fields"] for group in GROUPS.values()]
    assert first != other  # control
    report = forms_evaluation.main([*arguments, "--groups", "held-out words sum"])
    assert list(report["cases"]) == ["held-out words sum/exact"]


def test_main_scores_each_wording_by_itself(
    parity_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A model that understands one wording of a kind only: worst and best are far apart, and held-out ones fail."""

    def answer(model: Any, processor: Any, rows: Sequence[dict[str, Any]], *args: Any, **options: Any) -> list[Answer]:
        return [Answer(row["answer"] if row["question"] == WORDINGS["rows"][1] else "", 1, 1) for row in rows]

    monkeypatch.setattr(forms_evaluation, "ask", answer)
    arguments = ["--model", str(parity_dir / "checkpoint"), "--rows", "2", "--decodings", "confident"]
    scores = forms_evaluation.main([*arguments, "--by-wording"])["wordings"]["confident"]
    assert {kind: len(by_wording) for kind, by_wording in scores.items()} == {
        kind: sum(map(len, wordings_of(kind))) for kind in (*WORDINGS, *LIST_WORDINGS)
    }
    assert scores["rows"][WORDINGS["rows"][1]] == 1
    assert sum(sum(by_wording.values()) for by_wording in scores.values()) == 1
    assert "| rows | 0.0 to 100.0 % | 12.5 % | 0.0 to 0.0 % | 0.0 % |" in capsys.readouterr().out

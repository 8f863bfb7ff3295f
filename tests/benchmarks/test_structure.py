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
"""The benchmark of structure priors at toy size: what its report holds, and what must be so whatever the weights."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import structure


@pytest.fixture
def script() -> ModuleType:
    return structure


def test_structure_json_and_length_report_one_line_for_each_way(
    script: ModuleType, parity_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """With random weights nothing is right, and every answer under a prior is valid and ends."""
    output = tmp_path / "structure.json"
    command = ["json", "length", "--model", str(parity_dir / "checkpoint"), "--rows", "2", "--output", str(output)]
    report = script.main([*command, "--batch-size", "2"])
    assert json.loads(output.read_text()) == json.loads(json.dumps(report))
    assert [line["way"] for line in report["json"]] == ["asked", "padded", "compact"] * 2
    assert [line["decoding"] for line in report["json"]] == ["confident"] * 3 + ["one_by_one"] * 3
    assert [line["valid"] for line in report["json"]] == [0, 1, 1] * 2  # 0: control
    assert [line["length"] for line in report["length"]] == ["free", 16, 32, 64]
    assert all(line["ends"] == 1 for line in report["length"][1:])
    assert all(0 < line["passes"] <= 64 for line in report["json"] + report["length"])
    assert "| confident | padded | 2 | " in capsys.readouterr().out


def test_structure_valid_means_the_forms_labels_and_numbers(script: ModuleType) -> None:
    """The judge of "asked" is as strict as the schema of the priors."""
    assert script.is_valid('{"age": 5, "qty": 9999}', ["qty", "age"])
    wrong = [
        '{"age": 5}',
        '{"age": 5, "qty": 10000}',
        '{"age": 5, "qty": true}',
        '{"age": 5, "qty": 1, "x": 1}',
        "{",
        "[]",
    ]
    assert not any(script.is_valid(answer, ["qty", "age"]) for answer in wrong)


def test_structure_tokenizer_is_as_large_as_the_released_one(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens spell text of many scripts, some end inside a character, all bytes are there."""
    monkeypatch.setattr(script, "NUM_TEXT_TOKENS", 2000)
    tokenizer = script.large_tokenizer()
    assert tokenizer.vocab_size == 2000
    assert tokenizer.mask_token_id >= 2000
    text = "naïve 日本 x"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
def test_structure_cost_reports_shares_of_each_prior(script: ModuleType) -> None:
    """At the full vocabulary, on a toy model; the share itself is not judged here."""
    report = script.main(["cost", "--shape", "tiny", "--repeats", "1"])
    assert {line["prior"] for line in report["cost"]} == {"template", "choices", "form", "invoice"}
    assert all(0 < line["share"] <= line["largest_share"] < 1 for line in report["cost"])

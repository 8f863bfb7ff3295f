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
"""Whoever types no question gets an answer: the small model was trained on the default of each front end."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.cli.arguments import default_question
from dimple_hf.cli.main import main

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_dataset import forms_row  # noqa: E402

NUM_FORMS = 6


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder of forms that the model has not seen, and what they say."""
    folder = tmp_path_factory.mktemp("forms")
    values = []
    for index in range(NUM_FORMS):
        row = forms_row("test", index, kind="json")
        row["images"][0].save(folder / f"{index}.png")
        values.append(json.loads(row["answer"]))
    return folder, values


def test_generate_reads_forms_by_default(
    forms: tuple[Path, list[dict[str, Any]]], capsys: pytest.CaptureFixture
) -> None:
    """At least two thirds of all fields; a question that it was not trained on gets far fewer."""
    folder, values = forms
    num_right = num_fields = 0
    for index, expected in enumerate(values):
        assert main(["generate", "--image", str(folder / f"{index}.png")]) == 0
        answer = dict(line.rsplit(" ", 1) for line in capsys.readouterr().out.splitlines() if " " in line)
        num_right += sum(answer.get(name) == str(value) for name, value in expected.items())
        num_fields += len(expected)
    assert num_right >= 2 * num_fields / 3


def test_extract_reads_forms_by_default(
    forms: tuple[Path, list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Under a schema of the form's own fields."""
    folder, values = forms
    names = {name: {"type": "integer", "minimum": 0, "maximum": 9999} for name in values[0]}
    schema = {"type": "object", "properties": names, "required": list(names), "additionalProperties": False}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    assert main(["extract", "--schema", str(tmp_path / "schema.json"), "--image", str(folder / "0.png")]) == 0
    value = json.loads(capsys.readouterr().out)["value"]
    assert sum(value[name] == expected for name, expected in values[0].items()) >= len(names) / 2


def test_default_question_of_another_model_is_for_any_image() -> None:
    """Which no form has to be on."""
    assert default_question(str(FORMS_CHECKPOINT), "own", "other") == "own"
    assert default_question("rp-yu/Dimple-7B", "own", "other") == "other"

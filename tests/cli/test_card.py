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
"""`dimple-hf card`: its options reach the card, and it refuses in one line."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from dimple_hf.cli.main import main


@pytest.fixture
def directory(parity_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_dir / "checkpoint", tmp_path / "tiny"))


def test_card_writes_what_the_options_say(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All options at once; the path is printed for the next command."""
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"text/fields": 0.97, "passes_per_token": 0.3}))
    command = ["card", str(directory), "--scores", str(scores), "--scores-data", "team/forms", "--license", "mit"]
    command += ["--repo-id", "team/reader", "--description", "Reads forms.", "--question", "Read the form."]
    command += ["--base-model", "a/b", "--base-model", "c/d", "--dataset", "team/forms"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{directory / 'README.md'}\n"
    card = ModelCard.load(directory / "README.md")
    assert card.data.base_model == ["a/b", "c/d"]
    assert card.data.license == "mit"
    assert card.data.datasets == ["team/forms"]
    assert card.data.model_name == "reader"
    assert [result.metric_value for result in card.data.eval_results] == [0.97, 0.3]
    assert 'model_id = "team/reader"' in card.text
    assert '"text": "Read the form."' in card.text
    assert main(command) == 1
    assert "`overwrite` must be True" in capsys.readouterr().err
    assert main([*command[:2], "--overwrite"]) == 0
    assert ModelCard.load(directory / "README.md").data.license is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "`--scores` must be a file with JSON"),
        ("[1]", "`--scores` must hold an object, name -> number (got list"),
        ('{"a": "b"}', "`scores` must be finite numbers by name"),
    ],
)
def test_card_with_bad_scores_returns_one_and_writes_nothing(
    directory: Path, tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    """What the user can mend is one line, not a trace."""
    (tmp_path / "scores.json").write_text(content)
    assert main(["card", str(directory), "--scores", str(tmp_path / "scores.json")]) == 1
    assert message in capsys.readouterr().err
    assert main(["card", str(directory), "--scores", str(tmp_path / "none.json")]) == 1
    assert "`--scores` must be a file with JSON (" in capsys.readouterr().err
    assert not (directory / "README.md").exists()

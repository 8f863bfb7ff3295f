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
"""`dimple-hf doctor`: what it prints for people and for programs, and its exit status."""

import json
import shutil
from pathlib import Path

import pytest
from traps import set_traps

from dimple_hf.cli.main import main
from dimple_hf.hub import environment


@pytest.fixture
def checkpoint(parity_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_dir / "checkpoint", tmp_path / "checkpoint"))


def test_doctor_without_model_reports_on_the_machine(capsys: pytest.CaptureFixture) -> None:
    """For people: versions, devices, and a line for each finding."""
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("torch ", "transformers ", "cpu: ", "this machine", "attention", "torch.compile", "threads"):
        assert word in printed
    assert "weights" not in printed


def test_doctor_as_json_is_one_object(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    """For programs: plain values, and whether all is well."""
    assert main(["doctor", "--json", "--model", str(checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    assert set(report) == {"healthy", "versions", "devices", "threads", "attention", "compile", "findings"}
    assert set(report["findings"]) == {"environment", "model"}
    assert {finding["status"] for finding in report["findings"]["model"]} == {"ok", "warning"}


def test_doctor_on_the_original_layout_runs_none_of_its_code_and_asks_nothing(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A directory as users find it, with traps for whoever trusts it."""
    mark = set_traps(checkpoint)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    assert main(["doctor", "--model", str(checkpoint)]) == 0
    assert "6 Python files, not run" in " ".join(capsys.readouterr().out.split())
    assert not mark.exists()


def test_doctor_with_a_broken_model_returns_one_and_shows_what_is_wrong(
    checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    """Square brackets in a message are no markup of the terminal's."""
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    fields = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(fields | {"mrope_section": [1, 1, 1]}))
    assert main(["doctor", "--model", str(checkpoint)]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "problem configuration" in printed
    assert "(got [1, 1, 1])" in printed
    assert main(["doctor", "--model", str(checkpoint), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["healthy"] is False


def test_doctor_on_a_machine_with_a_wrong_library_returns_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Also without a model."""
    true_version = environment.installed_version
    monkeypatch.setattr(
        environment, "installed_version", lambda name: "5.0.0" if name == "transformers" else true_version(name)
    )
    assert main(["doctor"]) == 1
    assert "pip install 'transformers<6,>=5.23'" in " ".join(capsys.readouterr().out.split())


def test_doctor_with_a_model_that_is_nothing_returns_one_and_says_so(capsys: pytest.CaptureFixture) -> None:
    """One line, no trace."""
    assert main(["doctor", "--model", "/no/such/folder"]) == 1
    assert "a checkpoint must be a directory or a Hub id" in capsys.readouterr().err

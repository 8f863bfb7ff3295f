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
"""`docs/start.md` typed in from top to bottom, as it stands: commands and Python, on the model of the package."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from dimple_hf.checkpoints import FORMS_CHECKPOINT, FORMS_SAMPLE
from dimple_hf.cli.main import main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "start.md"


def test_first_ten_minutes_run_as_they_stand(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A newcomer who types all of it sees answers, and the same one wherever the same is asked."""
    (tmp_path / "examples" / "forms").mkdir(parents=True)
    shutil.copy(repo_root / "examples" / "forms" / "sample.png", tmp_path / "examples" / "forms")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    namespace: dict[str, object] = {}
    printed: list[str] = []
    for language, snippet in re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M):
        for line in snippet.splitlines() if language == "bash" else ():
            program, *arguments = shlex.split(line)
            assert program == "dimple-hf" or line.startswith("pip install .")
            assert program == "pip" or main(arguments) == 0
        if language == "python":
            exec(compile(snippet, PAGE.name, "exec"), namespace)
        printed.append(capsys.readouterr().out)
    _, commands, python, watched, steps, batch, json_answer, piped = printed
    answer = python.strip()
    assert len(answer.splitlines()) > 1
    assert commands.startswith(answer)
    assert [line.split()[0] for line in watched.splitlines()[:3]] == ["0.5", "0.95", "None"]
    unmasked = [int(line.split()[2]) for line in steps.splitlines()]
    assert unmasked[0] == 0
    assert unmasked == sorted(unmasked)
    assert answer in batch
    floor = next(line for line in answer.splitlines() if line.startswith("floor "))
    assert f"What is the floor?\n{floor}\n" in batch
    assert int(json_answer) > 0
    assert piped.startswith(answer)
    assert piped.strip().endswith(answer)
    assert piped.count(answer) == 2  # once whole, once streamed


def test_sample_of_the_package_is_the_repositorys(repo_root: Path) -> None:
    """The page says that they are the same image, and that the model lies beside it."""
    assert FORMS_SAMPLE.read_bytes() == (repo_root / "examples" / "forms" / "sample.png").read_bytes()
    assert FORMS_SAMPLE.parent == FORMS_CHECKPOINT.parent

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
"""What docs/batch.md shows is what happens: its rows, lines, commands and options."""

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dimple_hf.cli import batch
from dimple_hf.cli.main import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_forms: Callable[[Path, int], Path]) -> Path:
    """A folder with the page's rows and with all images that they name but one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "forms").mkdir()
    write_forms(tmp_path / "forms", 3)
    (tmp_path / "questions.jsonl").write_text(blocks("json")[0])
    return tmp_path


def test_page_rows_give_the_page_lines(here: Path, capsys: pytest.CaptureFixture) -> None:
    """Answers are another model's, but every field is there, and the reasons are those that users will see."""
    program, *arguments = shlex.split(blocks("bash")[0])
    assert program == "dimple-hf"
    assert main(arguments) == 0, capsys.readouterr().err
    shown = [json.loads(line) for line in blocks("json")[1].splitlines()]
    found = lines_of("answers.jsonl")
    assert [list(line) for line in found] == [list(line) for line in shown]
    for name in ("row", "id", "error"):
        assert [line.get(name) for line in found] == [line.get(name) for line in shown]

    # An image that was missing is there.
    shutil.copy(here / "forms" / "2.png", here / "forms" / "3.png")
    assert main(arguments) == 0
    assert ["error" in line for line in lines_of("answers.jsonl")] == [False, False, False, True]


def test_page_launch_divides_the_rows(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the launcher runs, as often as it runs it; the last one writes the output."""
    launch, arguments = blocks("bash")[1].split(" -m dimple_hf.cli.main ")
    num_processes = int(re.fullmatch(r"accelerate launch --num_processes (\d+)", launch).group(1))
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    for rank in range(num_processes):
        assert not Path("answers.jsonl").exists()
        monkeypatch.setenv("RANK", str(rank))
        assert main(shlex.split(arguments)) == 0
        if rank == 3:
            break  # the other four have no row
    assert [line["row"] for line in lines_of("answers.jsonl")] == [0, 1, 2, 3]


def test_page_lists_every_option() -> None:
    """And no other."""
    parser = argparse.ArgumentParser(add_help=False)
    batch.add_arguments(parser)
    options = {name for action in parser._actions for name in action.option_strings}
    assert set(re.findall(r"^\| `(--[\w-]+)", PAGE, flags=re.MULTILINE)) == options
    assert parser.get_default("batch_size") == 8

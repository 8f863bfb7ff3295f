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
"""Two processes, killed again and again at random moments: the result is that of a run that nobody killed."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launcher import Launcher

from dimple_hf.batch.results import whole_lines


@pytest.fixture
def processes(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path / "errors.txt")


def rows_done(output: Path) -> list[int]:
    """The rows of all lines, wherever they are, in any order."""
    files = [path for path in output.parent.iterdir() if path.name.startswith(f"{output.name}.part-")]
    return [line["row"] for path in [*files, *([output] if output.exists() else [])] for _, line in whole_lines(path)]


def kill_at_random(processes: list[int], output: Path, num_more: int, rng: random.Random) -> None:
    """Kills all of them, one after the other, at some time after so many more rows are done."""
    target = len(rows_done(output)) + num_more
    while len(rows_done(output)) < target:
        time.sleep(0.002)
    for process in rng.sample(processes, len(processes)):
        time.sleep(rng.uniform(0, 0.05))
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize(
    ("num_rows", "num_kills"), [(12, 1), pytest.param(500, 5, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_run_killed_again_and_again_equals_the_uninterrupted_one(
    num_rows: int, num_kills: int, tmp_path: Path, processes: Launcher, write_forms: Callable[[Path, int], Path]
) -> None:
    """Every row once, and every byte the same; what was done before a kill is not done again."""
    rng = random.Random(num_rows)
    command = ["batch", str(write_forms(tmp_path, num_rows)), "--max-new-tokens", "4", "--batch-size", "2"]
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    (process,) = processes.start([*command, "--output", str(whole)], 1)
    assert processes.wait(process) == 0, processes.errors.read_text()[-3000:]

    num_done = 0
    for _ in range(num_kills):
        started = processes.start([*command, "--output", str(output)], 2)
        kill_at_random(started, output, rng.randint(1, num_rows // (num_kills + 2)), rng)
        ends = {processes.wait(process) for process in started}
        assert -signal.SIGKILL in ends <= {-signal.SIGKILL, 0}  # a small part may be done before the kill comes
        rows = rows_done(output)
        assert len(rows) == len(set(rows))
        assert num_done <= len(rows) < num_rows
        num_done = len(rows)
    assert num_done > 0  # control: the kills came in the middle of the work
    assert not output.exists()

    started = processes.start([*command, "--output", str(output)], 2)
    assert [processes.wait(process) for process in started] == [0, 0], processes.errors.read_text()[-3000:]
    lines = [line for _, line in whole_lines(output)]
    assert [line["row"] for line in lines] == list(range(num_rows))
    assert len({line["answer"] for line in lines}) > 1  # control: answers can be told apart
    assert output.read_bytes() == whole.read_bytes()
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith("killed")}
    assert left == {"killed.jsonl", "killed.jsonl.settings.json"}


#: Of an extraction.
NUM_IMAGES = 6


@pytest.fixture
def extraction(tmp_path: Path, write_forms: Callable[[Path, int], Path]) -> list[str]:
    """A command over a few images."""
    (tmp_path / "images").mkdir()
    write_forms(tmp_path / "images", NUM_IMAGES)
    (tmp_path / "schema.json").write_text('{"type": "integer", "minimum": 0, "maximum": 99}')
    return ["extract", "--schema", str(tmp_path / "schema.json"), "--image", str(tmp_path / "images"), "--output"]


def sources_done(output: Path) -> list[str]:
    files = [path for path in output.parent.iterdir() if path.name.startswith(f"{output.name}.part-")]
    return [line["source"] for path in files for _, line in whole_lines(path)]


@pytest.mark.parametrize("num_kills", [2, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_extract_killed_again_and_again_equals_the_uninterrupted_one(
    num_kills: int, extraction: list[str], tmp_path: Path, processes: Launcher
) -> None:
    """At any time, also before the first line and after the last."""
    rng = random.Random(num_kills)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    (process,) = processes.start([*extraction, str(whole)], 1)
    assert processes.wait(process) == 0, processes.errors.read_text()[-3000:]
    for _ in range(num_kills):
        (process,) = processes.start([*extraction, str(output)], 1)
        target = len(sources_done(output)) + rng.randint(0, NUM_IMAGES // num_kills)
        deadline = time.monotonic() + 60
        while len(sources_done(output)) < target and not output.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        assert processes.wait(process) in (-signal.SIGKILL, 0)
        assert len(set(sources_done(output))) == len(sources_done(output))
    (process,) = processes.start([*extraction, str(output)], 1)
    assert processes.wait(process) == 0, processes.errors.read_text()[-3000:]
    assert output.read_bytes() == whole.read_bytes()


def last_errors(processes: Launcher, num_lines: int) -> list[str]:
    """What the command itself printed at its end; it comes through a pipe."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = [line for line in processes.errors.read_text().splitlines() if line.startswith("dimple-hf")]
        if len(lines) == num_lines:
            return lines
        time.sleep(0.01)
    return processes.errors.read_text().splitlines()


def test_full_disk_loses_nothing_and_says_how_to_go_on(
    extraction: list[str], tmp_path: Path, processes: Launcher
) -> None:
    """Files that cannot grow stand for it: in the settings, in the middle of a line, and while lines are merged."""
    whole = tmp_path / "whole.jsonl"
    (process,) = processes.start([*extraction, str(whole)], 1)
    assert processes.wait(process) == 0, processes.errors.read_text()[-3000:]
    size = whole.stat().st_size
    output = tmp_path / "full.jsonl"
    settings_size = whole.with_name("whole.jsonl.settings.json").stat().st_size
    for limit in (10, (settings_size + size) // 2):
        processes.errors.write_text("")
        (process,) = processes.start([*extraction, str(output)], 1, limit)
        assert processes.wait(process) == 1
        last = last_errors(processes, num_lines=1 if limit == 10 else 2)
        assert any("File too large" in line for line in last)
        if limit > 10:
            assert re.search(r"\d+ lines? of this run (is|are) kept in .*; the same command goes on", last[-1])
        left = {path.name for path in tmp_path.iterdir() if path.name.startswith("full")}
        assert not any("merging" in name or re.search(r"json\.\w{32}", name) for name in left)  # no temporary file
        assert not output.exists()
    # Whole in its parts, but not merged.
    (process,) = processes.start([*extraction, str(output)], 1, size - 1)
    assert processes.wait(process) == 1
    assert len(sources_done(output)) == NUM_IMAGES
    (process,) = processes.start([*extraction, str(output)], 1)
    assert processes.wait(process) == 0
    assert output.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith("full")} == {
        "full.jsonl", "full.jsonl.settings.json"
    }  # fmt: skip

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

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import launcher
import pytest

from dimple_hf.batch.results import whole_lines


class Launcher:
    """Runs `dimple-hf` in processes that can be killed; see `launcher.py`."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        self._process = subprocess.Popen(
            [sys.executable, launcher.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **order: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def start(self, arguments: list[str], num_processes: int) -> list[int]:
        return [
            self.ask(
                arguments=arguments,
                variables={"RANK": str(rank), "WORLD_SIZE": str(num_processes)},
                errors=str(self.errors),
            )
            for rank in range(num_processes)
        ]

    def wait(self, process: int) -> int:
        return self.ask(wait=process)

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Launcher]:
    processes = Launcher(tmp_path / "errors.txt")
    yield processes
    processes.close()


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
    ("num_rows", "num_kills"), [(40, 2), pytest.param(500, 5, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_run_killed_again_and_again_equals_the_uninterrupted_one(
    num_rows: int, num_kills: int, tmp_path: Path, processes: Launcher, write_forms: Callable[[Path, int], Path]
) -> None:
    """Every row once, and every byte the same; what was done before a kill is not done again."""
    rng = random.Random(num_rows)
    command = ["batch", str(write_forms(tmp_path, num_rows)), "--max-new-tokens", "8", "--batch-size", "4"]
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    started = processes.start([*command, "--output", str(whole)], 2)
    assert [processes.wait(process) for process in started] == [0, 0], processes.errors.read_text()[-3000:]

    num_done = 0
    for _ in range(num_kills):
        started = processes.start([*command, "--output", str(output)], 2)
        kill_at_random(started, output, rng.randint(0, num_rows // (num_kills + 2)), rng)
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

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
"""The real launcher: its processes divide the rows, and those that outlive it do no harm."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dimple_hf.batch.results import whole_lines
from dimple_hf.cli.main import main

NUM_ROWS = 40
OPTIONS = ["--max-new-tokens", "8", "--batch-size", "4"]


def launch(arguments: list[str], errors: Path) -> subprocess.Popen:
    """Two processes of `dimple-hf`; without `--multi_gpu` the launcher starts one where there is no GPU."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = ["--multi_gpu", "--num_processes", "2", "--main_process_port", str(port), "-m", "dimple_hf.cli.main"]
    with errors.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", *command, *arguments], stdout=file, stderr=file
        )


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_running(process: int) -> bool:
    """Whether a process that is no child of ours is still at work; one that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the launcher's processes in /proc")
def test_launched_processes_that_outlive_their_launcher_do_no_harm(
    tmp_path: Path, write_forms: Callable[[Path, int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher is killed and started again, while what it had started goes on: all rows, each once, as alone."""
    command = ["batch", str(write_forms(tmp_path, NUM_ROWS)), *OPTIONS]
    monkeypatch.setenv("WORLD_SIZE", "1")
    alone, output, errors = (tmp_path / name for name in ("alone.jsonl", "launched.jsonl", "errors.txt"))
    assert main([*command, "--output", str(alone)]) == 0
    monkeypatch.delenv("WORLD_SIZE")

    first = launch([*command, "--output", str(output)], errors)
    while not any(path.stat().st_size for path in tmp_path.glob("launched.jsonl.part-*")):
        assert first.poll() is None, errors.read_text()[-3000:]
        time.sleep(0.01)
    orphans = children(first.pid)
    assert len(orphans) == 2
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert all(map(is_running, orphans))  # control: they do go on

    second = launch([*command, "--output", str(output)], errors)
    assert second.wait() == 0, errors.read_text()[-3000:]
    while any(map(is_running, orphans)):
        time.sleep(0.1)
    lines = [line for _, line in whole_lines(output)]
    assert [line["row"] for line in lines] == list(range(NUM_ROWS))
    assert lines == [line for _, line in whole_lines(alone)]
    left = {path.name for path in tmp_path.glob("launched*")}
    assert left == {"launched.jsonl", "launched.jsonl.settings.json"}

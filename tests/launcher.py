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
"""Starts processes of `dimple-hf` that have imported everything already, and says how they ended.

Tests use `Launcher`, which runs this file as a process of its own. That one reads a JSON object a line from stdin:
`{"arguments": [...], "variables": {...}, "errors": path, "file_size": bytes}` forks a process, whose files cannot grow
beyond that size, and prints its id; `{"wait": id}` waits for it and prints its exit code, negative for a signal.
Forked, not started anew, because an import takes longer than what is tested; each is a process of its own that can be
killed like any other.
"""

import json
import os
import resource
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: F401  # both import more when they are named

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor  # noqa: F401
from dimple_hf.cli.main import main


class Launcher:
    """Runs `dimple-hf` in processes that can be killed, and writes what they print into a file."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **order: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def start(self, arguments: list[str], num_processes: int, file_size: int | None = None) -> list[int]:
        return [
            self.ask(
                arguments=arguments,
                variables={"RANK": str(rank), "WORLD_SIZE": str(num_processes)},
                errors=str(self.errors),
                file_size=file_size,
            )
            for rank in range(num_processes)
        ]

    def wait(self, process: int) -> int:
        return self.ask(wait=process)

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def start(arguments: list[str], variables: dict[str, str], errors: str, file_size: int | None = None) -> int:
    """Forks a process that runs the command; returns its id."""
    process = os.fork()
    if process:
        return process
    os.environ.update(variables)
    # Through another process, whose files may grow.
    writer = subprocess.Popen(["sh", "-c", 'cat >> "$0"', errors], stdin=subprocess.PIPE)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(writer.stdin.fileno(), stream.fileno())
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    code = 1
    try:
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        else:
            print(start(**order), flush=True)
    os._exit(0)  # taking down all that is imported would take seconds

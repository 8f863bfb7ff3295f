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
"""Starts processes that have imported everything already, and says how they ended.

Tests use `Launcher`, which runs this file as a process of its own, one for all tests of a worker. That one reads a
JSON object a line from stdin: `{"wait": id}` waits for a process and prints its exit code, negative for a signal; any
other has the arguments of `start`, which forks a process, and prints its id.
Forked, not started anew, because an import takes longer than what is tested; each is a process of its own that can be
killed like any other.
"""

import gc
import json
import os
import resource
import runpy
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # while the libraries are imported nothing becomes garbage

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor  # noqa: F401  # both import more when they are named

import dimple_hf.training  # noqa: F401
from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor  # noqa: F401
from dimple_hf.cli.main import main


@cache
def launching_process() -> "subprocess.Popen[str]":
    """This file as a process; it ends with the process of the tests, which holds its stdin."""
    return subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Launcher:
    """Runs `dimple-hf` or a script in processes that can be killed, and writes what they print into a file."""

    def __init__(self, errors: Path) -> None:
        self.errors = errors

    def ask(self, **order: object) -> int:
        process = launching_process()
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(order), file=process.stdin, flush=True)
        return int(process.stdout.readline())

    def start(
        self,
        arguments: list[str],
        num_processes: int = 1,
        file_size: int | None = None,
        script: str | Path | None = None,
        **variables: str,
    ) -> list[int]:
        """Starts processes of `dimple-hf`, or of a script, in the current directory; returns their ids."""
        order = {
            "arguments": arguments,
            "errors": str(self.errors),
            "directory": os.getcwd(),
            "file_size": file_size,
            "script": None if script is None else str(script),
        }
        if num_processes == 1:
            return [self.ask(variables=variables, **order)]
        variables["WORLD_SIZE"] = str(num_processes)
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]
        return [self.ask(variables=variables | rank, **order) for rank in ranks]

    def wait(self, process: int) -> int:
        return self.ask(wait=process)


def run(arguments: list[str], script: str | None) -> int:
    """Runs `dimple-hf`, or a script as the interpreter would; returns its exit code."""
    if script is None:
        return main(arguments)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    return 0


def start(
    arguments: list[str],
    variables: dict[str, str],
    errors: str,
    directory: str,
    file_size: int | None,
    script: str | None,
) -> int:
    """Forks a process that runs the command and whose files cannot grow beyond `file_size`; returns its id."""
    process = os.fork()
    if process:
        return process
    os.chdir(directory)
    os.environ.update(variables)
    # Through another process, whose files may grow.
    writer = subprocess.Popen(["sh", "-c", 'cat >> "$0"', errors], stdin=subprocess.PIPE)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(writer.stdin.fileno(), stream.fileno())
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
    code = 1
    try:
        code = run(arguments, script)
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # no collection in the forked processes goes through what was imported
    gc.enable()
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
        else:
            print(start(**order), flush=True)
    os._exit(0)  # taking down all that is imported would take seconds

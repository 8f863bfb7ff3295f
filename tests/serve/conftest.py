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
"""The small model in single precision, in which a batch decides exactly as single rows do, and its processor."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

for folder in (Path(__file__).parent, Path(__file__).resolve().parents[2] / "benchmarks"):
    sys.path.insert(0, str(folder))

from server_process import ForkedServer  # noqa: E402

from dimple_hf.serve import app as app_module  # noqa: E402
from dimple_hf.serve.processes import ByteBudget, TaskLimits, TaskProcesses  # noqa: E402

#: Low, so that what goes beyond them does so soon.
TASK_LIMITS = TaskLimits(seconds=1, memory_bytes=1 << 28, output_bytes=1 << 24, waiting_bytes=1 << 24)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedServer]:
    """One for all tests that leave it as it was."""
    server = ForkedServer(tmp_path_factory.mktemp("server"), "--dtype", "float32", "--allow-remote-images")
    yield server
    server.stop()


@pytest.fixture
def client(server: ForkedServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def started_processes(forms_processor: Any) -> Iterator[TaskProcesses]:
    """One for all tests: their parent process takes seconds to import what it needs."""
    processes = TaskProcesses(forms_processor, TASK_LIMITS)
    with pytest.MonkeyPatch.context() as patch:  # children import the functions of `tasks`
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        processes.start()
    yield processes
    processes.stop()


@pytest.fixture
def task_processes(started_processes: TaskProcesses) -> TaskProcesses:
    """Without what belongs to the event loop of another test."""
    processes = started_processes
    processes.budget, processes.quick, processes.num_slow = ByteBudget(1 << 24), asyncio.Semaphore(2), 0
    return processes


@pytest.fixture
def shared_processes(task_processes: TaskProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application that is built in the test takes the processes of all tests, and leaves them as they are."""
    for name in ("start", "stop"):
        monkeypatch.setattr(task_processes, name, lambda: None)
    monkeypatch.setattr(app_module, "TaskProcesses", lambda processor, limits: task_processes)

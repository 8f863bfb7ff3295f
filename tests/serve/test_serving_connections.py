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
"""Who may send requests, and what becomes of connections that send none."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from launcher import Launcher
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.routing import Route

from dimple_hf.cli.serve import LOOPBACK_HOSTS, allowed_hosts
from dimple_hf.serve import server
from dimple_hf.serve.metrics import Metrics
from dimple_hf.serve.middleware import Gate
from dimple_hf.serve.server import RateLimit


def ask(headers: dict[str, str], path: str = "/v1/models", **gate: Any) -> Any:
    """The response of an app behind a gate."""
    app = Starlette(
        routes=[Route(each, lambda request: JSONResponse({})) for each in ("/v1/models", "/health")],
        middleware=[Middleware(Gate, metrics=Metrics(), **gate)],
    )

    async def get() -> Any:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(get())


def test_api_key_is_needed_where_there_is_one() -> None:
    """By everybody but a supervisor, who asks whether the server is well."""
    for headers in (
        {},
        {"authorization": "Bearer other"},
        {"authorization": "secret"},
        {"authorization": "Bearer secre"},
    ):
        response = ask(headers, api_key="secret")
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
    assert ask({"authorization": "Bearer secret"}, api_key="secret").status_code == 200
    assert ask({}, path="/health", api_key="secret").status_code == 200
    assert ask({}).status_code == 200  # control: none is needed without one


def test_requests_for_other_hosts_are_refused() -> None:
    """A page in a browser whose name leads to this machine sends its own name."""
    hosts = allowed_hosts("127.0.0.1", None)
    for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"):
        assert ask({"host": host}, allowed_hosts=hosts).status_code == 200
    for host in ("rebound.example", "localhost.example:8000", ""):
        response = ask({"host": host}, allowed_hosts=hosts)
        assert response.status_code == 403
        assert "--allowed-host" in response.json()["error"]["message"]
    assert ask({"host": "a.example"}, allowed_hosts=allowed_hosts("127.0.0.1", ["A.example"])).status_code == 200
    assert allowed_hosts("0.0.0.0", None) is None
    assert allowed_hosts("0.0.0.0", ["a.example"]) == LOOPBACK_HOSTS | {"0.0.0.0", "a.example"}


def test_responses_have_the_id_of_their_request() -> None:
    assert ask({"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    own = {ask({"x-request-id": sent}).headers["x-request-id"] for sent in ("", "a b", "x" * 129)}
    assert len(own) == 3
    assert all(len(each) == 32 for each in own)
    assert ask({}, api_key="secret").headers["x-request-id"]  # of a refusal, too
    assert "access-control-allow-origin" not in ask({"origin": "http://a.example"}).headers


def test_log_lines_are_bounded_in_each_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand equal ones a second would fill the disk; what was left out is told."""
    monkeypatch.setattr(server, "LOG_LINES", 3)
    limit = RateLimit()

    def passes(name: str, created: float) -> logging.LogRecord | None:
        record = logging.LogRecord(name, logging.INFO, "", 0, "line", None, None)
        record.created = created
        return record if limit.filter(record) else None

    assert [passes("a", 100.0 + index) is not None for index in range(5)] == [True, True, True, False, False]
    assert passes("b", 104.0) is not None
    after = passes("a", 111.0)
    assert after is not None
    assert after.getMessage() == "(2 lines left out) line"


#: A server of one route, in a process that may have few descriptors; idle connections are closed after some seconds.
#: Where no descriptor is left, asyncio would wait a second before it takes the next connections.
PROGRAM = """
import asyncio, logging, resource, sys, uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from dimple_hf.serve import server
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
server.IDLE_SECONDS = float(sys.argv[1])
asyncio.constants.ACCEPT_RETRY_DELAY = 0.05
handler = logging.StreamHandler()
handler.addFilter(server.RateLimit())
logging.basicConfig(level=logging.INFO, handlers=[handler])
app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("ok"))])
config = uvicorn.Config(app, port=0, http=server.BoundedConnection, log_config=None, backlog=server.BACKLOG)
server.DrainingServer(config, 5).run()
"""


@contextmanager
def serving(tmp_path: Path, idle_seconds: float) -> Iterator[tuple[int, Path]]:
    """The port and the log of that server while it runs."""
    script, log = tmp_path / "program.py", tmp_path / "log"
    script.write_text(PROGRAM)
    launcher = Launcher(log)
    (process,) = launcher.start([str(idle_seconds)], script=script)
    try:
        deadline = time.monotonic() + 60
        while not log.exists() or "running on" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield int(log.read_text().split("http://127.0.0.1:")[1].split()[0]), log
    finally:
        os.kill(process, signal.SIGKILL)
        launcher.wait(process)


def test_idle_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    """More of them than the server has descriptors: the oldest go, requests are answered, and the log stays short."""
    with serving(tmp_path, idle_seconds=100) as (port, log), ExitStack() as idle:
        for _ in range(120):
            idle.enter_context(socket.create_connection(("127.0.0.1", port)))
        for _ in range(3):
            assert httpx2.get(f"http://127.0.0.1:{port}/", timeout=20).text == "ok"
        assert len(log.read_text().splitlines()) < 300


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Sends a byte now and then until the other side has closed the connection."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"G")
            if connection.recv(1) == b"":
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


def test_connections_without_a_whole_request_are_closed_after_a_time(tmp_path: Path) -> None:
    """Also where a byte of it comes now and then; one that has a request is not."""
    with serving(tmp_path, idle_seconds=1) as (port, _):
        silent = socket.create_connection(("127.0.0.1", port))
        slow = socket.create_connection(("127.0.0.1", port))
        slow.settimeout(0.2)
        began = time.monotonic()
        assert is_closed(slow, seconds=15)
        assert 0.5 < time.monotonic() - began < 15
        silent.settimeout(15)
        assert silent.recv(1) == b""

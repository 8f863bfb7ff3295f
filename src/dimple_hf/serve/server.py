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
"""uvicorn with bounds on connections and log lines, and an orderly shutdown."""

import asyncio
import logging
import resource
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

#: A connection without a request is closed after this time, and one whose request does not come.
IDLE_SECONDS = 10

#: Connections that the system keeps until the server takes them, which it does all at once.
BACKLOG = 64

#: Descriptors that are left for files, the processes that prepare requests, and connections that are just taken.
RESERVED_DESCRIPTORS = 64 + BACKLOG

#: Most connections, whatever the descriptors.
MAX_CONNECTIONS = 4096

#: Log lines of one logger in a period of this many seconds, and those that a traceback counts for.
LOG_LINES, LOG_SECONDS, TRACEBACK_LINES = 200, 10, 20


def max_connections() -> int:
    """`int`: Connections that may be open at a time, by the descriptors that the process may have."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, min(descriptors - RESERVED_DESCRIPTORS, MAX_CONNECTIONS))


class BoundedConnection(H11Protocol):
    """A connection that is closed when it is idle for too long, or when another one needs its descriptor."""

    idle_timer: asyncio.TimerHandle | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for a request; the connection that has waited longest goes if there are too many."""
        self.opened = time.monotonic()
        super().connection_made(transport)
        self._watch()
        if len(self.connections) > max_connections():
            idle = [each for each in self.connections if isinstance(each, BoundedConnection) and each.is_idle]
            min(idle, key=lambda each: each.opened, default=self).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a request. Those of an incomplete head do not make the connection less idle."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Waits for the next request."""
        super().on_response_complete()
        self.opened = time.monotonic()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops waiting."""
        super().connection_lost(exc)
        if self.idle_timer is not None:
            self.idle_timer.cancel()

    def _watch(self) -> None:
        if not self.is_idle and self.idle_timer is not None:
            self.idle_timer.cancel()
            self.idle_timer = None
        elif self.is_idle and self.idle_timer is None and not self.transport.is_closing():
            self.idle_timer = self.loop.call_later(IDLE_SECONDS, self.transport.close)


class DrainingServer(uvicorn.Server):
    """
    A server that, when it is told to end, answers what it has and refuses what is new with status 503.

    Args:
        config (`uvicorn.Config`):
            Of an app of [`build_app`].
        grace_seconds (`int`):
            How long it may go on for the requests that it has.
    """

    def __init__(self, config: uvicorn.Config, grace_seconds: int):
        super().__init__(config)
        self.grace_seconds = grace_seconds
        self.draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins to end; at once if told so again."""
        if self.draining is not None or not self.started:
            super().handle_exit(sig, frame)
            return
        self.loop.call_soon_threadsafe(self._begin_to_drain)

    async def startup(self, sockets: Any = None) -> None:
        """Starts to listen."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def _begin_to_drain(self) -> None:
        if self.draining is None:
            self.draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        chat = self.config.app.state.chat  # type: ignore[union-attr]
        logging.info("ending: %d requests are being answered", chat.num_requests)
        chat.is_draining = True
        deadline = time.monotonic() + self.grace_seconds
        while chat.num_requests and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        # Fails what is left, so that its clients are told.
        await asyncio.get_running_loop().run_in_executor(None, chat.worker.stop)
        self.should_exit = True


class RateLimit(logging.Filter):
    """Lets at most `LOG_LINES` lines of each logger pass in `LOG_SECONDS`; the next line says how many did not."""

    def __init__(self) -> None:
        super().__init__()
        self.periods: dict[str, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        began, count = self.periods.get(record.name, (0.0, 0))
        if record.created - began >= LOG_SECONDS:
            if count > LOG_LINES:
                record.msg = f"({count - LOG_LINES} lines left out) {record.msg}"
            began, count = record.created, 0
        self.periods[record.name] = (began, count + (TRACEBACK_LINES if record.exc_info else 1))
        return count < LOG_LINES

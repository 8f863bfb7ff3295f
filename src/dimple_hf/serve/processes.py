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
"""Processes for single tasks, with limits on time and memory.

```text
  server -- control socket --> parent process, which has loaded the processor
     |                            | forks, for each task
     +---- a task's socket ----> child: does the task, sends the result, ends
```

A task that has used `QUICK_SECONDS` of processor time goes on with the lowest priority and counts as slow. Slow tasks
are few at a time, so that a client who sends many of them waits for itself only.
"""

import asyncio
import gc
import io
import logging
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread

from ..processing import StructurePrior
from ..processing.vocabulary_dimple import Vocabulary
from .limits import MIB, RefusedRequest

logger = logging.getLogger(__name__)

#: Processor time after which a task is slow. A request with an image takes a tenth of it.
QUICK_SECONDS = 0.5

#: Tasks at a time that are not slow, and tasks that are.
NUM_QUICK, NUM_SLOW = 2, 4

#: Longest wait for a child, which may have to share its processor core with many others.
WALL_SECONDS = 120

# What a child sends: that it has become slow; that its result follows.
_SLOW, _RESULT = b"s", b"r"


@dataclass(frozen=True)
class TaskLimits:
    """
    Limits of one task.

    Args:
        seconds (`int`):
            Maximum processor time.
        memory_bytes (`int`):
            Maximum memory, beyond what a child begins with.
        output_bytes (`int`):
            Maximum size of the result.
        waiting_bytes (`int`):
            Maximum size of the results in use at a time. A larger one waits until it is the only one.
    """

    seconds: int = 10
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 29
    waiting_bytes: int = 1 << 30

    def refusal(self) -> RefusedRequest:
        """The refusal of a task that needs more."""
        return RefusedRequest(
            "the request must be cheaper to prepare: its schema, images and texts together needed more than "
            f"{self.seconds} seconds or {self.memory_bytes // MIB} MiB"
        )


class ByteBudget:
    """A number of bytes that many share; who needs more than are left waits."""

    def __init__(self, total: int):
        self.total = self.left = total
        self.changed = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self, num_bytes: int) -> AsyncIterator[None]:
        """Takes `num_bytes` (`int`) out of the budget, or all of it if they are more, until the context ends."""
        num_bytes = min(num_bytes, self.total)
        async with self.changed:
            await self.changed.wait_for(lambda: self.left >= num_bytes)
            self.left -= num_bytes
        try:
            yield
        finally:
            self.left += num_bytes
            with anyio.CancelScope(shield=True):
                async with self.changed:
                    self.changed.notify_all()


class TaskProcesses:
    """
    Runs functions in processes of their own.

    Args:
        processor ([`DimpleProcessor`]):
            First argument of every function.
        limits ([`TaskLimits`]):
            Limits of a task.
    """

    def __init__(self, processor: Any, limits: TaskLimits):
        self.processor = processor
        self.limits = limits
        self.budget = ByteBudget(limits.waiting_bytes)
        self.quick = asyncio.Semaphore(NUM_QUICK)
        self.num_slow = 0
        self.control: socket.socket | None = None
        self.parent: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the parent process, or a new one if it has ended."""
        self.stop()
        self.control, theirs = socket.socketpair()
        # Tasks are many and small: threads of their own would only get into each other's way.
        env = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
        with theirs:
            self.parent = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main({theirs.fileno()})"],
                pass_fds=[theirs.fileno()],
                env=env,
            )
        self.control.sendall(_framed(pickle.dumps((self.processor, self.limits))))

    def stop(self) -> None:
        """Ends the parent process. Children end with their tasks."""
        if self.parent is not None and self.control is not None:
            self.control.close()
            self.parent.kill()
            self.parent.wait()
            self.parent = None

    @asynccontextmanager
    async def result(self, function: Callable[..., Any], *arguments: Any) -> AsyncIterator[Any]:
        """
        What a function returns. The bytes of the result count as used until the context ends.

        Args:
            function (`Callable`):
                A function of a module.
            *arguments (`Any`):
                Its arguments after the first one, which is the processor.

        Raises:
            RefusedRequest: If the function raised it, or needed more than the limits allow; with status 429 if there
                are too many slow tasks already.
            RuntimeError: If the function failed otherwise.
        """
        async with AsyncExitStack() as reserved:
            async with self._child(function, arguments) as reader:
                num_bytes = int.from_bytes(await reader.readexactly(8), "little")
                if num_bytes > self.limits.output_bytes:
                    raise self.limits.refusal()
                await reserved.enter_async_context(self.budget.reserve(num_bytes))
                data = await reader.readexactly(num_bytes)
            kind, value = await anyio.to_thread.run_sync(_load, data, self.processor)
            del data
            if kind == "refused":
                raise RefusedRequest(**value)
            if kind == "failed":
                raise RuntimeError(f"a task failed: {value}")
            yield value

    @asynccontextmanager
    async def _child(
        self, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> AsyncIterator[asyncio.StreamReader]:
        """A child whose result comes next; it is killed if it has not ended by the end of the context."""
        await self.quick.acquire()
        release = self.quick.release
        try:
            reader, writer = await asyncio.open_connection(sock=self._fork())
            pid = 0
            try:
                pid = int.from_bytes(await reader.readexactly(8), "little")
                writer.write(_framed(pickle.dumps((function, arguments))))
                sign = await _next_sign(reader)
                if sign == _SLOW:
                    release_slow = self._take_slow_slot()
                    release()
                    release = release_slow
                    sign = await _next_sign(reader)
                if sign != _RESULT:  # it was killed at one of its limits
                    raise self.limits.refusal()
                yield reader
            finally:
                writer.close()
                if pid:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise self.limits.refusal() from error
        finally:
            release()

    def _take_slow_slot(self) -> Callable[[], None]:
        """Takes one of the slots of slow tasks and returns what gives it back."""
        if self.num_slow >= NUM_SLOW:
            message = "the server prepares as many expensive requests as it can already; try again in a moment"
            raise RefusedRequest(message, status=429)
        self.num_slow += 1

        def release() -> None:
            self.num_slow -= 1

        return release

    def _fork(self) -> socket.socket:
        """The socket of a new child. A parent that has been killed, as for memory, is started again."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._started(), [b"f"], [theirs.fileno()])
            except OSError:
                logger.exception("the process that prepares requests has ended; starting it again")
                self.start()
                socket.send_fds(self._started(), [b"f"], [theirs.fileno()])
        return ours

    def _started(self) -> socket.socket:
        if self.control is None:
            raise RuntimeError("`start` must be called first")
        return self.control


async def _next_sign(reader: asyncio.StreamReader) -> bytes:
    with anyio.fail_after(WALL_SECONDS):
        return await reader.read(1)


def _framed(data: bytes) -> bytes:
    """Bytes that say how many they are."""
    return len(data).to_bytes(8, "little") + data


class _Pickler(pickle.Pickler):
    """Leaves out the vocabulary, which the server has too, and writes down what priors know of theirs."""

    dispatch_table = {
        WeakKeyDictionary: lambda entries: (WeakKeyDictionary, (dict(entries),)),
        StructurePrior: lambda prior: (object.__new__, (StructurePrior,), vars(prior)),  # with its canvases
    }

    def persistent_id(self, thing: Any) -> str | None:
        return "vocabulary" if isinstance(thing, Vocabulary) else None


class _Unpickler(pickle.Unpickler):
    """Reads what `_Pickler` has written in one of our own processes."""

    def __init__(self, file: io.BytesIO, vocabulary: Vocabulary):
        super().__init__(file)
        self.vocabulary = vocabulary

    def persistent_load(self, name: Any) -> Vocabulary:
        return self.vocabulary


def _load(data: bytes, processor: Any) -> tuple[str, Any]:
    return _Unpickler(io.BytesIO(data), Vocabulary.of(processor.tokenizer)).load()


def dump_result(outcome: tuple[str, Any]) -> bytes:
    """The bytes that `_load` reads."""
    file = io.BytesIO()
    _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(outcome)
    return file.getvalue()


def _outcome(function: Callable[..., Any], processor: Any, arguments: tuple[Any, ...], limits: TaskLimits) -> bytes:
    """What a child sends: ("done", result), ("refused", fields of a `RefusedRequest`) or ("failed", reason)."""
    try:
        return dump_result(("done", function(processor, *arguments)))
    except RefusedRequest as refusal:
        fields = {"message": str(refusal), "param": refusal.param, "status": refusal.status, "code": refusal.code}
    except (MemoryError, RecursionError):
        fields = {"message": str(limits.refusal())}
    except Exception as error:  # whatever it is, the server answers the next request
        logger.exception("a task failed")
        return pickle.dumps(("failed", f"{type(error).__name__}: {error}"))
    return pickle.dumps(("refused", fields))


def _run_child(processor: Any, limits: TaskLimits, connection: socket.socket) -> None:
    """Does the task that comes out of the socket."""
    connection.sendall(os.getpid().to_bytes(8, "little"))
    file = connection.makefile("rb")
    function, arguments = pickle.loads(file.read(int.from_bytes(file.read(8), "little")))

    def slow_down(*_: Any) -> None:
        os.nice(19)
        connection.sendall(_SLOW)

    signal.signal(signal.SIGPROF, slow_down)
    signal.setitimer(signal.ITIMER_PROF, QUICK_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_memory_bytes() + limits.memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = _outcome(function, processor, arguments, limits)
    signal.setitimer(signal.ITIMER_PROF, 0)
    connection.sendall(_RESULT + _framed(data))


def _memory_bytes() -> int:
    """Address space of this process. Without /proc, where it cannot be limited either, nothing."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _read(file: Any, num_bytes: int) -> bytes:
    data = bytearray()
    while len(data) < num_bytes:
        chunk = file.read(num_bytes - len(data))
        if not chunk:
            raise EOFError("the server has ended")
        data += chunk
    return bytes(data)


def main(descriptor: int) -> None:
    """
    The parent process: loads the processor, then forks a child for every socket that comes.

    Args:
        descriptor (`int`):
            File descriptor of the control socket.
    """
    os.setpgid(0, 0)  # a Ctrl+C is for the server. Of another session, priorities would not count against the server's
    control = socket.socket(fileno=descriptor)
    # Closed before the first fork: a child that kept it would keep the socket open after this process has ended, and
    # the server would not learn that.
    with control.makefile("rb", buffering=0) as file:
        processor, limits = pickle.loads(_read(file, int.from_bytes(_read(file, 8), "little")))
    Vocabulary.of(processor.tokenizer)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children leave no zombies
    gc.collect()
    gc.freeze()  # what is shared with the children stays shared
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return  # the server has ended
        with socket.socket(fileno=descriptors[0]) as connection:
            if os.fork() == 0:
                status = 1
                try:
                    control.close()
                    with suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
                        _run_child(processor, limits, connection)
                    status = 0
                finally:
                    os._exit(status)

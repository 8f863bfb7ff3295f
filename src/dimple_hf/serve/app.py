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
"""The app: HTTP in and out. What a request means is decided in `preparation`, what is done with it in `worker`.

```text
  request -> one too many? 429 -> body, bounded -> parse -> images, fetched -> a position in the line -> job -> worker
                                                                                                         |
  answer, whole or in pieces <- progress of the job <------------------------------------------------ each step
```

Imported by the command line.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .fetching import fetch
from .limits import MIB, Limits, RefusedRequest, error_body
from .preparation import Preparation
from .replies import DONE, Reply, TextDeltas, event
from .requests import ChatRequest, parse_request
from .worker import Job, Progress, ServerFault, Worker

logger = logging.getLogger(__name__)

#: Longest wait for the whole of a request's body.
BODY_SECONDS = 60

#: Requests that are parsed or prepared at the same time; both need a processor core each.
NUM_PREPARING = 2

#: Prepared requests for each one that runs. Others wait as bodies, which are smaller than the patches of images.
PREPARED_BATCHES = 4


class ChatCompletions:
    """
    `POST /v1/chat/completions`.

    Args:
        name (`str`):
            What the model is called.
        worker ([`Worker`]):
            Runs the model.
        preparation ([`Preparation`]):
            Makes jobs of requests.
        limits ([`Limits`]):
            The server's bounds.
        allows_remote_images (`bool`):
            Whether images are fetched from public addresses.
    """

    def __init__(
        self, name: str, worker: Worker, preparation: Preparation, limits: Limits, allows_remote_images: bool
    ):
        self.name = name
        self.worker = worker
        self.preparation = preparation
        self.limits = limits
        self.allows_remote_images = allows_remote_images
        self.num_requests = 0
        self.preparing = anyio.CapacityLimiter(NUM_PREPARING)
        self.prepared = anyio.CapacityLimiter(PREPARED_BATCHES * limits.max_batch_size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or says why not. One too many is not even read."""
        if self.num_requests >= self.limits.max_requests:
            message = (
                f"the server answers at most {self.limits.max_requests} requests at a time; try again in a moment"
            )
            await _refused(RefusedRequest(message, status=429))(scope, receive, send)
            return
        self.num_requests += 1
        try:
            await self._answer(Request(scope, receive), scope, receive, send)
        except RefusedRequest as refusal:
            # Its traceback holds the frames that it came through, with the body and half an automaton, and some of
            # them hold it: megabytes of every refused request would wait for the next full garbage collection.
            refusal.__traceback__ = None
            await _refused(refusal)(scope, receive, send)
        except ClientDisconnect:
            pass  # before there was a job for it
        finally:
            self.num_requests -= 1

    async def _answer(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(request, self.limits.max_body_bytes)
        asked = await anyio.to_thread.run_sync(parse_request, body, limiter=self.preparing)
        del body
        if asked.model != self.name:
            raise RefusedRequest(
                f"`model` must be {self.name!r} on this server (got {asked.model[:60]!r})",
                "model",
                status=404,
                code="model_not_found",
            )
        fetched = await self._fetch_images(asked)
        async with self.prepared:
            if await request.is_disconnected():
                return
            job = await anyio.to_thread.run_sync(self.preparation.job, asked, fetched, limiter=self.preparing)
            del fetched
            updates = self._submit(job)
            try:
                reply = Reply(self.name, job.inputs["input_ids"].shape[1])
                if asked.stream:
                    with_usage = asked.stream_options is not None and asked.stream_options.include_usage is True
                    pieces = self._pieces(updates, reply, with_usage)
                    response: Response = StreamingResponse(pieces, media_type="text/event-stream")
                else:
                    response = await self._whole(updates, reply, receive)
                await response(scope, receive, send)
            finally:
                self.worker.cancel(job)

    async def _fetch_images(self, asked: ChatRequest) -> dict[str, bytes]:
        """The files of images that are not in the request, by URL."""
        fetched: dict[str, bytes] = {}
        bytes_left = self.limits.max_image_bytes
        for url in asked.image_urls():
            if url in fetched or not url.startswith(("http://", "https://")):
                continue
            if not self.allows_remote_images:
                raise RefusedRequest("images must be `data:` URLs: this server fetches none", "messages")
            fetched[url] = await fetch(url, bytes_left)
            bytes_left -= len(fetched[url])
        return fetched

    def _submit(self, job: Job) -> "asyncio.Queue[Progress | ServerFault]":
        """Lets the job wait for its turn; what comes of it is put into the queue that is returned."""
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[Progress | ServerFault] = asyncio.Queue()
        job.put = lambda update: _call_in(loop, updates, update)
        self.worker.submit(job)
        return updates

    async def _whole(
        self, updates: "asyncio.Queue[Progress | ServerFault]", reply: Reply, receive: Receive
    ) -> Response:
        """The answer at once; nothing if the client goes away meanwhile."""
        response = Response(status_code=499)  # nobody will see it
        async with anyio.create_task_group() as tasks:

            async def watch_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch_client)
            while isinstance(update := await updates.get(), Progress) and not update.is_last:
                pass
            if isinstance(update, ServerFault):
                response = _failed(update)
            else:
                text, num_tokens = self._text(update.tokens), self._num_tokens(update.tokens)
                response = JSONResponse(reply.completion(text, num_tokens, _finish_reason(update)))
            tasks.cancel_scope.cancel()
        return response

    async def _pieces(
        self, updates: "asyncio.Queue[Progress | ServerFault]", reply: Reply, with_usage: bool
    ) -> AsyncIterator[bytes]:
        """The events of a stream. Starlette ends it when the client goes away."""
        yield reply.chunk({"role": "assistant", "content": ""})
        deltas = TextDeltas(self._text)
        while True:
            update = await updates.get()
            if isinstance(update, ServerFault):
                yield event(error_body(str(update), "server_error"))
                return
            if text := deltas.push(update.tokens, update.is_last):
                yield reply.chunk({"content": text})
            if update.is_last:
                break
        yield reply.chunk({}, _finish_reason(update))
        if with_usage:
            yield reply.usage_chunk(self._num_tokens(update.tokens))
        yield DONE

    def _text(self, tokens: Any) -> str:
        return self.preparation.processor.decode(tokens, skip_special_tokens=True)

    def _num_tokens(self, tokens: list[int]) -> int:
        """Tokens of an answer without fillers."""
        special = set(self.preparation.processor.tokenizer.all_special_ids)
        return sum(token not in special for token in tokens)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """
    Args:
        request (`Request`):
            A request.
        max_bytes (`int`):
            Most bytes.

    Returns:
        `bytes`: Its body.

    Raises:
        RefusedRequest: If it is not JSON, has more bytes, or comes too slowly.
    """
    # A web page can send forms and text to any address, but JSON only where the server allows it.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedRequest("the content type must be application/json", status=415)
    too_large = RefusedRequest(f"the body must have at most {max_bytes / MIB:.3g} MiB", status=413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RefusedRequest(f"the body must come within {BODY_SECONDS} seconds", status=408) from error
    return bytes(body)


def _call_in(loop: asyncio.AbstractEventLoop, updates: "asyncio.Queue[Any]", update: Any) -> None:
    """Puts an update into a queue of another thread's loop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(updates.put_nowait, update)


def _finish_reason(progress: Progress) -> str:
    return "stop" if progress.has_ended else "length"


def _refused(refusal: RefusedRequest) -> Response:
    headers = {"Retry-After": "1"} if refusal.status == 429 else None
    return JSONResponse(refusal.body(), refusal.status, headers)


def _failed(fault: ServerFault) -> Response:
    return JSONResponse(error_body(str(fault), "server_error"), 500)


async def _http_error(request: Request, error: Any) -> Response:
    """Starlette's own refusals (no such path, no such method) in OpenAI's form."""
    refusal = RefusedRequest(f"{error.detail}: {request.method} {request.url.path}", status=error.status_code)
    return JSONResponse(refusal.body(), error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    """A defect in OpenAI's form. Starlette raises it again, so that it is logged."""
    return JSONResponse(error_body("the server failed", "server_error"), 500)


def build_app(model: Any, processor: Any, name: str, limits: Limits, allows_remote_images: bool = False) -> Starlette:
    """
    Builds the server of a model.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            A diffusion model, on its device.
        processor ([`DimpleProcessor`]):
            Its processor.
        name (`str`):
            What clients call it.
        limits ([`Limits`]):
            Bounds of requests.
        allows_remote_images (`bool`, *optional*, defaults to `False`):
            Whether images are fetched from public addresses.

    Returns:
        `starlette.applications.Starlette`: An ASGI app, whose lifespan starts and stops the model's thread.

    Raises:
        ValueError: If the model is not one that denoises.
    """
    if not model.config.full_attn_mask:
        raise ValueError("`model` must be a diffusion model (got one with `full_attn_mask=False`)")
    worker = Worker(model, processor.tokenizer, limits.max_batch_size)
    chat = ChatCompletions(name, worker, Preparation(model, processor, limits), limits, allows_remote_images)
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "dimple_hf"}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        worker.start()
        yield
        await anyio.to_thread.run_sync(worker.stop)

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def health(request: Request) -> Response:
        is_well = worker.is_alive()
        return JSONResponse({"status": "ok" if is_well else "the model has stopped"}, 200 if is_well else 503)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
        ],
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
        lifespan=lifespan,
    )

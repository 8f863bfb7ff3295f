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
"""`POST /v1/chat/completions`: from the body of a request to its answer, whole or streamed.

```text
  one too many? 429 -> body, bounded -> parse -> images, fetched -> prepared in a process -> jobs -> worker
                                                                                                      |
  answer, whole or in pieces <- progress of each job <------------------------------------- each step +
```
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from .fetching import fetch
from .jobs import SHUTTING_DOWN, Job, Progress, ServerFault
from .limits import MIB, Limits, RefusedRequest, error_body
from .metrics import Metrics
from .preparation import Preparation
from .replies import DONE, GrowingText, Logprobs, Reply, choice_of, event
from .requests import ChatRequest, parse_request
from .tools import read_call
from .worker import Worker

#: Longest wait for the whole of a request's body, and for a client to take a piece of its answer.
BODY_SECONDS, SEND_SECONDS = 60, 60

#: Bodies that are parsed at the same time; each needs a processor core.
NUM_PARSING = 2

#: Prepared requests for each one that runs. Others wait as bodies, which are smaller than the patches of images.
PREPARED_BATCHES = 4

#: Seconds after which a client should try again, by status.
RETRY_AFTER = {429: "1", 503: "5"}

Updates = asyncio.Queue[tuple[int, Progress | ServerFault]]


class ChatCompletions:
    """
    An ASGI app of chat completions.

    Args:
        name (`str`):
            The model's name.
        worker ([`Worker`]):
            Runs the model.
        preparation ([`Preparation`]):
            Makes jobs of requests.
        limits ([`Limits`]):
            The server's bounds.
        metrics ([`Metrics`]):
            Observes the time to the first token.
        allows_remote_images (`bool`):
            Whether images are fetched from public addresses.
    """

    def __init__(
        self,
        name: str,
        worker: Worker,
        preparation: Preparation,
        limits: Limits,
        metrics: Metrics,
        allows_remote_images: bool,
    ):
        self.name = name
        self.worker = worker
        self.preparation = preparation
        self.limits = limits
        self.metrics = metrics
        self.allows_remote_images = allows_remote_images
        self.num_requests = 0
        self.is_draining = False
        self.parsing = anyio.CapacityLimiter(NUM_PARSING)
        self.prepared = anyio.CapacityLimiter(PREPARED_BATCHES * limits.max_batch_size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it with a reason."""
        await self.serve(self._answer, scope, receive, send)

    async def serve(
        self,
        answer: Callable[[Request, Scope, Receive, Send], Awaitable[None]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Lets `answer` answer a request, and sends its refusals. One request too many is not even read."""
        send = partial(_send_in_time, send)
        if self.is_draining:
            await refused(RefusedRequest(SHUTTING_DOWN, status=503))(scope, receive, send)
            return
        if self.num_requests >= self.limits.max_requests:
            most = self.limits.max_requests
            message = f"the server answers at most {most} requests at a time; try again in a moment"
            await refused(RefusedRequest(message, status=429))(scope, receive, send)
            return
        self.num_requests += 1
        try:
            await answer(Request(scope, receive), scope, receive, send)
        except RefusedRequest as refusal:
            # Its traceback holds the frames that it came through, with the body, and some of them hold it: megabytes
            # of every refused request would wait for the next full garbage collection.
            refusal.__traceback__ = None
            await refused(refusal)(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self.num_requests -= 1

    async def _answer(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()
        body = await read_body(request, self.limits.max_body_bytes)
        asked = await anyio.to_thread.run_sync(parse_request, body, limiter=self.parsing)
        del body
        if asked.model != self.name:
            raise model_not_found(self.name, asked.model)
        fetched = await self.fetch_images(asked)
        async with self.prepared:
            if await request.is_disconnected():
                return
            async with self.preparation.jobs(asked, fetched) as jobs:
                del fetched
                answer = Answer(self, asked, jobs, began)
                try:
                    response = answer.stream() if asked.stream else await answer.whole(receive)
                    await response(scope, receive, send)
                finally:
                    for job in jobs:
                        self.worker.cancel(job)

    async def fetch_images(self, asked: ChatRequest) -> dict[str, bytes]:
        """The files of images that are not in the request, by URL."""
        fetched: dict[str, bytes] = {}
        bytes_left = self.limits.max_image_bytes
        urls = asked.image_urls()
        if len(urls) > self.limits.max_images:
            most = self.limits.max_images
            raise RefusedRequest(f"a request must have at most {most} images (got {len(urls)})", "messages")
        for url in urls:
            if url in fetched or not url.startswith(("http://", "https://")):
                continue
            if not self.allows_remote_images:
                raise RefusedRequest("images must be `data:` URLs: this server fetches none", "messages")
            fetched[url] = await fetch(url, bytes_left)
            bytes_left -= len(fetched[url])
        return fetched


class Answer:
    """
    The choices of one request while they are decoded.

    Args:
        chat ([`ChatCompletions`]):
            What answers.
        asked ([`ChatRequest`]):
            The request.
        jobs (`list[Job]`):
            One for each choice; they are submitted.
        began (`float`):
            When the request came.
    """

    def __init__(self, chat: ChatCompletions, asked: ChatRequest, jobs: list[Job], began: float):
        self.worker, self.metrics, self.began = chat.worker, chat.metrics, began
        self.jobs = jobs
        self.calls_functions = bool(asked.callable_functions)
        self.with_usage = asked.stream_options is not None and asked.stream_options.include_usage is True
        processor = chat.preparation.processor
        self.special_ids = frozenset(processor.tokenizer.all_special_ids)
        self.form = Logprobs(processor.tokenizer) if asked.logprobs else None
        self.num_sent = [0] * len(jobs)
        self.logprobs: list[list[dict[str, Any]]] = [[] for _ in jobs]  # entries that are not sent yet
        ids = jobs[0].inputs["input_ids"]
        self.reply = Reply(chat.name, ids.shape[1], int((ids == processor.image_token_id).sum()))
        decode = partial(processor.decode, skip_special_tokens=True)
        self.texts = [GrowingText(decode, asked.stop or ()) for _ in jobs]
        self.reasons: list[str | None] = [None] * len(jobs)
        self.num_tokens = [0] * len(jobs)
        self.updates: Updates = asyncio.Queue()
        loop = asyncio.get_running_loop()
        for index, job in enumerate(jobs):
            job.put = partial(_put_from_thread, loop, self.updates, index)
        chat.worker.submit(*jobs)

    async def whole(self, receive: Receive) -> Response:
        """The answer at once; nothing if the client goes away meanwhile."""
        response = Response(status_code=499)  # nobody will see it
        async with anyio.create_task_group() as tasks:

            async def watch_client() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch_client)
            try:
                async for _ in self._pieces():
                    pass
            except ServerFault as fault:
                response = failed(fault)
            else:
                choices = [
                    choice_of(index, *self._ending(index), self._take_logprobs(index))
                    for index in range(len(self.jobs))
                ]
                response = JSONResponse(self.reply.completion(choices, sum(self.num_tokens)))
            tasks.cancel_scope.cancel()
        return response

    def stream(self) -> Response:
        """The answer in pieces. Starlette ends it when the client goes away."""
        return StreamingResponse(self._events(), media_type="text/event-stream")

    async def _events(self) -> AsyncIterator[bytes]:
        for index in range(len(self.jobs)):
            yield self.reply.chunk(index, {"role": "assistant", "content": None if self.calls_functions else ""})
        try:
            async for index, text in self._pieces():
                # A call comes at once, when it can be read.
                if (text or self.logprobs[index]) and not self.calls_functions:
                    yield self.reply.chunk(index, {"content": text}, logprobs=self._take_logprobs(index))
                if self.reasons[index] is not None:
                    message, reason = self._ending(index)
                    if self.calls_functions:
                        calls = [call | {"index": number} for number, call in enumerate(message.get("tool_calls", ()))]
                        delta = message | ({"tool_calls": calls} if calls else {})
                        yield self.reply.chunk(index, delta, logprobs=self._take_logprobs(index))
                    yield self.reply.chunk(index, {}, reason)
        except ServerFault as fault:
            yield event(error_body(str(fault), "server_error"))
            return
        if self.with_usage:
            yield self.reply.usage_chunk(sum(self.num_tokens))
        yield DONE

    async def _pieces(self) -> AsyncIterator[tuple[int, str]]:
        """Pieces of text, each with the index of its choice; the last one of a choice comes when it has ended."""
        is_first = True
        while None in self.reasons:
            index, update = await self.updates.get()
            if self.reasons[index] is not None:
                continue
            if isinstance(update, ServerFault):
                raise update
            growing = self.texts[index]
            text = growing.push(update.tokens, update.is_last)
            self._add_logprobs(index, update)
            if is_first and growing.sent:
                self.metrics.observe_first_token(time.monotonic() - self.began)
                is_first = False
            if growing.is_cut or update.is_last:
                self.worker.cancel(self.jobs[index])
                self.reasons[index] = "stop" if growing.is_cut or update.has_ended else "length"
                answer = update.tokens[: growing.num_tokens]
                self.num_tokens[index] = sum(token not in self.special_ids for token in answer)
            yield index, text

    def _add_logprobs(self, index: int, update: Progress) -> None:
        """Adds the entries of the tokens whose text is new."""
        if self.form is not None:
            begin, end = self.num_sent[index], self.texts[index].num_sent(update.tokens, update.is_last)
            self.logprobs[index] += self.form.entries(update.logprobs[begin:end])
            self.num_sent[index] = max(begin, end)

    def _take_logprobs(self, index: int) -> list[dict[str, Any]] | None:
        """The entries that are not sent yet; `None` where none are wanted."""
        if self.form is None:
            return None
        taken, self.logprobs[index] = self.logprobs[index], []
        return taken

    def _ending(self, index: int) -> tuple[dict[str, Any], str]:
        """The message of a choice that has ended, and why it has."""
        reason = self.reasons[index] or "stop"
        text = self.texts[index].sent
        if not self.calls_functions or self.texts[index].is_cut:
            return {"content": text}, reason
        message = read_call(text)
        return message, "tool_calls" if "tool_calls" in message else reason


async def read_body(request: Request, max_bytes: int) -> bytes:
    """
    Args:
        request (`Request`):
            A request.
        max_bytes (`int`):
            Maximum number of bytes.

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


def model_not_found(name: str, asked: str) -> RefusedRequest:
    """The refusal of a request for another model, `asked` (`str`), than `name` (`str`)."""
    return RefusedRequest(
        f"`model` must be {name!r} on this server (got {asked[:60]!r})", "model", status=404, code="model_not_found"
    )


def refused(refusal: RefusedRequest) -> Response:
    """The response to a request that is refused with `refusal` ([`RefusedRequest`])."""
    headers = {"Retry-After": RETRY_AFTER[refusal.status]} if refusal.status in RETRY_AFTER else None
    return JSONResponse(refusal.body(), refusal.status, headers)


def failed(fault: ServerFault) -> Response:
    """The response to a request that ended in `fault` ([`ServerFault`])."""
    if str(fault) == SHUTTING_DOWN:
        return refused(RefusedRequest(SHUTTING_DOWN, status=503))
    return JSONResponse(error_body(str(fault), "server_error"), 500)


async def _send_in_time(send: Send, message: Message) -> None:
    """Sends a piece of a response; a client that does not take it in time counts as gone."""
    try:
        with anyio.fail_after(SEND_SECONDS):
            await send(message)
    except TimeoutError as error:
        raise ClientDisconnect() from error


def _put_from_thread(loop: asyncio.AbstractEventLoop, updates: Updates, index: int, update: Any) -> None:
    """Puts an update into a queue of another thread's loop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(updates.put_nowait, (index, update))

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
"""`POST /v1/decisions`: typed questions about an input, answered with a probability for each option."""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio.to_thread
import torch
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ..decisions.calibration import Calibration
from ..decisions.decide import answer_from
from ..decisions.layout import LabelLayout, TextLayout, lay_out
from ..decisions.questions import Question
from ..decisions.reading import Canvas, CanvasReader, check_attention
from .chat import ChatCompletions, failed, model_not_found, read_body
from .decision_requests import MAX_CANVASES, MAX_CHARACTERS, DecisionRequest, chat_about, parse_decision_request
from .jobs import Job, ServerFault, collate
from .limits import RefusedRequest


@dataclass(frozen=True)
class _Row:
    """A canvas that waits for its forward pass, with its prepared prompt."""

    canvas: Canvas
    prompt: Mapping[str, torch.Tensor]
    result: "asyncio.Future[list[torch.Tensor]]"


class DecisionReader:
    """
    Reads canvases in the model's thread. Rows of all requests that wait share a forward pass.

    Args:
        chat ([`ChatCompletions`]):
            Has the worker and the bounds.
    """

    def __init__(self, chat: ChatCompletions):
        self.worker = chat.worker
        self.tokenizer = chat.preparation.processor.tokenizer
        self.max_batch_size = chat.limits.max_batch_size
        self.waiting: list[_Row] = []
        self.lock = threading.Lock()

    async def read(
        self, canvases: Sequence[Canvas], prompts: Sequence[Mapping[str, torch.Tensor]]
    ) -> list[list[torch.Tensor]]:
        """
        Args:
            canvases (`Sequence[Canvas]`), prompts (`Sequence[Mapping[str, torch.Tensor]]`):
                Of one request, with one row of inputs for each canvas.

        Returns:
            `list[list[torch.FloatTensor]]`: See [`~dimple_hf.decisions.reading.CanvasReader.read`].

        Raises:
            ServerFault: If the model fails or the server stops.
        """
        loop = asyncio.get_running_loop()
        with self.lock:
            rows = [_Row(*pair, loop.create_future()) for pair in zip(canvases, prompts, strict=True)]
            self.waiting += rows
        for _ in rows:
            self.worker.run(self._read_waiting, self._fail_waiting)
        return list(await asyncio.gather(*(row.result for row in rows)))

    def _take(self) -> list[_Row]:
        with self.lock:
            rows = [row for row in self.waiting[: self.max_batch_size] if not row.result.cancelled()]
            del self.waiting[: self.max_batch_size]
        return rows

    def _read_waiting(self) -> None:
        rows = self._take()
        if not rows:  # an earlier call has read them
            return
        try:
            reader = CanvasReader(self.worker.model, self.tokenizer.pad_token_id)
            prompts = collate([Job(dict(row.prompt), None, row.canvas.answer_length) for row in rows], self.tokenizer)
            encoded = self.worker.features.encode(prompts)  # several canvases and requests may share images
            for row, reads in zip(rows, reader.read([row.canvas for row in rows], encoded), strict=True):
                _resolve(row.result, reads)
        except Exception as error:
            for row in rows:
                _resolve(row.result, ServerFault("the model failed"))
            raise error

    def _fail_waiting(self, reason: str) -> None:
        for row in self._take():
            _resolve(row.result, ServerFault(reason))


def _resolve(future: "asyncio.Future[Any]", outcome: Any) -> None:
    """Sets the outcome of a future of another thread's loop, unless nobody waits any more."""

    def set_outcome() -> None:
        if not future.done():
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    if not future.get_loop().is_closed():
        future.get_loop().call_soon_threadsafe(set_outcome)


class Decisions:
    """
    An ASGI app of decisions.

    Args:
        chat ([`ChatCompletions`]):
            What it shares with chat completions: bounds, preparation, the model.

    `calibration` ([`Calibration`], *optional*) has the temperatures by which log-probabilities are divided, and the
    options of requests that give none.
    """

    def __init__(self, chat: ChatCompletions):
        self.chat = chat
        self.calibration: Calibration | None = None
        self.reader = DecisionReader(chat)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it with a reason."""
        await self.chat.serve(self._answer, scope, receive, send)

    async def _answer(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        chat = self.chat
        body = await read_body(request, chat.limits.max_body_bytes)
        asked = await anyio.to_thread.run_sync(parse_decision_request, body, limiter=chat.parsing)
        del body
        if asked.model != chat.name:
            raise model_not_found(chat.name, asked.model)
        questions = asked.read_questions()
        layout, canvases = await anyio.to_thread.run_sync(self._lay_out, asked, questions, limiter=chat.parsing)
        try:
            reads, num_tokens = await self._read(request, asked, canvases)
        except ServerFault as fault:
            await failed(fault)(scope, receive, send)
            return
        answers = [
            answer_from(question, log_probs, self.calibration)
            for question, log_probs in zip(questions, layout.log_probs(reads), strict=True)
        ]
        reply = {
            "model": chat.name,
            "answers": [answer.to_dict() for answer in answers],
            "usage": _usage(num_tokens, len(questions)),
        }
        await JSONResponse(reply)(scope, receive, send)

    def _lay_out(
        self, asked: DecisionRequest, questions: Sequence[Question]
    ) -> tuple[LabelLayout | TextLayout, list[Canvas]]:
        preparation = self.chat.preparation
        num_characters = sum(len(option.text) for question in questions for option in question.options)
        if num_characters > preparation.max_characters:  # not even cut into tokens
            raise RefusedRequest(f"options must have at most {preparation.max_characters} characters", "questions")
        num_characters += sum(len(question.instructions) for question in questions)
        if num_characters * (asked.permutations or 1) > MAX_CHARACTERS:
            raise RefusedRequest(
                f"questions must have at most {MAX_CHARACTERS} characters in all orders of their options together",
                "questions",
            )
        tokenizer = preparation.processor.tokenizer
        ways = asked.ways if self.calibration is None else self.calibration.ways | asked.ways
        try:
            if self.calibration is not None:
                self.calibration.check_ways(**{"independent": False, "reading": "label"} | ways)
            layout = lay_out(tokenizer, self.reader.worker.model.config.mask_token_id, questions, **ways)
        except ValueError as error:
            name = next((name for name in ways if str(error).startswith(f"`{name}`")), "questions")
            raise RefusedRequest(str(error), name) from error
        if layout.num_canvases > MAX_CANVASES:
            raise RefusedRequest(
                f"`questions` must need at most {MAX_CANVASES} canvases, one for up to 16 questions, with "
                '`independent` for each, times `permutations`, with `reading` "text" for each token of each option: '
                f"send fewer at a time (got {layout.num_canvases})",
                "questions",
            )
        canvases = layout.canvases(0)
        try:
            check_attention(self.reader.worker.model, canvases)
        except ValueError as error:
            raise RefusedRequest(str(error), "independent") from error
        return layout, canvases

    async def _read(
        self, request: Request, asked: DecisionRequest, canvases: Sequence[Canvas]
    ) -> tuple[list[list[torch.Tensor]], int]:
        """
        What is read from the request's canvases, and the tokens of their prompts.

        1. Prepare the first canvas with all images.
        2. Prepare and read the others too, a batch at a time, so that no request makes others wait for more than that.
        """
        preparation = self.chat.preparation
        first = chat_about(asked, canvases[0].prompt)
        fetched = await self.chat.fetch_images(first)
        reads: list[list[torch.Tensor]] = []
        num_tokens = 0
        async with self.chat.prepared, preparation.inputs(first, fetched, canvases[0].answer_length) as arrays:
            # 1.
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
            asked = asked.without_images()
            del first, fetched
            # 2.
            for start in range(0, len(canvases), self.reader.max_batch_size):
                if await request.is_disconnected():
                    raise ClientDisconnect
                batch = canvases[start : start + self.reader.max_batch_size]
                prompts = [arrays["input_ids"]]
                if len(canvases) > 1:
                    prompts = await preparation.prompts(asked, batch, arrays.get("image_grid_thw"))
                num_tokens += sum(prompt.shape[1] for prompt in prompts)
                num_tokens += sum(canvas.num_more_tokens for canvas in batch)
                rows = [inputs | {"input_ids": torch.from_numpy(prompt)} for prompt in prompts]
                reads += await self.reader.read(batch, rows)
        return reads, num_tokens


def _usage(num_input: int, num_output: int) -> dict[str, Any]:
    return {
        "input_tokens": num_input,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": num_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": num_input + num_output,
    }

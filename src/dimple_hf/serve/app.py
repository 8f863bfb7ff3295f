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
"""The application: routes and their common error handling."""

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..decisions import Calibration
from .chat import ChatCompletions, model_not_found, refused
from .decisions import Decisions
from .limits import Limits, RefusedRequest, error_body
from .metrics import Metrics
from .middleware import Gate
from .preparation import Preparation
from .processes import TaskLimits, TaskProcesses
from .requests import MAX_ECHO
from .worker import Worker


async def _http_error(request: Request, error: Any) -> Response:
    """Starlette's own refusals (no such path, no such method) in OpenAI's form, with the paths that exist."""
    paths = ", ".join(sorted(route.path.replace(":path}", "}") for route in request.app.routes))
    path = request.url.path[:MAX_ECHO]
    refusal = RefusedRequest(f"{error.detail}: {request.method} {path} (paths: {paths})", status=error.status_code)
    return JSONResponse(refusal.body(), error.status_code, error.headers)


async def _server_error(request: Request, error: Exception) -> Response:
    """A defect in OpenAI's form. Starlette raises it again, so that it is logged."""
    return JSONResponse(error_body("the server failed", "server_error"), 500)


def build_app(
    model: Any,
    processor: Any,
    name: str,
    limits: Limits,
    allows_remote_images: bool = False,
    api_key: str | None = None,
    allowed_hosts: Collection[str] | None = None,
) -> Starlette:
    """
    Builds the server of a model.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            A diffusion model, on its device.
        processor ([`DimpleProcessor`]):
            Its processor.
        name (`str`):
            The model's name for clients.
        limits ([`Limits`]):
            Bounds of requests.
        allows_remote_images (`bool`, *optional*, defaults to `False`):
            Whether images are fetched from public addresses.
        api_key (`str`, *optional*):
            The key that clients must send.
        allowed_hosts (`Collection[str]`, *optional*):
            The hosts that requests may be for; all of them when missing.

    Returns:
        `starlette.applications.Starlette`: An ASGI app, whose lifespan starts and stops the model's thread and the
        processes that prepare requests. `app.state.chat` is the [`ChatCompletions`], `app.state.decisions` the
        [`Decisions`].

    Raises:
        ValueError: If the model is not one that denoises, or its generation options want static shapes.
    """
    _check_model(model)
    metrics = Metrics()
    worker = Worker(model, processor.tokenizer, limits.max_batch_size, metrics)
    processes = TaskProcesses(processor, TaskLimits())
    preparation = Preparation(model, processor, limits, processes)
    chat = ChatCompletions(name, worker, preparation, limits, metrics, allows_remote_images)
    decisions = Decisions(chat)
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "dimple_hf"}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        processes.start()
        worker.start()
        yield
        await anyio.to_thread.run_sync(worker.stop)
        processes.stop()

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        asked = request.path_params["name"]
        return JSONResponse(card) if asked == name else refused(model_not_found(name, asked))

    async def health(request: Request) -> Response:
        is_well = worker.is_alive() and not chat.is_draining
        return JSONResponse({"status": "ok" if is_well else "the model has stopped"}, 200 if is_well else 503)

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/decisions", decisions, methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", one_model),
            Route("/metrics", show_metrics),
            Route("/health", health),
        ],
        middleware=[Middleware(Gate, metrics=metrics, api_key=api_key, allowed_hosts=allowed_hosts)],
        exception_handlers={HTTPException: _http_error, Exception: _server_error},
        lifespan=lifespan,
    )
    app.state.chat, app.state.decisions = chat, decisions
    return app


def _check_model(model: Any) -> None:
    if not model.config.full_attn_mask:
        raise ValueError("`model` must be a diffusion model (got one with `full_attn_mask=False`)")
    if model.generation_config.cache_implementation is not None:
        raise ValueError(
            "`cache_implementation` must not be set in the checkpoint's generation options: rows join and leave the "
            f"running batch (got {model.generation_config.cache_implementation!r})"
        )


def load_app(
    checkpoint: str, limits: Limits, device: str, dtype: str = "auto", is_calibrated: bool = False, **options: Any
) -> Starlette:
    """
    Loads a checkpoint and builds its server.

    Args:
        checkpoint (`str`):
            Directory or Hub id. Clients see a Hub id as it is, and the last name of a directory.
        limits ([`Limits`]):
            Bounds of requests.
        device (`str`):
            The model's device, such as `"cuda"`.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Type of the weights; `"auto"` for the checkpoint's.
        is_calibrated (`bool`, *optional*, defaults to `False`):
            Whether decisions are divided by the temperatures that `dimple-hf calibrate` left beside the model.
        **options (`Any`):
            Further arguments of [`build_app`].

    Returns:
        `starlette.applications.Starlette`: See [`build_app`].

    Raises:
        ValueError: As [`build_app`], or if there is no calibration beside the model.
        OSError: If there is no such checkpoint.
    """
    calibration = Calibration.from_pretrained(checkpoint) if is_calibrated else None
    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype).to(device).eval()
    name = Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint
    app = build_app(model, processor, name, limits, **options)
    app.state.decisions.calibration = calibration
    return app

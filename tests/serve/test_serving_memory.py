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
"""What a refused request leaves after: nothing that has to wait for a full garbage collection."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
from server_process import body, messages
from starlette.requests import Request

from dimple_hf.serve import Limits, build_app
from dimple_hf.serve.chat import read_body
from dimple_hf.serve.limits import RefusedRequest

JSON = {"content-type": "application/json"}

#: A pattern of which an automaton would take hours.
ENDLESS = {"type": "string", "pattern": "^(a|[a-z]{1,50}){0,60}$"}


@pytest.fixture
def num_refusals() -> Iterator[Any]:
    """Tells how many refusals of this test are in memory with the frames that they came through; none is collected
    meanwhile. Those that an earlier test keeps do not count."""

    def refusals() -> list[RefusedRequest]:
        return [
            thing for thing in gc.get_objects() if type(thing) is RefusedRequest and thing.__traceback__ is not None
        ]

    gc.collect()
    gc.disable()
    earlier = refusals()
    yield lambda: len(refusals()) - len(earlier)
    gc.enable()


async def pieces() -> AsyncIterator[bytes]:
    """A body that announces no length."""
    for _ in range(4):
        yield bytes(1 << 19)


#: What is sent, by name, and the status of its refusal.
REFUSED = {
    "broken JSON": (body()[:-5], 400),
    "too large": (pieces, 413),
    "broken image": (body(messages=messages(0)).replace(b"base64,iVBOR", b"base64,AAAAA"), 400),
    "endless pattern": (
        body(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": ENDLESS}}),
        400,
    ),
}


@pytest.mark.usefixtures("shared_processes")
def test_refused_requests_leave_nothing_after(forms_model: Any, forms_processor: Any, num_refusals: Any) -> None:
    """Their errors know the frames that they came through, with the body and whatever was made of it by then."""
    app = build_app(forms_model, forms_processor, "forms", Limits(max_body_bytes=1 << 20))

    async def ask() -> None:
        transport = httpx2.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx2.AsyncClient(transport=transport, base_url="http://forms") as client,
        ):
            for name, (sent, status) in REFUSED.items():
                content = sent() if callable(sent) else sent
                response = await client.post("/v1/chat/completions", content=content, headers=JSON)
                assert response.status_code == status, name
                assert response.json()["error"]["message"]
                deadline = time.monotonic() + 10
                while num_refusals():  # the thread that raised it lets go of it a moment later
                    assert time.monotonic() < deadline, name
                    await asyncio.sleep(0.01)

    asyncio.run(ask())


def test_error_of_a_body_holds_it_until_its_traceback_is_gone(num_refusals: Any) -> None:
    """Control of the test above: there is something to leave after, and it is seen."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}

    scope = {"type": "http", "headers": [(b"content-type", b"application/json")]}

    async def refuse() -> None:
        try:
            await read_body(Request(scope, receive), 1 << 19)
        except RefusedRequest:
            return

    asyncio.run(refuse())
    assert num_refusals() == 1

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
"""Middleware of all routes: request ids, counts of responses, allowed hosts, and the API key."""

import hmac
import re
import uuid
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .chat import refused
from .limits import RefusedRequest
from .metrics import Metrics

#: Paths that need no key: a supervisor asks them.
OPEN_PATHS = ("/health",)

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


class Gate:
    """
    An ASGI middleware that lets a request pass, or refuses it.

    Args:
        app (`ASGIApp`):
            What comes after it.
        metrics ([`Metrics`]):
            Counts the responses below `/v1/`, which are not a supervisor's.
        api_key (`str`, *optional*):
            The key that clients must send as `Authorization: Bearer KEY`. Without it nobody needs one.
        allowed_hosts (`Collection[str]`, *optional*):
            The hosts that a request may be for, without ports. A web page whose name leads to this machine (DNS
            rebinding) sends its own. Without it all are allowed.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        api_key: str | None = None,
        allowed_hosts: Collection[str] | None = None,
    ):
        self.app, self.metrics = app, metrics
        self.authorization = None if api_key is None else f"Bearer {api_key}".encode()
        self.allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it; either response has the header `X-Request-Id`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                if scope["path"].startswith("/v1/"):
                    self.metrics.count_response(message["status"])
            await send(message)

        refusal = self._refusal(headers, scope["path"])
        app = self.app if refusal is None else refused(refusal)
        await app(scope, receive, send_with_id)

    def _refusal(self, headers: Headers, path: str) -> RefusedRequest | None:
        host = re.sub(r":\d*$", "", headers.get("host", "")).strip("[]").lower()
        if self.allowed_hosts is not None and host not in self.allowed_hosts:
            return RefusedRequest(
                f"this server does not answer for the host {host[:60]!r}; see `--allowed-host`", status=403
            )
        if self.authorization is not None and path not in OPEN_PATHS:
            sent = headers.get("authorization", "").encode()
            if not hmac.compare_digest(sent, self.authorization):
                message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
                return RefusedRequest(message, status=401, code="invalid_api_key")
        return None

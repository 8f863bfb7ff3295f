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
"""Limits of a request, and the errors of requests beyond them."""

from dataclasses import dataclass, fields
from typing import Any

MIB = 1 << 20

#: OpenAI's types of error, by status, where they are not `"invalid_request_error"`.
ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable_error"}


@dataclass(frozen=True)
class Limits:
    """
    Bounds of the server. Those of images are for all images of a request together.

    Args:
        max_requests (`int`, defaults to 128):
            Requests at a time, those that are read, waiting and running. A further one is answered 429.
        max_batch_size (`int`, defaults to 8):
            Requests that the model answers together.
        max_new_tokens (`int`, defaults to 1024):
            Most positions of an answer.
        max_body_bytes (`int`, defaults to 12 MiB):
            Size of a request's body. Images in it are base64, which adds a third.
        max_image_bytes (`int`, defaults to 8 MiB):
            Size of the images' files.
        max_image_pixels (`int`, defaults to 16,777,216):
            Width times height, read from the files' headers before anything is decoded.
        max_images (`int`, defaults to 64):
            Number of images.

    Raises:
        ValueError: If a bound is below 1.
    """

    max_requests: int = 128
    max_batch_size: int = 8
    max_new_tokens: int = 1024
    max_body_bytes: int = 12 * MIB
    max_image_bytes: int = 8 * MIB
    max_image_pixels: int = 1 << 24
    max_images: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ValueError(f"`{field.name}` must be at least 1 (got {value})")


class RefusedRequest(ValueError):
    """
    A request that the client has to change, or to send later.

    Args:
        message (`str`):
            What is wrong.
        param (`str`, *optional*):
            The field that is meant, such as `messages[0].content`.
        status (`int`, defaults to 400):
            HTTP status.
        code (`str`, *optional*):
            One of OpenAI's error codes.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code

    def copy(self) -> "RefusedRequest":
        """The same refusal without a traceback, which holds the frames that it came through and what they hold."""
        return RefusedRequest(str(self), self.param, self.status, self.code)

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's form."""
        return error_body(str(self), ERROR_TYPES.get(self.status, "invalid_request_error"), self.param, self.code)


def error_body(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """
    Args:
        message (`str`), param, code (`str`, *optional*):
            See [`RefusedRequest`].
        kind (`str`):
            OpenAI's type of error, such as `"server_error"`.

    Returns:
        `dict[str, Any]`: The error in OpenAI's form.
    """
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}

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
"""A chat completion request as OpenAI's clients send it, checked field by field: pure functions of the body's bytes.

Source: OpenAI's API reference of chat completions. A field that is not here, or has a value that would change nothing
here but something there, is refused: a client never gets another answer than it asked for. Imported by `preparation`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..modeling.generation_config_dimple import nearest_name
from .limits import RefusedRequest

#: More objects, lists and named values than any prompt can hold: a body with more is not even parsed.
MAX_JSON_VALUES = 200_000

#: Most messages of a chat, and parts of a message.
MAX_ITEMS = 1024

_TAGS = ("text", "image_url", "json_schema")

#: Most characters of a client's own words in an error message.
MAX_ECHO = 60


class _Fields(BaseModel):
    """An object with these fields and no other. Checking stops at the first unknown one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_names(cls, data: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for name in data if isinstance(data, dict) else ():
            if name not in known:
                name = str(name)[:MAX_ECHO]
                message = f"`{name}` is not supported by this server{nearest_name(name, known)}"
                raise PydanticCustomError("unknown_name", "{message}", {"message": message, "name": name})
        return data


class TextPart(_Fields):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageURL(_Fields):
    """Where an image is: a `data:` URL or, where the server allows it, an address."""

    url: str
    detail: Literal["auto"] | None = None


class ImagePart(_Fields):
    """An image of a message."""

    type: Literal["image_url"]
    image_url: ImageURL


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


_ITEMS = Field(min_length=1, max_length=MAX_ITEMS)


class Message(_Fields):
    """A message: text, and images in those of the user."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
        _ITEMS,
        FailFast(),
        BeforeValidator(_as_parts),
    ]

    @model_validator(mode="after")
    def _refuse_images_of_others(self) -> "Message":
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.content):
            raise ValueError(f"images must be in messages of the user (got one of the {self.role}'s)")
        return self


class SchemaOfAnswer(_Fields):
    """A JSON schema and its name. The answer always keeps to it, whatever `strict` says."""

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class JSONSchemaFormat(_Fields):
    """An answer that is JSON and valid for a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaOfAnswer


class TextFormat(_Fields):
    """A free answer."""

    type: Literal["text"]


class StreamOptions(_Fields):
    """What a stream tells beside the text."""

    include_usage: bool | None = None


class ChatRequest(_Fields):
    """
    A request for a chat completion. The fields after `user` have one value that does nothing here, which some clients
    send unasked; `user` itself has no effect.
    """

    model: str
    messages: Annotated[list[Message], _ITEMS, FailFast()]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: Annotated[TextFormat | JSONSchemaFormat, Field(discriminator="type")] | None = None
    user: str | None = None
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "ChatRequest":
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("`max_tokens` must not be given with `max_completion_tokens`, which means the same")
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` must be given with `stream`=true only")
        return self

    @property
    def asked_length(self) -> int | None:
        """Most tokens of the answer, if the client says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must be valid for."""
        if not isinstance(self.response_format, JSONSchemaFormat):
            return None
        return self.response_format.json_schema.schema_

    def image_urls(self) -> list[str]:
        """Where the images are, in reading order."""
        return [
            part.image_url.url for message in self.messages for part in message.content if isinstance(part, ImagePart)
        ]


def parse_request(body: bytes) -> ChatRequest:
    """
    Args:
        body (`bytes`):
            The body of a request.

    Returns:
        [`ChatRequest`]

    Raises:
        RefusedRequest: If it is no JSON, or a field is missing, unknown, of another type or out of range; the message
            names the first that is.
    """
    if sum(body.count(sign) for sign in (b"{", b"[", b":")) > MAX_JSON_VALUES:
        raise RefusedRequest(f"the body must hold at most {MAX_JSON_VALUES} JSON values")
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)[0]
    param, reason = field_path(details["loc"]), details["msg"].removeprefix("Value error, ")[:500]
    if details["type"] == "unknown_name":
        raise RefusedRequest(reason, field_path((*details["loc"], details["ctx"]["name"])))
    raise RefusedRequest(reason if param is None else f"`{param}` is not valid: {reason}", param)


def field_path(location: Sequence[str | int]) -> str | None:
    """
    Args:
        location (`Sequence[str | int]`):
            pydantic's position of an error.

    Returns:
        `str`, *optional*: The same as one writes it, `messages[0].content[1].text`; `None` for the whole body.
    """
    path = ""
    previous: str | int | None = None
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        # After a part's index, or the format, stands which of its classes was tried.
        elif not (step in _TAGS and (isinstance(previous, int) or previous == "response_format")):
            path += f".{step}"
        previous = step
    return path.removeprefix(".") or None

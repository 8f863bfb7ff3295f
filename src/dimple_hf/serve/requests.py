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
"""Requests: their fields and valid values.

A field that asks for nothing (null, empty, or the default of OpenAI's API) is accepted whatever its name.
A field that would change the answer and is not supported is refused: a client never gets another answer than it asked
for. Source: OpenAI's API reference of chat completions.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..modeling.generation_config_dimple import nearest_name
from .limits import RefusedRequest

#: More objects, lists and named values than any prompt can hold: a body with more is not even parsed.
MAX_JSON_VALUES = 200_000

#: Most messages of a chat, and parts of a message.
MAX_ITEMS = 1024

#: Most functions that a model may choose from.
MAX_TOOLS = 64

#: Most stop strings (OpenAI's bound), and characters of one.
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 256

#: Least temperature above 0: with less, the logits overflow, and 0 is meant.
MIN_TEMPERATURE = 1e-3

_TAGS = ("text", "image_url")

#: Most that a client may set a bound of values to which its schema sets none: tokens or items, and digits.
MAX_ADDED_BOUND, MAX_ADDED_DIGITS = 4096, 64

#: Options of a [`StructurePrior`], each its name and value.
Form = tuple[tuple[str, bool | int], ...]

#: Most characters of a client's own words in an error message.
MAX_ECHO = 60

#: Stands for every value in `Fields.ignored`.
ANY = object()


def _is_nothing(value: Any, neutral: Sequence[Any]) -> bool:
    """Whether a value asks for nothing: it is null or empty, or one of `neutral`."""
    if value is None or (isinstance(value, (str, list, dict)) and not value):
        return True
    return any(one is ANY or (one == value and isinstance(one, bool) == isinstance(value, bool)) for one in neutral)


class Fields(BaseModel):
    """
    An object with these fields and no other that asks for anything. Checking stops at the first one that does.

    `ignored` holds, for fields that are not supported, the values that change nothing; `verbatim` the optional fields
    of which empty is not the same as missing.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    verbatim: ClassVar[tuple[str, ...]] = ()
    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        kept = {}
        for name, value in data.items():
            if name in fields:
                if fields[name].is_required() or name in cls.verbatim or not _is_nothing(value, ()):
                    kept[name] = value
            elif not _is_nothing(value, cls.ignored.get(name, ())):
                raise PydanticCustomError("unknown_name", "{message}", cls._refusal(str(name), list(fields)))
        return kept

    @classmethod
    def _refusal(cls, name: str, known: list[str]) -> dict[str, Any]:
        shown = name[:MAX_ECHO]
        values = [repr(value) for value in cls.ignored.get(name, ())]
        reason = f" with this value, only with {' or '.join(values)}" if values else ""
        message = f"`{shown}` is not supported by this server{reason or nearest_name(shown, known)}"
        return {"message": message, "name": shown}


Request = TypeVar("Request", bound=Fields)


class TextPart(Fields):
    """Text of a message."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"cache_control": (ANY,), "prompt_cache_breakpoint": (ANY,)}

    type: Literal["text"]
    text: str


class ImageURL(Fields):
    """Where an image is: a `data:` URL or, where the server allows it, an address. `detail` has no effect."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Fields):
    """An image of a message."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"cache_control": (ANY,), "prompt_cache_breakpoint": (ANY,)}

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(lambda url: {"url": url} if isinstance(url, str) else url)]


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type") in ("video_url", "video"):
            raise PydanticCustomError("video", "videos are not supported: send frames as `image_url` parts")
    return content


class CalledFunction(Fields):
    """The function that an earlier answer called; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Fields):
    """A call of an earlier answer."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"index": (ANY,)}

    type: Literal["function"] = "function"
    id: str | None = None
    function: CalledFunction


_PARTS = list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class Message(Fields):
    """
    A message: text, images in those of the user, calls in those of the assistant. The fields that are ignored are
    those of this server's own answers, of LiteLLM's and of the openai client's.
    """

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {
        "name": (ANY,),
        "parsed": (ANY,),
        "provider_specific_fields": (ANY,),
        "annotations": (ANY,),
        "tool_call_id": (ANY,),
    }
    verbatim: ClassVar[tuple[str, ...]] = ("content",)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[_PARTS, Field(max_length=MAX_ITEMS), BeforeValidator(_as_parts)] | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None

    @model_validator(mode="after")
    def _refuse_misplaced_parts(self) -> "Message":
        if self.role != "assistant":
            if self.content is None:
                raise ValueError(f"a message of the {self.role} must have `content`")
            if self.tool_calls is not None:
                raise ValueError(f"`tool_calls` must be in messages of the assistant (got them in the {self.role}'s)")
        if self.role != "user" and any(isinstance(part, ImagePart) for part in self.content or ()):
            raise ValueError(f"images must be in messages of the user (got one of the {self.role}'s)")
        return self


class SchemaOfAnswer(Fields):
    """
    A JSON schema and its name. The answer always keeps to it, whatever `strict` says.

    The other fields are options of [`StructurePrior.from_json_schema`] and mean the same here.
    """

    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    any_order: bool | None = None
    max_string_tokens: Annotated[int, Field(ge=1, le=MAX_ADDED_BOUND)] | None = None
    max_items: Annotated[int, Field(ge=1, le=MAX_ADDED_BOUND)] | None = None
    max_digits: Annotated[int, Field(ge=1, le=MAX_ADDED_DIGITS)] | None = None

    @property
    def form(self) -> Form:
        """The options that are given, by name."""
        names = ("any_order", "max_string_tokens", "max_items", "max_digits")
        return tuple((name, getattr(self, name)) for name in names if getattr(self, name) is not None)


class JSONSchemaFormat(Fields):
    """An answer that is JSON and valid for a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaOfAnswer


class JSONObjectFormat(Fields):
    """An answer that is a JSON object."""

    type: Literal["json_object"]


class TextFormat(Fields):
    """A free answer."""

    type: Literal["text"]


class StreamOptions(Fields):
    """What a stream tells beside the text."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"include_obfuscation": (True, False)}

    include_usage: bool | None = None


class Function(Fields):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Fields):
    """A function, as a tool."""

    type: Literal["function"]
    function: Function


class NamedFunction(Fields):
    """The name of a function."""

    name: str


class NamedTool(Fields):
    """The function that the answer has to call."""

    type: Literal["function"]
    function: NamedFunction


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


class ChatRequest(Fields):
    """A request for a chat completion. What is `ignored` has no effect with the values that stand there."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {
        # what is told of the client or kept for it, and hints
        "user": (ANY,),
        "metadata": (ANY,),
        "safety_identifier": (ANY,),
        "prompt_cache_key": (ANY,),
        "prompt_cache_retention": (ANY,),
        "prompt_cache_options": (ANY,),
        "prediction": (ANY,),
        "service_tier": ("auto", "default"),
        "store": (False,),
        # what a missing field means
        "frequency_penalty": (0,),
        "presence_penalty": (0,),
        "modalities": (["text"],),
        "function_call": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "reasoning_effort": ("none", "medium"),
        "verbosity": ("medium",),
        # what other servers of this API take, when missing
        "best_of": (1,),
        "repetition_penalty": (1,),
        "length_penalty": (1,),
        "top_k": (-1, 0),
        "min_p": (0,),
        "min_tokens": (0,),
        "echo": (False,),
        "ignore_eos": (False,),
        "use_beam_search": (False,),
        "skip_special_tokens": (True,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
    }

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_ITEMS), FailFast()]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]],
            Field(max_length=MAX_STOPS),
            BeforeValidator(_as_list),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: (
        Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")] | None
    ) = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "ChatRequest":
        lengths = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(lengths) > 1:
            raise ValueError("`max_tokens` must not differ from `max_completion_tokens`, which means the same")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` must be given with `logprobs`=true only")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("`tool_choice` must not ask for a function without `tools`")
        if isinstance(self.tool_choice, NamedTool) and not self.callable_functions:
            raise ValueError(
                f"`tool_choice` must name one of `tools` (got {self.tool_choice.function.name[:MAX_ECHO]!r})"
            )
        if len({function.name for function in self.callable_functions}) < len(self.callable_functions):
            raise ValueError("`tools` must have names that differ")
        if self.callable_functions and self.schema_of_answer is not None:
            raise ValueError("`response_format` must not be given with `tools`, unless `tool_choice` is 'none'")
        return self

    @property
    def num_choices(self) -> int:
        """Answers to this request."""
        return self.n or 1

    @property
    def num_top_logprobs(self) -> int | None:
        """The most probable tokens to list at each position; `None` without log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def callable_functions(self) -> list[Function]:
        """The functions that the answer may call."""
        functions = [tool.function for tool in self.tools or ()]
        if self.tool_choice == "none":
            return []
        if isinstance(self.tool_choice, NamedTool):
            return [function for function in functions if function.name == self.tool_choice.function.name]
        return functions

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice not in (None, "none", "auto")

    @property
    def asked_length(self) -> int | None:
        """Most tokens of the answer, if the client says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON schema that the answer must be valid for."""
        if isinstance(self.response_format, JSONObjectFormat):
            return {"type": "object"}
        if isinstance(self.response_format, JSONSchemaFormat):
            return self.response_format.json_schema.schema_
        return None

    @property
    def form_of_answer(self) -> Form:
        """The options of that schema's [`StructurePrior`]."""
        return self.response_format.json_schema.form if isinstance(self.response_format, JSONSchemaFormat) else ()

    def image_urls(self) -> list[str]:
        """Where the images are, in reading order."""
        return [
            part.image_url.url
            for message in self.messages
            for part in message.content or ()
            if isinstance(part, ImagePart)
        ]


def parse_request(body: bytes) -> ChatRequest:
    """As [`parse_body`], for the body of a request for a chat completion."""
    return parse_body(body, ChatRequest)


def parse_body(body: bytes, request_type: type[Request]) -> Request:
    """
    Args:
        body (`bytes`):
            The body of a request.
        request_type (`type`):
            What the request must be.

    Returns:
        An object of `request_type`.

    Raises:
        RefusedRequest: If it is no JSON, or a field is missing, unknown, of another type or out of range; the message
            names the first that is.
    """
    if sum(body.count(sign) for sign in (b"{", b"[", b":")) > MAX_JSON_VALUES:
        raise RefusedRequest(f"the body must hold at most {MAX_JSON_VALUES} JSON values")
    try:
        return request_type.model_validate_json(body)
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
        # After a part's index, or a field of several classes, comes the class that was tried.
        elif not (isinstance(previous, int) and step in _TAGS) and previous not in ("response_format", "tool_choice"):
            path += f".{step}"
        previous = step
    return path.removeprefix(".") or None

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
"""Requests for decisions: their fields, and the chat that they ask about.

Source: OpenAI's API reference of decisions (`openai.types.decision_create_params`).
"""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ..decisions import Question, questions_from_json
from ..decisions.parsing import MAX_OPTIONS
from .limits import RefusedRequest
from .requests import ANY, MAX_ITEMS, ChatRequest, Fields, parse_body

#: Most canvases of a request, each a row of a forward pass.
MAX_CANVASES = 1024

#: Most characters of all questions in all orders of their options, which are cut into tokens in the server's process.
MAX_CHARACTERS = 1 << 20


class InputText(Fields):
    """Text of the input; `output_text` and `refusal` are what the assistant said."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"prompt_cache_breakpoint": (ANY,), "annotations": (ANY,)}

    type: Literal["input_text", "output_text"]
    text: str


class InputRefusal(Fields):
    """What the assistant refused."""

    type: Literal["refusal"]
    refusal: str


class InputImage(Fields):
    """An image of the input."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"prompt_cache_breakpoint": (ANY,), "detail": (ANY,)}

    type: Literal["input_image"]
    image_url: str


class InputJSON(Fields):
    """JSON of the input, which becomes text."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"prompt_cache_breakpoint": (ANY,)}
    verbatim: ClassVar[tuple[str, ...]] = ("data",)

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


Parts = Annotated[
    list[Annotated[InputText | InputRefusal | InputImage | InputJSON, Field(discriminator="type")]],
    Field(max_length=MAX_ITEMS),
    BeforeValidator(_as_parts),
]


class InputMessage(Fields):
    """A message."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"id": (ANY,), "status": (ANY,), "phase": (ANY,)}
    verbatim: ClassVar[tuple[str, ...]] = ("content",)

    type: Literal["message"] = "message"
    role: Literal["user", "developer", "system", "assistant"]
    content: Parts


class InputCall(Fields):
    """A call of a function or a tool by the assistant."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"id": (ANY,), "status": (ANY,), "namespace": (ANY,)}

    type: Literal["function_call", "custom_tool_call"]
    call_id: str
    name: str
    arguments: str | None = None
    input: str | None = None


class InputCallOutput(Fields):
    """What a function or a tool returned."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {"id": (ANY,), "status": (ANY,)}
    verbatim: ClassVar[tuple[str, ...]] = ("output",)

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: Parts


def _as_items(value: Any) -> Any:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    return [item | {"type": "message"} if isinstance(item, dict) and "type" not in item else item for item in value]


Items = Annotated[
    list[Annotated[InputMessage | InputCall | InputCallOutput, Field(discriminator="type")]],
    Field(min_length=1, max_length=MAX_ITEMS),
    BeforeValidator(_as_items),
]


class DecisionRequest(Fields):
    """A request for decisions; `permutations`, `independent` and `reading` are arguments of [`decide`]."""

    ignored: ClassVar[dict[str, tuple[Any, ...]]] = {
        "prompt_cache_key": (ANY,),
        "prompt_cache_options": (ANY,),
        "safety_identifier": (ANY,),
        "user": (ANY,),
        "metadata": (ANY,),
    }
    verbatim: ClassVar[tuple[str, ...]] = ("input",)

    model: str
    input: Items
    questions: list[Any]
    permutations: Annotated[int, Field(ge=1, le=MAX_OPTIONS)] | None = None
    independent: bool | None = None
    reading: Literal["label", "text"] | None = None

    @property
    def ways(self) -> dict[str, Any]:
        """Those arguments of [`decide`] that are given, by name."""
        names = ("permutations", "independent", "reading")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def without_images(self) -> "DecisionRequest":
        """The same with empty images, which are megabytes."""
        items: list[InputMessage | InputCall | InputCallOutput] = []
        for item in self.input:
            if isinstance(item, InputMessage):
                item = item.model_copy(update={"content": [_emptied(part) for part in item.content]})
            elif isinstance(item, InputCallOutput):
                item = item.model_copy(update={"output": [_emptied(part) for part in item.output]})
            items.append(item)
        return self.model_copy(update={"input": items})

    def read_questions(self) -> list[Question]:
        """
        Raises:
            RefusedRequest: If a question is not written as it must be.
        """
        try:
            return questions_from_json(self.questions)
        except ValueError as error:
            path = str(error).split("`")[1]
            raise RefusedRequest(str(error), path) from error


def parse_decision_request(body: bytes) -> DecisionRequest:
    """As [`parse_request`], for the body of a request for decisions."""
    return parse_body(body, DecisionRequest)


def chat_about(asked: DecisionRequest, prompt: str) -> ChatRequest:
    """
    The chat of a request: its input, and the questions at the end of the user's last turn.

    Args:
        asked ([`DecisionRequest`]):
            The request.
        prompt (`str`):
            The questions as text.
    """
    messages = [_message(item) for item in asked.input]
    if messages[-1]["role"] != "user":
        messages.append({"role": "user", "content": []})
    content = messages[-1]["content"]
    separator = "\n" if content and content[-1]["type"] == "text" else ""
    content.append({"type": "text", "text": separator + prompt})
    return ChatRequest.model_validate({"model": asked.model, "messages": messages})


def _message(item: InputMessage | InputCall | InputCallOutput) -> dict[str, Any]:
    if isinstance(item, InputMessage):
        return {"role": item.role, "content": [_part(part) for part in item.content]}
    if isinstance(item, InputCallOutput):
        return {"role": "user", "content": [_part(part) for part in item.output]}
    called = item.arguments if item.arguments is not None else json.dumps(item.input)
    text = json.dumps({"name": item.name}, ensure_ascii=False)[:-1] + f', "arguments": {called}}}'
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def _emptied(part: InputText | InputRefusal | InputImage | InputJSON) -> Any:
    return part.model_copy(update={"image_url": ""}) if isinstance(part, InputImage) else part


def _part(part: InputText | InputRefusal | InputImage | InputJSON) -> dict[str, Any]:
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    if isinstance(part, InputJSON):
        return {"type": "text", "text": json.dumps(part.data, ensure_ascii=False)}
    return {"type": "text", "text": part.refusal if isinstance(part, InputRefusal) else part.text}

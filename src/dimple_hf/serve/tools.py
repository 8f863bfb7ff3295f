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
"""Functions that an answer may call: their description in the prompt, the structure of a call, its parsing.

A call is JSON under a structure prior, so it always names one of the functions and its arguments are valid for that
function's schema. Whether the right function is called is the model's matter: it must have been trained for it.
"""

import json
import uuid
from typing import Any

from ..processing.schema_shapes_dimple import refuse_example
from .limits import RefusedRequest
from .requests import ChatRequest, Message

_INSTRUCTIONS = """# Functions

{functions}

{rule}"""

_CALL = 'To call a function, answer with {"name": <name>, "arguments": <its arguments>}.'
_MESSAGE = 'To answer without a call, answer with {"content": <text>}.'


def functions_text(request: ChatRequest) -> str:
    """
    Args:
        request ([`ChatRequest`]):
            What the client sent.

    Returns:
        `str`: What the model is told of the functions that the answer may call; empty if there are none.
    """
    functions = request.callable_functions
    if not functions:
        return ""
    lines = [
        json.dumps(function.model_dump(exclude_none=True, exclude={"strict"}), ensure_ascii=False)
        for function in functions
    ]
    return _INSTRUCTIONS.format(functions="\n".join(lines), rule=_CALL if request.must_call else f"{_CALL} {_MESSAGE}")


def called_text(message: Message) -> str:
    """
    Args:
        message ([`Message`]):
            A message of the chat.

    Returns:
        `str`: Its calls in the form in which the model writes them; empty if it has none.
    """
    calls = []
    for call in message.tool_calls or ():
        name = json.dumps(call.function.name, ensure_ascii=False)
        calls.append(f'{{"name": {name}, "arguments": {call.function.arguments}}}')
    return "\n".join(calls)


def call_schema(request: ChatRequest, message_length: int) -> dict[str, Any] | None:
    """
    Args:
        request ([`ChatRequest`]):
            What the client sent.
        message_length (`int`):
            Maximum tokens of a message instead of a call.

    Returns:
        `dict`, *optional*: The JSON schema of an answer that may, or must, call a function; `None` without functions.

    Raises:
        RefusedRequest: If the parameters of a function are an example instead of a schema.
    """
    functions = request.callable_functions
    if not functions:
        return None
    forms, definitions = [], {}
    for index, function in enumerate(functions):
        try:
            refuse_example(function.parameters, "parameters")
        except ValueError as error:
            raise RefusedRequest(f"the function {function.name!r}: {error}", "tools") from error
        parameters = {"type": "object"} | (function.parameters or _object())  # arguments are always an object
        definitions[f"f{index}"] = _moved(parameters, f"#/$defs/f{index}")
        forms.append(_object(name={"const": function.name}, arguments={"$ref": f"#/$defs/f{index}"}))
    if not request.must_call:
        forms.append(_object(content={"type": "string", "x-max-tokens": message_length}))
    return {"anyOf": forms, "$defs": definitions}


def read_call(text: str) -> dict[str, Any]:
    """
    Args:
        text (`str`):
            An answer under `call_schema`.

    Returns:
        `dict[str, Any]`: `content` and `tool_calls` of the answer's message, as OpenAI's API has them.
    """
    answer = json.loads(text)
    if "name" not in answer:
        return {"content": answer["content"]}
    function = {"name": answer["name"], "arguments": json.dumps(answer["arguments"], ensure_ascii=False)}
    call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
    return {"content": None, "tool_calls": [call]}


def _moved(schema: Any, root: str) -> Any:
    """A schema whose references start at `root` instead of at the document's root."""
    if isinstance(schema, list):
        return [_moved(each, root) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, root) for key, value in schema.items()}
    if isinstance(reference := moved.get("$ref"), str) and reference.startswith("#"):
        moved["$ref"] = root + reference[1:]
    return moved


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }

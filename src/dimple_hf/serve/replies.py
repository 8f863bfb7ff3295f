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
"""What the server says, in OpenAI's words: pure functions of the answer.

Source: OpenAI's API reference of chat completions and of their chunks. Imported by `app`.
"""

import json
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

#: Stands for the bytes of a character that is not whole.
REPLACEMENT = "\ufffd"


class Reply:
    """
    The frame of the answer to one request.

    Args:
        model (`str`):
            The model's name.
        prompt_tokens (`int`):
            Tokens of the prompt.
    """

    def __init__(self, model: str, prompt_tokens: int):
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """The counts of tokens, those of the answer without its end and fillers."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
        }

    def completion(self, text: str, completion_tokens: int, finish_reason: str) -> dict[str, Any]:
        """The whole answer at once."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return self._object("chat.completion", [choice]) | {"usage": self.usage(completion_tokens)}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        """An event of the stream: a piece of the answer."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event(self._object("chat.completion.chunk", [choice]))

    def usage_chunk(self, completion_tokens: int) -> bytes:
        """The event after the last piece, for those who asked for the counts."""
        return event(self._object("chat.completion.chunk", []) | {"usage": self.usage(completion_tokens)})

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def event(data: dict[str, Any]) -> bytes:
    """
    Args:
        data (`dict[str, Any]`):
            What to say.

    Returns:
        `bytes`: A server-sent event.
    """
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


#: The end of a stream.
DONE = b"data: [DONE]\n\n"


class TextDeltas:
    """
    Turns growing lists of tokens into pieces of text.

    Args:
        decode (`Callable[[Sequence[int]], str]`):
            The text of tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self.decode = decode
        self.sent = ""

    def push(self, tokens: Sequence[int], is_last: bool) -> str:
        """
        Args:
            tokens (`Sequence[int]`):
                The answer so far. Less than before, where the worker had to begin anew, is nothing new.
            is_last (`bool`):
                Whether nothing follows.

        Returns:
            `str`: What is new. Bytes of a character that is not whole wait for the rest of it.
        """
        text = self.decode(tokens)
        if not is_last:
            text = text.rstrip(REPLACEMENT)
        new = text[len(self.sent) :]
        self.sent += new
        return new

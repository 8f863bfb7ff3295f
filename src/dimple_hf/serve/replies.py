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
"""Replies: completions, chunks of a stream, and the growing texts of answers.

Source: OpenAI's API reference of chat completions and of their chunks.
"""

import json
import time
import uuid
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

from ..processing.vocabulary_dimple import Vocabulary
from .jobs import TokenLogprob

#: Stands for the bytes of a character that is not whole.
REPLACEMENT = "\ufffd"


class Reply:
    """
    The frame of the answer to one request.

    Args:
        model (`str`):
            The model's name.
        prompt_tokens, image_tokens (`int`):
            Tokens of the prompt, and how many of them are an image's.
    """

    def __init__(self, model: str, prompt_tokens: int, image_tokens: int = 0):
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.image_tokens = image_tokens
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def usage(self, completion_tokens: int) -> dict[str, Any]:
        """The counts of tokens, those of all choices without their ends and padding."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": self.prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"image_tokens": self.image_tokens, "cached_tokens": 0},
        }

    def completion(self, choices: list[dict[str, Any]], completion_tokens: int) -> dict[str, Any]:
        """The whole answer at once."""
        return self._object("chat.completion", choices) | {"usage": self.usage(completion_tokens)}

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        finish_reason: str | None = None,
        logprobs: list[dict[str, Any]] | None = None,
    ) -> bytes:
        """An event of the stream: a piece of one choice, with the entries of its tokens where they are wanted."""
        choice = {"index": index, "delta": delta, "logprobs": _of_content(logprobs), "finish_reason": finish_reason}
        return event(self._object("chat.completion.chunk", [choice]))

    def usage_chunk(self, completion_tokens: int) -> bytes:
        """The event after the last piece, for those who want the counts."""
        return event(self._object("chat.completion.chunk", []) | {"usage": self.usage(completion_tokens)})

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def choice_of(
    index: int, message: dict[str, Any], finish_reason: str, logprobs: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """
    Args:
        index (`int`):
            Which of the request's choices.
        message (`dict[str, Any]`):
            Its `content`, and `tool_calls` if it has any.
        finish_reason (`str`):
            Why it ended.
        logprobs (`list[dict[str, Any]]`, *optional*):
            The entries of its tokens, see [`Logprobs`].

    Returns:
        `dict[str, Any]`: A choice of a completion.
    """
    message = {"role": "assistant", "refusal": None} | message
    return {"index": index, "message": message, "logprobs": _of_content(logprobs), "finish_reason": finish_reason}


def _of_content(logprobs: list[dict[str, Any]] | None) -> dict[str, Any] | None:
    return None if logprobs is None else {"content": logprobs, "refusal": None}


class Logprobs:
    """
    Log-probabilities in the form of OpenAI's API.

    Args:
        tokenizer ([`DimpleTokenizer`]):
            The texts and bytes of tokens are its.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.token_bytes = Vocabulary.of(tokenizer).token_bytes

    def entries(self, logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        """One for each of `logprobs` whose token has a text: not for special tokens, such as padding."""
        return [
            self._of_token(token, logprob) | {"top_logprobs": [self._of_token(*each) for each in top]}
            for token, logprob, top in logprobs
            if token not in self.special_ids
        ]

    def _of_token(self, token: int, logprob: float) -> dict[str, Any]:
        """A token may be part of a character: its bytes say which. Special tokens have a name and no bytes."""
        data = self.token_bytes[token] if token < len(self.token_bytes) else None
        if data is None and token not in self.special_ids:
            data = self.tokenizer.decode([token]).encode()
        text = self.tokenizer.convert_ids_to_tokens(token) if data is None else data.decode(errors="replace")
        return {"token": text, "logprob": logprob, "bytes": None if data is None else list(data)}


def event(data: dict[str, Any]) -> bytes:
    """
    Args:
        data (`dict[str, Any]`):
            What to send.

    Returns:
        `bytes`: A server-sent event.
    """
    return b"data: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"


#: The end of a stream.
DONE = b"data: [DONE]\n\n"


class GrowingText:
    """
    The text of an answer whose tokens are unmasked from the left, cut at the first stop string.

    Args:
        decode (`Callable[[Sequence[int]], str]`):
            The text of tokens.
        stops (`Sequence[str]`, *optional*):
            Strings that end the text; they are left out.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()):
        self.decode = decode
        self.stops = stops
        self.sent = ""
        self.is_cut = False
        self.num_tokens = 0

    def push(self, tokens: Sequence[int], is_last: bool) -> str:
        """
        Args:
            tokens (`Sequence[int]`):
                The answer so far. Fewer than before, where the worker had to begin again, are nothing new.
            is_last (`bool`):
                Whether nothing follows.

        Returns:
            `str`: What is new. Bytes of a character that is not whole, and characters that may begin a stop string,
            wait for what follows them.
        """
        if self.is_cut:
            return ""
        text = self.decode(tokens)
        cut = self._cut(text)
        self.num_tokens = len(tokens)
        if cut is not None:
            self.is_cut = True
            self.num_tokens = bisect_left(
                range(len(tokens) + 1), True, key=lambda count: self._cut(self.decode(tokens[:count])) is not None
            )
            text = text[:cut]
        elif not is_last:
            text = text.rstrip(REPLACEMENT)
            text = text[: len(text) - self._num_held_back(text)]
        new = text[len(self.sent) :]
        self.sent += new
        return new

    def num_sent(self, tokens: Sequence[int], is_last: bool) -> int:
        """How many tokens the text so far comes from; a stop string may have cut the last one. Arguments as for
        [`~GrowingText.push`]."""
        if is_last and not self.is_cut:
            return len(tokens)
        counts = range(len(tokens) + 1)
        return min(
            bisect_left(counts, True, key=lambda count: self.decode(tokens[:count]).startswith(self.sent)), len(tokens)
        )

    def _cut(self, text: str) -> int | None:
        """Where the first stop string begins: the one that is complete first, as with tokens that come one by one."""
        found = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _num_held_back(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        most = max((len(stop) - 1 for stop in self.stops), default=0)
        for length in range(min(most, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self.stops):
                return length
        return 0

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
"""From a checked request to a job for the model: chat, images, the form of the answer, tokens, and how to sample.

Everything that a client can get wrong is refused here, before the job meets those of others. Imported by `app`.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import PIL.Image

from ..modeling.generation_config_dimple import DEFAULT_MAX_NEW_TOKENS
from ..processing import StructurePrior
from .images import read_images
from .limits import Limits, RefusedRequest
from .requests import ChatRequest, TextPart
from .worker import Job

#: Priors that are kept, each with what it remembers of its answers, some MiB. A few are enough: laying one out takes
#: up to a second or two for the first time, but hardly any while its automata are remembered.
NUM_KEPT_PRIORS = 16

#: Most characters of a schema. What a small one may cost is bounded where it is laid out.
MAX_SCHEMA_CHARACTERS = 1 << 16

#: Most characters of a chat for each token of the model's context: a longer one is not even cut into tokens.
CHARACTERS_PER_TOKEN = 16


def default_length(model: Any, limits: Limits) -> int:
    """
    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model.
        limits ([`Limits`]):
            Most positions of an answer.

    Returns:
        `int`: Positions of the answer to a request that does not say how many.
    """
    return min(model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS, limits.max_new_tokens)


class Preparation:
    """
    Makes jobs of requests. Several threads may do so at the same time.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            What the jobs are for.
        limits ([`Limits`]):
            The server's bounds.
    """

    def __init__(self, model: Any, processor: Any, limits: Limits):
        self.processor = processor
        self.limits = limits
        self.default_length = default_length(model, limits)
        self.draws_by_default = bool(model.generation_config.do_sample)
        self.context_length = model.config.max_position_embeddings
        self.prior = lru_cache(NUM_KEPT_PRIORS)(self._prior)

    def job(self, request: ChatRequest, fetched: Mapping[str, bytes]) -> Job:
        """
        Args:
            request ([`ChatRequest`]):
                What the client asks.
            fetched (`Mapping[str, bytes]`):
                The files of images that are not `data:` URLs, by URL.

        Returns:
            [`Job`]

        Raises:
            RefusedRequest: If the request asks for what the model cannot do, or the server does not allow.
        """
        self._check_texts(request)
        schema = request.schema_of_answer
        prior = None if schema is None else self.prior(json.dumps(schema))
        length = self._answer_length(request, prior)
        chat = chat_of(request, read_images(request.image_urls(), fetched, self.limits))
        try:
            inputs = self.processor.apply_chat_template(
                chat,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=False,  # of a single row; padding would change the tokenizer, which threads share
            )
        except ValueError as error:
            raise RefusedRequest(str(error), "messages") from error
        prompt_length = inputs["input_ids"].shape[1]
        if prompt_length + length > self.context_length:
            raise RefusedRequest(
                f"prompt and answer must fit {self.context_length} tokens (got {prompt_length} + {length})",
                "messages",
                code="context_length_exceeded",
            )
        options = sampling_options(request)
        draws = options.get("do_sample", self.draws_by_default)
        return Job(dict(inputs), prior, length, options, request.seed if draws else None)

    def _prior(self, schema: str) -> StructurePrior:
        """The prior of a JSON schema, laid out for the model's tokenizer."""
        param = "response_format.json_schema.schema"
        if len(schema) > MAX_SCHEMA_CHARACTERS:
            raise RefusedRequest(f"the schema must have at most {MAX_SCHEMA_CHARACTERS} characters", param)
        try:
            prior = StructurePrior.from_json_schema(json.loads(schema))
            prior.canvas(self.processor.tokenizer)
        except ValueError as error:
            raise RefusedRequest(str(error), param) from error
        return prior

    def _answer_length(self, request: ChatRequest, prior: StructurePrior | None) -> int:
        """Positions of the answer. A prior has as many as its values may need, and none to spare."""
        most = self.limits.max_new_tokens
        asked = request.asked_length
        param = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
        if asked is not None and asked > most:
            raise RefusedRequest(f"`{param}` must be at most {most} on this server (got {asked})", param)
        if prior is None:
            return self.default_length if asked is None else asked
        length = len(prior.canvas(self.processor.tokenizer).ids)
        if length > most:
            raise RefusedRequest(
                f"the schema's values must need at most {most} tokens on this server (they may need {length})",
                "response_format.json_schema.schema",
            )
        if asked is not None and asked < length:
            raise RefusedRequest(
                f"`{param}` must leave room for the {length} tokens that the schema's values may need (got {asked})",
                param,
            )
        return length

    def _check_texts(self, request: ChatRequest) -> None:
        """Refuses text that is too long for any context, and what the tokenizer would not take for text: with special
        tokens, a client could end its turn and begin the model's."""
        texts = [part.text for message in request.messages for part in message.content if isinstance(part, TextPart)]
        most = CHARACTERS_PER_TOKEN * self.context_length
        if sum(map(len, texts)) > most:
            raise RefusedRequest(
                f"the texts must have at most {most} characters together", "messages", code="context_length_exceeded"
            )
        special = self.processor.tokenizer.all_special_tokens
        for index, message in enumerate(request.messages):
            for part in message.content:
                text = part.text if isinstance(part, TextPart) else ""
                for token in special:
                    if token in text:
                        name = f"messages[{index}].content"
                        raise RefusedRequest(f"`{name}` must not hold the model's special token {token}", name)


def chat_of(request: ChatRequest, images: list[PIL.Image.Image]) -> list[dict[str, Any]]:
    """
    Args:
        request ([`ChatRequest`]):
            What the client asks.
        images (`list[PIL.Image.Image]`):
            Its images, in reading order.

    Returns:
        `list[dict]`: The chat as [`DimpleProcessor`] takes it.
    """
    waiting = iter(images)
    return [
        {
            "role": "system" if message.role == "developer" else message.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "image": next(waiting)}
                for part in message.content
            ],
        }
        for message in request.messages
    ]


def sampling_options(request: ChatRequest) -> dict[str, Any]:
    """
    Args:
        request ([`ChatRequest`]):
            What the client asks.

    Returns:
        `dict[str, Any]`: Options of `generate`: the most probable tokens with temperature 0, drawn ones with any other
        or with a `top_p`, the model's own way where the client says nothing.
    """
    if request.temperature == 0:
        return {"do_sample": False}
    if request.temperature is None and request.top_p is None:
        return {}
    options = {"do_sample": True, "temperature": 1.0 if request.temperature is None else request.temperature}
    return options if request.top_p is None else options | {"top_p": request.top_p}

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
"""From a request to jobs of the model; work that depends on a client's data runs in a process of its own.

Everything that a client can get wrong is refused here, before the job meets those of others.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch

from ..decisions.reading import Canvas
from ..modeling.generation_config_dimple import DEFAULT_MAX_NEW_TOKENS
from ..processing import StructurePrior
from .decision_requests import DecisionRequest, chat_about
from .images import read_images
from .jobs import Job
from .limits import Limits, RefusedRequest
from .processes import TaskProcesses
from .requests import MIN_TEMPERATURE, ChatRequest, Form, ImagePart, Message, TextPart
from .tools import call_schema, called_text, functions_text

#: Structure priors that are kept, each with what it remembers of its answers, some MiB.
NUM_KEPT_PRIORS = 16

#: Most characters of a schema. What a small one may cost is bounded where it is compiled.
MAX_SCHEMA_CHARACTERS = 1 << 16

#: Most characters of a chat for each token of the model's context: a longer one is not even cut into tokens.
CHARACTERS_PER_TOKEN = 16

SCHEMA_PARAM = "response_format.json_schema.schema"


def default_length(model: Any, limits: Limits) -> int:
    """
    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model.
        limits ([`Limits`]):
            Maximum number of positions of an answer.

    Returns:
        `int`: Positions of the answer to a request that does not set them.
    """
    return min(model.generation_config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS, limits.max_new_tokens)


class Preparation:
    """
    Makes jobs of requests.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            What the jobs are for.
        limits ([`Limits`]):
            The server's bounds.
        processes ([`TaskProcesses`]):
            Where the work is done.
    """

    def __init__(self, model: Any, processor: Any, limits: Limits, processes: TaskProcesses):
        self.processor = processor
        self.limits = limits
        self.processes = processes
        self.default_length = default_length(model, limits)
        self.draws_by_default = bool(model.generation_config.do_sample)
        self.context_length = model.config.max_position_embeddings
        self.max_characters = CHARACTERS_PER_TOKEN * self.context_length
        self.priors: OrderedDict[tuple[str, int, Form], asyncio.Task[StructurePrior | RefusedRequest]] = OrderedDict()

    @asynccontextmanager
    async def jobs(self, request: ChatRequest, fetched: Mapping[str, bytes]) -> AsyncIterator[list[Job]]:
        """
        The jobs of a request, one for each of its choices. What they hold counts as used until the context ends.

        Args:
            request ([`ChatRequest`]):
                What the client sent.
            fetched (`Mapping[str, bytes]`):
                The files of images that are not `data:` URLs, by URL.

        Raises:
            RefusedRequest: If the request wants what the model cannot do, or the server does not allow.
        """
        if request.num_choices > self.limits.max_batch_size:
            most = self.limits.max_batch_size
            raise RefusedRequest(f"`n` must be at most {most} on this server (got {request.num_choices})", "n")
        self.check_texts(request)
        called = call_schema(request, self.default_length)
        schema = called or request.schema_of_answer
        most = self._max_length(request)
        form = () if called else request.form_of_answer
        param = "tools" if request.callable_functions else SCHEMA_PARAM
        prior = None if schema is None else await self._prior(json.dumps(schema), most, param, form)
        length = self.default_length if request.asked_length is None else most
        if prior is not None:
            length = len(prior.canvas(self.processor.tokenizer).ids)
        async with self.inputs(request, fetched, length) as arrays:
            inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
            options = sampling_options(request)
            seed = request.seed if options.get("do_sample", self.draws_by_default) else None
            num_top = request.num_top_logprobs
            yield [
                Job(inputs, prior, length, options, seed_of(seed, index), num_top)
                for index in range(request.num_choices)
            ]

    def check_texts(self, request: ChatRequest) -> None:
        """See [`check_texts`]."""
        check_texts(request, self.processor.tokenizer.all_special_tokens, self.max_characters)

    @asynccontextmanager
    async def inputs(
        self, request: ChatRequest, fetched: Mapping[str, bytes], answer_length: int
    ) -> AsyncIterator[dict[str, np.ndarray]]:
        """
        The inputs of the model for a request. They count as used until the context ends.

        Args:
            request ([`ChatRequest`]), fetched (`Mapping[str, bytes]`):
                As for [`~Preparation.jobs`].
            answer_length (`int`):
                Positions of the answer.

        Raises:
            RefusedRequest: If the processor refuses the chat, or prompt and answer are too long.
        """
        self.check_texts(request)
        async with self.processes.result(prepare_inputs, request, fetched, self.limits) as arrays:
            self._check_context(arrays["input_ids"].shape[1], answer_length)
            yield arrays

    async def prompts(
        self, asked: DecisionRequest, canvases: Sequence[Canvas], image_grid_thw: np.ndarray | None
    ) -> list[np.ndarray]:
        """
        The prompts of canvases whose images are prepared already.

        Args:
            asked ([`DecisionRequest`]):
                What the client sent, without images.
            canvases (`Sequence[Canvas]`):
                Canvases of its questions.
            image_grid_thw (`np.ndarray` of shape `(num_images, 3)`, *optional*):
                The patches of its images.

        Returns:
            `list[np.ndarray]`: For each canvas token ids of shape `(1, length)`.

        Raises:
            RefusedRequest: As for [`~Preparation.inputs`].
        """
        endings = [canvas.prompt for canvas in canvases]
        async with self.processes.result(
            prepare_prompts, asked, endings, image_grid_thw, self.max_characters
        ) as prompts:
            for canvas, prompt in zip(canvases, prompts, strict=True):
                self._check_context(prompt.shape[1], canvas.answer_length)
            return prompts

    def _check_context(self, prompt_length: int, answer_length: int) -> None:
        if prompt_length + answer_length > self.context_length:
            raise RefusedRequest(
                f"prompt and answer must fit {self.context_length} tokens (got {prompt_length} + {answer_length})",
                "messages",
                code="context_length_exceeded",
            )

    async def _prior(self, schema: str, max_tokens: int, param: str, form: Form = ()) -> StructurePrior:
        """The prior of a JSON schema out of the field `param`, compiled once for all who send the same at a time."""
        if len(schema) > MAX_SCHEMA_CHARACTERS:
            raise RefusedRequest(f"the schema must have at most {MAX_SCHEMA_CHARACTERS} characters", param)
        key = schema, max_tokens, form
        task = self.priors.get(key)
        if task is None:
            task = self.priors[key] = asyncio.ensure_future(self._compile(*key))
            task.add_done_callback(lambda task: self._forget_unless_final(key, task))
            while len(self.priors) > NUM_KEPT_PRIORS:
                self.priors.popitem(last=False)
        self.priors.move_to_end(key)
        outcome = await asyncio.shield(task)  # it goes on for the others when this client leaves
        if isinstance(outcome, RefusedRequest):
            refusal = outcome.copy()
            refusal.param = refusal.param and param
            raise refusal
        return outcome

    async def _compile(self, schema: str, max_tokens: int, form: Form) -> StructurePrior | RefusedRequest:
        try:
            async with self.processes.result(compile_prior, schema, max_tokens, form) as prior:
                return prior
        except RefusedRequest as refusal:
            return refusal.copy()  # without the frames that it came through

    def _forget_unless_final(
        self, key: tuple[str, int, Form], task: "asyncio.Task[StructurePrior | RefusedRequest]"
    ) -> None:
        """Forgets what another try may change: a failure, and a refusal because the server is busy."""
        is_final = not task.cancelled() and task.exception() is None and getattr(task.result(), "status", 400) == 400
        if not is_final and self.priors.get(key) is task:
            del self.priors[key]

    def _max_length(self, request: ChatRequest) -> int:
        """Maximum number of positions of the answer."""
        most, asked = self.limits.max_new_tokens, request.asked_length
        if asked is not None and asked > most:
            param = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
            raise RefusedRequest(f"`{param}` must be at most {most} on this server (got {asked})", param)
        return most if asked is None else asked


def seed_of(seed: int | None, index: int) -> int | None:
    """
    Args:
        seed (`int`, *optional*):
            The request's.
        index (`int`):
            Which of its choices.

    Returns:
        `int`, *optional*: The seed of the choice; of the first one the request's own.
    """
    if seed is None or index == 0:
        return seed
    return int(np.random.SeedSequence([seed % (1 << 64), index]).generate_state(1, np.uint64)[0] >> 1)


def check_texts(request: ChatRequest, special_tokens: list[str], max_characters: int) -> None:
    """
    Refuses texts that are too long for any context, and what the tokenizer would not take for text: with special
    tokens a client could end its turn and begin the model's, also where two parts together spell one.

    Args:
        request ([`ChatRequest`]):
            What the client sent.
        special_tokens (`list[str]`):
            The tokenizer's.
        max_characters (`int`):
            Maximum length of all texts together.

    Raises:
        RefusedRequest: As above.
    """
    texts = [message_text(message) for message in request.messages] + [functions_text(request)]
    if sum(map(len, texts)) > max_characters:
        raise RefusedRequest(
            f"the texts must have at most {max_characters} characters together",
            "messages",
            code="context_length_exceeded",
        )
    for index, text in enumerate(texts):
        for token in special_tokens:
            if token in text:
                name = f"messages[{index}].content" if index < len(request.messages) else "tools"
                raise RefusedRequest(f"`{name}` must not hold the model's special token {token}", name)


def message_text(message: Message) -> str:
    """
    Args:
        message ([`Message`]):
            A message.

    Returns:
        `str`: Its text as the chat template joins it, with a NUL for each image.
    """
    parts = [part.text if isinstance(part, TextPart) else "\0" for part in message.content or ()]
    return "".join(parts) + called_text(message)


def compile_prior(processor: Any, schema: str, max_tokens: int, form: Form = ()) -> StructurePrior:
    """
    A task: the prior of a JSON schema, laid out for the tokenizer, with as many positions as its values usually need.

    Args:
        processor ([`DimpleProcessor`]):
            The processor.
        schema (`str`):
            The schema, as JSON.
        max_tokens (`int`):
            Maximum number of positions.
        form (`tuple`, *optional*, defaults to `()`):
            Options of [`StructurePrior.from_json_schema`], each its name and value.

    Raises:
        RefusedRequest: If the schema is not valid, or says what the engine cannot keep.
    """
    options: dict[str, Any] = dict(form)
    try:
        prior = StructurePrior.from_json_schema(json.loads(schema), **options)
        if len(prior.canvas(processor.tokenizer).ids) > max_tokens:
            prior = StructurePrior.from_json_schema(json.loads(schema), max_tokens=max_tokens, **options)
            prior.canvas(processor.tokenizer)
    except (MemoryError, RecursionError, RefusedRequest):
        raise
    except ValueError as error:
        raise RefusedRequest(str(error), SCHEMA_PARAM) from error
    except Exception as error:  # a schema whose keywords have values of other types than they must
        raise RefusedRequest(
            f"the schema must be a valid JSON schema ({type(error).__name__}: {error})", SCHEMA_PARAM
        ) from error
    return prior


def prepare_inputs(
    processor: Any, request: ChatRequest, fetched: Mapping[str, bytes], limits: Limits
) -> dict[str, np.ndarray]:
    """
    A task: the inputs of `generate` for a request.

    Args:
        processor ([`DimpleProcessor`]):
            The processor.
        request ([`ChatRequest`]):
            What the client sent.
        fetched (`Mapping[str, bytes]`):
            The files of images that are not `data:` URLs, by URL.
        limits ([`Limits`]):
            The server's bounds.

    Returns:
        `dict[str, np.ndarray]`: One row, as [`DimpleProcessor`] makes it.

    Raises:
        RefusedRequest: If an image is none or too large, or the processor refuses the chat.
    """
    images = read_images(request.image_urls(), fetched, limits)
    try:
        inputs = processor.apply_chat_template(
            chat_of(request, images),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="np",
            padding=False,
        )
    except ValueError as error:
        raise RefusedRequest(str(error), "messages") from error
    return dict(inputs)


def prepare_prompts(
    processor: Any,
    asked: DecisionRequest,
    endings: Sequence[str],
    image_grid_thw: np.ndarray | None,
    max_characters: int,
) -> list[np.ndarray]:
    """
    A task: the token ids of a chat with several endings, as [`prepare_inputs`] makes them, without opening an image.

    Args:
        processor ([`DimpleProcessor`]):
            The processor.
        asked ([`DecisionRequest`]):
            What the client sent, without images.
        endings (`Sequence[str]`):
            Texts of questions.
        image_grid_thw (`np.ndarray` of shape `(num_images, 3)`, *optional*):
            The patches of its images.
        max_characters (`int`):
            Maximum length of all texts of a chat.

    Returns:
        `list[np.ndarray]`: For each ending an array of shape `(1, length)`.

    Raises:
        RefusedRequest: If a text is too long, or holds a special token.
    """
    grids = () if image_grid_thw is None else range(len(image_grid_thw))
    features = {"image_grid_thw": image_grid_thw}
    images = [processor.replace_image_token(features, index) for index in grids]
    prompts = []
    for ending in endings:
        request = chat_about(asked, ending)
        check_texts(request, processor.tokenizer.all_special_tokens, max_characters)
        text = processor.apply_chat_template(
            chat_of(request, [None] * len(images)), add_generation_prompt=True, tokenize=False
        )
        parts = text.split(processor.image_token)
        expanded = parts[0] + "".join(image + part for image, part in zip(images, parts[1:], strict=True))
        prompts.append(np.array([processor.tokenizer(expanded)["input_ids"]]))
    return prompts


def chat_of(request: ChatRequest, images: list[Any]) -> list[dict[str, Any]]:
    """
    Args:
        request ([`ChatRequest`]):
            What the client sent.
        images (`list[PIL.Image.Image]`):
            Its images, in reading order.

    Returns:
        `list[dict]`: The chat as [`DimpleProcessor`] takes it: results of functions are the user's, and the functions
        that the answer may call stand in the first system message.
    """
    waiting = iter(images)
    roles = {"developer": "system", "tool": "user"}
    chat: list[dict[str, Any]] = []
    for message in request.messages:
        parts = [
            {"type": "image", "image": next(waiting)}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": part.text}
            for part in message.content or ()
        ]
        if calls := called_text(message):
            parts.append({"type": "text", "text": calls})
        chat.append(
            {"role": roles.get(message.role, message.role), "content": parts or [{"type": "text", "text": ""}]}
        )
    if functions := functions_text(request):
        if chat[0]["role"] != "system":
            chat.insert(0, {"role": "system", "content": []})
        chat[0]["content"].append({"type": "text", "text": functions})
    return chat


def sampling_options(request: ChatRequest) -> dict[str, Any]:
    """
    Args:
        request ([`ChatRequest`]):
            What the client sent.

    Returns:
        `dict[str, Any]`: Options of `generate`: the most probable tokens with temperature 0, drawn ones with any other
        or with a `top_p` below 1, the model's own way where the client sets neither.
    """
    top_p = None if request.top_p == 1 else request.top_p
    if request.temperature is None and top_p is None:
        return {}
    temperature = 1.0 if request.temperature is None else request.temperature
    if temperature < MIN_TEMPERATURE:
        return {"do_sample": False}
    options = {"do_sample": True, "temperature": temperature}
    return options if top_p is None else options | {"top_p": top_p}

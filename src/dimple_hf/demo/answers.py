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
"""The states of an answer on the page, and plain-language errors for images and forms.

No gradio here: model and processor in, states out, one for each denoising step, run when the next one is requested.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
from transformers import ProcessorMixin

from ..data import images
from ..data.image_features import ImageFeatures
from ..data.images import FORMATS
from ..processing import StructurePrior
from .canvas import Run, canvas_runs, update_unmasks

#: Largest image, in pixels: that of any phone, and 150 MB in memory.
MAX_IMAGE_PIXELS = 50_000_000

#: What the form of an answer can be.
FREE, TEMPLATE, SCHEMA = "Free", "Template", "JSON schema"


@dataclass(frozen=True)
class Question:
    """
    What is asked on the page.

    Args:
        text (`str`):
            The question.
        image (`PIL.Image.Image`, *optional*):
            What it is about; it stands at the beginning of the chat.
        earlier (`Sequence[tuple[str, str]]`, *optional*):
            Questions and answers that came before.
        prior ([`StructurePrior`], *optional*):
            The form of the answer, which also sets its length.
        confidence_threshold (`float`, defaults to 0.95):
            Every position above this confidence is unmasked at once, in (0, 1].
        max_new_tokens (`int`, defaults to 64):
            Positions of an answer without a form.
    """

    text: str
    image: PIL.Image.Image | None = None
    earlier: Sequence[tuple[str, str]] = ()
    prior: StructurePrior | None = None
    confidence_threshold: float = 0.95
    max_new_tokens: int = 64


@dataclass(frozen=True)
class AnswerState:
    """
    An answer after a step.

    Args:
        runs (`list[Run]`):
            The canvas.
        step (`int`):
            Steps done, 0 before the first.
        num_passes (`int`):
            Forward passes of the model.
        seconds (`float`):
            Time that the model and the encoding of the image took so far.
        text (`str`, *optional*):
            The answer, once it is finished.
        value (`Any`):
            With a prior, the content of the finished answer: the values of a template, or the JSON value.
    """

    runs: list[Run]
    step: int
    num_passes: int
    seconds: float
    text: str | None = None
    value: Any = None

    @property
    def num_positions(self) -> int:
        """Positions of the canvas."""
        return sum(run.num_positions for run in self.runs)

    @property
    def num_unmasked(self) -> int:
        """Positions that are not masked."""
        return sum(run.num_positions for run in self.runs if run.kind != "mask")


def open_image(path: str) -> PIL.Image.Image:
    """
    Args:
        path (`str`):
            A file that somebody uploaded.

    Returns:
        `PIL.Image.Image`: The image, decoded and upright.

    Raises:
        ValueError: If it is no image, larger than [`MAX_IMAGE_PIXELS`] or damaged. The message is for people who
            know nothing of this package, and does not name the path.
    """
    try:
        with PIL.Image.open(path, formats=FORMATS) as image:
            width, height = image.size
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(_too_large("far more pixels")) from error
    except Exception as error:  # a broken file raises any of a dozen types, depending on its format
        raise ValueError("This file is not an image that can be read. PNG and JPEG files can.") from error
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(_too_large(f"{width} x {height} pixels"))
    try:
        return images.open_image(path, max_pixels=MAX_IMAGE_PIXELS)
    except ValueError as error:
        raise ValueError("This image is damaged: only a part of it can be read.") from error


def _too_large(got: str) -> str:
    return f"This image is too large: at most {MAX_IMAGE_PIXELS // 1_000_000} million pixels, and it has {got}."


def read_form(kind: str, text: str) -> StructurePrior | None:
    """
    Args:
        kind (`str`):
            [`FREE`], [`TEMPLATE`] or [`SCHEMA`].
        text (`str`):
            The template or the JSON schema; ignored with [`FREE`].

    Returns:
        [`StructurePrior`], or `None` with [`FREE`].

    Raises:
        ValueError: If the text is empty, is no JSON, or is refused by [`StructurePrior`].
    """
    if kind == FREE:
        return None
    if not text.strip():
        raise ValueError(f"The {kind[0].lower() + kind[1:] if kind == TEMPLATE else kind} is empty.")
    if kind == TEMPLATE:
        return StructurePrior.from_template(text)
    try:
        schema = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"The schema is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise ValueError(f'The schema must be a JSON object such as {{"type": "integer"}} (got {text.strip()!r}).')
    return StructurePrior.from_json_schema(schema)


def answer_states(features: ImageFeatures, processor: ProcessorMixin, question: Question) -> Iterator[AnswerState]:
    """
    Args:
        features ([`ImageFeatures`]), processor ([`DimpleProcessor`]):
            What encodes images, with the model that answers, in bidirectional mode, and its processor.
        question ([`Question`]):
            What is asked.

    Returns:
        `Iterator[AnswerState]`: The empty canvas, then a state after each step; the last has the answer. Leaving it
        ends the work.

    Raises:
        ValueError: If the question or one of its settings is refused, with the first state.
    """
    start, model = time.perf_counter(), features.model
    form = {} if question.prior is None else {"structure_prior": question.prior}
    inputs = processor.apply_chat_template(
        chat_messages(question),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **form,
    )

    length = {"max_new_tokens": question.max_new_tokens} if question.prior is None else {}
    steps = model.generate_steps(
        **features.encode(inputs), **length, confidence_threshold=question.confidence_threshold
    )
    unmasked_in: list[int | None] = []
    seconds = time.perf_counter() - start
    while True:
        start = time.perf_counter()  # what the consumer does between two states does not count
        step = next(steps, None)
        if step is None:
            return
        seconds += time.perf_counter() - start
        tokens = step.answer_ids[0].tolist()
        unmasked_in = update_unmasks(unmasked_in, tokens, step.step, model.config.mask_token_id)
        runs = canvas_runs(tokens, unmasked_in, processor.tokenizer, step.token_logprobs[0].tolist())
        num_passes = int(step.num_forward_passes[0])
        if not step.finished[0]:
            yield AnswerState(runs, step.step, num_passes, seconds)
            continue
        text = processor.decode(step.answer_ids[0], skip_special_tokens=True)
        value = None if question.prior is None else processor.parse(step.answer_ids, question.prior)
        yield AnswerState(runs, step.step, num_passes, seconds, text, value)


def chat_messages(question: Question) -> list[dict[str, Any]]:
    """
    Args:
        question ([`Question`]):
            What is asked.

    Returns:
        `list[dict[str, Any]]`: The conversation, the image before the words of its first message.
    """
    messages: list[dict[str, Any]] = []
    for asked, answered in question.earlier:
        messages.append({"role": "user", "content": [{"type": "text", "text": asked}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answered}]})
    messages.append({"role": "user", "content": [{"type": "text", "text": question.text}]})
    if question.image is not None:
        messages[0]["content"].insert(0, {"type": "image", "image": question.image})
    return messages

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
"""The model of an evaluation: a checkpoint, an adapter, an attention implementation, image bounds, a system prompt.

Also the likelihood of given answers. Needs no evaluation library.
"""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..training.adapters import load_adapter
from .evaluation_settings import SAMPLING_OPTIONS

#: Of the masks that a likelihood is estimated over: the same for each answer, so that the answers to a question are
#: compared under the same draws, and each run gives the same scores.
SEED = 0


def load_evaluated(
    pretrained: str,
    dtype: str = "auto",
    device: Any = "cpu",
    adapter: str | None = None,
    attn_implementation: str | None = None,
    max_pixels: int | None = None,
) -> tuple[Any, Any]:
    """
    Args:
        pretrained (`str`):
            Directory or Hub id of a checkpoint.
        dtype (`str`, defaults to `"auto"`):
            Type of the weights; `"auto"` is the checkpoint's.
        device (`torch.device` or `str`, defaults to `"cpu"`):
            Where to run.
        adapter (`str`, *optional*):
            Directory or Hub id of a PEFT adapter.
        attn_implementation (`str`, *optional*):
            `"sdpa"`, `"eager"` or another of transformers'.
        max_pixels (`int`, *optional*):
            Largest area of an image, instead of the processor's.

    Returns:
        `tuple[DimpleForConditionalGeneration, DimpleProcessor]`
    """
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    model = AutoModelForImageTextToText.from_pretrained(pretrained, dtype=dtype, **options)
    if adapter is not None:
        model = load_adapter(model, adapter)
    bounds = {} if max_pixels is None else {"max_pixels": max_pixels}
    return model.to(device).eval(), AutoProcessor.from_pretrained(pretrained, **bounds)


def with_system_prompt(messages: list[dict[str, Any]], system_prompt: str | None) -> list[dict[str, Any]]:
    """The messages after a system prompt (`str`, *optional*), unless they begin with one of their own."""
    if system_prompt is None or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": [{"type": "text", "text": system_prompt}]}, *messages]


def answer_likelihood(
    model: Any,
    processor: Any,
    messages: list[dict[str, Any]],
    answer: str,
    batch_size: int | None = None,
    **options: Any,
) -> tuple[float, bool]:
    """
    The likelihood of an answer, and whether it is the greedy one.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            What is asked.
        messages (`list[dict]`):
            The question, with its images.
        answer (`str`):
            The answer. White space before it is left out: the chat template has its own.
        batch_size (`int`, *optional*):
            Most rows of one forward pass; see [`~DimpleForConditionalGeneration.answer_log_likelihood`].
        options:
            Options of `generate` for the greedy answer, but for its length and for sampling, which are ignored.

    Returns:
        `tuple[float, bool]`: The log-likelihood in nats (a lower bound of it, estimated), and whether `generate` gives
        this answer on a canvas of its length.

    Raises:
        ValueError: If the answer is empty or holds the mask token.
    """
    ids = processor.tokenizer.encode(answer.lstrip(), add_special_tokens=False)
    if not ids:
        raise ValueError(f"`answer` must have at least one token (got {answer!r})")
    answer_ids = torch.tensor([ids], device=model.device)
    inputs = processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    generator = torch.Generator(model.device).manual_seed(SEED)
    with torch.no_grad():
        likelihood = model.answer_log_likelihood(inputs, answer_ids, batch_size=batch_size, generator=generator)
    options = {name: value for name, value in options.items() if name not in ("max_new_tokens", *SAMPLING_OPTIONS)}
    greedy = model.generate(**inputs, **options, max_new_tokens=len(ids), do_sample=False)
    return likelihood.item(), bool((greedy[:, -len(ids) :] == answer_ids).all())

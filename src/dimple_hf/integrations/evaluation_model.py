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

Needs no evaluation library.
"""

from typing import Any

from transformers import AutoModelForImageTextToText, AutoProcessor

from ..training.adapters import load_adapter


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
            Largest area of an image, in place of the processor's.

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

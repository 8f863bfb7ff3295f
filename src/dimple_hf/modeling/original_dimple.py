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
"""The original's decoding options: names, defaults, and what they mean to the denoising loop.

Source: the released `diffusion_generate` (github.com/yu-rp/Dimple). Imported by `generation_dimple`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import GenerationConfig

from .denoising_dimple import DEFAULT_EPS, DenoisingHooks, DenoisingPlan
from .generation_config_dimple import nearest_name

#: The original's name of a ranking -> ours.
RANKINGS = {
    "maskgit_plus": "confidence",
    "topk_margin": "margin",
    "entropy": "entropy",
    "origin": "random",
    "origin-ratio": "random",
    "autoregressive": "left_to_right",
}

#: Its name of a schedule -> ours.
PIPELINES = {"dim": "adaptive", "dream": "fixed"}

#: What `generate` has in place of an option that it does not take.
REPLACEMENTS = {
    "alg": "`unmasking`",
    "alg_p_threshold": "`confidence_threshold`",
    "alg_temp": "no drawn order",
    "decoding_pipeline": "`unmasking_schedule`",
    "eps": "no such option",
    "steps": "`max_denoising_steps`",
    "use_original_confidence": "confidences before temperature and top-p always",
    "generation_tokens_hook_func": "`answer_ids`",
    "generation_logits_hook_func": "`logits_processor`",
}

#: The last three are ours: what the processor makes of a structure prior.
MODEL_INPUTS = (
    "attention_mask", "pixel_values", "image_grid_thw", "answer_ids", "answer_attention_mask", "answer_constraint",
)  # fmt: skip


@dataclass
class UpstreamOptions:
    """
    The options of the original's call, with its defaults; see
    [`~generation_dimple.DimpleGenerationMixin.diffusion_generate`] for their meaning.

    Raises:
        ValueError: If a value is out of range or a name unknown.
    """

    max_length: int = 20
    max_new_tokens: int | None = None
    steps: int = 512
    eps: float = DEFAULT_EPS
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    alg: str = "origin"
    alg_temp: float | None = None
    alg_p_threshold: float | None = None
    use_original_confidence: bool = True
    decoding_pipeline: str = "dim"
    use_cache: bool = False
    num_return_sequences: int = 1
    output_history: bool = False
    return_dict_in_generate: bool = False
    mask_token_id: int | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    generation_tokens_hook_func: Callable | None = None
    generation_logits_hook_func: Callable | None = None

    @classmethod
    def collect(cls, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> "UpstreamOptions":
        """
        Args:
            generation_config (`GenerationConfig`, *optional*):
                Any object with options as attributes; `None` values count as not set.
            kwargs (`dict[str, Any]`):
                Keyword arguments of the call, which win; options are taken out, model inputs stay.
        """
        names = [field.name for field in fields(cls)]
        values: dict[str, Any] = {name: getattr(generation_config, name, None) for name in names}
        values = {name: value for name, value in values.items() if value is not None}
        values |= {name: kwargs.pop(name) for name in names if name in kwargs}
        for name in kwargs:
            if name not in MODEL_INPUTS:
                raise ValueError(
                    f"`{name}` must be an option of the original or a model input"
                    f"{nearest_name(name, [*names, *MODEL_INPUTS])}"
                )
        return cls(**values)

    def __post_init__(self) -> None:
        for name in ("max_length", "max_new_tokens", "steps", "num_return_sequences", "top_k"):
            value = getattr(self, name)
            may_be_missing = name in ("max_new_tokens", "top_k")
            if not (isinstance(value, int) and value >= 1) and not (may_be_missing and value is None):
                raise ValueError(f"`{name}` must be an integer >= 1 (got {value!r})")
        for name, known in (("alg", RANKINGS), ("decoding_pipeline", PIPELINES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)} (got {value!r}){nearest_name(str(value), known)}"
                )
        if not (isinstance(self.eps, (int, float)) and 0 < self.eps < 1):
            raise ValueError(f"`eps` must lie in (0, 1) (got {self.eps!r})")
        for name in ("temperature", "alg_temp"):
            value = getattr(self, name)
            may_be_missing = name == "alg_temp"
            if not (isinstance(value, (int, float)) and value >= 0) and not (may_be_missing and value is None):
                raise ValueError(f"`{name}` must be a number >= 0 (got {value!r})")
        for name in ("top_p", "alg_p_threshold"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
                raise ValueError(f"`{name}` must lie in [0, 1] (got {value!r})")

    def answer_length(self, prompt_length: int) -> int:
        """
        Args:
            prompt_length (`int`):
                Tokens of the prompt, padding included.

        Returns:
            `int`: Positions of the answer.

        Raises:
            ValueError: If `max_length` leaves none.
        """
        length = self.max_length - prompt_length if self.max_new_tokens is None else self.max_new_tokens
        if length < 1:
            raise ValueError(
                f"`max_length` must leave room for an answer after the prompt of {prompt_length} tokens, or "
                f"`max_new_tokens` be given (got max_length={self.max_length})"
            )
        return length

    def hooks(self) -> DenoisingHooks | None:
        """Returns the user's hooks, or `None` when there are none, which saves most of the logits."""
        if self.generation_tokens_hook_func is None and self.generation_logits_hook_func is None:
            return None
        return DenoisingHooks(
            tokens=self.generation_tokens_hook_func or (lambda step, sequences, logits: sequences),
            logits=self.generation_logits_hook_func or (lambda step, sequences, logits: logits),
        )

    def plan(self, mask_token_id: int, no_end_tokens: torch.LongTensor) -> DenoisingPlan:
        """
        Args:
            mask_token_id (`int`):
                The mask token.
            no_end_tokens (`torch.LongTensor` of shape `(0,)`):
                An empty tensor where the answer lies: the original does not stop early.
        """
        is_dim = self.decoding_pipeline == "dim"
        ranking_is_drawn = self.alg in ("maskgit_plus", "topk_margin", "entropy") and bool(self.alg_temp)
        return DenoisingPlan(
            num_steps=self.steps,
            mask_token_id=mask_token_id,
            end_token_ids=no_end_tokens,
            unmasking=RANKINGS[self.alg],
            unmasking_schedule=PIPELINES[self.decoding_pipeline],
            # The original's entropies are negative and pass no threshold.
            confidence_threshold=(self.alg_p_threshold or None) if is_dim and self.alg != "entropy" else None,
            do_sample=self.temperature > 0,
            temperature=self.temperature or None,
            top_p=self.top_p,
            top_k=self.top_k,
            eps=self.eps,
            filtered_confidence=not (is_dim and self.use_original_confidence),
            ranking_temperature=self.alg_temp if ranking_is_drawn else None,
            independent_positions=self.alg == "origin-ratio" or (self.alg == "origin" and not is_dim),
            one_by_one=self.alg == "autoregressive",
            run_all_steps=not is_dim,
            generates_mask_token=True,
        )

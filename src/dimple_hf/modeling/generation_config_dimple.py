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
"""Generation options of Dimple. Imported by `generation_dimple` and, for its names, by `upstream_dimple`."""

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from .unmasking_dimple import CONFIDENCE_MEASURES, SCHEDULES

DEFAULT_MAX_NEW_TOKENS = 64

DIFFUSION_OPTIONS = (
    "max_denoising_steps",
    "unmasking",
    "unmasking_schedule",
    "confidence_threshold",
    "mask_token_id",
    "output_history",
)

#: Options of `GenerationConfig` that mean the same for diffusion decoding; any other is refused when it is set.
SHARED_OPTIONS = (
    "max_length",
    "max_new_tokens",
    "max_time",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "num_return_sequences",
    "use_cache",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "transformers_version",
)

#: Decoding options in the original's `generation_config.json`, which its own code never reads.
UPSTREAM_FILE_OPTIONS = (
    "alg", "alg_temp", "alg_p_threshold", "decoding_pipeline", "eps", "steps", "use_original_confidence",
)  # fmt: skip


@lru_cache(maxsize=1)
def _generation_option_names() -> frozenset[str]:
    return frozenset(vars(GenerationConfig())) | frozenset(DIFFUSION_OPTIONS)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Returns the end of an error message, which proposes the name in `known` nearest to `name` if one is near."""
    matches = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean `{matches[0]}`?" if matches else ""


class DimpleGenerationConfig(GenerationConfig):
    r"""
    Generation options of Dimple: those of `GenerationConfig` that make sense for diffusion decoding, and its own.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 64):
            Places of the answer.
        max_denoising_steps (`int`, *optional*):
            Most passes of the model; as many as places when missing. The last one reveals all that is left.
        unmasking (`str`, defaults to `"confidence"`):
            Which places are revealed first: `"confidence"` (largest top probability), `"margin"` (largest difference
            of the two top probabilities), `"entropy"` (lowest entropy), `"random"`, `"left_to_right"`.
        confidence_threshold (`float`, *optional*, defaults to 0.95):
            In (0, 1]. Every place whose confidence is above it is revealed at once; a row that has none follows the
            schedule. The confidence is the top probability, for `"margin"` the difference, for `"entropy"` exp(-H),
            all taken before temperature, top-p and top-k. `None`: the schedule alone.
        unmasking_schedule (`str`, defaults to `"adaptive"`):
            How many places a pass reveals: `"adaptive"`, from what is still masked, at least one; `"fixed"`, by the
            number of the step alone, which may be none.
        mask_token_id (`int`, *optional*):
            The mask token; the model's when missing.
        output_history (`bool`, defaults to `False`):
            Whether the output carries the tokens after each step.
        kwargs:
            Options of `GenerationConfig`. Diffusion decoding knows `max_length`, `max_time`, `do_sample`,
            `temperature`,
            `top_p`, `top_k`, `num_return_sequences`, `use_cache` (keep the prompt's keys and values, default `True`),
            `return_dict_in_generate` and the special tokens; in causal mode all of them work. The decoding options of
            an original `generation_config.json` are dropped, as the original ignores them.

    Raises:
        ValueError: If an option is unknown, or a value out of range.
    """

    def __init__(self, **kwargs: Any):
        if "alg" in kwargs or "decoding_pipeline" in kwargs:
            dropped = (*UPSTREAM_FILE_OPTIONS, "use_cache", "temperature", "top_p", "top_k")
            kwargs = {name: value for name, value in kwargs.items() if name not in dropped}
        self.max_denoising_steps: int | None = kwargs.pop("max_denoising_steps", None)
        self.unmasking: str = kwargs.pop("unmasking", "confidence")
        self.unmasking_schedule: str = kwargs.pop("unmasking_schedule", "adaptive")
        self.confidence_threshold: float | None = kwargs.pop("confidence_threshold", 0.95)
        self.mask_token_id: int | None = kwargs.pop("mask_token_id", None)
        self.output_history: bool = kwargs.pop("output_history", False)
        for name in kwargs:
            if name not in _generation_option_names() and not name.startswith("_"):
                raise ValueError(
                    f"`{name}` must be a generation option{nearest_name(name, _generation_option_names())}"
                )
        super().__init__(**kwargs)

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        super().validate(strict=strict, user_set_attributes=user_set_attributes)
        for name in ("max_new_tokens", "max_length", "max_denoising_steps", "num_return_sequences", "top_k"):
            value = getattr(self, name)
            least = 0 if name == "top_k" else 1  # 0 is transformers' way to switch it off
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"`{name}` must be an integer >= {least} (got {value!r})")
        for name, known in (("unmasking", CONFIDENCE_MEASURES), ("unmasking_schedule", SCHEDULES)):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)} (got {value!r}){nearest_name(str(value), known)}"
                )
        for name in ("confidence_threshold", "top_p"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value <= 1):
                raise ValueError(f"`{name}` must lie in (0, 1] (got {value!r})")
        if self.temperature is not None and not (isinstance(self.temperature, (int, float)) and self.temperature > 0):
            raise ValueError(
                f"`temperature` must be positive; for greedy decoding use do_sample=False (got {self.temperature!r})"
            )

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig) -> "DimpleGenerationConfig":
        """Takes the special tokens of a [`DimpleConfig`]; it holds nothing else that concerns generation."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        return cls(**{name: getattr(model_config, name) for name in names})

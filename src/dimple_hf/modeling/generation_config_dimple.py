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
"""Generation options of Dimple. Imported by `generation_dimple` and, for its names, by `original_dimple`."""

import difflib
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from .cache_dimple import BLOCK_POLICIES, CACHE_POLICIES
from .rules_dimple import PARALLEL_RULES
from .unmasking_dimple import CONFIDENCE_MEASURES, SCHEDULES

DEFAULT_MAX_NEW_TOKENS = 64

DEFAULT_CONFIDENCE_THRESHOLD = 0.95

#: Options that some rules of `PARALLEL_RULES` have and others do not, with their values where nothing is set.
RULE_OPTIONS: dict[str, Any] = {
    "confidence_threshold": DEFAULT_CONFIDENCE_THRESHOLD,
    "confidence_factor": None,
    "entropy_bound": None,
    "kl_threshold": None,
    "kl_history_length": None,
    "gap_thresholds": None,
    "draft_threshold": None,
    "verify_threshold": None,
}

DIFFUSION_OPTIONS = (
    "max_denoising_steps",
    "unmasking",
    "unmasking_schedule",
    "parallel_rule",
    *RULE_OPTIONS,
    "block_length",
    "cache_policy",
    "cache_refresh_interval",
    "initial_answer_length",
    "crop_after_end",
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
    "cache_implementation",
    "compile_config",
    "disable_compile",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "transformers_version",
)

#: Decoding options in the original's `generation_config.json`, which its own code never reads.
UPSTREAM_FILE_OPTIONS = (
    "alg", "alg_temp", "alg_p_threshold", "block_attention", "decoding_pipeline", "eps", "steps",
    "use_original_confidence",
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
            Positions of the answer.
        max_denoising_steps (`int`, *optional*):
            Most passes of the model; as many as positions when missing. The last one unmasks all that is left.
        unmasking (`str`, defaults to `"confidence"`):
            Which positions are unmasked first: `"confidence"` (largest top probability), `"margin"` (largest
            difference of the two top probabilities), `"entropy"` (lowest entropy), `"random"`, `"left_to_right"`.
        parallel_rule (`str`, defaults to `"threshold"`):
            Which positions a pass unmasks together: `"threshold"` (confident decoding), `"factor"` (Fast-dLLM),
            `"entropy_bound"` (EB-Sampler), `"klass"` (stable and confident), `"prophet"` (commits early) or `"wino"`
            (drafts, and takes back what does not stand up). A row in which it finds none follows the schedule. The
            options below belong to the rules that they name and are refused with any other; see
            `docs/decoding.md`.
        confidence_threshold (`float`, *optional*, defaults to 0.95):
            `"threshold"`, `"klass"`, `"prophet"`: every position whose confidence is above it, in (0, 1]. The
            confidence is the top probability, for `unmasking="margin"` the difference, for `"entropy"` exp(-H), all
            taken before temperature, top-p and top-k. `None`: none, so the schedule alone; for `"klass"`, any
            confidence.
        confidence_factor (`float`, *optional*):
            `"factor"`: n positions are unmasked as long as (n + 1) (1 - the least of their confidences) stays below
            it; positive, 1 when missing.
        entropy_bound (`float`, *optional*):
            `"entropy_bound"`: how much the positions of lowest entropy may sum up to, the largest not counted; in
            nats, at least 0, 0.1 when missing.
        kl_threshold (`float`, *optional*):
            `"klass"`: how far a distribution may move from one pass to the next; in nats, positive, 0.01 when missing.
        kl_history_length (`int`, *optional*):
            `"klass"`: in how many passes; 2 when missing.
        gap_thresholds (`list[float]`, *optional*):
            `"prophet"`: the mean gap of the two largest logits at which everything is unmasked, for the first, the
            second and the last third of the answer; [7.5, 5, 2.5] when missing.
        draft_threshold (`float`, *optional*):
            `"wino"`: every position whose confidence is above it is unmasked; in (0, 1], 0.6 when missing.
        verify_threshold (`float`, *optional*):
            `"wino"`: a token that becomes less probable is masked again; in (0, 1], 0.9 when missing.
        unmasking_schedule (`str`, defaults to `"adaptive"`):
            How many positions a pass unmasks: `"adaptive"`, from what is still masked, at least one; `"fixed"`, by the
            number of the step alone, which may be none.
        block_length (`int`, *optional*):
            Blocks of so many positions are decided from left to right, each with its share of the steps; within a
            block the positions are free. `None`: the whole answer at once.
        cache_policy (`str`, *optional*):
            Which keys and values a pass takes over from earlier ones: `"none"`; `"prompt"`, the prompt's of the first
            pass (as the original does); `"refresh"`, the same, all computed anew every `cache_refresh_interval`
            passes; `"block"` and `"dual"`, those before the row's present block, or all outside it, computed anew
            when the row comes to another block of `block_length` positions (Fast-dLLM, arXiv 2505.22618). When
            missing, `"prompt"`, or `"none"` with `use_cache=False`.
        cache_refresh_interval (`int`, *optional*):
            Passes from one renewal to the next, 8 when missing; with `cache_policy="refresh"` only.
        initial_answer_length (`int`, *optional*):
            Start with a canvas of so many positions, and double it for as long as the end is not in sight, or when it
            is full without an end, up to `max_new_tokens` (after DAEDAL, arXiv 2508.00819). `None`, and wherever
            `answer_ids` are given: the whole canvas at once.
        crop_after_end (`bool`, defaults to `False`):
            End a canvas with its first decided end token, so that nothing after it is run or decided any more. An
            approximation: the positions before it lose what they saw there.
        cache_implementation (`str`, *optional*):
            `"static"`: all steps but the first have the same shapes, for which finished rows stay in the batch, and
            the text layers are compiled for them, as transformers does it: on a GPU, unless `disable_compile`, and
            with `compile_config` (`CompileConfig`). With `cache_policy="prompt"` and canvases of a fixed length only.
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
        self.parallel_rule: str = kwargs.pop("parallel_rule", "threshold")
        self.confidence_threshold: float | None = kwargs.pop("confidence_threshold", DEFAULT_CONFIDENCE_THRESHOLD)
        self.confidence_factor: float | None = kwargs.pop("confidence_factor", None)
        self.entropy_bound: float | None = kwargs.pop("entropy_bound", None)
        self.kl_threshold: float | None = kwargs.pop("kl_threshold", None)
        self.kl_history_length: int | None = kwargs.pop("kl_history_length", None)
        self.gap_thresholds: Sequence[float] | None = kwargs.pop("gap_thresholds", None)
        self.draft_threshold: float | None = kwargs.pop("draft_threshold", None)
        self.verify_threshold: float | None = kwargs.pop("verify_threshold", None)
        self.block_length: int | None = kwargs.pop("block_length", None)
        self.cache_policy: str | None = kwargs.pop("cache_policy", None)
        self.cache_refresh_interval: int | None = kwargs.pop("cache_refresh_interval", None)
        self.initial_answer_length: int | None = kwargs.pop("initial_answer_length", None)
        self.crop_after_end: bool = kwargs.pop("crop_after_end", False)
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
        for name in (
            "max_new_tokens", "max_length", "max_denoising_steps", "block_length", "kl_history_length",
            "initial_answer_length", "num_return_sequences", "top_k",
        ):  # fmt: skip
            value = getattr(self, name)
            least = 0 if name == "top_k" else 1  # 0 is transformers' way to switch it off
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ValueError(f"`{name}` must be an integer >= {least} (got {value!r})")
        tables: dict[str, Iterable[str]] = {
            "unmasking": CONFIDENCE_MEASURES, "unmasking_schedule": SCHEDULES, "parallel_rule": PARALLEL_RULES,
        }  # fmt: skip
        for name, known in tables.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)} (got {value!r}){nearest_name(str(value), known)}"
                )
        for name in ("confidence_threshold", "draft_threshold", "verify_threshold", "top_p"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value <= 1):
                raise ValueError(f"`{name}` must lie in (0, 1] (got {value!r})")
        if self.temperature is not None and not (isinstance(self.temperature, (int, float)) and self.temperature > 0):
            raise ValueError(
                f"`temperature` must be positive; for greedy decoding use do_sample=False (got {self.temperature!r})"
            )
        self._check_rule_options()
        self._check_cache_options()

    def _check_rule_options(self) -> None:
        for name, unset in RULE_OPTIONS.items():
            rules = [rule for rule, known in PARALLEL_RULES.items() if name in known.options]
            if self.parallel_rule not in rules and getattr(self, name) != unset:
                raise ValueError(
                    f"`{name}` must be used with `parallel_rule` {' or '.join(map(repr, rules))} "
                    f"(got {getattr(self, name)!r} with {self.parallel_rule!r})"
                )
        for name in ("confidence_factor", "kl_threshold"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise ValueError(f"`{name}` must be a positive number (got {value!r})")
        bound, gaps = self.entropy_bound, self.gap_thresholds
        if bound is not None and not (isinstance(bound, (int, float)) and 0 <= bound < math.inf):
            raise ValueError(f"`entropy_bound` must be a number >= 0 (got {bound!r})")
        if gaps is None:
            return
        are_numbers = isinstance(gaps, (list, tuple)) and all(isinstance(gap, (int, float)) for gap in gaps)
        if not are_numbers or len(gaps) != 3 or not all(0 <= gap < math.inf for gap in gaps):
            raise ValueError(f"`gap_thresholds` must be three numbers >= 0 (got {gaps!r})")

    def rule_options(self) -> dict[str, Any]:
        """The options of the parallel rule but the confidence threshold, with its defaults where nothing is set."""
        return {
            name: default if getattr(self, name) is None else getattr(self, name)
            for name, default in PARALLEL_RULES[self.parallel_rule].options.items()
            if name != "confidence_threshold"
        }

    @property
    def cache_policy_name(self) -> str:
        """The cache policy, also where nothing or only `use_cache` is set."""
        return self.cache_policy or ("none" if self.use_cache is False else "prompt")

    def check_static_shapes(self) -> None:
        """
        Checks `cache_implementation` and its companions for diffusion decoding. Not a part of `validate`, because in
        causal mode they are transformers' own.

        Raises:
            ValueError: If they contradict another option.
        """
        name = self.cache_implementation
        if name is None:
            if self.compile_config is not None:
                raise ValueError('`compile_config` must be used with `cache_implementation`="static" (got None)')
            return
        if name != "static":
            raise ValueError(f'`cache_implementation` must be "static" for diffusion decoding (got {name!r})')
        if self.cache_policy_name != "prompt":
            raise ValueError(
                '`cache_implementation`="static" needs `cache_policy`="prompt": under other policies steps '
                f"differ in shape (got {self.cache_policy_name!r})"
            )
        for option in ("initial_answer_length", "crop_after_end"):
            if getattr(self, option):
                raise ValueError(
                    f'`{option}` must not be used with `cache_implementation`="static", for which canvases keep their '
                    f"length (got {getattr(self, option)!r})"
                )

    def _check_cache_options(self) -> None:
        name, interval = self.cache_policy, self.cache_refresh_interval
        if name is not None and name not in CACHE_POLICIES:
            raise ValueError(
                f"`cache_policy` must be one of {', '.join(CACHE_POLICIES)} (got {name!r})"
                f"{nearest_name(str(name), CACHE_POLICIES)}"
            )
        if name is not None and self.use_cache is not None and self.use_cache is (name == "none"):
            raise ValueError(
                f"`use_cache` must not contradict `cache_policy`={name!r}, which says the same and more; "
                f"leave it out (got {self.use_cache})"
            )
        if name in BLOCK_POLICIES and self.block_length is None:
            raise ValueError(f"`block_length` must be given with `cache_policy`={name!r} (got None)")
        if interval is None:
            return
        if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
            raise ValueError(f"`cache_refresh_interval` must be an integer >= 1 (got {interval!r})")
        if name != "refresh":
            raise ValueError(
                f'`cache_refresh_interval` must be used with `cache_policy`="refresh" (got `cache_policy`={name!r})'
            )

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig) -> "DimpleGenerationConfig":
        """Takes the special tokens of a [`DimpleConfig`]; it holds nothing else that concerns generation."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        return cls(**{name: getattr(model_config, name) for name in names})

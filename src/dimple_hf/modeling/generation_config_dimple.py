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
"""Generation options of Dimple: names, valid values and defaults."""

import copy
import difflib
import math
import numbers
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from .cache_dimple import BLOCK_POLICIES, CACHE_POLICIES, CachePolicy
from .rules_dimple import SAMPLER_RULES, SamplerConfig, SamplerRule, option_names, sampler_config_from_dict
from .sampling_dimple import CONFIDENCE_MEASURES, MAX_DENOISING_STEPS, SCHEDULES

DEFAULT_MAX_NEW_TOKENS = 64

#: What an option of diffusion decoding is where neither the checkpoint nor the caller sets it.
DEFAULTS: dict[str, Any] = {
    "unmasking": "confidence",
    "unmasking_schedule": "adaptive",
    "sampler": "threshold",
    "do_sample": False,
    "num_return_sequences": 1,
    "output_history": False,
    "output_logits": False,
    "return_dict_in_generate": False,
}

DIFFUSION_OPTIONS = (
    "max_denoising_steps",
    "unmasking",
    "unmasking_schedule",
    "sampler",
    "sampler_config",
    "confidence_threshold",
    "block_length",
    "cache_policy",
    "cache_refresh_interval",
    "initial_answer_length",
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
    "output_logits",
    "return_dict_in_generate",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "transformers_version",
)

#: Built-in rules that the short form `confidence_threshold` is for.
RULES_WITH_THRESHOLD = tuple(
    name for name, known in SAMPLER_RULES.items() if "confidence_threshold" in option_names(known)
)

#: Option -> options that the caller's replaces when a checkpoint sets them.
EXCLUSIVE_OPTIONS = {
    "max_length": ("max_new_tokens",),
    "max_new_tokens": ("max_length",),
    "cache_policy": ("use_cache", "cache_refresh_interval"),
}

#: Decoding options in the original's `generation_config.json`, which its own code never reads.
ORIGINAL_FILE_OPTIONS = (
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

    Every option is `None` until it is set. In `generate` the caller's options win over the checkpoint's, and these
    over the defaults below.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 64):
            Positions of the answer.
        max_denoising_steps (`int`, *optional*):
            Most steps; as many as positions when missing. The last one commits all that is left.
        unmasking (`str`, *optional*, defaults to `"confidence"`):
            Which positions are unmasked first: `"confidence"` (largest top probability), `"margin"` (largest
            difference of the two top probabilities), `"entropy"` (lowest entropy), `"random"`, `"left_to_right"`.
        sampler (`str` or [`SamplerRule`], *optional*, defaults to `"threshold"`):
            Which positions a step commits together: `"threshold"` (confident decoding), `"factor"` (Fast-dLLM),
            `"entropy_bound"` (EB-Sampler), `"klass"` (stable and confident), `"prophet"` (commits early), `"wino"`
            (remasks tokens that fail verification), or a rule of your own (see `docs/custom_rules.md`). A row in which
            it selects none follows the schedule.
        sampler_config ([`SamplerConfig`] or `dict`, *optional*):
            Options of a built-in rule, which it also names: `sampler_config=EntropyBoundConfig(entropy_bound=0.3)`.
        confidence_threshold (`float`, *optional*):
            Short form for the option of this name that `"threshold"`, `"klass"` and `"prophet"` have: positions whose
            confidence is above it; in (0, 1], 0.95 when missing. The confidence is the top probability, for
            `unmasking="margin"` the difference, for `"entropy"` exp(-H), all taken before temperature, top-p and
            top-k. As an argument of `generate`, `None` means none: the schedule alone.
        unmasking_schedule (`str`, *optional*, defaults to `"adaptive"`):
            How many positions a step unmasks: `"adaptive"`, from what is still masked, at least one; `"fixed"`, by the
            number of the step alone, which may be none.
        block_length (`int`, *optional*):
            Blocks of so many positions are unmasked from left to right, each with its share of the steps; within a
            block the order is free. `None`: the whole answer at once.
        cache_policy (`str` or [`CachePolicy`], *optional*):
            Which keys and values a pass takes over from earlier ones: `"none"`; `"prompt"`, the prompt's of the first
            pass (as the original does); `"refresh"`, the same, all computed again every `cache_refresh_interval`
            passes; `"prefix"` and `"dual"`, those before the row's block, or all outside it, computed again when the
            row comes to another block of `block_length` positions (Fast-dLLM, arXiv 2505.22618); or a policy of your
            own. When missing, `"prompt"`, or `"none"` with `use_cache=False`.
        cache_refresh_interval (`int`, *optional*):
            Passes from one refresh to the next, 8 when missing; with `cache_policy="refresh"` only.
        initial_answer_length (`int`, *optional*):
            Before the first step, start with a canvas of so many positions and double it for as long as the end is not
            in sight, up to `max_new_tokens` (after DAEDAL, arXiv 2508.00819). `None`, and wherever `answer_ids` are
            given: the whole canvas at once.
        cache_implementation (`str`, *optional*):
            `"static"`: all steps but the first have the same shapes, for which finished rows stay in the batch, and
            the text layers are compiled for them, as transformers does it: on a GPU, unless `disable_compile`, and
            with `compile_config` (`CompileConfig`). With `cache_policy="prompt"` and canvases of a fixed length only.
        mask_token_id (`int`, *optional*):
            The mask token; the model's when missing.
        output_history (`bool`, *optional*, defaults to `False`):
            Whether the output carries the tokens after each step.
        output_logits (`bool`, *optional*, defaults to `False`):
            Whether it carries the logits that each position was committed from: vocabulary size values for each answer
            position, 19 MB for 64 positions of the 7B model in bfloat16.
        kwargs:
            Options of `GenerationConfig`. Diffusion decoding has `max_length`, `max_time`, `do_sample`,
            `temperature`, `top_p`, `top_k`, `num_return_sequences`, `use_cache` (keep the prompt's keys and values,
            default `True`), `return_dict_in_generate` and the special tokens; in causal mode all of them work.

    Raises:
        ValueError: If an option is unknown, or a value out of range.
    """

    def __init__(self, **kwargs: Any):
        self.max_denoising_steps: int | None = kwargs.pop("max_denoising_steps", None)
        self.unmasking: str | None = kwargs.pop("unmasking", None)
        self.unmasking_schedule: str | None = kwargs.pop("unmasking_schedule", None)
        self.sampler: str | SamplerRule | None = kwargs.pop("sampler", None)
        self.sampler_config: SamplerConfig | None = kwargs.pop("sampler_config", None)
        self.confidence_threshold: float | None = kwargs.pop("confidence_threshold", None)
        self.block_length: int | None = kwargs.pop("block_length", None)
        self.cache_policy: str | CachePolicy | None = kwargs.pop("cache_policy", None)
        self.cache_refresh_interval: int | None = kwargs.pop("cache_refresh_interval", None)
        self.initial_answer_length: int | None = kwargs.pop("initial_answer_length", None)
        self.mask_token_id: int | None = kwargs.pop("mask_token_id", None)
        self.output_history: bool | None = kwargs.pop("output_history", None)
        for name in kwargs:
            if name not in _generation_option_names() and not name.startswith("_"):
                raise ValueError(
                    f"`{name}` must be a generation option{nearest_name(name, _generation_option_names())}"
                )
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "DimpleGenerationConfig":
        """Options of a file, also of one that the original or an earlier version of this package has written."""
        return super().from_dict(translated_options(config_dict), **kwargs)

    @classmethod
    def from_model_config(cls, model_config: PreTrainedConfig) -> "DimpleGenerationConfig":
        """Takes the special tokens of a [`DimpleConfig`]; it holds nothing else that concerns generation."""
        names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
        return cls(**{name: getattr(model_config, name) for name in names})

    def to_dict(self) -> dict[str, Any]:
        """All options; objects that no file can hold as text."""
        plain = copy.copy(self)
        for name in ("sampler", "cache_policy"):
            value = getattr(self, name)
            setattr(plain, name, value if value is None or isinstance(value, str) else repr(value))
        # Not the class's name, which is another class when its module was loaded again.
        options = super(__class__, plain).to_dict()  # type: ignore[name-defined]
        if self.sampler_config is not None:
            options["sampler_config"] = self.sampler_config.to_dict()
        return options

    def to_diff_dict(self) -> dict[str, Any]:
        """Options that are set."""
        return {name: value for name, value in super().to_diff_dict().items() if value is not None}

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """
        As the parent's.

        Raises:
            ValueError: Also if `sampler` or `cache_policy` is an object, which no file can hold.
        """
        for name in ("sampler", "cache_policy"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"`{name}` must be a name to be saved; pass the object to `generate` (got {value!r})")
        super().save_pretrained(save_directory, *args, **kwargs)

    def overlay(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """
        Sets options that win over those set so far, and returns the unknown ones. What contradicts them is unset: the
        options of another rule or cache policy, or another form of the same option.

        Args:
            options (`Mapping[str, Any]`):
                Name -> value. `None` unsets; for the confidence threshold it means none.
        """
        options = dict(options)
        given = {name for name, value in options.items() if value is not None}
        is_other_rule = "sampler" in given and options["sampler"] != self.sampler_name
        if is_other_rule or "sampler_config" in given:
            self.sampler = self.sampler_config = self.confidence_threshold = None
        for name, others in EXCLUSIVE_OPTIONS.items():
            if name in given:
                for other in set(others) - given:
                    setattr(self, other, None)
        if "use_cache" in given and "cache_policy" not in given:
            if options["use_cache"] is (self.cache_policy == "none"):
                self.cache_policy = self.cache_refresh_interval = None
        unknown = self.update(**options)
        if "confidence_threshold" in options.keys() - given and self.sampler_name in RULES_WITH_THRESHOLD:
            self.sampler_config = replace(self._built_in_rule(), **{"confidence_threshold": None})
        return unknown

    def with_defaults(self) -> "DimpleGenerationConfig":
        """A copy for one call of `generate`, with the defaults where nothing is set."""
        config = copy.copy(self)
        for name, value in DEFAULTS.items():
            if getattr(config, name) is None:
                setattr(config, name, value)
        if config.max_new_tokens is None and config.max_length is None:
            config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        if config.cache_policy is None:
            config.cache_policy = "none" if config.use_cache is False else "prompt"
        config.confidence_threshold = getattr(config.rule(), "confidence_threshold", None)
        return config

    @property
    def sampler_name(self) -> str | None:
        """The built-in rule's name, also where only its options are set; `None` for a rule of the caller's."""
        if self.sampler is None and isinstance(self.sampler_config, SamplerConfig):
            return next(name for name, known in SAMPLER_RULES.items() if type(self.sampler_config) is known)
        name = DEFAULTS["sampler"] if self.sampler is None else self.sampler
        return name if isinstance(name, str) else None

    def rule(self) -> SamplerRule:
        """The rule with its options."""
        return self._built_in_rule() if self.sampler is None or isinstance(self.sampler, str) else self.sampler

    def _built_in_rule(self) -> SamplerConfig:
        rule = self.sampler_config or SAMPLER_RULES[str(self.sampler_name)]()
        if self.confidence_threshold is None:
            return rule
        return replace(rule, **{"confidence_threshold": self.confidence_threshold})

    def policy(self) -> CachePolicy | None:
        """The cache policy, an object; `None` keeps nothing."""
        policy = self.cache_policy or ("none" if self.use_cache is False else "prompt")
        if isinstance(policy, str):
            return CACHE_POLICIES[policy](self.cache_refresh_interval, self.block_length)
        return policy

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        self._check_numbers()  # before the parent compares them with others
        super().validate(strict=strict, user_set_attributes=user_set_attributes)
        for name, known in (("unmasking", CONFIDENCE_MEASURES), ("unmasking_schedule", SCHEDULES)):
            self._check_name(name, known)
        self._check_sampler()
        self._check_cache_options()

    def _check_numbers(self) -> None:
        """Checks the options that are numbers; those of numpy become Python's, which can be saved."""
        for name in (
            "max_new_tokens", "max_length", "max_denoising_steps", "block_length", "initial_answer_length",
            "cache_refresh_interval", "num_return_sequences", "top_k", "mask_token_id",
        ):  # fmt: skip
            value = getattr(self, name)
            # 0 is a token, and transformers' way to switch `top_k` off
            least = 0 if name in ("top_k", "mask_token_id") else 1
            if value is None:
                continue
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` must be an integer >= {least} (got {value!r})")
            setattr(self, name, int(value))
        if self.max_denoising_steps is not None and self.max_denoising_steps > MAX_DENOISING_STEPS:
            raise ValueError(
                f"`max_denoising_steps` must be at most {MAX_DENOISING_STEPS} (got {self.max_denoising_steps})"
            )
        for name in ("confidence_threshold", "top_p"):
            value = getattr(self, name)
            if value is None:
                continue
            if not (isinstance(value, numbers.Real) and 0 < float(value) <= 1):
                raise ValueError(f"`{name}` must lie in (0, 1] (got {value!r})")
            setattr(self, name, float(value))
        temperature = self.temperature
        if temperature is not None and not (
            isinstance(temperature, numbers.Real) and 0 < float(temperature) < math.inf
        ):
            raise ValueError(
                f"`temperature` must be positive and finite (got {temperature!r}); greedy decoding: do_sample=False"
            )
        if self.max_time is not None and not isinstance(self.max_time, numbers.Real):
            raise ValueError(f"`max_time` must be a number of seconds (got {self.max_time!r})")

    def _check_name(self, option: str, known: Iterable[str]) -> None:
        value = getattr(self, option)
        if value is not None and (not isinstance(value, str) or value not in known):
            raise ValueError(
                f"`{option}` must be one of {', '.join(known)} (got {value!r}){nearest_name(str(value), known)}"
            )

    def _check_sampler(self) -> None:
        if isinstance(self.sampler, str) or not callable(self.sampler):
            self._check_name("sampler", SAMPLER_RULES)
        if isinstance(self.sampler_config, Mapping):
            name = self.sampler if isinstance(self.sampler, str) else None
            self.sampler_config = sampler_config_from_dict(self.sampler_config, name)
        config = self.sampler_config
        if config is not None:
            if type(config) not in SAMPLER_RULES.values():
                raise ValueError(
                    "`sampler_config` must be the options of a built-in rule; a rule of your own is passed as "
                    f"`sampler` (got {config!r})"
                )
            if self.sampler is not None and SAMPLER_RULES.get(str(self.sampler_name)) is not type(config):
                raise ValueError(f"`sampler_config` must belong to `sampler`={self.sampler!r} (got {config!r})")
        if self.confidence_threshold is not None and self.sampler_name not in RULES_WITH_THRESHOLD:
            raise ValueError(
                f"`confidence_threshold` must be used with `sampler` {' or '.join(map(repr, RULES_WITH_THRESHOLD))} "
                f"(got {self.confidence_threshold!r} with {self.sampler_name or self.sampler!r})"
            )

    def _check_cache_options(self) -> None:
        policy = self.cache_policy
        if policy is not None and not isinstance(policy, str):
            for name in ("block_length", "is_stale", "window"):
                if not hasattr(policy, name):
                    raise ValueError(
                        f"`cache_policy` must be a name or have `{name}`, see `CachePolicy` (got {policy!r})"
                    )
            if self.use_cache is False:
                raise ValueError(
                    f"`use_cache` must not contradict `cache_policy`={policy!r}; leave it out (got False)"
                )
        else:
            self._check_name("cache_policy", CACHE_POLICIES)
            if policy is not None and self.use_cache is not None and self.use_cache is (policy == "none"):
                raise ValueError(
                    f"`use_cache` must not contradict `cache_policy`={policy!r}, which sets the same and more; "
                    f"leave it out (got {self.use_cache})"
                )
        if policy in BLOCK_POLICIES and self.block_length is None:
            raise ValueError(f"`block_length` must be given with `cache_policy`={policy!r} (got None)")
        if self.cache_refresh_interval is not None and policy != "refresh":
            raise ValueError(
                f'`cache_refresh_interval` must be used with `cache_policy`="refresh" (got `cache_policy`={policy!r})'
            )

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
        if self.cache_policy != "prompt":
            raise ValueError(
                '`cache_implementation`="static" needs `cache_policy`="prompt": under other policies steps '
                f"differ in shape (got {self.cache_policy!r})"
            )
        if self.initial_answer_length is not None:
            raise ValueError(
                '`initial_answer_length` must not be used with `cache_implementation`="static", for which canvases '
                f"keep their length (got {self.initial_answer_length!r})"
            )


def translated_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Options under their present names.

    Args:
        options (`Mapping[str, Any]`):
            Of a `generation_config.json`. The original's own decoding options are dropped, because its code never
            reads them. Earlier versions of this package wrote `parallel_rule` with the options of all rules beside it,
            and a threshold of `None` for none.

    Returns:
        `dict[str, Any]`
    """
    options = dict(options)
    if "alg" in options or "decoding_pipeline" in options:
        for name in (*ORIGINAL_FILE_OPTIONS, "use_cache", "temperature", "top_p", "top_k"):
            options.pop(name, None)
    if "parallel_rule" in options:
        config_class = SAMPLER_RULES[options.pop("parallel_rule")]
        names = {name for rule in SAMPLER_RULES.values() for name in option_names(rule)}
        before = {name: options.pop(name, None) for name in names}
        is_set = {name: value for name, value in before.items() if value is not None or name == "confidence_threshold"}
        own = {name: value for name, value in is_set.items() if name in option_names(config_class)}
        options["sampler_config"] = config_class(**own).to_dict()
        options.pop("crop_after_end", None)
        if options.get("cache_policy") == "block":
            options["cache_policy"] = "prefix"
    return options


def set_options(config: GenerationConfig) -> dict[str, Any]:
    """Name -> value of the options that are set; objects stay what they are."""
    options = {name: value for name, value in vars(config).items() if value is not None and not name.startswith("_")}
    return translated_options(options)

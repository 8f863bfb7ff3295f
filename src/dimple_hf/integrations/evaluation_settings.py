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
"""Settings of an evaluation: presets, options of the user, options of the task, and their precedence.

Functions of data that need no evaluation library. The presets are those of the paper's evaluation (arXiv 2505.16990,
section 5: MaskGIT order, one token per step, answers of 4, 8 or 16 positions) and of confident decoding.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import GenerationConfig

from ..modeling.generation_config_dimple import DIFFUSION_OPTIONS, DimpleGenerationConfig, nearest_name

ANSWER_LENGTHS = (4, 8, 16)

#: How many positions a pass unmasks. The order is the same for both: the position that the model is surest of comes
#: first.
DECODINGS: dict[str, dict[str, Any]] = {
    "paper": {"unmasking": "confidence", "sampler": "threshold", "confidence_threshold": None},
    "confident": {"unmasking": "confidence", "sampler": "threshold", "confidence_threshold": 0.95},
}

#: `"paper-4"` to `"confident-16"`: a decoding and the answer's length.
PRESETS: dict[str, dict[str, Any]] = {
    f"{name}-{length}": {"max_new_tokens": length, **options}
    for name, options in DECODINGS.items()
    for length in ANSWER_LENGTHS
}

SAMPLING_OPTIONS = ("do_sample", "temperature", "top_p", "top_k")

#: What may be set for all tasks. Whatever would change the output's form is left out.
MODEL_OPTIONS = (
    "max_new_tokens",
    "use_cache",
    *SAMPLING_OPTIONS,
    *(name for name in DIFFUSION_OPTIONS if name not in ("mask_token_id", "output_history")),
)


def model_options(preset: str | None, given: Mapping[str, Any], other_arguments: Iterable[str] = ()) -> dict[str, Any]:
    """
    What a user sets for all tasks.

    Args:
        preset (`str`, *optional*):
            A key of `PRESETS`.
        given (`Mapping[str, Any]`):
            Options of `generate` by name, which win over the preset. The string `"None"`, which is how a command line
            says it, is `None`.
        other_arguments (`Iterable[str]`, defaults to `()`):
            Names that would have been accepted elsewhere, for the error message.

    Returns:
        `dict[str, Any]`: Options of `generate`.

    Raises:
        ValueError: If the preset or a name is unknown, or a value is out of range.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(
            f"`preset` must be one of {', '.join(PRESETS)} (got {preset!r}){nearest_name(str(preset), PRESETS)}"
        )
    for name in given:
        if name not in MODEL_OPTIONS:
            known = (*MODEL_OPTIONS, *other_arguments)
            raise ValueError(f"`{name}` must be an argument of the model or an option{nearest_name(name, known)}")
    options = {} if preset is None else dict(PRESETS[preset])
    options |= {name: None if value == "None" else value for name, value in given.items()}
    DimpleGenerationConfig(**options)  # refuses values out of range
    return options


def task_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """
    The settings of a task. Tasks are written for models of many kinds: some settings mean nothing here.

    Args:
        given (`Mapping[str, Any]`):
            The `generation_kwargs` of a task. It is greedy unless `do_sample`, or in its absence a positive
            `temperature`, says otherwise.

    Returns:
        `tuple[dict[str, Any], list[str], list[str]]`: Options of `generate`; the strings at whose first occurrence an
        answer ends (`until`); names of settings that are no generation options, which belong to other models.
    """
    until = given.get("until") or []
    options = {name: value for name, value in given.items() if value is not None and name != "until"}
    if not options.get("temperature") or not options.get("do_sample", True):
        options = {name: value for name, value in options.items() if name not in SAMPLING_OPTIONS}
    else:
        options["do_sample"] = True
    generation_options = {*vars(GenerationConfig()), *DIFFUSION_OPTIONS}
    foreign = [name for name in options if name not in generation_options]
    return (
        {name: value for name, value in options.items() if name in generation_options},
        [until] if isinstance(until, str) else list(until),
        foreign,
    )


def end_at(text: str, stop_strings: Iterable[str]) -> str:
    """`text` up to the first occurrence of any of `stop_strings`; empty ones stop nothing."""
    for stop_string in filter(None, stop_strings):
        text = text.split(stop_string)[0]
    return text

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
"""PEFT adapters that store the attention mode of their training.

An adapter changes a model by a little; in the other attention mode that little means nothing. So the mode travels in
the adapter's own `adapter_config.json`, where `PeftModel.save_pretrained` and `push_to_hub` carry it along by
themselves.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..modeling import DimpleForConditionalGeneration
from ..modeling.adapter_dimple import TEXT_LINEAR_LAYERS, set_adapter_mode
from ..modeling.weight_files_dimple import refuse_damaged_files
from .option_types import check_fields, on_one_line

#: Those of the vision tower and the projector, too: for images unlike those that the tower was trained on.
ALL_LINEAR_LAYERS = (
    rf"({TEXT_LINEAR_LAYERS}|visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.\w+_proj)|visual\.merger\.mlp\.[02]"
    r"|img_projector\.linear_[12])"
)

#: Fields of `LoraConfig` -> where their numbers must lie.
LORA_RANGES = {
    "r": ">= 1",
    "lora_alpha": "> 0",
    "lora_dropout": "in [0, 1)",
    "rank_pattern": ">= 1",
    "alpha_pattern": "> 0",
    "qalora_group_size": ">= 1",
    "layers_to_transform": ">= 0",
    "trainable_token_indices": ">= 0",
    "alora_invocation_tokens": ">= 0",
}

#: Fields of `LoraConfig` that take other types than they announce.
LORA_TYPES = {
    "lora_alpha": float,
    "rank_pattern": dict[str, int] | None,
    "alpha_pattern": dict[str, float] | None,
    "init_lora_weights": bool | str,
}


def lora_config(full_attn_mask: bool, **options: Any) -> LoraConfig:
    """
    A LoRA (or DoRA) config for Dimple that needs no knowledge of its layers.

    Args:
        full_attn_mask (`bool`):
            Mode that the adapter is trained in: `config.full_attn_mask` of the model.
        **options:
            Fields of `LoraConfig`. `r` defaults to 16, `lora_alpha` to 32, `lora_dropout` to 0.05, `target_modules` to
            the linear layers of the language model; `use_dora=True` makes it a DoRA.

    Returns:
        `LoraConfig`: For `get_peft_model`.

    Raises:
        ValueError: If an option is unknown, of another type or out of range, or PEFT refuses it.

    Example:

    ```python
    >>> from peft import get_peft_model
    >>> from dimple_hf.training.adapters import lora_config

    >>> model = get_peft_model(model, lora_config(model.config.full_attn_mask, r=8))
    ```
    """
    defaults: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": TEXT_LINEAR_LAYERS}
    options = check_lora_options(options)
    try:
        config = LoraConfig(**({"task_type": "CAUSAL_LM"} | defaults | options))
    except (TypeError, ImportError) as error:
        raise ValueError(
            f"options must be fields of PEFT's LoraConfig (got an error: {on_one_line(error)})"
        ) from error
    set_adapter_mode(config, full_attn_mask)
    return config


def check_lora_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Args:
        options (`Mapping[str, Any]`):
            Fields of `LoraConfig`, most of which PEFT checks no sooner than when it changes a model.

    Returns:
        `dict[str, Any]`: Those that are no `None`, except where `None` is a value of its own.

    Raises:
        ValueError: If one is unknown, of another type or out of range.
    """
    options = check_fields(options, LoraConfig, LORA_RANGES, LORA_TYPES)
    for name in ("target_modules", "exclude_modules"):
        pattern = options.get(name)
        if isinstance(pattern, str):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"`{name}` must be a list of names or a regular expression (got {pattern!r}: {error})"
                ) from error
    return options


def check_initialization(options: Mapping[str, Any]) -> None:
    """
    Tries an initialization on a single layer, because most take their time on a model.

    Args:
        options (`Mapping[str, Any]`):
            Fields of `LoraConfig`.

    Raises:
        ValueError: If PEFT does not have `init_lora_weights`, or it needs more than the weights.
    """
    chosen = {name: options[name] for name in ("init_lora_weights", "loftq_config") if name in options}
    if isinstance(chosen.get("init_lora_weights", True), bool):
        return
    rank = 2 - options.get("r", 16) % 2  # one of them needs an even rank
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            get_peft_model(nn.Sequential(nn.Linear(16, 16)), LoraConfig(r=rank, target_modules=["0"], **chosen))
    except (ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError) as error:
        raise ValueError(
            "`init_lora_weights` must be true, false or one of PEFT's initializations from the weights alone "
            f"(got {chosen['init_lora_weights']!r}: {on_one_line(error)})"
        ) from error


def remember_mode(model: PeftModel) -> None:
    """
    Notes the model's present mode in its adapters. To be called after the mode was switched, as between two phases.

    Args:
        model (`PeftModel`):
            A wrapped [`DimpleForConditionalGeneration`].
    """
    for config in model.peft_config.values():
        set_adapter_mode(config, model.config.full_attn_mask)


def load_adapter(model: DimpleForConditionalGeneration, adapter: str, is_trainable: bool = False) -> PeftModel:
    """
    Wraps a model with a saved adapter, and switches the model to the mode that the adapter was trained in.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The base model.
        adapter (`str`):
            Directory or Hub id of the adapter.
        is_trainable (`bool`, defaults to `False`):
            Whether to go on training it.

    Returns:
        `PeftModel`

    Raises:
        ValueError: If the adapter's weights are damaged.
    """
    with refuse_damaged_files(adapter, config_name="adapter_config.json"), warnings.catch_warnings():
        # PEFT reads a switch of transformers by its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        # The attention mode is stored under a name that no layer has.
        warnings.filterwarnings("ignore", "The following alpha_pattern keys did not match", RuntimeWarning)
        return PeftModel.from_pretrained(model, adapter, is_trainable=is_trainable)


def freeze_other_modules(model: PeftModel, modules: set[str]) -> None:
    """
    Of the modules that an adapter holds whole (PEFT's `modules_to_save`), freezes all but the named ones.

    Args:
        model (`PeftModel`):
            The wrapped model.
        modules (`set[str]`):
            Names such as `"img_projector"`.
    """
    for name, parameter in model.named_parameters():
        owner, separator, _ = name.partition(".modules_to_save.")
        if separator:
            parameter.requires_grad_(owner.rpartition(".")[2] in modules)

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
"""What transformers and PEFT refuse no sooner than when they have a model, tried on one without weights.

A recipe is checked before; here is what only shows together with the model's layers or the installed packages.
"""

import warnings
from copy import deepcopy
from enum import Enum
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from ..modeling import DimpleForConditionalGeneration
from .adapters import lora_config
from .option_types import on_one_line
from .recipe import Recipe, StagePlan
from .stages import PARTS, set_mode

#: What the libraries raise for options that they cannot use.
REFUSALS = (ValueError, LookupError, TypeError, AttributeError, ImportError, RuntimeError, OSError)

#: Beginnings of the names of optimizers that look at the model's layers.
MODEL_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo")


def add_adapter(model: DimpleForConditionalGeneration, recipe: Recipe, plan: StagePlan, **options: Any) -> PeftModel:
    """
    Wraps a model with the new adapter of a stage.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model, in the stage's mode.
        recipe ([`Recipe`]):
            The recipe.
        plan ([`StagePlan`]):
            The stage.
        options:
            Fields of `LoraConfig` that win over the recipe's.

    Returns:
        `PeftModel`
    """
    config = lora_config(plan.stage.full_attn_mask, **((recipe.peft or {}) | options))
    config.modules_to_save = sorted(PARTS[part] for part in plan.stage.train if part != "language_model") or None
    return get_peft_model(model, config)


def check_adapter(recipe: Recipe, plan: StagePlan) -> None:
    """
    Tries a stage's adapter on a model without weights.

    Args:
        recipe ([`Recipe`]):
            The recipe.
        plan ([`StagePlan`]):
            The stage; nothing is tried if it trains no new adapter.

    Raises:
        ValueError: If PEFT refuses the adapter, for example because no layer has the name of a target.
    """
    if not plan.uses_peft or plan.adapter is not None:
        return
    model = empty_model(AutoConfig.from_pretrained(recipe.model))
    set_mode(model, plan.stage)
    num_tokens = model.get_input_embeddings().num_embeddings
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again with the weights
            # Most initializations compute something from the weights, which are not there.
            add_adapter(model, recipe, plan, init_lora_weights=False)
    except REFUSALS as error:
        raise ValueError(
            f"{recipe.path}: `peft` must suit the model (got {recipe.peft}: {on_one_line(error)})"
        ) from error
    tokens = (recipe.peft or {}).get("trainable_token_indices") or []
    for token in sum(tokens.values(), []) if isinstance(tokens, dict) else tokens:
        if not 0 <= token < num_tokens:
            raise ValueError(
                f"{recipe.path}: peft: `trainable_token_indices` must be from 0 to {num_tokens - 1}, the last of the "
                f"model's tokens (got {token})"
            )


def empty_model(config: PreTrainedConfig) -> DimpleForConditionalGeneration:
    """A model without weights, whose layers take no memory; `config` is not changed with it."""
    with torch.device("meta"):
        return DimpleForConditionalGeneration(deepcopy(config))


def check_trainer(recipe: Recipe, plan: StagePlan, args: TrainingArguments) -> None:
    """
    Tries what the Trainer builds from its arguments: the optimizer, the reporters and the compiler's back-end.

    Args:
        recipe ([`Recipe`]):
            The recipe.
        plan ([`StagePlan`]):
            The stage.
        args (`TrainingArguments`):
            Its arguments.

    Raises:
        ValueError: If one of them cannot be used.
    """
    for names, attempt in (
        (("report_to",), lambda: [callback() for callback in get_reporting_integration_callbacks(args.report_to)]),
        (("optim", "optim_args"), lambda: _check_optimizer(args)),
        (("use_liger_kernel",), lambda: _check_liger(args)),
        (("torch_compile_backend", "torch_compile_mode"), lambda: _check_compiler(args)),
    ):
        values = [getattr(args, name) for name in names]
        given = ", ".join(repr(value.value if isinstance(value, Enum) else value) for value in values)
        try:
            attempt()
        except REFUSALS as error:
            listed = " and ".join(f"`{name}`" for name in names)
            raise ValueError(
                f"{recipe.path}: stage {plan.stage.name}: trainer: {listed} must be supported by the installed "
                f"packages (got {given}: {on_one_line(error)})"
            ) from error


def _check_optimizer(args: TrainingArguments) -> None:
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except ValueError:
        if not args.optim.startswith(MODEL_OPTIMIZERS):
            raise


def _check_liger(args: TrainingArguments) -> None:
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ImportError("run `pip install liger-kernel`")


def _check_compiler(args: TrainingArguments) -> None:
    if args.torch_compile:  # nothing is compiled before the first call
        torch.compile(nn.Identity(), backend=args.torch_compile_backend, mode=args.torch_compile_mode)

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
"""PEFT's adapters on Dimple: the attention mode that each was trained in, and the layers that they adapt by default.

An adapter changes a model by a little; in the other attention mode that little means nothing. So its mode is part of
its `adapter_config.json`, and the model runs in the mode of the adapter that is active.
"""

import logging
import sys
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

#: The mode's name in an adapter's configuration.
MODE_KEY = "full_attn_mask"

# PEFT announces a name in `alpha_pattern` that is no module's; this one is not meant to be.
warnings.filterwarnings("ignore", rf"The following alpha_pattern keys did not match .*\['{MODE_KEY}'\]")

#: The linear layers of the language model, as PEFT's regular expression over module names. The vision tower's layers
#: have the same last names, so a list of those would adapt it, too.
TEXT_LINEAR_LAYERS = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def adapter_mode(adapter_config: Any) -> bool | None:
    """
    Args:
        adapter_config (`PeftConfig`):
            An adapter's configuration.

    Returns:
        `bool`, *optional*: The `full_attn_mask` that it was trained with; `None` if it does not record it.
    """
    for fields in (adapter_config.auto_mapping or {}, getattr(adapter_config, "alpha_pattern", None) or {}):
        if MODE_KEY in fields:
            return bool(fields[MODE_KEY])
    return None


def set_adapter_mode(adapter_config: Any, full_attn_mask: bool) -> None:
    """
    Notes an attention mode in an adapter's configuration.

    PEFT has no field for it. `auto_mapping` is free-form, but saved only with a `task_type`. `alpha_pattern` maps
    module names to numbers, and no module has this name; PEFT refuses to hotswap adapters that differ in it.

    Args:
        adapter_config (`PeftConfig`):
            An adapter's configuration, which is changed.
        full_attn_mask (`bool`):
            The mode.
    """
    adapter_config.auto_mapping = (adapter_config.auto_mapping or {}) | {MODE_KEY: full_attn_mask}
    if hasattr(adapter_config, "alpha_pattern"):
        adapter_config.alpha_pattern = (adapter_config.alpha_pattern or {}) | {MODE_KEY: int(full_attn_mask)}


def copy_adapter_mode(adapter: str, adapter_config: Any, **download: Any) -> None:
    """
    Notes the mode of a saved adapter in the configuration of the one whose weights it replaced.

    Args:
        adapter (`str`):
            Directory or Hub id of the saved adapter.
        adapter_config (`PeftConfig`):
            The configuration, which is changed.
        download:
            Arguments of `PeftConfig.from_pretrained`.
    """
    mode = adapter_mode(sys.modules["peft"].PeftConfig.from_pretrained(adapter, **download))
    if mode is not None:
        set_adapter_mode(adapter_config, mode)


def register_lora_targets() -> None:
    """
    Tells PEFT, if it is imported, which layers a `LoraConfig` without `target_modules` adapts. Called where PEFT reads
    a model's configuration, because either library may be imported first, and PEFT is slow to import.
    """
    peft_utils = sys.modules.get("peft.utils")
    if peft_utils is not None:
        peft_utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault("dimple", TEXT_LINEAR_LAYERS)


class AdapterMixin(nn.Module):
    """
    A model whose `config.full_attn_mask` is the mode of its active adapter, or its own where none is active.

    The mode is looked up when adapters are attached and whenever the model is used; it changes with the active
    adapter, and is left alone otherwise, so that it can still be set by hand.
    """

    config: PreTrainedConfig
    _active_modes: tuple[tuple[str, bool | None], ...] = ()
    _own_mode: bool | None = None

    @property
    def peft_config(self) -> dict[str, Any]:
        """Configurations of the adapters, by name; PEFT and transformers set it when they attach the first one."""
        if "_peft_config" not in self.__dict__:
            raise AttributeError("peft_config")
        return self.__dict__["_peft_config"]

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        self.__dict__["_peft_config"] = configs
        self.follow_active_adapter()

    @peft_config.deleter
    def peft_config(self) -> None:
        # The adapters are gone, most likely merged: then the model is what the adapter made of it.
        del self.__dict__["_peft_config"]
        self._active_modes = ()

    def follow_active_adapter(self) -> None:
        """
        Switches the model to the mode of its active adapter.

        Raises:
            ValueError: If adapters of both modes are active.
        """
        configs = self.__dict__.get("_peft_config")
        if not configs or torch.compiler.is_compiling():
            return
        for config in configs.values():
            if adapter_mode(config) is None and not config.inference_mode:  # a new one
                set_adapter_mode(config, self.config.full_attn_mask)
        active = tuple((name, adapter_mode(configs[name])) for name in active_adapters(self) if name in configs)
        if active == self._active_modes:
            return
        modes = {mode for _, mode in active if mode is not None}
        if len(modes) > 1:
            raise ValueError(f"adapters that are active together must have one attention mode (got {dict(active)})")
        if not self._active_modes:
            self._own_mode = self.config.full_attn_mask
        self._active_modes = active
        for name, mode in active:
            if mode is None:
                logger.warning("The adapter %r does not record the attention mode of its training.", name)
        mode = modes.pop() if modes else self._own_mode
        if mode != self.config.full_attn_mask:
            logger.warning(
                "The model is switched from %s to %s mode, which is that of its %s.",
                _mode_name(self.config.full_attn_mask),
                _mode_name(mode),
                f"active adapter {active[0][0]!r}" if active else "own weights",
            )
            self.config.full_attn_mask = mode

    def add_adapter(self, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.add_adapter`. CHANGED, like the methods below: the mode is the active adapter's."""
        super().add_adapter(*args, **kwargs)
        self.follow_active_adapter()

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.set_adapter`."""
        super().set_adapter(*args, **kwargs)
        self.follow_active_adapter()

    def disable_adapters(self) -> None:
        """See `PreTrainedModel.disable_adapters`."""
        super().disable_adapters()
        self.follow_active_adapter()

    def enable_adapters(self) -> None:
        """See `PreTrainedModel.enable_adapters`."""
        super().enable_adapters()
        self.follow_active_adapter()

    def delete_adapter(self, *args: Any, **kwargs: Any) -> None:
        """See `PreTrainedModel.delete_adapter`."""
        super().delete_adapter(*args, **kwargs)
        self.follow_active_adapter()

    def note_adapter_mode(self, full_attn_mask: bool) -> None:
        """Notes in the active adapters' configurations that they are being trained in this mode."""
        for name, mode in self._active_modes:
            config = self.peft_config.get(name)
            if config is not None and mode != full_attn_mask:
                set_adapter_mode(config, full_attn_mask)

    def get_submodule(self, target: str) -> nn.Module:
        """
        See `nn.Module.get_submodule`. CHANGED: refuses the name by which PEFT's prompt learning begins. It would take
        the vision tower for the language model, and diffusion decoding would not see its tokens.
        """
        if target == "embeddings.word_embeddings":
            raise ValueError(
                "prompt tuning, p-tuning and prefix tuning must not be used with Dimple, because diffusion decoding "
                "does not support virtual tokens; use LoRA (`LoraConfig`)"
            )
        return super().get_submodule(target)


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """The adapters that a model's layers run with, of which there are none while they are disabled."""
    row_adapters = RowAdapters(model)
    if row_adapters.hooks:
        return tuple(sorted(set(row_adapters.names) - {"__base__"}))
    for layer in _adapter_layers(model):
        return () if layer.disable_adapters else tuple(layer.active_adapters)
    return ()


class RowAdapters:
    """
    The adapter of each row, which PEFT keeps in hooks of its layers while `generate(adapter_names=[...])` runs.

    Args:
        model (`nn.Module`):
            A model with adapters, or without.
    """

    def __init__(self, model: nn.Module):
        hooks = [hook for layer in _adapter_layers(model) for hook in layer._forward_pre_hooks.values()]
        self.hooks = [hook for hook in hooks if isinstance(hook, partial) and "adapter_names" in hook.keywords]
        self.names: list[str] = list(self.hooks[0].keywords["adapter_names"]) if self.hooks else []

    def select_rows(self, rows: list[int]) -> None:
        """Makes `rows` the new batch."""
        self.names = [self.names[row] for row in rows] if self.hooks else []

    def run_rows(self, rows: torch.LongTensor) -> None:
        """To be called before a forward pass over `rows` (`torch.LongTensor` of shape `(num_rows,)`) of the batch."""
        if self.hooks:
            names = [self.names[row] for row in rows.tolist()]
            for hook in self.hooks:
                hook.keywords["adapter_names"] = names


def _adapter_layers(model: nn.Module) -> list[Any]:
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:  # without PEFT there are none
        return []
    return [module for module in model.modules() if isinstance(module, tuners.BaseTunerLayer)]


def _mode_name(full_attn_mask: bool | None) -> str:
    return "bidirectional" if full_attn_mask else "causal"

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
"""Adapters that remember their mode, and that need no knowledge of the model's layers."""

import json
import logging
from pathlib import Path

import pytest
from peft import EvaConfig, PeftModel, get_peft_model

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.training.adapters import TEXT_LINEAR_LAYERS, load_adapter, lora_config, remember_mode

LAYER_NAMES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def adapted_modules(model: PeftModel) -> set[str]:
    """Names of the modules that have an adapter."""
    prefix = "base_model.model."
    return {
        name.partition(".lora_A")[0].removeprefix(prefix) for name, _ in model.named_parameters() if ".lora_A" in name
    }


def test_lora_config_adapts_every_linear_layer_of_the_language_model(model: DimpleForConditionalGeneration) -> None:
    """3 layers of 7 linear layers. The tower has layers of the same names, which a plain list would adapt, too."""
    expected = {
        name for name, _ in model.named_modules() if name.startswith("model.") and name.split(".")[-1] in LAYER_NAMES
    }
    tower = {
        name for name, _ in model.named_modules() if name.startswith("visual.") and name.split(".")[-1] in LAYER_NAMES
    }
    assert len(expected) == 21
    assert tower  # control
    assert adapted_modules(get_peft_model(model, lora_config(True))) == expected


def test_lora_config_options_win_over_the_defaults() -> None:
    """Everything of PEFT's stays reachable."""
    config = lora_config(True, r=3, use_dora=True)
    assert (config.r, config.lora_alpha, config.use_dora) == (3, 32, True)
    assert config.target_modules == TEXT_LINEAR_LAYERS
    assert lora_config(True, target_modules="lm_head").target_modules == "lm_head"


def test_lora_config_with_fault_is_refused_and_with_none_has_the_default() -> None:
    """As in recipes. Objects of PEFT and other collections than lists are fine from Python."""
    with pytest.raises(ValueError, match=r"`r` must be an integer >= 1 \(got 0\)"):
        lora_config(True, r=0)
    with pytest.raises(ValueError, match="`lora_dropot` is unknown; did you mean `lora_dropout`?"):
        lora_config(True, lora_dropot=0.1)
    config = lora_config(True, r=None, target_modules={"q_proj"}, eva_config=EvaConfig(), init_lora_weights="eva")
    assert (config.r, config.target_modules) == (16, {"q_proj"})


@pytest.mark.parametrize("trained_in", [False, True])
@pytest.mark.parametrize("base_mode", [False, True])
def test_load_adapter_switches_the_base_to_the_adapters_mode_and_says_so(
    model: DimpleForConditionalGeneration,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    trained_in: bool,
    base_mode: bool,
) -> None:
    """A causal adapter on a bidirectional base would answer nonsense without a word."""
    model.config.full_attn_mask = trained_in
    get_peft_model(model, lora_config(trained_in)).save_pretrained(tmp_path)
    model = DimpleForConditionalGeneration(model.config)
    model.config.full_attn_mask = base_mode
    with caplog.at_level(logging.WARNING, logger="dimple_hf"):
        loaded = load_adapter(model, str(tmp_path))
    assert loaded.config.full_attn_mask == trained_in
    said = [record.getMessage() for record in caplog.records if record.name.startswith("dimple_hf")]
    if trained_in == base_mode:
        assert said == []
    else:
        names = ("causal", "bidirectional") if base_mode else ("bidirectional", "causal")
        assert said == [
            f"The model is switched from {names[1]} to {names[0]} mode, which is that of its active adapter 'default'."
        ]


def test_load_adapter_with_a_damaged_file_names_it(model: DimpleForConditionalGeneration, tmp_path: Path) -> None:
    """The library that reads the file says neither which one it is nor where."""
    get_peft_model(model, lora_config(False)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    base = DimpleForConditionalGeneration(model.config)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors must be a whole safetensors file"):
        load_adapter(base, str(tmp_path))


def test_remember_mode_after_a_switch_is_saved_with_the_adapter(
    model: DimpleForConditionalGeneration, tmp_path: Path
) -> None:
    """The mode at the time of saving counts; without the call the file keeps the first one."""
    wrapped = get_peft_model(model, lora_config(False))
    wrapped.config.full_attn_mask = True
    modes = []
    for name in ("before", "after"):
        wrapped.save_pretrained(tmp_path / name)
        modes.append(json.loads((tmp_path / name / "adapter_config.json").read_text())["auto_mapping"])
        remember_mode(wrapped)
    assert modes == [{"full_attn_mask": False}, {"full_attn_mask": True}]


def test_load_adapter_is_trainable_only_when_asked(model: DimpleForConditionalGeneration, tmp_path: Path) -> None:
    """The next stage goes on training it, `generate` does not."""
    get_peft_model(model, lora_config(True)).save_pretrained(tmp_path)
    for is_trainable in (False, True):
        base = DimpleForConditionalGeneration(model.config)
        loaded = load_adapter(base, str(tmp_path), is_trainable=is_trainable)
        assert any(parameter.requires_grad for parameter in loaded.parameters()) == is_trainable

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
"""Adapters that the model itself loads (transformers' integration of PEFT) switch it to their mode."""

import logging
from pathlib import Path

import pytest
import torch
from helpers import MIXED_PROMPTS, model_inputs, tiny_model
from peft import get_peft_model
from transformers import AutoModel

from dimple_hf.training import lora_config

ADAPTER = "adapter_model.safetensors"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A causal adapter for a bidirectional base; both are directories."""
    tiny_model().save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    get_peft_model(base, lora_config(False, r=2, init_lora_weights=False)).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_auto_model_of_an_adapter_loads_base_and_adapter_in_the_adapters_mode(
    adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The adapter's directory is enough: it names its base, and its mode."""
    base = AutoModel.from_pretrained(adapter.parent / "base")
    assert base.config.full_attn_mask is True  # control
    with caplog.at_level(logging.WARNING, logger="dimple_hf"):
        model = AutoModel.from_pretrained(adapter)
    assert model.config.full_attn_mask is False
    assert f"The adapter {adapter} was trained in causal mode" in caplog.text
    inputs = model_inputs(MIXED_PROMPTS[0])
    with torch.no_grad():
        adapted, plain = (part(**inputs, is_causal=True).logits for part in (model, base))
    assert not torch.equal(adapted, plain)


def test_load_adapter_under_a_name_switches_the_model(adapter: Path) -> None:
    """The mode is that of the adapter just loaded."""
    model = AutoModel.from_pretrained(adapter.parent / "base")
    model.load_adapter(str(adapter), "second")
    assert model.config.full_attn_mask is False


def test_load_adapter_with_a_damaged_file_names_it_and_leaves_the_mode(adapter: Path) -> None:
    """As for the model's own weights."""
    (adapter / ADAPTER).write_bytes((adapter / ADAPTER).read_bytes()[:-50])
    model = AutoModel.from_pretrained(adapter.parent / "base")
    with pytest.raises(ValueError, match=r"safetensors files must be whole \(got .*adapter_model\.safetensors"):
        model.load_adapter(str(adapter))
    assert model.config.full_attn_mask is True

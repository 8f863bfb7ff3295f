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
"""The attention mode is that of the active adapter, whoever attaches, switches or merges it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MIXED_PROMPTS, model_inputs, tiny_model
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModel

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.adapter_dimple import TEXT_LINEAR_LAYERS, adapter_mode
from dimple_hf.training import lora_config

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bidirectional base with two adapters, one trained in each mode; `adapter` is the causal one."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_model().save_pretrained(folder / "base")
    for name, mode in (("adapter", False), ("diffusion", True)):
        base = DimpleForConditionalGeneration.from_pretrained(folder / "base", full_attn_mask=mode)
        wrapped = get_peft_model(base, lora_config(mode, r=2, init_lora_weights=False, target_modules=["q_proj"]))
        wrapped.save_pretrained(folder / name)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy, which the test may change."""
    return shutil.copytree(saved, tmp_path, dirs_exist_ok=True)


def base_model(folder: Path) -> DimpleForConditionalGeneration:
    model = AutoModel.from_pretrained(folder / "base")
    assert model.config.full_attn_mask is True  # control
    return model


@torch.no_grad()
def logits(model: Any, **options: Any) -> torch.Tensor:
    return model(**model_inputs(MIXED_PROMPTS[1]), **options).logits


def expected_logits(folder: Path, name: str, is_causal: bool) -> torch.Tensor:
    """Of an adapter alone, in a mode that is given to `forward`."""
    return logits(PeftModel.from_pretrained(base_model(folder), str(folder / name)), is_causal=is_causal)


def test_auto_model_of_an_adapter_loads_base_and_adapter_in_the_adapters_mode(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The adapter's directory is enough: it names its base, and its mode."""
    with caplog.at_level(logging.WARNING, logger="dimple_hf"):
        model = AutoModel.from_pretrained(folder / "adapter")
    assert model.config.full_attn_mask is False
    assert "switched from bidirectional to causal mode, which is that of its active adapter 'default'" in caplog.text
    adapted, plain = (logits(part, is_causal=True) for part in (model, base_model(folder)))
    assert not torch.equal(adapted, plain)


@pytest.mark.parametrize(
    "load",
    [
        lambda folder, name: PeftModel.from_pretrained(base_model(folder), str(folder / name)),
        lambda folder, name: AutoPeftModelForCausalLM.from_pretrained(str(folder / name)),
        lambda folder, name: AutoModel.from_pretrained(folder / name),
    ],
    ids=["peft", "auto-peft", "auto-model"],
)
@pytest.mark.parametrize(("name", "mode"), [("adapter", False), ("diffusion", True)])
def test_loaded_adapter_sets_the_mode(folder: Path, load: Callable[[Path, str], Any], name: str, mode: bool) -> None:
    model = load(folder, name)
    assert model.config.full_attn_mask is mode
    torch.testing.assert_close(logits(model), expected_logits(folder, name, not mode))


def test_peft_switches_the_mode_with_the_active_adapter(folder: Path) -> None:
    """Load a second one, go from one to the other, disable, and delete."""
    model = PeftModel.from_pretrained(base_model(folder), str(folder / "adapter"), adapter_name="causal")
    model.load_adapter(str(folder / "diffusion"), "diffusion")
    causal = expected_logits(folder, "adapter", True)
    bidirectional = expected_logits(folder, "diffusion", False)
    plain = logits(base_model(folder))
    assert not torch.allclose(causal, bidirectional)  # control
    for name, expected in (("causal", causal), ("diffusion", bidirectional), ("causal", causal)):
        model.set_adapter(name)
        torch.testing.assert_close(logits(model), expected)
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), plain)
    torch.testing.assert_close(logits(model), causal)
    model.delete_adapter("causal")
    model.set_adapter("diffusion")
    torch.testing.assert_close(logits(model), bidirectional)


def test_transformers_switches_the_mode_with_the_active_adapter(folder: Path) -> None:
    """The same through the methods of `PreTrainedModel`, after each of which the configuration says so."""
    model = base_model(folder)
    model.load_adapter(str(folder / "adapter"), "causal")
    assert model.config.full_attn_mask is False
    model.load_adapter(str(folder / "diffusion"), "diffusion")
    for name, mode in (("causal", False), ("diffusion", True), ("causal", False)):
        model.set_adapter(name)
        assert model.config.full_attn_mask is mode
    model.disable_adapters()
    assert model.config.full_attn_mask is True
    torch.testing.assert_close(logits(model), logits(base_model(folder)))
    model.enable_adapters()
    assert model.config.full_attn_mask is False
    model.delete_adapter("causal")
    model.set_adapter("diffusion")
    torch.testing.assert_close(logits(model), expected_logits(folder, "diffusion", False))


def test_generate_decodes_in_the_mode_of_the_active_adapter(folder: Path) -> None:
    inputs = model_inputs(MIXED_PROMPTS[1])
    model = PeftModel.from_pretrained(base_model(folder), str(folder / "diffusion"), adapter_name="diffusion")
    model.load_adapter(str(folder / "adapter"), "causal")
    model.set_adapter("causal")
    with pytest.raises(ValueError, match="`unmasking` must be used in bidirectional mode"):
        model.generate(**inputs, max_new_tokens=2, unmasking="random")
    model.set_adapter("diffusion")
    assert model.generate(**inputs, max_new_tokens=2, unmasking="random").shape == (1, 13)


def test_merged_adapter_leaves_its_mode(folder: Path) -> None:
    """Also when nothing was run before, and what is saved then says so."""
    model = PeftModel.from_pretrained(base_model(folder), str(folder / "adapter")).merge_and_unload()
    assert model.config.full_attn_mask is False
    torch.testing.assert_close(logits(model), expected_logits(folder, "adapter", True), atol=1e-4, rtol=1e-4)
    model.save_pretrained(folder / "merged")
    assert AutoModel.from_pretrained(folder / "merged").config.full_attn_mask is False


def test_hotswap_follows_the_new_adapter_or_is_refused(folder: Path) -> None:
    """PEFT's function replaces weights only, so the model would stay in the mode of the adapter before."""
    model = PeftModel.from_pretrained(base_model(folder), str(folder / "adapter"))
    with pytest.raises(ValueError, match="full_attn_mask"):
        hotswap_adapter(model, str(folder / "diffusion"), "default")
    hotswap_adapter(model, str(folder / "adapter"), "default")  # control
    plain = base_model(folder)
    plain.load_adapter(str(folder / "adapter"), "causal")
    plain.load_adapter(str(folder / "diffusion"), "causal", hotswap=True)
    assert plain.config.full_attn_mask is True
    torch.testing.assert_close(logits(plain), expected_logits(folder, "diffusion", False))


def test_adapters_of_both_modes_are_not_active_together(folder: Path) -> None:
    model = base_model(folder)
    model.load_adapter(str(folder / "adapter"), "causal")
    model.load_adapter(str(folder / "diffusion"), "diffusion")
    with pytest.raises(ValueError, match="must have one attention mode"):
        model.set_adapter(["causal", "diffusion"])


def test_mode_set_by_hand_stays_until_the_adapter_changes(folder: Path) -> None:
    model = PeftModel.from_pretrained(base_model(folder), str(folder / "adapter"))
    model.config.full_attn_mask = True
    logits(model)
    assert model.config.full_attn_mask is True


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("mode", [False, True])
def test_plain_lora_config_needs_no_targets_and_remembers_the_mode(
    tmp_path: Path, task_type: str | None, mode: bool
) -> None:
    """As a user of PEFT makes an adapter, who has not read our documentation."""
    tiny_model(full_attn_mask=mode).save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, init_lora_weights=False, task_type=task_type)
    model = get_peft_model(AutoModel.from_pretrained(tmp_path / "base"), config)
    assert config.target_modules == TEXT_LINEAR_LAYERS
    model.save_pretrained(tmp_path / "adapter")
    other = DimpleForConditionalGeneration.from_pretrained(tmp_path / "base", full_attn_mask=not mode)
    loaded = PeftModel.from_pretrained(other, str(tmp_path / "adapter"))
    assert loaded.config.full_attn_mask is mode
    torch.testing.assert_close(logits(loaded), logits(model))


def test_auto_peft_model_loads_an_adapter_without_a_task(tmp_path: Path) -> None:
    """PEFT imports the base's class from a library that the caller allows."""
    tiny_model(full_attn_mask=False).save_pretrained(tmp_path / "base")
    base = AutoModel.from_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(r=2, init_lora_weights=False)).save_pretrained(tmp_path / "adapter")
    model = AutoPeftModel.from_pretrained(str(tmp_path / "adapter"), import_allowlist=["dimple_hf"])
    assert model.config.full_attn_mask is False


def test_adapter_remembers_the_mode_that_it_was_trained_in(tmp_path: Path) -> None:
    """The last training step counts, whatever the mode was when the adapter was made."""
    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM"))
    inputs = model_inputs(MIXED_PROMPTS[0])
    model.train()
    model(**inputs, labels=inputs["input_ids"])
    assert adapter_mode(model.active_peft_config) is True  # control
    model.config.full_attn_mask = False
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["auto_mapping"] == {"full_attn_mask": False}


def test_adapter_of_unknown_mode_is_used_in_that_of_the_base(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An adapter from elsewhere."""
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_mapping": None, "alpha_pattern": {}}))
    with caplog.at_level(logging.WARNING, logger="dimple_hf"):
        model = PeftModel.from_pretrained(base_model(folder), str(folder / "adapter"))
    assert model.config.full_attn_mask is True
    assert "The adapter 'default' does not record the attention mode of its training." in caplog.text


def test_load_adapter_with_a_damaged_file_names_it(folder: Path) -> None:
    """As for the model's own weights."""
    (folder / "adapter" / ADAPTER).write_bytes((folder / "adapter" / ADAPTER).read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors must be a whole safetensors file"):
        base_model(folder).load_adapter(str(folder / "adapter"))


@pytest.mark.parametrize("config_class", [PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig])
def test_prompt_learning_is_refused(model: DimpleForConditionalGeneration, config_class: Any) -> None:
    """Before anything is trained; PEFT would take the vision tower for the language model."""
    with pytest.raises(ValueError, match="prompt tuning, p-tuning and prefix tuning must not be used"):
        get_peft_model(tiny_model(), config_class(task_type="CAUSAL_LM", num_virtual_tokens=4))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache_policy": "none"},
        {"cache_policy": "refresh", "cache_refresh_interval": 2},
        {"cache_policy": "dual", "block_length": 4},
        {"cache_implementation": "static"},
    ],
    ids=str,
)
def test_rows_with_adapters_of_their_own_equal_these_rows_alone(options: dict[str, Any]) -> None:
    """Rows leave the batch when they are finished; the adapters of those that stay go with them."""
    config = LoraConfig(task_type="CAUSAL_LM", r=8, init_lora_weights=False)
    model = get_peft_model(tiny_model(), config, adapter_name="a").eval()
    model.add_adapter("b", config)
    names = ["__base__", "a", "b"] * 2
    options = {"max_new_tokens": 12, "confidence_threshold": 0.2, **options}
    inputs = model_inputs(*[MIXED_PROMPTS[0]] * 6)
    inputs["input_ids"] = torch.randint(0, 90, inputs["input_ids"].shape)
    answers = model.generate(**inputs, adapter_names=names, return_dict_in_generate=True, **options)
    assert len(set(answers.num_forward_passes.tolist())) > 1  # control: rows do leave
    for row, name in enumerate(names):
        row_inputs = {key: value[row : row + 1] for key, value in inputs.items()}
        alone = model.generate(**row_inputs, adapter_names=[name], **options)
        assert torch.equal(answers.sequences[row : row + 1], alone)

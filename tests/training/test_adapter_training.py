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
"""Adapters of PEFT train in both phases with the plain Trainer, generate, merge, and come back from disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from training_run import CHECKPOINT, PHASES, losses, make_rows, make_trainer

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import GenerationCallback, MetricsCallback, add_before_reporters


def wrap(model: DimpleForConditionalGeneration, use_dora: bool) -> PeftModel:
    """Adapters on the language model's attention, as users write it."""
    modules = r"model\.layers\.\d+\.self_attn\.(q|k|v|o)_proj"
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, use_dora=use_dora, target_modules=modules))


def logits(model: torch.nn.Module) -> torch.Tensor:
    inputs = DimpleProcessor.from_pretrained(CHECKPOINT)(text=["What is it?"], return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_adapter_trained_across_the_switch_generates_merges_and_comes_back(
    tmp_path: Path, model: DimpleForConditionalGeneration, use_dora: bool
) -> None:
    """The whole way of a user, in one run of both phases."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    untrained = logits(model)
    wrapped = wrap(model, use_dora)
    trainer = make_trainer(tmp_path, model=wrapped, phases=PHASES, eval_strategy="steps", eval_steps=3)
    processor = DimpleProcessor.from_pretrained(CHECKPOINT)
    add_before_reporters(trainer, MetricsCallback(), GenerationCallback(processor, make_rows(2), max_new_tokens=4))
    trainer.train()

    # 1. Both phases were trained, and nothing but the adapter moved.
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["phase"] for entry in history] == [0, 0, 0, 1, 1, 1]
    assert "masked_token_accuracy" in history[-1]
    base = {name.replace(".base_layer", ""): tensor for name, tensor in wrapped.get_base_model().state_dict().items()}
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())
    trained = logits(wrapped)
    assert not torch.allclose(trained, untrained, atol=1e-3)

    # 2. The wrapped model generates, by diffusion.
    prompt = processor(text=["What is it?"], return_tensors="pt")
    answer = wrapped.generate(**prompt, max_new_tokens=5)
    assert answer.shape == (1, prompt["input_ids"].shape[1] + 5)

    # 3. From disk, onto a fresh base in the phase that it was trained in.
    wrapped.save_pretrained(tmp_path / "adapter")
    fresh = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), trained)

    # 4. Merged, it is an ordinary model with the same answer.
    merged = loaded.merge_and_unload()
    assert type(merged) is DimpleForConditionalGeneration
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    assert torch.equal(merged.generate(**prompt, max_new_tokens=5), answer)


@pytest.mark.parametrize("switch_at", [0, 4], ids=["diffusion", "causal"])
def test_adapter_training_equals_full_training_of_the_same_first_loss(tmp_path: Path, switch_at: int) -> None:
    """A fresh adapter adds nothing yet, so wrapping must not change what the first step sees."""

    def first_loss(**options: Any) -> float:
        trainer = make_trainer(tmp_path, max_steps=1, switch_at=switch_at, **options)
        trainer.train()
        return losses(trainer)[0]

    model = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
    assert first_loss(model=wrap(model, use_dora=False)) == pytest.approx(first_loss(), rel=1e-6)

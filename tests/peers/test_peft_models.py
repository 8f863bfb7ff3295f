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
"""PEFT's common tests, on tiny models in both attention modes.

Run by `make peer-tests`. They call a method with `_test` in its name for each kind of adapter. What cannot apply is
listed in `SKIPPED`, with the reason.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_model
from peft import IA3Config, LoraConfig
from sources import peft_tests

from dimple_hf import DimpleForConditionalGeneration

LAYERS = {"target_modules": ["q_proj", "o_proj"]}  # as wide as the largest rank that the tests combine

#: Adapters that change what the model answers from the start.
ADAPTERS: dict[str, tuple[type, dict[str, Any]]] = {
    "lora": (LoraConfig, {"r": 8, "lora_alpha": 32, "init_lora_weights": False, **LAYERS}),
    "ia3": (IA3Config, {"feedforward_modules": [], "init_ia3_weights": False, **LAYERS}),
}

#: Further arguments that PEFT's own test files pass.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "_test_generate_pos_args": {"raises_err": False},
    "_test_add_adapter_no_autocast_adapter_dtype": {"dtype": torch.bfloat16},
}

#: Methods that cannot apply, and why.
SKIPPED: dict[str, str] = {
    "_test_weighted_combination_of_adapters_lora": "a part of `_test_weighted_combination_of_adapters`",
    "_test_weighted_combination_of_adapters_ia3": "a part of `_test_weighted_combination_of_adapters`",
    "_test_passing_input_embeds_works": "a test of prompt learning, which is refused",
    "_test_generate_half_prec": "its prompts are padded on the right, which is refused",
}

SKIPPED_BIDIRECTIONAL = {
    "_test_mixed_adapter_batches": "compares `output_scores`, which diffusion decoding has not",
    "_test_generate_with_mixed_adapter_batches_and_beam_search": "needs beam search, which diffusion decoding has not",
    "_test_disable_adapter": "compares `output_scores`, which diffusion decoding has not",
    "_test_training_gradient_checkpointing": "compares two forward passes, which draw masks of their own",
    "_test_inference_safetensors": "takes the loss, which training needs labels for, for logits",
    "_test_training_layer_indexing": "takes the loss, which training needs labels for, for logits",
}

tester = peft_tests("testing_common").PeftCommonTester
METHODS = [name for name in vars(tester) if name.startswith("_test_")]


class Tester(tester):
    transformers_class = DimpleForConditionalGeneration
    torch_device = "cpu"
    full_attn_mask: bool

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": torch.tensor([[7, 8, 9], [7, 8, 11]]), "attention_mask": torch.ones(2, 3).long()}
        return inputs | ({"labels": inputs["input_ids"]} if self.full_attn_mask else {})


@pytest.fixture(scope="module", params=[True, False], ids=["bidirectional", "causal"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bidirectional" if request.param else "causal")
    tiny_model(full_attn_mask=request.param, initializer_range=0.02).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("method", METHODS)
def test_adapter_passes_pefts_own_test(method: str, adapter: str, checkpoint: Path) -> None:
    test = Tester()
    test.full_attn_mask = checkpoint.name.startswith("bidirectional")
    skipped = SKIPPED | (SKIPPED_BIDIRECTIONAL if test.full_attn_mask else {})
    if method in skipped:
        pytest.skip(skipped[method])
    config_class, options = ADAPTERS[adapter]
    getattr(test, method)(str(checkpoint), config_class, dict(options), **ARGUMENTS.get(method, {}))

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
"""Transformers' common model and configuration tests, on tiny models in both attention modes.

Run by `make peer-tests`, which downloads the tests first (see `sources`). What cannot apply is listed in `SKIPPED`,
with the reason.
"""

import copy
import json
import unittest
from typing import Any

import torch
from helpers import IMAGE, TINY_VISION, make_prompt, model_inputs, tiny_config
from sources import common_tests

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration

modeling = common_tests("test_modeling_common")
configuration = common_tests("test_configuration_common")

#: Tests that cannot apply, and why. DiffusionGemma's own test file is not part of the distribution; its kind of model
#: skips what concerns sliding windows and the library's own `generate`, too.
SKIPPED = {
    "test_sliding_window_mask": "`use_sliding_window` is refused: the model attends to the whole sequence",
    "test_correct_missing_keys": "a checkpoint that lacks weights is refused, where transformers draws them",
    "test_model_weights_reload_no_missing_tied_weights": "the same",
    "test_model_forward_default_config_values": "the default special tokens lie outside a vocabulary of 99 tokens",
}

SKIPPED_BIDIRECTIONAL = {
    "test_retain_grad_hidden_states_attentions": "gradients without labels or mask tokens are refused: such a model "
    "would learn to copy",
}

#: Tests that take images away from the tokens, which is refused; they run on text.
TEXT_TESTS = ("test_inputs_embeds", "test_eager_matches_sdpa_inference")

#: The image token: low, because the tests of resizing cut off the end of the vocabulary; not below 5, because others
#: fill rows with tokens from there.
IMAGE_TOKEN = 6


class DimpleModelTester:
    """What the common tests take their models and inputs from."""

    def __init__(self, parent: unittest.TestCase, full_attn_mask: bool):
        self.parent = parent
        self.full_attn_mask = full_attn_mask
        self.text_only = False
        config = self.get_config()
        self.batch_size = 2
        self.seq_length = self.get_inputs()["input_ids"].shape[1]
        self.encoder_seq_length = self.key_length = self.decoder_seq_length = self.seq_length
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"):
            setattr(self, name, getattr(config, name))
        self.is_training = True

    def get_config(self) -> DimpleConfig:
        return tiny_config(**self.get_fields())

    def get_fields(self) -> dict[str, Any]:
        vision = TINY_VISION | {"out_hidden_size": TINY_VISION["hidden_size"]}  # the tests know one width of the tower
        return {
            "full_attn_mask": self.full_attn_mask,
            "initializer_range": 0.02,
            "image_token_id": IMAGE_TOKEN,
            "vision_config": vision,
        }

    def get_inputs(self) -> dict[str, torch.Tensor]:
        """Two rows with an image each, of one size: the tests take them apart."""
        inputs = model_inputs(make_prompt(3, [(4, 4)], seed=2), make_prompt(3, [(4, 4)], seed=3))
        ids = inputs["input_ids"]
        inputs["input_ids"] = ids.masked_fill(ids == IMAGE_TOKEN, 7).masked_fill(ids == IMAGE, IMAGE_TOKEN)
        return inputs

    def prepare_config_and_inputs_for_common(self) -> tuple[DimpleConfig, dict[str, torch.Tensor]]:
        inputs = self.get_inputs()
        if self.text_only:
            inputs = {
                "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE_TOKEN, 7),
                "attention_mask": inputs["attention_mask"],
            }
        return self.get_config(), inputs


class CommonModelTests(modeling.ModelTesterMixin):
    full_attn_mask: bool
    all_model_classes = (DimpleForConditionalGeneration,)
    all_generative_model_classes = ()  # the mixin with the tests of `generate` is not part of the distribution
    pipeline_model_mapping: dict[str, Any] = {}
    test_resize_embeddings = True
    has_attentions = True

    def setUp(self) -> None:
        skipped = SKIPPED | (SKIPPED_BIDIRECTIONAL if self.full_attn_mask else {})
        reason = skipped.get(self._testMethodName)
        if reason is not None:
            self.skipTest(reason)
        self.model_tester = DimpleModelTester(self, self.full_attn_mask)
        self.model_tester.text_only = self._testMethodName.startswith(TEXT_TESTS)
        fields = json.loads(self.model_tester.get_config().to_json_string())
        fields = {name: value for name, value in fields.items() if name not in ("model_type", "transformers_version")}
        self.config_tester = configuration.ConfigTester(self, config_class=DimpleConfig, **fields)

    def _prepare_for_class(
        self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False
    ) -> dict[str, Any]:
        inputs = copy.deepcopy(inputs_dict)
        if return_labels:
            inputs["labels"] = inputs["input_ids"].clone()
        return inputs

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class BidirectionalModelTest(CommonModelTests, unittest.TestCase):
    full_attn_mask = True


class CausalModelTest(CommonModelTests, unittest.TestCase):
    full_attn_mask = False

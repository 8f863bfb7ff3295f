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
"""The prompt cache: the prompt's entries stay, the answer's are overwritten in the same memory."""

import pytest
import torch
from helpers import MIXED_PROMPTS, make_prompt, model_inputs
from transformers import DynamicCache

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.cache_dimple import PromptCache, PromptCacheLayer


def states(length: int, batch_size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch_size, 2, length, 8), torch.randn(batch_size, 2, length, 8)


def test_prompt_cache_layer_keeps_the_prefix_and_overwrites_the_rest() -> None:
    """First the whole sequence of 7, then again and again the 4 places behind a prefix of 3."""
    layer = PromptCacheLayer(prefix_length=3)
    first, later = states(7), states(4)
    assert layer.get_seq_length() == 0
    assert layer.get_mask_sizes(7) == (7, 0)
    assert [torch.equal(a, b) for a, b in zip(layer.update(*first), first, strict=True)] == [True, True]
    assert layer.get_seq_length() == 3
    assert layer.get_mask_sizes(4) == (7, 0)
    for _ in range(2):
        whole = layer.update(*later)
        for now, before, new in zip(whole, first, later, strict=True):
            assert torch.equal(now, torch.cat([before[:, :, :3], new], dim=2))
    assert layer.get_max_length() == -1


def test_prompt_cache_layer_never_allocates_again() -> None:
    """A growing cache copies the whole prompt in each layer at each step; here the memory stays the same."""
    layer = PromptCacheLayer(prefix_length=3)
    grown = DynamicCache()
    pointers: list[set[int]] = [set(), set()]
    for length in (7, 4, 4, 4):
        keys, values = states(length)
        layer.update(keys, values)
        if grown.get_seq_length():
            grown.crop(-4)
        reference = grown.update(keys, values, 0)
        assert torch.equal(layer.keys, reference[0])
        assert torch.equal(layer.values, reference[1])
        pointers[0].add(layer.keys.data_ptr())
        pointers[1].add(reference[0].data_ptr())
    assert len(pointers[0]) == 1
    assert len(pointers[1]) > 1  # control: the reference does allocate


def test_prompt_cache_layer_keeps_chosen_rows() -> None:
    """Rows that are finished leave the batch."""
    layer = PromptCacheLayer(prefix_length=3)
    keys, values = states(5, batch_size=3)
    layer.update(keys, values)
    layer.batch_select_indices(torch.tensor([2, 0]))
    assert torch.equal(layer.keys, keys[[2, 0]])
    assert torch.equal(layer.values, values[[2, 0]])
    new = states(2)
    assert torch.equal(layer.update(*new)[0], torch.cat([keys[[2, 0], :, :3], new[0]], dim=2))


@pytest.mark.parametrize("prompts", [MIXED_PROMPTS, MIXED_PROMPTS[1:2]], ids=["padded-batch", "one-row"])
@torch.no_grad()
def test_model_with_prompt_cache_equals_a_cropped_dynamic_cache(
    model: DimpleForConditionalGeneration, prompts: tuple
) -> None:
    """Transformers' own cache, cropped back to the prefix before each step, is the reference."""
    inputs = model_inputs(*prompts)
    prompt_length, answer_length = inputs["input_ids"].shape[1], 5
    mask = torch.cat([inputs["attention_mask"], torch.ones(len(prompts), answer_length, dtype=torch.long)], dim=1)
    caches = [PromptCache(2, prompt_length - 1), DynamicCache()]
    for step in range(3):
        answer = torch.randint(0, 90, (len(prompts), answer_length))
        ids = torch.cat([inputs["input_ids"], answer], dim=1)
        positions = model.get_rope_index(ids, inputs.get("image_grid_thw"), mask)
        start = 0 if step == 0 else prompt_length - 1
        images = {k: v for k, v in inputs.items() if "image" in k or "pixel" in k} if step == 0 else {}
        if step > 0:
            caches[1].crop(-(answer_length + 1))
        outputs = [
            model(
                ids[:, start:], attention_mask=mask, position_ids=positions[:, :, start:], past_key_values=cache,
                is_causal=False, **images,
            ).logits
            for cache in caches
        ]  # fmt: skip
        torch.testing.assert_close(outputs[0][:, -answer_length - 1 :], outputs[1][:, -answer_length - 1 :])
        assert caches[0].get_seq_length() == prompt_length - 1


@torch.no_grad()
def test_prompt_cache_of_a_prompt_of_one_token_keeps_nothing(model: DimpleForConditionalGeneration) -> None:
    """The last prompt token is always computed again, here the only one: every pass is a whole one."""
    cache = PromptCache(2, 0)
    positions = torch.arange(4).expand(3, 1, 4)
    for seed in (1, 2):
        ids = model_inputs(make_prompt(4, seed=seed))["input_ids"]
        cached = model(ids, position_ids=positions, past_key_values=cache, is_causal=False).logits
        torch.testing.assert_close(cached, model(ids, position_ids=positions, is_causal=False).logits)
        assert cache.get_seq_length() == 0

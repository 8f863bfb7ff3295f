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
"""Keys and values during denoising: a pass overwrites those of the positions that it runs, in memory that stays."""

import pytest
import torch
from helpers import MIXED_PROMPTS, model_inputs
from transformers import DynamicCache

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.cache_dimple import (
    BLOCK_POLICIES,
    CACHE_POLICIES,
    DEFAULT_REFRESH_INTERVAL,
    CanvasCache,
    WindowPolicy,
)


def states(length: int, batch_size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch_size, 2, length, 8), torch.randn(batch_size, 2, length, 8)


def filled_cache(num_rows: int, num_positions: int) -> tuple[CanvasCache, torch.Tensor, torch.Tensor]:
    """A cache of one layer after a full pass, and what was written."""
    cache = CanvasCache(1, num_rows, num_positions)
    keys, values = states(num_positions, num_rows)
    cache.set_positions(torch.arange(num_rows), torch.arange(num_positions).expand(num_rows, -1), None)
    cache.update(keys, values, 0)
    return cache, keys, values


def test_cache_policies_are_as_their_table_says() -> None:
    """Options that a policy has no use for do not reach it."""
    policies = {name: make(3, 4) for name, make in CACHE_POLICIES.items()}
    assert policies == {
        "none": None,
        "prompt": WindowPolicy(),
        "refresh": WindowPolicy(interval=3),
        "prefix": WindowPolicy(block_length=4),
        "dual": WindowPolicy(block_length=4, keeps_suffix=True),
    }
    assert CACHE_POLICIES["refresh"](None, None) == WindowPolicy(interval=DEFAULT_REFRESH_INTERVAL)
    assert (
        tuple(name for name, policy in policies.items() if policy is not None and policy.block_length is not None)
        == BLOCK_POLICIES
    )


def test_window_policy_refreshes_by_age_and_block_and_runs_its_window() -> None:
    """Blocks of 4 in a canvas of 10: the last one has two positions."""
    assert [WindowPolicy(interval=3).is_stale(age, False) for age in (1, 2, 3, 4)] == [False, False, True, True]
    assert not WindowPolicy().is_stale(100, False)
    assert WindowPolicy(block_length=4).is_stale(1, True)
    assert WindowPolicy().window(0, 10) == (0, 10)
    assert [WindowPolicy(block_length=4).window(block, 10) for block in (0, 1, 2)] == [(0, 10), (4, 10), (8, 10)]
    dual = WindowPolicy(block_length=4, keeps_suffix=True)
    assert [dual.window(block, 10) for block in (0, 1, 2)] == [(0, 4), (4, 8), (8, 10)]


def test_cache_full_pass_sees_what_it_computed_and_leaves_it_in_memory() -> None:
    """Rows that do not run keep theirs."""
    cache, keys, values = filled_cache(3, 7)
    layer = cache.layers[0]
    assert torch.equal(layer.keys, keys)
    assert torch.equal(layer.values, values)
    new = states(7)
    cache.set_positions(torch.tensor([0, 2]), torch.arange(7).expand(2, -1), None)
    assert layer.get_mask_sizes(7) == (7, 0)
    seen = cache.update(*new, 0)
    assert [torch.equal(a, b) for a, b in zip(seen, new, strict=True)] == [True, True]
    for memory, old, now in ((layer.keys, keys, new[0]), (layer.values, values, new[1])):
        assert torch.equal(memory, torch.stack([now[0], old[1], now[1]]))


def test_cache_window_pass_overwrites_its_positions_and_sees_the_memory() -> None:
    """Each row has its own window; a position that comes twice is written twice alike; what lies after is not seen."""
    cache, keys, values = filled_cache(2, 9)
    new_keys, new_values = states(3)
    new_keys[1, :, 2], new_values[1, :, 2] = new_keys[1, :, 1], new_values[1, :, 1]
    cache.set_positions(torch.arange(2), torch.tensor([[2, 3, 4], [5, 6, 6]]), 8)
    assert cache.layers[0].get_mask_sizes(3) == (8, 0)
    seen = cache.update(new_keys, new_values, 0)
    for got, old, new in zip(seen, (keys, values), (new_keys, new_values), strict=True):
        expected = old.clone()
        expected[0, :, 2:5], expected[1, :, 5:7] = new[0], new[1, :, :2]
        assert torch.equal(got, expected[:, :, :8])
        assert not torch.equal(got, old[:, :, :8])  # control


def test_cache_of_rows_that_never_ran_holds_zeros() -> None:
    """Attention multiplies by 0 what it does not see, and 0 times what memory happens to hold may be no number."""
    cache = CanvasCache(1, 2, 6)
    assert cache.layers[0].get_seq_length() == 0
    cache.set_positions(torch.tensor([1]), torch.arange(4).expand(1, -1), None)
    cache.update(*states(4, 1), 0)
    layer = cache.layers[0]
    assert layer.get_seq_length() == layer.get_max_length() == 6
    assert not layer.keys[0].any()
    assert not layer.keys[1, :, 4:].any()
    assert layer.keys[1, :, :4].all()  # control


def test_cache_never_allocates_again() -> None:
    """A growing cache copies the whole prompt in each layer at each step; here the memory stays the same."""
    cache, keys, values = filled_cache(2, 7)
    grown = DynamicCache()
    grown.update(keys, values, 0)
    pointers: list[set[int]] = [{cache.layers[0].keys.data_ptr()}, {grown.layers[0].keys.data_ptr()}]
    for _ in range(3):
        keys, values = states(4)
        grown.crop(-4)
        reference = grown.update(keys, values, 0)
        cache.set_positions(torch.arange(2), torch.arange(3, 7).expand(2, -1), 7)
        seen = cache.update(keys, values, 0)
        assert torch.equal(seen[0], reference[0])
        assert torch.equal(seen[1], reference[1])
        pointers[0].add(seen[0].data_ptr())
        pointers[1].add(reference[0].data_ptr())
    assert len(pointers[0]) == 1
    assert len(pointers[1]) > 1  # control: the reference does allocate


def test_cache_keeps_chosen_rows() -> None:
    """Rows that are finished leave the batch and take theirs along; a cache without entries only counts them."""
    cache, keys, values = filled_cache(3, 5)
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert torch.equal(cache.layers[0].keys, keys[[2, 0]])
    assert torch.equal(cache.layers[0].values, values[[2, 0]])
    new = states(2)
    cache.set_positions(torch.arange(2), torch.arange(3, 5).expand(2, -1), 5)
    assert torch.equal(cache.update(*new, 0)[0], torch.cat([keys[[2, 0], :, :3], new[0]], dim=2))
    empty = CanvasCache(1, 2, 5)
    empty.batch_select_indices(torch.tensor([0, 0, 1]))
    empty.set_positions(torch.arange(3), torch.arange(5).expand(3, -1), None)
    empty.update(keys, values, 0)
    assert torch.equal(empty.layers[0].keys, keys)


@pytest.mark.parametrize("is_empty", [(False, False), (True, False), (False, True)])
def test_cache_takes_in_the_rows_of_another(is_empty: tuple[bool, bool]) -> None:
    """As rows join a running batch; zeros where one of them holds nothing. The memory keeps its layout."""
    num_rows, parts, expected = (2, 3), [], []
    for rows, empty in zip(num_rows, is_empty, strict=True):
        cache, keys, values = filled_cache(rows, 5)
        parts.append(CanvasCache(1, rows, 5) if empty else cache)
        expected.append(torch.stack([keys, values]) * (not empty))
    cache, other = parts
    cache.append_rows(other)
    layer = cache.layers[0]
    assert torch.equal(torch.stack([layer.keys, layer.values]), torch.cat(expected, dim=1))
    assert layer.num_rows == 5
    assert layer.keys.transpose(1, 2).is_contiguous()


def test_cache_gets_and_loses_positions_at_both_ends() -> None:
    """New ones hold zeros; taking them away again leaves what was there."""
    cache, keys, values = filled_cache(2, 5)
    for left, right in ((2, 3), (-2, -3)):
        cache.pad_positions(left, right)
        layer = cache.layers[0]
        length = 5 + max(left, 0) + max(right, 0)
        assert layer.num_positions == layer.keys.shape[2] == layer.values.shape[2] == length
        first = max(left, 0)
        assert torch.equal(layer.keys[:, :, first : first + 5], keys)
        assert torch.equal(layer.values[:, :, first : first + 5], values)
        assert not layer.keys[:, :, :first].any()
        assert not layer.keys[:, :, first + 5 :].any()


@pytest.mark.parametrize("prompts", [MIXED_PROMPTS, MIXED_PROMPTS[1:2]], ids=["padded-batch", "one-row"])
@torch.no_grad()
def test_model_with_canvas_cache_equals_a_cropped_dynamic_cache(
    model: DimpleForConditionalGeneration, prompts: tuple
) -> None:
    """Transformers' own cache, cropped back to the prompt but its last token before each step, is the reference."""
    inputs = model_inputs(*prompts)
    num_rows, prompt_length, answer_length = *inputs["input_ids"].shape, 5
    width = prompt_length + answer_length
    mask = torch.cat([inputs["attention_mask"], torch.ones(num_rows, answer_length, dtype=torch.long)], dim=1)
    caches = [CanvasCache(2, num_rows, width), DynamicCache()]
    for step in range(3):
        ids = torch.cat([inputs["input_ids"], torch.randint(0, 90, (num_rows, answer_length))], dim=1)
        rope_positions = model.get_rope_index(ids, inputs.get("image_grid_thw"), mask)
        start = 0 if step == 0 else prompt_length - 1
        images = {k: v for k, v in inputs.items() if "image" in k or "pixel" in k} if step == 0 else {}
        positions = torch.arange(start, width).expand(num_rows, -1)
        caches[0].set_positions(torch.arange(num_rows), positions, None if step == 0 else width)
        if step > 0:
            caches[1].crop(-(answer_length + 1))
        outputs = [
            model(
                ids[:, start:], attention_mask=mask, position_ids=rope_positions[:, :, start:], past_key_values=cache,
                is_causal=False, **images,
            ).logits
            for cache in caches
        ]  # fmt: skip
        torch.testing.assert_close(outputs[0][:, -answer_length - 1 :], outputs[1][:, -answer_length - 1 :])

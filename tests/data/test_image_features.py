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
"""Features of images that are kept: what is encoded, how often, and in how many bytes."""

from collections.abc import Iterator

import pytest
import torch
from helpers import MIXED_PROMPTS, make_prompt, model_inputs, tiny_model

from dimple_hf.data.image_features import ImageFeatures
from dimple_hf.modeling import DimpleForConditionalGeneration

#: Bytes of the features of an image of 4 x 4 patches: four tokens of width 32 in float32.
BYTES = 4 * 32 * 4


@pytest.fixture(scope="module")
def model() -> DimpleForConditionalGeneration:
    return tiny_model()


@pytest.fixture
def encoded(model: DimpleForConditionalGeneration) -> Iterator[list[int]]:
    """One entry for each pass of the vision tower: how many images it ran over."""
    numbers: list[int] = []
    hook = model.visual.register_forward_pre_hook(
        lambda module, args, kwargs: numbers.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    yield numbers
    hook.remove()


@pytest.mark.parametrize("is_causal", [False, True])
def test_answers_are_those_of_the_pixels(is_causal: bool, encoded: list[int]) -> None:
    """Rows with none, one and several images, encoded, and kept from before."""
    model = tiny_model(full_attn_mask=not is_causal)
    inputs = model_inputs(*MIXED_PROMPTS)
    expected = model.generate(**inputs, max_new_tokens=4)
    features = ImageFeatures(model)
    for _ in range(2):
        assert torch.equal(model.generate(**features.encode(inputs), max_new_tokens=4), expected)
    others = features.encode(inputs | {"pixel_values": -inputs["pixel_values"]})
    assert not torch.equal(model.generate(**others, max_new_tokens=4), expected)  # control


def test_image_is_encoded_once_in_one_call_and_in_the_next(
    model: DimpleForConditionalGeneration, encoded: list[int]
) -> None:
    kept: list[bool] = []
    features = ImageFeatures(model, count=kept.append)
    one, other = make_prompt(3, [(4, 4)], seed=2), make_prompt(5, [(4, 4)], seed=3)
    first = features.encode(model_inputs(one, other, one))["mm_encoder_outputs"]["image"].pooler_output
    assert encoded == [2]
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])
    again = features.encode(model_inputs(other, one))["mm_encoder_outputs"]["image"].pooler_output
    assert encoded == [2]
    assert torch.equal(again[0], first[1])
    assert kept == [False, False, True, True, True]


def test_arrangement_of_patches_is_part_of_an_image(model: DimpleForConditionalGeneration, encoded: list[int]) -> None:
    """The same patches as a wide and as a tall image are two images."""
    features = ImageFeatures(model)
    wide = make_prompt(3, [(4, 8)], seed=2)
    tall = make_prompt(3, [(8, 4)], seed=2)
    assert torch.equal(wide.pixel_values, tall.pixel_values)
    features.encode(model_inputs(wide))
    features.encode(model_inputs(tall))
    assert encoded == [1, 1]


def test_least_recently_used_image_makes_room(model: DimpleForConditionalGeneration, encoded: list[int]) -> None:
    features = ImageFeatures(model, max_bytes=2 * BYTES)
    a, b, c = (model_inputs(make_prompt(3, [(4, 4)], seed=seed)) for seed in range(3))
    for inputs in (a, b, a, c):
        features.encode(inputs)
    assert encoded == [1] * 3
    assert features.num_bytes == 2 * BYTES
    features.encode(a)
    assert encoded == [1] * 3
    features.encode(b)  # c took its place
    assert encoded == [1] * 4


def test_image_that_is_too_large_is_encoded_each_time(
    model: DimpleForConditionalGeneration, encoded: list[int]
) -> None:
    features = ImageFeatures(model, max_bytes=BYTES - 1)
    inputs = model_inputs(make_prompt(3, [(4, 4)]))
    for _ in range(2):
        features.encode(inputs)
    assert encoded == [1, 1]
    assert features.num_bytes == 0


def test_inputs_without_images_stay_as_they_are(model: DimpleForConditionalGeneration) -> None:
    inputs = model_inputs(MIXED_PROMPTS[0])
    assert set(ImageFeatures(model).encode(inputs)) == set(inputs)
    assert set(ImageFeatures(model).encode(inputs | {"pixel_values": None})) == set(inputs)


def test_features_beside_pixels_or_without_grids_are_refused(model: DimpleForConditionalGeneration) -> None:
    inputs = model_inputs(MIXED_PROMPTS[1])
    encoded = ImageFeatures(model).encode(inputs)
    with pytest.raises(ValueError, match="only one of `pixel_values` and `mm_encoder_outputs` must be given"):
        model.generate(**encoded, pixel_values=inputs["pixel_values"], max_new_tokens=2)
    del encoded["image_grid_thw"]
    with pytest.raises(ValueError, match="`image_grid_thw`|placeholders"):
        model.generate(**encoded, max_new_tokens=2)

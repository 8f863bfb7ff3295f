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
"""A mask and its complement in one pass: the same gradients as two passes, with the images encoded once."""

import pytest
import torch
from training_run import CHECKPOINT, make_rows

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.modeling.diffusion_dimple import add_complements, diffusion_loss
from dimple_hf.training import DimpleDataCollator


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two rows with images, padded on the right, and a mask that leaves and takes tokens in each."""
    batch = DimpleDataCollator(DimpleProcessor.from_pretrained(CHECKPOINT))(make_rows(4)[2:])
    maskable = batch["labels"] != -100
    return batch | {"masked_positions": maskable & (torch.rand(maskable.shape) < 0.5)}


def test_add_complements_hides_what_the_mask_shows() -> None:
    """Only maskable positions; the levels add up to 1 and never fall below the least one."""
    maskable = torch.tensor([[False, True, True, True], [False, True, True, False]])
    masked = torch.tensor([[False, True, False, False], [False, True, True, False]])
    masks, levels = add_complements(masked, maskable, torch.tensor([0.25, 1.0]))
    assert torch.equal(masks, torch.cat([masked, torch.tensor([[False, False, True, True], [False] * 4])]))
    assert levels.tolist() == [0.25, 1.0, 0.75, pytest.approx(1e-3)]


@pytest.mark.parametrize(
    ("weighting", "num_items", "complementary", "expected"),
    [
        # Losses 2 and 4 at levels 0.5 and 0.25; 3 maskable tokens, 6 with their complements, 10 in the whole step.
        ("uniform", None, True, 3.0),
        ("uniform", 10, True, 6 / (20 / 2)),
        ("uniform", 10, False, 6 / (10 * 1.001 / 2)),
        ("elbo", None, True, (4 + 16) / 6),
        ("elbo", 10, True, (4 + 16) / 20),
        ("elbo", 10, False, (4 + 16) / 10),
    ],
)
def test_diffusion_loss_complements_count_each_row_twice(
    weighting: str, num_items: int | None, complementary: bool, expected: float
) -> None:
    """Half of all positions are masked exactly, so the uniform loss is the mean over maskable tokens."""
    loss = diffusion_loss(torch.tensor([2.0, 4.0]), torch.tensor([0.5, 0.25]), 6, weighting, num_items, complementary)
    assert float(loss) == pytest.approx(expected)


@pytest.mark.parametrize("weighting", ["uniform", "elbo"])
def test_complementary_masks_equal_two_passes(
    model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor], weighting: str
) -> None:
    """Loss and gradients of a pass with the mask and one with its complement, each divided by the step's tokens."""
    model.config.loss_weighting = weighting
    maskable = batch["labels"] != -100
    num_items = int(maskable.sum())
    complement = batch | {"masked_positions": maskable & ~batch["masked_positions"]}
    first, second = (model(**part, num_items_in_batch=num_items).loss for part in (batch, complement))
    # One mask is divided by the expected share of masked tokens, 1.001 / 2, and so is its complement; both by 1.
    expected = (first + second) * (1.001 / 2 if weighting == "uniform" else 1 / 2)
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    encoded = []
    model.visual.register_forward_hook(lambda module, inputs, output: encoded.append(len(output.pooler_output)))
    model.config.complementary_masks = True
    output = model(**batch, num_items_in_batch=num_items)
    output.loss.backward()
    assert len(encoded) == 1
    assert encoded[0] == int((batch["input_ids"] == model.config.image_token_id).sum())
    torch.testing.assert_close(output.loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-3, atol=1e-4, msg=name)
    # Every answer token is learned once, with its row's level or what is left of 1.
    assert int((output.token_losses != -100).sum()) == num_items
    assert not torch.isclose(first, second)  # control: the two masks are not alike


def test_complementary_masks_drawn_levels_add_up_to_one(
    model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    """Without a given mask: t is drawn for each row, its complement has 1 - t."""
    model.config.complementary_masks = True
    del batch["masked_positions"]
    output = model(**batch)
    levels = sorted(set(output.token_noise_levels.unique().tolist()) - {-100})
    assert len(levels) == 4
    assert levels[0] + levels[3] == pytest.approx(1)
    assert levels[1] + levels[2] == pytest.approx(1)
    assert torch.equal(output.token_losses != -100, batch["labels"] != -100)


def test_complementary_masks_logits_are_those_of_the_first_mask(
    model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    """A caller who asks for logits knows nothing of the doubled rows."""
    positions = batch["labels"] != -100
    expected = model(**batch, logits_to_keep=positions).logits
    model.config.complementary_masks = True
    torch.testing.assert_close(model(**batch, logits_to_keep=positions).logits, expected)


def test_complementary_masks_leave_the_causal_loss(
    model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    """There are no masks in the first phase."""
    del batch["masked_positions"]
    expected = model(**batch, is_causal=True).loss
    model.config.complementary_masks = True
    assert model(**batch, is_causal=True).loss == expected


def test_complementary_masks_with_a_prepared_attention_mask_are_refused(
    model: DimpleForConditionalGeneration, batch: dict[str, torch.Tensor]
) -> None:
    """What a backend has prepared cannot be doubled."""
    model.config.complementary_masks = True
    with pytest.raises(ValueError, match="`attention_mask` must be a tensor with `complementary_masks`"):
        model(**batch | {"attention_mask": {"full_attention": None}})

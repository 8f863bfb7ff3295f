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
"""The forward process: noise levels, masking, cross-entropy in slices, and the two weightings of the loss."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dimple_hf.modeling import diffusion_dimple
from dimple_hf.modeling.diffusion_dimple import (
    MIN_NOISE_LEVEL,
    NOISE_SCHEDULES,
    add_complements,
    diffusion_loss,
    observed_noise_levels,
    sample_masked_positions,
    sample_noise_levels,
    sequence_mean,
    token_cross_entropy,
    token_weights,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_levels_are_uniform_between_one_in_a_thousand_and_one() -> None:
    """t ~ U(1e-3, 1): mean 0.5005; of 10000 draws the standard error is 0.003."""
    levels = sample_noise_levels(10000, generator=seeded())
    assert MIN_NOISE_LEVEL <= levels.min() < 0.002
    assert 0.998 < levels.max() < 1
    assert levels.mean().item() == pytest.approx(0.5005, abs=0.01)
    quarters = levels.histc(4, min=MIN_NOISE_LEVEL, max=1) / 10000
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.02)


def test_noise_levels_from_equal_generators_are_equal() -> None:
    """Resumed training draws what the uninterrupted run would have drawn."""
    assert torch.equal(sample_noise_levels(5, generator=seeded(3)), sample_noise_levels(5, generator=seeded(3)))
    assert not torch.equal(sample_noise_levels(5, generator=seeded(3)), sample_noise_levels(5, generator=seeded(4)))


def test_masked_positions_follow_each_rows_level_and_stay_in_the_answer() -> None:
    """Rows of 4000 positions, half of them maskable; the standard error of a share is at most 0.012."""
    maskable = torch.zeros(4, 4000, dtype=torch.bool)
    maskable[:, 2000:] = True
    levels = torch.tensor([0.0, 0.2, 0.7, 1.0])
    masked = sample_masked_positions(maskable, levels, generator=seeded())
    assert not masked[:, :2000].any()
    torch.testing.assert_close(masked[:, 2000:].float().mean(dim=1), levels, rtol=0, atol=0.05)
    assert masked.dtype == torch.bool


def test_observed_noise_levels_are_shares_of_the_maskable_positions() -> None:
    """Three of four, none, and a row without an answer; a masked position outside the answer does not count."""
    maskable = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    masked = torch.tensor([[1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    levels = observed_noise_levels(masked, maskable)
    torch.testing.assert_close(levels, torch.tensor([0.75, MIN_NOISE_LEVEL, MIN_NOISE_LEVEL]))


def test_complements_hide_what_the_masks_show() -> None:
    """Together they mask each maskable token once; levels t and 1 - t, at least 1e-3."""
    maskable = torch.tensor([[False, True, True, True]] * 2)
    masked = torch.tensor([[False, True, False, False], [False, True, True, True]])
    both, levels = add_complements(masked, maskable, torch.tensor([0.25, 1.0]))
    assert both.tolist() == [
        [False, True, False, False], [False, True, True, True], [False, False, True, True], [False] * 4,
    ]  # fmt: skip
    torch.testing.assert_close(levels, torch.tensor([0.25, 1.0, 0.75, MIN_NOISE_LEVEL]))
    assert torch.equal(both[:2].int() + both[2:].int(), maskable.int())


def test_token_cross_entropy_in_slices_equals_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with slices of 3 tokens of 11; no pass of the head is larger."""
    torch.manual_seed(0)
    head, hidden = nn.Linear(6, 11, bias=False), torch.randn(8, 6, requires_grad=True)
    targets = torch.randint(0, 11, (8,))
    expected = cross_entropy(head(hidden), targets, reduction="none")
    expected_gradients = torch.autograd.grad((expected * torch.arange(8)).sum(), [hidden, head.weight])
    sizes: list[int] = []
    head.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    for limit, slices in ((2**25, [8]), (3 * 11, [3, 3, 2])):
        monkeypatch.setattr(diffusion_dimple, "MAX_LOGITS_ELEMENTS", limit)
        sizes.clear()
        losses, predictions, entropies = token_cross_entropy(hidden, head, targets, 11)
        assert sizes == slices
        gradients = torch.autograd.grad((losses * torch.arange(8)).sum(), [hidden, head.weight])
        torch.testing.assert_close(losses, expected)
        torch.testing.assert_close(gradients, expected_gradients)
        assert torch.equal(predictions, head(hidden).argmax(dim=-1))
        torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=head(hidden)).entropy())


def test_token_cross_entropy_of_half_precision_is_taken_in_float32() -> None:
    """bfloat16 keeps three digits; the softmax over 152064 tokens needs more."""
    head, hidden = nn.Linear(6, 11, bias=False).bfloat16(), torch.randn(4, 6).bfloat16()
    losses, _, _ = token_cross_entropy(hidden, head, torch.tensor([0, 1, 2, 3]), 11)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, cross_entropy(head(hidden).float(), torch.arange(4), reduction="none"))


TOKEN_LOSSES = torch.tensor([1.0, 2.0, 3.0])
NOISE_LEVELS = torch.tensor([0.5, 0.5, 0.25])


@pytest.mark.parametrize(
    ("weighting", "num_items", "complementary", "expected"),
    [
        ("uniform", None, False, 6 / 3),  # sum(L) / masked
        ("uniform", 20, False, 6 / (20 * 0.5005)),  # sum(L) / (N * E[t])
        ("elbo", None, False, (2 + 4 + 12) / 8),  # sum(L / t) / maskable
        ("elbo", 20, False, (2 + 4 + 12) / 20),
        ("uniform", 20, True, 6 / 20),  # half of twice 20
        ("elbo", 20, True, (2 + 4 + 12) / 40),
        ("elbo", None, True, (2 + 4 + 12) / 8),  # the caller counts the complements' rows
    ],
)
def test_diffusion_loss_of_known_parts_is_as_the_formula_says(
    weighting: str, num_items: int | None, complementary: bool, expected: float
) -> None:
    """The released code's mean, and equation 3 of the paper; alone and as a part of an optimizer step."""
    loss = diffusion_loss(TOKEN_LOSSES, NOISE_LEVELS, 8, weighting, num_items, complementary)
    assert loss.item() == pytest.approx(expected)


def test_diffusion_loss_with_nothing_masked_is_zero() -> None:
    """Not 0 / 0: a row of few tokens at a low noise level often masks none."""
    nothing = torch.zeros(0)
    for weighting in ("uniform", "elbo"):
        for num_maskable in (0, 8, torch.tensor(0)):
            for num_items in (None, 0, 5):
                assert diffusion_loss(nothing, nothing, num_maskable, weighting, num_items).item() == 0


def test_diffusion_losses_of_both_weightings_have_the_same_expectation() -> None:
    """With one loss for all tokens, E[sum(L / t) / N] = L and sum(L) / M = L."""
    maskable = torch.ones(2000, 16, dtype=torch.bool)
    levels = sample_noise_levels(2000, generator=seeded())
    rows = sample_masked_positions(maskable, levels, generator=seeded(1)).nonzero()[:, 0]
    losses = torch.full((len(rows),), 3.0)
    elbo = diffusion_loss(losses, levels[rows], maskable.sum(), "elbo")
    assert diffusion_loss(losses, levels[rows], maskable.sum(), "uniform").item() == pytest.approx(3.0)
    assert elbo.item() == pytest.approx(3.0, abs=0.2)
    # control: the weights matter for one row
    assert diffusion_loss(losses[:1], torch.tensor([0.1]), 1, "elbo").item() == pytest.approx(30.0)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_noise_schedule_mean_and_elbo_weight_are_those_of_its_levels(name: str) -> None:
    """E[p] by drawing, and the weight against -alpha'(u) / (1 - alpha(u)) by differences."""
    schedule = NOISE_SCHEDULES[name]
    assert float(sample_noise_levels(200_000, generator=seeded(), noise_schedule=name).mean()) == pytest.approx(
        schedule.mean_level, abs=3e-3
    )
    u = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    step = 1e-6
    slope = (schedule.level(u + step) - schedule.level(u - step)) / (2 * step)
    torch.testing.assert_close(schedule.elbo_weight(schedule.level(u)), slope / schedule.level(u))


def test_full_noise_schedule_masks_every_answer_token() -> None:
    """And each loss counts once."""
    maskable = torch.tensor([[False, True, True, True]] * 50)
    levels = sample_noise_levels(50, generator=seeded(), noise_schedule="full")
    assert sample_masked_positions(maskable, levels, seeded()).equal(maskable)
    linear = sample_noise_levels(50, generator=seeded())
    assert not sample_masked_positions(maskable, linear, seeded()).equal(maskable)  # control
    assert token_weights(levels, "uniform", noise_schedule="full").equal(torch.ones(50))


def test_sequence_mean_counts_a_long_row_as_much_as_a_short_one() -> None:
    """Rows of 1 and 3 supervised tokens with losses 4 and 1: the mean of 4 and 1; a row without any does not count."""
    losses, rows = torch.tensor([4.0, 1.0, 1.0, 1.0]), torch.tensor([0, 1, 1, 1])
    assert float(sequence_mean(losses, rows, torch.tensor([1, 3, 0]))) == pytest.approx(2.5)
    assert losses.mean() == 1.75  # control


def test_mix_is_the_published_generator() -> None:
    """The first outputs of SplitMix64 from state 0; else masks would change with a constant, and nobody would see."""
    first, second, third = 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F
    states = [step * diffusion_dimple._GOLDEN % 2**64 for step in range(3)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    assert [value % 2**64 for value in diffusion_dimple._mix(signed).tolist()] == [first, second, third]


def test_uniforms_are_the_upper_24_bits() -> None:
    """0 is possible, 1 is not."""
    bits = torch.tensor([0, 1 << 40, -1, (1 << 40) - 1])
    assert diffusion_dimple._as_uniform(bits).tolist() == [0.0, 2**-24, 1 - 2**-24, 0.0]

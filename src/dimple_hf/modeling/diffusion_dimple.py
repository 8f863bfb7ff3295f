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
"""Masked diffusion: noise schedules, masking and the loss, as pure functions of tensors.

Source: Dimple, section 3 (arXiv 2505.16990, equation 3) and the released training code, which weighs differently; both
weightings are here. The cosine schedule is MDLM's (arXiv 2406.07524), sequence normalization LLaDA's (arXiv
2502.09992, guidelines for instruction tuning).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

MIN_NOISE_LEVEL = 1e-3

MAX_LOGITS_ELEMENTS = 2**25


@dataclass(frozen=True)
class NoiseSchedule:
    """
    How noise levels are drawn. With alpha(u) the probability that a token stays, for u ~ U(1e-3, 1), the noise level
    of a row is p = 1 - alpha(u), and its weight in the evidence lower bound is -alpha'(u) / (1 - alpha(u)).

    Args:
        level (`Callable[[torch.Tensor], torch.Tensor]`):
            p as a function of u.
        elbo_weight (`Callable[[torch.Tensor], torch.Tensor]`):
            The weight as a function of p.
        mean_level (`float`):
            E[p], the expected share of masked tokens.
    """

    level: Callable[[torch.Tensor], torch.Tensor]
    elbo_weight: Callable[[torch.Tensor], torch.Tensor]
    mean_level: float


NOISE_SCHEDULES = {
    # alpha(u) = 1 - u
    "linear": NoiseSchedule(
        level=lambda u: u,
        elbo_weight=lambda p: 1 / p,
        mean_level=(1 + MIN_NOISE_LEVEL) / 2,
    ),
    # alpha(u) = 1 - sin(pi u / 2), so that high noise levels are drawn more often
    "cosine": NoiseSchedule(
        level=lambda u: torch.sin(u * (math.pi / 2)),
        elbo_weight=lambda p: (math.pi / 2) * (1 - p**2).clamp(min=0).sqrt() / p,
        mean_level=math.cos(MIN_NOISE_LEVEL * math.pi / 2) * 2 / math.pi / (1 - MIN_NOISE_LEVEL),
    ),
    # alpha(u) = 0: only the first step of decoding, as decisions read it. It bounds no likelihood.
    "full": NoiseSchedule(level=torch.ones_like, elbo_weight=torch.ones_like, mean_level=1.0),
}


def noise_levels(uniform: torch.Tensor, noise_schedule: str = "linear") -> torch.Tensor:
    """
    Args:
        uniform (`torch.FloatTensor` of shape `(num_rows,)`):
            Random numbers in [0, 1).
        noise_schedule (`str`, defaults to `"linear"`):
            Key of `NOISE_SCHEDULES`.

    Returns:
        `torch.FloatTensor` of shape `(num_rows,)`: Noise levels in [1e-3, 1].
    """
    return NOISE_SCHEDULES[noise_schedule].level(MIN_NOISE_LEVEL + (1 - MIN_NOISE_LEVEL) * uniform)


def content_uniforms(
    input_ids: torch.Tensor, is_token: torch.Tensor, seed: int, row_keys: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Random numbers that follow from what a row holds and from a seed, and from nothing else: not from its position in
    the batch, its padding, the device, or what was drawn before.

    Args:
        input_ids (`torch.LongTensor` of shape `(num_rows, length)`):
            Tokens.
        is_token (`torch.BoolTensor` of shape `(num_rows, length)`):
            `False` at padding.
        seed (`int`):
            Other seeds, other numbers.
        row_keys (`torch.LongTensor` of shape `(num_rows,)`, *optional*):
            What else tells rows apart, such as [`image_keys`]; 0 counts as missing.

    Returns:
        `tuple(torch.FloatTensor, torch.FloatTensor)` of shapes `(num_rows,)` and `(num_rows, length)`: Numbers in
        [0, 1) for each row, and for each token.
    """
    index = is_token.long().cumsum(dim=1)  # from 1, padding not counted
    keys = (_mix(_mix(input_ids.long()) + index) * is_token).sum(dim=1) + seed
    if row_keys is not None:
        keys = keys + row_keys
    keys = _mix(keys)
    bits = _mix(keys[:, None] + index * _GOLDEN)
    return _as_uniform(_mix(keys)), _as_uniform(bits)


def image_keys(
    pixel_values: torch.Tensor, patches_per_image: list[int], rows: torch.Tensor, num_rows: int
) -> torch.Tensor:
    """
    Args:
        pixel_values (`torch.FloatTensor` of shape `(num_patches, patch_size)`):
            Patches of all images.
        patches_per_image (`list[int]`):
            How many of them are each image's.
        rows (`torch.LongTensor` of shape `(num_images,)`):
            The row of the batch that each image stands in.
        num_rows (`int`):
            Rows of the batch.

    Returns:
        `torch.LongTensor` of shape `(num_rows,)`: A number that follows from the pixels of the row's images; 0 without
        images.
    """
    bits = pixel_values.float().contiguous().view(torch.int32).long()
    index = torch.arange(bits.shape[1], device=bits.device)
    patches = _mix((bits * (2 * index + 1)).sum(dim=1)).split(patches_per_image)  # integers: sums have no order
    images = [_mix(_mix(image) + torch.arange(len(image), device=bits.device)).sum() for image in patches]
    keys = torch.zeros(num_rows, dtype=torch.long, device=bits.device)
    return keys.index_add_(0, rows.to(bits.device), torch.stack(images))


#: Odd, near 2**64 divided by the golden ratio, as a signed number.
_GOLDEN = -7046029254386353131


def _mix(values: torch.Tensor) -> torch.Tensor:
    """Spreads 64 bits over 64 bits: the last steps of SplitMix64 (Steele et al., 2014). Products wrap around."""
    values = values + _GOLDEN
    values = (values ^ ((values >> 30) & (2**34 - 1))) * -4658895280553007687
    values = (values ^ ((values >> 27) & (2**37 - 1))) * -7723592293110705685
    return values ^ ((values >> 31) & (2**33 - 1))


def _as_uniform(bits: torch.Tensor) -> torch.Tensor:
    """The upper 24 bits as a float32 number in [0, 1)."""
    return ((bits >> 40) & (2**24 - 1)).float() * 2**-24


def sample_noise_levels(
    num_rows: int,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    noise_schedule: str = "linear",
) -> torch.Tensor:
    """
    Draws the noise level of each row.

    Args:
        num_rows (`int`):
            How many rows.
        device (`torch.device`, *optional*, defaults to `"cpu"`):
            Where the result lies.
        generator (`torch.Generator`, *optional*):
            Source of randomness; the global one when missing.
        noise_schedule (`str`, defaults to `"linear"`, t ~ U(1e-3, 1)):
            Key of `NOISE_SCHEDULES`.

    Returns:
        `torch.FloatTensor` of shape `(num_rows,)`: Noise levels in [1e-3, 1].
    """
    # Not `torch.rand`, which `torch.compile` cannot trace with a generator and a varying shape.
    return noise_levels(torch.empty(num_rows, device=device).uniform_(generator=generator), noise_schedule)


def sample_masked_positions(
    maskable: torch.Tensor, noise_levels: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Masks each maskable token independently with its row's noise level as probability.

    Args:
        maskable (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            `True` where a token may be masked (the answer, its padding included).
        noise_levels (`torch.FloatTensor` of shape `(batch_size,)`):
            Probability of masking, per row, in [0, 1].
        generator (`torch.Generator`, *optional*):
            Source of randomness; the global one when missing.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, sequence_length)`: `True` where the token is masked.
    """
    uniform = torch.empty(maskable.shape, device=maskable.device).uniform_(generator=generator)
    return maskable & (uniform < noise_levels[:, None])


def observed_noise_levels(masked: torch.Tensor, maskable: torch.Tensor) -> torch.Tensor:
    """
    The share of masked tokens in each row: the noise level of masks that were given rather than drawn.

    Args:
        masked, maskable (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            `True` where a token is masked, and where it could have been.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`: Shares in [1e-3, 1]; 1e-3 for a row without masked tokens.
    """
    share = (masked & maskable).sum(dim=1) / maskable.sum(dim=1).clamp(min=1)
    return share.clamp(min=MIN_NOISE_LEVEL)


def add_complements(
    masked: torch.Tensor, maskable: torch.Tensor, noise_levels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Puts the complement of each row's mask below the masks: what one of the two hides, the other shows.

    Args:
        masked, maskable (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            `True` where a token is masked, and where it could have been.
        noise_levels (`torch.FloatTensor` of shape `(batch_size,)`):
            Noise level t of each mask, in [1e-3, 1].

    Returns:
        `tuple(torch.BoolTensor, torch.FloatTensor)` of shapes `(2 * batch_size, sequence_length)` and
        `(2 * batch_size,)`: The masks, then their complements; t, then 1 - t, at least 1e-3.
    """
    complements = maskable & ~masked
    return (
        torch.cat([masked, complements]),
        torch.cat([noise_levels, (1 - noise_levels).clamp(min=MIN_NOISE_LEVEL)]),
    )


def token_cross_entropy(
    hidden_states: torch.Tensor, lm_head: nn.Module, targets: torch.Tensor, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Cross-entropy of each token, without ever holding the logits of all of them.

    The head and the softmax run over slices of at most `MAX_LOGITS_ELEMENTS` logits. With several slices each is
    recomputed in the backward pass, so that one slice is alive at a time.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(num_tokens, hidden_size)`):
            Outputs of the language model at the positions that predict the targets.
        lm_head (`nn.Module`):
            Maps `(n, hidden_size)` to `(n, vocab_size)`.
        targets (`torch.LongTensor` of shape `(num_tokens,)`):
            The right tokens.
        vocab_size (`int`):
            Width of the logits; decides how many tokens make a slice.

    Returns:
        `tuple(torch.FloatTensor, torch.LongTensor, torch.FloatTensor)`, each of shape `(num_tokens,)`: Cross-entropy
        in nats, float32; the most probable token; and the entropy of the prediction in nats, without gradient.
    """

    def slice_loss(hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = lm_head(hidden).float()
        with torch.no_grad():
            log_probabilities = logits.log_softmax(dim=-1)
            entropies = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
        return F.cross_entropy(logits, target, reduction="none"), logits.detach().argmax(dim=-1), entropies

    slice_size = max(1, MAX_LOGITS_ELEMENTS // vocab_size)
    if hidden_states.shape[0] <= slice_size:
        return slice_loss(hidden_states, targets)
    slices = zip(hidden_states.split(slice_size), targets.split(slice_size), strict=True)
    parts = zip(*[checkpoint(slice_loss, h, t, use_reentrant=False) for h, t in slices], strict=True)
    losses, predictions, entropies = (torch.cat(part) for part in parts)
    return losses, predictions, entropies


def token_weights(
    noise_levels: torch.Tensor, loss_weighting: str, complementary_masks: bool = False, noise_schedule: str = "linear"
) -> torch.Tensor:
    """
    What the loss of each masked token is multiplied by, so that the sum over N maskable tokens divided by N is the
    training loss in expectation; see [`diffusion_loss`].

    Args:
        noise_levels (`torch.FloatTensor` of shape `(num_masked,)`):
            Noise level of each masked token's row, in [1e-3, 1].
        loss_weighting (`str`):
            `"uniform"` or `"elbo"`.
        complementary_masks (`bool`, defaults to `False`):
            Whether the rows come in pairs of a mask and its complement.
        noise_schedule (`str`, defaults to `"linear"`):
            Key of `NOISE_SCHEDULES`.

    Returns:
        `torch.FloatTensor` of shape `(num_masked,)`
    """
    schedule = NOISE_SCHEDULES[noise_schedule]
    # With complements each token is masked once in two rows.
    if loss_weighting == "elbo":
        return schedule.elbo_weight(noise_levels) / (2 if complementary_masks else 1)
    return torch.full_like(noise_levels, 1.0 if complementary_masks else 1 / schedule.mean_level)


def diffusion_loss(
    token_losses: torch.Tensor,
    noise_levels: torch.Tensor,
    num_maskable: int | torch.Tensor,
    loss_weighting: str,
    num_items_in_batch: int | torch.Tensor | None = None,
    complementary_masks: bool = False,
    noise_schedule: str = "linear",
) -> torch.Tensor:
    """
    Reduces the losses of masked tokens to the training loss.

    With L_i the cross-entropy of masked token i, t_i the noise level of its row, and w the schedule's weight (1 / t
    for the linear one):

    - `"uniform"`, the released code: sum(L_i) / M, where M is the number of masked tokens.
    - `"elbo"`, the paper's equation 3: sum(w(t_i) L_i) / N, where N is the number of maskable tokens.

    `num_items_in_batch` is what `Trainer` passes: the maskable tokens of the whole optimizer step, over all
    micro-batches and processes. Then N is that number and M its expectation, N * E[t], so that the losses of the
    parts of a step add up to the loss of the step, however it was divided.

    With complementary masks each row counts twice. Exactly half of its 2 N positions are masked, each token once, so
    that `"uniform"` is the mean over all maskable tokens, and `"elbo"` the mean of the two masks' estimates.

    Args:
        token_losses (`torch.FloatTensor` of shape `(num_masked,)`):
            Cross-entropy of the masked tokens, in nats.
        noise_levels (`torch.FloatTensor` of shape `(num_masked,)`):
            Noise level of each masked token's row, in [1e-3, 1].
        num_maskable (`int` or `torch.LongTensor`):
            Maskable tokens of this micro-batch, in all its rows, complements included.
        loss_weighting (`str`):
            `"uniform"` or `"elbo"`.
        num_items_in_batch (`int` or `torch.LongTensor`, *optional*):
            Maskable tokens of the whole optimizer step, without complements.
        complementary_masks (`bool`, defaults to `False`):
            Whether the rows come in pairs of a mask and its complement.
        noise_schedule (`str`, defaults to `"linear"`):
            Key of `NOISE_SCHEDULES`.

    Returns:
        `torch.FloatTensor` of shape `()`: The loss; 0 where nothing is masked.
    """
    if num_items_in_batch is None and loss_weighting == "uniform":
        return token_losses.sum() / max(1, token_losses.shape[0])
    masks_per_row = 2 if complementary_masks else 1
    total = num_maskable / masks_per_row if num_items_in_batch is None else num_items_in_batch
    weights = token_weights(noise_levels, loss_weighting, complementary_masks, noise_schedule)
    return (token_losses * weights).sum() / max(1, total)  # 0 and not 0 / 0 where there is nothing to learn


def sequence_mean(weighted_losses: torch.Tensor, rows: torch.Tensor, num_supervised: torch.Tensor) -> torch.Tensor:
    """
    The mean over rows of each row's mean, so that a long answer counts as much as a short one: LLaDA's instruction
    tuning (`sum(token_loss / answer_length) / batch_size` in its guidelines).

    Args:
        weighted_losses (`torch.FloatTensor` of shape `(num_tokens,)`):
            Losses times their weights; see [`token_weights`].
        rows (`torch.LongTensor` of shape `(num_tokens,)`):
            The row of each.
        num_supervised (`torch.LongTensor` of shape `(batch_size,)`):
            Supervised tokens of each row, masked or not. Rows without any do not count.

    Returns:
        `torch.FloatTensor` of shape `()`
    """
    return (weighted_losses / num_supervised[rows]).sum() / (num_supervised > 0).sum().clamp(min=1)

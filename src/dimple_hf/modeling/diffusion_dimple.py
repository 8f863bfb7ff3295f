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
"""The forward process of masked diffusion: noise levels, masking and the loss, as pure functions of tensors.

Source: Dimple, section 3 (arXiv 2505.16990, equation 3) and the released training code, which weighs differently; both
weightings are here. Imported by `modeling_dimple`.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

#: Noise level below which a sample would rarely mask anything (t ~ U(MIN_NOISE_LEVEL, 1) in the paper and the code).
MIN_NOISE_LEVEL = 1e-3

#: Logits held at once by the loss, in elements: 128 MiB in float32, 220 tokens at the 7B model's vocabulary.
MAX_LOGITS_ELEMENTS = 2**25


def sample_noise_levels(
    num_rows: int, device: torch.device | str = "cpu", generator: torch.Generator | None = None
) -> torch.Tensor:
    """
    Draws the noise level t of each row, t ~ U(1e-3, 1).

    Args:
        num_rows (`int`):
            How many rows.
        device (`torch.device`, *optional*, defaults to `"cpu"`):
            Where the result lies.
        generator (`torch.Generator`, *optional*):
            Source of randomness; the global one when missing.

    Returns:
        `torch.FloatTensor` of shape `(num_rows,)`: Noise levels in [1e-3, 1).
    """
    # Not `torch.rand`, which `torch.compile` cannot trace with a generator and a varying shape.
    uniform = torch.empty(num_rows, device=device).uniform_(generator=generator)
    return MIN_NOISE_LEVEL + (1 - MIN_NOISE_LEVEL) * uniform


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
) -> tuple[torch.Tensor, torch.Tensor]:
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
        `tuple(torch.FloatTensor, torch.BoolTensor)`, each of shape `(num_tokens,)`: Cross-entropy in nats, float32,
        and whether the most probable token is the right one.
    """

    def slice_loss(hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = lm_head(hidden).float()
        return F.cross_entropy(logits, target, reduction="none"), logits.detach().argmax(dim=-1) == target

    slice_size = max(1, MAX_LOGITS_ELEMENTS // vocab_size)
    if hidden_states.shape[0] <= slice_size:
        return slice_loss(hidden_states, targets)
    slices = zip(hidden_states.split(slice_size), targets.split(slice_size), strict=True)
    losses, hits = zip(*[checkpoint(slice_loss, h, t, use_reentrant=False) for h, t in slices], strict=True)
    return torch.cat(losses), torch.cat(hits)


def diffusion_loss(
    token_losses: torch.Tensor,
    noise_levels: torch.Tensor,
    num_maskable: int | torch.Tensor,
    loss_weighting: str,
    num_items_in_batch: int | torch.Tensor | None = None,
    complementary_masks: bool = False,
) -> torch.Tensor:
    """
    Reduces the losses of masked tokens to the training loss.

    With L_i the cross-entropy of masked token i and t_i the noise level of its row:

    - `"uniform"`, the released code: sum(L_i) / M, where M is the number of masked tokens.
    - `"elbo"`, the paper's equation 3: sum(L_i / t_i) / N, where N is the number of maskable tokens.

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

    Returns:
        `torch.FloatTensor` of shape `()`: The loss; 0 where nothing is masked.
    """
    masks_per_row = 2 if complementary_masks else 1
    total = num_maskable if num_items_in_batch is None else num_items_in_batch * masks_per_row
    total = max(1, total)  # where there is nothing to learn, 0 and not 0 / 0
    if loss_weighting == "elbo":
        return (token_losses / noise_levels).sum() / total
    if num_items_in_batch is None:
        return token_losses.sum() / max(1, token_losses.shape[0])
    masked_share = 1 / 2 if complementary_masks else (1 + MIN_NOISE_LEVEL) / 2
    return token_losses.sum() / (total * masked_share)

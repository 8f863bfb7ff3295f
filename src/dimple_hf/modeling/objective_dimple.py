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
"""The training objective: noised sequences, and the losses at their masked tokens.

Pure functions of tensors around [`DimpleForConditionalGeneration.forward`]; noise and weights are in
`diffusion_dimple`, the turns of a conversation in `turns_dimple`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from .diffusion_dimple import (
    add_complements,
    content_uniforms,
    diffusion_loss,
    noise_levels,
    observed_noise_levels,
    sample_masked_positions,
    sample_noise_levels,
    sequence_mean,
    token_cross_entropy,
    token_weights,
)
from .turns_dimple import TokenIndex, turn_copies

#: Value of [`TokenLosses.grid`] where a token is not counted, which `Trainer` pads with, too.
NOT_COUNTED = -100


@dataclass(frozen=True)
class NoisySequences:
    """
    Sequences with masks.

    Args:
        index ([`TokenIndex`]):
            Where their tokens stand in the batch.
        is_masked (`torch.BoolTensor` of shape `(num_sequences, length)`):
            `True` where the token is replaced by the mask token.
        noise_levels (`torch.FloatTensor` of shape `(num_sequences,)`):
            The probability of that.
    """

    index: TokenIndex
    is_masked: torch.Tensor
    noise_levels: torch.Tensor


def make_sequences(
    labels: torch.Tensor, attention_mask: torch.Tensor | None, branch_ids: torch.Tensor | None
) -> TokenIndex:
    """
    Args:
        labels (`torch.LongTensor` of shape `(batch_size, length)`):
            -100 where nothing is learned.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*):
            0 at padding.
        branch_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
            Branches of rows with several answers; see [`turn_copies`].

    Returns:
        [`TokenIndex`]: The rows as they are, or one sequence for each of their answers.
    """
    is_token = torch.ones_like(labels) if attention_mask is None else attention_mask
    if branch_ids is not None:
        return turn_copies(branch_ids, is_token, labels)
    rows = torch.arange(labels.shape[0], device=labels.device)[:, None].expand_as(labels)
    positions = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    return TokenIndex(rows, positions, is_token != 0, labels != NOT_COUNTED, are_rows=True)


def add_noise(
    index: TokenIndex,
    input_ids: torch.Tensor | None,
    masked_positions: torch.Tensor | None,
    noise_schedule: str,
    complementary_masks: bool,
    seed: int | None = None,
    row_keys: torch.Tensor | None = None,
) -> NoisySequences:
    """
    Args:
        index ([`TokenIndex`]):
            The sequences.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
            Tokens of the batch.
        masked_positions (`torch.BoolTensor` of shape `(batch_size, length)`, *optional*):
            Masks that are given rather than drawn.
        noise_schedule (`str`):
            Key of `NOISE_SCHEDULES`.
        complementary_masks (`bool`):
            Whether each sequence comes a second time with the complement of its mask.
        seed (`int`, *optional*):
            Masks follow from it and the content of a sequence; from torch's global generator when missing.
        row_keys (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Keys that distinguish rows with the same tokens; see [`content_uniforms`].

    Returns:
        [`NoisySequences`]
    """
    maskable = index.is_supervised
    if masked_positions is not None:
        masked = index.take(masked_positions) & maskable
        levels = observed_noise_levels(masked, maskable)
    elif seed is None or input_ids is None:
        levels = sample_noise_levels(len(maskable), maskable.device, noise_schedule=noise_schedule)
        masked = sample_masked_positions(maskable, levels)
    else:
        keys = None if row_keys is None else row_keys[index.rows[:, 0]]
        of_row, of_token = content_uniforms(index.take(input_ids), index.is_token, seed, keys)
        levels = noise_levels(of_row, noise_schedule)
        masked = maskable & (of_token < levels[:, None])
    if complementary_masks:
        masked, levels = add_complements(masked, maskable, levels)
        twice = {
            name: torch.cat([getattr(index, name)] * 2) for name in ("rows", "positions", "is_token", "is_supervised")
        }
        index = replace(index, **twice)
    return NoisySequences(index, masked, levels)


@dataclass(frozen=True)
class TokenLosses:
    """
    The losses and predictions of a language model at the tokens that count.

    Args:
        rows, positions (`torch.LongTensor` of shape `(num_tokens,)`):
            Where the tokens stand in the batch.
        losses, entropies (`torch.FloatTensor` of shape `(num_tokens,)`):
            Cross-entropy, and entropy of the prediction, in nats.
        predictions (`torch.LongTensor` of shape `(num_tokens,)`):
            The most probable token.
        noise_levels (`torch.FloatTensor` of shape `(num_tokens,)`, *optional*):
            Noise level of the sequence that each was masked in.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    losses: torch.Tensor
    entropies: torch.Tensor
    predictions: torch.Tensor
    noise_levels: torch.Tensor | None

    def grid(self, values: torch.Tensor, shape: torch.Size, fill: float = NOT_COUNTED) -> torch.Tensor:
        """Puts values of the tokens at their positions in the batch, and `fill` elsewhere."""
        return values.new_full(shape, fill).index_put((self.rows, self.positions), values)

    def weights(self, config: Any) -> torch.Tensor:
        """What each loss is multiplied by before it is divided by the supervised tokens; see [`token_weights`]."""
        if self.noise_levels is None:
            return torch.ones_like(self.losses)
        return token_weights(
            self.noise_levels, config.loss_weighting, config.complementary_masks, config.noise_schedule
        )


def token_losses(
    hidden_states: torch.Tensor,
    lm_head: nn.Module,
    labels: torch.Tensor,
    noisy: NoisySequences | None,
    vocab_size: int,
) -> TokenLosses:
    """
    Args:
        hidden_states (`torch.FloatTensor` of shape `(num_sequences, length, hidden_size)`):
            Outputs of the language model; those at position i - 1 predict token i.
        lm_head (`nn.Module`):
            Scores all tokens.
        labels (`torch.LongTensor` of shape `(batch_size, length)`):
            -100 where nothing is learned.
        noisy ([`NoisySequences`], *optional*):
            What the language model read, if that is not the batch itself.
        vocab_size (`int`):
            Width of the logits.

    Returns:
        [`TokenLosses`]: Of the supervised tokens, with `noisy` those of them that were masked.
    """
    labels = labels.to(hidden_states.device)
    counted = (labels != NOT_COUNTED) if noisy is None else (noisy.index.is_supervised & noisy.is_masked)
    counted = counted.to(hidden_states.device).clone()
    counted[:, 0] = False  # nothing predicts the first token
    sequences, columns = counted.nonzero(as_tuple=True)
    rows, positions, levels = sequences, columns, None
    if noisy is not None:
        rows, positions = (
            part.to(counted.device)[sequences, columns] for part in (noisy.index.rows, noisy.index.positions)
        )
        levels = noisy.noise_levels.to(counted.device)[sequences]
    losses, predictions, entropies = token_cross_entropy(
        hidden_states[sequences, columns - 1], lm_head, labels[rows, positions], vocab_size
    )
    return TokenLosses(rows, positions, losses, entropies, predictions, levels)


def reduce_losses(
    tokens: TokenLosses, labels: torch.Tensor, config: Any, num_items_in_batch: int | torch.Tensor | None
) -> torch.Tensor:
    """
    Args:
        tokens ([`TokenLosses`]):
            The tokens that count.
        labels (`torch.LongTensor` of shape `(batch_size, length)`):
            -100 where nothing is learned.
        config (`DimpleConfig`):
            How to weigh and normalize.
        num_items_in_batch (`int` or `torch.LongTensor`, *optional*):
            Supervised tokens of the whole optimizer step.

    Returns:
        `torch.FloatTensor` of shape `()`: The loss.
    """
    num_supervised = (labels[:, 1:] != NOT_COUNTED).sum(dim=1).to(tokens.losses.device)
    if config.loss_normalization == "sequence":
        return sequence_mean(tokens.losses * tokens.weights(config), tokens.rows, num_supervised)
    if tokens.noise_levels is None:
        total = len(tokens.losses) if num_items_in_batch is None else num_items_in_batch
        return tokens.losses.sum() / max(1, total)
    return diffusion_loss(
        tokens.losses,
        tokens.noise_levels,
        num_supervised.sum() * (2 if config.complementary_masks else 1),
        config.loss_weighting,
        num_items_in_batch,
        config.complementary_masks,
        config.noise_schedule,
    )


def refuse_copying(input_ids: torch.Tensor, mask_token_id: int, gradient: torch.Tensor) -> None:
    """
    A hook for the gradient of logits that no loss of this package was computed from.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`):
            What the model has read, in training and in bidirectional mode.
        mask_token_id (`int`):
            The mask token.
        gradient (`torch.FloatTensor`):
            Gradient of the logits; it stays.

    Raises:
        ValueError: If nothing was masked: then the model would learn to copy.
    """
    if not (input_ids == mask_token_id).any():
        raise ValueError(
            "`labels` must be given in training in bidirectional mode, or `input_ids` hold mask tokens (got neither, "
            "so that there is nothing to learn but to copy): `label_smoothing_factor`, `compute_loss_func` and "
            "trainers with losses of their own keep the labels from the model"
        )

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
"""Support for TRL's trainers, which replace a model's `forward` by one of their own.

TRL (seen in 1.16, `trl.trainer.utils.add_fused_lm_head`) runs the language model itself and scores each token by the
one before it. That is right for a causal model only: on text without masks, under full attention, a model would learn
to copy. So `SFTTrainer` gets the model's own losses, in its form, and the trainers that need the probability of a
whole answer are refused in bidirectional mode.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import ModelOutput

from .objective_dimple import TokenLosses

#: What `SFTTrainer` needs of its head; the others need less or more.
SFT_OUTPUTS = {"log_probs", "entropy", "is_top1"}


@dataclass
class FusedHeadOutput(ModelOutput):
    """
    The fields of TRL's `FusedCausalLMOutput` that `SFTTrainer` reads, at all positions but the first.

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            The loss without `num_items_in_batch`.
        log_probs (`torch.FloatTensor` of shape `(batch_size, sequence_length - 1)`):
            Log-probability of each token times its weight in the loss, so that their negative sum over the supervised
            tokens of a step is the loss; 0 where a token does not count.
        entropy (`torch.FloatTensor` of shape `(batch_size, sequence_length - 1)`):
            Entropy of each prediction in nats; 0 where a token does not count.
        is_top1 (`torch.FloatTensor` of shape `(batch_size, sequence_length - 1)`):
            1 where the most probable token is the right one.
        label_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length - 1)`):
            `True` where a token counts.
    """

    loss: torch.FloatTensor | None = None
    log_probs: torch.FloatTensor | None = None
    entropy: torch.FloatTensor | None = None
    is_top1: torch.FloatTensor | None = None
    label_mask: torch.BoolTensor | None = None


def is_trl_forward(forward: Any) -> bool:
    """Whether a function is the one that TRL puts instead of `forward`: it is told by its argument."""
    return "fused_lm_head" in (getattr(forward, "__kwdefaults__", None) or {})


def keeps_own_forward(forward: Any, full_attn_mask: bool) -> bool:
    """
    Args:
        forward (`Any`):
            What would replace a model's `forward`.
        full_attn_mask (`bool`):
            The model's mode.

    Returns:
        `bool`: `True` if the model's own `forward` replaces it, `False` if it may be replaced.

    Raises:
        ValueError: If it belongs to a trainer that cannot train the model in bidirectional mode.
    """
    if not is_trl_forward(forward):
        return False
    if set(inspect.getclosurevars(forward.__func__).nonlocals.get("outputs", ())) == SFT_OUTPUTS:
        return True
    if full_attn_mask:
        raise ValueError(
            "this trainer needs log-probabilities of whole answers, which masked diffusion does not have: use TRL's "
            "`SFTTrainer`, or train a causal model (`full_attn_mask=False`)"
        )
    return False


def fused_head_output(
    tokens: TokenLosses, weights: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor
) -> FusedHeadOutput:
    """
    Args:
        tokens ([`TokenLosses`]):
            The tokens that count.
        weights (`torch.FloatTensor` of shape `(num_tokens,)`):
            Their weights in the loss.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
            -100 where nothing is learned.
        loss (`torch.FloatTensor` of shape `()`):
            The loss.

    Returns:
        [`FusedHeadOutput`]
    """
    shape = labels.shape
    hits = (tokens.predictions == labels.to(tokens.rows.device)[tokens.rows, tokens.positions]).float()
    return FusedHeadOutput(
        loss=loss,
        log_probs=tokens.grid(-tokens.losses * weights, shape, 0)[:, 1:],
        entropy=tokens.grid(tokens.entropies, shape, 0)[:, 1:],
        is_top1=tokens.grid(hits, shape, 0)[:, 1:],
        label_mask=tokens.grid(torch.ones_like(hits, dtype=torch.bool), shape, False)[:, 1:],
    )

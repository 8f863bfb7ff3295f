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
"""How long each row's canvas is: canvases that grow while the end is not in sight, and end where the answer does.

Pure functions of tensors; every row for itself. Source: DAEDAL, section 3 (arXiv 2508.00819) for growing by the
probability of an end. Imported by `denoising_dimple`.
"""

from dataclasses import dataclass

import torch

#: The end is in sight when the end tokens have this probability, on average, at so many last positions of a canvas
#: that is still all masked. The last one alone says little: a model that has learned to end answers with padding puts
#: some there even where the canvas is too short.
END_PROBABILITY = 0.5
NUM_LAST_POSITIONS = 4


@dataclass(frozen=True)
class LengthPlan:
    """
    How canvases change their lengths.

    Args:
        pad_token_id (`int`):
            The padding token, which stands after a canvas.
        initial_answer_length (`int`, *optional*):
            Positions that canvases start with, fewer than the answer's; they do not grow when missing.
        crops_after_end (`bool`, defaults to `False`):
            Whether a canvas ends with its first decided end token.
    """

    pad_token_id: int
    initial_answer_length: int | None = None
    crops_after_end: bool = False

    @property
    def grows(self) -> bool:
        """Whether canvases become longer."""
        return self.initial_answer_length is not None


def last_positions(lengths: torch.Tensor, answer_length: int) -> torch.Tensor:
    """
    Args:
        lengths (`torch.LongTensor` of shape `(batch_size,)`):
            Positions of each row's canvas.
        answer_length (`int`):
            Positions of the longest possible one.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at the last `NUM_LAST_POSITIONS` of each
        canvas.
    """
    after = lengths[:, None] - torch.arange(answer_length, device=lengths.device)
    return (after > 0) & (after <= NUM_LAST_POSITIONS)


def end_in_sight(logits: torch.Tensor, positions: torch.Tensor, end_token_ids: torch.Tensor) -> torch.Tensor:
    """
    Args:
        logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
            Scores of `positions`, row by row.
        positions (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at the last positions of canvases that are all masked.
        end_token_ids (`torch.LongTensor` of shape `(num_end_tokens,)`):
            Tokens that end an answer.

    Returns:
        `torch.BoolTensor` of shape `(batch_size,)`: `True` for rows whose mean probability of an end there is at least
        `END_PROBABILITY`; `False` for rows without any position.
    """
    probability = logits.float().softmax(dim=-1)[:, end_token_ids].sum(dim=-1)
    by_position = torch.zeros_like(positions, dtype=probability.dtype).masked_scatter(positions, probability)
    return by_position.sum(dim=1) / positions.sum(dim=1).clamp(min=1) >= END_PROBABILITY


def longer(lengths: torch.Tensor, answer_length: int) -> torch.Tensor:
    """Twice each of `lengths`, but at most `answer_length`: so a few passes lead to any length."""
    return (2 * lengths).clamp(max=answer_length)


def fitted_lengths(
    answer: torch.Tensor, lengths: torch.Tensor, mask_token_id: int, end_token_ids: torch.Tensor, plan: LengthPlan
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The lengths that canvases should have in the next step.

    Args:
        answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Answer tokens, masked where not yet decided; anything but masks after a canvas.
        lengths (`torch.LongTensor` of shape `(batch_size,)`):
            Positions of each row's canvas.
        mask_token_id (`int`):
            The mask token.
        end_token_ids (`torch.LongTensor` of shape `(num_end_tokens,)`):
            Tokens that end an answer.
        plan (`LengthPlan`):
            Whether a canvas that is decided to its last position, without an end, grows, and whether one with an end
            is cropped.

    Returns:
        `tuple(torch.LongTensor, torch.BoolTensor)`, each of shape `(batch_size,)`: The lengths, and which canvases may
        grow, now or later.
    """
    answer_length = answer.shape[1]
    in_canvas = torch.arange(answer_length, device=answer.device) < lengths[:, None]
    is_end = torch.isin(answer, end_token_ids) & in_canvas
    has_end = is_end.any(dim=1)
    may_grow = ~has_end & (lengths < answer_length) & plan.grows
    is_full = ~((answer == mask_token_id) & in_canvas).any(dim=1)
    fitted = torch.where(may_grow & is_full, longer(lengths, answer_length), lengths)
    if plan.crops_after_end:
        fitted = torch.where(has_end, is_end.int().argmax(dim=1) + 1, fitted)
    return fitted, may_grow


def resized(
    answer: torch.Tensor, before: torch.Tensor, after: torch.Tensor, mask_token_id: int, pad_token_id: int
) -> torch.Tensor:
    """
    Args:
        answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Answer tokens.
        before, after (`torch.LongTensor` of shape `(batch_size,)`):
            Positions of each row's canvas.
        mask_token_id, pad_token_id (`int`):
            What stands at new positions, and after a canvas.

    Returns:
        `torch.LongTensor` of shape `(batch_size, answer_length)`
    """
    positions = torch.arange(answer.shape[1], device=answer.device)
    is_new = (positions >= before[:, None]) & (positions < after[:, None])
    return answer.masked_fill(is_new, mask_token_id).masked_fill(positions >= after[:, None], pad_token_id)

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
"""The length of each row's canvas, which grows before the first step until it holds the end of the answer.

Source: DAEDAL, section 3 (arXiv 2508.00819). Every row by itself.
"""

import torch

from .canvas_dimple import CanvasRunner
from .denoising_dimple import DecodingState, Sampler

#: The end is in sight when the end tokens have this probability, on average, at so many last positions of a canvas
#: that is still all masked. The last one alone is no evidence: a model that has learned to end answers with padding
#: puts some there even where the canvas is too short.
END_PROBABILITY = 0.5
NUM_LAST_POSITIONS = 4


def in_canvas(lengths: torch.Tensor, answer_length: int) -> torch.Tensor:
    """`torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at the first `lengths` positions
    (`torch.LongTensor` of shape `(batch_size,)`) of each row."""
    return torch.arange(answer_length, device=lengths.device) < lengths[:, None]


def end_in_sight(
    logits: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor, end_token_ids: torch.Tensor
) -> torch.Tensor:
    """
    Args:
        logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
            Scores of `positions`, row by row.
        positions (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at the positions of canvases that are all masked.
        lengths (`torch.LongTensor` of shape `(batch_size,)`):
            Positions of each row's canvas.
        end_token_ids (`torch.LongTensor` of shape `(num_end_tokens,)`):
            Tokens that end an answer.

    Returns:
        `torch.BoolTensor` of shape `(batch_size,)`: `True` for rows whose mean probability of an end, over the last
        `NUM_LAST_POSITIONS` of their canvas, is at least `END_PROBABILITY`; `False` for rows without any position.
    """
    before = in_canvas((lengths - NUM_LAST_POSITIONS).clamp(min=0), positions.shape[1])
    last = positions & ~before
    probability = logits[last[positions]].float().softmax(dim=-1)[:, end_token_ids].sum(dim=-1)
    by_position = torch.zeros_like(last, dtype=probability.dtype).masked_scatter(last, probability)
    return by_position.sum(dim=1) / last.sum(dim=1).clamp(min=1) >= END_PROBABILITY


@torch.no_grad()
def grow_canvases(
    runner: CanvasRunner, canvas: torch.Tensor, sampler: Sampler, initial_length: int, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Probes canvases of `initial_length` positions, and doubles each for as long as its end is not in sight. Where it
    is, the probe is the pass of the first step. A canvas of the full length is not probed.

    Args:
        runner ([`CanvasRunner`]):
            Runs the model; has canvases of the lengths found afterwards.
        canvas (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Mask tokens.
        sampler ([`Sampler`]):
            The mask token, the end tokens and the caller's logits processors.
        initial_length (`int`):
            Positions to start with, fewer than `answer_length`.
        pad_token_id (`int`):
            What stands after a canvas.

    Returns:
        `tuple(torch.LongTensor, torch.LongTensor)` of shapes `(batch_size, answer_length)` and `(batch_size,)`: The
        canvases, and the passes over each row that are not the first step's.
    """
    answer_length = canvas.shape[1]
    lengths = torch.full_like(canvas[:, 0], initial_length)
    num_passes = torch.zeros_like(lengths)
    probing = list(range(len(canvas)))
    while True:
        runner.resize_canvases(lengths.tolist())
        canvas = torch.full_like(canvas, pad_token_id)
        canvas = canvas.masked_fill(in_canvas(lengths, answer_length), sampler.mask_token_id)
        if not probing:
            return canvas, num_passes
        state = DecodingState.start(canvas, sampler.mask_token_id)
        state.scored, logits = runner.probe(canvas, probing)
        logits = sampler.process(state, runner.input_ids, logits)
        grows = state.scored.any(dim=1) & ~end_in_sight(logits, state.scored, lengths, sampler.end_token_ids)
        num_passes += grows
        lengths = torch.where(grows, (2 * lengths).clamp(max=answer_length), lengths)
        probing = (grows & (lengths < answer_length)).nonzero().squeeze(1).tolist()

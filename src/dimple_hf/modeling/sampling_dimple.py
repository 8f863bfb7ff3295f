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
"""The computations of a denoising step: confidences, tokens, schedules, rankings, blocks and ends.

Pure functions of tensors; every budget, ranking and fallback is per row. Source: Dimple, sections 4.1 and 4.2 (arXiv
2505.16990) and its released code for the schedules; MaskGIT (arXiv 2202.04200) for ranking by confidence; Dream (arXiv
2508.15487) for margin and entropy.
"""

from collections.abc import Callable

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

#: Last value of the schedules' time grid, the original's default.
DEFAULT_EPS = 1e-3

#: Tokens that `argmax` compares as one group.
TOKENS_PER_GROUP = 512

#: Logits per chunk of `chunked`: 4 MiB, which a CPU's memory allocator keeps for the next chunk.
SCORES_PER_CHUNK = 2**20


def argmax(logits: torch.Tensor) -> torch.Tensor:
    """
    What `torch.argmax` returns, found in two steps: the group of tokens that holds the largest score, then its
    position there. On a CPU `argmax` reads one score at a time and takes longer than the softmax; the largest score of
    a group is found by vector instructions.

    Args:
        logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
            Scores of all tokens.

    Returns:
        `torch.LongTensor` of shape `(num_positions,)`: The token of the largest score; of equal ones, the first.
    """
    vocab_size = logits.shape[-1]
    num_groups = vocab_size // TOKENS_PER_GROUP
    in_groups, rest = logits.tensor_split([num_groups * TOKENS_PER_GROUP], dim=-1)
    largest = in_groups.unflatten(-1, (num_groups, TOKENS_PER_GROUP)).amax(dim=-1)
    if rest.shape[-1]:
        largest = torch.cat([largest, rest.amax(dim=-1, keepdim=True)], dim=-1)
    start = largest.argmax(dim=-1, keepdim=True) * TOKENS_PER_GROUP
    # In the last group the last token comes several times, after itself.
    tokens = (start + torch.arange(TOKENS_PER_GROUP, device=logits.device)).clamp(max=vocab_size - 1)
    return (start + logits.gather(-1, tokens).argmax(dim=-1, keepdim=True)).squeeze(-1)


def chunked(function: Callable[..., torch.Tensor], logits: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    """
    `function` of each position, called with a few positions at a time where `logits` are on a CPU. Fresh
    memory for a whole vocabulary at every position costs more there than the arithmetic; elsewhere many calls do.

    Args:
        function (`Callable`):
            `(logits, *others)` of any number of positions, the first in float32 -> `torch.Tensor` of shape
            `(num_positions,)`.
        logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
            Scores of all tokens, of any dtype.
        others (`torch.Tensor` of shape `(num_positions, ...)`):
            What else it takes.

    Returns:
        `torch.Tensor` of shape `(num_positions,)`.
    """
    if logits.device.type != "cpu":
        return function(logits.float(), *others)
    positions_per_chunk = max(1, SCORES_PER_CHUNK // logits.shape[-1])
    parts = zip(*(tensor.split(positions_per_chunk) for tensor in (logits, *others)), strict=True)
    return torch.cat([function(scores.float(), *rest) for scores, *rest in parts])


def top_probability(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Probability of the chosen token, in [0, 1] (MaskGIT, section 3.2). See `CONFIDENCE_MEASURES` for the shapes."""
    return logits.softmax(dim=-1).gather(-1, tokens[..., None]).squeeze(-1)


def top_margin(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Largest minus second largest probability, in [0, 1] (Dream, section 3). See `CONFIDENCE_MEASURES`."""
    top_two = logits.softmax(dim=-1).topk(2, dim=-1).values
    return top_two[..., 0] - top_two[..., 1]


def exp_negative_entropy(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """exp(-H) with the entropy H in nats: 1 when certain, 1 / n when n tokens are equally likely. See
    `CONFIDENCE_MEASURES`. The original ranks by -H, which orders positions alike but is never positive."""
    return entropy(logits).neg().exp()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats, `(num_positions,)`, of the distributions of `logits`, `(num_positions, vocab_size)`."""
    log_probabilities = logits.log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    # Forbidden tokens have probability 0 and log probability -inf, whose product is not a number. In place, because
    # fresh memory for a whole vocabulary costs more than the arithmetic.
    return probabilities.mul_(log_probabilities.clamp_(min=-1e4)).sum(dim=-1).neg()


#: How sure the model is of each position: name -> function of `logits` (`torch.FloatTensor` of shape
#: `(num_positions, vocab_size)`) and the chosen `tokens` (`torch.LongTensor` of shape `(num_positions,)`), which
#: returns `torch.FloatTensor` of shape `(num_positions,)` with values in [0, 1]. Random and left-to-right order ignore
#: the confidence when they rank; it still decides what passes a threshold.
CONFIDENCE_MEASURES = {
    "confidence": top_probability,
    "margin": top_margin,
    "entropy": exp_negative_entropy,
    "random": top_probability,
    "left_to_right": top_probability,
}


def sampling_filters(
    temperature: float | None = None, top_p: float | None = None, top_k: int | None = None
) -> LogitsProcessorList:
    """
    What shapes the distribution that tokens are drawn from: temperature, then top-p, then top-k (the original's
    order), as transformers' own warpers.

    Args:
        temperature (`float`, *optional*):
            Divides the logits; positive.
        top_p (`float`, *optional*):
            Keeps the fewest most probable tokens whose summed probability reaches it, at least one; in [0, 1].
        top_k (`int`, *optional*):
            Keeps the k most probable tokens; positive.

    Returns:
        `LogitsProcessorList`: Functions of `(None, logits)`; empty where nothing changes.
    """
    filters = LogitsProcessorList()
    if temperature is not None and temperature != 1:
        filters.append(TemperatureLogitsWarper(float(temperature)))
    if top_p is not None and top_p < 1:
        filters.append(TopPLogitsWarper(top_p))
    if top_k is not None:
        filters.append(TopKLogitsWarper(top_k))
    return filters


def check_finite(is_finite: bool) -> None:
    """Refuses logits that are not finite. An argmax over NaN is a token like any other."""
    if not is_finite:
        raise ValueError(
            "the logits must never be NaN or +inf, and finite for at least one token of each position; "
            "check the weights, the dtype and custom logits processors"
        )


def draw_tokens(logits: torch.Tensor) -> torch.Tensor:
    """
    Args:
        logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
            Scores of all tokens, after [`sampling_filters`].

    Returns:
        `torch.LongTensor` of shape `(num_positions,)`: A token for each position, drawn by its probability.

    Raises:
        ValueError: If they are not finite.
    """
    probabilities = logits.softmax(dim=-1)
    check_finite(bool(probabilities.isfinite().all()))
    return probabilities.multinomial(1).squeeze(-1)


def scatter(positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Puts `values`, `(num_positions,)`, where `positions`, `(batch_size, answer_length)`, is `True`, and 0
    elsewhere."""
    return torch.zeros_like(positions, dtype=values.dtype).masked_scatter(positions, values)


def current_block(masked: torch.Tensor, block_length: int | None) -> torch.Tensor:
    """
    Blocks from left to right (semi-autoregressive decoding: LLaDA, arXiv 2502.09992, section 2.4): only the leftmost
    block that still has a masked position is worked on.

    Args:
        masked (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at masked positions.
        block_length (`int`, *optional*):
            Positions of a block, counted from the first answer position; the last block may be shorter. `None`: the
            whole canvas is one block.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at all positions of each row's block, the
        first block in a row without masked positions.
    """
    if block_length is None:
        return torch.ones_like(masked)
    blocks = torch.arange(masked.shape[1], device=masked.device) // block_length
    return blocks == _block_index(masked, block_length)[:, None]


def _block_index(masked: torch.Tensor, block_length: int) -> torch.Tensor:
    return masked.int().argmax(dim=1) // block_length


def steps_per_block(num_steps: int, answer_length: int, block_length: int | None) -> int:
    """
    The steps of one block's own schedule: each block gets them in proportion to its positions.

    Args:
        num_steps (`int`):
            Steps of the whole answer; positive.
        answer_length (`int`):
            Its positions; positive.
        block_length (`int`, *optional*):
            See [`current_block`].

    Returns:
        `int`: At least 1.
    """
    if block_length is None:
        return num_steps
    return max(1, num_steps * min(block_length, answer_length) // answer_length)


def block_steps(step: int, num_block_steps: int, masked: torch.Tensor, block_length: int | None) -> torch.Tensor:
    """
    Where each row stands in its block's schedule. Block b's steps begin at step b * num_block_steps of the answer; a
    row that comes to it earlier stays at its first one, and commits at least what that unmasks.

    Args:
        step (`int`):
            Index of the answer's step, from 0.
        num_block_steps (`int`):
            Of [`steps_per_block`].
        masked, block_length:
            See [`current_block`].

    Returns:
        `torch.LongTensor` of shape `(batch_size,)`: Indices from 0 to `num_block_steps` - 1.
    """
    if block_length is None:
        return torch.full((len(masked),), step, device=masked.device)
    return (step - _block_index(masked, block_length) * num_block_steps).clamp(0, num_block_steps - 1)


#: Most denoising steps: a step looks at the whole time grid.
MAX_DENOISING_STEPS = 1 << 16


def denoising_times(num_steps: int, eps: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """
    The time grid of the schedules: from 1, all masked, down to `eps`, nothing masked.

    Args:
        num_steps (`int`):
            Denoising steps; positive.
        eps (`float`):
            Last time, below 1.
        device (`torch.device`, *optional*, defaults to `"cpu"`):
            Where the result lies.

    Returns:
        `torch.FloatTensor` of shape `(num_steps + 1,)`
    """
    return torch.linspace(1, eps, num_steps + 1, device=device)


def adaptive_fraction(
    steps: torch.Tensor, times: torch.Tensor, num_masked: torch.Tensor, num_maskable: torch.Tensor
) -> torch.Tensor:
    """
    Which share of a row's masked positions to unmask, by how much of the row is still masked (the original's "dim").

    1. The row's own time r is the share of its positions that are masked.
    2. Take the first time after this step's that lies below r and unmasks at least one position.
    3. Unmask down to it: the share 1 - t / r, or all at the last time.

    Args:
        steps (`torch.LongTensor` of shape `(batch_size,)`):
            Index of each row's denoising step, from 0.
        times (`torch.FloatTensor` of shape `(num_steps + 1,)`):
            The time grid of [`denoising_times`].
        num_masked (`torch.LongTensor` of shape `(batch_size,)`):
            Masked positions of each row, or of its block, now.
        num_maskable (`torch.LongTensor` of shape `(batch_size,)`):
            Masked positions of the same before the first step.

    Returns:
        `torch.FloatTensor` of shape `(batch_size,)`: Shares in (0, 1]; 1 for a row with nothing masked.
    """
    # 1.
    row_times = num_masked / num_maskable.clamp(min=1)
    # 2. Above r a fraction is negative.
    fractions = 1 - times / row_times[:, None]
    fractions[:, -1] = 1
    index = torch.arange(len(times), device=times.device)
    eligible = (index > steps[:, None]) & (num_masked[:, None] * fractions >= 1)
    eligible[:, -1] = True
    # 3.
    chosen = eligible.int().argmax(dim=1)
    return fractions.gather(1, chosen[:, None]).squeeze(1)


def fixed_fraction(
    steps: torch.Tensor, times: torch.Tensor, num_masked: torch.Tensor, num_maskable: torch.Tensor
) -> torch.Tensor:
    """
    Which share of a row's masked positions to unmask, by the step alone (Dream's schedule): 1 - t[step + 1] / t[step],
    all at the last step. Arguments and result as for [`adaptive_fraction`]; the share may be too small for a single
    position.
    """
    fractions = 1 - times[1:] / times[:-1]
    fractions[-1] = 1
    return fractions[steps]


#: Name -> function of `(steps, times, num_masked, num_maskable)` that returns the share of masked positions to unmask.
SCHEDULES = {"adaptive": adaptive_fraction, "fixed": fixed_fraction}


def rank_positions(unmasking: str, confidence: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """
    Orders the masked positions of each row, the first to be unmasked first.

    Args:
        unmasking (`str`):
            A key of `CONFIDENCE_MEASURES`.
        confidence (`torch.FloatTensor` of shape `(batch_size, answer_length)`):
            Confidence of each masked position.
        masked (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at masked positions.

    Returns:
        `torch.LongTensor` of shape `(batch_size, answer_length)`: Rank of each position, from 0; other positions rank
        after all masked ones.
    """
    score = confidence
    if unmasking == "left_to_right":
        score = -torch.arange(masked.shape[1], device=masked.device, dtype=torch.float32).expand(masked.shape)
    elif unmasking == "random":
        score = torch.rand(masked.shape, device=masked.device)
    order = score.masked_fill(~masked, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    ranks = torch.arange(masked.shape[1], device=masked.device).expand(masked.shape)
    return torch.empty_like(order).scatter_(1, order, ranks)


def finished_rows(answer: torch.Tensor, mask_token_id: int, end_token_ids: torch.Tensor) -> torch.Tensor:
    """
    Which rows can no longer change before their end: all is unmasked up to and including the first end token, or
    everything is.

    Args:
        answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Answer tokens, the mask token at masked positions.
        mask_token_id (`int`):
            The mask token.
        end_token_ids (`torch.LongTensor` of shape `(num_end_tokens,)`):
            Tokens that end an answer.

    Returns:
        `torch.BoolTensor` of shape `(batch_size,)`: `True` for finished rows.
    """
    masked_before = (answer == mask_token_id).cumsum(dim=1) > 0
    ended = (torch.isin(answer, end_token_ids) & ~masked_before).any(dim=1)
    return ended | ~masked_before[:, -1]


def after_first(flags: torch.Tensor) -> torch.Tensor:
    """`True` after the first `True` of each row; both `torch.BoolTensor` of shape `(batch_size, length)`."""
    return flags.cumsum(dim=1) > flags

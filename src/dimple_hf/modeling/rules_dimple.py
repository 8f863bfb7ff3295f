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
"""Parallel decoding rules: which masked positions one pass of the model may unmask together, and which it takes back.

A rule is one function and one row of `PARALLEL_RULES`. All are per row; where a rule chooses nothing in a row, the
schedule of `unmasking_dimple` does. The source of each is named at its function; `docs/decoding.md` says when to use
which. Imported by `denoising_dimple` and, for their names and options, by `generation_config_dimple`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .unmasking_dimple import entropy, in_parts, position_indices, top_probability


@dataclass(frozen=True)
class PassScores:
    """
    What one pass of the model says about the positions that it may unmask.

    Args:
        masked (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at these positions: not decided, and in their row's present block.
        positions (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` where the pass has scores: at the same positions, and for a rule that takes back also at the decided
            ones that it generated in the block.
        logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
            The scores of `positions`, row by row; -inf at impossible tokens.
        confidence (`torch.FloatTensor` of shape `(batch_size, answer_length)`):
            How sure the model is of the token that it would put at each of `positions`, in [0, 1]; 0 elsewhere.
        progress (`torch.FloatTensor` of shape `(batch_size,)`):
            Which share of a row's answer is decided, in [0, 1).
        stable_passes (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Passes in a row in which a position's distribution hardly changed; only for rules that compare passes.
    """

    masked: torch.Tensor
    positions: torch.Tensor
    logits: torch.Tensor
    confidence: torch.Tensor
    progress: torch.Tensor
    stable_passes: torch.Tensor


def spread(positions: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Puts `values`, `(num_positions,)`, where `positions`, `(batch_size, answer_length)`, is `True`, and 0
    elsewhere."""
    return torch.zeros_like(positions, dtype=values.dtype).masked_scatter(positions, values)


def confident_positions(scores: PassScores, confidence_threshold: float | None) -> torch.Tensor:
    """
    Confident decoding (Dimple, section 4.2, arXiv 2505.16990; Fast-dLLM's threshold, arXiv 2505.22618, section 3.3):
    every position whose confidence is above `confidence_threshold`, which lies in (0, 1]; none when it is `None`.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at the positions to unmask now, as for all
        rules. It may be all `False` in a row.
    """
    if confidence_threshold is None:
        return torch.zeros_like(scores.masked)
    return scores.masked & (scores.confidence > confidence_threshold)


def factor_positions(scores: PassScores, confidence_factor: float) -> torch.Tensor:
    """
    Factor-based parallel decoding (Fast-dLLM, arXiv 2505.22618, section 3.3): the n most confident positions of a row,
    with the largest n for which (n + 1) (1 - c_n) < f. Here c_n is the smallest confidence among them, so that the
    more positions are unmasked together, the surer each of them must be; f is `confidence_factor`, positive.
    """
    confidence, order = scores.confidence.masked_fill(~scores.masked, -torch.inf).sort(
        dim=1, descending=True, stable=True
    )
    # Confidences fall and n rises, so the left side only grows: what holds at n holds before.
    num_positions = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
    fits = (num_positions + 1) * (1 - confidence) < confidence_factor
    return torch.zeros_like(fits).scatter(1, order, fits)


def entropy_bounded_positions(scores: PassScores, entropy_bound: float) -> torch.Tensor:
    """
    Entropy-bounded unmasking (EB-Sampler, arXiv 2505.24857): the k positions of lowest entropy of a row, with
    the largest k for which the sum of their entropies less the largest of them is at most `entropy_bound`, in nats.
    That difference bounds what the positions can tell about each other. One position always fits.
    """
    entropies = spread(scores.positions, in_parts(entropy, scores.logits)).masked_fill(~scores.masked, torch.inf)
    entropies, order = entropies.sort(dim=1, stable=True)
    # The entropies rise, so the k-th is the largest of the first k, and the sum before it is the difference.
    before = torch.nn.functional.pad(entropies.cumsum(dim=1), (1, -1))
    fits = before <= entropy_bound
    return torch.zeros_like(fits).scatter(1, order, fits) & scores.masked


def stable_positions(
    scores: PassScores, confidence_threshold: float | None, kl_threshold: float, kl_history_length: int
) -> torch.Tensor:
    """
    KL-adaptive stability (KLASS, arXiv 2511.05664, algorithm 1): the positions above `confidence_threshold` whose
    distribution has moved by less than `kl_threshold` nats in each of the last `kl_history_length` passes. `None` asks
    for stability alone. The passes are counted by [`PassMemory.compare`].
    """
    stable = scores.masked & (scores.stable_passes >= kl_history_length)
    return stable if confidence_threshold is None else stable & (scores.confidence > confidence_threshold)


def committed_positions(
    scores: PassScores, confidence_threshold: float | None, gap_thresholds: tuple[float, float, float]
) -> torch.Tensor:
    """
    Early commit (Prophet, arXiv 2508.19982): everything, in a row whose mean gap between the two largest
    logits, over the positions still masked, has reached the threshold of its progress; `gap_thresholds` are those of
    the first, second and last third. Other rows follow [`confident_positions`].
    """
    top_two = scores.logits.topk(2, dim=-1).values.float()
    gaps = top_two[:, 0] - top_two[:, 1]
    # A position with one possible token says nothing about what the model knows.
    is_open = gaps.isfinite()
    total = spread(scores.positions, gaps.masked_fill(~is_open, 0)).sum(dim=1)
    mean_gap = total / spread(scores.positions, is_open.float()).sum(dim=1)  # NaN without any, which passes below
    first, second, last = gap_thresholds
    threshold = torch.full_like(scores.progress, last)
    threshold = threshold.masked_fill(scores.progress < 2 / 3, second).masked_fill(scores.progress < 1 / 3, first)
    commits = ~(mean_gap < threshold)
    return torch.where(commits[:, None], scores.masked, confident_positions(scores, confidence_threshold))


def drafted_positions(scores: PassScores, draft_threshold: float, verify_threshold: float) -> torch.Tensor:
    """
    Revisable decoding (WINO, arXiv 2507.18578), its wide half: every position above `draft_threshold`, which
    may be low, because [`suspicious_positions`] takes back what does not stand up.
    """
    return confident_positions(scores, draft_threshold)


def suspicious_positions(
    decided: torch.Tensor, probability: torch.Tensor, num_drafted: torch.Tensor, verify_threshold: float
) -> torch.Tensor:
    """
    WINO's narrow half: the decided positions whose token has become less probable than `verify_threshold`, the least
    probable first, and fewer than the last pass drafted: so each pass brings more than the next can take back, and n
    positions take at most n passes that unmask something.

    Args:
        decided (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at the generated positions of each row's present block that are decided.
        probability (`torch.FloatTensor` of shape `(batch_size, answer_length)`):
            Probability of the token at each of them, in [0, 1].
        num_drafted (`torch.LongTensor` of shape `(batch_size,)`):
            Positions that each row unmasked in its last pass.
        verify_threshold (`float`):
            In (0, 1].

    Returns:
        `torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at the positions to mask again.
    """
    suspicious = decided & (probability < verify_threshold)
    order = probability.masked_fill(~suspicious, torch.inf).sort(dim=1, stable=True).indices
    ranks = torch.arange(order.shape[1], device=order.device)
    return suspicious & torch.zeros_like(suspicious).scatter(1, order, ranks < num_drafted[:, None] - 1)


@dataclass(frozen=True)
class ParallelRule:
    """
    A row of `PARALLEL_RULES`.

    Args:
        choose (`Callable`):
            `(scores, **options)` -> `torch.BoolTensor` of the positions to unmask.
        options (`dict[str, Any]`):
            The options of [`DimpleGenerationConfig`] that it reads, with their defaults.
        compares_passes (`bool`):
            Whether it needs `PassScores.stable_passes`, for which the last pass's distributions are kept.
        takes_back (`bool`):
            Whether what it unmasked may be masked again.
    """

    choose: Callable[..., torch.Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    compares_passes: bool = False
    takes_back: bool = False


#: Name of a rule -> how it chooses and which options it has.
PARALLEL_RULES = {
    "threshold": ParallelRule(confident_positions, {"confidence_threshold": 0.95}),
    "factor": ParallelRule(factor_positions, {"confidence_factor": 1.0}),
    "entropy_bound": ParallelRule(entropy_bounded_positions, {"entropy_bound": 0.1}),
    "klass": ParallelRule(
        stable_positions,
        {"confidence_threshold": 0.95, "kl_threshold": 0.01, "kl_history_length": 2},
        compares_passes=True,
    ),
    "prophet": ParallelRule(committed_positions, {"confidence_threshold": 0.95, "gap_thresholds": (7.5, 5.0, 2.5)}),
    "wino": ParallelRule(drafted_positions, {"draft_threshold": 0.6, "verify_threshold": 0.9}, takes_back=True),
}


class PassMemory:
    """
    What the rules remember of each row from one pass to the next. Rows leave it as they leave the batch.

    Args:
        maskable (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at the positions that are masked before the first pass.

    Attributes:
        stable_passes (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            See [`PassScores`].
        drafted (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` at the positions that the row's last pass unmasked.
    """

    def __init__(self, maskable: torch.Tensor):
        self.maskable = maskable
        self.stable_passes = torch.zeros_like(maskable, dtype=torch.long)
        self.drafted = torch.zeros_like(maskable)
        self._positions = torch.zeros_like(maskable)
        self._log_probabilities: torch.Tensor | None = None

    def compare(self, positions: torch.Tensor, logits: torch.Tensor, kl_threshold: float) -> None:
        """
        Counts the passes in which positions hardly changed, and keeps this pass's distributions for the next, which
        takes as much memory as `logits`. The divergence is that of the present distribution from the one before.

        Args:
            positions (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` at the positions that the pass scored.
            logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
                Their scores.
            kl_threshold (`float`):
                In nats; what stays below it counts as stable.
        """
        now = logits.float().log_softmax(dim=-1).clamp_(min=-1e4)  # -inf times a probability of 0 is not a number
        if self._log_probabilities is not None:
            flat = position_indices(positions, len(logits))
            was_scored = self._positions.flatten()
            before = self._log_probabilities[(was_scored.cumsum(0) - 1).clamp(min=0)[flat]]
            divergence = now.exp().mul_(before.sub_(now)).sum(dim=-1).neg()
            is_stable = was_scored[flat] & (divergence < kl_threshold)
            self.stable_passes = torch.where(spread(positions, is_stable), self.stable_passes + 1, 0)
        self._positions, self._log_probabilities = positions, now

    @property
    def unverified(self) -> torch.Tensor:
        """`torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` where the last pass unmasked what the next
        may take back. A token that was unmasked alone stays: all the others were known to it."""
        return self.drafted & (self.drafted.sum(dim=1, keepdim=True) > 1)

    def verify(self, scores: PassScores, answer: torch.Tensor, verify_threshold: float) -> torch.Tensor:
        """
        The decided positions of `scores` that [`suspicious_positions`] would mask again. The pass has read each token
        where it stands; the original lets a shadow of the block, all masked, read everything but the token's own
        position.

        Args:
            scores (`PassScores`):
                Of a pass that scored decided positions too.
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                The answer that it read.
            verify_threshold (`float`):
                In (0, 1].
        """
        tokens = answer.flatten()[position_indices(scores.positions, len(scores.logits))]
        probability = spread(scores.positions, in_parts(top_probability, scores.logits, tokens))
        num_drafted = self.drafted.sum(dim=1)
        return suspicious_positions(scores.positions & ~scores.masked, probability, num_drafted, verify_threshold)

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keeps `rows` (`torch.LongTensor` of shape `(num_rows,)`, ascending)."""
        if self._log_probabilities is not None:
            is_kept = torch.zeros_like(self._positions).index_fill_(0, rows, True)
            self._log_probabilities = self._log_probabilities[is_kept[self._positions]]
        self.maskable, self.drafted = self.maskable[rows], self.drafted[rows]
        self.stable_passes, self._positions = self.stable_passes[rows], self._positions[rows]

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
"""Sampler rules: the protocol, and the built-in rules that choose the positions of a step.

A built-in rule is one frozen dataclass of options that is callable, and one row of `SAMPLER_RULES`; the choice itself
is a pure function of tensors. Rules apply to each row; where a rule selects nothing, the schedule does. The source
of each is named at its function, `docs/decoding.md` compares them.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from .sampling_dimple import chunked, entropy, scatter, top_probability

if TYPE_CHECKING:
    from .denoising_dimple import DecodingState


class SamplerRule(Protocol):
    """
    Chooses the positions that a step commits: any function, or any object that can be called, of

    - `logits` (`torch.FloatTensor` of shape `(num_positions, vocab_size)`): scores of the positions
      `state.scored`, row by row, in the model's dtype; -inf at impossible tokens. These are the masked positions,
      and under a rule that remasks also the generated ones that are already committed.
    - `confidence` (`torch.FloatTensor` of shape `(num_rows, answer_length)`): confidence of the token that would be
      committed at each of them, in [0, 1]; 0 elsewhere.
    - `masked` (`torch.BoolTensor` of shape `(num_rows, answer_length)`): `True` at the positions to choose from, the
      masked ones of each row's block.
    - `state` ([`DecodingState`]): the state of each row.

    It returns `torch.BoolTensor` of shape `(num_rows, answer_length)`, `True` at the positions to commit. In a row
    where that is none, the schedule chooses; in the last step all are committed. It must treat each row by itself.

    A rule with a method `remask` of the same arguments and result may mask committed positions again: those for which
    it returns `True`. It is called in each step but the last, and a row ends only when the positions that its last
    step committed together have been scored once more. To keep each row's steps bounded, it must return fewer
    positions than `state.provisional` has.
    """

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class PositionValues:
    """
    Values at some positions; the others take no memory. `values[rows]` selects rows, as for a tensor.

    Args:
        positions (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at these positions.
        values (`torch.Tensor` of shape `(num_positions, ...)`):
            Their values, row by row.
    """

    positions: torch.Tensor
    values: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "PositionValues":
        is_kept = torch.zeros_like(self.positions).index_fill_(0, rows, True)
        return PositionValues(self.positions[rows], self.values[is_kept[self.positions]])

    def at(self, positions: torch.Tensor, num_positions: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The values of other `positions`, of the same shape, and whether each of them has one."""
        index = flat_indices(positions, num_positions)
        has_value = self.positions.flatten()
        return self.values[(has_value.cumsum(0) - 1).clamp(min=0)[index]], has_value[index]


def flat_indices(positions: torch.Tensor, num_positions: int) -> torch.Tensor:
    """Where the `True` of `positions` lie when it is flattened, `torch.LongTensor` of shape `(num_positions,)`. Their
    number is given, so that nothing waits for the device."""
    return torch.nonzero_static(positions.flatten(), size=num_positions).squeeze(1)


@dataclass(frozen=True)
class SamplerConfig:
    """Base of the built-in rules' options. It survives `save_pretrained` as a dictionary with the class's name."""

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        """The rule, see [`SamplerRule`]."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The options, and `_cls_name`, from which [`sampler_config_from_dict`] makes the object again."""
        return {"_cls_name": type(self).__name__, **vars(self)}


def _check_probability(config: SamplerConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (isinstance(value, (int, float)) and 0 < value <= 1):
            raise ValueError(f"`{name}` must lie in (0, 1] (got {value!r})")


def _check_positive(config: SamplerConfig, name: str) -> None:
    value = getattr(config, name)
    if not (isinstance(value, (int, float)) and 0 < value < math.inf):
        raise ValueError(f"`{name}` must be a positive number (got {value!r})")


def confident_positions(
    confidence: torch.Tensor, masked: torch.Tensor, confidence_threshold: float | None
) -> torch.Tensor:
    """
    Confident decoding (Dimple, section 4.2, arXiv 2505.16990; Fast-dLLM's threshold, arXiv 2505.22618, section 3.3):
    every masked position whose confidence is above `confidence_threshold`, which lies in (0, 1]; none when it is
    `None`.

    Returns:
        `torch.BoolTensor` of shape `(num_rows, answer_length)`: `True` at the positions to commit, as for all rules.
    """
    if confidence_threshold is None:
        return torch.zeros_like(masked)
    return masked & (confidence > confidence_threshold)


@dataclass(frozen=True)
class ThresholdConfig(SamplerConfig):
    """
    Every position above a threshold: see [`confident_positions`].

    Args:
        confidence_threshold (`float`, *optional*, defaults to 0.95):
            In (0, 1]. `None`: the schedule alone decides.
    """

    confidence_threshold: float | None = 0.95

    def __post_init__(self) -> None:
        if self.confidence_threshold is not None:
            _check_probability(self, "confidence_threshold")

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        return confident_positions(confidence, masked, self.confidence_threshold)


def factor_positions(confidence: torch.Tensor, masked: torch.Tensor, confidence_factor: float) -> torch.Tensor:
    """
    Factor-based parallel decoding (Fast-dLLM, arXiv 2505.22618, section 3.3): the n most confident positions of a row,
    with the largest n for which (n + 1) (1 - c_n) < f. Here c_n is the smallest confidence among them, so the more
    positions are committed together, the surer each of them must be; f is `confidence_factor`, positive.
    """
    confidence, order = confidence.masked_fill(~masked, -torch.inf).sort(dim=1, descending=True, stable=True)
    # Confidences fall and n rises, so the left side only grows: what holds at n holds before.
    num_positions = torch.arange(1, confidence.shape[1] + 1, device=confidence.device)
    fits = (num_positions + 1) * (1 - confidence) < confidence_factor
    return torch.zeros_like(fits).scatter(1, order, fits)


@dataclass(frozen=True)
class FactorConfig(SamplerConfig):
    """
    The more positions together, the surer each: see [`factor_positions`].

    Args:
        confidence_factor (`float`, defaults to 1):
            Positive; the larger, the more positions.
    """

    confidence_factor: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(self, "confidence_factor")

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        return factor_positions(confidence, masked, self.confidence_factor)


def entropy_bounded_positions(entropies: torch.Tensor, masked: torch.Tensor, entropy_bound: float) -> torch.Tensor:
    """
    Entropy-bounded unmasking (EB-Sampler, arXiv 2505.24857): the k positions of lowest entropy of a row, with the
    largest k for which the sum of their entropies less the largest of them is at most `entropy_bound`, in nats. That
    difference bounds what the positions can tell about each other. One position always fits.
    """
    entropies, order = entropies.masked_fill(~masked, torch.inf).sort(dim=1, stable=True)
    # The entropies rise, so the k-th is the largest of the first k, and the sum before it is the difference.
    before = torch.nn.functional.pad(entropies.cumsum(dim=1), (1, -1))
    fits = before <= entropy_bound
    return torch.zeros_like(fits).scatter(1, order, fits) & masked


@dataclass(frozen=True)
class EntropyBoundConfig(SamplerConfig):
    """
    As many positions as share little information: see [`entropy_bounded_positions`].

    Args:
        entropy_bound (`float`, defaults to 0.1):
            In nats, at least 0; the larger, the more positions.
    """

    entropy_bound: float = 0.1

    def __post_init__(self) -> None:
        if not (isinstance(self.entropy_bound, (int, float)) and 0 <= self.entropy_bound < math.inf):
            raise ValueError(f"`entropy_bound` must be a number >= 0 (got {self.entropy_bound!r})")

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        entropies = scatter(state.scored, chunked(entropy, logits))
        return entropy_bounded_positions(entropies, masked, self.entropy_bound)


def count_stable_steps(
    stable_steps: torch.Tensor,
    scored: torch.Tensor,
    log_probabilities: torch.Tensor,
    before: PositionValues,
    kl_threshold: float,
) -> torch.Tensor:
    """
    Number of consecutive steps in which each position's distribution has hardly changed.

    Args:
        stable_steps (`torch.LongTensor` of shape `(num_rows, answer_length)`):
            The counts so far.
        scored (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at the positions that this step scored.
        log_probabilities (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
            Their distributions, finite.
        before (`PositionValues`):
            The last step's distributions.
        kl_threshold (`float`):
            In nats; the count of a position whose divergence is not below it starts again.
    """
    last, has_last = before.at(scored, len(log_probabilities))
    divergence = log_probabilities.exp().mul_(last.sub_(log_probabilities)).sum(dim=-1).neg()
    is_stable = scatter(scored, has_last & (divergence < kl_threshold))
    return torch.where(is_stable, stable_steps + 1, 0)


@dataclass(frozen=True)
class KlassConfig(SamplerConfig):
    """
    KL-adaptive stability (KLASS, arXiv 2511.05664, algorithm 1): the positions above a threshold whose distribution
    has moved by less than `kl_threshold` in each of the last steps. It keeps the last step's distributions, which take
    as much memory as the logits in float32.

    Args:
        confidence_threshold (`float`, *optional*, defaults to 0.95):
            In (0, 1]. `None`: stability alone decides.
        kl_threshold (`float`, defaults to 0.01):
            In nats, positive.
        kl_history_length (`int`, defaults to 2):
            Steps in which a distribution must not have moved; at least 1.
    """

    confidence_threshold: float | None = 0.95
    kl_threshold: float = 0.01
    kl_history_length: int = 2

    def __post_init__(self) -> None:
        if self.confidence_threshold is not None:
            _check_probability(self, "confidence_threshold")
        _check_positive(self, "kl_threshold")
        length = self.kl_history_length
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ValueError(f"`kl_history_length` must be an integer >= 1 (got {length!r})")

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        now = logits.float().log_softmax(dim=-1).clamp_(min=-1e4)  # -inf times a probability of 0 is not a number
        stable_steps = state.memory.get("stable_steps", torch.zeros_like(masked, dtype=torch.long))
        before = state.memory.get("log_probabilities")
        if before is not None:
            stable_steps = count_stable_steps(stable_steps, state.scored, now, before, self.kl_threshold)
        state.memory |= {"stable_steps": stable_steps, "log_probabilities": PositionValues(state.scored, now)}
        stable = masked & (stable_steps >= self.kl_history_length)
        if self.confidence_threshold is None:
            return stable
        return stable & confident_positions(confidence, masked, self.confidence_threshold)


def early_commits(
    gaps: torch.Tensor,
    masked: torch.Tensor,
    progress: torch.Tensor,
    gap_thresholds: tuple[float, float, float] | list[float],
) -> torch.Tensor:
    """
    Early commit (Prophet, arXiv 2508.19982): the rows whose mean gap between the two largest logits, over the masked
    positions, has reached the threshold of their progress.

    Args:
        gaps (`torch.FloatTensor` of shape `(num_rows, answer_length)`):
            Largest minus second largest logit at masked positions; infinite where one token is possible.
        masked (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at masked positions.
        progress (`torch.FloatTensor` of shape `(num_rows,)`):
            Share of a row's generated positions that is committed, in [0, 1).
        gap_thresholds (`tuple[float, float, float]`):
            Of the first, second and last third.

    Returns:
        `torch.BoolTensor` of shape `(num_rows,)`
    """
    # A position with one possible token shows nothing of the model's certainty.
    counted = masked & gaps.isfinite()
    mean_gap = gaps.masked_fill(~counted, 0).sum(dim=1) / counted.sum(dim=1)  # NaN without any, which passes below
    first, second, last = gap_thresholds
    threshold = torch.full_like(progress, last)
    threshold = threshold.masked_fill(progress < 2 / 3, second).masked_fill(progress < 1 / 3, first)
    return ~(mean_gap < threshold)


@dataclass(frozen=True)
class ProphetConfig(SamplerConfig):
    """
    Commits everything at once in a row that is sure enough on average, see [`early_commits`]; other rows follow
    [`confident_positions`].

    Args:
        confidence_threshold (`float`, *optional*, defaults to 0.95):
            In (0, 1]. `None`: other rows follow the schedule.
        gap_thresholds (`tuple[float, float, float]`, defaults to `(7.5, 5.0, 2.5)`):
            Mean gaps of the two largest logits, in the first, second and last third of the answer; at least 0.
    """

    confidence_threshold: float | None = 0.95
    gap_thresholds: tuple[float, float, float] | list[float] = (7.5, 5.0, 2.5)

    def __post_init__(self) -> None:
        if self.confidence_threshold is not None:
            _check_probability(self, "confidence_threshold")
        gaps = self.gap_thresholds
        are_numbers = isinstance(gaps, (list, tuple)) and all(isinstance(gap, (int, float)) for gap in gaps)
        if not are_numbers or len(gaps) != 3 or not all(0 <= gap < math.inf for gap in gaps):
            raise ValueError(f"`gap_thresholds` must be three numbers >= 0 (got {gaps!r})")
        object.__setattr__(self, "gap_thresholds", tuple(gaps))  # a list, when it comes from a file

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        top_two = logits.topk(2, dim=-1).values.float()
        gaps = scatter(state.scored, top_two[:, 0] - top_two[:, 1])
        commits = early_commits(gaps, masked, state.progress, self.gap_thresholds)
        confident = confident_positions(confidence, masked, self.confidence_threshold)
        return torch.where(commits[:, None], masked, confident)


def rejected_positions(
    committed: torch.Tensor, probability: torch.Tensor, num_provisional: torch.Tensor, verify_threshold: float
) -> torch.Tensor:
    """
    WINO's verification: the committed positions whose token has become less probable than `verify_threshold`, the
    least probable first, and fewer than the last step committed: so each step commits more than the next can reject,
    and n positions take at most n steps that commit something.

    Args:
        committed (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at the generated positions of each row's block that are committed.
        probability (`torch.FloatTensor` of shape `(num_rows, answer_length)`):
            Probability of the token at each of them, in [0, 1].
        num_provisional (`torch.LongTensor` of shape `(num_rows,)`):
            Positions that each row's last step committed.
        verify_threshold (`float`):
            In (0, 1].

    Returns:
        `torch.BoolTensor` of shape `(num_rows, answer_length)`: `True` at the positions to mask again.
    """
    improbable = committed & (probability < verify_threshold)
    order = probability.masked_fill(~improbable, torch.inf).sort(dim=1, stable=True).indices
    ranks = torch.arange(order.shape[1], device=order.device)
    return improbable & torch.zeros_like(improbable).scatter(1, order, ranks < num_provisional[:, None] - 1)


@dataclass(frozen=True)
class WinoConfig(SamplerConfig):
    """
    Revisable decoding (WINO, arXiv 2507.18578): commits every position above a threshold that may be low, and remasks
    tokens that fail verification, see [`rejected_positions`]. A token is scored by the step's output at its position,
    which has read the token; WINO scores it with a masked copy of the block, which reads all tokens but this one.

    Args:
        draft_threshold (`float`, defaults to 0.6):
            Confidence above which a position is committed; in (0, 1].
        verify_threshold (`float`, defaults to 0.9):
            Probability below which a committed token is remasked; in (0, 1].
    """

    draft_threshold: float = 0.6
    verify_threshold: float = 0.9

    def __post_init__(self) -> None:
        _check_probability(self, "draft_threshold", "verify_threshold")

    def __call__(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        return confident_positions(confidence, masked, self.draft_threshold)

    def remask(
        self, logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: "DecodingState"
    ) -> torch.Tensor:
        """The committed positions to mask again, `torch.BoolTensor` of shape `(num_rows, answer_length)`."""
        # Masked positions have no token yet, and their values are not used.
        tokens = state.answer.flatten()[flat_indices(state.scored, len(logits))]
        probability = scatter(state.scored, chunked(top_probability, logits, tokens))
        num_provisional = state.provisional.sum(dim=1)
        return rejected_positions(state.scored & ~masked, probability, num_provisional, self.verify_threshold)


#: Name of a built-in rule -> the dataclass of its options, which is the rule.
SAMPLER_RULES: dict[str, type[SamplerConfig]] = {
    "threshold": ThresholdConfig,
    "factor": FactorConfig,
    "entropy_bound": EntropyBoundConfig,
    "klass": KlassConfig,
    "prophet": ProphetConfig,
    "wino": WinoConfig,
}


def option_names(config_class: type[SamplerConfig]) -> tuple[str, ...]:
    """The names of a rule's options."""
    return tuple(field.name for field in dataclasses.fields(config_class))


def sampler_config_from_dict(options: Mapping[str, Any], sampler: str | None = None) -> SamplerConfig:
    """
    Args:
        options (`Mapping[str, Any]`):
            What [`SamplerConfig.to_dict`] returns, or options only.
        sampler (`str`, *optional*):
            The rule's name, where `options` has no `_cls_name`.

    Returns:
        [`SamplerConfig`]

    Raises:
        ValueError: If the class or an option is unknown, or a value out of range.
    """
    options = dict(options)
    by_class = {config_class.__name__: config_class for config_class in SAMPLER_RULES.values()}
    name = options.pop("_cls_name", None)
    config_class = SAMPLER_RULES[sampler or "threshold"] if name is None else by_class.get(name)
    if config_class is None:
        raise ValueError(f"`sampler_config` must be one of {', '.join(by_class)} (got `_cls_name`={name!r})")
    known = option_names(config_class)
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            raise ValueError(
                f"`{option}` must be an option of `{config_class.__name__}`, {' or '.join(known)}"
                + (f"; did you mean `{near[0]}`?" if near else "")
            )
    return config_class(**options)

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
"""Each parallel rule on distributions whose confidences, entropies, gaps and divergences are known."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimple_hf.modeling.denoising_dimple import DecodingState
from dimple_hf.modeling.rules_dimple import (
    SAMPLER_RULES,
    EntropyBoundConfig,
    FactorConfig,
    KlassConfig,
    PositionValues,
    ProphetConfig,
    SamplerRule,
    ThresholdConfig,
    WinoConfig,
    early_commits,
    flat_indices,
    rejected_positions,
    sampler_config_from_dict,
)
from dimple_hf.modeling.sampling_dimple import scatter

INF = math.inf
MASK = 9


def choose(
    rule: SamplerRule,
    confidence: list[list[float]],
    masked: list[list[bool]] | None = None,
    logits: torch.Tensor | None = None,
    progress: list[float] | None = None,
    stable_steps: list[list[int]] | None = None,
) -> list[list[int]]:
    """The positions that a rule chooses; without more, of masked positions only, by logits that must not matter."""
    values = torch.tensor(confidence)
    positions = torch.ones_like(values, dtype=torch.bool) if masked is None else torch.tensor(masked)
    state = state_of(positions, torch.zeros(len(values)) if progress is None else torch.tensor(progress))
    logits = torch.full((int(positions.sum()), 2), torch.nan) if logits is None else logits
    if stable_steps is not None:  # counts before a step that moves nothing
        state.memory["stable_steps"] = torch.tensor(stable_steps) - 1
        state.memory["log_probabilities"] = PositionValues(positions, logits.log_softmax(dim=-1))
    return chosen(rule(logits, values.masked_fill(~positions, 0), positions, state))


class StateOfProgress(DecodingState):
    """A state whose progress is set."""

    progress: torch.Tensor = torch.empty(0)  # type: ignore[assignment]


def state_of(masked: torch.Tensor, progress: torch.Tensor | None = None) -> DecodingState:
    """A state in which `masked` positions are scored."""
    state = StateOfProgress.start(torch.full(masked.shape, 1).masked_fill(masked, MASK), MASK)
    state.scored = masked
    state.progress = torch.zeros(len(masked)) if progress is None else progress  # type: ignore[misc]
    return state


def chosen(positions: torch.Tensor) -> list[list[int]]:
    """The positions of each row that a rule chose."""
    return [row.nonzero().flatten().tolist() for row in positions]


# Threshold


def test_confident_positions_are_above_the_threshold() -> None:
    """Row 0 has two above 0.6, row 1 none, row 2's only one is decided; the threshold itself does not pass."""
    given = (
        [[0.7, 0.65, 0.1], [0.6, 0.5, 0.1], [0.9, 0.3, 0.2]],
        [[True, True, True], [True, True, True], [False, True, True]],
    )
    assert choose(ThresholdConfig(0.6), *given) == [[0, 1], [], []]
    assert choose(ThresholdConfig(0.66), *given) == [[0], [], []]
    assert choose(ThresholdConfig(None), *given) == [[], [], []]


# Factor


@pytest.mark.parametrize(
    ("factor", "expected"),
    # (n + 1) (1 - c_n) of 0.9, 0.8, 0.6, 0.1: 0.2, 0.6, 1.6, 4.5
    [(0.19, []), (0.21, [2]), (0.59, [2]), (0.61, [0, 2]), (1.59, [0, 2]), (1.61, [0, 2, 4]), (4.6, [0, 1, 2, 4])],
)
def test_factor_positions_are_the_most_for_which_the_least_is_sure_enough(factor: float, expected: list[int]) -> None:
    """Each bound is crossed by exactly one position; the decided position, though the surest, does not count."""
    given = [[0.8, 0.1, 0.9, 0.99, 0.6]], [[True, True, True, False, True]]
    assert choose(FactorConfig(factor), *given) == [expected]


def test_factor_asks_for_more_confidence_when_more_positions_come_together() -> None:
    """One position of 0.6 may come alone, 2 (1 - c) = 0.8; of four of 0.75 two, 3 (1 - c) = 0.75, but not three, 1."""
    confidence = [[0.6, 0.1, 0.1, 0.1], [0.75] * 4]
    assert choose(FactorConfig(1.0), confidence) == [[0], [0, 1]]
    # control: a threshold treats them alike
    assert choose(ThresholdConfig(0.59), confidence) == [[0], [0, 1, 2, 3]]


# Entropy bound


def uniform_over(*counts: int) -> torch.Tensor:
    """Logits of positions at which so many of eight tokens are equally likely: entropies ln(count)."""
    return torch.stack([torch.where(torch.arange(8) < count, 3.5, -INF) for count in counts])


@pytest.mark.parametrize(
    ("bound", "expected"),
    # By entropy, positions 1, 0, 3 and 2; the sums of those before each are 0, 0, ln 2 and ln 4.
    [(0.0, [0, 1]), (0.69, [0, 1]), (0.7, [0, 1, 3]), (1.38, [0, 1, 3]), (1.39, [0, 1, 2, 3])],
)
def test_entropy_bounded_positions_sum_up_to_the_bound_without_the_largest(bound: float, expected: list[int]) -> None:
    """Entropies ln 2, 0, ln 8 and ln 2; of equal ones the left one comes first. Each sum is crossed by one
    position."""
    assert choose(EntropyBoundConfig(bound), [[0.1] * 4], logits=uniform_over(2, 1, 8, 2)) == [expected]


def test_entropy_bound_always_lets_one_position_through() -> None:
    """The sum without its largest is nothing; a row with nothing masked has none to let through."""
    masked = [[False, True, True], [False, False, False]]
    assert choose(EntropyBoundConfig(0.0), [[0.1] * 3] * 2, masked, uniform_over(8, 7)) == [[2], []]


# Stability and confidence


def distribution(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log() + 1.25  # a constant must not matter


BEFORE, NOW = distribution(0.7, 0.3, 0.0), distribution(0.6, 0.4, 0.0)
#: From what it was before, of what it is now: 0.0226; the other way round 0.0216.
DIVERGENCE = 0.6 * math.log(0.6 / 0.7) + 0.4 * math.log(0.4 / 0.3)


def test_memory_counts_the_passes_in_which_a_position_hardly_moved() -> None:
    """The first pass has none before it; a large move starts the count anew. A forbidden token (-inf) does no harm."""
    reverse = 0.7 * math.log(0.7 / 0.6) + 0.3 * math.log(0.3 / 0.4)
    assert reverse < 0.0220 < DIVERGENCE < 0.0230  # so that the direction shows
    position = torch.tensor([[True]])
    for threshold, expected in ((0.0230, [0, 1, 2, 0, 1]), (0.0220, [0, 0, 1, 0, 1])):
        state = state_of(position)
        counts = []
        far = distribution(0.1, 0.9, 0.0)
        for logits in (BEFORE, NOW, NOW, far, far):
            KlassConfig(None, threshold, 1)(logits, torch.zeros(1, 1), position, state)
            counts.append(state.memory["stable_steps"].item())
        assert counts == expected


def test_memory_compares_each_position_with_itself() -> None:
    """Positions are decided, blocks change and rows leave; what is new has no passes after it."""
    torch.manual_seed(0)
    table = torch.randn(3, 4, 7)
    state = state_of(torch.ones(3, 4, dtype=torch.bool))

    def step(positions: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        state.scored = positions
        KlassConfig(None, 1e-6, 1)(scores[positions], torch.zeros(positions.shape), positions, state)
        return state.memory["stable_steps"]

    first = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    assert not step(first, table).any()
    second = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    assert torch.equal(step(second, table), (first & second).long())
    state.select_rows(torch.tensor([0, 2]))
    third = second[[0, 2]]
    assert step(third, table[[0, 2]]).tolist() == [[0, 2, 1, 2], [0, 2, 2, 0]]
    # control: another row's distributions are not stable
    assert step(third, table[[1, 2]]).tolist() == [[0, 0, 0, 0], [0, 3, 3, 0]]


@pytest.mark.parametrize(
    ("threshold", "length", "expected"),
    [
        (0.5, 2, [[0, 2], []]),
        (0.5, 3, [[2], []]),
        (0.75, 2, [[2], []]),
        (None, 2, [[0, 2], [1]]),
        (0.5, 1, [[0, 2], [0]]),
    ],
)
def test_stable_positions_are_stable_and_confident(
    threshold: float | None, length: int, expected: list[list[int]]
) -> None:
    """Of two counts and two confidences each decides about one position."""
    found = choose(
        KlassConfig(threshold, kl_threshold=0.1, kl_history_length=length),
        [[0.7, 0.9, 0.8], [0.9, 0.3, 0.9]],
        [[True, True, True], [True, True, False]],
        torch.zeros(5, 2),
        stable_steps=[[2, 0, 3], [1, 2, 5]],
    )
    assert found == expected


# Early commit


def gaps(*values: float) -> torch.Tensor:
    """Logits whose two largest are so far apart."""
    return torch.tensor([[1.0, 1.0 - value, -9.0] for value in values])


@pytest.mark.parametrize(
    ("progress", "threshold"), [(0.0, 7.5), (0.33, 7.5), (0.34, 5.0), (0.66, 5.0), (0.67, 2.5), (0.99, 2.5)]
)
def test_committed_rows_reach_the_threshold_of_their_third(progress: float, threshold: float) -> None:
    """The mean of two gaps counts, and equality passes; the row below it follows the confidence threshold."""
    positions = [[True, False, True]] * 2
    logits = torch.cat([gaps(threshold + 2, threshold - 2), gaps(threshold + 2, threshold - 2.25)])
    given = [[0.5, 0.5, 0.2]] * 2, positions, logits, [progress] * 2
    assert choose(ProphetConfig(None, (7.5, 5.0, 2.5)), *given) == [[0, 2], []]
    assert choose(ProphetConfig(0.4, (7.5, 5.0, 2.5)), *given) == [[0, 2], [0]]


def test_committed_rows_are_not_decided_by_positions_without_a_choice() -> None:
    """A position with one possible token has an infinite gap; alone it may go, but it pulls nobody along."""
    one_possible = torch.tensor([[0.0, -INF, -INF]])
    logits = torch.cat([one_possible, gaps(3.0), one_possible, one_possible, gaps(3.0)])
    given = [[0.5, 0.5]] * 3, [[True, True], [True, True], [False, True]], logits
    assert choose(ProphetConfig(None, (5.0, 5.0, 5.0)), *given) == [[], [0, 1], []]
    assert choose(ProphetConfig(None, (2.9, 5.0, 5.0)), *given) == [[0, 1], [0, 1], [1]]  # control


# Draft and verify


def test_drafted_positions_are_above_the_low_threshold() -> None:
    """Verification has its own turn."""
    assert choose(WinoConfig(draft_threshold=0.6, verify_threshold=0.9), [[0.7, 0.5, 0.61]]) == [[0, 2]]


@pytest.mark.parametrize(
    ("num_provisional", "expected"), [(0, []), (1, []), (2, [1]), (3, [1, 4]), (4, [1, 2, 4]), (9, [1, 2, 4])]
)
def test_rejected_positions_are_the_least_probable_and_fewer_than_drafted(
    num_provisional: int, expected: list[int]
) -> None:
    """0.2, 0.8 and 0.5 of the decided ones are below 0.9; position 3 is not decided, position 0 is sure, 0.9 is
    enough."""
    decided = torch.tensor([[True, True, True, False, True, True]])
    probability = torch.tensor([[0.95, 0.2, 0.8, 0.1, 0.5, 0.9]])
    found = rejected_positions(decided, probability, torch.tensor([num_provisional]), 0.9)
    assert chosen(found) == [expected]
    assert chosen(rejected_positions(decided, probability, torch.tensor([num_provisional]), 0.15)) == [[]]


def test_memory_verifies_decided_positions_by_the_probability_of_their_tokens() -> None:
    """Two of a row's decided tokens have become improbable; it drafted two, so one of them is masked again."""
    positions = torch.tensor([[True, True, True, True], [False, True, True, True]])
    masked = torch.tensor([[False, False, False, True], [False, False, False, True]])
    probabilities = torch.tensor(
        [[0.1, 0.9], [0.3, 0.7], [0.98, 0.02], [0.5, 0.5], [0.05, 0.95], [0.95, 0.05], [0.5, 0.5]]
    )
    state = state_of(positions)
    state.provisional = torch.tensor([[True, True, False, False], [False, True, True, True]])
    # Masked positions need no token of their own: only committed ones are verified.
    state.answer = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 0]])

    def rejected(threshold: float) -> list[list[int]]:
        rule = WinoConfig(verify_threshold=threshold)
        return chosen(rule.remask(probabilities.log(), torch.zeros(2, 4), masked, state))

    assert rejected(0.9) == [[0], []]
    state.provisional = torch.ones_like(positions)
    assert rejected(0.9) == [[0, 1], []]
    assert rejected(0.99) == [[0, 1, 2], [1, 2]]


# All rules


def test_parallel_rules_choose_by_their_default_options() -> None:
    """Every row of the table can be called as it stands, and there are six."""
    given: dict = {"confidence": [[0.99, 0.5]], "logits": gaps(9.0, 9.0), "stable_steps": [[2, 2]]}
    assert {name: choose(rule(), **given) for name, rule in SAMPLER_RULES.items()} == {
        "threshold": [[0]],
        "factor": [[0]],  # 2 (1 - 0.99), but 3 (1 - 0.5)
        "entropy_bound": [[0, 1]],  # both are nearly certain by their logits
        "klass": [[0]],
        "prophet": [[0, 1]],
        "wino": [[0]],
    }


#: Options of each rule, the second ones more generous.
STRICT_AND_LOOSE: dict[str, tuple[SamplerRule, SamplerRule]] = {
    "threshold": (ThresholdConfig(0.8), ThresholdConfig(0.5)),
    "factor": (FactorConfig(0.7), FactorConfig(1.4)),
    "entropy_bound": (EntropyBoundConfig(0.3), EntropyBoundConfig(1.5)),
    "klass": (KlassConfig(0.6, 0.1, 2), KlassConfig(0.3, 0.1, 1)),
    "prophet": (ProphetConfig(0.8, (2.0, 1.5, 1.0)), ProphetConfig(0.5, (1.2, 0.8, 0.4))),
    "wino": (WinoConfig(0.8), WinoConfig(0.5)),
}


@pytest.mark.parametrize("name", SAMPLER_RULES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_rule_of_a_batch_is_the_rule_of_its_rows(name: str, seed: int) -> None:
    """Of masked positions only, each row by itself, and never fewer with more generous options."""
    random = torch.Generator().manual_seed(seed)
    masked = torch.rand(4, 6, generator=random) < 0.7
    logits = 3 * torch.randn(int(masked.sum()), 9, generator=random)
    confidence = scatter(masked, logits.softmax(dim=-1).amax(dim=-1))
    progress = torch.rand(4, generator=random)
    stable_steps = torch.randint(0, 4, (4, 6), generator=random)
    of_row = torch.arange(4).repeat_interleave(masked.sum(dim=1))

    def choice(rule: SamplerRule, rows: torch.Tensor) -> torch.Tensor:
        own = logits[torch.isin(of_row, rows)]
        state = state_of(masked[rows], progress[rows])
        state.memory["stable_steps"] = stable_steps[rows]
        state.memory["log_probabilities"] = PositionValues(masked[rows], own.log_softmax(dim=-1))
        return rule(own, confidence[rows], masked[rows], state)

    strict, loose = STRICT_AND_LOOSE[name]
    together = choice(strict, torch.arange(4))
    assert not (together & ~masked).any()
    assert not (together & ~choice(loose, torch.arange(4))).any()
    for row in range(4):
        assert torch.equal(together[row : row + 1], choice(strict, torch.tensor([row])))


# Options


@pytest.mark.parametrize("name", SAMPLER_RULES)
def test_options_of_a_rule_survive_as_a_dictionary(name: str) -> None:
    """With the class's name, as DiffusionGemma's configuration does it; without it, by the rule's name."""
    for rule in (SAMPLER_RULES[name](), STRICT_AND_LOOSE[name][0]):
        written = json.loads(json.dumps(rule.to_dict()))
        assert written["_cls_name"] == type(rule).__name__
        assert sampler_config_from_dict(written) == rule
        del written["_cls_name"]
        assert sampler_config_from_dict(written, name) == rule


def test_options_of_an_unknown_rule_or_name_are_refused() -> None:
    """Nothing is imported or made by name but the built-in rules."""
    with pytest.raises(ValueError, match=r"`sampler_config` must be one of ThresholdConfig, .*'Sampler'"):
        sampler_config_from_dict({"_cls_name": "Sampler"})
    message = r"`entropy_bond` must be an option of `EntropyBoundConfig`, .*; did you mean `entropy_bound`\?"
    with pytest.raises(ValueError, match=message):
        sampler_config_from_dict({"entropy_bond": 1.0}, "entropy_bound")
    with pytest.raises(ValueError, match=r"`xyz` must be an option of `FactorConfig`, confidence_factor$"):
        sampler_config_from_dict({"xyz": 1.0}, "factor")


def test_values_of_positions_are_found_by_position_and_follow_their_rows() -> None:
    """Of positions that have none, nothing is returned."""
    positions = torch.tensor([[True, False, True], [False, True, True]])
    values = PositionValues(positions, torch.tensor([[1.0], [3.0], [5.0], [6.0]]))
    other = torch.tensor([[True, True, False], [False, False, True]])
    found, has_value = values.at(other, 3)
    assert has_value.tolist() == [True, False, True]
    assert found[has_value].tolist() == [[1.0], [6.0]]
    assert values[torch.tensor([1])].values.tolist() == [[5.0], [6.0]]


def test_flat_indices_are_those_of_nonzero() -> None:
    """With their number given, so that nothing waits for the device."""
    positions = torch.rand(3, 5) < 0.5
    expected = positions.flatten().nonzero().squeeze(1)
    assert torch.equal(flat_indices(positions, len(expected)), expected)


@pytest.mark.parametrize(("num_committed", "least_gap"), [(0, 3.0), (1, 3.0), (2, 2.0), (3, 2.0), (4, 1.0), (5, 1.0)])
def test_early_commit_needs_the_gap_of_its_third(num_committed: int, least_gap: float) -> None:
    """Of six positions; a third begins with its first position. The threshold itself is enough."""
    masked = (torch.arange(6) >= num_committed).repeat(2, 1)
    gaps = torch.tensor([[least_gap], [least_gap - 0.01]]).expand(2, 6)
    progress = torch.tensor([num_committed / 6] * 2)
    assert early_commits(gaps, masked, progress, (3.0, 2.0, 1.0)).tolist() == [True, False]

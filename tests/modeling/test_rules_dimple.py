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

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimple_hf.modeling.rules_dimple import (
    PARALLEL_RULES,
    PassMemory,
    PassScores,
    committed_positions,
    confident_positions,
    drafted_positions,
    entropy_bounded_positions,
    factor_positions,
    spread,
    stable_positions,
    suspicious_positions,
)

INF = math.inf


def scores_of(
    confidence: list[list[float]],
    masked: list[list[bool]] | None = None,
    logits: torch.Tensor | None = None,
    progress: list[float] | None = None,
    stable_passes: list[list[int]] | None = None,
) -> PassScores:
    """What a pass said; without more, of masked positions only, and with logits that must not matter."""
    shape = torch.tensor(confidence)
    positions = torch.ones_like(shape, dtype=torch.bool) if masked is None else torch.tensor(masked)
    return PassScores(
        masked=positions,
        positions=positions,
        logits=torch.full((int(positions.sum()), 2), torch.nan) if logits is None else logits,
        confidence=shape.masked_fill(~positions, 0),
        progress=torch.zeros(len(shape)) if progress is None else torch.tensor(progress),
        stable_passes=torch.zeros(shape.shape, dtype=torch.long)
        if stable_passes is None
        else torch.tensor(stable_passes),
    )


def chosen(positions: torch.Tensor) -> list[list[int]]:
    """The positions of each row that a rule chose."""
    return [row.nonzero().flatten().tolist() for row in positions]


# Threshold


def test_confident_positions_are_above_the_threshold() -> None:
    """Row 0 has two above 0.6, row 1 none, row 2's only one is decided; the threshold itself does not pass."""
    scores = scores_of(
        [[0.7, 0.65, 0.1], [0.6, 0.5, 0.1], [0.9, 0.3, 0.2]],
        [[True, True, True], [True, True, True], [False, True, True]],
    )
    assert chosen(confident_positions(scores, 0.6)) == [[0, 1], [], []]
    assert chosen(confident_positions(scores, 0.66)) == [[0], [], []]
    assert chosen(confident_positions(scores, None)) == [[], [], []]


# Factor


@pytest.mark.parametrize(
    ("factor", "expected"),
    # (n + 1) (1 - c_n) of 0.9, 0.8, 0.6, 0.1: 0.2, 0.6, 1.6, 4.5
    [(0.19, []), (0.21, [2]), (0.59, [2]), (0.61, [0, 2]), (1.59, [0, 2]), (1.61, [0, 2, 4]), (4.6, [0, 1, 2, 4])],
)
def test_factor_positions_are_the_most_for_which_the_least_is_sure_enough(factor: float, expected: list[int]) -> None:
    """Each bound is crossed by exactly one position; the decided position, though the surest, does not count."""
    scores = scores_of([[0.8, 0.1, 0.9, 0.99, 0.6]], [[True, True, True, False, True]])
    assert chosen(factor_positions(scores, factor)) == [expected]


def test_factor_asks_for_more_confidence_when_more_positions_come_together() -> None:
    """One position of 0.6 may come alone, 2 (1 - c) = 0.8; of four of 0.75 two, 3 (1 - c) = 0.75, but not three, 1."""
    assert chosen(factor_positions(scores_of([[0.6, 0.1, 0.1, 0.1], [0.75] * 4]), 1.0)) == [[0], [0, 1]]
    # control: a threshold treats them alike
    assert chosen(confident_positions(scores_of([[0.6, 0.1, 0.1, 0.1], [0.75] * 4]), 0.59)) == [[0], [0, 1, 2, 3]]


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
    scores = scores_of([[0.1, 0.1, 0.1, 0.1]], logits=uniform_over(2, 1, 8, 2))
    assert chosen(entropy_bounded_positions(scores, bound)) == [expected]


def test_entropy_bound_always_lets_one_position_through() -> None:
    """The sum without its largest is nothing; a row with nothing masked has none to let through."""
    scores = scores_of(
        [[0.1, 0.1, 0.1], [0.1, 0.1, 0.1]], [[False, True, True], [False, False, False]], logits=uniform_over(8, 7)
    )
    assert chosen(entropy_bounded_positions(scores, 0.0)) == [[2], []]


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
        memory = PassMemory(position)
        counts = []
        far = distribution(0.1, 0.9, 0.0)
        for logits in (BEFORE, NOW, NOW, far, far):
            memory.compare(position, logits, threshold)
            counts.append(memory.stable_passes.item())
        assert counts == expected


def test_memory_compares_each_position_with_itself() -> None:
    """Positions are decided, blocks change and rows leave; what is new has no passes after it."""
    torch.manual_seed(0)
    table = torch.randn(3, 4, 7)
    memory = PassMemory(torch.ones(3, 4, dtype=torch.bool))
    first = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    memory.compare(first, table[first], 1e-6)
    assert not memory.stable_passes.any()
    second = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    memory.compare(second, table[second], 1e-6)
    assert torch.equal(memory.stable_passes, (first & second).long())
    memory.select_rows(torch.tensor([0, 2]))
    third = second[[0, 2]]
    memory.compare(third, table[[0, 2]][third], 1e-6)
    assert memory.stable_passes.tolist() == [[0, 2, 1, 2], [0, 2, 2, 0]]
    memory.compare(third, table[[1, 2]][third], 1e-6)  # control: another row's distributions are not stable
    assert memory.stable_passes.tolist() == [[0, 0, 0, 0], [0, 3, 3, 0]]


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
    scores = scores_of(
        [[0.7, 0.9, 0.8], [0.9, 0.3, 0.9]], [[True, True, True], [True, True, False]],
        stable_passes=[[2, 0, 3], [1, 2, 5]],
    )  # fmt: skip
    assert chosen(stable_positions(scores, threshold, kl_threshold=0.1, kl_history_length=length)) == expected


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
    scores = scores_of([[0.5, 0.5, 0.2]] * 2, positions, logits, [progress] * 2)
    assert chosen(committed_positions(scores, None, (7.5, 5.0, 2.5))) == [[0, 2], []]
    assert chosen(committed_positions(scores, 0.4, (7.5, 5.0, 2.5))) == [[0, 2], [0]]


def test_committed_rows_are_not_decided_by_positions_without_a_choice() -> None:
    """A position with one possible token has an infinite gap; alone it may go, but it pulls nobody along."""
    one_possible = torch.tensor([[0.0, -INF, -INF]])
    logits = torch.cat([one_possible, gaps(3.0), one_possible, one_possible, gaps(3.0)])
    scores = scores_of([[0.5, 0.5]] * 3, [[True, True], [True, True], [False, True]], logits)
    assert chosen(committed_positions(scores, None, (5.0, 5.0, 5.0))) == [[], [0, 1], []]
    assert chosen(committed_positions(scores, None, (2.9, 5.0, 5.0))) == [[0, 1], [0, 1], [1]]  # control


# Draft and verify


def test_drafted_positions_are_above_the_low_threshold() -> None:
    """Verification has its own turn."""
    scores = scores_of([[0.7, 0.5, 0.61]])
    assert chosen(drafted_positions(scores, draft_threshold=0.6, verify_threshold=0.9)) == [[0, 2]]


@pytest.mark.parametrize(
    ("num_drafted", "expected"), [(0, []), (1, []), (2, [1]), (3, [1, 4]), (4, [1, 2, 4]), (9, [1, 2, 4])]
)
def test_suspicious_positions_are_the_least_probable_and_fewer_than_drafted(
    num_drafted: int, expected: list[int]
) -> None:
    """0.2, 0.8 and 0.5 of the decided ones are below 0.9; position 3 is not decided, position 0 is sure, 0.9 is
    enough."""
    decided = torch.tensor([[True, True, True, False, True, True]])
    probability = torch.tensor([[0.95, 0.2, 0.8, 0.1, 0.5, 0.9]])
    found = suspicious_positions(decided, probability, torch.tensor([num_drafted]), 0.9)
    assert chosen(found) == [expected]
    assert chosen(suspicious_positions(decided, probability, torch.tensor([num_drafted]), 0.15)) == [[]]


def test_memory_verifies_decided_positions_by_the_probability_of_their_tokens() -> None:
    """Two of a row's decided tokens have become improbable; it drafted two, so one of them is masked again."""
    positions = torch.tensor([[True, True, True, True], [False, True, True, True]])
    masked = torch.tensor([[False, False, False, True], [False, False, False, True]])
    probabilities = torch.tensor(
        [[0.1, 0.9], [0.3, 0.7], [0.98, 0.02], [0.5, 0.5], [0.05, 0.95], [0.95, 0.05], [0.5, 0.5]]
    )
    scores = PassScores(masked, positions, probabilities.log(), torch.zeros(2, 4), torch.zeros(2), torch.zeros(2, 4))
    memory = PassMemory(torch.ones_like(positions))
    memory.drafted = torch.tensor([[True, True, False, False], [False, True, True, True]])
    answer = torch.tensor([[0, 0, 0, 9], [1, 1, 0, 9]])
    # The mask token 9 has no score of its own here, and needs none: only decided positions are asked for.
    answer = answer.masked_fill(masked, 0)
    assert chosen(memory.verify(scores, answer, 0.9)) == [[0], []]
    memory.drafted = torch.ones_like(positions)
    assert chosen(memory.verify(scores, answer, 0.9)) == [[0, 1], []]
    assert chosen(memory.verify(scores, answer, 0.99)) == [[0, 1, 2], [1, 2]]


def test_memory_calls_a_token_that_was_unmasked_alone_verified() -> None:
    """Everything else was known to it; two that came together did not know each other."""
    memory = PassMemory(torch.ones(2, 3, dtype=torch.bool))
    memory.drafted = torch.tensor([[True, False, False], [True, False, True]])
    assert memory.unverified.tolist() == [[False, False, False], [True, False, True]]


# All rules


def test_parallel_rules_choose_by_their_default_options() -> None:
    """Every row of the table can be called as it stands, and there are six."""
    scores = scores_of([[0.99, 0.5]], logits=gaps(9.0, 9.0), stable_passes=[[2, 2]])
    found = {name: chosen(rule.choose(scores, **rule.options)) for name, rule in PARALLEL_RULES.items()}
    assert found == {
        "threshold": [[0]],
        "factor": [[0]],  # 2 (1 - 0.99), but 3 (1 - 0.5)
        "entropy_bound": [[0, 1]],  # both are nearly certain by their logits
        "klass": [[0]],
        "prophet": [[0, 1]],
        "wino": [[0]],
    }


#: Options of each rule, the second ones more generous.
STRICT_AND_LOOSE = {
    "threshold": ({"confidence_threshold": 0.8}, {"confidence_threshold": 0.5}),
    "factor": ({"confidence_factor": 0.7}, {"confidence_factor": 1.4}),
    "entropy_bound": ({"entropy_bound": 0.3}, {"entropy_bound": 1.5}),
    "klass": (
        {"confidence_threshold": 0.6, "kl_threshold": 0.1, "kl_history_length": 2},
        {"confidence_threshold": 0.3, "kl_threshold": 0.1, "kl_history_length": 1},
    ),
    "prophet": (
        {"confidence_threshold": 0.8, "gap_thresholds": (2.0, 1.5, 1.0)},
        {"confidence_threshold": 0.5, "gap_thresholds": (1.2, 0.8, 0.4)},
    ),
    "wino": ({"draft_threshold": 0.8, "verify_threshold": 0.9}, {"draft_threshold": 0.5, "verify_threshold": 0.9}),
}


@pytest.mark.parametrize("name", PARALLEL_RULES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_rule_of_a_batch_is_the_rule_of_its_rows(name: str, seed: int) -> None:
    """Of masked positions only, each row by itself, and never fewer with more generous options."""
    random = torch.Generator().manual_seed(seed)
    masked = torch.rand(4, 6, generator=random) < 0.7
    logits = 3 * torch.randn(int(masked.sum()), 9, generator=random)
    confidence = spread(masked, logits.softmax(dim=-1).amax(dim=-1))
    progress = torch.rand(4, generator=random)
    stable_passes = torch.randint(0, 4, (4, 6), generator=random)
    whole = PassScores(masked, masked, logits, confidence, progress, stable_passes)
    strict, loose = STRICT_AND_LOOSE[name]
    together = PARALLEL_RULES[name].choose(whole, **strict)
    assert not (together & ~masked).any()
    assert not (together & ~PARALLEL_RULES[name].choose(whole, **loose)).any()
    of_row = torch.arange(4).repeat_interleave(masked.sum(dim=1))
    for row in range(4):
        one = slice(row, row + 1)
        alone = PassScores(
            masked[one], masked[one], logits[of_row == row], confidence[one], progress[one], stable_passes[one]
        )
        assert torch.equal(PARALLEL_RULES[name].choose(alone, **strict), together[one])

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
"""The reverse process as pure functions: confidences, filters, schedules, ranking, unmasking, ends."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimple_hf.modeling.sampling_dimple import (
    CONFIDENCE_MEASURES,
    SCORES_PER_CHUNK,
    TOKENS_PER_GROUP,
    adaptive_fraction,
    after_first,
    argmax,
    block_steps,
    chunked,
    current_block,
    denoising_times,
    entropy,
    finished_rows,
    fixed_fraction,
    rank_positions,
    sampling_filters,
    steps_per_block,
)

INF = math.inf


def logits_of(*probabilities: list[float]) -> torch.Tensor:
    """Logits of given probabilities, off by a constant that must not matter."""
    return torch.tensor(probabilities).log() + 2.5


# The most probable token


@settings(max_examples=200, deadline=None)
@given(
    num_positions=st.integers(0, 3),
    vocab_size=st.integers(1, 3 * TOKENS_PER_GROUP + 1),
    num_values=st.integers(1, 1000),
    seed=st.integers(0, 999),
)
def test_argmax_token_is_that_of_argmax(num_positions: int, vocab_size: int, num_values: int, seed: int) -> None:
    """Of equal scores the first, whether groups divide the vocabulary or not; few values make many ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(num_values, (num_positions, vocab_size), generator=generator).float()
    assert torch.equal(argmax(logits), logits.argmax(dim=-1))


@pytest.mark.parametrize("position", [0, TOKENS_PER_GROUP - 1, TOKENS_PER_GROUP, 2 * TOKENS_PER_GROUP + 6])
def test_argmax_token_at_the_borders_of_groups(position: int) -> None:
    """Also where all others are impossible, and where a score is no number, which is found for its check."""
    for value in (-3.0, math.nan, INF):
        logits = torch.full((1, 2 * TOKENS_PER_GROUP + 7), -INF)
        logits[0, position] = value
        assert argmax(logits).tolist() == [position]
    nothing = torch.full((1, 2 * TOKENS_PER_GROUP + 7), -INF)
    assert argmax(nothing).tolist() == [0] == nothing.argmax(dim=-1).tolist()  # control


# Confidences


@pytest.mark.parametrize(
    ("unmasking", "expected"),
    [
        ("confidence", [0.7, 0.5, 0.25]),
        ("margin", [0.5, 0.0, 0.0]),
        # exp(-H) of (0.7, 0.2, 0.1, 0), (1/2, 1/2, 0, 0) and four equal ones
        ("entropy", [0.7**0.7 * 0.2**0.2 * 0.1**0.1, 0.5, 0.25]),
        ("random", [0.7, 0.5, 0.25]),
        ("left_to_right", [0.7, 0.5, 0.25]),
    ],
)
def test_confidence_of_known_distributions_is_in_zero_to_one(unmasking: str, expected: list[float]) -> None:
    """All measures share one range, so that one threshold serves them; forbidden tokens (-inf) do no harm."""
    logits = logits_of([0.7, 0.2, 0.1, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25])
    confidence = CONFIDENCE_MEASURES[unmasking](logits, torch.tensor([0, 1, 3]))
    torch.testing.assert_close(confidence, torch.tensor(expected))


def test_confidence_is_that_of_the_chosen_token() -> None:
    """A drawn token may be an unlikely one; margin and entropy are of the distribution."""
    logits = logits_of([0.7, 0.2, 0.1])
    unlikely = torch.tensor([2])
    assert CONFIDENCE_MEASURES["confidence"](logits, unlikely).item() == pytest.approx(0.1)
    assert CONFIDENCE_MEASURES["margin"](logits, unlikely).item() == pytest.approx(0.5)


def test_entropy_of_known_distributions_is_in_nats() -> None:
    """Of one possible token, of two equal ones, of four; -inf does no harm."""
    logits = logits_of([1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25] * 4)
    torch.testing.assert_close(entropy(logits), torch.tensor([0.0, math.log(2), math.log(4)]))


@pytest.mark.parametrize("unmasking", ["confidence", "margin", "entropy"])
@pytest.mark.parametrize(("num_positions", "sizes"), [(0, [0]), (1, [1]), (3, [3]), (7, [3, 3, 1])])
def test_confidence_chunked_is_that_of_all_at_once(unmasking: str, num_positions: int, sizes: list[int]) -> None:
    """To the bit, because histories must not depend on where a part ends."""
    logits = torch.randn(num_positions, SCORES_PER_CHUNK // 3, generator=torch.Generator().manual_seed(0))
    tokens = logits.argmax(dim=-1)
    seen = []

    def measure(part: torch.Tensor, part_tokens: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return CONFIDENCE_MEASURES[unmasking](part, part_tokens)

    assert torch.equal(chunked(measure, logits, tokens), CONFIDENCE_MEASURES[unmasking](logits, tokens))
    assert seen == sizes
    # A vocabulary that no part holds goes position by position; what is not on a CPU in one call.
    seen.clear()
    chunked(measure, torch.zeros(2, SCORES_PER_CHUNK + 1), torch.zeros(2, dtype=torch.long))
    assert seen == [1, 1]
    seen.clear()
    chunked(measure, torch.zeros(7, SCORES_PER_CHUNK, device="meta"), torch.zeros(7, dtype=torch.long, device="meta"))
    assert seen == [7]


# Filters


def filtered(logits: torch.Tensor, **options: Any) -> torch.Tensor:
    return sampling_filters(**options)(None, logits)


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [(None, [0, 1, 2, 3]), (1.0, [0, 1, 2, 3]), (0.9, [0, 1, 2]), (0.65, [1, 2]), (0.3, [1]), (1e-6, [1])],
)
def test_top_p_keeps_tokens_until_their_sum_reaches_it(top_p: float | None, expected: list[int]) -> None:
    """Of 0.15, 0.6, 0.2, 0.05: the sums by rank are 0.6, 0.8, 0.95, 1; the first that reaches still stays."""
    logits = logits_of([0.15, 0.6, 0.2, 0.05])
    found = filtered(logits, top_p=top_p)
    assert kept(found) == [expected]
    assert torch.equal(found[0, expected], logits[0, expected])


def test_top_k_keeps_the_argmax_tokens() -> None:
    """Row by row; a k beyond the vocabulary keeps all."""
    logits = logits_of([0.1, 0.6, 0.3], [0.5, 0.2, 0.3])
    assert kept(filtered(logits, top_k=2)) == [[1, 2], [0, 2]]
    assert kept(filtered(logits, top_k=1)) == [[1], [0]]
    assert kept(filtered(logits, top_k=5)) == [[0, 1, 2]] * 2


def test_temperature_comes_before_top_p() -> None:
    """At temperature 0.5 probabilities are squared: (0.6, 0.4) becomes (0.692, 0.308)."""
    logits = logits_of([0.6, 0.4])
    assert kept(filtered(logits, top_p=0.65)) == [[0, 1]]  # control: 0.6 alone does not exceed 0.65
    assert kept(filtered(logits, temperature=0.5, top_p=0.65)) == [[0]]
    torch.testing.assert_close(filtered(logits, temperature=0.5), logits * 2)
    assert filtered(logits, temperature=1.0) is logits


# Blocks


def test_current_block_is_each_rows_leftmost_one_with_a_masked_position() -> None:
    """Blocks of 3 over 8 positions: the last has two. A row with nothing masked is in its first."""
    masked = torch.tensor(
        [[1, 0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1], [0] * 8], dtype=torch.bool
    )
    block = [row.nonzero().flatten().tolist() for row in current_block(masked, 3)]
    assert block == [[0, 1, 2], [3, 4, 5], [6, 7], [0, 1, 2]]
    for whole in (None, 8, 100):
        assert current_block(masked, whole).all()
    assert torch.equal(current_block(masked[1:2], 3), current_block(masked, 3)[1:2])


@pytest.mark.parametrize(
    ("num_steps", "block_length", "expected"),
    [(32, None, 32), (32, 8, 8), (16, 8, 4), (20, 8, 5), (18, 8, 4), (4, 8, 1), (2, 8, 1), (32, 32, 32), (7, 100, 7)],
)
def test_steps_per_block_are_in_proportion_to_its_positions(
    num_steps: int, block_length: int | None, expected: int
) -> None:
    """Of 32 positions, rounded down, at least one."""
    assert steps_per_block(num_steps, 32, block_length) == expected


def test_block_steps_count_from_the_blocks_first_step() -> None:
    """Blocks of 2 positions with 3 steps: block 0 has steps 0 to 2, block 1 steps 3 to 5. Early rows wait, late ones
    are at the last."""
    masked = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
    steps = [block_steps(step, 3, masked, 2).tolist() for step in range(7)]
    assert steps == [[0, 0], [1, 0], [2, 0], [2, 0], [2, 1], [2, 2], [2, 2]]
    assert block_steps(5, 3, masked, None).tolist() == [5, 5]


# Schedules


def at(step: int, num_rows: int = 1) -> torch.Tensor:
    """All rows at one step."""
    return torch.full((num_rows,), step)


def test_denoising_times_run_evenly_from_one_to_eps() -> None:
    """One time more than steps, both ends included."""
    torch.testing.assert_close(denoising_times(4, 0.2), torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]))


def test_fixed_fraction_follows_the_step_alone() -> None:
    """1 - s / t for the times 1, 0.8, 0.6, 0.4, 0.2; everything in the last step."""
    times, masked = denoising_times(4, 0.2), torch.tensor([7, 1])
    fractions = [fixed_fraction(at(step, 2), times, masked, masked * 9).tolist() for step in range(4)]
    expected = [0.2, 0.25, 1 / 3, 1.0]
    for fraction, value in zip(fractions, expected, strict=True):
        assert fraction == pytest.approx([value, value])


def test_adaptive_fraction_of_a_full_row_follows_the_steps() -> None:
    """10 positions, times 1, 0.8, 0.6, 0.4, 0.2: with all masked, the first time below 1 unmasks 2 of 10."""
    times = denoising_times(4, 0.2)
    fraction = adaptive_fraction(at(0), times, torch.tensor([10]), torch.tensor([10]))
    assert fraction.item() == pytest.approx(0.2)
    # 8 of 10 left: r = 0.8; 0.6 is the next time below, 1 - 0.6 / 0.8
    assert adaptive_fraction(at(1), times, torch.tensor([8]), torch.tensor([10])).item() == pytest.approx(0.25)


def test_adaptive_fraction_unmasks_at_least_one_position() -> None:
    """2 positions over the times 1, 0.8, ..: 1 - 0.8 of 2 is none, so the time goes on to 0.4 (0.6 of 2: one
    position)."""
    times = denoising_times(4, 0.2)
    two = torch.tensor([2])
    assert adaptive_fraction(at(0), times, two, two).item() == pytest.approx(0.6)
    assert int(2 * fixed_fraction(at(0), times, two, two)) == 0  # control: the fixed schedule wastes the step


def test_adaptive_fraction_of_a_row_that_is_ahead_waits_for_its_time() -> None:
    """Confident decoding left 3 of 10 at step 0: r = 0.3, the first time below is 0.2, the last one: all."""
    times = denoising_times(4, 0.2)
    assert adaptive_fraction(at(0), times, torch.tensor([3]), torch.tensor([10])).item() == 1


def test_adaptive_fraction_of_a_row_that_is_after_catches_up() -> None:
    """All of 10 masked at step 2 (times 1, 0.8, 0.6, 0.4, 0.2): not before this step's next time, 0.4."""
    times = denoising_times(4, 0.2)
    assert adaptive_fraction(at(2), times, torch.tensor([10]), torch.tensor([10])).item() == pytest.approx(0.6)


def test_adaptive_fraction_is_each_rows_own() -> None:
    """A batch is as good as its rows alone, also with a row that has nothing to decide."""
    times = denoising_times(7, 1e-3)
    masked, maskable = torch.tensor([5, 0, 9, 1, 0]), torch.tensor([5, 3, 20, 8, 0])
    together = adaptive_fraction(at(2, 5), times, masked, maskable)
    alone = [adaptive_fraction(at(2), times, masked[i : i + 1], maskable[i : i + 1]) for i in range(5)]
    assert torch.equal(together, torch.cat(alone))
    assert together[[1, 4]].tolist() == [1, 1]
    assert len(set(together.tolist())) > 2  # control


# Ranking and choosing

CONFIDENCE = torch.tensor([[0.2, 0.9, 0.5, 0.7]])
ALL_MASKED = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("unmasking", "expected"),
    [
        ("confidence", [3, 0, 2, 1]),
        ("margin", [3, 0, 2, 1]),
        ("entropy", [3, 0, 2, 1]),
        ("left_to_right", [0, 1, 2, 3]),
    ],
)
def test_rank_of_masked_positions_is_by_the_rule(unmasking: str, expected: list[int]) -> None:
    """The most confident position comes first; from left to right confidence does not matter."""
    assert rank_positions(unmasking, CONFIDENCE, ALL_MASKED).tolist() == [expected]


def test_rank_of_decided_positions_is_after_all_masked_ones() -> None:
    """Whatever their confidence; otherwise a budget would be spent on them."""
    masked = torch.tensor([[True, False, True, False]])
    for unmasking in CONFIDENCE_MEASURES:
        ranks = rank_positions(unmasking, CONFIDENCE, masked)
        assert sorted(ranks[masked].tolist()) == [0, 1], unmasking
        assert sorted(ranks[~masked].tolist()) == [2, 3], unmasking


def test_rank_of_equal_confidences_is_from_left_to_right() -> None:
    """A tie must not be broken by chance, or a run could not be repeated."""
    assert rank_positions("confidence", torch.full((1, 6), 0.5), torch.ones(1, 6, dtype=torch.bool)).tolist() == [
        [0, 1, 2, 3, 4, 5]
    ]


def test_random_ranks_give_every_position_the_same_chance() -> None:
    """Of 4000 rows each position is first in a quarter; the standard error is 0.007."""
    ranks = rank_positions("random", CONFIDENCE.expand(4000, 4), ALL_MASKED.expand(4000, 4))
    first = (ranks == 0).float().mean(dim=0)
    torch.testing.assert_close(first, torch.full((4,), 0.25), rtol=0, atol=0.03)


# Ends

MASK, END, PAD = 9, 7, 8
ENDS = torch.tensor([END, PAD])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 2, END, MASK], True),
        ([1, MASK, END, MASK], False),  # something before the end is open
        ([END, MASK, MASK, MASK], True),
        ([1, 2, 3, MASK], False),
        ([1, 2, 3, 4], True),  # nothing is open
        ([1, PAD, MASK, MASK], True),  # a run of padding ends an answer, too
        ([MASK, MASK, MASK, MASK], False),
    ],
)
def test_row_is_finished_when_all_up_to_its_end_is_decided(row: list[int], expected: bool) -> None:
    """Only then can nothing that is returned change any more."""
    assert finished_rows(torch.tensor([row, [MASK] * 4]), MASK, ENDS).tolist() == [expected, False]


def test_row_without_end_tokens_is_finished_when_nothing_is_masked() -> None:
    """The original's calls never stop early."""
    rows = torch.tensor([[1, END, MASK], [1, END, 2]])
    assert finished_rows(rows, MASK, torch.empty(0, dtype=torch.long)).tolist() == [False, True]


def test_what_follows_the_first_end_is_not_the_end_itself() -> None:
    """In a row without one, nothing does."""
    flags = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
    assert after_first(flags).int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]]

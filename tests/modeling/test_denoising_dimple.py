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
"""The denoising loop on scripted scores: which position is decided when, and what every row costs.

The model is replaced by a table that says how probable each position's token is, so that every step can be foreseen.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, StoppingCriteriaList

from dimple_hf.modeling.canvas_dimple import CanvasRunner
from dimple_hf.modeling.denoising_dimple import Sampler, denoise
from dimple_hf.modeling.rules_dimple import (
    EntropyBoundConfig,
    FactorConfig,
    KlassConfig,
    ProphetConfig,
    SamplerRule,
    ThresholdConfig,
    WinoConfig,
)
from dimple_hf.modeling.sampling_dimple import sampling_filters

MASK, END = 9, 7
VOCAB_SIZE = 10


class ScriptedRunner(CanvasRunner):
    """
    Scores from a table instead of a model.

    Args:
        tokens (`list[list[int]]`):
            The most probable token of each row and position.
        probabilities (`list[list[float]]`):
            Its probability; the rest is spread evenly.
    """

    def __init__(self, tokens: list[list[int]], probabilities: list[list[float]]) -> None:
        self.input_ids = torch.arange(len(tokens))[:, None]  # one prompt token: the row's number
        probability = torch.tensor(probabilities)[..., None]
        rest = ((1 - probability) / (VOCAB_SIZE - 2)).repeat(1, 1, VOCAB_SIZE)
        rest[..., MASK] = 0  # it is never generated
        self.table = rest.scatter(2, torch.tensor(tokens)[..., None], probability).log()
        self.rows_per_pass: list[list[int]] = []
        self.is_static = False

    def logits(self, answer: torch.Tensor, positions: torch.Tensor, num_positions: int | None = None) -> torch.Tensor:
        assert positions.sum() == num_positions
        rows = self.input_ids[:, 0]
        self.rows_per_pass.append(rows.tolist())
        return self.table[rows][positions]

    def select_rows(self, rows: torch.Tensor) -> None:
        self.input_ids = self.input_ids[rows]


def sampler(num_steps: int, threshold: float | None, **changes: Any) -> Sampler:
    """Greedy confidence with the fixed schedule, which is the easiest to foresee."""
    return Sampler(
        **{
            "num_steps": num_steps,
            "mask_token_id": MASK,
            "end_token_ids": torch.tensor([END]),
            "schedule": "fixed",
            "rule": ThresholdConfig(threshold),
            **changes,
        }
    )


def run(
    runner: ScriptedRunner, chosen: Sampler, answer: list[list[int]] | None = None, criteria: Any = ()
) -> tuple[list[list[int]], list[int], list[list[list[int]]]]:
    shape = (len(runner.input_ids), runner.table.shape[-2])
    start = torch.full(shape, MASK) if answer is None else torch.tensor(answer)
    history = []
    for state in denoise(runner, start, chosen, criteria):
        if state.step > 0:
            history.append(state.result.answer_ids.tolist())
    return state.result.answer_ids.tolist(), state.result.num_forward_passes.tolist(), history


def test_denoising_above_the_threshold_unmasks_all_confident_positions_at_once() -> None:
    """0.9 and 0.8 pass 0.5 in the first step; none passes in the second, whose schedule unmasks the better half."""
    runner = ScriptedRunner([[1, 2, 3, 4]], [[0.9, 0.2, 0.8, 0.4]])
    decoded, passes, history = run(runner, sampler(4, 0.5))
    assert history[0] == [[1, MASK, 3, MASK]]
    # 1 - t[2] / t[1] = 1 - 0.505 / 0.7525 = 0.33 of two positions: none, a wasted step of the fixed schedule
    assert history[1] == [[1, MASK, 3, MASK]]
    # 1 - t[3] / t[2] = 1 - 0.2575 / 0.505 = 0.49 of two: none; the last step unmasks the rest
    assert history[2:] == [[[1, MASK, 3, MASK]], [[1, 2, 3, 4]]]
    assert decoded == [[1, 2, 3, 4]]
    assert passes == [4]


def test_denoising_with_two_thresholds_differs_by_one_position() -> None:
    """A threshold between the two confidences unmasks one position less; equality does not pass."""
    probabilities = [[0.75, 0.5, 0.1, 0.1]]
    first = []
    for threshold in (0.4, 0.6, 0.75):
        runner = ScriptedRunner([[1, 2, 3, 4]], probabilities)
        first.append(run(runner, sampler(2, threshold, schedule="fixed"))[2][0])
    assert first[0] == [[1, 2, MASK, MASK]]
    assert first[1] == [[1, MASK, MASK, MASK]]
    # 0.75 in float32 is exact up to the softmax; none passes, and the schedule unmasks 1 - 0.5005 of 4: one position
    assert first[2] == [[1, MASK, MASK, MASK]]


def test_denoising_by_the_adaptive_schedule_always_unmasks_something() -> None:
    """Two positions in three steps: t = 1, 0.667, 0.334, 0.001 unmasks int(2 * 0.666) = 1, then the rest."""
    runner = ScriptedRunner([[1, 2]], [[0.2, 0.3]])
    decoded, passes, history = run(runner, sampler(3, None, schedule="adaptive"))
    assert history[0] == [[MASK, 2]]
    assert decoded == [[1, 2]]
    # control: the fixed schedule unmasks nothing in its first step, 1 - 0.667 of 2
    assert run(ScriptedRunner([[1, 2]], [[0.2, 0.3]]), sampler(3, None))[2][0] == [[MASK, MASK]]


def test_denoising_rows_leave_the_batch_when_they_are_finished() -> None:
    """
    Row 0 is sure of everything, row 1 of its end, row 2 of nothing: passes 1, 2 and 3, and no row too many. (The
    adaptive schedule unmasks 1, 1 and 2 of row 2's four positions: int(4 * 0.24975) is none, so it looks further.)
    """
    runner = ScriptedRunner(
        [[1, 2, 3, 4], [5, END, 6, 6], [1, 1, 1, 1]],
        [[0.9, 0.9, 0.9, 0.9], [0.4, 0.9, 0.3, 0.2], [0.2, 0.3, 0.2, 0.25]],
    )
    in_order = sampler(4, 0.5, unmasking="left_to_right", schedule="adaptive")
    decoded, passes, history = run(runner, in_order)
    assert runner.rows_per_pass == [[0, 1, 2], [1, 2], [2]]
    assert passes == [1, 2, 3]
    assert decoded == [[1, 2, 3, 4], [5, END, MASK, MASK], [1, 1, 1, 1]]
    # finished rows stay in the history as they were
    assert [step[0] for step in history] == [[1, 2, 3, 4]] * 3
    # control: without end tokens row 1 goes on
    runner = ScriptedRunner([[5, END, 6, 6]], [[0.4, 0.9, 0.3, 0.2]])
    endless = replace(in_order, end_token_ids=torch.empty(0, dtype=torch.long))
    assert run(runner, endless)[:2] == ([[5, END, 6, 6]], [3])


def test_denoising_a_row_depends_on_nothing_but_itself() -> None:
    """Budgets, rankings and fallbacks of a batch of rows with very different confidences equal the rows' alone."""
    torch.manual_seed(3)
    tokens = torch.randint(0, 7, (5, 8)).tolist()
    probabilities = torch.rand(5, 8).mul(0.9).add(0.05).tolist()
    # Rows with 2, 4, 8, 5 and 8 positions to decide, so that they leave at different times.
    canvas = [[MASK] * count + [5] * (8 - count) for count in (2, 4, 8, 5, 8)]
    for changes in ({"schedule": "adaptive"}, {}, {"unmasking": "left_to_right"}):
        for threshold in (None, 0.8):
            chosen = sampler(16, threshold, **changes)
            together = run(ScriptedRunner(tokens, probabilities), chosen, canvas)
            for row in range(5):
                one = slice(row, row + 1)
                alone = run(ScriptedRunner(tokens[one], probabilities[one]), chosen, canvas[one])
                assert together[0][row] == alone[0][0]
                assert together[1][row] == alone[1][0]
                assert [step[row] for step in together[2]][: len(alone[2])] == [step[0] for step in alone[2]]


def test_denoising_fixed_tokens_are_kept_and_not_counted() -> None:
    """A canvas with tokens of a structure prior: the schedule counts masked positions only."""
    runner = ScriptedRunner([[1, 2, 3, 4]], [[0.9, 0.2, 0.8, 0.4]])
    decoded, passes, history = run(runner, sampler(3, None, schedule="adaptive"), [[MASK, 5, MASK, 5]])
    assert history[0] == [[1, 5, MASK, 5]]  # int(2 * 0.666) = 1 position; int(2 * 0.333) would be none
    assert decoded == [[1, 5, 3, 5]]
    nothing = run(ScriptedRunner([[1, 2]], [[0.5, 0.5]]), sampler(2, None), [[5, 6]])
    assert nothing == ([[5, 6]], [0], [])


def test_denoising_stopping_criteria_end_rows_in_order() -> None:
    """They see prompt and answer of the rows that are left; a stopped row keeps what it has."""
    seen: list[list[list[int]]] = []

    def stop_row_one(sequences: torch.Tensor, scores: None, **kwargs: Any) -> torch.Tensor:
        seen.append(sequences.tolist())
        return sequences[:, 0] == 1

    runner = ScriptedRunner([[1, 2, 3], [4, 5, 6]], [[0.4, 0.3, 0.2]] * 2)
    decoded, passes, _ = run(
        runner, sampler(9, None, schedule="adaptive"), criteria=StoppingCriteriaList([stop_row_one])
    )
    assert decoded == [[1, 2, 3], [4, MASK, MASK]]
    assert passes == [3, 1]
    assert seen[0] == [[0, 1, MASK, MASK], [1, 4, MASK, MASK]]
    assert seen[1] == [[0, 1, 2, MASK]]


def test_denoising_logits_processors_see_one_position_a_row_and_change_confidences() -> None:
    """A processor forbids token 1, so position 0 is no longer sure, and position 1 comes first."""
    shapes: list[tuple[torch.Size, torch.Size]] = []

    def forbid_one(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        shapes.append((sequences.shape, scores.shape))
        return scores.masked_fill(torch.arange(VOCAB_SIZE) == 1, -math.inf)

    runner = ScriptedRunner([[1, 2, 3]], [[0.9, 0.6, 0.5]])
    in_order = sampler(3, None, schedule="adaptive")
    _, _, history = run(runner, replace(in_order, processors=LogitsProcessorList([forbid_one])))
    assert history[0] == [[MASK, 2, MASK]]
    assert shapes[0] == ((3, 4), (3, VOCAB_SIZE))
    assert shapes[1] == ((2, 4), (2, VOCAB_SIZE))
    assert run(ScriptedRunner([[1, 2, 3]], [[0.9, 0.6, 0.5]]), in_order)[2][0] == [[1, MASK, MASK]]  # control


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, "all -inf"])
def test_denoising_scores_that_are_no_numbers_raise(value: float | str, do_sample: bool) -> None:
    """An argmax over NaN is a token like any other, and the fault would show as bad text."""
    runner = ScriptedRunner([[1, 2]], [[0.5, 0.5]])
    chosen = sampler(2, None, do_sample=do_sample)
    run(runner, chosen)  # control
    if isinstance(value, str):
        runner.table[0, 1] = -math.inf
    else:
        runner.table[0, 1, 4] = value
    for unmasking in ("confidence", "margin", "entropy", "random", "left_to_right"):
        with pytest.raises(ValueError, match="the logits must never be NaN"):
            run(runner, replace(chosen, unmasking=unmasking))


def test_denoising_samples_tokens_by_their_probabilities() -> None:
    """4000 positions of probability 0.6; the standard error is 0.008. Confidence is taken before the temperature."""
    runner = ScriptedRunner([[1] * 4000], [[0.6] * 4000])
    share = {}
    for temperature in (None, 0.5):
        decoded, _, _ = run(runner, sampler(1, None, do_sample=True, filters=sampling_filters(temperature)))
        share[temperature] = decoded[0].count(1) / 4000
    assert share[None] == pytest.approx(0.6, abs=0.03)
    # squared: 0.36 against eight times (0.4 / 8)^2
    assert share[0.5] == pytest.approx(0.36 / (0.36 + 8 * (0.4 / 8) ** 2), abs=0.03)
    decoded, _, _ = run(runner, sampler(1, None, do_sample=True, filters=sampling_filters(top_k=1)))
    assert decoded[0].count(1) == 4000


# Blocks


def test_denoising_blocks_are_decided_from_left_to_right() -> None:
    """
    Blocks of two positions and as many steps as positions: each unmasks the surer position of its block. Without
    blocks the order is that of the confidences over the whole answer.
    """
    probabilities = [[0.3, 0.4, 0.9, 0.8, 0.7]]
    in_blocks = sampler(5, None, schedule="adaptive", block_length=2)
    runner = ScriptedRunner([[1, 2, 3, 4, 5]], probabilities)
    decoded, passes, history = run(runner, in_blocks)
    assert [step[0] for step in history] == [
        [MASK, 2, MASK, MASK, MASK],
        [1, 2, MASK, MASK, MASK],
        [1, 2, 3, MASK, MASK],
        [1, 2, 3, 4, MASK],
        [1, 2, 3, 4, 5],
    ]
    assert passes == [5]
    whole = run(ScriptedRunner([[1, 2, 3, 4, 5]], probabilities), replace(in_blocks, block_length=None))
    assert whole[2][0] == [[MASK, MASK, 3, MASK, MASK]]
    assert decoded == whole[0]


def test_denoising_in_blocks_asks_for_scores_of_one_block_and_confident_rows_go_ahead() -> None:
    """Row 0 is sure of its first two blocks, row 1 of nothing: each works on its own block, in the same pass."""
    asked: list[list[list[int]]] = []

    class Recording(ScriptedRunner):
        def logits(
            self, answer: torch.Tensor, positions: torch.Tensor, num_positions: int | None = None
        ) -> torch.Tensor:
            asked.append([row.nonzero().flatten().tolist() for row in positions])
            return super().logits(answer, positions, num_positions)

    runner = Recording([[1] * 6, [2] * 6], [[0.9, 0.9, 0.9, 0.9, 0.2, 0.2], [0.4, 0.3, 0.2, 0.2, 0.2, 0.2]])
    decoded, passes, _ = run(runner, sampler(6, 0.5, schedule="adaptive", block_length=2))
    assert asked[:4] == [[[0, 1], [0, 1]], [[2, 3], [1]], [[4, 5], [2, 3]], [[5], [3]]]
    assert passes == [4, 6]
    assert decoded == [[1] * 6, [2] * 6]


@pytest.mark.parametrize("schedule", ["adaptive", "fixed"])
@pytest.mark.parametrize(
    ("num_steps", "expected"),
    # 8 positions in blocks of 4: each block has half of the steps, with 5 rounded down to 2
    [(8, [1, 1, 1, 1, 1, 1, 1, 1]), (4, [2, 2, 2, 2]), (2, [4, 4]), (5, [2, 2, 2, 2])],
)
def test_denoising_in_blocks_divides_the_steps(num_steps: int, expected: list[int], schedule: str) -> None:
    """A block's schedule is that of a whole answer with its share of the steps."""
    runner = ScriptedRunner([[1] * 8], [[0.2] * 8])
    _, passes, history = run(runner, sampler(num_steps, None, schedule=schedule, block_length=4))
    decided = [0, *[8 - step[0].count(MASK) for step in history]]
    assert [after - before for before, after in zip(decided, decided[1:], strict=False)] == expected
    assert passes == [len(expected)]


def test_denoising_in_blocks_unmasks_all_that_is_left_in_the_last_step() -> None:
    """Three steps for four blocks: `generate` refuses it, the loop ends all the same."""
    runner = ScriptedRunner([[1] * 8], [[0.2] * 8])
    decoded, passes, history = run(runner, sampler(3, None, schedule="adaptive", block_length=2))
    assert decoded == [[1] * 8]
    assert passes == [3]
    assert [step[0].count(MASK) for step in history] == [6, 4, 0]


def test_denoising_in_blocks_ends_a_row_with_the_block_of_its_end() -> None:
    """What follows the end is never looked at."""
    runner = ScriptedRunner([[1, END, 3, 3, 3, 3]], [[0.9, 0.9, 0.2, 0.2, 0.2, 0.2]])
    decoded, passes, _ = run(runner, sampler(6, 0.5, schedule="adaptive", block_length=2))
    assert decoded == [[1, END, MASK, MASK, MASK, MASK]]
    assert passes == [1]


# Rules

RULES: dict[str, SamplerRule] = {
    "threshold": ThresholdConfig(0.5),
    "factor": FactorConfig(1.2),
    "entropy_bound": EntropyBoundConfig(1.0),
    "klass": KlassConfig(0.3, kl_threshold=0.3, kl_history_length=1),
    "prophet": ProphetConfig(0.7, gap_thresholds=(3.0, 2.0, 1.0)),
    "wino": WinoConfig(draft_threshold=0.3, verify_threshold=0.6),
}


def sampler_of(rule: str | SamplerRule, num_steps: int, **changes: Any) -> Sampler:
    rule = RULES[rule] if isinstance(rule, str) else rule
    return sampler(num_steps, None, **({"rule": rule, "schedule": "adaptive"} | changes))


class ChangingRunner(ScriptedRunner):
    """
    Scores that change with every pass, and in which hardly anything is sure.

    Args:
        table (`torch.FloatTensor` of shape `(batch_size, num_passes, answer_length, vocab_size)`):
            The scores of each row and pass; after the last pass they stay.
    """

    def __init__(self, table: torch.Tensor) -> None:
        self.table = table.masked_fill(torch.arange(table.shape[-1]) == MASK, -math.inf)
        self.input_ids = torch.arange(len(table))[:, None]
        self.is_static = False
        self.rows_per_pass: list[list[int]] = []

    def logits(self, answer: torch.Tensor, positions: torch.Tensor, num_positions: int | None = None) -> torch.Tensor:
        rows, num_passes = self.input_ids[:, 0], len(self.rows_per_pass)
        self.rows_per_pass.append(rows.tolist())
        return self.table[rows, min(num_passes, self.table.shape[1] - 1)][positions]


def run_changing(table: torch.Tensor, chosen: Sampler, answer: list[list[int]]) -> Any:
    return run(ChangingRunner(table), chosen, answer)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_denoising_by_any_rule_ends_and_unmasks_something_in_every_pass(rule: str, data: st.DataObject) -> None:
    """
    Over random scores, canvases, blocks, steps and ends. A rule that takes back also ends by itself, whatever the
    scores do: a pass masks fewer positions again than the one before unmasked.
    """
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20), "seed"))
    num_rows, length = data.draw(st.integers(1, 3), "rows"), data.draw(st.integers(1, 9), "length")
    table = 3 * torch.randn(num_rows, 30, length, VOCAB_SIZE, generator=random)
    is_fixed = torch.rand(num_rows, length, generator=random) < 0.2
    canvas = torch.full((num_rows, length), MASK).masked_fill(is_fixed, 5).tolist()
    num_steps = data.draw(st.sampled_from([1, 2, 3, length, 50]), "steps")
    chosen = sampler_of(
        rule, num_steps,
        block_length=data.draw(st.sampled_from([None, 1, 2, 3, 4, 9]), "block"),
        do_sample=data.draw(st.booleans(), "sample"),
        unmasking=data.draw(st.sampled_from(["confidence", "margin", "entropy", "left_to_right"]), "unmasking"),
        end_token_ids=torch.tensor([END] if data.draw(st.booleans(), "ends") else [], dtype=torch.long),
    )  # fmt: skip
    decoded, passes, history = run_changing(table, chosen, canvas)
    for row in range(num_rows):
        states = [canvas[row], *[step[row] for step in history]]
        for state in states:
            assert all(state[position] == 5 for position in range(length) if is_fixed[row, position])
        num_masked = [state.count(MASK) for state in states]
        if rule == "wino":
            assert passes[row] <= 2 * num_masked[0]
        else:
            assert all(
                after[position] in (before[position], MASK) or before[position] == MASK
                for before, after in zip(states, states[1:], strict=False)
                for position in range(length)
            )
            assert all(
                before > after for before, after in zip(num_masked[: passes[row]], num_masked[1:], strict=False)
            )
        if MASK in decoded[row]:
            assert END in decoded[row][: decoded[row].index(MASK)]


@pytest.mark.parametrize("block_length", [None, 3, 4])
@pytest.mark.parametrize("rule", RULES)
def test_denoising_by_any_rule_a_row_depends_on_nothing_but_itself(rule: str, block_length: int | None) -> None:
    """What a rule remembers follows its rows when others leave the batch."""
    torch.manual_seed(5)
    table = 3 * torch.randn(5, 30, 9, VOCAB_SIZE)
    table[..., 1::2, :] = table[:, :1, 1::2]  # every other position hardly moves
    canvas = [[MASK] * count + [5] * (9 - count) for count in (2, 9, 5, 9, 7)]
    num_left = set()
    for num_steps in (6, 9, 30):
        chosen = sampler_of(rule, num_steps, block_length=block_length)
        together = run_changing(table, chosen, canvas)
        num_left.add(tuple(together[1]))
        for row in range(5):
            one = slice(row, row + 1)
            alone = run_changing(table[one], chosen, canvas[one])
            assert together[0][row] == alone[0][0]
            assert together[1][row] == alone[1][0]
            assert [step[row] for step in together[2]][: len(alone[2])] == [step[0] for step in alone[2]]
    assert any(len(set(passes)) > 1 for passes in num_left)  # control: rows did leave before others


def test_denoising_by_klass_waits_until_a_position_is_stable() -> None:
    """
    Positions 0 to 2 are unsure, position 3 is sure and still, position 4 sure of another token in every pass. There
    are two passes to compare from the third on; until then the schedule unmasks the leftmost position.
    """
    table = torch.zeros(1, 6, 5, VOCAB_SIZE)
    table[:, :, :3, 4] = 0.1
    table[:, :, 3, 1] = 9.0
    table[:, ::2, 4, 2], table[:, 1::2, 4, 3] = 9.0, 9.0
    klass = sampler_of(KlassConfig(0.95, 0.01, 2), 9, unmasking="left_to_right")
    history = run_changing(table, klass, [[MASK] * 5])[2]
    assert history[:3] == [[[4, MASK, MASK, MASK, MASK]], [[4, 4, MASK, MASK, MASK]], [[4, 4, MASK, 1, MASK]]]
    one_pass = replace(klass, rule=KlassConfig(0.95, 0.01, 1))
    assert run_changing(table, one_pass, [[MASK] * 5])[2][1] == [[4, MASK, MASK, 1, MASK]]
    by_confidence = run_changing(table, sampler_of("threshold", 9, unmasking="left_to_right"), [[MASK] * 5])[2]
    assert by_confidence[0] == [[MASK, MASK, MASK, 1, 2]]  # control


def test_denoising_by_prophet_commits_a_row_at_once() -> None:
    """Gaps of 4 are below 7.5 at first; with 2 of 6 positions decided, 5 is asked, with 4 of 6, 2.5: then all
    comes."""
    table = torch.zeros(1, 1, 6, VOCAB_SIZE)
    table[..., 1] = 4.0
    chosen = sampler_of(ProphetConfig(None, (7.5, 5.0, 2.5)), 6)
    _, passes, history = run_changing(table, chosen, [[MASK] * 6])
    assert [step[0].count(MASK) for step in history] == [5, 4, 3, 2, 0]
    assert passes == [5]
    sooner = replace(chosen, rule=ProphetConfig(None, (7.5, 4.0, 2.5)))
    assert run_changing(table, sooner, [[MASK] * 6])[1] == [3]
    at_once = replace(chosen, rule=ProphetConfig(None, (3.9, 5.0, 2.5)))
    assert run_changing(table, at_once, [[MASK] * 6])[1] == [1]


def probability_table(*passes: list[dict[int, float]]) -> torch.Tensor:
    """Scores of one row: for each pass and position the probabilities of some tokens; the rest is spread evenly."""
    table = torch.zeros(1, len(passes), len(passes[0]), VOCAB_SIZE)
    for index, positions in enumerate(passes):
        for position, known in enumerate(positions):
            others = [token for token in range(VOCAB_SIZE - 1) if token not in known]
            for token in others:
                table[0, index, position, token] = (1 - sum(known.values())) / len(others)
            for token, probability in known.items():
                table[0, index, position, token] = probability
    return table.log()


def test_denoising_by_wino_takes_back_what_its_neighbours_contradict() -> None:
    """
    Pass 0 drafts positions 0 and 1. Pass 1 knows both, finds the token of position 0 improbable and masks it again,
    while it unmasks position 2. Pass 2 unmasks another token there, alone. Nothing is left to verify.
    """
    table = probability_table(
        [{1: 0.7}, {2: 0.8}, {3: 0.4}],
        [{1: 0.3, 6: 0.6}, {2: 0.95}, {3: 0.9}],
        [{6: 0.8}, {2: 0.95}, {3: 0.2}],
    )
    wino = sampler_of(WinoConfig(0.6, 0.9), 9)
    decoded, passes, history = run_changing(table, wino, [[MASK] * 3])
    assert [step[0] for step in history] == [[1, 2, MASK], [MASK, 2, 3], [6, 2, 3]]
    assert passes == [3]
    # control: a rule that never takes back keeps the wrong token
    assert run_changing(table, sampler(9, 0.6), [[MASK] * 3])[0] == [[1, 2, 3]]


def test_denoising_by_wino_verifies_an_answer_before_it_ends() -> None:
    """All comes in pass 0, with an end. Pass 1 looks at it: nothing is suspicious, or one of the two is."""
    first = [{1: 0.7}, {END: 0.8}, {3: 0.4}]
    good = [{1: 0.95}, {END: 0.95}, {3: 0.4}]
    bad = [{1: 0.5, 4: 0.4}, {END: 0.95}, {3: 0.4}]
    again = [{4: 0.95}, {END: 0.95}, {3: 0.4}]
    wino = sampler_of(WinoConfig(0.6, 0.9), 9)
    decoded, passes, _ = run_changing(probability_table(first, good), wino, [[MASK] * 3])
    assert decoded[0][:2] == [1, END]
    assert passes == [2]
    decoded, passes, _ = run_changing(probability_table(first, bad, again), wino, [[MASK] * 3])
    assert decoded[0][:2] == [4, END]
    assert passes == [3]
    # The last step unmasks what is left and verifies nothing; with one step fewer, nothing is run for it.
    assert run_changing(probability_table(first, bad), replace(wino, num_steps=1), [[MASK] * 3])[1] == [1]
    decoded, passes, _ = run_changing(probability_table(first, bad), replace(wino, num_steps=2), [[MASK] * 3])
    assert decoded[0][:2] == [1, END]
    assert passes == [1]


def test_denoising_by_wino_keeps_what_was_fixed_and_earlier_blocks() -> None:
    """Only generated positions of the present block are verified, and a block is left when all in it is."""
    asked: list[list[int]] = []

    class Recording(ChangingRunner):
        def logits(
            self, answer: torch.Tensor, positions: torch.Tensor, num_positions: int | None = None
        ) -> torch.Tensor:
            asked.append(positions[0].nonzero().flatten().tolist())
            return super().logits(answer, positions, num_positions)

    sure = [{1: 0.97}] * 6
    wino = sampler_of(WinoConfig(0.6, 0.9), 9, block_length=3)
    decoded, passes, _ = run(Recording(probability_table(sure)), wino, [[MASK, 5, MASK, MASK, MASK, MASK]])
    assert decoded == [[1, 5, 1, 1, 1, 1]]
    assert asked == [[0, 2], [0, 2], [3, 4, 5], [3, 4, 5]]
    assert passes == [4]


# Constraints


class AllEqual:
    """An answer of one token, repeated."""

    def __init__(self, num_rows: int) -> None:
        self.constrained_rows = torch.ones(num_rows, dtype=torch.bool)

    def mask_logits(
        self,
        rows: torch.Tensor,
        answer: torch.Tensor,
        masked: torch.Tensor,
        logits: torch.Tensor,
        positions: torch.Tensor,
    ) -> torch.Tensor:
        assert not (positions & ~masked).any()
        assert len(logits) == positions.sum()
        decided = answer.masked_fill(masked, -1).amax(dim=1)[positions.nonzero()[:, 0]]
        other = torch.arange(logits.shape[1]) != decided[:, None]
        return logits.masked_fill(other & (decided >= 0)[:, None], -math.inf)

    def accept(
        self,
        rows: torch.Tensor,
        answer: torch.Tensor,
        masked: torch.Tensor,
        proposed: torch.Tensor,
        chosen: torch.Tensor,
        confidence: torch.Tensor,
    ) -> torch.Tensor:
        surest = confidence.masked_fill(~chosen, -1).argmax(dim=1, keepdim=True)
        return chosen & (proposed == proposed.gather(1, surest))


@pytest.mark.parametrize("block_length", [None, 2])
@pytest.mark.parametrize("rule", RULES)
def test_denoising_by_any_rule_keeps_to_a_constraint(rule: str, block_length: int | None) -> None:
    """In blocks it is asked about the positions of the present one; what must wait comes in the last step, or
    before."""
    torch.manual_seed(2)
    table = 4 * torch.randn(3, 9, 7, VOCAB_SIZE)
    for num_steps in (4, 7):
        chosen = sampler_of(rule, num_steps, block_length=block_length)
        decoded, _, history = run(ChangingRunner(table), replace(chosen, constraint=AllEqual(3)))
        assert all(len(set(row)) == 1 for row in decoded)
        for step in history:
            assert all(len(set(row) - {MASK}) <= 1 for row in step)
    free = run(ChangingRunner(table), chosen)[0]
    assert any(len(set(row)) > 1 for row in free)  # control

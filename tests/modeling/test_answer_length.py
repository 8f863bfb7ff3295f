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
"""Lengths of canvases: those that grow until the end is in sight, and what a limit costs.

A tiny model has no idea of an end, so the scores of the end token are written over: certain from some position on.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import EOS, MASK, MIXED_PROMPTS, PAD, Prompt, make_prompt, model_inputs, parametrize_some, tiny_model

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationConfig, DimpleGenerationOutput
from dimple_hf.modeling import length_dimple
from dimple_hf.modeling.cache_dimple import CACHE_POLICIES
from dimple_hf.modeling.canvas_dimple import CanvasRunner
from dimple_hf.modeling.length_dimple import NUM_LAST_POSITIONS, end_in_sight, in_canvas
from dimple_hf.modeling.rules_dimple import WinoConfig

#: Small, so that rows are refreshed in every answer.
OPTIONS = {"refresh": {"cache_refresh_interval": 2}, "prefix": {"block_length": 4}, "dual": {"block_length": 4}}
POLICIES = {name: {"cache_policy": name} | OPTIONS.get(name, {}) for name in CACHE_POLICIES}
EACH_POLICY = pytest.mark.parametrize("policy", [pytest.param(options, id=name) for name, options in POLICIES.items()])

#: Where the answers of `MIXED_PROMPTS` end: within 8 positions with some to spare, just so, within 16, and within 40.
ENDS = (3, 7, 13, 35)


@pytest.fixture(scope="module")
def long_model() -> DimpleForConditionalGeneration:
    """A tiny model with room for 256 answer positions after a prompt of 299."""
    return tiny_model(max_position_embeddings=600)


def write_ends(
    monkeypatch: pytest.MonkeyPatch, ends: dict[int, int], methods: tuple[str, ...] = ("logits", "full_logits")
) -> None:
    """Makes the end certain from a position on, for each row by its last prompt token, and impossible before."""
    for name in methods:
        method = getattr(CanvasRunner, name)

        def scores(
            runner: Any,
            answer: torch.Tensor,
            positions: torch.Tensor,
            rows: Any = None,
            *args: Any,
            method: Any = method,
            **kwargs: Any,
        ) -> torch.Tensor:
            logits = method(runner, answer, positions, *([] if rows is None else [rows]), *args, **kwargs)
            chosen = torch.zeros_like(positions)
            chosen[slice(None) if rows is None else rows] = True
            row, position = (positions & chosen).nonzero(as_tuple=True)
            first = torch.tensor([ends[token] for token in runner.input_ids[:, -1].tolist()])
            logits[:, EOS] = torch.where(position >= first[row], 1e4, -1e4)
            return logits

        monkeypatch.setattr(CanvasRunner, name, scores)


@pytest.fixture
def mixed_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of `MIXED_PROMPTS` end at `ENDS`."""
    last_tokens = [prompt.tokens[-1] for prompt in MIXED_PROMPTS]
    assert len(set(last_tokens)) == len(last_tokens)
    write_ends(monkeypatch, dict(zip(last_tokens, ENDS, strict=True)))


def answers(model: DimpleForConditionalGeneration, *prompts: Prompt, **options: Any) -> DimpleGenerationOutput:
    """`generate` over prompts, with all the figures."""
    return model.generate(**model_inputs(*prompts), return_dict_in_generate=True, output_history=True, **options)


@pytest.fixture
def watch_positions(long_model: DimpleForConditionalGeneration) -> Iterator[Callable[[], int]]:
    """A function that returns how many positions went through the model since it was last called."""
    counts: list[int] = []
    handle = long_model.model.layers[0].register_forward_pre_hook(
        lambda module, args: counts.append(args[0].shape[0] * args[0].shape[1])
    )

    def positions_since() -> int:
        total = sum(counts)
        counts.clear()
        return total

    yield positions_since
    handle.remove()


# Pure functions


def test_end_is_in_sight_where_the_last_positions_say_so_on_average() -> None:
    """Two of four last positions are half; a row that has no positions is not asked."""
    lengths = torch.tensor([2, 8, 6, 6])
    positions = in_canvas(lengths, 8)
    assert positions.sum(dim=1).tolist() == lengths.tolist()
    positions[3] = False
    # Probability of tokens 0 and 1, the ends, at the 2 + 4 + 4 last positions; before them it is certain and counts
    # for nothing.
    last = torch.tensor([0.9, 0.2, *[1.0] * 4, 0, 0, 0.99, 1, *[1.0] * 2, 0, 0.5, 0.7, 0.9])
    assert len(last) == positions.sum()
    assert NUM_LAST_POSITIONS == 4
    logits = torch.stack([last / 2, last / 2, 1 - last], dim=1).log()
    assert end_in_sight(logits, positions, lengths, torch.tensor([0, 1])).tolist() == [True, False, True, False]
    assert end_in_sight(logits, positions, lengths, torch.tensor([0])).tolist() == [False] * 4


# Canvases that grow


@EACH_POLICY
@pytest.mark.usefixtures("mixed_ends")
def test_growing_canvas_gives_the_answer_of_a_canvas_of_the_length_found(
    model: DimpleForConditionalGeneration, policy: dict[str, Any]
) -> None:
    """
    8 positions are enough for the ends at 3 and 7 only if the last four say so: 1 of 4 does for the second, so it
    takes 16; the third takes 16, the fourth 32 and then the limit of 40, which is not probed. Probes are passes, but
    for those that find the end, which are the first pass of a canvas of their length.
    """
    options = policy | {"confidence_threshold": 0.5}
    found, probes = [8, 16, 16, 40], [0, 1, 1, 3]
    grown = answers(model, *MIXED_PROMPTS, **options, max_new_tokens=40, initial_answer_length=8)
    for row, (prompt, length) in enumerate(zip(MIXED_PROMPTS, found, strict=True)):
        alone = answers(model, prompt, **options, max_new_tokens=length, max_denoising_steps=40)
        expected = alone.sequences[0, -length:].tolist() + [PAD] * (40 - length)
        assert grown.sequences[row, -40:].tolist() == expected
        assert expected.index(EOS) == ENDS[row]
        assert grown.num_forward_passes[row] == alone.num_forward_passes[0] + probes[row]
        num_tokens = round(float(alone.tokens_per_forward[0] * alone.num_forward_passes[0]))
        assert float(grown.tokens_per_forward[row]) == pytest.approx(num_tokens / int(grown.num_forward_passes[row]))
    # control: the length does matter to what is answered
    whole = answers(model, *MIXED_PROMPTS, **options, max_new_tokens=40)
    assert not torch.equal(whole.sequences, grown.sequences)


@parametrize_some(
    2,
    rule={"threshold": {"confidence_threshold": 0.5}, "wino": {"sampler_config": WinoConfig(draft_threshold=0.3)}},
    policy=POLICIES,
)
@pytest.mark.usefixtures("mixed_ends")
def test_rows_with_changing_canvases_equal_the_rows_alone(
    model: DimpleForConditionalGeneration, policy: dict[str, Any], rule: dict[str, Any]
) -> None:
    """Rows grow and leave at different steps; tokens, passes and history are their own."""
    options = policy | rule | {"max_new_tokens": 40, "initial_answer_length": 4}
    together = answers(model, *MIXED_PROMPTS, **options)
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = answers(model, prompt, **options)
        assert together.sequences[row, -40:].tolist() == alone.sequences[0, -40:].tolist()
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
        steps = [step[row, -40:].tolist() for step in together.history]
        assert steps[: len(alone.history)] == [step[0, -40:].tolist() for step in alone.history]
    assert len(together.num_forward_passes.unique()) > 2  # control


def test_canvas_whose_end_was_in_sight_keeps_its_length(
    model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Canvases grow before the first step only: one that turns out too short is an answer without an end."""
    options = {"confidence_threshold": None, "unmasking": "left_to_right", "max_denoising_steps": 16}
    plain = answers(model, MIXED_PROMPTS[1], **options, max_new_tokens=4)
    write_ends(monkeypatch, {MIXED_PROMPTS[1].tokens[-1]: 4})
    monkeypatch.setattr(length_dimple, "end_in_sight", lambda logits, positions, *rest: positions.any(dim=1))
    output = answers(model, MIXED_PROMPTS[1], **options, max_new_tokens=16, initial_answer_length=4)
    answer = output.sequences[0, -16:].tolist()
    assert answer == plain.sequences[0, -4:].tolist() + [PAD] * 12
    assert output.num_forward_passes.tolist() == [4]
    assert output.commit_steps[0].tolist() == [0, 1, 2, 3] + [-1] * 12
    assert output.token_logprobs[0].isnan().tolist() == [False] * 4 + [True] * 12


def test_canvas_without_any_end_grows_to_the_limit(
    model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut off before `max_new_tokens`; an initial length beyond it is the limit itself."""
    write_ends(monkeypatch, {MIXED_PROMPTS[1].tokens[-1]: 1000})
    output = answers(model, MIXED_PROMPTS[1], max_new_tokens=10, initial_answer_length=2)
    whole = answers(model, MIXED_PROMPTS[1], max_new_tokens=10)
    assert torch.equal(output.sequences, whole.sequences)
    assert output.num_forward_passes == whole.num_forward_passes + 3  # probes of 2, 4 and 8 positions
    for length in (10, 11):
        options = {"max_new_tokens": 10, "initial_answer_length": length}
        beyond = answers(model, MIXED_PROMPTS[1], **options)
        assert torch.equal(beyond.sequences, whole.sequences)
        assert beyond.num_forward_passes == whole.num_forward_passes
        model.generate(**model_inputs(MIXED_PROMPTS[1]), **options, eos_token_id=None)  # which growing would need


def test_initial_length_makes_no_difference_to_a_canvas_that_is_given(model: DimpleForConditionalGeneration) -> None:
    """`answer_ids` say how long the answer is; a model's own options may still name an initial length."""
    canvas = torch.full((4, 6), MASK)
    expected = answers(model, *MIXED_PROMPTS, answer_ids=canvas)
    given = answers(model, *MIXED_PROMPTS, answer_ids=canvas, initial_answer_length=2)
    assert torch.equal(given.sequences, expected.sequences)
    assert torch.equal(given.num_forward_passes, expected.num_forward_passes)


# What a limit costs


def cost_of_a_short_answer(
    model: DimpleForConditionalGeneration, watch_positions: Callable[[], int], **options: Any
) -> tuple[list[int], int]:
    """The tokens of a short answer to a prompt of 299 tokens, and the positions that went through the model for it."""
    watch_positions()
    output = answers(model, make_prompt(299, seed=5), max_denoising_steps=256, **options)
    answer = output.sequences[0, 299:].tolist()
    return answer[: answer.index(EOS) + 1], watch_positions()


@pytest.mark.parametrize("threshold", [0.95, 0.2])
@EACH_POLICY
def test_short_answer_under_a_long_limit_costs_at_most_1_3_times_one_in_a_short_canvas(
    long_model: DimpleForConditionalGeneration,
    watch_positions: Callable[[], int],
    monkeypatch: pytest.MonkeyPatch,
    policy: dict[str, Any],
    threshold: float,
) -> None:
    """Counted in positions that run through the model: none more, because the probe is the first pass; same tokens."""
    write_ends(monkeypatch, {make_prompt(299, seed=5).tokens[-1]: 9})
    options = policy | {"confidence_threshold": threshold}
    tokens, cost = cost_of_a_short_answer(long_model, watch_positions, max_new_tokens=32, **options)
    grown = cost_of_a_short_answer(
        long_model, watch_positions, max_new_tokens=256, initial_answer_length=32, **options
    )
    assert len(tokens) == 10
    assert grown[0] == tokens
    assert grown[1] == cost  # which is less than the 1.3 times that are asked for
    # control: the limit alone is paid for
    whole = cost_of_a_short_answer(long_model, watch_positions, max_new_tokens=256, **options)
    assert whole[1] > 1.3 * cost


# Refusals


@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_bad_initial_length_is_refused(value: Any) -> None:
    """As every other length."""
    with pytest.raises(ValueError, match=r"`initial_answer_length` must be an integer >= 1"):
        DimpleGenerationConfig(initial_answer_length=value)


def test_masks_after_a_canvas_are_refused(model: DimpleForConditionalGeneration) -> None:
    """Nobody sees what stands there, so nothing can be decided there."""
    canvas = torch.tensor([[MASK, MASK, 7, MASK]])
    inputs = model_inputs(MIXED_PROMPTS[0])
    for method in ("generate", "diffusion_generate"):
        generate = getattr(model, method)
        with pytest.raises(ValueError, match=r"`answer_ids` must not hold the mask token .* in row 0\)"):
            generate(**inputs, answer_ids=canvas, answer_attention_mask=torch.tensor([[1, 1, 0, 0]]))
        shape = generate(**inputs, answer_ids=canvas, answer_attention_mask=torch.tensor([[1, 1, 1, 1]])).shape
        assert shape == (1, 9)  # control


def test_initial_length_without_any_end_token_is_refused(model: DimpleForConditionalGeneration) -> None:
    """There is nothing to look for."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    options: dict[str, Any] = {"max_new_tokens": 8, "initial_answer_length": 4, "eos_token_id": None}
    with pytest.raises(ValueError, match=r"`initial_answer_length` must be used with an `eos_token_id` or a"):
        model.generate(**inputs, **options, pad_token_id=None)
    assert model.generate(**inputs, **options).shape == (1, 13)  # control: padding is an end


def test_blocks_of_cache_and_different_lengths_are_refused_under_flash_attention() -> None:
    """It reads the padding of a window from the last columns of the mask, where the window is not."""
    model = tiny_model()
    shorter = {
        "answer_ids": torch.tensor([[MASK] * 6 + [PAD] * 2]),
        "answer_attention_mask": torch.tensor([[1] * 6 + [0] * 2]),
    }
    inputs = model_inputs(MIXED_PROMPTS[0])
    options: dict[str, Any] = {"cache_policy": "dual", "block_length": 4}
    for case in ({"max_new_tokens": 8, "initial_answer_length": 4}, shorter):
        model.generate(**inputs, **options, **case)  # control
        model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(ValueError, match="`cache_policy` must not have blocks .*'flash_attention_2'"):
            model.generate(**inputs, **options, **case)
        model.config._attn_implementation = "sdpa"

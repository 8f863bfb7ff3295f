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
"""`CanvasRunner`: the scores of an answer's positions, from no more work than a step needs."""

from typing import Any

import pytest
import torch
from helpers import IMAGE, MASK, MIXED_PROMPTS, VOCAB_SIZE, model_inputs, tiny_model

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.cache_dimple import CACHE_POLICIES, CachePolicy
from dimple_hf.modeling.canvas_dimple import CanvasRunner

ANSWER_LENGTH = 4
WIDTH = max(len(prompt.tokens) for prompt in MIXED_PROMPTS)
CACHES = pytest.mark.parametrize("use_cache", [True, False], ids=["cache", "no-cache"])

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def no_gradients() -> Any:
    with torch.no_grad():
        yield


def runner_of(
    model: DimpleForConditionalGeneration, policy: bool | CachePolicy, prompts: tuple = MIXED_PROMPTS
) -> tuple[CanvasRunner, torch.Tensor]:
    """A runner over prompts, and an answer of mask tokens; `True` and `False` are policies "prompt" and "none"."""
    if isinstance(policy, bool):
        policy = CACHE_POLICIES["prompt" if policy else "none"](None, None)
    inputs = model_inputs(*prompts)
    answer = torch.full((len(prompts), ANSWER_LENGTH), MASK)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    positions = model.get_rope_index(ids, inputs.get("image_grid_thw"), mask)
    features = None
    if "pixel_values" in inputs:
        images = inputs["pixel_values"], inputs["image_grid_thw"]
        features = torch.cat(model.get_image_features(*images).pooler_output)
    return CanvasRunner(model, inputs["input_ids"], mask, positions, features, policy), answer


def whole_logits(model: DimpleForConditionalGeneration, answer: torch.Tensor) -> torch.Tensor:
    """Logits of the whole sequences, from one plain pass, shifted to the positions that they are for."""
    inputs = model_inputs(*MIXED_PROMPTS)
    ids = torch.cat([inputs["input_ids"], answer], dim=1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
    logits = model(**(inputs | {"input_ids": ids, "attention_mask": mask})).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1)


@CACHES
def test_canvas_logits_are_the_plain_passs_one_position_before(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """The logits at position i - 1 are for the token at position i; the first answer token's are the last prompt
    token's."""
    runner, answer = runner_of(model, use_cache)
    positions = torch.rand(answer.shape) < 0.6
    logits = runner.logits(answer, positions)
    assert logits.shape == (int(positions.sum()), VOCAB_SIZE)
    assert logits.dtype == torch.float32
    expected = whole_logits(model, answer)
    torch.testing.assert_close(logits, expected[:, -ANSWER_LENGTH:][positions], rtol=1e-4, atol=1e-4)
    assert 0 < positions.sum() < positions.numel()  # control: the selection is one


@CACHES
def test_canvas_all_logits_cover_the_positions_that_were_run(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """First everything; later, with the cache, the last prompt token and the answer, whose first keeps its own."""
    runner, answer = runner_of(model, use_cache)
    ids, logits = runner.all_logits(answer)
    assert ids.shape == (4, WIDTH + ANSWER_LENGTH)
    expected = whole_logits(model, answer)
    is_token = runner.attention_mask.bool()
    is_token[:, 1:] &= is_token[:, :-1].clone()  # after padding, the logits are padding's
    torch.testing.assert_close(logits[is_token], expected[is_token], rtol=1e-4, atol=1e-4)
    ids, logits = runner.all_logits(answer)
    run = ANSWER_LENGTH + 1 if use_cache else WIDTH + ANSWER_LENGTH
    assert ids.shape == logits.shape[:2] == (4, run)
    torch.testing.assert_close(logits[:, -ANSWER_LENGTH:], expected[:, -ANSWER_LENGTH:], rtol=1e-4, atol=1e-4)


def test_canvas_without_cache_sees_each_new_answer_and_with_it_the_prompt_stays(
    model: DimpleForConditionalGeneration,
) -> None:
    """The cached prompt has seen the first answer: an approximation of the paper, and the two differ a little."""
    answers = [torch.full((4, ANSWER_LENGTH), MASK), torch.randint(0, 90, (4, ANSWER_LENGTH))]
    positions = torch.ones(4, ANSWER_LENGTH, dtype=torch.bool)
    results = {}
    for use_cache in (True, False):
        runner, _ = runner_of(model, use_cache)
        results[use_cache] = [runner.logits(answer, positions) for answer in answers]
    torch.testing.assert_close(results[True][0], results[False][0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(results[True][1], results[False][1], rtol=1e-2, atol=1e-2)
    expected = whole_logits(model, answers[1])[:, -ANSWER_LENGTH:].flatten(0, 1)
    torch.testing.assert_close(results[False][1], expected, rtol=1e-4, atol=1e-4)


@CACHES
def test_canvas_rows_selected_give_the_same_scores(model: DimpleForConditionalGeneration, use_cache: bool) -> None:
    """Rows leave, change positions or come twice, before and after the first pass; images follow their rows."""
    rows = torch.tensor([3, 1, 1])
    for first_pass_before in (False, True):
        runner, answer = runner_of(model, use_cache)
        whole, _ = runner_of(model, use_cache)
        positions = torch.ones_like(answer, dtype=torch.bool)
        if first_pass_before:
            runner.logits(answer, positions)
            whole.logits(answer, positions)
        runner.select_rows(rows)
        answer = torch.randint(0, 90, answer.shape)
        expected = whole.logits(answer, positions).view(4, ANSWER_LENGTH, -1)[rows]
        got = runner.logits(answer[rows], positions[rows]).view(3, ANSWER_LENGTH, -1)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(got[0], got[1], atol=1e-2)  # control: rows differ


@CACHES
def test_canvas_without_padding_runs_without_a_mask(use_cache: bool) -> None:
    """It is decided once, not at every step; with padding a mask is made once for each kind of pass."""
    for prompts, has_mask in ((MIXED_PROMPTS[1:2], False), (MIXED_PROMPTS, True)):
        model = tiny_model()
        prepared: list[Any] = []
        prepare = model.model.prepare_attention_mask
        seen: list[Any] = []

        def spy(*args: Any, prepare: Any = prepare, prepared: list[Any] = prepared, **kwargs: Any) -> Any:
            if not isinstance(args[1], dict):
                prepared.append(args)
            return prepare(*args, **kwargs)

        model.model.prepare_attention_mask = spy
        model.model.layers[0].register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        runner, answer = runner_of(model, use_cache, prompts)
        for _ in range(3):
            runner.logits(answer, answer == MASK)
        assert [mask is not None for mask in seen] == [has_mask] * 3
        assert len(prepared) == (2 if use_cache else 1)


@CACHES
def test_canvas_answer_with_an_image_placeholder_is_text(
    model: DimpleForConditionalGeneration, use_cache: bool
) -> None:
    """A model may write any token; the images' features belong to the prompt alone."""
    runner, answer = runner_of(model, use_cache)
    answer[:, 1] = IMAGE
    positions = answer == MASK
    first = runner.logits(answer, positions)
    second = runner.logits(answer, positions)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4)
    # control: the token has an embedding of its own
    answer[:, 1] = 3
    assert not torch.allclose(runner.logits(answer, positions), second, atol=1e-2)

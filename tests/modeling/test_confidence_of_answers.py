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
"""`token_logprobs`, `commit_steps` and `logits`: how sure the model was of each token when it was committed."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import EOS, MASK, MIXED_PROMPTS, PAD, model_inputs
from transformers import AutoModel, AutoProcessor

from dimple_hf import DimpleForConditionalGeneration, StructurePrior, WinoConfig

LENGTH = 10


def decode(model: DimpleForConditionalGeneration, *prompts: Any, **options: Any) -> Any:
    torch.manual_seed(3)
    given = {"max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_history": True}
    return model.generate(**model_inputs(*prompts), **(given | options))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"confidence_threshold": 0.3}, id="threshold"),
        pytest.param({"unmasking": "margin", "confidence_threshold": 0.2}, id="margin"),
        pytest.param({"do_sample": True, "temperature": 2.0, "top_k": 20}, id="sampling"),
        pytest.param({"sampler_config": WinoConfig(0.25, 0.3)}, id="remasking"),
        pytest.param({"block_length": 4, "cache_policy": "dual"}, id="dual"),
    ],
)
def test_logprobs_are_those_of_the_logits_that_tokens_were_committed_from(
    model: DimpleForConditionalGeneration, options: dict[str, Any]
) -> None:
    """Before temperature and top-k, whatever the confidence measure; each at the step whose history first has it."""
    output = decode(model, *MIXED_PROMPTS, output_logits=True, **options)
    answers = output.sequences[:, -LENGTH:]
    assert output.token_logprobs.dtype == torch.float32
    assert output.logits.shape == (4, LENGTH, model.config.vocab_size)
    expected = output.logits.float().log_softmax(dim=-1).gather(-1, answers[..., None]).squeeze(-1)
    torch.testing.assert_close(output.token_logprobs, expected, rtol=1e-4, atol=1e-5)
    history = torch.stack([step[:, -LENGTH:] for step in output.history])
    at_commit = history.gather(0, output.commit_steps[None])[0]
    assert torch.equal(at_commit, answers)
    before = history.gather(0, (output.commit_steps - 1).clamp(min=0)[None])[0]
    assert (before == MASK)[output.commit_steps > 0].all()
    assert len(output.commit_steps.unique()) > 1  # control


def test_given_tokens_have_logprob_0_and_what_follows_the_end_is_nan(model: DimpleForConditionalGeneration) -> None:
    """Commit steps are -1 at both. Row 1 ends at its fourth position."""
    canvas = torch.full((2, LENGTH), MASK)
    canvas[0, 2], canvas[1, 1], canvas[1, 3] = 17, 18, EOS
    output = decode(model, *MIXED_PROMPTS[:2], answer_ids=canvas, confidence_threshold=0.3)
    assert output.sequences[1, -LENGTH + 4 :].tolist() == [PAD] * (LENGTH - 4)
    assert output.token_logprobs[0, 2] == 0
    assert output.token_logprobs[1, [1, 3]].tolist() == [0, 0]
    assert output.token_logprobs[1, 4:].isnan().all()
    assert output.commit_steps[1, 4:].tolist() == [-1] * (LENGTH - 4)
    assert output.commit_steps[0, 2] == -1
    is_generated = torch.ones(2, LENGTH, dtype=torch.bool)
    is_generated[0, 2] = is_generated[1, 1] = False
    is_generated[1, 3:] = False
    assert (output.token_logprobs[is_generated] < 0).all()
    assert (output.commit_steps[is_generated] >= 0).all()


def test_logprob_of_known_logits_is_exact(model: DimpleForConditionalGeneration) -> None:
    """A processor leaves two tokens, 3 to 1: ln 0.75, whatever the temperature."""

    def two_tokens(sequences: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = torch.full_like(scores, -math.inf)
        scores[:, 5], scores[:, 6] = math.log(3.0), 0.0
        return scores

    output = decode(model, MIXED_PROMPTS[0], logits_processor=[two_tokens])
    torch.testing.assert_close(output.token_logprobs, torch.full((1, LENGTH), math.log(0.75)))
    # From left to right: by confidence, positions that drew the more probable token would come first.
    drawing = {"do_sample": True, "temperature": 5.0, "unmasking": "left_to_right"}
    drawn = decode(model, MIXED_PROMPTS[0], logits_processor=[two_tokens], **drawing)
    expected = torch.where(drawn.sequences[:, -LENGTH:] == 5, math.log(0.75), math.log(0.25))
    torch.testing.assert_close(drawn.token_logprobs, expected)
    assert len(drawn.token_logprobs.unique()) == 2  # control


def test_rows_of_a_batch_have_the_confidence_of_the_rows_alone(model: DimpleForConditionalGeneration) -> None:
    """Also those that leave early; repeated sequences have their own."""
    together = decode(model, *MIXED_PROMPTS, confidence_threshold=0.3)
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = decode(model, prompt, confidence_threshold=0.3)
        torch.testing.assert_close(together.token_logprobs[row], alone.token_logprobs[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(together.commit_steps[row], alone.commit_steps[0])
    assert decode(model, *MIXED_PROMPTS, num_return_sequences=2, do_sample=True).token_logprobs.shape == (8, LENGTH)
    assert together.logits is None  # on request


@pytest.mark.parametrize("options", [{}, {"sampler_config": WinoConfig(0.25, 0.3)}, {"do_sample": True}])
def test_top_tokens_are_those_of_the_logits_that_positions_were_committed_from(
    model: DimpleForConditionalGeneration, options: dict[str, Any]
) -> None:
    """Where a caller of the loop wants them, as the server does."""
    torch.manual_seed(3)
    inputs = model_inputs(*MIXED_PROMPTS)
    call = model.prepare_generation(inputs.pop("input_ids"), **inputs, max_new_tokens=LENGTH, **options)
    assert all(state.result.top_ids is None for state in call.states())  # control
    call = model.prepare_generation(**model_inputs(*MIXED_PROMPTS), max_new_tokens=LENGTH, **options)
    call = replace(call, sampler=replace(call.sampler, num_top_logprobs=3, keeps_logits=True))
    *_, last = call.states()
    committed = last.result.commit_steps >= 0
    top = last.result.logits[committed].float().log_softmax(dim=-1).topk(3)
    torch.testing.assert_close(last.result.top_logprobs[committed], top.values)
    assert torch.equal(last.result.top_ids[committed], top.indices)
    assert (last.result.top_logprobs[~committed] == -torch.inf).all()
    assert committed.any()


def test_confidence_takes_no_forward_passes_and_is_in_every_step(model: DimpleForConditionalGeneration) -> None:
    """What is masked has none yet; the last step has that of `generate`."""
    passes: list[int] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(1))
    output = decode(model, MIXED_PROMPTS[1], confidence_threshold=0.3)
    handle.remove()
    assert len(passes) == output.num_forward_passes.item()
    inputs = model_inputs(MIXED_PROMPTS[1])
    for step in model.generate_steps(**inputs, max_new_tokens=LENGTH, confidence_threshold=0.3):
        masked = step.answer_ids == MASK
        assert torch.equal(step.token_logprobs.isnan(), masked)
        assert torch.equal(step.commit_steps == -1, masked)
    torch.testing.assert_close(step.token_logprobs, output.token_logprobs)


def test_padding_that_fills_an_answer_under_a_prior_is_generated(parity_dir: Any) -> None:
    """Its probability is among the others: 1 where nothing else is possible."""
    processor = AutoProcessor.from_pretrained(parity_dir / "checkpoint")
    model = AutoModel.from_pretrained(parity_dir / "checkpoint")
    prior = StructurePrior.from_json_schema({"enum": ["yes", "perhaps"]})
    inputs = processor(text="Is it?", structure_prior=prior, return_tensors="pt")
    output = model.generate(**inputs, return_dict_in_generate=True)
    assert output.token_logprobs.isfinite().all()
    is_given = inputs["answer_ids"] != model.config.mask_token_id
    assert torch.equal(output.commit_steps == -1, is_given)
    assert (output.token_logprobs[is_given] == 0).all()
    assert not is_given.all()  # control

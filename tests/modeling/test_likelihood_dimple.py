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
"""The likelihood of answers against enumeration: all masks of an answer of three tokens over a vocabulary of five."""

import itertools
import math

import pytest
import torch
from helpers import make_prompt, model_inputs, tiny_model

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.likelihood_dimple import sample_answer_masks

PROMPTS = (make_prompt(3), make_prompt(4, [(4, 4)]))
ANSWERS = torch.tensor([[1, 4, 2], [3, 3, 0]])


def small_vocabulary_model() -> DimpleForConditionalGeneration:
    """A tiny model whose probabilities are over five tokens: all others have no chance."""
    model = tiny_model()

    def only_five(head: torch.nn.Module, args: tuple, logits: torch.Tensor) -> torch.Tensor:
        return logits.masked_fill(torch.arange(logits.shape[-1]) >= 5, -1e9) * 3

    model.lm_head.register_forward_hook(only_five)
    return model


def exact_bound(model: DimpleForConditionalGeneration, inputs: dict, answer: torch.Tensor) -> torch.Tensor:
    """LLaDA's equation 6 as a sum over all 7 masks of one row: 1/L sum over n, mean over masks of n tokens, L/n ..."""
    length, prompt_length = answer.shape[1], inputs["input_ids"].shape[1]
    total = torch.zeros(())
    for number in range(1, length + 1):
        for mask in itertools.combinations(range(length), number):
            ids = answer.clone()
            ids[0, list(mask)] = model.config.mask_token_id
            full = inputs | {"input_ids": torch.cat([inputs["input_ids"], ids], dim=1)}
            full["attention_mask"] = torch.ones_like(full["input_ids"])
            log_probs = model(**full).logits[0, prompt_length - 1 : -1].log_softmax(dim=-1)
            inner = sum(log_probs[index, answer[0, index]] for index in mask)
            total = total + inner * length / number / math.comb(length, number) / length
    return total


def test_bound_converges_to_the_enumerated_one() -> None:
    """Within four standard errors at 600 draws, for a text and for an image; left padding changes nothing."""
    model = small_vocabulary_model()
    with torch.no_grad():
        exact = torch.stack([
            exact_bound(model, model_inputs(prompt), answer[None])
            for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
        ])  # fmt: skip
        estimates = torch.stack([
            model.answer_log_likelihood(model_inputs(*PROMPTS), ANSWERS, num_samples=20, batch_size=16)
            for _ in range(30)
        ])  # fmt: skip
    error = estimates.std(dim=0) / math.sqrt(len(estimates))
    assert ((estimates.mean(dim=0) - exact).abs() < 4 * error + 1e-4).all()
    assert (error < 0.05 * exact.abs()).all()  # control: the test can tell
    assert abs(exact[0] - exact[1]) > 10 * error.max()


@pytest.mark.parametrize(("length", "ratio"), [(3, 0.5), (16, 0.1)])
def test_antithetic_masks_lower_the_variance(length: int, ratio: float) -> None:
    """
    Tokens of different difficulty, each harder the more of the others are masked, as in a trained model:
    log p = -difficulty * n / L. Pairs of masks against as many independent ones.
    """
    difficulty = 5 * torch.rand(length) ** 3
    answer_mask = torch.ones(20_000, length, dtype=torch.bool)

    def estimate(num_samples: int, antithetic: bool) -> torch.Tensor:
        masks = sample_answer_masks(answer_mask, num_samples, antithetic)
        numbers = masks.sum(dim=-1)
        log_probs = -(masks * difficulty).sum(dim=-1) * numbers / length
        return (log_probs * length / numbers).mean(dim=1)

    pairs, independent = estimate(2, True), (estimate(1, False) + estimate(1, False)) / 2
    error = float(independent.std()) / 20_000**0.5
    assert abs(float(pairs.mean() - independent.mean())) < 5 * error
    assert float(pairs.var()) < ratio * float(independent.var())


def test_gradient_is_that_of_the_enumeration() -> None:
    """Of one weight matrix; the estimate's error is measured over its own repetitions."""
    model, inputs = small_vocabulary_model(), model_inputs(PROMPTS[0])
    weight = model.model.layers[0].self_attn.q_proj.bias
    (exact,) = torch.autograd.grad(exact_bound(model, inputs, ANSWERS[:1]), weight)
    estimates = torch.stack([
        torch.autograd.grad(model.answer_log_likelihood(inputs, ANSWERS[:1], num_samples=24).sum(), weight)[0]
        for _ in range(25)
    ])  # fmt: skip
    error = estimates.std(dim=0) / math.sqrt(len(estimates))
    assert ((estimates.mean(dim=0) - exact).abs() < 5 * error + 1e-5).all()
    assert float((estimates.mean(dim=0) - exact).norm()) < 0.2 * float(exact.norm())
    assert float(exact.norm()) > 1e-3  # control


@pytest.mark.parametrize("antithetic", [False, True])
def test_masks_have_every_number_equally_often(antithetic: bool) -> None:
    """Numbers 1 to L uniform for rows of 5 and 3 tokens; every token masked equally often; padding never."""
    answer_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool().repeat(3000, 1)
    masks = sample_answer_masks(answer_mask, 2, antithetic)
    assert masks.shape == (6000, 2, 5)
    assert not (masks & ~answer_mask[:, None]).any()
    for row, length in ((0, 5), (1, 3)):
        of_row = masks[row::2].flatten(0, 1)
        numbers = of_row.sum(dim=1).bincount(minlength=length + 1)[1:].float() / 6000
        torch.testing.assert_close(numbers, torch.full((length,), 1 / length), rtol=0, atol=0.03)
        share = of_row[:, :length].float().mean(dim=0)
        torch.testing.assert_close(share, torch.full((length,), (length + 1) / 2 / length), rtol=0, atol=0.03)
    if antithetic:  # together a pair masks every token, and one of them twice
        assert (masks.any(dim=1) == answer_mask).all()
        assert (masks.all(dim=1).sum(dim=1) == 1).all()


def test_causal_likelihood_is_the_sum_of_next_token_log_probabilities(
    causal_model: DimpleForConditionalGeneration,
) -> None:
    inputs = model_inputs(*PROMPTS)
    answer_mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    found = causal_model.answer_log_likelihood(inputs, ANSWERS, answer_mask, batch_size=1)
    for row, prompt in enumerate(PROMPTS):
        alone = model_inputs(prompt)
        answer = ANSWERS[row : row + 1, : int(answer_mask[row].sum())]
        full = alone | {"input_ids": torch.cat([alone["input_ids"], answer], dim=1)}
        full["attention_mask"] = torch.ones_like(full["input_ids"])
        log_probs = causal_model(**full).logits[0, -answer.shape[1] - 1 : -1].log_softmax(dim=-1)
        expected = log_probs.gather(1, answer.T).sum()
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)


def test_one_step_estimate_masks_the_whole_answer(model: DimpleForConditionalGeneration) -> None:
    """One forward pass; masked prompts give another value, and the same one with the same generator."""
    inputs = model_inputs(PROMPTS[1])
    answer = ANSWERS[1:]
    masked = torch.full_like(answer, model.config.mask_token_id)
    full = inputs | {"input_ids": torch.cat([inputs["input_ids"], masked], dim=1)}
    full["attention_mask"] = torch.ones_like(full["input_ids"])
    with torch.no_grad():
        log_probs = model(**full).logits[0, -4:-1].log_softmax(dim=-1)
        found = model.answer_log_likelihood(inputs, answer, estimator="one_step")
        torch.testing.assert_close(found[0], log_probs.gather(1, answer.T).sum(), rtol=1e-4, atol=1e-4)
        perturbed = [
            model.answer_log_likelihood(
                inputs, answer, estimator="one_step", prompt_mask_probability=0.9,
                generator=torch.Generator().manual_seed(0),
            )
            for _ in range(2)
        ]  # fmt: skip
    assert torch.equal(*perturbed)
    assert not torch.allclose(perturbed[0], found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "guess"}, "`estimator` must be one of elbo, one_step"),
        ({"num_samples": 0}, "`num_samples` must be an integer >= 1"),
        ({"num_samples": 3}, "`num_samples` must be even with `antithetic=True`"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"prompt_mask_probability": 1.0, "estimator": "one_step"}, r"must lie in \[0, 1\)"),
        ({"prompt_mask_probability": 0.1}, 'must be used with `estimator`="one_step"'),
        ({"answer_ids": ANSWERS}, r"`answer_ids` must have shape \(1, answer_length\)"),
        ({"answer_attention_mask": torch.ones(1, 2)}, "`answer_attention_mask` must have the shape"),
        ({"answer_attention_mask": torch.tensor([[0, 1, 1]])}, "must have its zeros on the right"),
        ({"answer_attention_mask": torch.tensor([[1, 0, 1]])}, "must have its zeros on the right"),
        ({"inputs": {"labels": None}}, "`inputs` must hold input_ids, attention_mask"),
        ({"inputs": {}}, "`inputs` must hold `input_ids`"),
        (
            {"answer_ids": torch.ones(1, 10**6, dtype=torch.long)},
            "prompt and answer must fit `max_position_embeddings`",
        ),
    ],
)
def test_bad_arguments_are_refused(model: DimpleForConditionalGeneration, changes: dict, message: str) -> None:
    arguments = {"inputs": model_inputs(PROMPTS[0]), "answer_ids": ANSWERS[:1]} | changes
    with pytest.raises(ValueError, match=message):
        model.answer_log_likelihood(**arguments)


def test_mask_token_in_an_answer_is_refused(model: DimpleForConditionalGeneration) -> None:
    answer = torch.tensor([[1, model.config.mask_token_id]])
    with pytest.raises(ValueError, match="must not hold the mask token"):
        model.answer_log_likelihood(model_inputs(PROMPTS[0]), answer)

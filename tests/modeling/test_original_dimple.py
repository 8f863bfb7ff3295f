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
"""`diffusion_generate`: the original's names, defaults and habits, row by row; its tokens are in test_parity."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import MASK, MIXED_PROMPTS, PAD, model_inputs, parametrize_some, tiny_model
from transformers import GenerationConfig

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationOutput
from dimple_hf.modeling.canvas_dimple import CanvasRunner
from dimple_hf.modeling.original_dimple import PIPELINES, RANKINGS, OriginalOptions, denoise_as_original

LENGTH = 10
WIDTH = max(len(prompt.tokens) for prompt in MIXED_PROMPTS)


def run(model: DimpleForConditionalGeneration, *prompts: Any, **options: Any) -> DimpleGenerationOutput:
    given = {"max_new_tokens": LENGTH, "steps": LENGTH, "return_dict_in_generate": True, "output_history": True}
    return model.diffusion_generate(**model_inputs(*prompts), **(given | options))


def answers_of(output: DimpleGenerationOutput) -> list[list[int]]:
    return output.sequences[:, -LENGTH:].tolist()


def unmasked(output: DimpleGenerationOutput) -> torch.Tensor:
    """Positions unmasked at each step: bool of shape (steps, batch, answer)."""
    history = torch.stack([step[:, -LENGTH:] for step in output.history])
    before = torch.cat([torch.full_like(history[:1], MASK), history[:-1]])
    return (before == MASK) & (history != MASK)


# Options


def test_options_without_arguments_are_the_originals_defaults() -> None:
    """`origin`, 512 steps, greedy, no threshold, no cache, 20 tokens with the prompt."""
    options = OriginalOptions.collect(None, {})
    expected = {"alg": "origin", "steps": 512, "eps": 1e-3, "temperature": 0.0, "top_p": None, "top_k": None,
                "alg_temp": None, "alg_p_threshold": None, "use_original_confidence": True,
                "decoding_pipeline": "dim", "use_cache": False, "max_length": 20,
                "num_return_sequences": 1}  # fmt: skip
    assert {name: getattr(options, name) for name in expected} == expected
    assert options.answer_length(7) == 13


def test_options_of_an_object_count_and_keywords_win(model: DimpleForConditionalGeneration) -> None:
    """Any object will do, as the original's own configuration class is not here; `None` means not set."""
    config = SimpleNamespace(alg="entropy", steps=7, temperature=None, max_new_tokens=4, unknown=1)
    kwargs = {"steps": 3, "pixel_values": 1}
    options = OriginalOptions.collect(config, kwargs)
    assert (options.alg, options.steps, options.temperature, options.max_new_tokens) == ("entropy", 3, 0.0, 4)
    assert kwargs == {"pixel_values": 1}  # model inputs stay for the model
    inputs = model_inputs(*MIXED_PROMPTS)
    expected = model.diffusion_generate(**inputs, alg="entropy", steps=3, max_new_tokens=4)
    assert torch.equal(model.diffusion_generate(**inputs, generation_config=config, steps=3), expected)
    # transformers' object carries what it can: lengths and tokens
    plain = GenerationConfig(max_new_tokens=4)
    got = model.diffusion_generate(**inputs, generation_config=plain, alg="entropy", steps=3)
    assert torch.equal(got, expected)
    assert not torch.equal(model.diffusion_generate(**inputs, generation_config=config, steps=1), expected)  # control


def test_options_ignore_the_models_generation_config(model: DimpleForConditionalGeneration) -> None:
    """As the original: only an object that is passed counts. Its `threshold` and `max_new_tokens` are not read."""
    changed = tiny_model()
    changed.generation_config.max_new_tokens = 3
    changed.generation_config.confidence_threshold = 1e-6
    inputs = model_inputs(*MIXED_PROMPTS)
    options = {"max_new_tokens": 6, "steps": 6, "alg": "maskgit_plus"}
    assert torch.equal(changed.diffusion_generate(**inputs, **options), model.diffusion_generate(**inputs, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alg": "maskgit"}, "`alg` must be one of maskgit_plus, .* \\(got 'maskgit'\\); did you mean `maskgit_plus`"),
        ({"alg": "confidence"}, "`alg` must be one of .* \\(got 'confidence'\\)$"),
        ({"decoding_pipeline": "dreams"}, "`decoding_pipeline` must be one of dim, dream .*mean `dream`"),
        ({"algo": "entropy"}, "`algo` must be an option of the original or a model input; did you mean `alg`\\?"),
        ({"unmasking": "margin"}, "`unmasking` must be an option of the original"),
        ({"alg": ["origin"]}, "`alg` must be one of .* \\(got \\['origin'\\]\\)"),
        ({"steps": 10**9}, "`steps` must be at most 65536 \\(got 1000000000\\)"),
        ({"steps": 0}, "`steps` must be an integer >= 1 \\(got 0\\)"),
        ({"steps": None}, "`steps` must be an integer >= 1 \\(got None\\)"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be an integer >= 1"),
        ({"num_return_sequences": 0}, "`num_return_sequences` must be an integer >= 1"),
        ({"top_k": 0}, "`top_k` must be an integer >= 1"),
        ({"eps": 0.0}, "`eps` must lie in \\(0, 1\\) \\(got 0.0\\)"),
        ({"eps": 1.0}, "`eps` must lie in \\(0, 1\\)"),
        ({"eps": None}, "`eps` must lie in \\(0, 1\\) \\(got None\\)"),
        ({"temperature": -0.1}, "`temperature` must be a number >= 0 \\(got -0.1\\)"),
        ({"temperature": None}, "`temperature` must be a number >= 0 \\(got None\\)"),
        ({"alg_temp": -1.0}, "`alg_temp` must be a number >= 0"),
        ({"top_p": 1.5}, "`top_p` must lie in \\[0, 1\\] \\(got 1.5\\)"),
        ({"alg_p_threshold": -0.5}, "`alg_p_threshold` must lie in \\[0, 1\\]"),
        ({"alg_p_threshold": "0.5"}, "`alg_p_threshold` must lie in .* \\(got '0.5'\\)"),
        ({"max_new_tokens": None}, "`max_length` must leave room .* prompt of 33 tokens, or .*max_length=20\\)"),
    ],
)
def test_bad_option_is_refused_before_any_pass(options: dict[str, Any], message: str) -> None:
    """The original accepts unknown names in silence and fails on the others in the middle."""
    model = tiny_model()
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        run(model, *MIXED_PROMPTS, **options)
    handle.remove()
    assert run(model, *MIXED_PROMPTS).sequences.shape == (4, WIDTH + LENGTH)  # control


def test_causal_checkpoint_is_refused(causal_model: DimpleForConditionalGeneration) -> None:
    """Its weights have never seen a masked answer."""
    with pytest.raises(ValueError, match="`diffusion_generate` must be used in bidirectional mode"):
        causal_model.diffusion_generate(**model_inputs(MIXED_PROMPTS[0]), max_new_tokens=2)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"ranking": "random", "schedule": "adaptive", "draws_positions": False, "threshold": math.inf}),
        ({"alg": "origin-ratio"}, {"ranking": "random", "draws_positions": True}),
        ({"decoding_pipeline": "dream"}, {"schedule": "fixed", "draws_positions": True, "is_dim": False}),
        ({"alg": "autoregressive"}, {"ranking": "left_to_right"}),
        ({"alg": "maskgit_plus", "alg_p_threshold": 0.9}, {"ranking": "confidence", "threshold": 0.9}),
        ({"alg": "maskgit_plus", "alg_p_threshold": 0}, {"threshold": math.inf}),
        (
            {"alg": "topk_margin", "alg_p_threshold": 0.9, "decoding_pipeline": "dream"},
            {"ranking": "margin", "threshold": math.inf},
        ),
        ({"alg": "entropy", "alg_p_threshold": 0.9}, {"ranking": "entropy", "threshold": math.inf}),
        ({"alg": "topk_margin", "alg_temp": 0.5}, {"ranking_temperature": 0.5}),
        ({"alg": "topk_margin", "alg_temp": 0.0}, {"ranking_temperature": None}),
        ({"alg": "origin", "alg_temp": 0.5}, {"ranking_temperature": None}),
    ],
)
def test_options_mean_what_they_mean_to_the_original(options: dict[str, Any], expected: dict[str, Any]) -> None:
    """One table for all of them."""
    given = OriginalOptions(**options)
    found = {
        "ranking": RANKINGS[given.alg],
        "schedule": PIPELINES[given.decoding_pipeline],
        **{name: getattr(given, name) for name in ("draws_positions", "threshold", "ranking_temperature", "is_dim")},
    }
    assert {name: found[name] for name in expected} == expected


# The loop, on scripted scores


class ScriptedRunner(CanvasRunner):
    """Token 1, 2, .. at the positions of an answer of given probabilities; the rest is spread evenly."""

    def __init__(self, *probabilities: list[float]) -> None:
        probability = torch.tensor(probabilities)[..., None]
        tokens = torch.arange(1, probability.shape[1] + 1).expand(len(probability), -1)
        self.table = ((1 - probability) / 9).expand(-1, -1, 10).scatter(2, tokens[..., None], probability).log()
        self.input_ids = torch.arange(len(probability))[:, None]
        self.num_passes = 0

    def logits(self, answer: torch.Tensor, positions: torch.Tensor, num_positions: int | None = None) -> torch.Tensor:
        self.num_passes += 1
        return self.table[positions]

    def all_logits(self, answer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_passes += 1
        whole = torch.cat([torch.zeros(len(answer), 1, 10), self.table], dim=1)
        return torch.cat([self.input_ids, answer], dim=1), whole


def scripted(runner: ScriptedRunner, **options: Any) -> tuple[list[list[list[int]]], list[int]]:
    """The answers after each step, 0 at masked positions, and the passes of each row."""
    canvas = torch.zeros(runner.table.shape[:2], dtype=torch.long)
    _, history, num_passes = denoise_as_original(runner, canvas, 0, OriginalOptions(**options))
    return [step.tolist() for step in history], num_passes.tolist()


def test_confidence_is_taken_after_the_filters_on_request() -> None:
    """Of 0.4 and the rest, top_k=1 leaves probability 1: above any threshold; before the filter it is 0.4."""
    options: dict[str, Any] = {"alg": "maskgit_plus", "alg_p_threshold": 0.5, "top_k": 1, "steps": 4}
    for original, first in ((False, [[1, 2]]), (True, [[1, 0]])):
        history, _ = scripted(ScriptedRunner([0.4, 0.3]), use_original_confidence=original, eps=0.3, **options)
        assert history[0] == first


def test_autoregressive_order_ends_when_the_steps_do() -> None:
    """One position a step, also in the last one; with a threshold the last step unmasks all."""
    options: dict[str, Any] = {"alg": "autoregressive", "steps": 2}
    assert scripted(ScriptedRunner([0.3, 0.2, 0.9]), **options) == ([[[1, 0, 0]], [[1, 2, 0]]], [2])
    history, _ = scripted(ScriptedRunner([0.4, 0.2, 0.3]), alg_p_threshold=0.95, **options)
    assert history[-1] == [[1, 2, 3]]


def test_dreams_pipeline_repeats_the_answer_without_running_the_model() -> None:
    """It returns a history of all steps; nothing need be computed for the last ones."""
    runner = ScriptedRunner([0.9, 0.9])
    options: dict[str, Any] = {"alg": "autoregressive", "steps": 5}
    history, passes = scripted(runner, decoding_pipeline="dream", **options)
    assert history == [[[1, 0]], [[1, 2]], [[1, 2]], [[1, 2]], [[1, 2]]]
    assert passes == [2]
    assert runner.num_passes == 2
    assert len(scripted(ScriptedRunner([0.9, 0.9]), **options)[0]) == 2  # control


def test_hooks_may_mask_again_and_are_called_in_all_steps_of_dreams_pipeline() -> None:
    """What a hook masks again is unmasked again; in that step the row was finished, which is no pass of its own."""
    steps: list[int | None] = []

    def mask_again(step: int | None, sequences: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        steps.append(step)
        if step == 1:
            sequences[0, 1] = 0
        return sequences

    runner = ScriptedRunner([0.9, 0.9, 0.9], [0.2, 0.3, 0.4])
    options: dict[str, Any] = {"alg": "maskgit_plus", "alg_p_threshold": 0.5}
    options["generation_tokens_hook_func"] = mask_again
    history, passes = scripted(runner, steps=4, **options)
    assert history[-1] == [[1, 2, 3], [1, 2, 3]]
    assert history[1][0] == [0, 2, 3]
    assert history[2][0] == [1, 2, 3]
    assert passes[0] == 2
    steps.clear()
    history, _ = scripted(ScriptedRunner([0.9] * 3), steps=6, decoding_pipeline="dream", **options)
    assert steps == [None, 0, 1, 2, 3, 4, 5]
    assert len(history) == 6


@pytest.mark.parametrize(
    "rewrite",
    [
        pytest.param(lambda step, sequences, logits: sequences[:, :-1], id="shape"),
        pytest.param(lambda step, sequences, logits: sequences + 1, id="prompt"),
    ],
)
def test_hook_that_changes_the_prompt_or_the_shape_is_refused(rewrite: Any) -> None:
    """The cache already holds the prompt."""
    with pytest.raises(ValueError, match="`generation_tokens_hook_func` must keep the prompt and the shape"):
        scripted(ScriptedRunner([0.5, 0.5]), generation_tokens_hook_func=rewrite)
    scripted(ScriptedRunner([0.5, 0.5]), generation_tokens_hook_func=lambda step, sequences, logits: sequences)


@pytest.mark.parametrize("alg", ["maskgit_plus", "entropy"])
def test_alg_temp_draws_by_the_softmax_of_the_originals_confidences(alg: str) -> None:
    """Weights are softmax(c / T); of entropies c is -H, and our confidence is exp(-H), so that 0.9 wins 3 to 1."""
    options = OriginalOptions(alg=alg, alg_temp=1.0, steps=4)
    confidence = torch.tensor([[0.9, 0.3]]).expand(8000, 2)
    masked = torch.ones(8000, 2, dtype=torch.bool)
    chosen = options.choose_positions(0, masked, confidence, torch.full((8000,), 2))
    share = chosen[:, 0].float().mean().item()
    assert share == pytest.approx(0.75 if alg == "entropy" else 1 / (1 + math.exp(-0.6)), abs=0.02)


def test_logits_that_are_not_finite_are_refused() -> None:
    """As in `generate`: an argmax over NaN is a token like any other."""
    runner = ScriptedRunner([0.5, 0.5])
    runner.table = runner.table.clone()
    runner.table[0, 1, 4] = math.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(ValueError, match="the logits must never be NaN"):
            scripted(runner, temperature=temperature)


# Rows


@parametrize_some(
    4,
    threshold=[None, 0.4],
    alg=["maskgit_plus", "topk_margin", "entropy", "autoregressive"],
    pipeline=["dim", "dream"],
    use_cache=[True, False],
)
def test_rows_of_a_batch_equal_the_rows_alone(
    model: DimpleForConditionalGeneration, alg: str, pipeline: str, threshold: float | None, use_cache: bool
) -> None:
    """The original computes budget, ranking and fallback over the whole batch: the fault that this package repairs."""
    options: dict[str, Any] = {
        "alg": alg, "decoding_pipeline": pipeline, "alg_p_threshold": threshold, "use_cache": use_cache, "steps": 7
    }  # fmt: skip
    together = run(model, *MIXED_PROMPTS, **options)
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = run(model, prompt, **options)
        assert answers_of(together)[row] == answers_of(alone)[0]
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
        steps = [step[row, -LENGTH:].tolist() for step in together.history]
        assert steps[: len(alone.history)] == [step[0, -LENGTH:].tolist() for step in alone.history]
    assert len({tuple(row) for row in answers_of(together)}) == len(MIXED_PROMPTS)  # control


def test_answers_do_not_stop_at_an_end_token() -> None:
    """Unlike `generate`: the same token in the middle is kept, with what follows it."""
    model = tiny_model()
    options = {"alg": "maskgit_plus", "alg_p_threshold": 0.5}
    rows = answers_of(run(model, *MIXED_PROMPTS, **options))
    end = rows[1][3]
    assert answers_of(run(model, *MIXED_PROMPTS, **options, eos_token_id=end, pad_token_id=end)) == rows
    # control: `generate` does stop
    inputs = model_inputs(*MIXED_PROMPTS)
    end = model.generate(**inputs, max_new_tokens=LENGTH)[1, -LENGTH + 3].item()
    assert model.generate(**inputs, max_new_tokens=LENGTH, eos_token_id=end)[1, -1] == PAD


def test_plain_call_returns_sequences(model: DimpleForConditionalGeneration) -> None:
    """The original's return value; figures only on request, and the prompt may be positional."""
    inputs = model_inputs(*MIXED_PROMPTS)
    options = {"alg": "maskgit_plus", "steps": LENGTH, "max_new_tokens": LENGTH}
    sequences = model.diffusion_generate(**inputs, **options)
    output = model.diffusion_generate(**inputs, **options, return_dict_in_generate=True)
    assert torch.equal(sequences, output.sequences)
    assert output.history is None
    torch.testing.assert_close(output.tokens_per_forward, LENGTH / output.num_forward_passes)
    positional = {name: value for name, value in inputs.items() if name != "input_ids"}
    assert torch.equal(model.diffusion_generate(inputs["input_ids"], **positional, **options), sequences)


def test_max_length_counts_the_prompt(model: DimpleForConditionalGeneration) -> None:
    """20 with the prompt by default, and `max_new_tokens` wins."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    options = {"alg": "maskgit_plus", "steps": 4}
    assert model.diffusion_generate(**inputs, **options).shape == (1, 20)
    assert model.diffusion_generate(**inputs, **options, max_length=9).shape == (1, 9)
    assert model.diffusion_generate(**inputs, **options, max_length=9, max_new_tokens=7).shape == (1, 12)


@pytest.mark.parametrize("use_cache", [True, False])
def test_several_sequences_for_prompts_with_images(model: DimpleForConditionalGeneration, use_cache: bool) -> None:
    """The original raises."""
    options: dict[str, Any] = {"alg": "maskgit_plus", "use_cache": use_cache}
    greedy = run(model, *MIXED_PROMPTS, **options)
    copies = run(model, *MIXED_PROMPTS, **options, num_return_sequences=2)
    assert torch.equal(copies.sequences, greedy.sequences.repeat_interleave(2, dim=0))
    drawn = run(model, *MIXED_PROMPTS, **options, num_return_sequences=2, temperature=2.0)
    assert drawn.sequences.shape == copies.sequences.shape
    assert not torch.equal(drawn.sequences[::2], drawn.sequences[1::2])  # control


def test_vision_tower_runs_once() -> None:
    """The original runs it at every step without the cache."""
    model = tiny_model()
    calls: list[int] = []
    model.visual.register_forward_pre_hook(lambda module, args: calls.append(1))
    assert run(model, *MIXED_PROMPTS, alg="maskgit_plus", use_cache=False).num_forward_passes.min() > 1
    assert calls == [1]


# Chance


def test_same_seed_gives_the_same_tokens(model: DimpleForConditionalGeneration) -> None:
    """For all that is drawn: orders, positions and tokens."""
    for options in ({"alg": "origin"}, {"alg": "origin-ratio"}, {"alg": "maskgit_plus", "alg_temp": 0.5},
                    {"alg": "entropy", "temperature": 1.5, "decoding_pipeline": "dream"}):  # fmt: skip
        outputs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            outputs.append(run(model, *MIXED_PROMPTS, **options))
        assert [step.tolist() for step in outputs[0].history] == [step.tolist() for step in outputs[1].history]
        assert [s.tolist() for s in outputs[0].history] != [s.tolist() for s in outputs[2].history]  # control


def many(length: int = 300) -> list[Any]:
    return [MIXED_PROMPTS[0]] * length


def test_origin_unmasks_the_schedules_number_of_positions_at_random(model: DimpleForConditionalGeneration) -> None:
    """dim: 10 positions in 10 steps, times 1, 0.9001, ..: int(10 * 0.0999) is none, so two steps' worth unmasks
    one."""
    first = unmasked(run(model, *many(), alg="origin", steps=LENGTH))[0]
    assert (first.sum(dim=1) == 1).all()
    share = first.float().mean(dim=0)
    torch.testing.assert_close(share, torch.full((LENGTH,), 0.1), rtol=0, atol=0.07)  # standard error 0.017


def test_origin_ratio_unmasks_each_position_with_the_schedules_share(model: DimpleForConditionalGeneration) -> None:
    """dim, 5 steps: t = 0.8002 unmasks int(10 * 0.1998) = 1 position, so each has probability 0.1998."""
    first = unmasked(run(model, *many(), alg="origin-ratio", steps=5))[0]
    assert first.float().mean().item() == pytest.approx(0.1998, abs=0.03)
    assert len(set(first.sum(dim=1).tolist())) > 2  # control: by chance, not by count


def test_origin_of_the_dream_pipeline_unmasks_each_position_with_the_steps_share() -> None:
    """1 - s / t: 0.1998 of all, then 0.2497 of the rest; everything in the last step, and all steps in the history."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[MASK] = 0  # never the most probable token, which the original would write
    output = run(model, *many(), alg="origin", decoding_pipeline="dream", steps=5)
    steps = unmasked(output).float()
    assert len(output.history) == 5
    assert steps[0].mean().item() == pytest.approx(0.1998, abs=0.03)
    assert steps[1].sum().item() / (1 - steps[0]).sum().item() == pytest.approx(0.2497, abs=0.03)
    assert not (output.sequences == MASK).any()


def test_alg_temp_draws_the_order(model: DimpleForConditionalGeneration) -> None:
    """With a tiny temperature the order is that of the confidences, with a large one it is drawn."""
    greedy = unmasked(run(model, *many(20), alg="maskgit_plus"))
    cold = unmasked(run(model, *many(20), alg="maskgit_plus", alg_temp=1e-5))
    hot = unmasked(run(model, *many(20), alg="maskgit_plus", alg_temp=100.0))
    assert torch.equal(greedy, cold)
    assert not torch.equal(greedy, hot)
    assert len({tuple(row.tolist()) for row in hot[0]}) > 3
    assert torch.equal(greedy.sum(dim=2)[0], hot.sum(dim=2)[0])  # as many as without


def test_dream_pipeline_at_a_temperature_ranks_by_filtered_confidence(model: DimpleForConditionalGeneration) -> None:
    """`top_k=1` leaves probability 1 at every position: all rank alike, so the order is from left to right."""
    options: dict[str, Any] = {"alg": "maskgit_plus", "temperature": 0.8, "top_k": 1, "steps": LENGTH}
    dream = unmasked(run(model, *MIXED_PROMPTS, **options, decoding_pipeline="dream"))
    order = [row.nonzero()[:, 1].tolist() for row in dream.permute(1, 0, 2)]
    assert order == [list(range(LENGTH))] * 4
    dim = unmasked(run(model, *MIXED_PROMPTS, **options))
    assert [row.nonzero()[:, 1].tolist() for row in dim.permute(1, 0, 2)] != order  # control: original confidence
    drawn = run(model, *many(20), alg="maskgit_plus", temperature=2.0, decoding_pipeline="dream")
    assert len({tuple(row) for row in answers_of(drawn)}) > 10


def test_autoregressive_unmasks_one_position_a_step(model: DimpleForConditionalGeneration) -> None:
    """In both pipelines; with too few steps the rest stays masked, as in the original."""
    for pipeline in ("dim", "dream"):
        output = run(model, *MIXED_PROMPTS, alg="autoregressive", decoding_pipeline=pipeline, steps=4)
        assert [(step[:, -LENGTH:] != MASK).sum(dim=1).tolist() for step in output.history] == [
            [1] * 4, [2] * 4, [3] * 4, [4] * 4,
        ]  # fmt: skip
        assert (output.sequences[:, -LENGTH + 4 :] == MASK).all()


# Hooks


@pytest.mark.parametrize("use_cache", [True, False])
def test_hooks_are_called_as_the_original_calls_them(model: DimpleForConditionalGeneration, use_cache: bool) -> None:
    """Tokens: `(None, x, None)`, then after each step with the hook's logits. Logits: over the positions run."""
    calls: list[tuple[str, int | None, tuple[int, ...]]] = []
    returned: list[torch.Tensor] = []

    def tokens_hook(step: int | None, x: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        calls.append(("tokens", step, tuple(x.shape)))
        assert logits is (returned[-1] if step is not None else None)
        return x

    def logits_hook(step: int, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        assert x.shape == logits.shape[:2]
        calls.append(("logits", step, tuple(x.shape)))
        returned.append(logits)
        return logits

    options: dict[str, Any] = {"alg": "maskgit_plus", "steps": 3, "use_cache": use_cache}
    hooks = {"generation_tokens_hook_func": tokens_hook, "generation_logits_hook_func": logits_hook}
    output = run(model, *MIXED_PROMPTS, **options, **hooks)
    whole, later = (4, WIDTH + LENGTH), (4, LENGTH + 1 if use_cache else WIDTH + LENGTH)
    assert calls == [
        ("tokens", None, whole),
        ("logits", 0, whole), ("tokens", 0, whole),
        ("logits", 1, later), ("tokens", 1, whole),
        ("logits", 2, later), ("tokens", 2, whole),
    ]  # fmt: skip
    plain = run(model, *MIXED_PROMPTS, **options)
    assert answers_of(output) == answers_of(plain)  # hooks that do nothing change nothing
    assert output.num_forward_passes.tolist() == plain.num_forward_passes.tolist()


def test_tokens_hook_writes_a_prior_and_logits_hook_forbids_a_token(model: DimpleForConditionalGeneration) -> None:
    """What they are for: fixed tokens before the first step, and a vocabulary of one's own."""
    plain = answers_of(run(model, *MIXED_PROMPTS, alg="maskgit_plus"))
    common = plain[0][0]

    def prior(step: int | None, x: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        if step is None:
            x[:, -LENGTH + 2] = 17
        return x

    def forbid(step: int, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits[..., [common, MASK]] = -torch.inf
        return logits

    output = run(
        model,
        *MIXED_PROMPTS,
        alg="maskgit_plus",
        generation_tokens_hook_func=prior,
        generation_logits_hook_func=forbid,
    )
    assert all(row[2] == 17 for row in answers_of(output))
    assert all(common not in row for row in answers_of(output))
    assert common in plain[0]  # control
    assert (output.num_forward_passes * output.tokens_per_forward).tolist() == [LENGTH - 1] * 4  # the prior is free
    # rows with a hook are as independent as without
    for row, prompt in enumerate(MIXED_PROMPTS):
        alone = run(
            model, prompt, alg="maskgit_plus", generation_tokens_hook_func=prior, generation_logits_hook_func=forbid
        )
        assert answers_of(alone)[0] == answers_of(output)[row]


def test_tokens_hook_that_changes_the_prompt_is_refused(model: DimpleForConditionalGeneration) -> None:
    """The original says so, too."""
    with pytest.raises(ValueError, match="`generation_tokens_hook_func` must keep the prompt"):
        run(model, MIXED_PROMPTS[0], generation_tokens_hook_func=lambda step, x, logits: x + 1)

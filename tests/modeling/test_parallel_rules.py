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
"""Every parallel rule in `generate`, with a model: batches, blocks, sampling, streaming, and what it refuses."""

from typing import Any

import pytest
import torch
from helpers import EOS, MASK, PAD, model_inputs, tiny_model
from helpers import MIXED_PROMPTS as PROMPTS
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationConfig

LENGTH = 11

#: Options under which a model of random weights does decide several positions at once.
RULES: dict[str, dict[str, Any]] = {
    "threshold": {"confidence_threshold": 0.3},
    "factor": {"confidence_factor": 2.4},
    "entropy_bound": {"entropy_bound": 3.0},
    "klass": {"confidence_threshold": 0.2, "kl_threshold": 0.7, "kl_history_length": 1},
    "prophet": {"confidence_threshold": None, "gap_thresholds": [2.0, 1.0, 0.5]},
    "wino": {"draft_threshold": 0.25, "verify_threshold": 0.3},
}


@pytest.fixture(scope="module")
def model() -> DimpleForConditionalGeneration:
    """Weights under which every rule finds something to do."""
    return tiny_model(seed=3)


def options_of(rule: str, **changes: Any) -> dict[str, Any]:
    return {"parallel_rule": rule, "max_new_tokens": LENGTH, "return_dict_in_generate": True} | RULES[rule] | changes


@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("rule", RULES)
def test_rows_of_a_batch_equal_the_rows_alone_under_every_rule(
    model: DimpleForConditionalGeneration, rule: str, block_length: int | None
) -> None:
    """Prompts of different lengths, with and without images; answers that end at different passes."""
    options = options_of(rule, block_length=block_length, output_history=True)
    together = model.generate(**model_inputs(*PROMPTS), **options)
    answers = together.sequences[:, -LENGTH:]
    assert (answers != MASK).all()
    for row, prompt in enumerate(PROMPTS):
        alone = model.generate(**model_inputs(prompt), **options)
        assert torch.equal(answers[row], alone.sequences[0, -LENGTH:])
        assert together.num_forward_passes[row] == alone.num_forward_passes[0]
        for step, other in zip(together.history, alone.history, strict=False):
            assert torch.equal(step[row, -LENGTH:], other[0, -LENGTH:])
    assert (together.num_forward_passes <= LENGTH).all()


def test_every_rule_and_blocks_decode_in_their_own_way(model: DimpleForConditionalGeneration) -> None:
    """The control of the test above: the options are read, and each rule unmasks several positions at once."""
    histories = {}
    for rule in RULES:
        for block_length in (None, 4):
            output = model.generate(
                **model_inputs(*PROMPTS), **options_of(rule, block_length=block_length, output_history=True)
            )
            histories[rule, block_length] = [step[:, -LENGTH:].tolist() for step in output.history]
            # In a block of four, to verify drafts costs what they save.
            if (rule, block_length) != ("wino", 4):
                assert (output.num_forward_passes < LENGTH).any(), rule
    assert len({str(history) for history in histories.values()}) == len(histories)


@pytest.mark.parametrize("rule", RULES)
def test_steps_and_sequences_and_sampling_work_under_every_rule(
    model: DimpleForConditionalGeneration, rule: str
) -> None:
    """Few steps bound the passes; a seed repeats what was drawn; sequences of one prompt differ, the first choice
    of a distribution cut to one token does not."""
    inputs = model_inputs(*PROMPTS[:2])
    few = model.generate(**inputs, **options_of(rule, max_denoising_steps=3, block_length=4))
    assert (few.num_forward_passes <= 3).all()
    assert (few.sequences != MASK).all()
    sampling = {"do_sample": True, "num_return_sequences": 2}
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model.generate(**inputs, **options_of(rule, temperature=2.0, **sampling)).sequences)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0][::2], drawn[0][1::2])
    surest = model.generate(**inputs, **options_of(rule, top_k=1, **sampling)).sequences
    assert torch.equal(surest, model.generate(**inputs, **options_of(rule)).sequences.repeat_interleave(2, dim=0))


def test_threshold_rule_is_what_generate_does_by_default(model: DimpleForConditionalGeneration) -> None:
    """Naming it changes nothing, nor does a block as long as the answer when the rule finds a position in every
    pass."""
    inputs = model_inputs(*PROMPTS)
    by_default = model.generate(**inputs, max_new_tokens=LENGTH)
    assert torch.equal(by_default, model.generate(**inputs, max_new_tokens=LENGTH, parallel_rule="threshold"))
    low = {"confidence_threshold": 1e-3, "max_new_tokens": LENGTH}
    assert torch.equal(model.generate(**inputs, **low), model.generate(**inputs, **low, block_length=LENGTH))
    other = model.generate(**inputs, max_new_tokens=LENGTH, parallel_rule="entropy_bound", entropy_bound=9.0)
    assert not torch.equal(by_default, other)  # control


@pytest.mark.parametrize("rule", RULES)
def test_answer_canvas_is_kept_under_every_rule(model: DimpleForConditionalGeneration, rule: str) -> None:
    """Fixed tokens are neither generated nor verified."""
    canvas = torch.full((2, LENGTH), MASK)
    canvas[0, 3:6], canvas[1, 0], canvas[1, 8] = 7, 8, 9
    options = options_of(rule, block_length=3, output_history=True)
    output = model.generate(**model_inputs(*PROMPTS[:2]), answer_ids=canvas, **options)
    for step in (*output.history, output.sequences):
        assert torch.equal(step[:, -LENGTH:][canvas != MASK], canvas[canvas != MASK])


# Streaming


class Recorder(BaseStreamer):
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.sizes: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()
        self.sizes.append(value.numel())

    def end(self) -> None:
        pass


@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("rule", RULES)
def test_streamed_tokens_are_those_of_the_answer_under_every_rule(
    model: DimpleForConditionalGeneration, rule: str, block_length: int | None
) -> None:
    """A rule that takes back streams a token only when it stays; with blocks, at the end of each."""
    recorder = Recorder()
    # With so many steps no block comes to its last one, from which on nothing is taken back.
    options = options_of(rule, block_length=block_length, output_history=True, max_denoising_steps=60)
    output = model.generate(**model_inputs(PROMPTS[1]), streamer=recorder, **options)
    assert recorder.tokens == output.sequences[0].tolist()
    if rule == "wino":
        masked_again = [
            bool(((after == MASK) & (before != MASK)).any())
            for before, after in zip(output.history, output.history[1:], strict=False)
        ]
        assert any(masked_again)  # control: something was taken back
        prompt, *steps = recorder.sizes
        assert sum(size > 0 for size in steps) == (1 if block_length is None else 3)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parallel_rule": "entropy_bond"}, "`parallel_rule` must be one of .*; did you mean `entropy_bound`\\?"),
        ({"confidence_factor": 2.0}, "`confidence_factor` must be used with `parallel_rule` 'factor' .*'threshold'"),
        (
            {"parallel_rule": "factor", "confidence_threshold": 0.5},
            "`confidence_threshold` must be used with `parallel_rule` 'threshold' or 'klass' or 'prophet' "
            r"\(got 0.5 with 'factor'\)",
        ),
        (
            {"parallel_rule": "wino", "confidence_threshold": None},
            r"`confidence_threshold` .*\(got None with 'wino'\)",
        ),
        ({"parallel_rule": "klass", "draft_threshold": 0.5}, "`draft_threshold` must be used with .*'wino'"),
        (
            {"parallel_rule": "factor", "confidence_factor": 0},
            r"`confidence_factor` must be a positive number \(got 0\)",
        ),
        (
            {"parallel_rule": "factor", "confidence_factor": float("inf")},
            "`confidence_factor` must be a positive .*inf",
        ),
        ({"parallel_rule": "factor", "confidence_factor": "high"}, "`confidence_factor` must be a positive .*'high'"),
        ({"parallel_rule": "klass", "kl_threshold": -0.1}, "`kl_threshold` must be a positive number"),
        ({"parallel_rule": "klass", "kl_history_length": 0}, "`kl_history_length` must be an integer >= 1"),
        ({"parallel_rule": "entropy_bound", "entropy_bound": -1}, r"`entropy_bound` must be a number >= 0 \(got -1\)"),
        ({"parallel_rule": "wino", "draft_threshold": 0.0}, r"`draft_threshold` must lie in \(0, 1\]"),
        ({"parallel_rule": "wino", "verify_threshold": 1.5}, r"`verify_threshold` must lie in \(0, 1\]"),
        ({"parallel_rule": "prophet", "gap_thresholds": [1, 2]}, "`gap_thresholds` must be three numbers >= 0"),
        ({"parallel_rule": "prophet", "gap_thresholds": [1, 2, -3]}, "`gap_thresholds` must be three numbers >= 0"),
        ({"parallel_rule": "prophet", "gap_thresholds": "high"}, "`gap_thresholds` must be three numbers .*'high'"),
        ({"block_length": 0}, r"`block_length` must be an integer >= 1 \(got 0\)"),
    ],
)
def test_rule_option_that_is_wrong_is_refused_before_any_pass(options: dict[str, Any], message: str) -> None:
    """By the configuration, and by `generate`."""
    with pytest.raises(ValueError, match=message):
        DimpleGenerationConfig(**options)
    model = tiny_model()
    model.model.layers[0].register_forward_pre_hook(lambda module, args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        model.generate(**model_inputs(PROMPTS[0]), **options)


def test_rule_option_limits_are_accepted() -> None:
    """The control of the refusals: what lies just inside."""
    DimpleGenerationConfig(parallel_rule="factor", confidence_factor=1e-3)
    DimpleGenerationConfig(parallel_rule="entropy_bound", entropy_bound=0)
    DimpleGenerationConfig(parallel_rule="klass", kl_threshold=1e-6, kl_history_length=1, confidence_threshold=None)
    DimpleGenerationConfig(parallel_rule="prophet", gap_thresholds=(0, 0.5, 9))
    DimpleGenerationConfig(parallel_rule="wino", draft_threshold=1e-6, verify_threshold=1, block_length=1)


def test_rule_options_have_the_rules_defaults_where_nothing_is_set() -> None:
    """As their papers or their code have them."""
    assert DimpleGenerationConfig().rule_options() == {}
    defaults = {rule: DimpleGenerationConfig(parallel_rule=rule).rule_options() for rule in RULES}
    assert defaults == {
        "threshold": {},
        "factor": {"confidence_factor": 1.0},
        "entropy_bound": {"entropy_bound": 0.1},
        "klass": {"kl_threshold": 0.01, "kl_history_length": 2},
        "prophet": {"gap_thresholds": (7.5, 5.0, 2.5)},
        "wino": {"draft_threshold": 0.6, "verify_threshold": 0.9},
    }
    config = DimpleGenerationConfig(parallel_rule="klass", kl_history_length=3)
    assert config.rule_options() == {"kl_threshold": 0.01, "kl_history_length": 3}


def test_steps_fewer_than_blocks_are_refused(model: DimpleForConditionalGeneration) -> None:
    """Each block needs one; 11 positions are four blocks of 3."""
    inputs = model_inputs(PROMPTS[0])
    options = {"max_new_tokens": LENGTH, "block_length": 3}
    with pytest.raises(
        ValueError, match=r"`max_denoising_steps` must be at least the 4 blocks of 3 positions \(got 3\)"
    ):
        model.generate(**inputs, **options, max_denoising_steps=3)
    model.generate(**inputs, **options, max_denoising_steps=4)  # control
    model.generate(**inputs, max_new_tokens=LENGTH, max_denoising_steps=1)  # control: without blocks one will do


def test_cropping_is_refused_with_a_rule_that_takes_back(model: DimpleForConditionalGeneration) -> None:
    """The end could be masked again, and the answer had no position left to go on."""
    inputs = model_inputs(PROMPTS[0])
    with pytest.raises(ValueError, match="`crop_after_end` must not be used with `parallel_rule`='wino'"):
        model.generate(**inputs, parallel_rule="wino", crop_after_end=True)
    model.generate(**inputs, parallel_rule="klass", crop_after_end=True, max_new_tokens=2)  # control


# Where options come from


def test_another_rule_does_not_inherit_the_options_of_the_models_rule() -> None:
    """They would be refused with it, though nobody passed them."""
    model = tiny_model()
    model.generation_config = DimpleGenerationConfig(
        parallel_rule="klass", kl_threshold=0.5, confidence_threshold=0.2, max_new_tokens=LENGTH,
        pad_token_id=PAD, eos_token_id=EOS, mask_token_id=MASK,
    )  # fmt: skip
    inputs = model_inputs(PROMPTS[0])
    plain = tiny_model()
    for options in ({"parallel_rule": "factor"}, {"parallel_rule": "threshold"}):
        expected = plain.generate(**inputs, max_new_tokens=LENGTH, **options)
        assert torch.equal(model.generate(**inputs, **options), expected)
        config = DimpleGenerationConfig(**options)
        assert torch.equal(model.generate(**inputs, generation_config=config), expected)
    kept = model.generate(**inputs)
    expected = plain.generate(
        **inputs, max_new_tokens=LENGTH, parallel_rule="klass", kl_threshold=0.5, confidence_threshold=0.2
    )
    assert torch.equal(kept, expected)
    assert torch.equal(model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=LENGTH)), expected)
    with pytest.raises(ValueError, match="`kl_threshold` must be used with `parallel_rule` 'klass'"):
        model.generate(**inputs, parallel_rule="factor", kl_threshold=0.1)  # control: passed, it is refused

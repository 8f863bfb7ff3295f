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
from dimple_hf.modeling.rules_dimple import (
    EntropyBoundConfig,
    FactorConfig,
    KlassConfig,
    ProphetConfig,
    SamplerConfig,
    ThresholdConfig,
    WinoConfig,
)

LENGTH = 11

#: Options under which a model of random weights does decide several positions at once.
RULES: dict[str, SamplerConfig] = {
    "threshold": ThresholdConfig(0.3),
    "factor": FactorConfig(2.4),
    "entropy_bound": EntropyBoundConfig(3.0),
    "klass": KlassConfig(0.2, kl_threshold=0.7, kl_history_length=1),
    "prophet": ProphetConfig(None, (2.0, 1.0, 0.5)),
    "wino": WinoConfig(0.25, 0.3),
}


@pytest.fixture(scope="module")
def model() -> DimpleForConditionalGeneration:
    """Weights under which every rule finds something to do."""
    return tiny_model(seed=3)


def leftmost(logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: Any) -> torch.Tensor:
    """A rule of one's own: the first masked position."""
    return masked & (masked.cumsum(dim=1) == 1)


def options_of(rule: str, **changes: Any) -> dict[str, Any]:
    return {"sampler_config": RULES[rule], "max_new_tokens": LENGTH, "return_dict_in_generate": True} | changes


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
    assert torch.equal(by_default, model.generate(**inputs, max_new_tokens=LENGTH, sampler="threshold"))
    low = {"confidence_threshold": 1e-3, "max_new_tokens": LENGTH}
    assert torch.equal(model.generate(**inputs, **low), model.generate(**inputs, **low, block_length=LENGTH))
    other = model.generate(**inputs, max_new_tokens=LENGTH, sampler_config=EntropyBoundConfig(9.0))
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
    """A rule that remasks streams a token only when it stays; with blocks, at the end of each."""
    recorder = Recorder()
    # With so many steps no block comes to its last one, from which on nothing is remasked.
    options = options_of(rule, block_length=block_length, output_history=True, max_denoising_steps=60)
    output = model.generate(**model_inputs(PROMPTS[1]), streamer=recorder, **options)
    assert recorder.tokens == output.sequences[0].tolist()
    if rule == "wino":
        masked_again = [
            bool(((after == MASK) & (before != MASK)).any())
            for before, after in zip(output.history, output.history[1:], strict=False)
        ]
        assert any(masked_again)  # control: something was remasked
        prompt, *steps = recorder.sizes
        assert sum(size > 0 for size in steps) == (1 if block_length is None else 3)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "entropy_bond"}, "`sampler` must be one of .*; did you mean `entropy_bound`\\?"),
        ({"sampler": 3}, r"`sampler` must be one of .* \(got 3\)"),
        ({"confidence_factor": 2.0}, "`confidence_factor` must be a generation option"),
        (
            {"sampler": "factor", "confidence_threshold": 0.5},
            "`confidence_threshold` must be used with `sampler` 'threshold' or 'klass' or 'prophet' "
            r"\(got 0.5 with 'factor'\)",
        ),
        (
            {"sampler": "klass", "sampler_config": WinoConfig()},
            r"`sampler_config` must belong to `sampler`='klass' \(got WinoConfig",
        ),
        (
            {"sampler": "klass", "sampler_config": {"draft_threshold": 0.5}},
            "`draft_threshold` must be an option of `KlassConfig`",
        ),
        ({"sampler_config": {"_cls_name": "SamplerConfig"}}, "`sampler_config` must be one of ThresholdConfig, "),
        ({"sampler_config": 0.5}, r"`sampler_config` must be the options of a built-in rule.*\(got 0.5\)"),
        (
            {"sampler": leftmost, "sampler_config": WinoConfig()},
            "`sampler_config` must belong to `sampler`=<function leftmost",
        ),
        ({"sampler": leftmost, "confidence_threshold": 0.5}, "`confidence_threshold` .*with <function leftmost"),
        ({"block_length": 0}, r"`block_length` must be an integer >= 1 \(got 0\)"),
    ],
)
def test_rule_that_is_wrong_is_refused_before_any_pass(options: dict[str, Any], message: str) -> None:
    """By the configuration, and by `generate`."""
    with pytest.raises(ValueError, match=message):
        DimpleGenerationConfig(**options)
    model = tiny_model()
    model.model.layers[0].register_forward_pre_hook(lambda module, args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`|{message}"):
        model.generate(**model_inputs(PROMPTS[0]), **options)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (ThresholdConfig, {"confidence_threshold": 0}, r"`confidence_threshold` must lie in \(0, 1\] \(got 0\)"),
        (FactorConfig, {"confidence_factor": 0}, r"`confidence_factor` must be a positive number \(got 0\)"),
        (FactorConfig, {"confidence_factor": float("inf")}, "`confidence_factor` must be a positive .*inf"),
        (FactorConfig, {"confidence_factor": "high"}, "`confidence_factor` must be a positive .*'high'"),
        (KlassConfig, {"confidence_threshold": 1.5}, "`confidence_threshold` must lie in"),
        (KlassConfig, {"kl_threshold": -0.1}, "`kl_threshold` must be a positive number"),
        (KlassConfig, {"kl_history_length": 0}, "`kl_history_length` must be an integer >= 1"),
        (KlassConfig, {"kl_history_length": True}, "`kl_history_length` must be an integer >= 1"),
        (EntropyBoundConfig, {"entropy_bound": -1}, r"`entropy_bound` must be a number >= 0 \(got -1\)"),
        (WinoConfig, {"draft_threshold": 0.0}, r"`draft_threshold` must lie in \(0, 1\]"),
        (WinoConfig, {"verify_threshold": 1.5}, r"`verify_threshold` must lie in \(0, 1\]"),
        (ProphetConfig, {"confidence_threshold": -1}, "`confidence_threshold` must lie in"),
        (ProphetConfig, {"gap_thresholds": [1, 2]}, "`gap_thresholds` must be three numbers >= 0"),
        (ProphetConfig, {"gap_thresholds": [1, 2, -3]}, "`gap_thresholds` must be three numbers >= 0"),
        (ProphetConfig, {"gap_thresholds": "high"}, "`gap_thresholds` must be three numbers .*'high'"),
    ],
)
def test_rule_option_that_is_out_of_range_is_refused(
    rule: type[SamplerConfig], options: dict[str, Any], message: str
) -> None:
    """Where it is written, and as a dictionary in the options of `generate`."""
    with pytest.raises(ValueError, match=message):
        rule(**options)
    with pytest.raises(ValueError, match=message):
        DimpleGenerationConfig(sampler_config={"_cls_name": rule.__name__, **options})


def test_rule_option_limits_are_accepted() -> None:
    """The control of the refusals: what lies just inside."""
    for rule in (
        FactorConfig(1e-3),
        EntropyBoundConfig(0),
        KlassConfig(None, 1e-6, 1),
        ProphetConfig(gap_thresholds=(0, 0.5, 9)),
        WinoConfig(1e-6, 1),
    ):
        assert DimpleGenerationConfig(sampler_config=rule, block_length=1).rule() is rule
    assert DimpleGenerationConfig(sampler=leftmost).rule() is leftmost


def test_rules_have_their_papers_defaults_where_nothing_is_set() -> None:
    """As their papers or their code have them; the short form sets one of them."""
    assert DimpleGenerationConfig().rule() == ThresholdConfig(confidence_threshold=0.95)
    rules = {name: DimpleGenerationConfig(sampler=name).rule().to_dict() for name in RULES}
    assert rules == {
        "threshold": {"_cls_name": "ThresholdConfig", "confidence_threshold": 0.95},
        "factor": {"_cls_name": "FactorConfig", "confidence_factor": 1.0},
        "entropy_bound": {"_cls_name": "EntropyBoundConfig", "entropy_bound": 0.1},
        "klass": {
            "_cls_name": "KlassConfig", "confidence_threshold": 0.95, "kl_threshold": 0.01, "kl_history_length": 2,
        },
        "prophet": {
            "_cls_name": "ProphetConfig", "confidence_threshold": 0.95, "gap_thresholds": (7.5, 5.0, 2.5),
        },
        "wino": {"_cls_name": "WinoConfig", "draft_threshold": 0.6, "verify_threshold": 0.9},
    }  # fmt: skip
    config = DimpleGenerationConfig(sampler_config=KlassConfig(kl_history_length=3), confidence_threshold=0.7)
    assert config.rule() == KlassConfig(0.7, 0.01, 3)


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


# Where options come from


def test_another_rule_does_not_inherit_the_options_of_the_models_rule() -> None:
    """They would be refused with it, though nobody passed them."""
    model = tiny_model()
    klass = KlassConfig(kl_threshold=0.5)
    model.generation_config = DimpleGenerationConfig(
        sampler_config=klass, confidence_threshold=0.2, max_new_tokens=LENGTH,
        pad_token_id=PAD, eos_token_id=EOS, mask_token_id=MASK,
    )  # fmt: skip
    inputs = model_inputs(PROMPTS[0])
    plain = tiny_model()
    for options in ({"sampler": "factor"}, {"sampler": "threshold"}, {"sampler_config": ThresholdConfig(0.4)}):
        expected = plain.generate(**inputs, max_new_tokens=LENGTH, **options)
        assert torch.equal(model.generate(**inputs, **options), expected)
        config = DimpleGenerationConfig(**options)
        assert torch.equal(model.generate(**inputs, generation_config=config), expected)
    kept = model.generate(**inputs)
    expected = plain.generate(**inputs, max_new_tokens=LENGTH, sampler_config=KlassConfig(0.2, kl_threshold=0.5))
    assert torch.equal(kept, expected)
    assert torch.equal(model.generate(**inputs, sampler="klass"), expected)
    assert torch.equal(model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=LENGTH)), expected)
    other = plain.generate(**inputs, max_new_tokens=LENGTH, sampler_config=KlassConfig(0.6, kl_threshold=0.5))
    assert torch.equal(model.generate(**inputs, confidence_threshold=0.6), other)
    with pytest.raises(ValueError, match="`confidence_threshold` must be used with"):
        model.generate(**inputs, sampler="factor", confidence_threshold=0.1)  # control: passed, it is refused


def test_no_threshold_is_the_schedule_alone(model: DimpleForConditionalGeneration) -> None:
    """`confidence_threshold=None` as an argument; in a configuration `None` is an option that is not set."""
    inputs, options = model_inputs(*PROMPTS), {"max_new_tokens": LENGTH, "return_dict_in_generate": True}
    alone = model.generate(**inputs, **options, confidence_threshold=None)
    assert (alone.num_forward_passes == LENGTH - 1).all()  # the adaptive schedule's last two positions come together
    written = model.generate(**inputs, **options, sampler_config=ThresholdConfig(None))
    assert torch.equal(alone.sequences, written.sequences)
    low = {"confidence_threshold": 0.3}
    config = DimpleGenerationConfig(confidence_threshold=None, max_new_tokens=LENGTH, return_dict_in_generate=True)
    model.generation_config.update(**low)
    assert (model.generate(**inputs, generation_config=config).num_forward_passes < LENGTH - 1).any()
    assert (model.generate(**inputs, **options, confidence_threshold=None).num_forward_passes == LENGTH - 1).all()
    model.generation_config.confidence_threshold = None
    # Rules without a threshold have none to switch off.
    model.generate(**inputs, **options, sampler="wino", confidence_threshold=None)

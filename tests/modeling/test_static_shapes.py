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
"""`cache_implementation="static"`: the same answers from steps of one shape, and layers that are compiled once.

Most tests compile with the backend "eager", which records and guards as every backend does and takes seconds;
one takes "inductor", the default, which writes code for the CPU.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import MASK, MIXED_PROMPTS, make_prompt, model_inputs, tiny_model
from torch._dynamo.utils import counters
from transformers import CompileConfig

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationConfig, DimpleGenerationOutput
from dimple_hf.modeling.rules_dimple import (
    SAMPLER_RULES,
    EntropyBoundConfig,
    KlassConfig,
    ProphetConfig,
    WinoConfig,
)

LENGTH = 10

#: Every rule, with options under which the tiny model sometimes unmasks several positions at once, and other ways.
WAYS: dict[str, dict[str, Any]] = {name: {"sampler": name} for name in SAMPLER_RULES}
WAYS["threshold"] |= {"confidence_threshold": 0.3}
WAYS["entropy_bound"] |= {"sampler_config": EntropyBoundConfig(3.0)}
WAYS["klass"] |= {"sampler_config": KlassConfig(0.2, kl_threshold=1.0, kl_history_length=1)}
WAYS["prophet"] |= {"sampler_config": ProphetConfig(0.3, (3.0, 2.0, 1.0))}
WAYS["wino"] |= {"sampler_config": WinoConfig(0.3, 0.4)}
WAYS["schedule"] = {"confidence_threshold": None}
WAYS["blocks"] = {"confidence_threshold": 0.3, "block_length": 4}
WAYS["few-steps"] = {"confidence_threshold": None, "max_denoising_steps": 3}


def compiling(backend: str = "eager") -> CompileConfig:
    """One graph of the whole, or an error; on the CPU, too."""
    config = CompileConfig(backend=backend, fullgraph=True, mode="default" if backend == "inductor" else None)
    config._compile_all_devices = True
    return config


def answers(model: DimpleForConditionalGeneration, **options: Any) -> DimpleGenerationOutput:
    """`generate` over rows of 0 to 3 images, with all the figures."""
    return model.generate(**model_inputs(*MIXED_PROMPTS), return_dict_in_generate=True, output_history=True, **options)


def canvas_of_uneven_rows() -> torch.Tensor:
    """Rows of 10, 6, 1 and 3 positions to decide, which finish at different steps."""
    is_fixed = torch.arange(LENGTH) >= torch.tensor([10, 6, 1, 3])[:, None]
    return torch.full((4, LENGTH), MASK).masked_fill(is_fixed, 7)


@pytest.fixture(scope="module")
def compiled_model() -> Iterator[DimpleForConditionalGeneration]:
    """A tiny model to compile, with compilations of its own."""
    torch.compiler.reset()
    yield tiny_model()
    torch.compiler.reset()


@pytest.fixture
def batch_sizes(model: DimpleForConditionalGeneration) -> Iterator[list[int]]:
    """The rows of each pass of the tiny model."""
    sizes: list[int] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    yield sizes
    handle.remove()


# The same answers


@pytest.mark.parametrize("way", [pytest.param(options, id=name) for name, options in WAYS.items()])
def test_rows_that_stay_have_the_answers_and_passes_of_rows_that_leave(
    model: DimpleForConditionalGeneration, batch_sizes: list[int], way: dict[str, Any]
) -> None:
    """A finished row stays for its shape alone: it is neither scored nor decided any more."""
    options = way | {"answer_ids": canvas_of_uneven_rows()}
    batch_sizes.clear()
    leaving = answers(model, **options)
    assert min(batch_sizes) < 4  # control: rows do leave
    batch_sizes.clear()
    staying = answers(model, **options, cache_implementation="static")
    assert set(batch_sizes) == {4}
    assert torch.equal(staying.sequences, leaving.sequences)
    assert torch.equal(staying.num_forward_passes, leaving.num_forward_passes)
    assert torch.equal(staying.tokens_per_forward, leaving.tokens_per_forward)
    assert len(staying.history) == len(leaving.history)
    assert all(torch.equal(a, b) for a, b in zip(staying.history, leaving.history, strict=True))


def test_rows_that_a_criterion_stops_stay_as_they_are(model: DimpleForConditionalGeneration) -> None:
    """The criterion says it once; it is asked about all rows in each step."""
    sizes: list[int] = []

    def stop_second_row_once(sequences: torch.Tensor, scores: None, **kwargs: Any) -> torch.Tensor:
        sizes.append(len(sequences))
        return (torch.arange(len(sequences)) == 1) & (len(sizes) == 2)

    options = {"max_new_tokens": LENGTH, "confidence_threshold": None}
    output = answers(model, **options, cache_implementation="static", stopping_criteria=[stop_second_row_once])
    whole = answers(model, **options)
    assert output.num_forward_passes.tolist() == [9, 2, 9, 9] == [*whole.num_forward_passes[:1], 2, 9, 9]
    assert torch.equal(output.sequences[[0, 2, 3]], whole.sequences[[0, 2, 3]])
    assert torch.equal(output.history[-1][1], whole.history[1][1])
    assert (output.history[-1][1] == MASK).sum() == LENGTH - 2
    assert set(sizes) == {4}


def test_only_positions_of_unfinished_rows_are_scored(model: DimpleForConditionalGeneration) -> None:
    """The head's cost falls as rows finish, although the layers' does not."""
    canvas = torch.full((4, 6), MASK)
    canvas[1] = 7  # finished before the first step
    canvas[2, 2:] = 7
    scored: list[int] = []
    handle = model.lm_head.register_forward_pre_hook(lambda module, args: scored.append(len(args[0])))
    answers(model, answer_ids=canvas, confidence_threshold=None, cache_implementation="static")
    handle.remove()
    # One position of each row in each pass; the adaptive schedule unmasks the last two of six together.
    assert scored == [6 + 2 + 6, 5 + 1 + 5, 4 + 4, 3 + 3, 2 + 2]


# Compiled once


def test_second_call_of_a_shape_compiles_nothing(compiled_model: DimpleForConditionalGeneration) -> None:
    """One graph, whatever the rule, the prompt's words and the step; another shape is noticed."""
    options = {"max_new_tokens": LENGTH, "cache_implementation": "static", "compile_config": compiling()}
    expected = answers(compiled_model, max_new_tokens=LENGTH)
    counters.clear()
    first = answers(compiled_model, **options)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        second = answers(compiled_model, **options)
        answers(compiled_model, **options, **WAYS["factor"])
        with pytest.raises(RuntimeError, match="recompile"):  # control
            answers(compiled_model, **options | {"max_new_tokens": LENGTH - 1})
    assert counters["stats"]["unique_graphs"] == 1
    for output in (first, second):
        assert torch.equal(output.sequences, expected.sequences)
        assert all(torch.equal(a, b) for a, b in zip(output.history, expected.history, strict=True))


def test_prompts_padded_to_one_length_are_of_one_shape(compiled_model: DimpleForConditionalGeneration) -> None:
    """A row does not depend on its padding, so its caller chooses the shape."""
    options = {"max_new_tokens": LENGTH, "cache_implementation": "static", "compile_config": compiling()}
    prompts = [make_prompt(5, seed=5), make_prompt(11, seed=6), make_prompt(8, seed=7)]
    compiled_model.generate(**model_inputs(prompts[0], width=20), **options)
    with torch.compiler.set_stance("fail_on_recompile"):
        for prompt in prompts[1:]:
            padded = compiled_model.generate(**model_inputs(prompt, width=20), **options)
            alone = compiled_model.generate(**model_inputs(prompt), max_new_tokens=LENGTH)
            assert torch.equal(padded[:, -LENGTH:], alone[:, -LENGTH:])


def test_steps_of_a_compiled_call_are_those_of_generate(compiled_model: DimpleForConditionalGeneration) -> None:
    """`generate_steps` takes the same options; a loop that is left early leaves the compiled layers whole."""
    inputs = model_inputs(*MIXED_PROMPTS)
    options = {"max_new_tokens": LENGTH, "cache_implementation": "static", "compile_config": compiling()}
    next(compiled_model.generate_steps(**inputs, **options))
    *_, last = compiled_model.generate_steps(**inputs, **options)
    assert torch.equal(last.answer_ids, compiled_model.generate(**inputs, max_new_tokens=LENGTH)[:, -LENGTH:])


@pytest.mark.slow
def test_inductor_gives_the_same_tokens(compiled_model: DimpleForConditionalGeneration) -> None:
    """The default backend fuses and reorders; greedy tokens stay."""
    options = {"max_new_tokens": LENGTH, "cache_implementation": "static", "compile_config": compiling("inductor")}
    counters.clear()
    compiled = answers(compiled_model, **options)
    assert counters["inductor"]  # control: it was at work
    assert torch.equal(compiled.sequences, answers(compiled_model, max_new_tokens=LENGTH).sequences)


def test_compilation_follows_transformers_criteria(
    compiled_model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on a CPU unless asked for, and never with `disable_compile`."""
    asked: list[CompileConfig] = []
    original = compiled_model.model.get_compiled_call
    monkeypatch.setattr(
        compiled_model.model, "get_compiled_call", lambda config: asked.append(config) or original(config)
    )
    options = {"max_new_tokens": 4, "cache_implementation": "static"}
    answers(compiled_model, **options)
    answers(compiled_model, **options, disable_compile=True, compile_config=compiling())
    assert asked == []
    answers(compiled_model, **options, compile_config=compiling())
    assert [config.backend for config in asked] == ["eager"]  # control


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_implementation": "offloaded"}, "`cache_implementation` must be \"static\" .*got 'offloaded'"),
        ({"compile_config": CompileConfig()}, '`compile_config` must be used with `cache_implementation`="static"'),
        ({"cache_implementation": "static", "cache_policy": "none"}, "`cache_policy`=\"prompt\".*got 'none'"),
        ({"cache_implementation": "static", "use_cache": False}, "`cache_policy`=\"prompt\".*got 'none'"),
        (
            {"cache_implementation": "static", "cache_policy": "dual", "block_length": 4},
            "`cache_policy`=\"prompt\".*got 'dual'",
        ),
        ({"cache_implementation": "static", "initial_answer_length": 4}, "`initial_answer_length` must not be used"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "generate_steps"])
def test_what_has_no_static_shapes_is_refused_before_any_pass(
    model: DimpleForConditionalGeneration, batch_sizes: list[int], method: str, options: dict[str, Any], message: str
) -> None:
    """Shapes that change would compile again and again, silently."""
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(**model_inputs(MIXED_PROMPTS[0]), max_new_tokens=8, **options)
    assert batch_sizes == []


def test_causal_mode_keeps_transformers_static_cache(causal_model: DimpleForConditionalGeneration) -> None:
    """There the option is transformers' own, with all its values."""
    inputs = model_inputs(MIXED_PROMPTS[0])
    expected = causal_model.generate(**inputs, max_new_tokens=4)
    for name in ("static", "dynamic"):
        assert torch.equal(causal_model.generate(**inputs, max_new_tokens=4, cache_implementation=name), expected)


def test_compile_options_are_not_written_to_files(tmp_path: Any) -> None:
    """As in transformers: what compiles where is no property of a checkpoint; static shapes are."""
    DimpleGenerationConfig(cache_implementation="static", compile_config=compiling()).save_pretrained(tmp_path)
    loaded = DimpleGenerationConfig.from_pretrained(tmp_path)
    assert loaded.cache_implementation == "static"
    assert loaded.compile_config is None

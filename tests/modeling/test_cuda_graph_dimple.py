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
"""Passes that a GPU replays. All but the first test need one: `make test ARGS="-m gpu"`."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import MIXED_PROMPTS, model_inputs, tiny_model
from transformers import CompileConfig

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationOutput
from dimple_hf.modeling.cuda_graph_dimple import PassGraph, without_graphs

LENGTH = 10

WAYS: dict[str, dict[str, Any]] = {
    "threshold": {"confidence_threshold": 0.3},
    "schedule": {"confidence_threshold": None},
    "factor": {"sampler": "factor"},
    "few-steps": {"confidence_threshold": None, "max_denoising_steps": 4},
}


def test_nothing_is_recorded_on_a_cpu(model: DimpleForConditionalGeneration) -> None:
    assert without_graphs(None, model.model) is None
    assert without_graphs(CompileConfig(mode="max-autotune"), model.model) is None


@pytest.fixture(scope="module")
def gpu_model() -> Iterator[DimpleForConditionalGeneration]:
    torch.compiler.reset()
    yield tiny_model().to("cuda")
    torch.compiler.reset()


def answers(model: DimpleForConditionalGeneration, **options: Any) -> DimpleGenerationOutput:
    inputs = {name: tensor.to(model.device) for name, tensor in model_inputs(*MIXED_PROMPTS).items()}
    options = {"max_new_tokens": LENGTH, "return_dict_in_generate": True, "output_history": True, **options}
    return model.generate(**inputs, **options)


@pytest.mark.gpu
def test_what_is_compiled_when_a_graph_is_recorded(gpu_model: DimpleForConditionalGeneration) -> None:
    """Modes that ask for graphs lose them, all else is kept; any other mode is torch's affair."""
    assert without_graphs(None, gpu_model.model) == CompileConfig(mode="default")
    asked = CompileConfig(mode="max-autotune", dynamic=False)
    assert without_graphs(asked, gpu_model.model) == CompileConfig(mode="max-autotune-no-cudagraphs", dynamic=False)
    assert without_graphs(CompileConfig(mode="default"), gpu_model.model) is None
    half = tiny_model().to("cuda").model
    half.layers[1].to("cpu")
    assert without_graphs(None, half) is None
    half.layers[1].to("cuda")
    half.set_attn_implementation("flex_attention")
    assert without_graphs(None, half) is None


@pytest.mark.gpu
def test_third_call_runs_kernels_alone() -> None:
    """The function runs in the first call and is recorded in the second; what it reads is read again each time."""
    table = torch.arange(10.0, device="cuda")
    calls: list[torch.Tensor] = []

    def look_up(tokens: torch.Tensor) -> torch.Tensor:
        calls.append(tokens)
        return table[tokens] * 2

    recorded = PassGraph()
    outputs = [recorded(look_up, torch.tensor([n, n + 1], device="cuda")).tolist() for n in range(4)]
    assert outputs == [[0, 2], [2, 4], [4, 6], [6, 8]]
    assert len(calls) == 2
    table += 1
    assert recorded(look_up, torch.tensor([0, 1], device="cuda")).tolist() == [2, 4]


@pytest.mark.gpu
@pytest.mark.parametrize("way", [pytest.param(options, id=name) for name, options in WAYS.items()])
def test_replayed_steps_have_the_tokens_of_plain_ones(
    gpu_model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, way: dict[str, Any]
) -> None:
    replays: list[int] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: replays.append(1) or replay(graph))
    expected = answers(gpu_model, **way)
    assert not replays
    output = answers(gpu_model, **way, cache_implementation="static")
    # All but the whole pass and the first window.
    assert len(replays) == int(output.num_forward_passes.max()) - 2 > 0
    assert torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.num_forward_passes, expected.num_forward_passes)
    assert all(torch.equal(a, b) for a, b in zip(output.history, expected.history, strict=True))


@pytest.mark.gpu
def test_second_call_of_a_shape_compiles_nothing(gpu_model: DimpleForConditionalGeneration) -> None:
    answers(gpu_model, cache_implementation="static")
    with torch.compiler.set_stance("fail_on_recompile"):
        answers(gpu_model, cache_implementation="static", sampler="factor")


@pytest.mark.gpu
def test_threads_that_record_at_once_do_not_disturb_each_other(gpu_model: DimpleForConditionalGeneration) -> None:
    expected = answers(gpu_model, **WAYS["schedule"])
    answers(gpu_model, **WAYS["schedule"], cache_implementation="static")  # compiles
    got: list[torch.Tensor] = []

    def run() -> None:
        for _ in range(5):
            got.append(answers(gpu_model, **WAYS["schedule"], cache_implementation="static").sequences)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 10
    assert all(torch.equal(sequences, expected.sequences) for sequences in got)


@pytest.mark.gpu
def test_memory_of_a_graph_goes_with_its_call(gpu_model: DimpleForConditionalGeneration) -> None:
    def held() -> int:
        answers(gpu_model, **WAYS["schedule"], cache_implementation="static")
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    held()
    first = held()
    assert [held() for _ in range(10)][-1] <= first

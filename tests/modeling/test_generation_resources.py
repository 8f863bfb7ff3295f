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
"""What generations leave after, which is nothing, and two of them at once on one model."""

import copy
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MIXED_PROMPTS, model_inputs
from torch.utils._python_dispatch import TorchDispatchMode

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.rules_dimple import EntropyBoundConfig

#: Calls of every kind: each cache, growing canvases, static shapes, several sequences, a loop that is left
#: early.
KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"cache_policy": "none"},
    {"cache_policy": "refresh", "cache_refresh_interval": 2},
    {"cache_policy": "prefix", "block_length": 3},
    {"cache_policy": "dual", "block_length": 3, "sampler": "klass"},
    {"initial_answer_length": 2},
    {"cache_implementation": "static"},
    {"do_sample": True, "num_return_sequences": 2, "return_dict_in_generate": True, "output_history": True},
)


def num_tensors() -> int:
    """How many tensors Python knows of."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def resident_mib() -> float:
    """Memory of the process that lies in RAM, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024


def generate_once(model: DimpleForConditionalGeneration, call: int, kept: list[Any] | None = None) -> None:
    """One call, of the kind that is due; what `kept` is given stays alive."""
    inputs, options = model_inputs(*MIXED_PROMPTS[:2]), {"max_new_tokens": 6, **KINDS[call % len(KINDS)]}
    if call % 5 == 4:
        steps = model.generate_steps(**inputs, **options)
        result: Any = [next(steps), next(steps)]
    else:
        result = model.generate(**inputs, **options)
    if kept is not None:
        kept.append(result)


def test_memory_after_two_calls_of_each_kind_is_that_after_one(model: DimpleForConditionalGeneration) -> None:
    """No tensor survives a call, nor a loop over steps that is left in the middle."""
    for call in range(len(KINDS)):
        generate_once(model, call)
    before = num_tensors()
    for call in range(len(KINDS)):
        generate_once(model, call)
    assert num_tensors() == before
    # control: answers that are kept are seen
    kept: list[Any] = []
    for call in range(10):
        generate_once(model, call, kept)
    assert num_tensors() >= before + 10


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_after_a_thousand_calls_is_what_it_was(model: DimpleForConditionalGeneration) -> None:
    """Also memory that Python knows nothing of: 1,000 caches of this size would take some 40 MiB."""
    for call in range(70):
        generate_once(model, call)
    tensors, mib = num_tensors(), resident_mib()
    for call in range(1000):
        generate_once(model, call)
    assert num_tensors() == tensors
    assert resident_mib() < mib + 10
    # control: keys and values that are kept are seen
    kept = [torch.zeros(2, 2, 4, 2, 40, 8) + call for call in range(1000)]
    assert resident_mib() > mib + 30
    assert len(kept) == 1000


# Waiting for the device


class WaitingCalls(TorchDispatchMode):
    """Writes down the calls of torch at which the host would wait for a device: a value is read, or a shape depends
    on values."""

    names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        indices = args[1] if func.name().startswith("aten::index") and isinstance(args[1], (list, tuple)) else ()
        is_by_value = any(index is not None and index.dtype == torch.bool for index in indices)
        if is_by_value or func.name() in self.names:
            self.calls.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [
    pytest.param({}, id="prompt"),
    pytest.param({"cache_policy": "none"}, id="none"),
    pytest.param({"cache_implementation": "static"}, id="static"),
    pytest.param({"sampler_config": EntropyBoundConfig(0.0)}, id="entropy-bound"),
])  # fmt: skip
def test_step_waits_for_the_device_once(
    model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """On a GPU each question costs more than a layer; the one that is left asks which rows are finished."""
    lists: list[Any] = []  # numbers that come from the device, or go there
    to_list, tensor = torch.Tensor.tolist, torch.tensor
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: lists.append(self) or to_list(self))
    monkeypatch.setattr(torch, "tensor", lambda *args, **kwargs: lists.append(args) or tensor(*args, **kwargs))
    steps = model.generate_steps(**model_inputs(*MIXED_PROMPTS), max_new_tokens=10, **options)
    for _ in range(3):
        next(steps)
    for _ in range(3):
        lists.clear()
        with WaitingCalls() as waiting:
            step = next(steps)
        assert not step.finished.any()
        assert waiting.calls == []
        assert len(lists) == 1
    with WaitingCalls() as waiting:  # control: another way to ask is seen
        bool(step.finished.all())
        step.answer_ids[step.is_final]
        step.is_final.nonzero()
    assert waiting.calls == ["aten::_local_scalar_dense", "aten::index.Tensor", "aten::nonzero"]


# Two threads


@pytest.fixture
def running_threads(model: DimpleForConditionalGeneration) -> Iterator[list[int]]:
    """Which thread runs the model's first layer, from pass to pass; threads take turns as often as they can."""
    seen: list[int] = []
    handle = model.model.layers[0].register_forward_pre_hook(lambda module, args: seen.append(threading.get_ident()))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield seen
    sys.setswitchinterval(interval)
    handle.remove()


def run_together(*functions: Callable[[], torch.Tensor], times: int) -> list[list[torch.Tensor]]:
    """Calls each function so often in a thread of its own, all at once; returns what they returned."""
    results: list[list[torch.Tensor]] = [[] for _ in functions]
    barrier = threading.Barrier(len(functions))

    def work(function: Callable[[], torch.Tensor], found: list[torch.Tensor]) -> None:
        barrier.wait()
        for _ in range(times):
            found.append(function())

    threads = [threading.Thread(target=work, args=pair) for pair in zip(functions, results, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_threads_in_different_modes_on_one_model_do_not_disturb_each_other(
    model: DimpleForConditionalGeneration, running_threads: list[int]
) -> None:
    """One generates causally, one bidirectionally, one scores causally: each as alone, in every repetition."""
    inputs = model_inputs(*MIXED_PROMPTS)
    causal = copy.copy(model)  # the same layers under a configuration of its own
    causal.config = copy.deepcopy(model.config)
    causal.config.full_attn_mask = False
    assert causal.model is model.model

    @torch.no_grad()
    def score() -> torch.Tensor:
        return model(**inputs, is_causal=True, logits_to_keep=1).logits

    functions = [
        lambda: model.generate(**inputs, max_new_tokens=6, cache_policy="dual", block_length=3),
        lambda: causal.generate(**inputs, max_new_tokens=6),
        score,
    ]
    alone = [function() for function in functions]
    assert not torch.equal(alone[0], alone[1])  # control: the modes differ
    running_threads.clear()
    for found, expected in zip(run_together(*functions, times=20), alone, strict=True):
        assert len(found) == 20
        assert all(torch.equal(result, expected) for result in found)
    turns = sum(a != b for a, b in zip(running_threads[:-1], running_threads[1:], strict=True))
    assert turns > 50  # control: they did run at once

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
"""A forward pass as one CUDA graph, which a GPU replays without a launch for each kernel.

`torch.compile` records graphs of its own, and checks each time that every weight is where it was, which takes half as
long as a step of the 7B model. Here a graph belongs to one call of `generate`, during which weights stay where they
are, so that nothing need be checked.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import CompileConfig, PreTrainedModel

#: Modes of `torch.compile` that capture CUDA graphs -> what they do besides.
GRAPH_MODES = {"reduce-overhead": "default", "max-autotune": "max-autotune-no-cudagraphs"}

#: A process captures one graph at a time.
_CAPTURING = threading.Lock()


def without_graphs(compile_config: CompileConfig | None, model: PreTrainedModel) -> CompileConfig | None:
    """
    What is left to compile where [`PassGraph`] captures the graph that `compile_config` requests.

    Args:
        compile_config (`CompileConfig`, *optional*):
            The caller's; transformers' default, `"reduce-overhead"`, when missing.
        model (`PreTrainedModel`):
            What is compiled.

    Returns:
        `CompileConfig`, *optional*: The same but for graphs. `None` where none is captured: because the mode has
        none, because not all weights lie on one GPU, or because the model may have to wait for the GPU, as quantized
        layers and flash attention with padding do. There all is left to `torch.compile`, which detects these cases.
    """
    compile_config = compile_config or CompileConfig()
    weights = list(model.parameters())
    devices = {weight.device for weight in weights}
    if len(devices) > 1 or {device.type for device in devices} != {"cuda"}:
        return None
    if not all(type(weight) is nn.Parameter and weight.is_floating_point() for weight in weights):
        return None
    if compile_config.mode not in GRAPH_MODES or model.config._attn_implementation not in ("sdpa", "eager"):
        return None
    return dataclasses.replace(compile_config, mode=GRAPH_MODES[compile_config.mode])


class PassGraph:
    """
    A function that a GPU replays. The first call runs it, which compiles what is to be compiled and lets libraries set
    themselves up; the second captures it; from then on only its kernels run, with the same memory as when captured.
    """

    def __init__(self) -> None:
        self._has_run = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(
        self, function: Callable[[torch.LongTensor], torch.FloatTensor], tokens: torch.LongTensor
    ) -> torch.FloatTensor:
        """
        Args:
            function (`Callable`):
                The same in each call, made of kernels alone: it must not wait for the device, and what it reads
                besides `tokens` must stay where it is. Not an attribute: it may be a method of what has this pass.
            tokens (`torch.LongTensor`):
                Its argument, of the same shape in each call.

        Returns:
            `torch.FloatTensor`: What `function` returns. The next call writes over it.
        """
        if not self._has_run:
            self._has_run = True
            return function(tokens)
        if self._graph is None:
            self._tokens, self._graph = tokens.clone(), torch.cuda.CUDAGraph()
            stream = torch.cuda.Stream(tokens.device)
            # Other threads, which may be generating as well, go on allocating memory meanwhile.
            record = torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local")
            with _CAPTURING, _fresh_workspaces(), record:
                self._output = function(self._tokens)
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._output


@contextmanager
def _fresh_workspaces() -> Iterator[None]:
    """cuBLAS keeps a workspace for each stream that it has worked on. One that it gets while a graph is captured is
    part of the graph's memory and must go with it; torch clears them around the graphs of its own, too."""
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()

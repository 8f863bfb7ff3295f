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
"""The least time that a denoising step can take on a machine: what it must read and reckon, over measured rates.

A pass reads the weights of the text layers and of the head once, and the keys and values that its tokens see; it
multiplies matrices. Whichever takes longer at the machine's best is the floor of the pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

#: Bytes that the bandwidth is measured with: more than caches hold, and on a GPU so many that reading them takes much
#: longer than telling it to.
NUM_READ_BYTES = {"cpu": 2**29, "cuda": 2**32}

#: Side of the square matrices that the matrix rate is measured with.
MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}


@dataclass
class Rates:
    """
    What a machine does at its best. Each measurement keeps the better one, so that other work on the machine, which
    only slows it, is left out as far as possible.

    Args:
        bytes_per_second (`float`):
            Memory that is read and summed up.
        operations_per_second (`float`):
            Multiplications and additions of a matrix product, in the model's dtype.
    """

    bytes_per_second: float = 0.0
    operations_per_second: float = 0.0

    @torch.no_grad()
    def measure(self, device: torch.device, dtype: torch.dtype, clock: Callable[[], float]) -> None:
        """Measures both rates once; `clock` returns the time in seconds, after all work given to `device` is done."""
        num_bytes, side = NUM_READ_BYTES[device.type], MATRIX_SIDES[device.type]
        numbers = torch.ones(num_bytes // 4, device=device)
        matrix = torch.randn(side, side, device=device, dtype=dtype)  # a GPU is faster with equal numbers
        for _ in range(3):
            started = clock()
            numbers.sum()
            read = clock()
            matrix @ matrix
            multiplied = clock()
            self.bytes_per_second = max(self.bytes_per_second, num_bytes / (read - started))
            self.operations_per_second = max(self.operations_per_second, 2 * side**3 / (multiplied - read))


@dataclass
class Pass:
    """
    What one pass of the model runs.

    Args:
        num_rows, num_queries, num_keys (`int`):
            Rows; positions of each that run; positions that these see.
        num_scored (`int`):
            Positions of all rows that the head scores.
    """

    num_rows: int
    num_queries: int
    num_keys: int
    num_scored: int = 0

    def seconds(self, model: nn.Module, rates: Rates) -> float:
        """The floor of this pass of a [`DimpleForConditionalGeneration`]."""
        config = model.config
        head_dim = config.hidden_size // config.num_attention_heads
        num_layer_weights = sum(weight.numel() for weight in model.model.layers.parameters())
        num_head_weights = model.lm_head.weight.numel()
        num_cached = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * self.num_keys
        num_read = num_layer_weights + num_head_weights + self.num_rows * num_cached
        # A weight multiplies and adds once for each token; a query meets each key once for the score, once the value.
        num_tokens = self.num_rows * self.num_queries
        num_meetings = num_tokens * self.num_keys * config.num_hidden_layers
        num_operations = 2 * num_layer_weights * num_tokens + 2 * num_head_weights * self.num_scored
        num_operations += 4 * config.hidden_size * num_meetings
        return max(
            num_read * model.dtype.itemsize / rates.bytes_per_second, num_operations / rates.operations_per_second
        )


@dataclass
class PassRecorder:
    """A context that writes down the passes of a model while it is open, in `passes`."""

    model: nn.Module
    passes: list[Pass] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)

    def __enter__(self) -> "PassRecorder":
        layers, head = self.model.model.layers, self.model.lm_head
        self._handles = [
            layers[0].register_forward_pre_hook(self._begin, with_kwargs=True),
            head.register_forward_pre_hook(self._score),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, layer: nn.Module, args: tuple[torch.Tensor], kwargs: dict[str, Any]) -> None:
        num_rows, num_queries, _ = args[0].shape
        cache = kwargs["past_key_values"]
        num_keys = num_queries if cache is None else cache.get_mask_sizes(num_queries, 0)[0]
        self.passes.append(Pass(num_rows, num_queries, num_keys))

    def _score(self, head: nn.Module, args: tuple[torch.Tensor]) -> None:
        self.passes[-1].num_scored += args[0].numel() // args[0].shape[-1]

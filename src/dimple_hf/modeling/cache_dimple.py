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
"""Keys and values during denoising: refresh policies, and memory that is overwritten in place.

Source: "prefilling" in Dimple, section 4.3 (arXiv 2505.16990), policy `"prompt"`; prefix and dual cache of Fast-dLLM,
sections 3.1 and 3.2 (arXiv 2505.22618), policies `"prefix"` and `"dual"`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, CacheLayerMixin


class CachePolicy(Protocol):
    """
    When a row's keys and values are refreshed, by a pass over all of its positions, and which positions run in the
    passes between. Pass any object with these members as `cache_policy`; it must treat each row by itself.
    """

    @property
    def block_length(self) -> int | None:
        """Positions of a block of the answer; `None`: the answer is one block."""
        ...

    def is_stale(self, age: int, is_new_block: bool) -> bool:
        """Whether to refresh a row whose keys and values have served `age` passes since the last refresh (at least
        one), and whether the row has come to another block since. A row without keys and values is always
        refreshed."""
        ...

    def window(self, block: int, answer_length: int) -> tuple[int, int]:
        """First and one after the last answer position to run for a row in block `block` of a canvas of
        `answer_length` positions. The window must hold the positions that the step scores, else the row is
        refreshed."""
        ...


@dataclass(frozen=True)
class WindowPolicy:
    """
    The built-in policies.

    ```text
    full pass                | prompt                       | answer                                   |
    passes between            ............................ x | all of it                                |
      with `block_length`     .............................. | ......... x | its block | what follows   |
      with `keeps_suffix`     .............................. | ......... x | its block | .............. |
    ```

    Dots are positions whose keys and values are kept. The position x before the others runs with them, because its
    output predicts the first of them. All of it is exact only in the pass that refreshes them: afterwards, what is
    kept has seen an older answer.

    Args:
        interval (`int`, *optional*):
            Passes from one refresh to the next; never again when missing.
        block_length (`int`, *optional*):
            Also refresh a row when it comes to another block of this many positions, and keep the blocks before.
        keeps_suffix (`bool`, defaults to `False`):
            Keep what follows the block, too.
    """

    interval: int | None = None
    block_length: int | None = None
    keeps_suffix: bool = False

    def is_stale(self, age: int, is_new_block: bool) -> bool:
        """See [`CachePolicy`]."""
        return is_new_block or (self.interval is not None and age >= self.interval)

    def window(self, block: int, answer_length: int) -> tuple[int, int]:
        """See [`CachePolicy`]."""
        start = block * (self.block_length or 0)
        stop = start + self.block_length if self.block_length and self.keeps_suffix else answer_length
        return start, min(stop, answer_length)


#: Passes from one refresh to the next under `"refresh"`, where nothing is set.
DEFAULT_REFRESH_INTERVAL = 8

#: Name -> function of the options `cache_refresh_interval` and `block_length` that returns the policy; `None` keeps
#: nothing.
CACHE_POLICIES: dict[str, Callable[[int | None, int | None], CachePolicy | None]] = {
    "none": lambda interval, block_length: None,
    "prompt": lambda interval, block_length: WindowPolicy(),
    "refresh": lambda interval, block_length: WindowPolicy(interval=interval or DEFAULT_REFRESH_INTERVAL),
    "prefix": lambda interval, block_length: WindowPolicy(block_length=block_length),
    "dual": lambda interval, block_length: WindowPolicy(block_length=block_length, keeps_suffix=True),
}

#: Those that need a `block_length`.
BLOCK_POLICIES = ("prefix", "dual")


class CanvasCacheLayer(CacheLayerMixin):
    """
    Keys and values of one layer, for every position of prompt and answer, in memory that is allocated once.

    Each pass writes the entries of the positions that it runs over what lay there. A full pass sees what it has
    just computed, any other the memory. In memory all heads of a position are neighbours, as the layers make them,
    so that writing a position is copying one stretch.

    Args:
        num_rows (`int`):
            Rows of the batch.
        num_positions (`int`):
            Positions of each row.
        is_static (`bool`, defaults to `False`):
            Whether the rows stay until the end, so that compiled code may rely on where the memory lies.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, num_rows: int, num_positions: int, is_static: bool = False):
        super().__init__()
        self.num_rows, self.num_positions, self.is_compileable = num_rows, num_positions, is_static
        self.rows = self.positions = torch.empty(0, dtype=torch.long)
        self.width: int | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Zeros, because attention multiplies what it does not see by 0, which leaves NaN what was NaN.
        shape = (self.num_rows, self.num_positions, key_states.shape[1], key_states.shape[3])
        self.keys = key_states.new_zeros(shape).transpose(1, 2)
        self.values = value_states.new_zeros(shape).transpose(1, 2)
        if self.is_compileable:  # `torch.compile` records no graph otherwise, because the pass writes into these
            torch._dynamo.mark_static_address(self.keys)
            torch._dynamo.mark_static_address(self.values)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            key_states, value_states (`torch.FloatTensor`, each `(batch_size, num_key_value_heads, length, head_dim)`):
                Of the positions that the pass runs, which [`CanvasCache.set_positions`] has named.

        Returns:
            `tuple(torch.FloatTensor, torch.FloatTensor)`: Keys and values that the pass sees.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, positions = self.rows.to(self.device)[:, None], self.positions.to(self.device)
        self.keys[rows, :, positions] = key_states.transpose(1, 2)
        self.values[rows, :, positions] = value_states.transpose(1, 2)
        if self.width is None:
            return key_states, value_states
        return self.keys[:, :, : self.width], self.values[:, :, : self.width]

    def get_seq_length(self) -> int:
        return self.num_positions if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length if self.width is None else self.width, 0

    def get_max_length(self) -> int:
        return self.num_positions

    def append_rows(self, other: "CanvasCacheLayer") -> None:
        """Takes in the rows of a layer with as many positions; zeros where it holds nothing yet."""
        if self.is_initialized or other.is_initialized:
            held = self if self.is_initialized else other
            for name in ("keys", "values"):
                parts = [
                    getattr(layer, name) if layer.is_initialized else _zeros(getattr(held, name), layer.num_rows)
                    for layer in (self, other)
                ]
                setattr(self, name, torch.cat([part.transpose(1, 2) for part in parts]).transpose(1, 2))
            self.dtype, self.device, self.is_initialized = held.dtype, held.device, True
        self.num_rows += other.num_rows

    def pad_positions(self, left: int, right: int) -> None:
        """Adds positions before the first and after the last one; negative numbers take some away."""
        self.num_positions += left + right
        if self.is_initialized and (left or right):
            for name in ("keys", "values"):
                padded = pad(getattr(self, name).transpose(1, 2), (0, 0, 0, 0, left, right))
                setattr(self, name, padded.transpose(1, 2))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps only the rows `indices` (`torch.LongTensor` of shape `(num_rows,)`) of the batch."""
        self.num_rows = len(indices)
        if self.is_initialized:
            self.keys = self.keys.transpose(1, 2)[indices].transpose(1, 2)
            self.values = self.values.transpose(1, 2)[indices].transpose(1, 2)


class CanvasCache(Cache):
    """
    A [`CanvasCacheLayer`] for each layer of the language model.

    Args:
        num_hidden_layers (`int`):
            Layers of the language model.
        num_rows (`int`):
            Rows of the batch.
        num_positions (`int`):
            Positions of each row: prompt and longest answer.
        is_static (`bool`, defaults to `False`):
            See [`CanvasCacheLayer`].
    """

    def __init__(self, num_hidden_layers: int, num_rows: int, num_positions: int, is_static: bool = False):
        super().__init__(
            layers=[CanvasCacheLayer(num_rows, num_positions, is_static) for _ in range(num_hidden_layers)]
        )

    def append_rows(self, other: "CanvasCache") -> None:
        """Takes in the rows of a cache with as many positions, after its own."""
        for layer, other_layer in zip(self.layers, other.layers, strict=True):
            layer.append_rows(other_layer)

    def pad_positions(self, left: int, right: int) -> None:
        """See [`CanvasCacheLayer.pad_positions`]."""
        for layer in self.layers:
            layer.pad_positions(left, right)

    def set_positions(self, rows: torch.LongTensor, positions: torch.LongTensor, width: int | None) -> None:
        """
        Sets what the next pass runs and sees.

        Args:
            rows (`torch.LongTensor` of shape `(num_run_rows,)`):
                The rows that it runs.
            positions (`torch.LongTensor` of shape `(num_run_rows, length)`):
                The positions of each that it runs. One may come twice, if it does with the same token and position.
            width (`int`, *optional*):
                It sees the first `width` positions of all rows in memory, which are then the rows that it runs; when
                missing, what it computes itself, for which it must run whole rows.
        """
        for layer in self.layers:
            layer.rows, layer.positions, layer.width = rows, positions, width


def _zeros(like: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Zeros for other rows, laid out in memory like keys or values, `(num_rows, num_heads, length, head_dim)`."""
    num_heads, length, head_dim = like.shape[1:]
    return like.new_zeros(num_rows, length, num_heads, head_dim).transpose(1, 2)

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
"""A key/value cache for denoising: the prompt's entries are kept, the answer's are renewed in place at every step.

Source: "prefilling" in Dimple, section 4.3 (arXiv 2505.16990). Imported by `canvas_dimple`.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class PromptCacheLayer(CacheLayerMixin):
    """
    Keys and values of one layer during denoising.

    ```text
    pass 1 (all P + R places)     | prompt, kept for the rest of the generation | answer |
    later passes (last R + 1)     | ............ P - 1 places ............ | last prompt place + answer, overwritten |
    ```

    The first `update` stores the states of the whole sequence; every later one overwrites those behind the prefix and
    returns the whole again, from the same memory.

    Args:
        prefix_length (`int`):
            Places that are never computed again.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self, prefix_length: int):
        super().__init__()
        self.prefix_length = prefix_length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = key_states.contiguous(), value_states.contiguous()
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            key_states, value_states (`torch.FloatTensor`, each `(batch_size, num_key_value_heads, length, head_dim)`):
                Of the whole sequence in the first call, of the places behind the prefix afterwards.

        Returns:
            `tuple(torch.FloatTensor, torch.FloatTensor)`: Keys and values of the whole sequence.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        else:
            self.keys[:, :, self.prefix_length :] = key_states
            self.values[:, :, self.prefix_length :] = value_states
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.prefix_length if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps only the rows `indices` (`torch.LongTensor` of shape `(num_rows,)`) of the batch."""
        self.keys, self.values = self.keys[indices], self.values[indices]


class PromptCache(Cache):
    """
    A [`PromptCacheLayer`] for each layer of the language model.

    Args:
        num_hidden_layers (`int`):
            Layers of the language model.
        prefix_length (`int`):
            Places at the front that are never computed again: all of the prompt but its last token, whose output
            predicts the first answer token.
    """

    def __init__(self, num_hidden_layers: int, prefix_length: int):
        super().__init__(layers=[PromptCacheLayer(prefix_length) for _ in range(num_hidden_layers)])

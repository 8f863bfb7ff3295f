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
"""The vision tower, and the projector to the language model's width.

Source: Qwen2.5-VL (arXiv 2502.13923) in transformers; Dimple, section 3 (arXiv 2505.16990), for the projector.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
    eager_attention_forward,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import is_flash_attention_requested
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_window_index

from .configuration_dimple import DimpleConfig, DimpleVisionConfig


class Slices(NamedTuple):
    """
    The slices of a sequence, windows or whole images, by their lengths.

    Args:
        positions (`list[torch.LongTensor]`):
            For each length, in ascending order, the positions of its slices, of shape `(num_slices, length)`.
        in_order (`torch.LongTensor` of shape `(sequence_length,)`):
            What puts the concatenated positions back into the order of the sequence.
    """

    positions: list[torch.Tensor]
    in_order: torch.Tensor


def slices_by_length(cu_seqlens: torch.Tensor) -> Slices:
    """
    Args:
        cu_seqlens (`torch.IntTensor` of shape `(num_slices + 1,)`):
            Where each slice begins, and the last one ends.

    Returns:
        [`Slices`]
    """
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    offsets = torch.arange(int(lengths.max()), device=cu_seqlens.device)
    positions = [starts[lengths == length, None] + offsets[:length] for length in lengths.unique().tolist()]
    return Slices(positions, torch.cat([group.flatten() for group in positions]).argsort())


class DimplePatchProjection(nn.Conv3d):
    """
    A convolution whose kernel is as large as its input, which is one product of matrices.

    CHANGED: torch's general kernels for three dimensions take 3 to 60 times as long for it on the CPUs tried.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        features = nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)
        return features[:, :, None, None, None]


class DimpleVisionAttention(Qwen2_5_VLVisionAttention):
    """
    Qwen2.5-VL's attention within slices.

    CHANGED: slices of one length are a batch. transformers calls the backend once for each slice of each image, which
    on a GPU takes longer than all the rest of the vision tower.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor | Slices,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(num_patches, hidden_size)`):
                Patches of all images, slice by slice.
            cu_seqlens ([`Slices`] or `torch.IntTensor` of shape `(num_slices + 1,)`):
                The slices, or where they begin and end: then they are attended to as in Qwen2.5-VL.
            position_embeddings (`tuple(torch.FloatTensor, torch.FloatTensor)`):
                Rotary cosines and sines of the patches.
            max_seqlen (`int`, *optional*):
                Length of the longest slice, for flash attention.

        Returns:
            `torch.FloatTensor` of shape `(num_patches, hidden_size)`
        """
        if isinstance(cu_seqlens, torch.Tensor):
            return super().forward(
                hidden_states,
                cu_seqlens=cu_seqlens,
                position_embeddings=position_embeddings,
                max_seqlen=max_seqlen,
                **kwargs,
            )
        query, key, value = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        outputs = [
            attend(
                self,
                *(states[positions].transpose(1, 2) for states in (query, key, value)),
                attention_mask=None,
                scaling=self.scaling,
                dropout=self.attention_dropout if self.training else 0.0,
                is_causal=False,
                **kwargs,
            )[0].flatten(0, 1)
            for positions in cu_seqlens.positions
        ]
        return self.proj(torch.cat(outputs)[cu_seqlens.in_order].flatten(1))


class DimpleVisionModel(Qwen2_5_VisionTransformerPretrainedModel):
    """
    Qwen2.5-VL's vision tower.

    CHANGED: runs under flex attention, too (it attends within slices, without a mask); attends to slices of one length
    together, and embeds patches by a matrix product.
    """

    config: DimpleVisionConfig
    _supports_flex_attn = True

    def __init__(self, config: DimpleVisionConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        conv = self.patch_embed.proj
        self.patch_embed.proj = DimplePatchProjection(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, bias=False, device="meta"
        )
        self.patch_embed.proj.weight = conv.weight
        for block in self.blocks:
            with torch.device("meta"):
                attention = DimpleVisionAttention(config)
            attention.qkv, attention.proj = block.attn.qkv, block.attn.proj
            block.attn = attention

    def forward(
        self, hidden_states: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple | BaseModelOutputWithPooling:
        """
        See `Qwen2_5_VisionTransformerPretrainedModel.forward`. CHANGED: slices are found once, and not in each layer;
        not for flash attention, which has a kernel for them, nor in `torch.export`, for which there may be any number
        of lengths.
        """
        if not is_flash_attention_requested(self.config) and not torch.compiler.is_exporting():
            cu_seqlens = get_vision_cu_seqlens(grid_thw, kwargs=kwargs)
            window_index, cu_window_seqlens = get_vision_window_index(
                grid_thw, self.spatial_merge_size, self.window_size, self.patch_size, kwargs=kwargs
            )
            kwargs["cu_seqlens"] = slices_by_length(cu_seqlens)
            kwargs["window_index"], kwargs["cu_window_seqlens"] = window_index, slices_by_length(cu_window_seqlens)
        return super().forward(hidden_states, grid_thw, **kwargs)


class DimpleProjector(nn.Module):
    """Maps merged image features to the language model's width: linear, activation, linear."""

    def __init__(self, config: DimpleConfig, vision_config: DimpleVisionConfig):
        super().__init__()
        self.linear_1 = nn.Linear(vision_config.out_hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        return self.linear_2(self.act(self.linear_1(image_features)))

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
"""Positions on the three axes of multimodal RoPE: time, height and width.

Source: Qwen2-VL (arXiv 2409.12191, section 2.1).
"""

import torch
from transformers.cache_utils import Cache


def image_token_counts(image_grid_thw: torch.Tensor, spatial_merge_size: int) -> torch.Tensor:
    """
    Args:
        image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`):
            Patches of each image along time, height and width.
        spatial_merge_size (`int`):
            Patches along each side of one merged token.

    Returns:
        `torch.LongTensor` of shape `(num_images,)`: Language-model tokens of each image.
    """
    return image_grid_thw.prod(dim=-1) // spatial_merge_size**2


def multimodal_position_ids(
    image_mask: torch.Tensor,
    attention_mask: torch.Tensor | None,
    image_grid_thw: torch.Tensor | None,
    spatial_merge_size: int,
) -> torch.Tensor:
    """
    Positions of every token on the three axes of multimodal RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text counts up on all three axes alike. An image of `h x w` merged tokens starts where the text before it ended:
    its tokens share the temporal position and take their row and column as height and width; the text after it goes
    on at the largest of them plus one. For two text tokens, an image of 2 x 2 and a text token:

    ```text
    time    0 1 | 2 2 2 2 | 4
    height  0 1 | 2 2 3 3 | 4
    width   0 1 | 2 3 2 3 | 4
    ```

    Args:
        image_mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`):
            `True` at image tokens. Each image's tokens are adjacent, images come in the order of `image_grid_thw`.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 at tokens, 0 at padding, which takes no position.
        image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`, *optional*):
            Patches of each image along time, height and width.
        spatial_merge_size (`int`):
            Patches along each side of one merged token.

    Returns:
        `torch.LongTensor` of shape `(3, batch_size, sequence_length)`: Temporal, height and width positions.
    """
    advance = (~image_mask).long()  # how far each token moves the position of what follows it
    offsets = torch.zeros(3, *image_mask.shape, dtype=torch.long, device=image_mask.device)
    if image_grid_thw is not None and len(image_grid_thw):
        grids = [(t, h // spatial_merge_size, w // spatial_merge_size) for t, h, w in image_grid_thw.tolist()]
        coordinates = [torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, 3) for grid in grids]
        offsets[:, image_mask] = torch.cat(coordinates).T.to(image_mask.device)
        # An image moves the position at its last token, by its longest side; so all its tokens start from one
        # position.
        image_advance = torch.cat(
            [torch.tensor([0] * (len(c) - 1) + [max(g)]) for c, g in zip(coordinates, grids, strict=True)]
        )
        advance[image_mask] = image_advance.to(image_mask.device)
    if attention_mask is not None:
        advance = advance * (attention_mask != 0)
    return advance.cumsum(dim=1) - advance + offsets


def set_position_offset(
    cache: Cache, position_ids: torch.LongTensor, attention_mask: torch.LongTensor | None = None
) -> None:
    """
    Keeps with a cache how far its positions differ from the number of its tokens, so that text can follow without the
    images before it: an image moves the position by its longest side, and not by its number of tokens.

    Args:
        cache (`Cache`):
            What the tokens' keys and values are written to.
        position_ids (`torch.LongTensor` of shape `(3, batch_size, sequence_length)`):
            Positions of all its tokens.
        attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 at tokens, 0 at padding. All ones when missing.
    """
    num_tokens = position_ids.shape[-1] if attention_mask is None else attention_mask.sum(dim=1, keepdim=True)
    cache.position_offset = position_ids[..., -1:].amax(dim=0) + 1 - num_tokens


def get_position_offset(cache: Cache, batch_size: int) -> torch.LongTensor:
    """
    Returns:
        `torch.LongTensor` of shape `(batch_size, 1)`: What [`set_position_offset`] kept.

    Raises:
        ValueError: If the cache was filled by other means, or for another number of rows.
    """
    offset = getattr(cache, "position_offset", None)
    if offset is None or len(offset) != batch_size:
        raise ValueError(
            "`position_ids` must be given with a cache that this model did not fill for these rows: images shift them "
            "by an unknown amount"
        )
    return offset


def continued_position_ids(
    num_tokens: int, past_length: int, offset: torch.LongTensor, attention_mask: torch.LongTensor | None
) -> torch.LongTensor:
    """
    Positions of text that follows what a cache holds.

    Args:
        num_tokens (`int`):
            Tokens of each row that follow.
        past_length (`int`):
            Tokens of each row in the cache, padding included.
        offset (`torch.LongTensor` of shape `(batch_size, 1)`):
            What [`set_position_offset`] kept.
        attention_mask (`torch.LongTensor` of shape `(batch_size, past_length + num_tokens)`, *optional*):
            1 at tokens, 0 at padding. All ones when missing.

    Returns:
        `torch.LongTensor` of shape `(3, batch_size, num_tokens)`
    """
    positions = past_length + torch.arange(num_tokens, device=offset.device)
    if attention_mask is not None and attention_mask.shape[1] == past_length + num_tokens:
        positions = attention_mask.cumsum(dim=1)[:, past_length:] - 1
    return (positions + offset).expand(3, -1, -1)

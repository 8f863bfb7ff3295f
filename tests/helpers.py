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
"""Tiny Dimple models and prompts that the tests share.

The models have two layers, 99 tokens and weights so large that confidences spread over the whole range.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration

# Tokens below 90 are text.
PAD, EOS, MASK, IMAGE, VIDEO, VISION_START, VISION_END, VISION = range(90, 98)
VOCAB_SIZE = 99

#: Values of one patch: 3 channels, 2 frames, 4 x 4 pixels.
PATCH_VALUES = 3 * 2 * 4 * 4

TINY_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "out_hidden_size": 20,
    "patch_size": 4,
    "window_size": 16,
    "fullatt_block_indexes": [1],
    "initializer_range": 0.3,
}


def tiny_config(**changes: Any) -> DimpleConfig:
    """A configuration with 2 text layers of width 32 and 2 vision layers of width 16, with some fields changed."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": [2, 1, 1],
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "rope_theta": 10000.0,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "mask_token_id": MASK,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "vision_token_id": VISION,
        "vision_config": TINY_VISION,
    }
    return DimpleConfig(**(fields | changes))


def tiny_model(seed: int = 0, **changes: Any) -> DimpleForConditionalGeneration:
    """
    A model of [`tiny_config`] with random weights, in evaluation mode. Its most probable token is never the padding
    or the end token (score 0 is never the largest of 99), so that an answer ends where a test wants it to.
    """
    torch.manual_seed(seed)
    model = DimpleForConditionalGeneration(tiny_config(**changes)).eval()
    with torch.no_grad():
        model.lm_head.weight[[PAD, EOS]] = 0
    return model


@dataclass(frozen=True)
class Prompt:
    """Tokens of one row and its images: `pixel_values` and `image_grid_thw`, stacked."""

    tokens: list[int]
    pixel_values: torch.Tensor = field(default_factory=lambda: torch.zeros(0, PATCH_VALUES))
    grids: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 3, dtype=torch.long))


def make_prompt(num_text: int, image_sizes: Sequence[tuple[int, int]] = (), seed: int = 0) -> Prompt:
    """`num_text` random text tokens, then each image (size in patches, rows x columns) and two more text tokens."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 90, (num_text,), generator=random).tolist()
    for height, width in image_sizes:
        tokens += [VISION_START, *[IMAGE] * (height * width // 4), VISION_END]
        tokens += torch.randint(0, 90, (2,), generator=random).tolist()
    num_patches = sum(height * width for height, width in image_sizes)
    return Prompt(
        tokens,
        torch.randn(num_patches, PATCH_VALUES, generator=random),
        torch.tensor([(1, *size) for size in image_sizes], dtype=torch.long).view(-1, 3),
    )


def model_inputs(*prompts: Prompt, padding_side: str = "left", width: int = 0) -> dict[str, torch.Tensor]:
    """`input_ids`, `attention_mask` and, where there are images, pixels and grids; padded to at least `width`."""
    width = max(width, *(len(prompt.tokens) for prompt in prompts))
    ids = torch.full((len(prompts), width), PAD)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        length = len(prompt.tokens)
        positions = slice(width - length, width) if padding_side == "left" else slice(0, length)
        ids[row, positions], mask[row, positions] = torch.tensor(prompt.tokens), 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    grids = torch.cat([prompt.grids for prompt in prompts])
    if len(grids):
        inputs |= {"pixel_values": torch.cat([prompt.pixel_values for prompt in prompts]), "image_grid_thw": grids}
    return inputs


#: Rows of different lengths with 0 to 3 images.
MIXED_PROMPTS = (
    make_prompt(5, seed=1),
    make_prompt(3, [(4, 4)], seed=2),
    make_prompt(6, [(4, 8), (8, 4)], seed=3),
    make_prompt(4, [(4, 4), (4, 12), (2, 2)], seed=4),
)


def parametrize_some(keep_every: int, **options: Mapping[str, Any] | Sequence[Any]) -> pytest.MarkDecorator:
    """
    Runs a test over all combinations of options. Those whose positions add up to a multiple of `keep_every` have every
    option among them; the others, which repeat them in other company, are `slow`.
    """
    columns = [
        list(enumerate(values.items() if isinstance(values, Mapping) else zip(map(str, values), values, strict=True)))
        for values in options.values()
    ]
    parameters = [
        pytest.param(
            *(value for _, (_, value) in row),
            id="-".join(name for _, (name, _) in row),
            marks=[pytest.mark.slow] if sum(position for position, _ in row) % keep_every else [],
        )
        for row in itertools.product(*columns)
    ]
    return pytest.mark.parametrize(tuple(options), parameters)

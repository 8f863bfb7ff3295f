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
"""The weights of a checkpoint from the headers of its files: names, types and shapes, compared with the model's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards

from ..modeling import DimpleConfig, DimpleForConditionalGeneration

#: Largest output file, which is also about all the memory that the copying takes.
MAX_SHARD_BYTES = 4 * 2**30

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """
    A weight in a file, as the file's header describes it.

    Args:
        file (`Path`):
            The safetensors file.
        name (`str`):
            Its name in that file.
        shape (`tuple[int, ...]`):
            Its shape.
        dtype (`str`):
            Its type in safetensors' spelling, such as `"BF16"`.
    """

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def expected_shapes(config: DimpleConfig) -> dict[str, tuple[int, ...]]:
    """
    Args:
        config (`DimpleConfig`):
            Shape of the model.

    Returns:
        `dict[str, tuple[int, ...]]`: Name and shape of every weight that a checkpoint of the model holds, in the
        model's order. A tied head is not stored.
    """
    with torch.device("meta"):
        model = DimpleForConditionalGeneration(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight")
    return shapes


def check_tensors(expected: dict[str, tuple[int, ...]], found: dict[str, StoredTensor]) -> None:
    """
    Compares what the model needs with what the files hold.

    Args:
        expected (`dict[str, tuple[int, ...]]`):
            Name and shape of every needed weight.
        found (`dict[str, StoredTensor]`):
            What the files hold, by Dimple's names.

    Raises:
        ValueError: If a weight is missing, unexpected or of another shape; all of them are named.
    """
    problems = [f"missing: {name}" for name in expected if name not in found]
    problems += [f"unexpected: {found[name].name} ({found[name].file.name})" for name in found if name not in expected]
    problems += [
        f"of another shape: {found[name].name} ({found[name].file.name}) has {found[name].shape}, not {shape}"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    if problems:
        raise ValueError(
            f"the weights must be those that `config.json` describes (got {len(problems)} that differ)\n  "
            + "\n  ".join(problems)
        )


def plan_shards(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_shard_bytes: int) -> StateDictSplit:
    """
    Args:
        shapes (`Mapping[str, tuple[int, ...]]`):
            Name and shape of every weight.
        dtype (`torch.dtype`):
            Its type.
        max_shard_bytes (`int`):
            Size that a file stays under, unless a single weight is larger.

    Returns:
        `StateDictSplit`: What goes into which file.
    """
    empty = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    return split_torch_state_dict_into_shards(empty, max_shard_size=max_shard_bytes)

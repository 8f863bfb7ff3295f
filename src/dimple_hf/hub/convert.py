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
"""Rewrites a checkpoint in a clean form: checked, in safetensors shards, with configurations of both spellings.

Source: the layout of the released model, whose parameter names are also ours. Weights pass through memory in pieces,
so that a checkpoint of any size needs no more than a few of these; quantized by a library, it needs as much as the
quantized model.
"""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub.utils import SafetensorsRepoMetadata
from transformers.utils import logging

from ..modeling import DimpleConfig, DimpleForConditionalGeneration, DimpleGenerationConfig
from ..modeling.weight_files_dimple import INDEX, refuse_damaged_files
from ..processing import DimpleProcessor
from ..quantization import check_quantization, quantization_config
from .doctor import check_checkpoint, load_config, open_checkpoint, read_headers
from .init import locate_checkpoint
from .weights import DTYPES, MAX_SHARD_BYTES, expected_shapes, plan_shards

#: Bytes of a source file that are in memory at a time, next to the same numbers in the new type.
PIECE_BYTES = 16 * 2**20

#: Files of the author that are about the weights and therefore stay with them.
KEPT_FILES = ("README.md", "LICENSE*", "NOTICE*")


@dataclass(frozen=True)
class SourceTensor:
    """
    A weight where it lies.

    Args:
        name (`str`):
            Its name.
        file (`Path`):
            A safetensors file.
        begin, end (`int`):
            Its bytes in that file.
        dtype (`torch.dtype`):
            Their type.
        shape (`tuple[int, ...]`):
            Its shape.
    """

    name: str
    file: Path
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]


def convert_checkpoint(
    source: str,
    output_dir: str | os.PathLike,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """
    Checks a checkpoint and writes a clean copy: weights, configurations, processor, generation options, and the code
    that lets it be used without this package.

    1. Refuse what cannot succeed: an output directory in use, a library that is missing, a checkpoint with problems
       (see [`~dimple_hf.hub.doctor.check_checkpoint`]), a full disk.
    2. Write to a directory beside `output_dir`: weights, then processor and options, the configuration last.
    3. Give that directory its name. An interrupted run leaves nothing that could be taken for a model, and what is
       left of one that was killed is cleared away by the next.

    Args:
        source (`str`):
            Directory, or Hub id.
        output_dir (`str` or `os.PathLike`):
            Where to write; must be new or empty.
        dtype (`torch.dtype`, *optional*):
            Type of the weights: float32, float16 or bfloat16. That of most of the source's when missing.
        quantization (`str`, *optional*):
            `"nf4"` or `"int8"` (bitsandbytes) or `"torchao-int8"`: the language model's layers are packed by that
            library, through transformers.
        max_shard_bytes (`int`, defaults to 4 GiB):
            Size that a file of weights stays under, unless a single weight is larger.

    Returns:
        `Path`: The output directory.

    Raises:
        ValueError: If something is to be refused, or a weight is not finite in the new type.

    Example:

    ```python
    >>> from dimple_hf.hub import convert_checkpoint

    >>> convert_checkpoint("rp-yu/Dimple-7B", "dimple-7b-int8", quantization="torchao-int8")
    ```
    """
    # 1.
    output_dir = Path(output_dir).absolute()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"the output directory must be new or empty (got {output_dir}, which is not)")
    if dtype is not None and dtype not in DTYPES.values():
        raise ValueError(f"`dtype` must be torch.float32, torch.float16 or torch.bfloat16 (got {dtype!r})")
    if max_shard_bytes < 1:
        raise ValueError(f"`max_shard_bytes` must be at least 1 (got {max_shard_bytes})")
    check_quantization(quantization)
    refuse_problems(source)
    with refuse_damaged_files(source):
        directory = locate_checkpoint(source, lambda name: name)
    config = load_config(directory)
    headers = read_headers(open_checkpoint(str(directory)))
    stored_dtype = DTYPES[max(headers.parameter_count, key=lambda name: headers.parameter_count[name])]
    config.dtype = stored_dtype if dtype is None else dtype
    if quantization is None:  # packed, they take less than can be known before
        check_free_space(output_dir.parent, expected_shapes(config), config.dtype)

    # 2.
    partial_dir = output_dir.with_name(output_dir.name + ".partial")
    if partial_dir.exists():
        shutil.rmtree(partial_dir)
    partial_dir.mkdir(parents=True)
    try:
        if quantization is None:
            write_weights(partial_dir, find_sources(directory, headers), config, max_shard_bytes)
        else:
            write_quantized(partial_dir, directory, config.dtype, quantization, max_shard_bytes)
        for pattern in KEPT_FILES:
            for file in directory.glob(pattern):
                shutil.copy(file, partial_dir)
        DimpleProcessor.from_pretrained(directory).save_pretrained(partial_dir)
        if quantization is None:
            read_generation_config(directory, config).save_pretrained(partial_dir)
            config.architectures = [DimpleForConditionalGeneration.__name__]
            config.save_pretrained(partial_dir)
        # 3.
        os.replace(partial_dir, output_dir)
    except BaseException:  # also when the user interrupts
        shutil.rmtree(partial_dir, ignore_errors=True)
        raise
    return output_dir


def refuse_problems(source: str) -> None:
    """
    Args:
        source (`str`):
            Directory, or Hub id, of which no weights are downloaded.

    Raises:
        ValueError: If its check finds problems, or if it is quantized already.
    """
    findings = check_checkpoint(source)
    pickled = [finding.message for finding in findings if finding.subject == "pickled files"]
    problems = [f"{finding.subject}: {finding.message}" for finding in findings if finding.status == "problem"]
    if problems:
        raise ValueError(
            f"{source} must be a checkpoint without problems (got {len(problems)}: {'; '.join(problems + pickled)})"
        )
    if getattr(load_config(open_checkpoint(source).directory), "quantization_config", None) is not None:
        raise ValueError(f"{source} must hold weights that are not quantized (got a `quantization_config`)")


def check_free_space(directory: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> None:
    """
    Args:
        directory (`Path`):
            Where a folder is to be made; it need not exist itself.
        shapes (`dict[str, tuple[int, ...]]`):
            Of the weights to write there.
        dtype (`torch.dtype`):
            Their type.

    Raises:
        ValueError: If the disk has less room than that.
    """
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    needed = dtype.itemsize * sum(torch.Size(shape).numel() for shape in shapes.values())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise ValueError(f"the disk must have room for {needed:,} bytes of weights (got {free:,} in {existing})")


def find_sources(directory: Path, headers: SafetensorsRepoMetadata) -> dict[str, SourceTensor]:
    """
    Args:
        directory (`Path`):
            A checkpoint that has been checked.
        headers (`SafetensorsRepoMetadata`):
            Of its weights.

    Returns:
        `dict[str, SourceTensor]`: Each weight's location by its name.
    """
    sources = {}
    for name, header in headers.files_metadata.items():
        file = directory / name
        with file.open("rb") as content:
            # A header's length in 8 bytes, the header, and then the tensors.
            start = 8 + int.from_bytes(content.read(8), "little")
        for key, tensor in header.tensors.items():
            begin, end = (start + offset for offset in tensor.data_offsets)
            sources[key] = SourceTensor(key, file, begin, end, DTYPES[tensor.dtype], tuple(tensor.shape))
    return sources


def write_weights(
    directory: Path, sources: dict[str, SourceTensor], config: DimpleConfig, max_shard_bytes: int
) -> None:
    """
    Writes all weights of a model, piece by piece.

    Args:
        directory (`Path`):
            Where to write.
        sources (`dict[str, SourceTensor]`):
            Where the weights lie.
        config (`DimpleConfig`):
            Its `dtype` is the type to write.
        max_shard_bytes (`int`):
            Size that a file stays under, unless a single weight is larger.

    Raises:
        ValueError: If a weight is not finite in the new type.
    """
    shapes = expected_shapes(config)
    plan = plan_shards(shapes, config.dtype, max_shard_bytes)
    with logging.tqdm(total=len(shapes), desc="weights", disable=None) as bar:
        for file, names in plan.filename_to_tensors.items():
            with (directory / file).open("wb") as output:
                output.write(shard_header([sources[name] for name in names], config.dtype))
                for name in names:
                    copy_tensor(sources[name], output, config.dtype)
                    bar.update()
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def shard_header(sources: list[SourceTensor], dtype: torch.dtype) -> bytes:
    """
    The header of a safetensors file, with the offsets of its tensors. The library writes files
    only from tensors that are in memory together.

    Args:
        sources (`list[SourceTensor]`):
            What the file is to hold, in order.
        dtype (`torch.dtype`):
            Type that it is to be written in.

    Returns:
        `bytes`
    """
    dtype_name = next(name for name, known in DTYPES.items() if known == dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for source in sources:
        begin, end = end, end + dtype.itemsize * torch.Size(source.shape).numel()
        header[source.name] = {"dtype": dtype_name, "shape": source.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors begin at a multiple of 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded


def copy_tensor(source: SourceTensor, output: BinaryIO, dtype: torch.dtype) -> None:
    """
    Copies one weight in another type.

    Args:
        source (`SourceTensor`):
            Where it lies.
        output (`BinaryIO`):
            Where to append it.
        dtype (`torch.dtype`):
            Type to write.

    Raises:
        ValueError: If it holds a number that is not finite in that type.
    """
    for piece in _read_pieces(source):
        converted = torch.frombuffer(piece, dtype=source.dtype).to(dtype)
        if not converted.isfinite().all():
            raise ValueError(
                f"{source.name} must be finite in {dtype} (got numbers that are not; float16 ends at 65504, bfloat16 "
                "and float32 go on)"
            )
        output.write(converted.view(torch.uint8).numpy().data)


def _read_pieces(source: SourceTensor) -> Iterator[bytearray]:
    """The bytes of a weight, `PIECE_BYTES` at a time; that is a multiple of every type's size."""
    with source.file.open("rb") as file:
        file.seek(source.begin)
        left = source.end - source.begin
        while left:
            piece = bytearray(min(left, PIECE_BYTES))
            if file.readinto(piece) < len(piece):
                raise ValueError(f"{source.file} must not change while it is read (got fewer bytes than before)")
            left -= len(piece)
            yield piece


def read_generation_config(directory: Path, config: DimpleConfig) -> DimpleGenerationConfig:
    """
    Args:
        directory (`Path`):
            A checkpoint.
        config (`DimpleConfig`):
            Its configuration.

    Returns:
        `DimpleGenerationConfig`: The checkpoint's own, or the defaults with the model's special tokens.
    """
    if (directory / "generation_config.json").is_file():
        return DimpleGenerationConfig.from_pretrained(directory)
    return DimpleGenerationConfig.from_model_config(config)


def write_quantized(
    output_dir: Path, directory: Path, dtype: torch.dtype, quantization: str, max_shard_bytes: int
) -> None:
    """
    Loads a checkpoint through transformers, which packs each weight as it comes, and saves the packed model.

    Args:
        output_dir (`Path`):
            Where to write.
        directory (`Path`):
            A checkpoint that has been checked.
        dtype (`torch.dtype`):
            Type of what stays whole.
        quantization (`str`):
            One of `QUANTIZATIONS`.
        max_shard_bytes (`int`):
            Size that a file stays under, unless a single weight is larger.
    """
    model = DimpleForConditionalGeneration.from_pretrained(
        directory,
        dtype=dtype,
        quantization_config=quantization_config(quantization),
        device_map={"": "cuda" if torch.cuda.is_available() else "cpu"},
    )
    model.save_pretrained(output_dir, max_shard_size=max_shard_bytes)

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
"""Builds an untrained Dimple from public parts: a language model, the vision tower of a Qwen2.5-VL, a new projector.

Source: Dimple, section 3 (arXiv 2505.16990): Dream-7B, Qwen2.5-VL's tower, a projector made from nothing. Everything
is checked by name and shape from the headers of the files before the first weight is read; then weights pass through
memory one output shard at a time.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.dataclasses import StrictDataclassFieldValidationError
from safetensors import safe_open

from ..modeling import DimpleConfig, DimpleForConditionalGeneration, DimpleGenerationConfig, DimpleVisionConfig
from ..modeling.weight_files_dimple import INDEX, read_header, read_index, read_json
from ..processing import DimpleImageProcessor, DimpleProcessor, DimpleTokenizer
from .files import find_files
from .weights import DTYPES, MAX_SHARD_BYTES, StoredTensor, check_tensors, expected_shapes

#: Area of the largest image in training (336 x 336 pixels, Dimple, section 4), the image processor's upper bound.
MAX_PIXELS = 336 * 336

PROJECTOR_PREFIX = "img_projector."

#: Types of language models whose layers are Dimple's, by `model_type` in their `config.json`.
LANGUAGE_MODEL_TYPES = ("Dream", "qwen2", "qwen2_5_vl")
VISION_MODEL_TYPES = ("qwen2_5_vl",)

#: Fields that Dimple takes over from a language model's `config.json`.
LANGUAGE_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "attention_dropout", "use_sliding_window",
)  # fmt: skip

#: Fields that Dimple takes over from a vision tower's config; `in_chans` is the older name of `in_channels`.
VISION_FIELDS = (
    "depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "tokens_per_second", "window_size", "out_hidden_size",
    "fullatt_block_indexes", "initializer_range",
)  # fmt: skip

PAD_TOKEN, CHAT_END_TOKEN, MASK_TOKEN = "<|endoftext|>", "<|im_end|>", "<|mask|>"

#: Config field -> its token. Tokens that a language model's tokenizer lacks are added to it.
SPECIAL_TOKENS = {
    "pad_token_id": PAD_TOKEN,
    "eos_token_id": CHAT_END_TOKEN,
    "mask_token_id": MASK_TOKEN,
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_token_id": "<|vision_pad|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}

#: Writes chats as the released model's template does.
CHAT_TEMPLATE = (
    "{% set images = namespace(count=0) %}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ['image', 'image_url'] %}{% set images.count = images.count + 1 %}"
    "{% if add_vision_id %}Picture {{ images.count }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def language_name(name: str) -> str | None:
    """
    Args:
        name (`str`):
            Weight in a checkpoint of Dream, Qwen2, or Qwen2.5-VL in its older or newer layout.

    Returns:
        `str`, *optional*: The same weight's name in Dimple; `None` if it is not part of the language model.
    """
    if name.startswith(("visual.", "model.visual.")) or name.endswith("rotary_emb.inv_freq"):
        return None
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name


def vision_name(name: str) -> str | None:
    """
    Args:
        name (`str`):
            Weight in a checkpoint of Qwen2.5-VL, in its older (`visual.*`) or newer layout (`model.visual.*`).

    Returns:
        `str`, *optional*: The same weight's name in Dimple; `None` if it is not part of the vision tower.
    """
    name = name.removeprefix("model.")
    return name if name.startswith("visual.") else None


def locate_checkpoint(source: str, rename: Callable[[str], str | None]) -> Path:
    """
    Finds a checkpoint's directory, and downloads from the Hub what is needed of it: of a Qwen2.5-VL's shards, for
    example, only the ones with the vision tower.

    Args:
        source (`str`):
            Directory, or Hub id.
        rename (`Callable[[str], str | None]`):
            Gives `None` for weights that are not needed.

    Returns:
        `Path`: The directory.

    Raises:
        ValueError: If `source` is a path without a directory.
        OSError: If there is no such checkpoint.
    """
    directory, _ = find_files(source)
    if Path(source).is_dir():
        return directory
    index = directory / INDEX
    patterns = ["model.safetensors"]
    if index.is_file():
        patterns = sorted({file for name, file in read_index(index).items() if rename(name) is not None})
    return find_files(source, patterns)[0]


def find_tensors(directory: Path, rename: Callable[[str], str | None]) -> dict[str, StoredTensor]:
    """
    Reads the headers of a checkpoint's safetensors files; no weight is read.

    Args:
        directory (`Path`):
            The checkpoint: `model.safetensors`, or shards with `model.safetensors.index.json`.
        rename (`Callable[[str], str | None]`):
            From a name in the files to Dimple's; `None`: not needed.

    Returns:
        `dict[str, StoredTensor]`: The needed weights by Dimple's names.

    Raises:
        ValueError: If there are no safetensors files, the index and the shards differ, a file is broken, or a weight
            is stored in another type than float32, float16 and bfloat16.
    """
    index, single = directory / INDEX, directory / "model.safetensors"
    if index.is_file():
        wanted = {name: file for name, file in read_index(index).items() if rename(name) is not None}
    elif single.is_file():
        wanted = {name: single.name for name in read_header(single) if rename(name) is not None}
    elif any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise ValueError(
            f"{directory} must hold its weights as safetensors (got pickled files, which can run code when they are "
            "read): load them on a machine without secrets and save them with `model.save_pretrained(...)`"
        )
    else:
        raise ValueError(f"{directory} must hold model.safetensors or model.safetensors.index.json (got neither)")
    tensors: dict[str, StoredTensor] = {}
    for file in sorted(set(wanted.values())):
        header = read_header(directory / file)
        for name in [name for name in wanted if wanted[name] == file]:
            if name not in header:
                raise ValueError(f"{directory / file} must hold {name}, as the index lists it (got a file without it)")
            dtype, shape = header[name]
            if dtype not in DTYPES:
                raise ValueError(
                    f"{name} in {directory / file} must be stored as float32, float16 or bfloat16 (got {dtype}): "
                    "quantized checkpoints cannot be taken apart"
                )
            new_name = str(rename(name))
            if new_name in tensors:
                raise ValueError(f"{directory} must hold {new_name} once (got {tensors[new_name].name} and {name})")
            tensors[new_name] = StoredTensor(directory / file, name, shape, dtype)
    return tensors


def _check_type(raw: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    if raw.get("model_type") not in known:
        raise ValueError(f"the {what} must be of type {' or '.join(known)} (got {raw.get('model_type')!r})")


def _language_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Dimple's fields from the raw `config.json` of a language model, or of a Qwen2.5-VL in either layout."""
    _check_type(raw, LANGUAGE_MODEL_TYPES, "language model")
    text = raw.get("text_config") or raw
    fields = {name: text[name] for name in LANGUAGE_FIELDS if text.get(name) is not None}
    fields["tie_word_embeddings"] = bool(raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))

    # transformers 5 writes `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`.
    rope = dict(text.get("rope_parameters") or text.get("rope_scaling") or {})
    sections = rope.pop("mrope_section", None)
    theta = rope.pop("rope_theta", text.get("rope_theta"))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    if kind not in ("default", "mrope") or theta is None:
        raise ValueError(
            "the language model must have plain rotary positions with a base `rope_theta` "
            f"(got type {kind!r} and base {theta})"
        )
    head_size = fields["hidden_size"] // fields["num_attention_heads"]
    fields["rope_theta"] = float(theta)
    fields["mrope_section"] = sections or split_rotary_frequencies(head_size // 2)
    return fields


def split_rotary_frequencies(num_frequencies: int) -> list[int]:
    """
    Shares rotary frequencies among the three axes of an image's positions, for a language model that has one axis.

    Args:
        num_frequencies (`int`):
            Half the size of an attention head.

    Returns:
        `list[int]`: Frequencies for time, height and width in Qwen2.5-VL's proportion 2 : 3 : 3; `[16, 24, 24]` of 64.
    """
    time = num_frequencies // 4
    height = (num_frequencies - time) // 2
    return [time, height, num_frequencies - time - height]


def _vision_config(raw: dict[str, Any]) -> DimpleVisionConfig:
    """The tower's config from the raw `config.json` of a Qwen2.5-VL."""
    _check_type(raw, VISION_MODEL_TYPES, "vision model")
    vision: dict[str, Any] = raw.get("vision_config") or {}
    if "in_chans" in vision:
        vision = {"in_channels": vision["in_chans"], **vision}
    return DimpleVisionConfig(**{name: vision[name] for name in VISION_FIELDS if vision.get(name) is not None})


def build_config(
    language: dict[str, Any], vision: dict[str, Any], tokenizer: DimpleTokenizer, dtype: torch.dtype
) -> DimpleConfig:
    """
    Joins two configurations into Dimple's, in its first, causal phase.

    Args:
        language (`dict[str, Any]`):
            The language model's `config.json`.
        vision (`dict[str, Any]`):
            The `config.json` of the Qwen2.5-VL that the tower comes from.
        tokenizer (`DimpleTokenizer`):
            Gives the ids of the special tokens.
        dtype (`torch.dtype`):
            Type of the weights.

    Returns:
        `DimpleConfig`

    Raises:
        ValueError: If a model is of another type or shape than Dimple's, or the tokenizer has more tokens than the
            language model has embeddings.
    """
    fields = _language_fields(language)
    ids = tokenizer.get_vocab()
    if len(tokenizer) > fields["vocab_size"]:
        raise ValueError(
            f"the language model must have an embedding for each of the tokenizer's {len(tokenizer)} tokens, those "
            f"for images and masks included (got {fields['vocab_size']})"
        )
    try:
        return DimpleConfig(
            vision_config=_vision_config(vision),
            full_attn_mask=False,
            dtype=dtype,
            **fields,
            **{field: ids[token] for field, token in SPECIAL_TOKENS.items()},
        )
    except StrictDataclassFieldValidationError as error:
        raise ValueError(f"the models' configurations must have fields of the right type (got: {error})") from error


def build_tokenizer(directory: Path) -> DimpleTokenizer:
    """
    Args:
        directory (`Path`):
            The language model's checkpoint.

    Returns:
        `DimpleTokenizer`: Its tokenizer, with Dimple's special tokens and chat template.
    """
    tokenizer = DimpleTokenizer.from_pretrained(directory)
    vocab = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocab]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    tokenizer.pad_token, tokenizer.eos_token = PAD_TOKEN, CHAT_END_TOKEN
    tokenizer.padding_side = "left"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_projector(config: DimpleConfig, seed: int) -> dict[str, torch.Tensor]:
    """
    Draws the projector's weights as the model's own initialisation does: normal matrices, zero biases.

    Args:
        config (`DimpleConfig`):
            Gives the shapes and the standard deviation, `initializer_range`.
        seed (`int`):
            Seed of the draw.

    Returns:
        `dict[str, torch.Tensor]`: Float32 weights by their names in the model.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in expected_shapes(config).items():
        if name.startswith(PROJECTOR_PREFIX):
            weights[name] = torch.zeros(shape)
            if name.endswith(".weight"):
                weights[name].normal_(std=config.initializer_range, generator=generator)
    return weights


def read_weights(stored: dict[str, StoredTensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """
    Args:
        stored (`dict[str, StoredTensor]`):
            Where the weights are, by Dimple's names.
        dtype (`torch.dtype`):
            Type to read them in.

    Returns:
        `dict[str, torch.Tensor]`: The weights. Those of that type stay in their files until they are used.
    """
    weights = {}
    for file in sorted({tensor.file for tensor in stored.values()}):
        with safe_open(file, framework="pt") as content:
            for name, tensor in stored.items():
                if tensor.file == file:
                    weights[name] = content.get_tensor(tensor.name).to(dtype)
    return weights


def initialize_dimple(
    output_dir: str | os.PathLike,
    vision_model: str,
    language_model: str | None = None,
    seed: int = 0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """
    Writes an untrained Dimple, ready for the alignment stage, from public checkpoints.

    The files are written to a directory beside `output_dir`, which takes its name when everything is there: what an
    interrupted run leaves after cannot be taken for a model, and the next run clears it away.

    Args:
        output_dir (`str` or `os.PathLike`):
            Where to write; must not exist, or be empty.
        vision_model (`str`):
            Directory or Hub id of a Qwen2.5-VL, which gives the vision tower and the image processor's settings.
        language_model (`str`, *optional*):
            Directory or Hub id of a Dream, Qwen2 or Qwen2.5-VL, which gives the language model and the tokenizer;
            `vision_model` when missing.
        seed (`int`, defaults to 0):
            Seed of the projector, below 2**64.
        max_shard_bytes (`int`, defaults to 4 GiB):
            Largest file, and about the memory that is needed.

    Returns:
        `Path`: `output_dir`.

    Raises:
        ValueError: If `output_dir` holds files, `seed` is out of range, or a checkpoint lacks required weights; see
            [`find_tensors`], [`build_config`] and [`check_tensors`].
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise ValueError(f"`seed` must be an integer from 0 to 2**64 - 1 (got {seed!r})")
    output_dir = Path(output_dir).absolute()
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"the output directory must be new or empty (got {output_dir}, which is not)")

    # 1. Describe: configurations and headers, no weights.
    language_dir = locate_checkpoint(language_model or vision_model, language_name)
    vision_dir = locate_checkpoint(vision_model, vision_name)
    language, vision = read_json(language_dir / "config.json"), read_json(vision_dir / "config.json")
    _check_type(language, LANGUAGE_MODEL_TYPES, "language model")
    _check_type(vision, VISION_MODEL_TYPES, "vision model")
    stored = find_tensors(language_dir, language_name)
    if "model.embed_tokens.weight" not in stored:
        raise ValueError(
            f"{language_dir} must hold the weights of a language model (got no model.embed_tokens.weight)"
        )
    dtype = DTYPES[stored["model.embed_tokens.weight"].dtype]
    stored |= find_tensors(vision_dir, vision_name)

    # 2. Check: every name and shape.
    tokenizer = build_tokenizer(language_dir)
    config = build_config(language, vision, tokenizer, dtype)
    shapes = expected_shapes(config)
    if config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
    check_tensors({name: shape for name, shape in shapes.items() if not name.startswith(PROJECTOR_PREFIX)}, stored)
    image_processor = build_image_processor(vision_dir, _vision_config(vision))

    # 3. Write. The configuration comes last and the name last of all.
    partial_dir = output_dir.with_name(output_dir.name + ".partial")
    if partial_dir.exists():
        shutil.rmtree(partial_dir)
    partial_dir.mkdir(parents=True)
    DimpleProcessor(image_processor, tokenizer).save_pretrained(partial_dir)
    weights = read_weights(stored, dtype) | {
        name: weight.to(dtype) for name, weight in new_projector(config, seed).items()
    }
    save_torch_state_dict(weights, partial_dir, max_shard_size=max_shard_bytes)
    generation_config = DimpleGenerationConfig.from_model_config(config)
    # Answers end with padding, and causal decoding stops at what is named here only.
    generation_config.eos_token_id = [config.eos_token_id, config.pad_token_id]
    generation_config.save_pretrained(partial_dir)
    config.architectures = [DimpleForConditionalGeneration.__name__]
    config.save_pretrained(partial_dir)
    os.replace(partial_dir, output_dir)
    return output_dir


def build_image_processor(directory: Path, vision_config: DimpleVisionConfig) -> DimpleImageProcessor:
    """
    Args:
        directory (`Path`):
            Checkpoint of the vision model.
        vision_config (`DimpleVisionConfig`):
            The tower that will read the patches.

    Returns:
        `DimpleImageProcessor`: With the vision model's normalisation and least size, and the training's largest size.

    Raises:
        ValueError: If the settings are missing or cut other patches than the tower reads.
    """
    if not (directory / "preprocessor_config.json").is_file():
        raise ValueError(f"{directory} must have a preprocessor_config.json (got none)")
    least = DimpleImageProcessor.from_pretrained(directory).size["shortest_edge"]
    processor = DimpleImageProcessor.from_pretrained(
        directory, size={"shortest_edge": min(least, MAX_PIXELS), "longest_edge": MAX_PIXELS}
    )
    for name, of_tower in (
        ("patch_size", vision_config.patch_size),
        ("temporal_patch_size", vision_config.temporal_patch_size),
        ("merge_size", vision_config.spatial_merge_size),
    ):
        if getattr(processor, name) != of_tower:
            raise ValueError(
                f"`{name}` in {directory / 'preprocessor_config.json'} must be the vision tower's {of_tower} "
                f"(got {getattr(processor, name)})"
            )
    return processor

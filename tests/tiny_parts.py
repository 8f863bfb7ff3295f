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
"""Tiny random checkpoints in the formats of Dimple's public parts: Dream, and Qwen2.5-VL in both of its layouts.

Used by the tests of `dimple_hf.hub.init` and of `dimple-hf init`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TOKENIZER = Path(__file__).resolve().parent / "fixtures" / "parity" / "tokenizer"
VOCAB_SIZE = 440

LANGUAGE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": None,
}
VISION = {
    "depth": 2,
    "hidden_size": 16,
    "hidden_act": "silu",
    "intermediate_size": 24,
    "num_heads": 2,
    "in_chans": 3,
    "out_hidden_size": 32,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "spatial_patch_size": 14,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "window_size": 112,
    "fullatt_block_indexes": [1],
}
DREAM_CONFIG = LANGUAGE | {
    "architectures": ["DreamModel"],
    "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
    "model_type": "Dream",
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "mask_token_id": 423,
    "pad_token_id": 420,
    "torch_dtype": "bfloat16",
}


def language_shapes(prefix: str = "model.") -> dict[str, tuple[int, ...]]:
    """Names and shapes of the language model's weights."""
    hidden, inner, kv = LANGUAGE["hidden_size"], LANGUAGE["intermediate_size"], 16
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (VOCAB_SIZE, hidden)}
    for layer in range(LANGUAGE["num_hidden_layers"]):
        for name, width in (("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{prefix}layers.{layer}.self_attn.{name}.weight"] = (width, hidden)
            shapes[f"{prefix}layers.{layer}.self_attn.{name}.bias"] = (width,)
        shapes[f"{prefix}layers.{layer}.self_attn.o_proj.weight"] = (hidden, hidden)
        shapes[f"{prefix}layers.{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}layers.{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}layers.{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{prefix}layers.{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
    return shapes | {f"{prefix}norm.weight": (hidden,), "lm_head.weight": (VOCAB_SIZE, hidden)}


def vision_shapes(prefix: str = "visual.") -> dict[str, tuple[int, ...]]:
    """Names and shapes of the vision tower's weights."""
    hidden, inner, merged = VISION["hidden_size"], VISION["intermediate_size"], 4 * VISION["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}patch_embed.proj.weight": (hidden, 3, 2, 14, 14)}
    for block in range(VISION["depth"]):
        for name, shape in {
            "norm1": (hidden,), "norm2": (hidden,), "attn.qkv": (3 * hidden, hidden), "attn.proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        }.items():  # fmt: skip
            shapes[f"{prefix}blocks.{block}.{name}.weight"] = shape
            if len(shape) == 2:
                shapes[f"{prefix}blocks.{block}.{name}.bias"] = shape[:1]
    shapes[f"{prefix}merger.ln_q.weight"] = (hidden,)
    for layer, width in ((0, merged), (2, VISION["out_hidden_size"])):
        shapes[f"{prefix}merger.mlp.{layer}.weight"] = (width, merged)
        shapes[f"{prefix}merger.mlp.{layer}.bias"] = (width,)
    return shapes


def random_weights(
    shapes: dict[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.bfloat16
) -> dict[str, torch.Tensor]:
    """Random weights of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def write_sharded(directory: Path, weights: dict[str, torch.Tensor], num_shards: int = 2) -> None:
    """Writes weights as shards with an index; the shards hold every `num_shards`-th weight."""
    weight_map = {
        name: f"model-{1 + n % num_shards:05d}-of-{num_shards:05d}.safetensors" for n, name in enumerate(weights)
    }
    for file in set(weight_map.values()):
        save_file({name: tensor for name, tensor in weights.items() if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_tokenizer(directory: Path, tokenizer_class: str, left_out: tuple[str, ...] = ()) -> None:
    """Writes the fixture's tokenizer as another model's, without the tokens in `left_out` (the last ones)."""
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(TOKENIZER / file, directory)
    config = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {
        token_id: token
        for token_id, token in config["added_tokens_decoder"].items()
        if token["content"] not in left_out
    }
    config["additional_special_tokens"] = [t for t in config["additional_special_tokens"] if t not in left_out]
    if config["mask_token"] in left_out:
        del config["mask_token"]
    config |= {
        "tokenizer_class": tokenizer_class,
        "auto_map": {"AutoTokenizer": ["tokenization_other.OtherTokenizer", None]},
        "eos_token": "<|endoftext|>",
        "chat_template": "another one",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_dream(directory: Path, left_out: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    """Writes a language model as Dream's release lays it out; returns its weights."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(DREAM_CONFIG))
    weights = random_weights(language_shapes(), seed=1)
    write_sharded(directory, weights)
    write_tokenizer(directory, "DreamTokenizer", left_out)
    return weights


def qwen_config(new_layout: bool) -> dict[str, Any]:
    """The `config.json` of a Qwen2.5-VL: flat as released, or nested as transformers 5 saves it."""
    top = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    if not new_layout:
        rope = {"rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 4]}}
        return top | LANGUAGE | rope | {"tie_word_embeddings": False, "vision_config": VISION}
    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [2, 2, 4]}
    text = LANGUAGE | {"model_type": "qwen2_5_vl_text", "rope_parameters": rope}
    return top | {"text_config": text, "vision_config": VISION, "tie_word_embeddings": False}


def write_qwen(
    directory: Path, new_layout: bool = False, dtype: torch.dtype = torch.bfloat16
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Writes a Qwen2.5-VL; returns the weights of its vision tower and of its language model by Dimple's names."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(qwen_config(new_layout)))
    vision = random_weights(vision_shapes(), seed=2, dtype=dtype)
    language = random_weights(language_shapes(), seed=3, dtype=dtype)
    if new_layout:
        stored = {f"model.{name}": tensor for name, tensor in vision.items()}
        stored |= {
            name if name == "lm_head.weight" else f"model.language_model.{name.removeprefix('model.')}": tensor
            for name, tensor in language.items()
        }
    else:
        stored = vision | language
    write_sharded(directory, stored, num_shards=3)
    write_tokenizer(directory, "Qwen2Tokenizer", left_out=("<|mask|>",))
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14,
        "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25],
    }  # fmt: skip
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return vision, language

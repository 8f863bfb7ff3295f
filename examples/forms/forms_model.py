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
"""The small forms model before training: about 3 M parameters in Dimple's own classes, and its processor.

A tower of 4 layers x 128 with full attention (an image has 30 tokens; windows would cut rows apart) and a language
model of 4 layers x 192. `python examples/forms/forms_model.py OUT [--visual FILE] [--weights CHECKPOINT]` writes the
directory that a training recipe starts from: untrained, or with the weights of an earlier small model, whose tokenizer
may have had fewer tokens.
"""

import argparse
from pathlib import Path

import torch
from forms_data import CELL, GRID_COLUMNS, GRID_ROWS
from forms_tokenizer import write_tokenizer
from safetensors.torch import load_file

from dimple_hf import (
    DimpleConfig,
    DimpleForConditionalGeneration,
    DimpleImageProcessor,
    DimpleProcessor,
    DimpleTokenizer,
    DimpleVisionConfig,
)

NUM_PIXELS = GRID_ROWS * GRID_COLUMNS * CELL**2

VISION_DEPTH = 4


def vision_config() -> DimpleVisionConfig:
    """The tower: 1.3 M parameters."""
    return DimpleVisionConfig(
        depth=VISION_DEPTH,
        hidden_size=128,
        intermediate_size=344,
        num_heads=4,
        out_hidden_size=192,
        fullatt_block_indexes=list(range(VISION_DEPTH)),
    )


def model_config(tokenizer: DimpleTokenizer) -> DimpleConfig:
    """The whole model, in its first phase (`full_attn_mask=False`: causal).

    Args:
        tokenizer (`DimpleTokenizer`): Gives the size of the vocabulary and the ids of the special tokens.
    """
    ids = tokenizer.get_vocab()
    return DimpleConfig(
        vision_config=vision_config(),
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        # Images are 5x6 tokens and answers below 64: a small base keeps neighbours apart in every rotary dimension,
        # and the columns get the most dimensions because theirs turn slowest.
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        mrope_section=[2, 4, 10],
        full_attn_mask=False,
        bos_token_id=ids["<|im_start|>"],
        eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"],
        mask_token_id=ids["<|mask|>"],
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
    )


def write_model(directory: Path, visual: Path | None = None, weights: Path | None = None, seed: int = 0) -> None:
    """Writes model and processor to `directory`, ready for training.

    Args:
        directory (`Path`): Where to write.
        visual (`Path`, *optional*): `visual.safetensors` of a vision stage; random weights without it.
        weights (`Path`, *optional*): Checkpoint of an earlier small model to start from; random weights without it.
        seed (`int`, defaults to 0): Seed of the random weights.
    """
    write_tokenizer(directory)
    tokenizer = DimpleTokenizer.from_pretrained(directory)
    # A form photographed larger or smaller arrives at the size of training, also where its sides are cut a little.
    image_processor = DimpleImageProcessor(min_pixels=9 * NUM_PIXELS // 10, max_pixels=11 * NUM_PIXELS // 10)
    DimpleProcessor(image_processor, tokenizer).save_pretrained(directory)
    torch.manual_seed(seed)
    model = DimpleForConditionalGeneration(model_config(tokenizer))
    if weights is not None:
        take_weights(model, tokenizer, weights)
    if visual is not None:
        model.visual.load_state_dict(load_file(visual))
    model.save_pretrained(directory)


def take_weights(model: DimpleForConditionalGeneration, tokenizer: DimpleTokenizer, checkpoint: Path) -> None:
    """Copies the weights of an earlier small model.

    A token that its tokenizer did not have begins as the mean of the tokens that this one wrote instead.

    Args:
        model ([`DimpleForConditionalGeneration`]): Gets the weights.
        tokenizer ([`DimpleTokenizer`]): The model's tokenizer.
        checkpoint (`Path`): Directory of the earlier model.
    """
    earlier = DimpleForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).state_dict()
    earlier_tokenizer = DimpleTokenizer.from_pretrained(checkpoint)
    num_tokens = len(earlier_tokenizer)
    shares = torch.zeros(len(tokenizer), num_tokens)
    for token, index in tokenizer.get_vocab().items():
        known = earlier_tokenizer.get_vocab().get(token)
        text = tokenizer.decode([index])
        pieces = earlier_tokenizer(text, add_special_tokens=False)["input_ids"] if known is None else [known]
        shares[index] = torch.bincount(torch.tensor(pieces), minlength=num_tokens) / len(pieces)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        earlier[name] = shares @ earlier[name]
    model.load_state_dict(earlier)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the small forms model as training starts from it.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--visual", type=Path, default=Path("runs/forms/vision/visual.safetensors"))
    parser.add_argument("--weights", type=Path, help="checkpoint of an earlier small model (default: random weights)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_model(args.directory, args.visual, args.weights, args.seed)


if __name__ == "__main__":
    main()

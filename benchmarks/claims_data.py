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
"""What `claims.py` trains on: forms of three to five rows, and a pool of images that are encoded once.

Forms are those of `examples/forms` without the small ones: three to five labels, numbers of up to four digits, 30
image tokens, answers of 11 to 34 tokens. The vision tower is that of the model that ships and stays frozen. So does
the projector, which is random: what the language model gets of an image never changes. It is computed once for each
image of the pool, and a step of training costs the language model alone.
"""

import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from dimple_hf import (
    DimpleConfig,
    DimpleForConditionalGeneration,
    DimpleImageProcessor,
    DimpleProcessor,
    DimpleTokenizer,
)
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.training import DimpleDataCollator
from dimple_hf.training.collator import TrainingSequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "forms"))

from forms_data import CELL, GRID_COLUMNS, GRID_ROWS, draw_form, form_rng, render_form
from forms_dataset import write_text
from forms_model import model_config
from forms_tokenizer import write_tokenizer

SEED = 1
"""Of the images; those of the forms example have another."""
MIN_ROWS = 3
QUESTION = "Read the form."
ANSWER_LENGTH = 48
"""Positions of a canvas in training at most, and by default in evaluation; the longest answer has 34 tokens."""
SHORT_ANSWER = 15
"""Most tokens of a short answer, which fits 16 positions with the padding that ends it."""

LANGUAGE_MODEL = {
    "num_hidden_layers": 4,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>{% endfor %}"
)
"""Without a system message and roles: what all prompts share teaches nothing and costs time."""


def claims_row(split: str, index: int) -> dict[str, Any]:
    """Example `index` of a split, as a chat.

    Args:
        split (`str`): `"train"` or `"test"`; no digit image is in both.
        index (`int`): The example.

    Returns:
        `dict[str, Any]`: The fields of `forms_dataset.forms_row`.
    """
    rng = form_rng(split, index, SEED)
    form = draw_form(split, rng)
    while len(form.rows) < MIN_ROWS:
        form = draw_form(split, rng)
    answer = write_text(form.fields)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    assistant = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return {
        "messages": [user, assistant],
        "images": [render_form(form, split, rng)],
        "kind": "text",
        "question": QUESTION,
        "answer": answer,
        "fields": json.dumps(form.fields),
    }


def short_rows(split: str, num_rows: int, tokenizer: DimpleTokenizer) -> list[dict[str, Any]]:
    """The first examples whose answers have at most `SHORT_ANSWER` tokens."""
    rows = (claims_row(split, index) for index in count())
    return list(islice((row for row in rows if len(tokenizer(row["answer"])["input_ids"]) <= SHORT_ANSWER), num_rows))


def write_untrained(directory: Path, seed: int, tower: Path = FORMS_CHECKPOINT) -> None:
    """Writes the model that all ways of training start from, and its processor.

    Args:
        directory (`Path`): Where to write.
        seed (`int`): Seed of the random weights: projector and language model.
        tower (`Path`, defaults to the model that ships): Checkpoint whose vision tower is taken.
    """
    write_tokenizer(directory)
    tokenizer = DimpleTokenizer.from_pretrained(directory)
    num_pixels = GRID_ROWS * GRID_COLUMNS * CELL**2
    image_processor = DimpleImageProcessor(min_pixels=num_pixels, max_pixels=num_pixels)
    DimpleProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE).save_pretrained(directory)
    larger = model_config(tokenizer).to_dict()
    del larger["layer_types"]  # one for each layer; the config fills it in
    torch.manual_seed(seed)
    model = DimpleForConditionalGeneration(DimpleConfig(**larger | LANGUAGE_MODEL))
    trained = DimpleForConditionalGeneration.from_pretrained(tower, dtype=torch.float32)
    model.visual.load_state_dict(trained.visual.state_dict())
    model.save_pretrained(directory)


def pool_name(model_dir: Path, num_images: int) -> str:
    """Name of the file of `write_pool`: another for each tower and vocabulary, so that no model meets old tokens."""
    tower = load_file(model_dir / "model.safetensors")["visual.merger.mlp.2.weight"].numpy().tobytes()
    checksum = zlib.crc32((model_dir / "vocab.json").read_bytes() + tower)
    return f"pool-{num_images}-{checksum:08x}.safetensors"


@torch.inference_mode()
def write_pool(file: Path, model_dir: Path, num_images: int, batch_size: int = 64) -> None:
    """Encodes the training images with the frozen tower.

    Args:
        file (`Path`): Where to write `features` (float32 of shape `(num_images, 30, vision_width)`), and the tokens
            of the chats, answers padded by [`DimpleDataCollator`]: `input_ids` (int64 of shape `(num_images,
            length)`), of which `lengths` count, `num_prompt_tokens` of them not learned.
        model_dir (`Path`): A directory of `write_untrained`, of any seed.
        num_images (`int`): How many.
        batch_size (`int`, defaults to 64): Images that the tower takes at once.
    """
    tower = DimpleForConditionalGeneration.from_pretrained(model_dir).eval().visual
    collator = DimpleDataCollator(DimpleProcessor.from_pretrained(model_dir))
    features, tokens, num_prompt_tokens = [], [], []
    for start in tqdm(range(0, num_images, batch_size), desc="encode images"):
        rows = [claims_row("train", index) for index in range(start, min(start + batch_size, num_images))]
        batch = [sequence for row in rows for sequence in collator.read_sequences(row)]
        pixel_values = torch.cat([sequence.pixel_values for sequence in batch])
        grid = torch.cat([sequence.image_grid_thw for sequence in batch])
        features.append(tower(pixel_values, grid_thw=grid).pooler_output.view(len(rows), GRID_ROWS * GRID_COLUMNS, -1))
        tokens += [torch.tensor(sequence.input_ids) for sequence in batch]
        num_prompt_tokens += [sequence.labels.count(-100) for sequence in batch]
    tensors = {
        "features": torch.cat(features),
        "input_ids": torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True),
        "lengths": torch.tensor([len(ids) for ids in tokens]),
        "num_prompt_tokens": torch.tensor(num_prompt_tokens),
    }
    partial = file.with_suffix(".partial")
    save_file(tensors, partial)
    os.replace(partial, file)


class Pool(Sequence):
    """
    Encoded images with their chats, as rows for [`PoolCollator`].

    Args:
        file (`Path`):
            A file of `write_pool`.
        model_dir (`Path`):
            The model whose projector maps the features.
    """

    @torch.inference_mode()
    def __init__(self, file: Path, model_dir: Path) -> None:
        self.tensors = load_file(file)
        model = DimpleForConditionalGeneration.from_pretrained(model_dir)
        self.features = model.img_projector(self.tensors.pop("features"))

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = self.tensors["input_ids"][index][: self.tensors["lengths"][index]].tolist()
        num_prompt_tokens = int(self.tensors["num_prompt_tokens"][index])
        sequence = TrainingSequence(tokens, [-100] * num_prompt_tokens + tokens[num_prompt_tokens:])
        return {"sequence": sequence, "features": self.features[index]}


def pool_rows(file: str, model_dir: str) -> Pool:
    """The rows of a recipe: `data.train.location` is `"claims_data:pool_rows"`."""
    return Pool(Path(file), Path(model_dir))


class PoolCollator(DimpleDataCollator):
    """
    As [`DimpleDataCollator`], but of rows that are read already, with encoded images instead of pixels.
    """

    def read_sequences(self, row: Mapping[str, Any]) -> list[TrainingSequence]:
        return [row["sequence"]]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        grid = torch.tensor([[1, 2 * GRID_ROWS, 2 * GRID_COLUMNS]])
        features = BaseModelOutputWithPooling(pooler_output=tuple(row["features"] for row in rows))
        images = {"image_grid_thw": grid.repeat(len(rows), 1), "mm_encoder_outputs": {"image": features}}
        return super().__call__(rows) | images

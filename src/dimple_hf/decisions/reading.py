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
"""Reads probabilities off masked positions: one forward pass over prompts and canvases, nothing is generated.

A canvas is an answer whose fixed text is given. At its masked positions the model says how probable each candidate
token is, given the prompt, the images and the rest of the canvas (Dimple, section 3, arXiv 2505.16990: one step of the
reverse process). In causal mode a position sees only what precedes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling import DimpleForConditionalGeneration
from ..processing import DimpleProcessor

Conversation = list[dict[str, Any]]
"""Messages with a `role` and a `content`, as [`DimpleProcessor.apply_chat_template`] takes them."""


@dataclass(frozen=True)
class Read:
    """
    A position to read.

    Args:
        position (`int`):
            Position in the canvas. It must hold the mask token.
        token_ids (`tuple[int, ...]`):
            Candidate tokens.
    """

    position: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Canvas:
    """
    One row of a forward pass.

    Args:
        input_index (`int`):
            Which input it is about. Rows about one input share its encoded images.
        prompt (`str`):
            Text that ends the user's turn.
        token_ids (`tuple[int, ...]`):
            The answer, with the mask token at positions that are not given.
        reads (`tuple[Read, ...]`):
            What to read.
    """

    input_index: int
    prompt: str
    token_ids: tuple[int, ...]
    reads: tuple[Read, ...]


def with_prompt(conversation: Conversation, prompt: str) -> Conversation:
    """
    Ends a conversation with a text of the user.

    Args:
        conversation (`list[dict]`):
            Messages.
        prompt (`str`):
            Added to the last message if that is the user's, on a line of its own after other text; else a new message.

    Returns:
        `list[dict]`: New messages; those given are not changed.
    """
    if not conversation or conversation[-1]["role"] != "user":
        return [*conversation, {"role": "user", "content": [{"type": "text", "text": prompt}]}]
    content = conversation[-1]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    if parts and parts[-1].get("type") == "text":
        prompt = "\n" + prompt
    return [*conversation[:-1], conversation[-1] | {"content": [*parts, {"type": "text", "text": prompt}]}]


def count_images(conversation: Conversation) -> int:
    """Number of image parts in a conversation."""
    contents = [message["content"] for message in conversation if not isinstance(message["content"], str)]
    return sum(part.get("type") in ("image", "image_url") for content in contents for part in content)


@torch.no_grad()
def read_canvases(
    model: DimpleForConditionalGeneration,
    processor: DimpleProcessor,
    inputs: Sequence[Conversation],
    canvases: Sequence[Canvas],
    batch_size: int,
) -> Iterator[list[torch.Tensor]]:
    """
    Reads canvases in batches of one forward pass each. The images of an input are encoded once.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model.
        processor ([`DimpleProcessor`]):
            Its processor.
        inputs (`Sequence[list[dict]]`):
            Conversations.
        canvases (`Sequence[Canvas]`):
            Rows, ordered by `input_index`.
        batch_size (`int`):
            Most rows of a forward pass.

    Yields:
        `list[torch.FloatTensor]`: For each canvas in turn, the log-probabilities of the candidates of each read,
        float32 on the CPU, under the distribution over the whole vocabulary without the mask token.
    """
    features: dict[int, torch.Tensor] = {}  # of the images of each input that later rows may be about
    for start in range(0, len(canvases), batch_size):
        batch = canvases[start : start + batch_size]
        prompts = _prompts(processor, inputs, batch).to(model.device)
        image_features = _image_features(model, inputs, batch, prompts, features)
        log_probs = _forward(model, processor, batch, prompts, image_features)
        for canvas in batch:
            picked, log_probs = log_probs.split([len(canvas.reads), len(log_probs) - len(canvas.reads)])
            yield [row[list(read.token_ids)].cpu() for row, read in zip(picked, canvas.reads, strict=True)]


def _prompts(processor: DimpleProcessor, inputs: Sequence[Conversation], batch: Sequence[Canvas]) -> Any:
    return processor.apply_chat_template(
        [with_prompt(inputs[canvas.input_index], canvas.prompt) for canvas in batch],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True,
    )  # fmt: skip


def _image_features(
    model: DimpleForConditionalGeneration,
    inputs: Sequence[Conversation],
    batch: Sequence[Canvas],
    prompts: Any,
    features: dict[int, torch.Tensor],
) -> torch.Tensor | None:
    """Features of the images of all rows, in order; those of new inputs are encoded and kept in `features`."""
    for index in [index for index in features if index < batch[0].input_index]:
        del features[index]
    if "image_grid_thw" not in prompts:
        return None
    grids = prompts["image_grid_thw"].split([count_images(inputs[canvas.input_index]) for canvas in batch])
    patches = prompts["pixel_values"].split([int(grid.prod(dim=1).sum()) for grid in grids])
    new = {
        canvas.input_index: row
        for row, canvas in reversed(list(enumerate(batch)))
        if canvas.input_index not in features and len(grids[row])
    }
    if new:
        pixel_values = torch.cat([patches[row] for row in new.values()])
        image_grid_thw = torch.cat([grids[row] for row in new.values()])
        encoded = iter(model.get_image_features(pixel_values, image_grid_thw).pooler_output)
        for index, row in new.items():
            features[index] = torch.cat([next(encoded) for _ in range(len(grids[row]))])
    return torch.cat([features[canvas.input_index] for canvas in batch if canvas.input_index in features])


def _forward(
    model: DimpleForConditionalGeneration,
    processor: DimpleProcessor,
    batch: Sequence[Canvas],
    prompts: Any,
    image_features: torch.Tensor | None,
) -> torch.Tensor:
    """Log-probabilities over the vocabulary at the reads of all rows, `(num_reads, vocab_size)` in float32."""
    tokenizer, device = processor.tokenizer, model.device
    length = max(len(canvas.token_ids) for canvas in batch)
    answer_ids = torch.full((len(batch), length), tokenizer.pad_token_id, device=device)
    for row, canvas in enumerate(batch):
        answer_ids[row, : len(canvas.token_ids)] = torch.tensor(canvas.token_ids, device=device)
    lengths = torch.tensor([len(canvas.token_ids) for canvas in batch], device=device)
    answer_mask = torch.arange(length, device=device) < lengths[:, None]
    input_ids = torch.cat([prompts["input_ids"], answer_ids], dim=1)
    attention_mask = torch.cat([prompts["attention_mask"], answer_mask.long()], dim=1)
    image_grid_thw = prompts.get("image_grid_thw")
    read_at = torch.tensor(
        [(row, read.position) for row, canvas in enumerate(batch) for read in canvas.reads], device=device
    )
    # The logits of a position predict the token after it.
    rows, before = read_at[:, 0], read_at[:, 1] + prompts["input_ids"].shape[1] - 1
    images = None
    if image_features is not None:
        images = {"image": BaseModelOutputWithPooling(pooler_output=(image_features,))}
    logits = model(
        input_ids,
        attention_mask=attention_mask,
        position_ids=model.get_rope_index(input_ids, image_grid_thw, attention_mask),
        image_grid_thw=image_grid_thw,
        mm_encoder_outputs=images,
        logits_to_keep=(rows, before),
    ).logits.float()
    logits[:, model.config.mask_token_id] = -torch.inf
    return logits.log_softmax(dim=-1)

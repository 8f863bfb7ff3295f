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

A canvas is an answer whose fixed text is given. At its masked positions the model gives each candidate token a
probability, given the prompt, the images and the rest of the canvas (Dimple, section 3, arXiv 2505.16990: one step of
the reverse process). In causal mode a position sees only what precedes it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling import DimpleForConditionalGeneration
from ..modeling.generation_inputs_dimple import check_length
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


class CanvasReader:
    """
    Reads canvases with a model, a batch of rows for each forward pass. The images of an input are encoded once.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model.
        pad_token_id (`int`):
            Pads canvases on the right.
    """

    def __init__(self, model: DimpleForConditionalGeneration, pad_token_id: int):
        self.model = model
        self.pad_token_id = pad_token_id
        self._features: dict[int, torch.Tensor] = {}  # of the images of inputs that later rows may be about

    @torch.no_grad()
    def read(
        self, canvases: Sequence[Canvas], prompts: Mapping[str, Any], num_images: Sequence[int] = ()
    ) -> list[list[torch.Tensor]]:
        """
        Runs one forward pass.

        Args:
            canvases (`Sequence[Canvas]`):
                Rows, ordered by `input_index` within a call and from call to call.
            prompts (`Mapping[str, torch.Tensor]`):
                Their prompts, as the processor makes them, padded on the left; with `mm_encoder_outputs` instead of
                `pixel_values`, images are encoded already.
            num_images (`Sequence[int]`):
                Images in each prompt; used only with `pixel_values`.

        Returns:
            `list[list[torch.FloatTensor]]`: For each canvas and read, the log-probabilities of the candidates, float32
            on the CPU, under the distribution over the whole vocabulary without the mask token.

        Raises:
            ValueError: If a prompt and its canvas have more tokens than the model has positions.
        """
        prompt_lengths = prompts["attention_mask"].sum(dim=1).tolist()
        for canvas, length in zip(canvases, prompt_lengths, strict=True):
            check_length(length, len(canvas.token_ids), self.model.config.max_position_embeddings)
        encoded = prompts.get("mm_encoder_outputs")
        prompts = {name: tensor.to(self.model.device) for name, tensor in prompts.items() if tensor is not encoded}
        if encoded is None:
            features = self._image_features(canvases, prompts, num_images)
            if features is not None:
                encoded = {"image": BaseModelOutputWithPooling(pooler_output=(features,))}
        log_probs = self._forward(canvases, prompts, encoded)
        rows = iter(log_probs)
        return [[next(rows)[list(read.token_ids)].cpu() for read in canvas.reads] for canvas in canvases]

    def _image_features(
        self, canvases: Sequence[Canvas], prompts: Mapping[str, torch.Tensor], num_images: Sequence[int]
    ) -> torch.Tensor | None:
        """Features of the images of all rows, in order; those of inputs that have not been met are encoded."""
        for index in [index for index in self._features if index < canvases[0].input_index]:
            del self._features[index]
        if "image_grid_thw" not in prompts:
            return None
        grids = prompts["image_grid_thw"].split(list(num_images))
        patches = prompts["pixel_values"].split([int(grid.prod(dim=1).sum()) for grid in grids])
        new: dict[int, int] = {}  # input -> the first row that is about it
        for row, canvas in enumerate(canvases):
            if canvas.input_index not in self._features and len(grids[row]):
                new.setdefault(canvas.input_index, row)
        if new:
            encoded = self.model.get_image_features(
                torch.cat([patches[row] for row in new.values()]), torch.cat([grids[row] for row in new.values()])
            )
            images = iter(encoded.pooler_output)
            for index, row in new.items():
                self._features[index] = torch.cat([next(images) for _ in grids[row]])
        return torch.cat(
            [self._features[canvas.input_index] for canvas in canvases if canvas.input_index in self._features]
        )

    def _forward(
        self,
        canvases: Sequence[Canvas],
        prompts: Mapping[str, torch.Tensor],
        images: Mapping[str, BaseModelOutputWithPooling] | None,
    ) -> torch.Tensor:
        """Log-probabilities over the vocabulary at the reads of all rows, `(num_reads, vocab_size)` in float32."""
        device = self.model.device
        tokens = [torch.tensor(canvas.token_ids, device=device) for canvas in canvases]
        answer_ids = pad_sequence(tokens, batch_first=True, padding_value=self.pad_token_id)
        answer_mask = pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True)
        input_ids = torch.cat([prompts["input_ids"], answer_ids], dim=1)
        attention_mask = torch.cat([prompts["attention_mask"], answer_mask], dim=1)
        image_grid_thw = prompts.get("image_grid_thw")
        read_at = torch.tensor(
            [(row, read.position) for row, canvas in enumerate(canvases) for read in canvas.reads], device=device
        )
        # The logits of a position predict the token after it.
        rows, before = read_at[:, 0], read_at[:, 1] + prompts["input_ids"].shape[1] - 1
        logits = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=self.model.get_rope_index(input_ids, image_grid_thw, attention_mask),
            image_grid_thw=image_grid_thw,
            mm_encoder_outputs=images,
            logits_to_keep=(rows, before),
        ).logits.float()
        logits[:, self.model.config.mask_token_id] = -torch.inf
        return logits.log_softmax(dim=-1)


def read_canvases(
    model: DimpleForConditionalGeneration,
    processor: DimpleProcessor,
    inputs: Sequence[Conversation],
    canvases: Sequence[Canvas],
    batch_size: int,
) -> Iterator[list[torch.Tensor]]:
    """
    Reads canvases about conversations.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            The model and its processor.
        inputs (`Sequence[list[dict]]`):
            Conversations.
        canvases (`Sequence[Canvas]`):
            Rows, ordered by `input_index`.
        batch_size (`int`):
            Most rows of a forward pass.

    Yields:
        `list[torch.FloatTensor]`: See [`CanvasReader.read`]; for each canvas in turn.
    """
    reader = CanvasReader(model, processor.tokenizer.pad_token_id)
    for start in range(0, len(canvases), batch_size):
        batch = canvases[start : start + batch_size]
        prompts = processor.apply_chat_template(
            [with_prompt(inputs[canvas.input_index], canvas.prompt) for canvas in batch],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True,
        )  # fmt: skip
        yield from reader.read(batch, prompts, [count_images(inputs[canvas.input_index]) for canvas in batch])

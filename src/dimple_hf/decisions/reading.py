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

Several questions about one input are branches of one row. The input is their trunk: it sees itself only, and each
branch sees it and itself, at the positions that it would have alone. So no answer depends on the other questions:

```text
           input   1. Is ..? 1.[mask]   1. Which ..? 1.[mask]
input        x
branch 1     x             x
branch 2     x                                 x
```
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import is_flash_attention_requested

from ..modeling import DimpleForConditionalGeneration
from ..modeling.generation_inputs_dimple import check_length
from ..modeling.turns_dimple import branch_offsets
from ..processing import DimpleProcessor

Conversation = list[dict[str, Any]]
"""Messages with a `role` and a `content`, as [`DimpleProcessor.apply_chat_template`] takes them."""


@dataclass(frozen=True)
class Branch:
    """
    One question of a canvas: what it adds to the input, and what is read.

    Args:
        prompt (`str`):
            Text that ends the user's turn.
        prompt_ids (`tuple[int, ...]`):
            Its tokens; needed where the canvas keeps its questions apart.
        token_ids (`tuple[int, ...]`):
            The answer, with the mask token at positions that are not given.
        position (`int`):
            Position in the answer to read. It must hold the mask token.
        candidates (`tuple[int, ...]`):
            Candidate tokens there.
    """

    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    position: int
    candidates: tuple[int, ...]


@dataclass(frozen=True)
class Canvas:
    """
    One row of a forward pass.

    Args:
        input_index (`int`):
            Which input it is about. Rows about one input share its encoded images.
        branches (`tuple[Branch, ...]`):
            Its questions.
        is_isolated (`bool`):
            Whether the input does not see the questions: so it must be if they are several.
    """

    input_index: int
    branches: tuple[Branch, ...]
    is_isolated: bool

    @property
    def prompt(self) -> str:
        """The text that ends the user's turn in the row's prompt: that of its first question."""
        return self.branches[0].prompt

    @property
    def num_more_tokens(self) -> int:
        """Tokens of the questions after the first."""
        return sum(len(branch.prompt_ids) for branch in self.branches[1:])

    @property
    def answer_length(self) -> int:
        """Positions after the row's prompt that the longest question needs."""
        longest = max(len(branch.prompt_ids) + len(branch.token_ids) for branch in self.branches)
        return longest - len(self.branches[0].prompt_ids)


@dataclass(frozen=True)
class _Row:
    """
    The tokens of a canvas after its prompt, which ends with the first question.

    Args:
        answer_ids (`list[int]`):
            The answer to the first question, then the other questions with theirs.
        branch_ids (`list[int]`):
            Of the tokens of the prompt without padding and of `answer_ids`: 0 in the trunk, then 1, 2, ...
        read_at (`list[int]`):
            Positions in `answer_ids` to read, one for each question.
    """

    answer_ids: list[int]
    branch_ids: list[int]
    read_at: list[int]


def _row_of(canvas: Canvas, prompt_ids: list[int]) -> _Row:
    """
    Puts the branches of a canvas after its prompt.

    Raises:
        ValueError: If the chat template does not keep the text of a question as it is.
    """
    first, *others = canvas.branches
    start, end = len(prompt_ids), len(prompt_ids)
    if canvas.is_isolated:
        size = len(first.prompt_ids)
        start = next(
            (i for i in range(len(prompt_ids) - size, -1, -1) if tuple(prompt_ids[i : i + size]) == first.prompt_ids),
            -1,
        )
        if start < 0:
            raise ValueError(
                "`independent=True` must be set for a chat template that changes the text of a question (got "
                f"{first.prompt!r}, whose tokens are not in the prompt)"
            )
        end = start + size
    answer_ids, read_at = list(first.token_ids), [first.position]
    branch_ids = [0] * start + [int(canvas.is_isolated)] * (len(prompt_ids) - start + len(answer_ids))
    for number, branch in enumerate(others, start=2):
        before = [*branch.prompt_ids, *prompt_ids[end:]]
        read_at.append(len(answer_ids) + len(before) + branch.position)
        answer_ids += [*before, *branch.token_ids]
        branch_ids += [number] * (len(before) + len(branch.token_ids))
    return _Row(answer_ids, branch_ids, read_at)


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


def check_attention(model: DimpleForConditionalGeneration, canvases: Sequence[Canvas]) -> None:
    """
    Refuses canvases that the model's attention cannot read.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model.
        canvases (`Sequence[Canvas]`):
            Canvases of questions.

    Raises:
        ValueError: If questions are to be kept apart, and the attention takes no mask.
    """
    if is_flash_attention_requested(model.config) and any(canvas.is_isolated for canvas in canvases):
        raise ValueError(
            "`independent=True` must be set with FlashAttention, which cannot keep questions of a row apart: "
            f"`--independent` on the command line (got attn_implementation={model.config._attn_implementation!r})"
        )


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
            `list[list[torch.FloatTensor]]`: For each canvas and branch, the log-probabilities of the candidates, in
            float32 on the CPU, under the distribution over the whole vocabulary without the mask token.

        Raises:
            ValueError: If a prompt and its canvas have more tokens than the model has positions, or the attention
                cannot keep questions apart.
        """
        check_attention(self.model, canvases)
        masks = prompts["attention_mask"].bool()
        prompt_ids = [ids[mask].tolist() for ids, mask in zip(prompts["input_ids"], masks, strict=True)]
        for canvas, ids in zip(canvases, prompt_ids, strict=True):
            check_length(len(ids), canvas.answer_length, self.model.config.max_position_embeddings)
        rows = [_row_of(canvas, ids) for canvas, ids in zip(canvases, prompt_ids, strict=True)]
        encoded = prompts.get("mm_encoder_outputs")
        prompts = {name: tensor.to(self.model.device) for name, tensor in prompts.items() if tensor is not encoded}
        if encoded is None:
            features = self._image_features(canvases, prompts, num_images)
            if features is not None:
                encoded = {"image": BaseModelOutputWithPooling(pooler_output=(features,))}
        log_probs = iter(self._forward(rows, prompts, encoded))
        return [[next(log_probs)[list(branch.candidates)].cpu() for branch in canvas.branches] for canvas in canvases]

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
        rows: Sequence[_Row],
        prompts: Mapping[str, torch.Tensor],
        images: Mapping[str, BaseModelOutputWithPooling] | None,
    ) -> torch.Tensor:
        """Log-probabilities over the vocabulary at the reads of all rows, `(num_reads, vocab_size)` in float32."""
        device, num_prompt_tokens = self.model.device, prompts["input_ids"].shape[1]
        answers = [torch.tensor(row.answer_ids, device=device) for row in rows]
        answer_ids = pad_sequence(answers, batch_first=True, padding_value=self.pad_token_id)
        answer_mask = pad_sequence([torch.ones_like(row) for row in answers], batch_first=True)
        input_ids = torch.cat([prompts["input_ids"], answer_ids], dim=1)
        attention_mask = torch.cat([prompts["attention_mask"], answer_mask], dim=1)
        branch_ids = torch.zeros_like(input_ids)
        branch_ids[attention_mask.bool()] = torch.tensor([i for row in rows for i in row.branch_ids], device=device)
        image_grid_thw = prompts.get("image_grid_thw")
        trunk_mask = attention_mask * (branch_ids == 0)
        position_ids = self.model.get_rope_index(input_ids, image_grid_thw, trunk_mask) + branch_offsets(branch_ids)
        read_at = torch.tensor([(i, at) for i, row in enumerate(rows) for at in row.read_at], device=device)
        logits = self.model(
            input_ids,
            attention_mask=self._attention_mask(input_ids, attention_mask, branch_ids),
            position_ids=position_ids,
            image_grid_thw=image_grid_thw,
            mm_encoder_outputs=images,
            # The logits of a position predict the token after it.
            logits_to_keep=(read_at[:, 0], num_prompt_tokens + read_at[:, 1] - 1),
        ).logits.float()
        logits[:, self.model.config.mask_token_id] = -torch.inf
        return logits.log_softmax(dim=-1)

    def _attention_mask(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, branch_ids: torch.Tensor
    ) -> torch.Tensor | dict[str, torch.Tensor | None]:
        """What `forward` takes: the mask of padding, or that of branches where there are any."""
        if not branch_ids.any():
            return attention_mask
        embeddings = self.model.get_input_embeddings()(input_ids)
        is_causal = not self.model.config.full_attn_mask
        return self.model.model.prepare_attention_mask(embeddings, attention_mask, None, is_causal, branch_ids)


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

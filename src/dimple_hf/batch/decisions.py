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
"""Decisions about many images, a batch of canvases in each forward pass."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers.feature_extraction_utils import BatchFeature

from ..decisions.decide import answer_from
from ..decisions.layout import LabelLayout, TextLayout
from ..decisions.reading import Canvas, CanvasReader, check_attention, with_prompt
from .answers import Answerer

#: Seconds after which the canvases of a batch get a progress bar of their own: long texts of options are many.
PROGRESS_DELAY = 2.0


class DecisionAnswerer(Answerer):
    """
    Answers typed questions about each row, which has one image. `options` holds `layout` (see [`lay_out`]; the prompt
    of its first canvas ends each row's chat), `questions`, `calibration`, `batch_size`, the most canvases of one
    forward pass, and `shows_progress`, whether a batch that takes long shows how many of its canvases are read.

    Raises:
        ValueError: If questions are to be kept apart, and the model's attention takes no mask.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layout: LabelLayout | TextLayout = self.options["layout"]
        canvases = self.layout.canvases(0)
        check_attention(self.model, canvases)
        self._endings = {canvas.prompt: self._ending(canvas.prompt) for canvas in canvases}

    def _ending(self, prompt: str) -> list[int]:
        """The tokens of a chat after its image."""
        chat = with_prompt([{"role": "user", "content": [{"type": "image"}]}], prompt)
        text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ending = text.rpartition(self.processor.image_token)[2]
        return self.processor.tokenizer(ending, add_special_tokens=False)["input_ids"]

    def generate(self, inputs: BatchFeature) -> list[dict[str, Any]]:
        """
        Args:
            inputs (`BatchFeature`):
                What [`prepare`] has made of prompts.

        Returns:
            `list[dict[str, Any]]`: For each row `{"answers": [...]}`, in the form of OpenAI's decisions.
        """
        num_rows = len(inputs["input_ids"])
        reads = self._read([canvas for row in range(num_rows) for canvas in self.layout.canvases(row)], inputs)
        lines = []
        for _ in range(num_rows):
            log_probs = self.layout.log_probs([next(reads) for _ in range(self.layout.num_canvases)])
            answers = [
                answer_from(question, probabilities, self.options.get("calibration"))
                for question, probabilities in zip(self.options["questions"], log_probs, strict=True)
            ]
            lines.append({"answers": [answer.to_dict() for answer in answers]})
        return lines

    def _read(self, canvases: Sequence[Canvas], inputs: BatchFeature) -> Iterator[list[torch.Tensor]]:
        """See [`CanvasReader.read`]; for each canvas in turn."""
        reader = CanvasReader(self.model, self.processor.tokenizer.pad_token_id)
        size = self.options["batch_size"]
        is_quiet = not self.options.get("shows_progress")
        with tqdm(
            total=len(canvases), desc="canvases", unit="canvas", leave=False, delay=PROGRESS_DELAY, disable=is_quiet
        ) as progress:
            for start in range(0, len(canvases), size):
                batch = canvases[start : start + size]
                yield from reader.read(batch, self._prompts(batch, inputs), [1] * len(batch))
                progress.update(len(batch))

    def _prompts(self, canvases: Sequence[Canvas], inputs: BatchFeature) -> dict[str, torch.Tensor]:
        """The inputs of canvases: the beginning of their row up to the end of the image, then their own ending."""
        rows = [canvas.input_index for canvas in canvases]
        grids = inputs["image_grid_thw"]
        patches = inputs["pixel_values"].split(grids.prod(dim=1).tolist())
        is_image = inputs["input_ids"] == self.processor.image_token_id
        ends = is_image.shape[1] - is_image.flip(1).int().argmax(dim=1)
        is_kept = inputs["attention_mask"].bool() & (torch.arange(is_image.shape[1]) < ends[:, None])
        token_ids = [
            inputs["input_ids"][canvas.input_index, is_kept[canvas.input_index]].tolist()
            + self._endings[canvas.prompt]
            for canvas in canvases
        ]
        padded = self.processor.tokenizer.pad({"input_ids": token_ids}, padding_side="left", return_tensors="pt")
        return {
            "input_ids": padded["input_ids"],
            "attention_mask": padded["attention_mask"],
            "image_grid_thw": grids[rows],
            "pixel_values": torch.cat([patches[row] for row in rows]),
        }

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
"""Decisions about many inputs: one forward pass for each batch of rows."""

from typing import Any

import torch
from transformers.feature_extraction_utils import BatchFeature

from ..decisions.decide import answer_from
from ..decisions.layout import LabelLayout
from ..decisions.reading import CanvasReader
from .answers import Answerer


class DecisionAnswerer(Answerer):
    """
    Answers typed questions about each row. `options` holds `layout` ([`LabelLayout`] with one canvas, whose prompt
    ends each row's chat), `questions` and `calibration`.
    """

    def generate(self, inputs: BatchFeature) -> list[dict[str, Any]]:
        """
        Args:
            inputs (`BatchFeature`):
                What [`prepare`] has made of prompts.

        Returns:
            `list[dict[str, Any]]`: For each row `{"answers": [...]}`, in the form of OpenAI's decisions.
        """
        layout: LabelLayout = self.options["layout"]
        num_rows = len(inputs["input_ids"])
        canvases = [canvas for row in range(num_rows) for canvas in layout.canvases(row)]
        reader = CanvasReader(self.model, self.processor.tokenizer.pad_token_id)
        reads = reader.read(canvases, dict(inputs), self._count_images(inputs))
        lines = []
        for row in range(num_rows):
            log_probs = layout.log_probs(reads[row : row + 1])
            answers = [
                answer_from(question, probabilities, self.options.get("calibration"))
                for question, probabilities in zip(self.options["questions"], log_probs, strict=True)
            ]
            lines.append({"answers": [answer.to_dict() for answer in answers]})
        return lines

    def _count_images(self, inputs: BatchFeature) -> list[int]:
        """Images of each row: runs of placeholders, as images are set apart by other tokens."""
        is_image = inputs["input_ids"] == self.processor.image_token_id
        begins = is_image & ~torch.nn.functional.pad(is_image, (1, -1))
        return begins.sum(dim=1).tolist()

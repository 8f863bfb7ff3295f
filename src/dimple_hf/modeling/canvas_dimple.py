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
"""Runs the model over a prompt and an answer canvas, as often as denoising asks, computing only what a step needs.

Source: "prefilling" in Dimple, section 4.3 (arXiv 2505.16990). Knows the prompt, the cache and the attention mask;
knows nothing of how tokens are chosen. Imported by `denoising_dimple` and
`generation_dimple`.
"""

import torch
from transformers import PreTrainedModel

from .cache_dimple import PromptCache


class CanvasRunner:
    """
    One prompt batch with room for an answer.

    The images are encoded before, once, and the prompt is embedded once: an image placeholder that the model writes
    into the answer is a token like any other. With the cache, the first pass runs all places and later ones only the
    last prompt token, whose output predicts the first answer token, and the answer. The attention mask of each kind
    of pass is prepared once; without padding there is none, which lets sdpa take its fastest kernels.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
            Prompt tokens, padded on the left.
        attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length + answer_length)`):
            1 at tokens, 0 at padding.
        position_ids (`torch.LongTensor` of shape `(3, batch_size, prompt_length + answer_length)`):
            Positions on the three axes.
        image_features (`torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
            Features of all images, in the order of their placeholders.
        use_cache (`bool`):
            Whether to keep the prompt's keys and values of the first pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor,
        position_ids: torch.LongTensor,
        image_features: torch.FloatTensor | None,
        use_cache: bool,
    ):
        self.model = model
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        self.prompt_embeds = model.embed(input_ids, image_features)
        self.cache = PromptCache(model.config.num_hidden_layers, input_ids.shape[1] - 1) if use_cache else None
        self._masks: dict[int, dict[str, torch.Tensor | None]] = {}

    def logits(self, answer: torch.LongTensor, places: torch.BoolTensor) -> torch.FloatTensor:
        """
        Scores for some places of the answer.

        Args:
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens, masked where not yet decided.
            places (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` where scores are wanted.

        Returns:
            `torch.FloatTensor` of shape `(num_places, vocab_size)`: Logits in float32, row by row.
        """
        start = self._first_place()
        keep = places.new_zeros(len(answer), self.attention_mask.shape[1] - start)
        keep[:, -answer.shape[1] - 1 : -1] = places  # the output one place before a token predicts it
        return self._run(answer, start, keep)

    def all_logits(self, answer: torch.LongTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """
        Scores for every place that this pass runs: the whole sequence, or with a filled cache its end.

        Args:
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens, masked where not yet decided.

        Returns:
            `tuple(torch.LongTensor, torch.FloatTensor)` of shapes `(batch_size, length)` and
            `(batch_size, length, vocab_size)`: Tokens, and float32 logits shifted so that those at place j are for the
            token at place j (the first place keeps its own).
        """
        start = self._first_place()
        logits = self._run(answer, start, None)
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1)
        return torch.cat([self.input_ids[:, start:], answer], dim=1), logits

    def select_rows(self, rows: torch.LongTensor) -> None:
        """Makes `rows` (`torch.LongTensor` of shape `(num_rows,)`) the new batch; one may come twice."""
        self.input_ids, self.attention_mask = self.input_ids[rows], self.attention_mask[rows]
        self.prompt_embeds, self.position_ids = self.prompt_embeds[rows], self.position_ids[:, rows]
        if self.cache is not None and self.cache.get_seq_length() > 0:
            self.cache.batch_select_indices(rows)
        self._masks.clear()

    def _first_place(self) -> int:
        return 0 if self.cache is None else self.cache.get_seq_length()

    def _run(self, answer: torch.LongTensor, start: int, keep: torch.BoolTensor | None) -> torch.FloatTensor:
        logits = self.model(
            inputs_embeds=torch.cat([self.prompt_embeds[:, start:], self.model.embed(answer)], dim=1),
            attention_mask=self._prepared_mask(start),
            position_ids=self.position_ids[:, :, start:],
            past_key_values=self.cache,
            is_causal=False,
            logits_to_keep=keep,
        ).logits
        return logits.to(answer.device, torch.float32)

    def _prepared_mask(self, start: int) -> dict[str, torch.Tensor | None]:
        if start not in self._masks:
            length = self.attention_mask.shape[1] - start
            # Only shape, dtype and device of the embeddings matter to a mask.
            shape_only = torch.empty(
                len(self.attention_mask), length, 0, dtype=self.model.dtype, device=self.attention_mask.device
            )
            padding = None if bool(self.attention_mask.all()) else self.attention_mask
            self._masks[start] = self.model.model.prepare_attention_mask(
                shape_only, padding, self.cache, is_causal=False
            )
        return self._masks[start]

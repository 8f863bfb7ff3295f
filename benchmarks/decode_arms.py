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
"""What takes turns in the decoding benchmark: `generate`, the original's loop, and the bare layers.

Each arm takes one denoising step at a time. The plain loop is also what tests compare `generate` with.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from dimple_hf import DimpleForConditionalGeneration

SEED = 0


@dataclass(frozen=True)
class Case:
    """A batch and an answer to measure all arms on."""

    batch_size: int
    answer_length: int
    num_steps: int


class PlainLoop:
    """
    Greedy decoding by the adaptive schedule with all exact savings off, which is how the original does it.

    Each pass makes a dense mask, so that sdpa gets repeated key and value heads; scores all its positions, shifts the
    scores by a copy, and takes two softmaxes at the masked ones, one of them of a copy. With the cache, each layer
    concatenates the prompt's keys and values with the answer's. Without, each pass encodes the images again. The mask
    token is never chosen, as in `generate`.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        prompt (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask`, `pixel_values` and `image_grid_thw`, without padding.
        answer_length, num_steps (`int`):
            Positions of the answer; steps of the schedule.
        use_cache (`bool`):
            Whether to keep the prompt's keys and values of the first pass.
    """

    def __init__(
        self,
        model: DimpleForConditionalGeneration,
        prompt: dict[str, torch.Tensor],
        answer_length: int,
        num_steps: int,
        use_cache: bool,
    ):
        self.model = model
        self.prompt_ids = prompt["input_ids"]
        self.images = {"pixel_values": prompt["pixel_values"], "image_grid_thw": prompt["image_grid_thw"]}
        self.mask_token_id = model.config.mask_token_id
        self.answer = self.prompt_ids.new_full((len(self.prompt_ids), answer_length), self.mask_token_id)
        canvas = torch.cat([self.prompt_ids, self.answer], dim=1)
        self.position_ids = model.get_rope_index(canvas, prompt["image_grid_thw"])
        self.times = torch.linspace(1, 1e-3, num_steps + 1)
        self.cache = DynamicCache() if use_cache else None
        self.num_steps_done = 0

    @torch.no_grad()
    def step(self) -> None:
        """Runs the model once and unmasks what the schedule says."""
        scores = self._scores()
        masked = self.answer == self.mask_token_id
        scores = scores[:, -self.answer.shape[1] :][masked]
        scores[:, self.mask_token_id] = -torch.inf
        original = scores.clone().softmax(dim=-1)
        tokens = scores.softmax(dim=-1).argmax(dim=-1)
        confidences = original.gather(1, tokens[:, None]).squeeze(1)
        rows, positions = masked.nonzero(as_tuple=True)
        for row in range(len(self.answer)):
            in_row = rows == row
            count = self._num_to_unmask(int(in_row.sum()))
            best = confidences[in_row].topk(count).indices
            self.answer[row, positions[in_row][best]] = tokens[in_row][best]
        self.num_steps_done += 1

    def _scores(self) -> torch.Tensor:
        """Scores of all positions of the pass in float32, shifted to the positions that they are for."""
        canvas = torch.cat([self.prompt_ids, self.answer], dim=1)
        start = 0 if self.cache is None else self.cache.get_seq_length()
        is_token = torch.ones_like(canvas, dtype=torch.bool)
        dense_mask = (is_token[:, None, None, :] & is_token[:, None, :, None])[:, :, start:]
        if self.model.config._attn_implementation == "eager":  # which adds its mask
            dense_mask = torch.zeros_like(dense_mask, dtype=self.model.dtype)
        scores = self.model(
            input_ids=canvas[:, start:],
            attention_mask={"full_attention": dense_mask},
            position_ids=self.position_ids[:, :, start:],
            past_key_values=self.cache,
            is_causal=False,
            **(self.images if start == 0 else {}),
        ).logits.float()
        if self.cache is not None:
            self.cache.crop(
                -self.answer.shape[1] - 1
            )  # the last prompt token is run again, for the first answer token
        return torch.cat([scores[:, :1], scores[:, :-1]], dim=1)

    def _num_to_unmask(self, num_masked: int) -> int:
        """Counts the positions that bring a row to the first time of the grid at which at least one is unmasked."""
        row_time = torch.tensor(num_masked) / self.answer.shape[1]
        first_below = int((self.times < row_time).int().argmax())
        for index in range(max(first_below, self.num_steps_done + 1), len(self.times) - 1):
            count = int(num_masked * (1 - self.times[index] / row_time))
            if count >= 1:
                return count
        return num_masked


class ReadyKeysAndValues:
    """Stands in for a cache whose keys and values are all there already: gives them back and stores nothing."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values


class BareLayers:
    """
    The part of a step that no loop can save: the text layers, the last norm and the head over the step's tokens.

    Hidden states, rotary tables, and with the cache keys and values of full length, lie ready: nothing is embedded,
    masked, stored, picked or chosen.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        batch_size, num_queries, num_keys (`int`):
            Rows; positions of each row that run; positions that these see.
    """

    def __init__(self, model: DimpleForConditionalGeneration, batch_size: int, num_queries: int, num_keys: int):
        self.model = model
        config = model.config
        generator = torch.Generator(model.device).manual_seed(SEED)
        options = {"generator": generator, "dtype": model.dtype, "device": model.device}
        self.hidden_states = torch.randn(batch_size, num_queries, config.hidden_size, **options)
        self.cache = None
        if num_keys > num_queries:
            head_dim = config.hidden_size // config.num_attention_heads
            keys = torch.randn(batch_size, config.num_key_value_heads, num_keys, head_dim, **options)
            self.cache = ReadyKeysAndValues(keys, torch.randn(keys.shape, **options))
        position_ids = torch.arange(num_keys - num_queries, num_keys, device=model.device).expand(3, batch_size, -1)
        self.position_embeddings = model.model.rotary_emb(self.hidden_states, position_ids)

    @torch.no_grad()
    def step(self, num_positions: int) -> None:
        """Runs the layers, and the head over `num_positions` of all rows' outputs."""
        hidden_states = self.hidden_states
        for layer in self.model.model.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=None,
                position_embeddings=self.position_embeddings,
                past_key_values=self.cache,
                is_causal=False,
            )
        hidden_states = self.model.model.norm(hidden_states)
        self.model.lm_head(hidden_states.flatten(0, 1)[:num_positions])


class Arm(Protocol):
    """What takes a step in its turn; `answer` is `None` where there are no tokens."""

    answer: torch.Tensor | None

    def step(self) -> None:
        """Takes one denoising step."""


class GenerateArm:
    """
    `generate` as the benchmark defines it, step by step.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        prompt (`dict[str, torch.Tensor]`):
            Inputs of `generate`.
        case (`Case`):
            What to run.
        options (`Mapping[str, Any]`):
            More options of `generate`.
    """

    def __init__(
        self,
        model: DimpleForConditionalGeneration,
        prompt: dict[str, torch.Tensor],
        case: Case,
        options: Mapping[str, Any],
    ):
        self.states = model.generate_steps(
            **prompt,
            max_new_tokens=case.answer_length,
            max_denoising_steps=case.num_steps,
            confidence_threshold=None,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=None,
            **options,
        )
        self.answer = next(self.states).answer_ids  # before the first step

    def step(self) -> None:
        """Runs the model once, or as often as the policy asks, and unmasks what the schedule says."""
        self.answer = next(self.states).answer_ids


class BareArm:
    """
    Takes [`BareLayers`] through the steps of another arm, which takes its step after it.

    Args:
        layers (`BareLayers`):
            What to run.
        num_positions (`Callable`):
            Returns how many positions of the batch are masked.
    """

    answer = None

    def __init__(self, layers: BareLayers, num_positions: Callable[[], int]):
        self.layers, self.num_positions = layers, num_positions

    def step(self) -> None:
        """Runs the layers, and the head over as many positions as the other arm's next step will."""
        self.layers.step(self.num_positions())

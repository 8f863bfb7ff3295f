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
"""A streamer that draws an answer in the terminal while it is denoised."""

import time

import torch
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

#: Shown instead of a masked position.
MASK_SIGN = "░"

#: Colours of unmasked tokens, by the step that unmasked them, over and over.
STEP_STYLES = ("green", "cyan", "blue", "magenta", "yellow")


class LiveAnswer(BaseStreamer):
    """
    Shows an answer while it is denoised: masked positions as shades, unmasked ones in the colour of their step.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes single tokens.
        mask_token_id (`int`):
            The token of masked positions.
        live (`rich.live.Live`):
            Where to draw.
        step_delay (`float`, *optional*, defaults to 0.0):
            Seconds that each step is shown for.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_token_id: int, live: Live, step_delay: float = 0.0):
        self.tokenizer = tokenizer
        self.mask_token_id = mask_token_id
        self.live = live
        self.step_delay = step_delay
        self.commit_steps: list[int | None] = []
        self.num_steps = 0

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt and the finished answer, which are printed elsewhere."""

    def put_draft(self, value: torch.Tensor) -> None:
        """Draws `value` (`torch.LongTensor` of shape `(1, answer_length)`), the answer after a step."""
        tokens = value[0].tolist()
        self.commit_steps += [None] * (len(tokens) - len(self.commit_steps))
        for position, token in enumerate(tokens):
            if token == self.mask_token_id:
                self.commit_steps[position] = None
            elif self.commit_steps[position] is None:
                self.commit_steps[position] = self.num_steps
        self.num_steps += 1
        self.live.update(self.render(tokens), refresh=True)
        time.sleep(self.step_delay)

    def end(self) -> None:
        """Leaves the last drawing to its owner."""

    def render(self, tokens: list[int]) -> Text:
        """
        Args:
            tokens (`list[int]`):
                Answer tokens.

        Returns:
            `rich.text.Text`: The answer in colours, without padding.
        """
        text = Text()
        special = set(self.tokenizer.all_special_ids)
        for token, step in zip(tokens, self.commit_steps, strict=False):
            if step is None:
                text.append(MASK_SIGN, style="dim")
            elif token not in special:
                text.append(self.tokenizer.decode([token]), style=STEP_STYLES[step % len(STEP_STYLES)])
        return text

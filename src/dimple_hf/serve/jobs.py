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
"""Jobs: the work of the model for one client, and its progress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ..processing import StructurePrior

#: What the client of a job is told that failed, or that cannot be finished.
FAILED, SHUTTING_DOWN = "the model failed", "the server is shutting down"


class TokenLogprob(NamedTuple):
    """
    How probable a token was when it was committed.

    Args:
        token (`int`):
            The token.
        logprob (`float`):
            Its log-probability; 0 for a given token.
        top (`list[tuple[int, float]]`):
            The most probable tokens there and their log-probabilities, the first one first.
    """

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Progress:
    """
    How far an answer has come.

    Args:
        tokens (`list[int]`):
            Its tokens up to the first position that is open, or to its end, which is left out.
        is_last (`bool`):
            Whether it is finished.
        has_ended (`bool`):
            Whether it came to its end, not only to the end of its positions.
        logprobs (`list[TokenLogprob]`):
            One for each of `tokens` where the job wants them, else empty.
    """

    tokens: list[int]
    is_last: bool = False
    has_ended: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)


class ServerFault(RuntimeError):
    """What went wrong with a job and was not its client's fault."""


@dataclass(eq=False)
class Job:
    """
    What the model has to do for one request.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            One row, as [`DimpleProcessor`] makes it.
        prior ([`StructurePrior`], *optional*):
            The form of the answer.
        answer_length (`int`):
            Positions of the answer; with a prior those of its canvas.
        options (`dict[str, Any]`):
            Options of `generate` that say how tokens are chosen.
        seed (`int`, *optional*):
            Seeds what is drawn.
        num_top_logprobs (`int`, *optional*):
            How many of the most probable tokens are wanted at each position; `None` for no log-probabilities at all.
        put (`Callable`):
            Takes [`Progress`], or a [`ServerFault`] as the last thing. Called by the worker's thread.
        is_cancelled (`bool`):
            Whether nobody waits for the answer any more.
        submitted (`float`):
            When it began to wait for its turn.
        runs_alone (`bool`):
            Whether it is run without others, after a step with others has failed.
    """

    inputs: dict[str, torch.Tensor]
    prior: StructurePrior | None
    answer_length: int
    options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    num_top_logprobs: int | None = None
    put: Callable[[Progress | ServerFault], None] = lambda update: None
    is_cancelled: bool = False
    submitted: float = 0.0
    runs_alone: bool = False

    @property
    def num_tokens(self) -> int:
        """Positions of prompt and answer."""
        return self.inputs["input_ids"].shape[1] + self.answer_length


def final_beginning(
    tokens: Sequence[int], is_final: Sequence[bool], end_token_ids: frozenset[int]
) -> tuple[list[int], bool]:
    """
    Args:
        tokens (`Sequence[int]`), is_final (`Sequence[bool]`):
            An answer, and which of its positions no later step changes.
        end_token_ids (`frozenset[int]`):
            Tokens that end it.

    Returns:
        `tuple(list[int], bool)`: The tokens before the first open position or end, and whether it was an end.
    """
    beginning: list[int] = []
    for token, flag in zip(tokens, is_final, strict=True):
        if not flag:
            return beginning, False
        if token in end_token_ids:
            return beginning, True
        beginning.append(token)
    return beginning, False


def collate(jobs: Sequence[Job], tokenizer: Any) -> dict[str, torch.Tensor]:
    """
    Args:
        jobs (`Sequence[Job]`):
            Jobs.
        tokenizer ([`DimpleTokenizer`]):
            Its padding token is used.

    Returns:
        `dict[str, torch.Tensor]`: Their prompts as inputs of one batch, as the processor makes it of all their chats.
    """
    prompts = [job.inputs["input_ids"][0] for job in jobs]
    width = max(map(len, prompts))
    input_ids = torch.full((len(jobs), width), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = prompt
        attention_mask[row, width - len(prompt) :] = 1
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    for name in ("pixel_values", "image_grid_thw"):
        images = [job.inputs[name] for job in jobs if name in job.inputs]
        if images:
            inputs[name] = torch.cat(images)
    return inputs

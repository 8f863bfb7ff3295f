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
"""A prepared call of `generate`: its steps and its output."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import StoppingCriteriaList
from transformers.utils import ModelOutput

from .canvas_dimple import CanvasRunner
from .denoising_dimple import DecodingResult, DecodingState, Sampler, denoise
from .generation_config_dimple import DimpleGenerationConfig
from .length_dimple import grow_canvases
from .sampling_dimple import after_first
from .streaming_dimple import DimpleGenerationStep


@dataclass
class DimpleGenerationOutput(ModelOutput):
    """
    Output of `generate` with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(batch_size * num_return_sequences, prompt_length + answer_length)`):
            Prompt and answer; padding after an answer's end.
        history (`tuple(torch.LongTensor)`, *optional*):
            The sequences after each step, with mask tokens at masked positions. On request.
        tokens_per_forward (`torch.FloatTensor` of shape `(batch_size * num_return_sequences,)`, *optional*):
            Answer tokens that were generated, up to and with the end token, by forward passes, for each row.
        num_forward_passes (`torch.LongTensor` of shape `(batch_size * num_return_sequences,)`, *optional*):
            Forward passes of the model over each row until it was finished.
        token_logprobs (`torch.FloatTensor` of shape `(batch_size * num_return_sequences, answer_length)`, *optional*):
            Log-probability of each answer token in the distribution that it was committed from: after logits
            processors and constraints, before temperature, top-p and top-k. 0 at given tokens, NaN after the end. A
            token that was remasked has the value of its last commit; padding that fills an answer under a constraint
            is generated like any other token.
        commit_steps (`torch.LongTensor` of shape `(batch_size * num_return_sequences, answer_length)`, *optional*):
            The step, from 0, that last committed each answer token; -1 at given tokens and after the end.
        logits (`torch.FloatTensor` of shape `(batch_size * num_return_sequences, answer_length, vocab_size)`, \
            *optional*):
            The logits that each position was committed from, after logits processors and constraints; NaN where none
            was. With `output_logits=True`.
    """

    sequences: torch.LongTensor | None = None
    history: tuple[torch.LongTensor, ...] | None = None
    tokens_per_forward: torch.FloatTensor | None = None
    num_forward_passes: torch.LongTensor | None = None
    token_logprobs: torch.FloatTensor | None = None
    commit_steps: torch.LongTensor | None = None
    logits: torch.FloatTensor | None = None


@dataclass(frozen=True)
class PreparedCall:
    """A call of `generate` with options and inputs checked and images encoded; `canvas` has a row for each sequence
    that is returned."""

    config: DimpleGenerationConfig
    runner: CanvasRunner
    canvas: torch.LongTensor
    sampler: Sampler
    criteria: StoppingCriteriaList
    initial_length: int | None
    pad_token_id: int

    def start(self) -> tuple[torch.LongTensor, torch.LongTensor | None]:
        """Grows the canvases, where they start shorter. Returns them, and the passes that this took, per row."""
        if self.initial_length is None:
            return self.canvas, None
        return grow_canvases(self.runner, self.canvas, self.sampler, self.initial_length, self.pad_token_id)

    def states(self) -> Iterator[DecodingState]:
        """Grows the canvases, where they start shorter, and decodes."""
        canvas, num_passes = self.start()
        yield from denoise(self.runner, canvas, self.sampler, self.criteria, num_passes)

    def steps(self) -> Iterator[DimpleGenerationStep]:
        """Decodes; an item before the first step, and after each one."""
        for state in self.states():
            result = state.result
            after_end = self._after_end(result.answer_ids)
            answers = self._padded(result.answer_ids, after_end)
            token_logprobs, commit_steps = self._commits(result, after_end)
            yield DimpleGenerationStep(
                step=state.step,
                answer_ids=torch.where(result.finished[:, None], answers, result.answer_ids),
                is_final=result.is_final.clone(),
                finished=result.finished.clone(),
                num_forward_passes=result.num_forward_passes.clone(),
                token_logprobs=token_logprobs,
                commit_steps=commit_steps,
            )

    def output(
        self, prompt: torch.LongTensor, result: DecodingResult, history: list[torch.LongTensor]
    ) -> DimpleGenerationOutput:
        """What `generate` returns of the last step's `result`: `prompt` is that of all rows, `(batch_size,
        prompt_length)`, and `history` are the sequences after each step."""
        after_end = self._after_end(result.answer_ids)
        token_logprobs, commit_steps = self._commits(result, after_end)
        return DimpleGenerationOutput(
            sequences=torch.cat([prompt, self._padded(result.answer_ids, after_end)], dim=1),
            history=tuple(history) if self.config.output_history else None,
            tokens_per_forward=self.num_generated(result) / result.num_forward_passes.clamp(min=1),
            num_forward_passes=result.num_forward_passes,
            token_logprobs=token_logprobs,
            commit_steps=commit_steps,
            logits=result.logits,
        )

    def answers(self, answer_ids: torch.LongTensor) -> torch.LongTensor:
        """Answers of finished rows as they are returned: padding after the end, and where nothing was committed."""
        return self._padded(answer_ids, self._after_end(answer_ids))

    def _padded(self, answer_ids: torch.LongTensor, after_end: torch.BoolTensor) -> torch.LongTensor:
        return answer_ids.masked_fill(after_end | (answer_ids == self.sampler.mask_token_id), self.pad_token_id)

    def num_generated(self, result: DecodingResult) -> torch.LongTensor:
        """Generated tokens of each row, `(batch_size,)`; an end token that fills a row under a constraint is none."""
        is_end = torch.isin(result.answer_ids, self.sampler.end_token_ids)
        hidden = self._after_end(result.answer_ids) | (is_end & self._filled_to_end())
        return ((result.commit_steps >= 0) & ~hidden).sum(dim=1)

    def _commits(
        self, result: DecodingResult, after_end: torch.BoolTensor
    ) -> tuple[torch.FloatTensor, torch.LongTensor]:
        """`token_logprobs` and `commit_steps` of [`DimpleGenerationOutput`]; as after the end where nothing is
        committed yet."""
        # Of canvases that grow no token is given, and padding follows the shorter ones.
        hidden = after_end if self.initial_length is None else after_end | (result.commit_steps < 0)
        return result.token_logprobs.masked_fill(hidden, torch.nan), result.commit_steps.masked_fill(hidden, -1)

    def _after_end(self, answer_ids: torch.LongTensor) -> torch.BoolTensor:
        """`True` after a row's first end token; both of shape `(batch_size, answer_length)`."""
        after_end = after_first(torch.isin(answer_ids, self.sampler.end_token_ids))
        return after_end if self.sampler.constraint is None else after_end & ~self._filled_to_end()

    def _filled_to_end(self) -> torch.BoolTensor:
        """`True`, of shape `(batch_size, 1)`, for rows under a constraint, in which an end token is padding."""
        if self.sampler.constraint is None:
            return torch.zeros_like(self.canvas[:, :1], dtype=torch.bool)
        return self.sampler.constraint.constrained_rows.to(self.canvas.device)[:, None]

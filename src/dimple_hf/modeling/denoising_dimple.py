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
"""The denoising loop: from an answer of mask tokens to a decided one, each row as if it were alone.

Source: Dimple, section 4 (arXiv 2505.16990) and the released decoding loop. What runs the model is in
`canvas_dimple`, the decisions are in `unmasking_dimple`; here they are put together. Imported by `generation_dimple`
and `upstream_dimple`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from .canvas_dimple import CanvasRunner
from .constraint_dimple import AnswerConstraint
from .streaming_dimple import DraftStreamer
from .unmasking_dimple import (
    CONFIDENCE_MEASURES,
    SCHEDULES,
    choose_places,
    denoising_times,
    filter_logits,
    finished_rows,
    rank_places,
)

#: Last value of the schedules' time grid, the original's default.
DEFAULT_EPS = 1e-3


@dataclass(frozen=True)
class DenoisingPlan:
    """
    What the denoising loop does, resolved and checked.

    The first block is set by both calls; the second describes habits of the original that only
    [`~DimpleGenerationMixin.diffusion_generate`] has.

    Args:
        num_steps (`int`):
            Most steps.
        mask_token_id (`int`):
            The mask token.
        end_token_ids (`torch.LongTensor` of shape `(num_end_tokens,)`):
            Tokens that end an answer; empty to run until nothing is masked.
        unmasking, unmasking_schedule, confidence_threshold:
            See [`DimpleGenerationConfig`].
        do_sample (`bool`):
            Draw tokens instead of taking the most probable ones.
        temperature, top_p, top_k:
            See `filter_logits`.
        eps (`float`):
            Last time of the schedules.
        filtered_confidence (`bool`):
            Take confidences after temperature, top-p and top-k.
        ranking_temperature (`float`, *optional*):
            Draw the order of places, see `rank_places`.
        independent_places (`bool`):
            Reveal each place with the schedule's share as probability, instead of that share of the places.
        one_by_one (`bool`):
            Let the schedule reveal exactly one place, also in the last step.
        run_all_steps (`bool`):
            Go on to the last step when nothing is masked any more.
    """

    num_steps: int
    mask_token_id: int
    end_token_ids: torch.LongTensor
    unmasking: str
    unmasking_schedule: str
    confidence_threshold: float | None
    do_sample: bool
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    eps: float = DEFAULT_EPS
    filtered_confidence: bool = False
    ranking_temperature: float | None = None
    independent_places: bool = False
    one_by_one: bool = False
    run_all_steps: bool = False

    def choose_tokens(self, logits: torch.FloatTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(num_places, vocab_size)`):
                Scores of the masked places.

        Returns:
            `tuple(torch.LongTensor, torch.FloatTensor)`, each of shape `(num_places,)`: The token and the confidence
            of each place.

        Raises:
            ValueError: If a place has NaN, an infinite score or no possible token.
        """
        filtered = logits
        if self.do_sample or self.filtered_confidence:
            filtered = filter_logits(logits, self.temperature, self.top_p, self.top_k)
        if self.do_sample:
            probabilities = filtered.softmax(dim=-1)
            _check_finite(probabilities)
            tokens = probabilities.multinomial(1).squeeze(-1)
        else:
            tokens = logits.argmax(dim=-1)  # what filters keep always holds it
        confidence = CONFIDENCE_MEASURES[self.unmasking](filtered if self.filtered_confidence else logits, tokens)
        _check_finite(confidence)
        return tokens, confidence

    def choose_places(
        self,
        step: int,
        times: torch.FloatTensor,
        masked: torch.BoolTensor,
        num_maskable: torch.LongTensor,
        confidence: torch.FloatTensor,
    ) -> torch.BoolTensor:
        """
        Args:
            step (`int`):
                Index of the step, from 0.
            times (`torch.FloatTensor` of shape `(num_steps + 1,)`):
                Time grid of the schedule.
            masked (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` where a place is not yet decided.
            num_maskable (`torch.LongTensor` of shape `(batch_size,)`):
                Masked places of each row before the first step.
            confidence (`torch.FloatTensor` of shape `(batch_size, answer_length)`):
                Confidence of each masked place.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at the places to reveal now.
        """
        is_last = step == self.num_steps - 1
        if is_last and not (self.one_by_one and self.confidence_threshold is None):
            return masked
        num_masked = masked.sum(dim=1)
        fraction = SCHEDULES[self.unmasking_schedule](step, times, num_masked, num_maskable)
        if self.independent_places:
            scheduled = masked & (torch.rand(masked.shape, device=masked.device) < fraction[:, None])
        else:
            counts = torch.ones_like(num_masked) if self.one_by_one else (num_masked * fraction).int()
            ranks = rank_places(self.unmasking, confidence, masked, self.ranking_temperature)
            scheduled = masked & (ranks < counts[:, None])
        return choose_places(scheduled, masked, confidence, self.confidence_threshold)


def _check_finite(values: torch.Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError(
            "the logits must never be NaN or +inf, and finite for at least one token of each place; "
            "check the weights, the dtype and custom logits processors"
        )


@dataclass(frozen=True)
class DenoisingHooks:
    """
    Functions of the user that the original calls inside its loop.

    Args:
        tokens (`Callable`):
            `(step, sequences, logits) -> sequences`; first with `(None, sequences, None)`, then after each step. May
            rewrite the answer, not the prompt.
        logits (`Callable`):
            `(step, sequences, logits) -> logits`, both over the places that the pass ran.
    """

    tokens: Callable[[int | None, torch.LongTensor, torch.FloatTensor | None], torch.LongTensor]
    logits: Callable[[int, torch.LongTensor, torch.FloatTensor], torch.FloatTensor]

    def rewrite(
        self,
        step: int | None,
        prompt: torch.LongTensor,
        answer: torch.LongTensor,
        logits: torch.FloatTensor | None,
    ) -> torch.LongTensor:
        """
        Args:
            step (`int`, *optional*):
                Index of the step that ended; `None` before the first.
            prompt (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
                Prompt tokens.
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens.
            logits (`torch.FloatTensor`, *optional*):
                What the logits hook returned in this step.

        Returns:
            `torch.LongTensor` of shape `(batch_size, answer_length)`: The answer as the tokens hook left it.

        Raises:
            ValueError: If the hook changed the prompt or the shape.
        """
        before = torch.cat([prompt, answer], dim=1)
        after = self.tokens(step, before.clone(), logits)
        if after.shape != before.shape or not torch.equal(after[:, : prompt.shape[1]], prompt):
            raise ValueError("`generation_tokens_hook_func` must keep the prompt and the shape of the sequences")
        return after[:, prompt.shape[1] :]


def _reveal(
    plan: DenoisingPlan,
    step: int,
    times: torch.FloatTensor,
    num_maskable: torch.LongTensor,
    answer: torch.LongTensor,
    logits: torch.FloatTensor,
    rows: torch.LongTensor,
    constraint: AnswerConstraint | None,
) -> torch.LongTensor:
    """Returns the answer behind steps 3 and 4 of [`denoise`]; the arguments are its variables."""
    while True:
        # 3.
        masked = answer == plan.mask_token_id
        if constraint is not None:
            logits = constraint.restrict(rows, answer, masked, logits)
        tokens, confidence = plan.choose_tokens(logits)

        # 4.
        confidence = torch.zeros_like(masked, dtype=confidence.dtype).masked_scatter(masked, confidence)
        chosen = plan.choose_places(step, times, masked, num_maskable, confidence)
        proposed = answer.masked_scatter(masked, tokens)
        if constraint is not None:
            chosen = constraint.admit(rows, answer, masked, proposed, chosen, confidence)
        answer = torch.where(chosen, proposed, answer)
        if constraint is None or step < plan.num_steps - 1:
            return answer
        # The last step decides everything, so what had to wait chooses again among what is still possible.
        undecided = (answer == plan.mask_token_id)[masked]
        if not bool(undecided.any()):
            return answer
        logits = logits[undecided]


def denoise(
    runner: CanvasRunner,
    answer: torch.LongTensor,
    plan: DenoisingPlan,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    drafts: DraftStreamer | None = None,
    hooks: DenoisingHooks | None = None,
    keep_history: bool = False,
    constraint: AnswerConstraint | None = None,
) -> tuple[torch.LongTensor, torch.LongTensor, list[torch.LongTensor]]:
    """
    The reverse process. Each step:

    1. Rows that are finished leave the batch.
    2. One pass of the model: scores of the masked places.
    3. A token and a confidence for each of them.
    4. Reveal the places that are confident or scheduled; what is revealed never changes.
    5. Record and stream the answer, ask the stopping criteria.

    Args:
        runner (`CanvasRunner`):
            Runs the model over the prompts; rows leave it as they finish.
        answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            The canvas to start from: fixed tokens and mask tokens.
        plan (`DenoisingPlan`):
            What to do.
        processors (`LogitsProcessorList`):
            Called with `(num_places, length)` sequences and `(num_places, vocab_size)` scores of the masked places.
        criteria (`StoppingCriteriaList`):
            Called with the sequences of the unfinished rows after each step; `True` ends a row.
        drafts (`DraftStreamer`, *optional*):
            Shows the answer after each step.
        hooks (`DenoisingHooks`, *optional*):
            The original's hooks; with them rows stay in the batch until all are finished.
        keep_history (`bool`, defaults to `False`):
            Whether to keep the answers after each step.
        constraint (`AnswerConstraint`, *optional*):
            What the answers must keep to.

    Returns:
        `tuple(torch.LongTensor, torch.LongTensor, list[torch.LongTensor])`: Answers of shape
        `(batch_size, answer_length)`, passes of each row, and on request the answers after each step.
    """
    times = denoising_times(plan.num_steps, plan.eps, answer.device)
    num_maskable = (answer == plan.mask_token_id).sum(dim=1)
    decoded = answer.clone()
    num_passes = torch.zeros(len(answer), dtype=torch.long, device=answer.device)
    rows = torch.arange(len(answer), device=answer.device)  # those of `decoded` that `answer` holds
    stopped = torch.zeros(len(answer), dtype=torch.bool, device=answer.device)
    history: list[torch.LongTensor] = []
    if constraint is not None:
        filled_to_end = constraint.constrained_rows.to(answer.device)
    for step in range(plan.num_steps):
        # 1.
        ended = finished_rows(answer, plan.mask_token_id, plan.end_token_ids)
        if constraint is not None:
            ended &= ~filled_to_end[rows] | ~(answer == plan.mask_token_id).any(dim=1)
        finished = stopped | ended
        unfinished = (~finished).nonzero().squeeze(1)
        if len(unfinished) == 0 and not plan.run_all_steps:
            break
        if len(unfinished) == 0 and hooks is None:  # a hook may still mask something again
            if keep_history:
                history.append(decoded.clone())
            continue
        # A hook of the user's indexes rows, so they stay where they are for it.
        if len(unfinished) < len(rows) and hooks is None:
            runner.select_rows(unfinished)
            answer, rows, num_maskable = answer[unfinished], rows[unfinished], num_maskable[unfinished]
            unfinished = torch.arange(len(rows), device=rows.device)
        num_passes[rows[unfinished]] += 1

        # 2.
        masked = answer == plan.mask_token_id
        if hooks is None:
            logits = runner.logits(answer, masked)
        else:
            sequences, all_logits = runner.all_logits(answer)
            all_logits = hooks.logits(step, sequences, all_logits)
            logits = all_logits[:, -answer.shape[1] :][masked]
        if len(processors):
            sequences = torch.cat([runner.input_ids, answer], dim=1)
            logits = processors(sequences[masked.nonzero()[:, 0]], logits)

        # 3. and 4.
        answer = _reveal(plan, step, times, num_maskable, answer, logits, rows, constraint)
        if hooks is not None:
            answer = hooks.rewrite(step, runner.input_ids, answer, all_logits)

        # 5.
        decoded[rows] = answer
        if keep_history:
            history.append(decoded.clone())
        if drafts is not None:
            drafts.put_answer(decoded)
        stopped = criteria(torch.cat([runner.input_ids, answer], dim=1), None)
    return decoded, num_passes, history

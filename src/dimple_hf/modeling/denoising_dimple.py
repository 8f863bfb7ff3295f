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
`canvas_dimple`, the decisions are in `unmasking_dimple` and `rules_dimple`; here they are put together. Imported by
`generation_dimple` and `original_dimple`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from .canvas_dimple import CanvasRunner
from .constraint_dimple import AnswerConstraint
from .length_dimple import LengthPlan, end_in_sight, fitted_lengths, last_positions, longer, resized
from .rules_dimple import PARALLEL_RULES, ParallelRule, PassMemory, PassScores, spread
from .streaming_dimple import DraftStreamer
from .unmasking_dimple import (
    CONFIDENCE_MEASURES,
    SCHEDULES,
    active_positions,
    block_steps,
    denoising_times,
    filter_logits,
    finished_rows,
    in_parts,
    most_probable,
    present_block,
    rank_positions,
    steps_per_block,
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
        block_length, parallel_rule (*optional*):
            See [`DimpleGenerationConfig`].
        rule_options (`Mapping[str, Any]`):
            The rule's options but for the confidence threshold.
        lengths (`LengthPlan`, *optional*):
            How canvases change their lengths; they do not when missing.
        eps (`float`):
            Last time of the schedules.
        filtered_confidence (`bool`):
            Take confidences after temperature, top-p and top-k.
        ranking_temperature (`float`, *optional*):
            Draw the order of positions, see `rank_positions`.
        independent_positions (`bool`):
            Unmask each position with the schedule's share as probability, instead of that share of the positions.
        one_by_one (`bool`):
            Let the schedule unmask exactly one position, also in the last step.
        run_all_steps (`bool`):
            Go on to the last step when nothing is masked any more.
        generates_mask_token (`bool`):
            Leave the mask token its score.
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
    block_length: int | None = None
    parallel_rule: str = "threshold"
    rule_options: Mapping[str, Any] = field(default_factory=dict)
    lengths: LengthPlan | None = None

    eps: float = DEFAULT_EPS
    filtered_confidence: bool = False
    ranking_temperature: float | None = None
    independent_positions: bool = False
    one_by_one: bool = False
    run_all_steps: bool = False
    generates_mask_token: bool = False

    @property
    def rule(self) -> ParallelRule:
        """The rule that decides what a pass unmasks beyond its schedule."""
        return PARALLEL_RULES[self.parallel_rule]

    def choose_tokens(self, logits: torch.FloatTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """
        Args:
            logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
                Scores of the masked positions.

        Returns:
            `tuple(torch.LongTensor, torch.FloatTensor)`, each of shape `(num_positions,)`: The token and the
            confidence of each position; NaN where it has NaN, an infinite score or no possible token.

        Raises:
            ValueError: If tokens are drawn and there is such a position.
        """
        filtered = logits
        if self.do_sample or self.filtered_confidence:
            filtered = filter_logits(logits.float(), self.temperature, self.top_p, self.top_k)
        if self.do_sample:
            probabilities = filtered.softmax(dim=-1)
            _check_finite(probabilities)
            tokens = probabilities.multinomial(1).squeeze(-1)
        else:
            tokens = most_probable(logits)  # what filters keep always holds it
        scored = filtered if self.filtered_confidence else logits
        return tokens, in_parts(CONFIDENCE_MEASURES[self.unmasking], scored, tokens)

    def choose_positions(
        self, step: int, open_positions: torch.BoolTensor, maskable: torch.BoolTensor, scores: PassScores
    ) -> torch.BoolTensor:
        """
        What the rule unmasks; in a row where that is nothing, what the schedule does; in a row that is closing,
        everything in its present block.

        Args:
            step (`int`):
                Index of the step, from 0.
            open_positions (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` where a position is masked or, under a rule that takes back, not yet verified.
            maskable (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` where a position was masked before the first step.
            scores (`PassScores`):
                What the pass says about the positions of each row's present block.

        Returns:
            `torch.BoolTensor` of shape `(batch_size, answer_length)`: `True` at the positions to unmask now.
        """
        masked = scores.masked
        if self.is_last(step) and not (self.one_by_one and self.confidence_threshold is None):
            return masked
        num_steps = steps_per_block(self.num_steps, masked.shape[1], self.block_length)
        steps = block_steps(step, num_steps, open_positions, self.block_length)
        # Down to eps, the last two positions come together where there are as many steps as positions. That is the
        # original's habit and happens once in an answer; in every block it would be many, so there the grid goes on
        # below 0, where each step unmasks one.
        eps = self.eps if self.block_length is None else -self.eps
        times = denoising_times(num_steps, eps, masked.device)
        num_masked = masked.sum(dim=1)
        num_maskable = (maskable & present_block(open_positions, self.block_length)).sum(dim=1)
        fraction = SCHEDULES[self.unmasking_schedule](steps, times, num_masked, num_maskable)
        if self.independent_positions:
            scheduled = masked & (torch.rand(masked.shape, device=masked.device) < fraction[:, None])
        else:
            counts = torch.ones_like(num_masked) if self.one_by_one else (num_masked * fraction).int()
            ranks = rank_positions(self.unmasking, scores.confidence, masked, self.ranking_temperature)
            scheduled = masked & (ranks < counts[:, None])
        options = {"confidence_threshold": self.confidence_threshold, **self.rule_options}
        chosen = self.rule.choose(scores, **{name: options[name] for name in self.rule.options})
        chosen = torch.where(chosen.any(dim=1, keepdim=True), chosen, scheduled)
        if self.block_length is not None:
            chosen = torch.where(self.is_closing(step, open_positions)[:, None], masked, chosen)
        return chosen

    def is_last(self, step: int) -> bool:
        """Whether no step follows `step`."""
        return step == self.num_steps - 1

    def is_closing(self, step: int, open_positions: torch.BoolTensor) -> torch.BoolTensor:
        """Which rows are in the last step of the answer, or of their present block; of shape `(batch_size,)`."""
        if self.block_length is None:
            return torch.full((len(open_positions),), self.is_last(step), device=open_positions.device)
        num_steps = steps_per_block(self.num_steps, open_positions.shape[1], self.block_length)
        steps = block_steps(step, num_steps, open_positions, self.block_length)
        return (steps == num_steps - 1) | self.is_last(step)


def _check_finite(values: torch.Tensor) -> None:
    _check_sound(bool(values.isfinite().all()))


def _check_sound(is_sound: bool) -> None:
    """Refuses scores that are no numbers. An argmax over NaN is a token like any other."""
    if not is_sound:
        raise ValueError(
            "the logits must never be NaN or +inf, and finite for at least one token of each position; "
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
            `(step, sequences, logits) -> logits`, both over the positions that the pass ran.
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


def _restricted(
    constraint: AnswerConstraint,
    rows: torch.LongTensor,
    answer: torch.LongTensor,
    masked: torch.BoolTensor,
    positions: torch.BoolTensor,
    logits: torch.FloatTensor,
) -> torch.FloatTensor:
    """
    Returns the `logits` of `positions` as the constraint leaves them: at masked positions given what is decided, at
    decided ones, which only a rule that takes back has among them, given what such a rule cannot take back.
    """
    is_masked = masked[positions]
    if bool(is_masked.all()):
        return constraint.restrict(rows, answer, masked, logits, positions)
    restricted = torch.empty_like(logits)
    restricted[is_masked] = constraint.restrict(rows, answer, masked, logits[is_masked], positions & masked)
    restricted[~is_masked] = constraint.restrict(
        rows, answer, masked | positions, logits[~is_masked], positions & ~masked
    )
    return restricted


def _unmask(
    plan: DenoisingPlan,
    step: int,
    answer: torch.LongTensor,
    positions: torch.BoolTensor,
    open_positions: torch.BoolTensor,
    logits: torch.FloatTensor,
    rows: torch.LongTensor,
    memory: PassMemory,
    constraint: AnswerConstraint | None,
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """
    Returns the answer after steps 3 and 4 of [`denoising_states`], whose variables the arguments are; and whether all
    scores were numbers, of shape `(1,)`, which is not asked here, because that would wait for the device.
    """
    is_sound = torch.ones(1, dtype=torch.bool, device=answer.device)
    while True:
        # 3.
        masked = answer == plan.mask_token_id
        if constraint is not None:
            logits = _restricted(constraint, rows, answer, masked, positions, logits)
        tokens, confidence = plan.choose_tokens(logits)
        is_sound &= confidence.isfinite().all()
        if constraint is not None:  # it waits for the device anyway, and needs possible tokens
            _check_sound(bool(is_sound))

        # 4.
        if plan.rule.compares_passes:
            memory.compare(positions, logits, plan.rule_options["kl_threshold"])
        num_maskable = memory.maskable.sum(dim=1)
        progress = (num_maskable - masked.sum(dim=1)) / num_maskable.clamp(min=1)
        scores = PassScores(
            masked & positions, positions, logits, spread(positions, confidence), progress, memory.stable_passes
        )
        chosen = plan.choose_positions(step, open_positions, memory.maskable, scores)
        proposed = answer.masked_scatter(positions, tokens)
        if constraint is not None:
            chosen = constraint.admit(rows, answer, masked, proposed, chosen, scores.confidence)
        if plan.rule.takes_back:
            closing = plan.is_closing(step, open_positions)[:, None]
            suspicious = memory.verify(scores, answer, plan.rule_options["verify_threshold"]) & ~closing
            memory.drafted = chosen & ~closing
            proposed, chosen = proposed.masked_fill(suspicious, plan.mask_token_id), chosen | suspicious
        answer = torch.where(chosen, proposed, answer)
        if constraint is None or not plan.is_last(step):
            return answer, is_sound
        # The last step decides everything, so what had to wait chooses again among what is still possible.
        masked = (answer == plan.mask_token_id)[positions]
        if not bool(masked.any()):
            return answer, is_sound
        logits, positions = logits[masked], positions & (answer == plan.mask_token_id)


def _processed(
    plan: DenoisingPlan,
    processors: LogitsProcessorList,
    runner: CanvasRunner,
    answer: torch.LongTensor,
    positions: torch.BoolTensor,
    logits: torch.FloatTensor,
) -> torch.FloatTensor:
    """Returns the `logits` of `positions` without the mask token, as the processors leave them."""
    if not plan.generates_mask_token:
        logits[:, plan.mask_token_id] = -torch.inf  # in place: a copy of a whole vocabulary costs more than its sum
    if not len(processors):
        return logits
    sequences = torch.cat([runner.input_ids, answer], dim=1)
    return processors(sequences[positions.nonzero()[:, 0]], logits.float())


def _resize(
    plan: DenoisingPlan,
    length_plan: LengthPlan,
    runner: CanvasRunner,
    answer: torch.LongTensor,
    lengths: torch.LongTensor,
) -> torch.LongTensor:
    """Returns the answer with canvases of these lengths, of shape `(batch_size,)`, which the runner has then, too."""
    before = torch.tensor(runner.canvas_lengths, device=answer.device)
    runner.resize_canvases(lengths.tolist())
    return resized(answer, before, lengths, plan.mask_token_id, length_plan.pad_token_id)


def _look_for_end(
    plan: DenoisingPlan,
    length_plan: LengthPlan,
    runner: CanvasRunner,
    processors: LogitsProcessorList,
    answer: torch.LongTensor,
    looking: list[int],
    num_passes: torch.LongTensor,
) -> tuple[torch.LongTensor, list[int]]:
    """
    One pass over the all-masked canvases of the rows `looking`. Returns the answer, with longer canvases where the end
    is not in sight, and the rows that have to look again: not those whose canvas cannot grow any more. Where the end
    is in sight, the pass is that of the first step, and counted there.
    """
    lengths = torch.tensor(runner.canvas_lengths, device=answer.device)
    positions, logits = runner.look(answer, looking)
    logits = _processed(plan, processors, runner, answer, positions, logits)
    last = positions & last_positions(lengths, answer.shape[1])
    grows = positions.any(dim=1) & ~end_in_sight(logits[last[positions]], last, plan.end_token_ids)
    num_passes += grows
    lengths = torch.where(grows, longer(lengths, answer.shape[1]), lengths)
    looks_again = (grows & (lengths < answer.shape[1])).nonzero().squeeze(1).tolist()
    return _resize(plan, length_plan, runner, answer, lengths), looks_again


def _fit_canvases(
    plan: DenoisingPlan,
    length_plan: LengthPlan,
    runner: CanvasRunner,
    answer: torch.LongTensor,
    verified: torch.LongTensor,
    memory: PassMemory,
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """
    Fits canvases to what is decided of them, which `verified` shows: the answer where all else is masked. Returns the
    answer, and `True` at the positions after canvases that may grow over them.
    """
    lengths = torch.tensor(runner.canvas_lengths, device=answer.device)
    fitted, may_grow = fitted_lengths(verified, lengths, plan.mask_token_id, plan.end_token_ids, length_plan)
    in_canvas = torch.arange(answer.shape[1], device=answer.device) < fitted[:, None]
    if not torch.equal(fitted, lengths):
        answer = _resize(plan, length_plan, runner, answer, fitted)
        memory.maskable = (memory.maskable & in_canvas) | (answer == plan.mask_token_id)
        memory.drafted &= in_canvas
    return answer, may_grow[:, None] & ~in_canvas


@dataclass(frozen=True)
class DenoisingState:
    """
    What the loop has come to. Its tensors are the loop's own: they change with the next step.

    Args:
        num_steps (`int`):
            Steps done.
        answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Answer tokens, masked where not yet decided.
        settled (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` where nothing changes any more.
        finished (`torch.BoolTensor` of shape `(batch_size,)`):
            `True` for rows in which nothing changes any more.
        num_passes (`torch.LongTensor` of shape `(batch_size,)`):
            Passes of the model over each row.
    """

    num_steps: int
    answer: torch.LongTensor
    settled: torch.BoolTensor
    finished: torch.BoolTensor
    num_passes: torch.LongTensor


@torch.no_grad()
def denoising_states(
    runner: CanvasRunner,
    answer: torch.LongTensor,
    plan: DenoisingPlan,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    hooks: DenoisingHooks | None = None,
    constraint: AnswerConstraint | None = None,
) -> Iterator[DenoisingState]:
    """
    The reverse process, as far as the caller takes it: nothing runs before the next state is asked for.

    0. With an initial length, rows look for their end: a pass over a canvas of masks, which is made longer for as long
       as the end is not in sight. When it is, that pass is the first step's.

    Each step:

    1. Canvases are fitted to what is decided; rows that are finished leave the batch or, where shapes are static, stay
       without positions to score.
    2. One pass of the model: scores of the masked positions of each row's present block, the leftmost unfinished one.
    3. A token and a confidence for each of them.
    4. Unmask the positions that the rule chooses, or the schedule; what is unmasked never changes, unless the rule
    takes
       back. Such a rule also scores what it unmasked in the block, and a row is not finished before all up to its end
       has been verified.
    5. Record the answer, ask the stopping criteria.

    Args:
        runner (`CanvasRunner`):
            Runs the model over the prompts; rows leave it as they finish.
        answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            The canvas to start from: fixed tokens and mask tokens.
        plan (`DenoisingPlan`):
            What to do.
        processors (`LogitsProcessorList`):
            Called with `(num_positions, length)` sequences and `(num_positions, vocab_size)` scores of the masked
            positions.
        criteria (`StoppingCriteriaList`):
            Called with the sequences of the rows in the batch after each step; `True` ends a row.
        hooks (`DenoisingHooks`, *optional*):
            The original's hooks; with them rows stay in the batch until all are finished.
        constraint (`AnswerConstraint`, *optional*):
            What the answers must keep to.

    Yields:
        [`DenoisingState`]: After each look, before the first step and after each one. In the last, all rows are
        finished.
    """
    num_passes = torch.zeros(len(answer), dtype=torch.long, device=answer.device)
    rows = torch.arange(len(answer), device=answer.device)  # those of `decoded` that `answer` holds
    stopped = torch.zeros(len(answer), dtype=torch.bool, device=answer.device)
    is_sound = torch.ones(1, dtype=torch.bool, device=answer.device)  # whether the last pass's scores were numbers
    # Of all rows, as `decoded`.
    all_settled, all_finished = torch.zeros_like(answer, dtype=torch.bool), torch.zeros_like(stopped)

    # 0.
    length_plan, looking = plan.lengths, []
    if length_plan is not None and length_plan.initial_answer_length is not None:
        lengths = torch.full_like(num_passes, length_plan.initial_answer_length)
        answer, looking = _resize(plan, length_plan, runner, answer, lengths), rows.tolist()
    while length_plan is not None and looking:
        answer, looking = _look_for_end(plan, length_plan, runner, processors, answer, looking, num_passes)
        yield DenoisingState(0, answer, all_settled, all_finished, num_passes)

    memory = PassMemory(answer == plan.mask_token_id)
    decoded = answer.clone()
    unused = torch.zeros_like(all_settled)  # positions after a canvas that may grow over them
    if constraint is not None:
        filled_to_end = constraint.constrained_rows.to(answer.device)
    for step in range(plan.num_steps):
        # 1.
        takes_back = plan.rule.takes_back and not plan.is_last(step)
        block_length = None if plan.is_last(step) else plan.block_length
        verified = answer.masked_fill(memory.unverified, plan.mask_token_id) if takes_back else answer
        if length_plan is not None:
            answer, unused = _fit_canvases(plan, length_plan, runner, answer, verified, memory)
            decoded[rows] = answer
            verified = answer.masked_fill(memory.unverified, plan.mask_token_id) if takes_back else answer
        open_positions = verified == plan.mask_token_id
        positions = active_positions(open_positions, block_length)
        if takes_back:
            positions = memory.maskable & present_block(open_positions, block_length)
        ended = finished_rows(verified, plan.mask_token_id, plan.end_token_ids)
        if constraint is not None:
            ended &= ~filled_to_end[rows] | ~open_positions.any(dim=1)
        finished = stopped | ended
        all_finished[rows], all_settled[rows] = finished, ~(open_positions | positions | unused) | finished[:, None]
        num_positions = positions.sum(dim=1).masked_fill(finished, -1)
        # Before the device is waited for, so that it has what the caller does with a state in its queue.
        yield DenoisingState(step, decoded, all_settled, all_finished, num_passes)
        # The one question of a step that waits for the device: which rows go on, with how many positions.
        *row_positions, was_sound = torch.cat([num_positions, is_sound]).tolist()
        _check_sound(was_sound)
        unfinished = [row for row, number in enumerate(row_positions) if number >= 0]
        if not unfinished and not plan.run_all_steps:
            return
        if not unfinished and hooks is None:  # a hook may still mask something again
            continue
        if runner.is_static:
            positions = positions & ~finished[:, None]
        # A hook of the user's indexes rows, so they stay where they are for it.
        elif len(unfinished) < len(rows) and hooks is None:
            kept = torch.tensor(unfinished, device=rows.device)
            runner.select_rows(kept)
            memory.select_rows(kept)
            answer, rows, finished = answer[kept], rows[kept], finished[kept]
            open_positions, positions, unused = open_positions[kept], positions[kept], unused[kept]
        num_passes[rows] += ~finished

        # 2.
        if hooks is None:
            logits = runner.logits(answer, positions, num_positions=sum(row_positions[row] for row in unfinished))
        else:
            sequences, all_logits = runner.all_logits(answer)
            all_logits = hooks.logits(step, sequences, all_logits)
            logits = all_logits[:, -answer.shape[1] :][positions]
        logits = _processed(plan, processors, runner, answer, positions, logits)

        # 3. and 4.
        answer, is_sound = _unmask(plan, step, answer, positions, open_positions, logits, rows, memory, constraint)
        if hooks is not None:
            answer = hooks.rewrite(step, runner.input_ids, answer, all_logits)

        # 5.
        decoded[rows] = answer
        stopped = criteria(torch.cat([runner.input_ids, answer], dim=1), None)
        if runner.is_static:  # rows that are finished are still there, and stay finished
            stopped = stopped | finished
    _check_sound(bool(is_sound))
    all_finished[:], all_settled[:] = True, True
    yield DenoisingState(plan.num_steps, decoded, all_settled, all_finished, num_passes)


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
    Goes through [`denoising_states`] to the end.

    Args:
        runner, answer, plan, processors, criteria, hooks, constraint:
            See [`denoising_states`].
        drafts (`DraftStreamer`, *optional*):
            Shows the answer after each step.
        keep_history (`bool`, defaults to `False`):
            Whether to keep the answers after each step.

    Returns:
        `tuple(torch.LongTensor, torch.LongTensor, list[torch.LongTensor])`: Answers of shape
        `(batch_size, answer_length)`, passes of each row, and on request the answers after each step.
    """
    history: list[torch.LongTensor] = []
    for state in denoising_states(runner, answer, plan, processors, criteria, hooks, constraint):
        if state.num_steps > 0 and keep_history:
            history.append(state.answer.clone())
        if state.num_steps > 0 and drafts is not None:
            drafts.put_answer(state.answer, state.answer.masked_fill(~state.settled, plan.mask_token_id))
    return state.answer, state.num_passes, history

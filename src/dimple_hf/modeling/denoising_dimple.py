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
"""The denoising loop: from mask tokens to a complete answer, for each row independently.

Source: Dimple, section 4 (arXiv 2505.16990) and the released decoding loop. What runs the model is in `canvas_dimple`;
the computations of a step are in `sampling_dimple` and `rules_dimple`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteria

from .canvas_dimple import CanvasRunner
from .constraint_dimple import AnswerConstraint
from .rules_dimple import SamplerRule, ThresholdConfig
from .sampling_dimple import (
    CONFIDENCE_MEASURES,
    DEFAULT_EPS,
    SCHEDULES,
    argmax,
    block_steps,
    check_finite,
    chunked,
    current_block,
    denoising_times,
    draw_tokens,
    finished_rows,
    rank_positions,
    scatter,
    steps_per_block,
    top_probability,
)


@dataclass
class DecodingResult:
    """
    The results so far of all rows of a call. Its tensors are the loop's own: they change with the next step.

    Args:
        answer_ids (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Answer tokens, the mask token at masked positions.
        is_final (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
            `True` where no later step changes the token.
        finished (`torch.BoolTensor` of shape `(batch_size,)`):
            `True` for rows in which nothing changes any more.
        num_forward_passes (`torch.LongTensor` of shape `(batch_size,)`):
            Forward passes of the model over each row.
        token_logprobs (`torch.FloatTensor` of shape `(batch_size, answer_length)`):
            Log-probability of each token in the distribution that it was committed from; 0 at given tokens, NaN at
            masked positions.
        commit_steps (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            The step, from 0, that committed each token; -1 at given tokens and masked positions.
        logits (`torch.FloatTensor` of shape `(batch_size, answer_length, vocab_size)`, *optional*):
            The scores that each position was committed from; NaN where it was not. On request.
        top_logprobs (`torch.FloatTensor` of shape `(batch_size, answer_length, num_top_logprobs)`, *optional*):
            The largest log-probabilities of the distribution that each position was committed from, descending; -inf
            where nothing was. On request.
        top_ids (`torch.LongTensor` of shape `(batch_size, answer_length, num_top_logprobs)`, *optional*):
            Their tokens.
    """

    answer_ids: torch.Tensor
    is_final: torch.Tensor
    finished: torch.Tensor
    num_forward_passes: torch.Tensor
    token_logprobs: torch.Tensor
    commit_steps: torch.Tensor
    logits: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None


@dataclass
class DecodingState:
    """
    The rows that are still being decoded, and their state. A finished row leaves, unless rows must stay.

    Args:
        answer (`torch.LongTensor` of shape `(num_rows, answer_length)`):
            Answer tokens, the mask token at masked positions.
        generated (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at positions that were masked before the first step.
        provisional (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at positions that the row's last step committed together, under a rule that remasks: each of them
            was chosen without sight of the others.
        scored (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at the positions that this step scores.
        masked (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at masked positions.
        unresolved (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
            `True` at masked and provisional positions.
        stopped (`torch.BoolTensor` of shape `(num_rows,)`):
            `True` for rows that a stopping criterion has ended.
        rows (`torch.LongTensor` of shape `(num_rows,)`):
            Their indices in `result`.
        result ([`DecodingResult`]):
            All rows, also those that have left.
        is_finite (`torch.BoolTensor` of shape `(1,)`):
            Whether all logits so far were finite, up to impossible tokens.
        step (`int`):
            Index of the step, from 0; after the last one, their number.
        memory (`dict[str, Any]`):
            What a rule keeps from one step to the next: tensors whose first dimension is the rows, or other objects
            from which `value[rows]` selects rows.
    """

    answer: torch.Tensor
    generated: torch.Tensor
    provisional: torch.Tensor
    scored: torch.Tensor
    masked: torch.Tensor
    unresolved: torch.Tensor
    stopped: torch.Tensor
    rows: torch.Tensor
    result: DecodingResult
    is_finite: torch.Tensor
    step: int = 0
    memory: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls, canvas: torch.Tensor, mask_token_id: int, num_forward_passes: torch.Tensor | None = None
    ) -> "DecodingState":
        """The state before the first step, see [`denoise`]."""
        masked, nothing = canvas == mask_token_id, torch.zeros_like(canvas, dtype=torch.bool)
        result = DecodingResult(
            answer_ids=canvas.clone(),
            is_final=nothing.clone(),
            finished=torch.zeros_like(nothing[:, 0]),
            num_forward_passes=torch.zeros_like(canvas[:, 0]) if num_forward_passes is None else num_forward_passes,
            token_logprobs=torch.zeros_like(canvas, dtype=torch.float32).masked_fill(masked, torch.nan),
            commit_steps=torch.full_like(canvas, -1),
        )
        is_finite = torch.ones(1, dtype=torch.bool, device=canvas.device)
        rows = torch.arange(len(canvas), device=canvas.device)
        stopped = torch.zeros_like(result.finished)
        return cls(canvas, masked, nothing, nothing, masked, masked, stopped, rows, result, is_finite)

    @property
    def progress(self) -> torch.Tensor:
        """`torch.FloatTensor` of shape `(num_rows,)`: share of each row's generated positions that is committed."""
        num_generated = self.generated.sum(dim=1)
        return (num_generated - self.masked.sum(dim=1)) / num_generated.clamp(min=1)

    def sync(self, num_scored: torch.Tensor | None = None) -> list[int]:
        """
        The only wait for the device in a step.

        Args:
            num_scored (`torch.LongTensor` of shape `(num_rows,)`, *optional*):
                How many positions each row scores.

        Returns:
            `list[int]`: The same.

        Raises:
            ValueError: If logits of the last step were not finite.
        """
        values = self.is_finite if num_scored is None else torch.cat([num_scored, self.is_finite])
        *counts, is_finite = values.tolist()
        check_finite(is_finite)
        return counts

    def select_rows(self, rows: torch.Tensor) -> None:
        """Keeps `rows` (`torch.LongTensor` of shape `(num_kept_rows,)`, ascending)."""
        for name in ("answer", "generated", "provisional", "scored", "masked", "unresolved", "stopped", "rows"):
            setattr(self, name, getattr(self, name)[rows])
        self.memory = {name: value[rows] for name, value in self.memory.items()}

    def record(
        self,
        chosen: torch.Tensor,
        rejected: torch.Tensor | None,
        probability: torch.Tensor,
        logits: torch.Tensor | None,
    ) -> None:
        """
        Writes the answer into the result, with the probabilities and steps of the positions committed now.

        Args:
            chosen (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
                `True` at these positions.
            rejected (`torch.BoolTensor` of shape `(num_rows, answer_length)`, *optional*):
                `True` at positions remasked now.
            probability (`torch.FloatTensor` of shape `(num_rows, answer_length)`):
                Probability of the tokens committed now.
            logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`, *optional*):
                Scores of the positions `scored`, where the result keeps them.
        """
        result, rows = self.result, self.rows
        new_logprobs = probability.clamp(min=torch.finfo(probability.dtype).tiny).log()
        logprobs = torch.where(chosen, new_logprobs, result.token_logprobs[rows])
        steps = result.commit_steps[rows].masked_fill(chosen, self.step)
        if rejected is not None:
            logprobs, steps = logprobs.masked_fill(rejected, torch.nan), steps.masked_fill(rejected, -1)
        result.answer_ids[rows], result.token_logprobs[rows], result.commit_steps[rows] = self.answer, logprobs, steps
        if logits is not None:
            if result.logits is None:
                result.logits = logits.new_full((*result.answer_ids.shape, logits.shape[1]), torch.nan)
            row, position = chosen.nonzero(as_tuple=True)
            result.logits[rows[row], position] = logits[chosen[self.scored]]

    def record_top(self, chosen: torch.Tensor, logits: torch.Tensor, num_top: int) -> None:
        """Writes the `num_top` (`int`) most probable tokens of the positions committed now into the result; the other
        arguments as for [`~DecodingState.record`]."""
        result, shape = self.result, (*self.result.answer_ids.shape, num_top)
        if result.top_logprobs is None or result.top_ids is None:
            result.top_logprobs = torch.full(shape, -torch.inf, device=logits.device)
            result.top_ids = torch.zeros(shape, dtype=torch.long, device=logits.device)
        row, position = chosen.nonzero(as_tuple=True)
        top = logits[chosen[self.scored]].float().log_softmax(dim=-1).topk(num_top, dim=-1)
        result.top_logprobs[self.rows[row], position] = top.values
        result.top_ids[self.rows[row], position] = top.indices


@dataclass(frozen=True)
class Sampler:
    """
    What a step scores, commits and remasks, and when a row has ended.

    Args:
        num_steps (`int`):
            Most steps. The last one commits everything and remasks nothing.
        mask_token_id (`int`):
            The mask token.
        end_token_ids (`torch.LongTensor` of shape `(num_end_tokens,)`):
            Tokens that end an answer; empty to run until nothing is masked.
        unmasking, schedule, block_length:
            See [`DimpleGenerationConfig`]; `schedule` is its `unmasking_schedule`.
        rule ([`SamplerRule`]):
            Chooses the positions to commit.
        do_sample (`bool`, defaults to `False`):
            Draw tokens, after `filters`, instead of taking the most probable ones.
        filters (`LogitsProcessorList`):
            See [`sampling_filters`].
        processors (`LogitsProcessorList`):
            The caller's, applied before confidences are taken.
        constraint ([`AnswerConstraint`], *optional*):
            What the answers must keep to.
        keeps_logits (`bool`, defaults to `False`):
            Whether the result has the logits that positions were committed from.
        num_top_logprobs (`int`, defaults to 0):
            How many of the most probable tokens of each committed position the result has; at most the vocabulary.
    """

    num_steps: int
    mask_token_id: int
    end_token_ids: torch.Tensor
    unmasking: str = "confidence"
    schedule: str = "adaptive"
    rule: SamplerRule = ThresholdConfig()
    block_length: int | None = None
    do_sample: bool = False
    filters: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    processors: LogitsProcessorList = field(default_factory=LogitsProcessorList)
    constraint: AnswerConstraint | None = None
    keeps_logits: bool = False
    num_top_logprobs: int = 0

    @property
    def remask(self) -> SamplerRule | None:
        """The rule's method that remasks, if it has one."""
        return getattr(self.rule, "remask", None)

    def is_last(self, step: int) -> bool:
        """Whether no step follows `step`."""
        return step == self.num_steps - 1

    def begin_step(self, state: DecodingState) -> torch.Tensor:
        """
        Sets the positions that a step scores, and which rows are finished and positions final before it.

        Returns:
            `torch.LongTensor` of shape `(num_rows,)`: The number of positions to score; -1 in finished rows.
        """
        is_last = self.is_last(state.step)
        if is_last:
            state.provisional = torch.zeros_like(state.provisional)
        state.masked = state.answer == self.mask_token_id
        state.unresolved = unresolved = state.masked | state.provisional
        block = current_block(unresolved, None if is_last else self.block_length)
        scored = block & (unresolved if is_last or self.remask is None else state.generated)
        finished = state.stopped | self.ended_rows(state)
        state.scored = scored & ~finished[:, None]
        state.result.finished[state.rows] = finished
        state.result.is_final[state.rows] = ~(unresolved | scored) | finished[:, None]
        return scored.sum(dim=1).masked_fill(finished, -1)

    def ended_rows(self, state: DecodingState) -> torch.Tensor:
        """`torch.BoolTensor` of shape `(num_rows,)`: rows resolved up to their first end token. Rows under a
        constraint are filled to their last position."""
        resolved = state.answer.masked_fill(state.unresolved, self.mask_token_id)
        ended = finished_rows(resolved, self.mask_token_id, self.end_token_ids)
        if self.constraint is not None:
            is_constrained = self.constraint.constrained_rows.to(ended.device)[state.rows]
            ended &= ~is_constrained | ~state.unresolved.any(dim=1)
        return ended

    def process(self, state: DecodingState, prompt: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The `logits` of `state.scored` without the mask token, as the processors leave them; `prompt` is a
        `torch.LongTensor` of shape `(num_rows, prompt_length)`."""
        logits[:, self.mask_token_id] = -torch.inf  # in place: a copy of a whole vocabulary costs more than its sum
        if not self.processors:
            return logits
        sequences = torch.cat([prompt, state.answer], dim=1)
        return self.processors(sequences[state.scored.nonzero()[:, 0]], logits.float())

    def commit(self, state: DecodingState, logits: torch.Tensor) -> None:
        """Commits and remasks positions of `state`, by the `logits` of `state.scored`, `(num_positions,
        vocab_size)`. The last step commits everything: what a constraint did not accept chooses again."""
        logits = self._commit_once(state, logits)
        while self.constraint is not None and self.is_last(state.step):
            state.masked = state.answer == self.mask_token_id
            left = state.scored & state.masked
            if not bool(left.any()):
                return
            logits, state.scored = logits[left[state.scored]], left
            logits = self._commit_once(state, logits)

    def _commit_once(self, state: DecodingState, logits: torch.Tensor) -> torch.Tensor:
        """Returns the logits as the constraint leaves them."""
        masked, is_last = state.masked & state.scored, self.is_last(state.step)
        logits = self.mask_logits(state, logits)
        tokens, confidence, probability = self.choose_tokens(logits)
        state.is_finite = state.is_finite & (confidence >= 0).all()  # False where it is NaN
        if self.constraint is not None:  # it waits for the device anyway, and needs possible tokens
            state.sync()
        confidence, probability = scatter(state.scored, confidence), scatter(state.scored, probability)
        proposed = state.answer.masked_scatter(state.scored, tokens)
        completes = self.completing_rows(state)[:, None]
        chosen, rejected = masked, None
        if not is_last:
            chosen = torch.where(completes, masked, self.choose_positions(state, masked, confidence, logits))
        if self.constraint is not None:
            rows, answer = state.rows, state.answer
            chosen = self.constraint.accept(rows, answer, state.masked, proposed, chosen, confidence)
        if self.remask is not None and not is_last:
            rejected = self.remask(logits, confidence, masked, state) & state.scored & ~state.masked & ~completes
            state.provisional = chosen & (chosen.sum(dim=1, keepdim=True) > 1) & ~completes
        state.answer = torch.where(chosen, proposed, state.answer)
        if rejected is not None:
            state.answer = state.answer.masked_fill(rejected, self.mask_token_id)
        state.record(chosen, rejected, probability, logits if self.keeps_logits else None)
        if self.num_top_logprobs:
            state.record_top(chosen, logits, self.num_top_logprobs)
        return logits

    def mask_logits(self, state: DecodingState, logits: torch.Tensor) -> torch.Tensor:
        """The `logits` of `state.scored` as the constraint leaves them: at masked positions given what is committed;
        at committed ones, which only a rule that remasks scores, given what it cannot remask now."""
        if self.constraint is None:
            return logits
        rows, answer, masked, scored = state.rows, state.answer, state.masked, state.scored
        is_masked = masked[scored]
        if bool(is_masked.all()):
            return self.constraint.mask_logits(rows, answer, masked, logits, scored)
        constrained = torch.empty_like(logits)
        for kind, hidden, positions in (
            (is_masked, masked, scored & masked),
            (~is_masked, masked | scored, scored & ~masked),
        ):
            constrained[kind] = self.constraint.mask_logits(rows, answer, hidden, logits[kind], positions)
        return constrained

    def choose_tokens(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Returns:
            `tuple(torch.LongTensor, torch.FloatTensor, torch.FloatTensor)`, each of shape `(num_positions,)`: The
            token of each position, its confidence, and the token's probability, both before temperature, top-p and
            top-k. Not finite where the logits are not.
        """
        if self.do_sample:
            tokens = draw_tokens(self.filters(None, logits.float()))
        else:
            tokens = argmax(logits)
        measure = CONFIDENCE_MEASURES[self.unmasking]
        confidence = chunked(measure, logits, tokens)
        probability = confidence if measure is top_probability else chunked(top_probability, logits, tokens)
        return tokens, confidence, probability

    def choose_positions(
        self, state: DecodingState, masked: torch.Tensor, confidence: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """What the rule chooses of `masked`; in a row where that is nothing, what the schedule does. Arguments as for
        [`SamplerRule`]."""
        chosen = self.rule(logits, confidence, masked, state)
        if not isinstance(chosen, torch.Tensor) or chosen.shape != masked.shape or chosen.dtype != torch.bool:
            kind = f"{chosen.dtype}, {tuple(chosen.shape)}" if isinstance(chosen, torch.Tensor) else type(chosen)
            raise ValueError(f"`sampler` must return a bool tensor of shape {tuple(masked.shape)} (got {kind})")
        chosen = chosen & masked
        return torch.where(
            chosen.any(dim=1, keepdim=True), chosen, self.scheduled_positions(state, masked, confidence)
        )

    def scheduled_positions(
        self, state: DecodingState, masked: torch.Tensor, confidence: torch.Tensor
    ) -> torch.Tensor:
        """The first positions by rank, as many as the schedule unmasks in this step."""
        # Down to eps, the last two positions come together where there are as many steps as positions. That is the
        # original's habit and happens once in an answer; in every block it would be many, so there the grid goes on
        # below 0, where each step unmasks one.
        eps = DEFAULT_EPS if self.block_length is None else -DEFAULT_EPS
        num_steps, steps = self._block_steps(state)
        times = denoising_times(num_steps, eps, masked.device)
        num_masked = masked.sum(dim=1)
        num_generated = (state.generated & current_block(state.unresolved, self.block_length)).sum(dim=1)
        fraction = SCHEDULES[self.schedule](steps, times, num_masked, num_generated)
        counts = (num_masked * fraction).int()
        return masked & (rank_positions(self.unmasking, confidence, masked) < counts[:, None])

    def completing_rows(self, state: DecodingState) -> torch.Tensor:
        """`torch.BoolTensor` of shape `(num_rows,)`: rows in the last step of the answer or of their block."""
        if self.block_length is None or self.is_last(state.step):
            return torch.full_like(state.stopped, self.is_last(state.step))
        num_steps, steps = self._block_steps(state)
        return steps == num_steps - 1

    def _block_steps(self, state: DecodingState) -> tuple[int, torch.Tensor]:
        """Steps of a block, and the one that each row is in, `(num_rows,)`."""
        num_steps = steps_per_block(self.num_steps, state.answer.shape[1], self.block_length)
        return num_steps, block_steps(state.step, num_steps, state.unresolved, self.block_length)


@torch.no_grad()
def denoise(
    runner: CanvasRunner,
    canvas: torch.Tensor,
    sampler: Sampler,
    criteria: Iterable[StoppingCriteria] = (),
    num_forward_passes: torch.Tensor | None = None,
) -> Iterator[DecodingState]:
    """
    The reverse process, as far as the caller takes it: nothing runs before the next state is requested.

    1. The positions that this step scores: the masked ones of each row's block, the leftmost unresolved one, and under
       a rule that remasks also the generated ones. Finished rows leave the batch or, where rows must stay, score
       nothing.
    2. One forward pass: logits at these positions.
    3. A token and a confidence for each; the rule or the schedule commits positions. What is committed never changes,
       unless the rule remasks it.
    4. The stopping criteria end rows.

    Args:
        runner ([`CanvasRunner`]):
            Runs the model over the prompts; rows leave it as they finish.
        canvas (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Fixed tokens and mask tokens.
        sampler ([`Sampler`]):
            What each step scores, commits and remasks.
        criteria (`Iterable[StoppingCriteria]`):
            Called with the sequences of the rows in the batch after each step; `True` ends a row.
        num_forward_passes (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Passes that have already run over each row; none when missing.

    Yields:
        [`DecodingState`]: Before the first step and after each one. In the last, all rows are finished.
    """
    state = DecodingState.start(canvas, sampler.mask_token_id, num_forward_passes)
    for step in range(sampler.num_steps):
        # 1. Positions to score; rows that are finished
        state.step = step
        num_scored = sampler.begin_step(state)
        yield state  # before waiting for the device, so that what the caller does with it is in the queue
        counts = state.sync(num_scored)
        running = [row for row, count in enumerate(counts) if count >= 0]
        if not running:
            return
        if len(running) < len(counts) and not runner.is_static:
            kept = torch.tensor(running, device=canvas.device)
            runner.select_rows(kept)
            state.select_rows(kept)
        state.result.num_forward_passes += ~state.result.finished

        # 2. One forward pass
        num_positions = sum(counts[row] for row in running)
        logits = runner.logits(state.answer, state.scored, num_positions=num_positions)

        # 3. Tokens, confidences, positions to commit
        sampler.commit(state, sampler.process(state, runner.input_ids, logits))

        # 4. Stopping criteria
        for criterion in criteria:
            sequences = torch.cat([runner.input_ids, state.answer], dim=1)
            state.stopped = state.stopped | criterion(sequences, None)
    state.step = sampler.num_steps
    state.sync()
    state.result.finished[:], state.result.is_final[:] = True, True
    yield state

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
"""Generation with Dimple: `generate`, `generate_steps`, the original's `diffusion_generate`, and their preparation.

Source: Dimple, section 4 (arXiv 2505.16990). The options are in `generation_config_dimple`, the loop is in
`denoising_dimple`, the original's call in `original_dimple`.
"""

import copy
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import is_flash_attention_requested

from .cache_dimple import CachePolicy
from .canvas_dimple import CanvasRunner
from .causal_generation_dimple import CANVAS_INPUTS, DimpleCausalGenerationMixin, check_prompt, end_token_ids
from .constraint_dimple import AnswerConstraint
from .denoising_dimple import DecodingResult, DecodingState, Sampler, denoise
from .generation_config_dimple import (
    DIFFUSION_OPTIONS,
    SHARED_OPTIONS,
    DimpleGenerationConfig,
    nearest_name,
    set_options,
)
from .length_dimple import grow_canvases
from .original_dimple import REPLACEMENTS, OriginalOptions, denoise_as_original
from .sampling_dimple import after_first, sampling_filters
from .streaming_dimple import DimpleGenerationStep, DraftStreamer

#: What trainers, servers and processors pass to every model.
NEUTRAL_INPUTS = ("labels", "mm_token_type_ids", "tokenizer")

#: Arguments of transformers' `generate` that callers pass while they are off.
OFF_SWITCHES = (
    "assistant_model", "assistant_tokenizer", "custom_generate", "negative_prompt_attention_mask",
    "negative_prompt_ids", "prefix_allowed_tokens_fn", "synced_gpus", "trust_remote_code",
)  # fmt: skip

MODEL_INPUTS = (
    "input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_encoder_outputs", *CANVAS_INPUTS
)  # fmt: skip


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

    def answers(self, answer_ids: torch.LongTensor) -> torch.LongTensor:
        """Answers of finished rows as they are returned: padding after the end, and where nothing was committed."""
        hidden = self._after_end(answer_ids) | (answer_ids == self.sampler.mask_token_id)
        return answer_ids.masked_fill(hidden, self.pad_token_id)

    def num_generated(self, result: DecodingResult) -> torch.LongTensor:
        """Generated tokens of each row, `(batch_size,)`; an end token that fills a row under a constraint is none."""
        is_end = torch.isin(result.answer_ids, self.sampler.end_token_ids)
        hidden = torch.where(self._filled_to_end(), is_end, self._after_end(result.answer_ids))
        return (self._committed(result) & ~hidden).sum(dim=1)

    def commits(self, result: DecodingResult) -> tuple[torch.FloatTensor, torch.LongTensor]:
        """`token_logprobs` and `commit_steps` of [`DimpleGenerationOutput`]; as after the end where nothing is
        committed yet."""
        is_generated = self._committed(result) & ~self._after_end(result.answer_ids)
        is_given = (self.canvas != self.sampler.mask_token_id) & ~self._after_end(result.answer_ids)
        logprobs = result.token_logprobs.masked_fill(~is_generated, torch.nan).masked_fill(is_given, 0)
        return logprobs, result.commit_steps.masked_fill(~is_generated, -1)

    def _committed(self, result: DecodingResult) -> torch.BoolTensor:
        return (result.commit_steps >= 0) & (result.answer_ids != self.sampler.mask_token_id)

    def _after_end(self, answer_ids: torch.LongTensor) -> torch.BoolTensor:
        """`True` after a row's first end token; both of shape `(batch_size, answer_length)`."""
        return after_first(torch.isin(answer_ids, self.sampler.end_token_ids)) & ~self._filled_to_end()

    def _filled_to_end(self) -> torch.BoolTensor:
        """`True`, of shape `(batch_size, 1)`, for rows under a constraint, in which an end token is padding."""
        if self.sampler.constraint is None:
            return torch.zeros_like(self.canvas[:, :1], dtype=torch.bool)
        return self.sampler.constraint.constrained_rows.to(self.canvas.device)[:, None]


class DimpleGenerationMixin(DimpleCausalGenerationMixin):
    """
    `generate` for a model with two modes: denoising in bidirectional mode, transformers' own decoding in causal mode.

    ```text
      prompt | mask mask mask mask mask          the canvas
         |
         v                                        one denoising step
      model -> logits at masked positions -> token and confidence of each
         ^                                                |
         |                                                v
         |                        above the threshold, else what the schedule sets: unmask
         |                                                |
         +--- some still masked --- prompt | a mask c mask mask
                                                          |
                                            end token and all before it unmasked: finished
    ```
    """

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> torch.LongTensor | DimpleGenerationOutput | ModelOutput:
        r"""
        Answers prompts. Each row of a batch is decoded as if it were alone.

        In bidirectional mode (`config.full_attn_mask`), by confident diffusion decoding, which keeps the prompt's keys
        and values and leaves a row as soon as its end is committed. In causal mode, by transformers' own `generate`
        with all its options.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*):
                Prompt tokens; also as `input_ids`.
            generation_config (`GenerationConfig`, *optional*):
                Options; those that it leaves at `None` are the model's.
            logits_processor (`LogitsProcessorList`, *optional*):
                Called before confidences are taken, with the sequences and scores of all masked positions, one a row:
                `(num_positions, length)` and `(num_positions, vocab_size)`.
            stopping_criteria (`StoppingCriteriaList`, *optional*):
                Called after each step with the sequences of the unfinished rows (with static shapes, of all rows); a
                row that is stopped keeps what is unmasked, and padding elsewhere.
            streamer (`BaseStreamer`, *optional*):
                Gets the prompt, then the answer as it is decoded (see [`DraftStreamer`]).
            attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*):
                1 at tokens, 0 at padding, which must be on the left. All ones when missing.
            pixel_values, image_grid_thw (`torch.Tensor`, *optional*):
                Images, as [`DimpleProcessor`] makes them.
            mm_encoder_outputs (`dict`, *optional*):
                In place of `pixel_values`: under `"image"`, what
                [`~DimpleForConditionalGeneration.get_image_features`] returned.
            answer_ids (`torch.LongTensor` of shape `(batch_size, answer_length)`, *optional*):
                The canvas to start from: fixed tokens, and the mask token where one is to be generated. Sets the
                answer's length.
            answer_attention_mask (`torch.LongTensor` of shape `(batch_size, answer_length)`, *optional*):
                1 at the canvas, 0 at padding after a canvas that is shorter than its neighbours'. All ones when
                missing.
            answer_constraint (`AnswerConstraint`, *optional*):
                What the processor makes of a structure prior, together with `answer_ids`: the tokens that a position
                can still take. Rows under it are filled to their last position.
            kwargs:
                Options of [`DimpleGenerationConfig`], which win over `generation_config`. `tokenizer` is accepted and
                ignored, because transformers' server passes it.

        Returns:
            `torch.LongTensor` of shape `(batch_size * num_return_sequences, prompt_length + answer_length)`, or
            [`DimpleGenerationOutput`] with `return_dict_in_generate=True`.

        Raises:
            ValueError: If an option or input is unknown, out of range, or contradicts another.
        """
        check_no_video(kwargs)
        self.follow_active_adapter()
        if not self.config.full_attn_mask:
            return self._generate_causally(
                inputs,
                generation_config=generation_config,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                streamer=streamer,
                **kwargs,
            )
        inputs = self._take_prompt(inputs, kwargs)

        # 1. Options and inputs, checked before any work; images once; a row for each returned sequence
        call = self._prepare_call(inputs, generation_config, logits_processor, stopping_criteria, streamer, kwargs)
        config, prompt, sampler = call.config, call.runner.input_ids, call.sampler

        # 2. Denoising
        drafts, history = None, []
        if streamer is not None:
            streamer.put(inputs.cpu())
            # Under a constraint an end token is padding, which does not end the answer.
            ends = sampler.end_token_ids if sampler.constraint is None else sampler.end_token_ids[:0]
            drafts = DraftStreamer(streamer, sampler.mask_token_id, ends)
        for state in call.states():
            result = state.result
            if state.step > 0 and config.output_history:
                history.append(torch.cat([prompt, result.answer_ids], dim=1))
            if state.step > 0 and drafts is not None:
                drafts.put_answer(result.answer_ids, result.is_final)

        # 3. Padding after the end
        answers = call.answers(result.answer_ids)
        if drafts is not None:
            drafts.end(answers)
        sequences = torch.cat([prompt, answers], dim=1)
        if not config.return_dict_in_generate:
            return sequences
        token_logprobs, commit_steps = call.commits(result)
        return DimpleGenerationOutput(
            sequences=sequences,
            history=tuple(history) if config.output_history else None,
            tokens_per_forward=call.num_generated(result) / result.num_forward_passes.clamp(min=1),
            num_forward_passes=result.num_forward_passes,
            token_logprobs=token_logprobs,
            commit_steps=commit_steps,
            logits=result.logits,
        )

    @torch.no_grad()
    def generate_steps(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        **kwargs: Any,
    ) -> Iterator[DimpleGenerationStep]:
        r"""
        `generate`, step by step, for any number of rows: an iterator over the answers as they come into being. Each
        step is run when the next item is requested, so leaving the loop ends the work. Bidirectional mode only.

        Args:
            inputs, generation_config, logits_processor, stopping_criteria, kwargs:
                As for [`~DimpleGenerationMixin.generate`]; `output_history` and `return_dict_in_generate` make no
                difference.

        Returns:
            `Iterator[DimpleGenerationStep]`: Before the first step, and after each one. The last item has the answers
            that `generate` returns. Options and inputs are checked, and images encoded, when it is made.

        Raises:
            ValueError: As `generate`; also in causal mode.

        Example:

        ```python
        >>> for step in model.generate_steps(**inputs, max_new_tokens=64):
        ...     print(processor.batch_decode(step.answer_ids, skip_special_tokens=True))
        ```
        """
        self.follow_active_adapter()
        if not self.config.full_attn_mask:
            raise ValueError("`generate_steps` must be used in bidirectional mode (got `full_attn_mask=False`)")
        inputs = self._take_prompt(inputs, kwargs)
        return self._steps(
            self._prepare_call(inputs, generation_config, logits_processor, stopping_criteria, None, kwargs)
        )

    @torch.no_grad()
    def prepare_generation(self, inputs: torch.LongTensor | None = None, **kwargs: Any) -> PreparedCall:
        """
        What `generate` does before its first step, for those who run the steps themselves, as the server does.

        Args:
            inputs, kwargs:
                As for [`~DimpleGenerationMixin.generate`].

        Returns:
            [`PreparedCall`]: Options and inputs checked, images encoded.

        Raises:
            ValueError: As `generate`.
        """
        inputs = self._take_prompt(inputs, kwargs)
        return self._prepare_call(inputs, None, None, None, None, kwargs)

    def _steps(self, call: PreparedCall) -> Iterator[DimpleGenerationStep]:
        for state in call.states():
            result = state.result
            token_logprobs, commit_steps = call.commits(result)
            answers = call.answers(result.answer_ids)
            yield DimpleGenerationStep(
                step=state.step,
                answer_ids=torch.where(result.finished[:, None], answers, result.answer_ids),
                is_final=result.is_final.clone(),
                finished=result.finished.clone(),
                num_forward_passes=result.num_forward_passes.clone(),
                token_logprobs=token_logprobs,
                commit_steps=commit_steps,
            )

    @torch.no_grad()
    def diffusion_generate(
        self, inputs: torch.LongTensor | None = None, generation_config: GenerationConfig | None = None, **kwargs: Any
    ) -> torch.LongTensor | DimpleGenerationOutput:
        r"""
        The original's call, with its argument names, defaults and habits: no early stop, tokens taken after the end,
        no cache unless it is set. At batch 1 it gives the original's tokens; unlike there, a row of a batch does not
        depend on its neighbours.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*):
                Prompt tokens; also as `input_ids`. `attention_mask`, `pixel_values`, `image_grid_thw` and the canvas
                inputs, `answer_ids` and its companions, as for [`~DimpleGenerationMixin.generate`].
            generation_config (`GenerationConfig`, *optional*):
                An object with any of the options below as attributes.
            max_new_tokens (`int`, *optional*):
                Positions of the answer; wins over `max_length` (default 20), which counts the prompt too.
            steps (`int`, defaults to 512):
                Denoising steps.
            eps (`float`, defaults to 1e-3):
                Last time of the schedule.
            temperature (`float`, defaults to 0):
                0: greedy. Positive: tokens are drawn.
            top_p, top_k (*optional*):
                Shape the distribution that tokens are drawn from.
            alg (`str`, defaults to `"origin"`):
                `"origin"`, `"origin-ratio"`, `"maskgit_plus"`, `"topk_margin"`, `"entropy"` or `"autoregressive"`.
            alg_temp (`float`, *optional*):
                Draws the order of positions by confidence at this temperature.
            alg_p_threshold (`float`, *optional*):
                Confidence threshold, `decoding_pipeline="dim"` only. With `alg="entropy"` it never fires, as in the
                original, whose confidences are then negative.
            use_original_confidence (`bool`, defaults to `True`):
                Take confidences before temperature, top-p and top-k; `decoding_pipeline="dim"` only.
            decoding_pipeline (`str`, defaults to `"dim"`):
                `"dim"`: Dimple's adaptive schedule. `"dream"`: Dream's fixed one, which runs all steps.
            use_cache (`bool`, defaults to `False`):
                Keep the prompt's keys and values.
            num_return_sequences (`int`, defaults to 1):
                Sequences per prompt.
            output_history, return_dict_in_generate (`bool`, defaults to `False`):
                Return the sequences after each step; return a [`DimpleGenerationOutput`].
            generation_tokens_hook_func, generation_logits_hook_func (`Callable`, *optional*):
                Functions called inside the loop: `tokens(step, sequences, logits) -> sequences`, first with
                `(None, sequences, None)`, then after each step, may rewrite the answer, not the prompt;
                `logits(step, sequences, logits) -> logits`, over the positions that the pass ran.

        Returns:
            `torch.LongTensor` of shape `(batch_size * num_return_sequences, prompt_length + answer_length)`, or
            [`DimpleGenerationOutput`] with `return_dict_in_generate=True`.

        Raises:
            ValueError: If an option or input is unknown, out of range, or contradicts another.
        """
        self.follow_active_adapter()
        if not self.config.full_attn_mask:
            raise ValueError("`diffusion_generate` must be used in bidirectional mode (got `full_attn_mask=False`)")
        inputs = self._take_prompt(inputs, kwargs)
        options = OriginalOptions.collect(generation_config, kwargs)
        mask_token_id = self.config.mask_token_id if options.mask_token_id is None else options.mask_token_id
        canvas = _checked_canvas(inputs, kwargs.pop("answer_ids", None))
        if canvas is None:
            canvas = inputs.new_full((len(inputs), options.answer_length(inputs.shape[1])), mask_token_id)
        attention_mask = self._check_prompt(inputs, kwargs.pop("attention_mask", None), mask_token_id, canvas.shape[1])
        constraint = _answer_constraint(inputs, kwargs, options.num_return_sequences)
        runner = self._prepare_runner(
            inputs, attention_mask, canvas, mask_token_id, options.num_return_sequences, options.policy(), **kwargs
        )
        canvas = canvas.repeat_interleave(options.num_return_sequences, dim=0)
        canvas, history, num_passes = denoise_as_original(runner, canvas, mask_token_id, options, constraint)
        answer = history[-1] if history else canvas
        prompt = runner.input_ids
        sequences = torch.cat([prompt, answer], dim=1)
        if not options.return_dict_in_generate:
            return sequences
        num_generated = ((canvas == mask_token_id) & (answer != mask_token_id)).sum(dim=1)
        return DimpleGenerationOutput(
            sequences=sequences,
            history=tuple(torch.cat([prompt, step], dim=1) for step in history) if options.output_history else None,
            tokens_per_forward=num_generated / num_passes.clamp(min=1),
            num_forward_passes=num_passes,
        )

    def _prepare_call(
        self,
        inputs: torch.LongTensor,
        generation_config: GenerationConfig | None,
        logits_processor: LogitsProcessorList | None,
        stopping_criteria: StoppingCriteriaList | None,
        streamer: BaseStreamer | None,
        kwargs: dict[str, Any],
    ) -> PreparedCall:
        """Checks options and inputs, which are in `kwargs`, before any work; then encodes the images."""
        config, model_inputs = self._prepare_generation_config(generation_config, **kwargs)
        self._check_options(config, model_inputs)
        num_rows = len(inputs) * config.num_return_sequences
        if streamer is not None and num_rows > 1:
            raise ValueError(
                f"`streamer` must be used with one sequence at a time (got {num_rows}); `generate_steps` shows any "
                "number"
            )
        mask_token_id = self.config.mask_token_id if config.mask_token_id is None else config.mask_token_id
        canvas = _checked_canvas(inputs, model_inputs.pop("answer_ids", None))
        given_length = kwargs.get("max_new_tokens") or (generation_config and generation_config.max_new_tokens)
        if canvas is not None and given_length and canvas.shape[1] > given_length:
            raise ValueError(
                f"`answer_ids` must not be longer than `max_new_tokens`={given_length} (got {canvas.shape[1]} tokens)"
            )
        initial_length = config.initial_answer_length if canvas is None else None
        if canvas is None:
            canvas = inputs.new_full((len(inputs), _answer_length(config, inputs.shape[1])), mask_token_id)
        if initial_length is not None and initial_length >= canvas.shape[1]:
            initial_length = None
        attention_mask = self._check_prompt(
            inputs, model_inputs.pop("attention_mask", None), mask_token_id, canvas.shape[1]
        )
        sampler = Sampler(
            num_steps=config.max_denoising_steps or canvas.shape[1],
            mask_token_id=mask_token_id,
            end_token_ids=self._end_token_ids(config, inputs.device),
            unmasking=str(config.unmasking),
            schedule=str(config.unmasking_schedule),
            rule=config.rule(),
            block_length=config.block_length,
            do_sample=config.do_sample,
            filters=sampling_filters(config.temperature, config.top_p, config.top_k or None),
            processors=LogitsProcessorList(logits_processor or []),
            constraint=_answer_constraint(inputs, model_inputs, config.num_return_sequences),
            keeps_logits=config.output_logits,
        )
        _check_sampler(sampler, canvas.shape[1], initial_length)
        criteria = StoppingCriteriaList(stopping_criteria or [])
        if config.max_time is not None:
            criteria.append(MaxTimeCriteria(max_time=config.max_time))
        policy = config.policy()
        self._check_windows(policy, initial_length is not None, model_inputs.get("answer_attention_mask"))
        pad_token_id = self._pad_token_id(config)

        runner = self._prepare_runner(
            inputs,
            attention_mask,
            canvas,
            mask_token_id,
            config.num_return_sequences,
            policy,
            config.cache_implementation == "static",
            **model_inputs,
        )
        if runner.is_static and self._valid_auto_compile_criteria({"past_key_values": runner.cache}, config):
            runner.compile(config.compile_config)
        canvas = canvas.repeat_interleave(config.num_return_sequences, dim=0)
        return PreparedCall(config, runner, canvas, sampler, criteria, initial_length, pad_token_id)

    def _prepare_runner(
        self,
        inputs: torch.LongTensor,
        attention_mask: torch.LongTensor,
        canvas: torch.LongTensor,
        mask_token_id: int,
        num_return_sequences: int,
        cache_policy: CachePolicy | None,
        is_static: bool = False,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        answer_attention_mask: torch.LongTensor | None = None,
    ) -> CanvasRunner:
        """Encodes the images, once, and repeats each prompt with its features for each returned sequence."""
        if answer_attention_mask is None:
            answer_attention_mask = torch.ones_like(canvas)
        if answer_attention_mask.shape != canvas.shape:
            raise ValueError(
                f"`answer_attention_mask` must have the shape of `answer_ids`, {tuple(canvas.shape)} "
                f"(got {tuple(answer_attention_mask.shape)})"
            )
        hidden_masks = (canvas == mask_token_id) & (answer_attention_mask == 0)
        for row in hidden_masks.any(dim=1).nonzero()[:1, 0].tolist():
            raise ValueError(
                f"`answer_ids` must not hold the mask token {mask_token_id} where `answer_attention_mask` is 0 "
                f"(got it in row {row})"
            )
        full_mask = torch.cat([attention_mask, answer_attention_mask], dim=1)
        # Where the answer stands is text to the positions, whatever tokens a canvas fixes there.
        sequences = torch.cat([inputs, torch.full_like(canvas, self.config.mask_token_id)], dim=1)
        position_ids = self.get_rope_index(sequences, image_grid_thw, full_mask)
        image_features = self._encode_images(pixel_values, image_grid_thw, mm_encoder_outputs)
        runner = CanvasRunner(self, inputs, full_mask, position_ids, image_features, cache_policy, is_static)
        if num_return_sequences > 1:
            rows = torch.arange(len(inputs), device=inputs.device)
            runner.select_rows(rows.repeat_interleave(num_return_sequences))
        return runner

    def _encode_images(
        self,
        pixel_values: torch.FloatTensor | None,
        image_grid_thw: torch.LongTensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
    ) -> torch.FloatTensor | None:
        """Returns the features of all images, `(num_image_tokens, hidden_size)`, or `None` without images."""
        if pixel_values is not None and mm_encoder_outputs:
            raise ValueError("only one of `pixel_values` and `mm_encoder_outputs` must be given (got both)")
        if (pixel_values is None and not mm_encoder_outputs) != (image_grid_thw is None):
            missing = "image_grid_thw" if image_grid_thw is None else "pixel_values"
            raise ValueError(f"`pixel_values` and `image_grid_thw` must be given together (got no `{missing}`)")
        if mm_encoder_outputs:
            return torch.cat(mm_encoder_outputs["image"].pooler_output)
        if pixel_values is None:
            return None
        return torch.cat(self.get_image_features(pixel_values, image_grid_thw).pooler_output)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[DimpleGenerationConfig, dict[str, Any]]:
        """
        Merges the checkpoint's options, those of `generation_config` that are set, and keyword arguments, which win,
        with the defaults where nothing is set. Returns what is no option, too. In causal mode as the parent.
        """
        if not self.config.full_attn_mask:
            return super()._prepare_generation_config(generation_config, **kwargs)
        config = copy.copy(self.generation_config)
        unknown = {} if generation_config is None else config.overlay(set_options(generation_config))
        unknown |= config.overlay(kwargs)
        return config.with_defaults(), {name: value for name, value in unknown.items() if value is not None}

    def adjust_generation_fn(
        self,
        generation_config: GenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | os.PathLike | None,
        trust_remote_code: bool | None = None,
        **loading_kwargs: Any,
    ) -> None:
        """
        Loads the generation options next to a checkpoint; transformers calls it in `from_pretrained`.

        CHANGED: keeps [`DimpleGenerationConfig`], and never loads a `custom_generate` function from the checkpoint.
        """
        if generation_config is not None:
            self.generation_config = DimpleGenerationConfig(**set_options(generation_config))
        elif pretrained_model_name_or_path is not None:
            # Fields of the model's configuration have been set there.
            loading_kwargs = {k: v for k, v in loading_kwargs.items() if not hasattr(self.config, k)}
            try:
                self.generation_config = DimpleGenerationConfig.from_pretrained(
                    pretrained_model_name_or_path,
                    _from_auto=from_auto_class,
                    _from_pipeline=from_pipeline,
                    **loading_kwargs,
                )
            except OSError as error:
                if isinstance(error.__context__, (json.JSONDecodeError, UnicodeDecodeError)):
                    raise
                return  # no such file: the options made from the model's configuration stay

    def _take_prompt(self, inputs: torch.LongTensor | None, kwargs: dict[str, Any]) -> torch.LongTensor:
        """
        Returns the prompt, which may come as `inputs` or, in `kwargs`, as `input_ids`, and takes what means nothing
        here out of `kwargs`: inputs of other models, and arguments of transformers' `generate` that are off.
        """
        check_no_video(kwargs)
        for name in NEUTRAL_INPUTS:
            kwargs.pop(name, None)
        for name in OFF_SWITCHES:
            if not kwargs.get(name):
                kwargs.pop(name, None)
        input_ids = kwargs.pop("input_ids", None)
        if (inputs is None) == (input_ids is None):
            raise ValueError("exactly one of `inputs` and `input_ids` must be given")
        inputs = input_ids if inputs is None else inputs
        if inputs.ndim != 2 or inputs.shape[1] == 0 or torch.is_floating_point(inputs):
            raise ValueError(
                "`input_ids` must be an integer tensor of shape (batch_size, prompt_length >= 1) "
                f"(got {inputs.dtype}, {tuple(inputs.shape)})"
            )
        return inputs.long()

    def _check_options(self, config: DimpleGenerationConfig, model_inputs: dict[str, Any]) -> None:
        """Refuses by name what diffusion decoding does not have."""
        known = {*MODEL_INPUTS, *SHARED_OPTIONS, *DIFFUSION_OPTIONS}
        for name in model_inputs:
            if name in REPLACEMENTS:
                raise ValueError(
                    f"`{name}` must be passed to `diffusion_generate`; `generate` has {REPLACEMENTS[name]}"
                )
            if name not in MODEL_INPUTS:
                raise ValueError(f"`{name}` must be a generation option or model input{nearest_name(name, known)}")
        defaults = config._get_default_generation_params()
        for name, value in vars(config).items():
            is_off = value is None or value is False or value == defaults.get(name)
            if name in known or name.startswith("_") or is_off:
                continue
            raise ValueError(f"`{name}` must not be set: diffusion decoding has no such option (got {value!r})")
        config.check_static_shapes()

    def _check_prompt(
        self,
        inputs: torch.LongTensor,
        attention_mask: torch.LongTensor | None,
        mask_token_id: int,
        answer_length: int,
    ) -> torch.LongTensor:
        """Checks the prompt and returns its attention mask, all ones when there is none."""
        total = inputs.shape[1] + answer_length
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"prompt and answer must fit `max_position_embeddings`={self.config.max_position_embeddings} "
                f"(got {inputs.shape[1]} + {answer_length} tokens)"
            )
        return check_prompt(inputs, attention_mask, mask_token_id)

    def _check_windows(
        self,
        cache_policy: CachePolicy | None,
        canvases_grow: bool,
        answer_attention_mask: torch.LongTensor | None,
    ) -> None:
        """Refuses what flash attention would run wrongly: it takes the mask's last columns for those of the positions
        that run, and the windows of a policy with blocks lie elsewhere."""
        if cache_policy is None or cache_policy.block_length is None:
            return
        has_padding = answer_attention_mask is not None and not bool(answer_attention_mask.all())
        if (has_padding or canvases_grow) and is_flash_attention_requested(self.config):
            raise ValueError(
                "`cache_policy` must not have blocks with canvases of different lengths under flash attention; load "
                f'the model with attn_implementation="sdpa" (got {self.config._attn_implementation!r})'
            )

    def _end_token_ids(self, config: DimpleGenerationConfig, device: torch.device) -> torch.LongTensor:
        """The end tokens and the padding token, with which the released model ends its answers."""
        return torch.tensor(end_token_ids(config), dtype=torch.long, device=device)

    def _pad_token_id(self, config: DimpleGenerationConfig) -> int:
        for token_id in (config.pad_token_id, self.config.pad_token_id):
            if token_id is not None:
                return token_id
        raise ValueError(
            "`pad_token_id` must be set in the generation options or the model's configuration (got None)"
        )


def _answer_length(config: DimpleGenerationConfig, prompt_length: int) -> int:
    """Positions of the answer."""
    length = config.max_new_tokens or config.max_length - prompt_length
    if length < 1:
        raise ValueError(
            f"`max_length` must leave room for an answer after the prompt of {prompt_length} tokens "
            f"(got {config.max_length})"
        )
    return length


def _checked_canvas(inputs: torch.LongTensor, answer_ids: torch.LongTensor | None) -> torch.LongTensor | None:
    """Checks the shape of `answer_ids`, if they are given."""
    if answer_ids is None:
        return None
    if answer_ids.ndim != 2 or len(answer_ids) != len(inputs) or answer_ids.shape[1] == 0:
        raise ValueError(
            f"`answer_ids` must have shape (batch_size={len(inputs)}, answer_length >= 1) "
            f"(got {tuple(answer_ids.shape)})"
        )
    return answer_ids.to(inputs.device, torch.long)


def _answer_constraint(
    inputs: torch.LongTensor, model_inputs: dict[str, Any], num_return_sequences: int
) -> AnswerConstraint | None:
    """Takes the constraint out of the inputs, for the rows of the output."""
    constraint = model_inputs.pop("answer_constraint", None)
    if constraint is None:
        return None
    if isinstance(constraint, (list, tuple)):  # what `pipeline` makes of several rows
        raise ValueError(
            "`answer_constraint` must be one object for all rows, as the processor makes it for a batch (got "
            f"{len(constraint)} of them; a pipeline cannot join them: leave its `batch_size` at 1)"
        )
    if len(constraint.constrained_rows) != len(inputs):
        raise ValueError(
            f"`answer_constraint` must be for {len(inputs)} rows (got one for {len(constraint.constrained_rows)})"
        )
    return constraint.repeat_interleave(num_return_sequences)


def _check_sampler(sampler: Sampler, answer_length: int, initial_length: int | None) -> None:
    """Refuses what does not go together with an answer of this length."""
    if initial_length is not None and len(sampler.end_token_ids) == 0:
        raise ValueError(
            "`initial_answer_length` must be used with an `eos_token_id` or a `pad_token_id`, whose probability "
            "shows whether the canvas is long enough (got neither)"
        )
    num_blocks = math.ceil(answer_length / (sampler.block_length or answer_length))
    if sampler.num_steps < num_blocks:
        raise ValueError(
            f"`max_denoising_steps` must be at least the {num_blocks} blocks of {sampler.block_length} positions "
            f"(got {sampler.num_steps})"
        )


def check_no_video(inputs: dict[str, Any]) -> None:
    """Refuses model inputs (name -> value) that hold a video."""
    for name in ("pixel_values_videos", "video_grid_thw"):
        if inputs.get(name) is not None:
            raise ValueError(f"`{name}` must not be given: Dimple does not support video")

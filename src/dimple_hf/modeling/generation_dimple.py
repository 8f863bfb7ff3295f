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
"""Generation with Dimple: `generate`, `generate_steps`, and their preparation.

Source: Dimple, section 4 (arXiv 2505.16990). The options are in `generation_config_dimple`, the inputs in
`generation_inputs_dimple`, the loop in `denoising_dimple`, the original's call in `original_generation_dimple`.
"""

import copy
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, MaxTimeCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer
from transformers.utils import ModelOutput
from transformers.utils.generic import is_flash_attention_requested

from .cache_dimple import CachePolicy
from .causal_generation_dimple import DimpleCausalGenerationMixin, end_token_ids
from .denoising_dimple import Sampler
from .generation_config_dimple import (
    DIFFUSION_OPTIONS,
    SHARED_OPTIONS,
    DimpleGenerationConfig,
    nearest_name,
    set_options,
)
from .generation_inputs_dimple import (
    CAUSAL_INPUTS,
    MODEL_INPUTS,
    GenerationInputs,
    check_length,
    check_no_video,
    checked_canvas,
    take_prompt,
)
from .original_dimple import REPLACEMENTS
from .original_generation_dimple import DimpleOriginalGenerationMixin
from .prepared_call_dimple import DimpleGenerationOutput, PreparedCall
from .sampling_dimple import sampling_filters
from .streaming_dimple import DimpleGenerationStep, DraftStreamer


class DimpleGenerationMixin(DimpleOriginalGenerationMixin, DimpleCausalGenerationMixin):
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
        input_ids = take_prompt(inputs, kwargs)

        # 1. Options and inputs, checked before any work; images once; a row for each returned sequence
        call = self._prepare_call(input_ids, generation_config, logits_processor, stopping_criteria, streamer, kwargs)
        prompt = call.runner.input_ids  # of all rows: the runner's shrinks as they finish

        # 2. Denoising
        drafts, history = None, []
        if streamer is not None:
            streamer.put(prompt.cpu())
            # Under a constraint an end token is padding, which does not end the answer.
            ends = call.sampler.end_token_ids if call.sampler.constraint is None else call.sampler.end_token_ids[:0]
            drafts = DraftStreamer(streamer, call.sampler.mask_token_id, ends)
        for state in call.states():
            result = state.result
            if state.step > 0 and call.config.output_history:
                history.append(torch.cat([prompt, result.answer_ids], dim=1))
            if state.step > 0 and drafts is not None:
                drafts.put_answer(result.answer_ids, result.is_final)

        # 3. Padding after the end
        if drafts is not None:
            drafts.end(call.answers(result.answer_ids))
        output = call.output(prompt, result, history)
        return output if call.config.return_dict_in_generate else output.sequences

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
        input_ids = take_prompt(inputs, kwargs)
        call = self._prepare_call(input_ids, generation_config, logits_processor, stopping_criteria, None, kwargs)
        return call.steps()

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
        return self._prepare_call(take_prompt(inputs, kwargs), None, None, None, None, kwargs)

    def _prepare_call(
        self,
        input_ids: torch.LongTensor,
        generation_config: GenerationConfig | None,
        logits_processor: LogitsProcessorList | None,
        stopping_criteria: StoppingCriteriaList | None,
        streamer: BaseStreamer | None,
        kwargs: dict[str, Any],
    ) -> PreparedCall:
        """Checks options and inputs, which are in `kwargs`, before any work; then encodes the images."""
        # 1. Options
        _check_objects(generation_config, logits_processor, stopping_criteria, streamer)
        config, given = self._prepare_generation_config(generation_config, **kwargs)
        self._check_options(config, given)
        _check_streamer(streamer, len(input_ids) * config.num_return_sequences)
        pad_token_id = self._pad_token_id(config)
        mask_token_id = self.config.mask_token_id if config.mask_token_id is None else config.mask_token_id
        if mask_token_id >= self.config.vocab_size:
            raise ValueError(
                f"`mask_token_id` must be below `vocab_size`={self.config.vocab_size} (got {mask_token_id})"
            )

        # 2. The canvas, and how long it is at first
        max_positions = self.config.max_position_embeddings
        canvas, initial_length = checked_canvas(input_ids, given.get("answer_ids")), None
        if canvas is None:
            answer_length = _answer_length(config, input_ids.shape[1])
            check_length(input_ids.shape[1], answer_length, max_positions)  # before a canvas that fits no memory
            canvas = input_ids.new_full((len(input_ids), answer_length), mask_token_id)
            if config.initial_answer_length is not None and config.initial_answer_length < answer_length:
                initial_length = config.initial_answer_length
        else:
            _check_canvas_length(
                canvas, kwargs.get("max_new_tokens") or getattr(generation_config, "max_new_tokens", None)
            )

        # 3. Inputs, and what goes together with them
        inputs = GenerationInputs.checked(input_ids, canvas, mask_token_id, max_positions, given)
        sampler = self._sampler(config, inputs, mask_token_id, logits_processor)
        _check_sampler(sampler, canvas.shape[1], initial_length)
        criteria = StoppingCriteriaList(stopping_criteria or [])
        if config.max_time is not None:
            criteria.append(MaxTimeCriteria(max_time=config.max_time))
        policy = config.policy()
        self._check_windows(policy, initial_length is not None or not bool(inputs.answer_attention_mask.all()))

        # 4. Images once; a row for each returned sequence
        is_static = config.cache_implementation == "static"
        runner = inputs.runner(self, config.num_return_sequences, policy, is_static)
        if is_static and self._valid_auto_compile_criteria({"past_key_values": runner.cache}, config):
            runner.compile(config.compile_config)
        canvas = canvas.repeat_interleave(config.num_return_sequences, dim=0)
        return PreparedCall(config, runner, canvas, sampler, criteria, initial_length, pad_token_id)

    def _sampler(
        self,
        config: DimpleGenerationConfig,
        inputs: GenerationInputs,
        mask_token_id: int,
        logits_processor: LogitsProcessorList | None,
    ) -> Sampler:
        """The sampler that the options describe, for the rows of the output."""
        constraint = inputs.constraint
        if constraint is not None:
            constraint = constraint.repeat_interleave(config.num_return_sequences)
        return Sampler(
            num_steps=config.max_denoising_steps or inputs.canvas.shape[1],
            mask_token_id=mask_token_id,
            # The released model ends its answers with padding.
            end_token_ids=torch.tensor(end_token_ids(config), dtype=torch.long, device=inputs.canvas.device),
            unmasking=str(config.unmasking),
            schedule=str(config.unmasking_schedule),
            rule=config.rule(),
            block_length=config.block_length,
            do_sample=config.do_sample,
            filters=sampling_filters(config.temperature, config.top_p, config.top_k or None),
            processors=LogitsProcessorList(logits_processor or []),
            constraint=constraint,
            keeps_logits=config.output_logits,
        )

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

    def _check_options(self, config: DimpleGenerationConfig, model_inputs: dict[str, Any]) -> None:
        """Refuses by name what diffusion decoding does not have."""
        known = {*MODEL_INPUTS, *SHARED_OPTIONS, *DIFFUSION_OPTIONS}
        for name in model_inputs:
            if name in REPLACEMENTS:
                raise ValueError(
                    f"`{name}` must be passed to `diffusion_generate`; `generate` has {REPLACEMENTS[name]}"
                )
            if name in CAUSAL_INPUTS:
                raise ValueError(f"`{name}` must not be given in bidirectional mode")
            if name not in MODEL_INPUTS:
                raise ValueError(f"`{name}` must be a generation option or model input{nearest_name(name, known)}")
        defaults = config._get_default_generation_params()
        for name, value in vars(config).items():
            is_off = value is None or value is False or value == defaults.get(name)
            if name in known or name.startswith("_") or is_off:
                continue
            raise ValueError(f"`{name}` must not be set: diffusion decoding has no such option (got {value!r})")
        config.check_static_shapes()

    def _check_windows(self, cache_policy: CachePolicy | None, canvases_differ: bool) -> None:
        """Refuses what flash attention would run wrongly: it takes the mask's last columns for those of the positions
        that run, and the windows of a policy with blocks lie elsewhere where canvases differ in length."""
        if cache_policy is None or cache_policy.block_length is None or not canvases_differ:
            return
        if is_flash_attention_requested(self.config):
            raise ValueError(
                "`cache_policy` must not have blocks with canvases of different lengths under flash attention; load "
                f'the model with attn_implementation="sdpa" (got {self.config._attn_implementation!r})'
            )

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


def _check_canvas_length(canvas: torch.LongTensor, max_new_tokens: int | None) -> None:
    """Refuses `answer_ids` that are longer than the caller's own `max_new_tokens`."""
    if max_new_tokens and canvas.shape[1] > max_new_tokens:
        raise ValueError(
            f"`answer_ids` must not be longer than `max_new_tokens`={max_new_tokens} (got {canvas.shape[1]} tokens)"
        )


def _check_objects(
    generation_config: GenerationConfig | None,
    logits_processor: LogitsProcessorList | None,
    stopping_criteria: StoppingCriteriaList | None,
    streamer: BaseStreamer | None,
) -> None:
    """Refuses what is likely given instead of objects and lists of them: a dict, or a function that is in no list."""
    if generation_config is not None and not hasattr(generation_config, "__dict__"):
        raise ValueError(f"`generation_config` must be a GenerationConfig (got {generation_config!r})")
    for name, value in (("logits_processor", logits_processor), ("stopping_criteria", stopping_criteria)):
        if value is not None and not (isinstance(value, (list, tuple)) and all(map(callable, value))):
            raise ValueError(f"`{name}` must be a list of functions (got {value!r})")
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(f"`streamer` must have `put` and `end` (got {streamer!r})")


def _check_streamer(streamer: BaseStreamer | None, num_rows: int) -> None:
    if streamer is not None and num_rows > 1:
        raise ValueError(
            f"`streamer` must be used with one sequence at a time (got {num_rows}); `generate_steps` shows any number"
        )


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

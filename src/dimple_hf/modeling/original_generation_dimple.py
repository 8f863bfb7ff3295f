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
"""The original's `diffusion_generate`: its arguments and its output.

Source: the released code (github.com/yu-rp/Dimple). Its options and its loop are in `original_dimple`.
"""

from typing import Any

import torch
from transformers import GenerationConfig

from .generation_inputs_dimple import GenerationInputs, check_length, checked_canvas, take_prompt
from .original_dimple import OriginalOptions, denoise_as_original
from .prepared_call_dimple import DimpleGenerationOutput


class DimpleOriginalGenerationMixin:
    """Adds `diffusion_generate` to [`DimpleForConditionalGeneration`]."""

    @torch.no_grad()
    def diffusion_generate(
        self: Any,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
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
        input_ids = take_prompt(inputs, kwargs)
        options = OriginalOptions.collect(generation_config, kwargs)
        mask_token_id = self.config.mask_token_id if options.mask_token_id is None else options.mask_token_id
        canvas = checked_canvas(input_ids, kwargs.pop("answer_ids", None))
        max_positions = self.config.max_position_embeddings
        if canvas is None:
            answer_length = options.answer_length(input_ids.shape[1])
            check_length(input_ids.shape[1], answer_length, max_positions)  # before a canvas that fits no memory
            canvas = input_ids.new_full((len(input_ids), answer_length), mask_token_id)
        prepared = GenerationInputs.checked(input_ids, canvas, mask_token_id, max_positions, kwargs)
        runner = prepared.runner(self, options.num_return_sequences, options.policy())
        canvas = canvas.repeat_interleave(options.num_return_sequences, dim=0)
        constraint = prepared.constraint
        if constraint is not None:
            constraint = constraint.repeat_interleave(options.num_return_sequences)
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

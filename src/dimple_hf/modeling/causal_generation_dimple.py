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
"""The causal mode's `generate`: transformers' own, with images and with positions on three axes.

It fills hooks of `GenerationMixin`, so that its options keep their meaning. Source: the same hooks
of Qwen2.5-VL in transformers.
"""

from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .generation_config_dimple import DEFAULT_MAX_NEW_TOKENS, DIFFUSION_OPTIONS
from .generation_inputs_dimple import CANVAS_INPUTS, check_length, check_prompt
from .position_ids_dimple import get_position_offset, set_position_offset


class DimpleCausalGenerationMixin(GenerationMixin):
    """
    What transformers' `generate` needs to decode Dimple token by token.

    CHANGED: images are encoded once, before the first forward pass. Positions have three axes, and continue those of a
    filled cache. Padding ends an answer, because training ends answers with it.
    """

    def _generate_causally(self, inputs: torch.LongTensor | None, **kwargs: Any) -> torch.LongTensor | ModelOutput:
        """
        Transformers' `generate`, after checks that it leaves out.

        Raises:
            ValueError: If an option belongs to the bidirectional mode, or a row is padded on the right, has no token
                or holds the mask token.
        """
        generation_config = kwargs.get("generation_config")
        for name in (*DIFFUSION_OPTIONS, *CANVAS_INPUTS):
            # The checkpoint's own may stand in a configuration that was copied from it.
            known = (None, getattr(self.generation_config, name, None))
            if kwargs.get(name) is not None or getattr(generation_config, name, None) not in known:
                raise ValueError(f"`{name}` must be used in bidirectional mode (got `full_attn_mask=False`)")
        input_ids = kwargs.get("input_ids") if inputs is None else inputs
        attention_mask = kwargs.get("attention_mask")
        if input_ids is not None and kwargs.get("past_key_values") is None:
            check_prompt(input_ids, attention_mask, self.config.mask_token_id)
        return super().generate(inputs, **kwargs)

    def compute_transition_scores(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        See `GenerationMixin`. Causal mode only.

        Raises:
            ValueError: In bidirectional mode, whose output has `token_logprobs` instead.
        """
        if self.config.full_attn_mask:
            raise ValueError(
                "`compute_transition_scores` must be used in causal mode; in bidirectional mode the output has "
                "`token_logprobs` (got `full_attn_mask=True`)"
            )
        return super().compute_transition_scores(*args, **kwargs)

    def init_continuous_batching(self, generation_config: GenerationConfig | None = None, **kwargs: Any) -> Any:
        """
        See `ContinuousMixin`, whose entry points, `generate_batch` among them, all come here. Text only.

        CHANGED: padding is an end token.

        Raises:
            ValueError: In bidirectional mode, which continuous batching cannot decode.
        """
        self.follow_active_adapter()
        if self.config.full_attn_mask:
            raise ValueError(
                "continuous batching must be used in causal mode; pass the rows to `generate` together, or run "
                "`dimple-hf batch` (got `full_attn_mask=True`)"
            )
        config = self._prepare_generation_config(generation_config)[0]
        return super().init_continuous_batching(config, **kwargs)

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """CHANGED: padding is an end token; an answer has at most 64 tokens where no length is set."""
        config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        config.eos_token_id = end_token_ids(config) or None
        given = (kwargs.get("max_length"), getattr(generation_config, "max_length", None))
        if (*given, self.generation_config.max_length, config.max_new_tokens) == (None,) * 4:
            config.max_new_tokens = DEFAULT_MAX_NEW_TOKENS
        return config, model_kwargs

    def _validate_generated_length(
        self, generation_config: GenerationConfig, input_ids_length: int, has_default_max_length: bool
    ) -> None:
        """CHANGED: refuses an answer that ends beyond the model's positions."""
        super()._validate_generated_length(generation_config, input_ids_length, has_default_max_length)
        answer_length = generation_config.max_length - input_ids_length
        check_length(input_ids_length, answer_length, self.config.max_position_embeddings)

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.LongTensor:
        """
        Positions of all tokens, of shape `(3, batch_size, sequence_length)`. Text after a filled cache continues its
        positions, so that the images need not be given again.
        """
        text_positions = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)
        input_ids, grid = _prompt_tokens(inputs_tensor, model_kwargs), model_kwargs.get("image_grid_thw")
        num_rows, cache = len(inputs_tensor), model_kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0 and grid is None:
            return (text_positions + get_position_offset(cache, num_rows)).expand(3, -1, -1)
        if input_ids is None:
            return text_positions.expand(3, num_rows, -1)
        if input_ids.shape[1] != text_positions.shape[1]:
            raise ValueError(
                "`input_ids` must hold the tokens of a filled cache, too, when images are given "
                f"(got {input_ids.shape[1]} of {text_positions.shape[1]} tokens)"
            )
        return self.get_rope_index(input_ids, grid, model_kwargs.get("attention_mask"))

    def _maybe_prepare_encoder_kwargs_for_generation(
        self,
        inputs_tensor: torch.Tensor,
        model_kwargs: dict[str, Any],
        model_input_name: str | None,
        generation_config: GenerationConfig,
    ) -> dict[str, Any]:
        """Encodes the images, unless that is done, but for those that a filled cache already holds."""
        pixel_values, grid = model_kwargs.pop("pixel_values", None), model_kwargs.pop("image_grid_thw", None)
        encoded = model_kwargs.pop("mm_encoder_outputs", None)
        if pixel_values is None and not encoded:
            return model_kwargs
        features = (encoded["image"] if encoded else self.get_image_features(pixel_values, grid)).pooler_output
        cache, input_ids = model_kwargs.get("past_key_values"), _prompt_tokens(inputs_tensor, model_kwargs)
        if cache is not None and input_ids is not None and cache.get_seq_length() > 0:
            columns = (input_ids == self.config.image_token_id).nonzero()[:, 1]
            is_cached = (columns < cache.get_seq_length()).split([len(image) for image in features])
            features = tuple(image for image, cached in zip(features, is_cached, strict=True) if not cached.all())
        if features:  # in an object of its own: an assistant is given the caller's, and has a cache of its own
            model_kwargs["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=features)}
        return model_kwargs

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        past_key_values: Any | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """
        See `GenerationMixin.prepare_inputs_for_generation`. CHANGED: keeps the positions' offset with the cache.
        """
        if is_first_iteration and past_key_values is not None and position_ids is not None:
            set_position_offset(past_key_values, position_ids, attention_mask)
        return super().prepare_inputs_for_generation(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )


def end_token_ids(config: GenerationConfig) -> list[int]:
    """The end tokens and the padding token, with which the released model ends its answers."""
    eos, pad = config.eos_token_id, config.pad_token_id
    try:
        ends = [] if eos is None else torch.as_tensor(eos).flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as error:  # a token, such as "<|im_end|>"
        raise ValueError(f"`eos_token_id` must be an integer or a list of integers (got {eos!r})") from error
    return [*ends, pad] if pad is not None and pad not in ends else ends


def _prompt_tokens(inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> torch.LongTensor | None:
    """The prompt's tokens, which stand beside `inputs_embeds` where these are the main input, or are missing."""
    if inputs_tensor.ndim == 2:
        return inputs_tensor
    input_ids = model_kwargs.get("input_ids")
    return input_ids if input_ids is not None and input_ids.shape[1] > 0 else None

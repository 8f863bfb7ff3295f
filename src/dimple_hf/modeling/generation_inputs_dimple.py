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
"""Inputs of a generation call: prompts, images and canvases, checked before any forward pass."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .cache_dimple import CachePolicy
from .canvas_dimple import CanvasRunner
from .constraint_dimple import AnswerConstraint

#: What the processor makes of a structure prior.
CANVAS_INPUTS = ("answer_ids", "answer_attention_mask", "answer_constraint")

MODEL_INPUTS = (
    "input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_encoder_outputs", *CANVAS_INPUTS
)  # fmt: skip

#: What trainers, servers and processors pass to every model.
NEUTRAL_INPUTS = ("labels", "mm_token_type_ids", "tokenizer")

#: Arguments of transformers' `generate` that callers pass while they are off.
OFF_SWITCHES = (
    "assistant_model", "assistant_tokenizer", "custom_generate", "negative_prompt_attention_mask",
    "negative_prompt_ids", "prefix_allowed_tokens_fn", "synced_gpus", "trust_remote_code",
)  # fmt: skip

#: What `generate` takes in causal mode only.
CAUSAL_INPUTS = (
    *OFF_SWITCHES, "cache_position", "logits_to_keep", "past_key_values", "position_ids", "token_type_ids",
)  # fmt: skip


def check_no_video(inputs: dict[str, Any]) -> None:
    """Refuses model inputs (name -> value) that hold a video."""
    for name in ("pixel_values_videos", "video_grid_thw"):
        if inputs.get(name) is not None:
            raise ValueError(f"`{name}` must not be given: Dimple does not support video")


def take_prompt(inputs: torch.LongTensor | None, kwargs: dict[str, Any]) -> torch.LongTensor:
    """
    Takes the prompt, and what means nothing here: inputs of other models, and arguments of transformers' `generate`
    that are off.

    Args:
        inputs (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*):
            Prompt tokens.
        kwargs (`dict[str, Any]`):
            The call's other arguments, of which they are taken out; `input_ids` instead of `inputs`.

    Returns:
        `torch.LongTensor` of shape `(batch_size, prompt_length)`

    Raises:
        ValueError: If there is no prompt, or two, or it has another shape or type.
    """
    check_no_video(kwargs)
    for name in NEUTRAL_INPUTS:
        kwargs.pop(name, None)
    for name in OFF_SWITCHES:
        if not kwargs.get(name):
            kwargs.pop(name, None)
    input_ids = kwargs.pop("input_ids", None)
    if kwargs.get("inputs_embeds") is not None:
        raise ValueError("`inputs_embeds` must not be given in bidirectional mode: pass the prompt as `input_ids`")
    if (inputs is None) == (input_ids is None):
        got = "neither" if inputs is None else "both"
        raise ValueError(f"exactly one of `inputs` and `input_ids` must be given (got {got})")
    inputs = input_ids if inputs is None else inputs
    check_tensor("input_ids", inputs)
    if inputs.ndim != 2 or inputs.shape[1] == 0 or torch.is_floating_point(inputs):
        raise ValueError(
            "`input_ids` must be an integer tensor of shape (batch_size, prompt_length >= 1) "
            f"(got {inputs.dtype}, {tuple(inputs.shape)})"
        )
    return inputs.long()


def check_tensor(name: str, value: Any) -> None:
    """Refuses a list, as of a processor without `return_tensors`, for the input `name` (`str`)."""
    if not isinstance(value, torch.Tensor):
        got = type(value).__name__
        raise ValueError(f"`{name}` must be a tensor, as of the processor with return_tensors='pt' (got {got})")


def check_length(prompt_length: int, answer_length: int, max_positions: int) -> None:
    """Refuses a prompt and an answer that have more tokens together than the model has positions (all `int`)."""
    if prompt_length + answer_length > max_positions:
        raise ValueError(
            f"prompt and answer must fit `max_position_embeddings`={max_positions} "
            f"(got {prompt_length} + {answer_length} tokens)"
        )


def check_prompt(
    input_ids: torch.LongTensor, attention_mask: torch.LongTensor | None, mask_token_id: int
) -> torch.LongTensor:
    """
    Checks a prompt's tokens.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
            Prompt tokens.
        attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length)`, *optional*):
            1 at tokens, 0 at padding.
        mask_token_id (`int`):
            The mask token, which no prompt may hold.

    Returns:
        `torch.LongTensor` of shape `(batch_size, prompt_length)`: The attention mask, all ones where there is none.

    Raises:
        ValueError: If the shapes differ, a row has no token, is padded after a token or holds the mask token.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    check_tensor("attention_mask", attention_mask)
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"`attention_mask` must have the shape of `input_ids`, {tuple(input_ids.shape)} "
            f"(got {tuple(attention_mask.shape)})"
        )
    is_token = attention_mask != 0
    for row in (~is_token.any(dim=1)).nonzero()[:1, 0].tolist():
        raise ValueError(f"`attention_mask` must have a token in each row (got only padding in row {row})")
    for row in (is_token[:, :-1] & ~is_token[:, 1:]).any(dim=1).nonzero()[:1, 0].tolist():
        raise ValueError(
            '`attention_mask` must be padded on the left for generation; use padding_side="left" '
            f"(got padding after a token in row {row})"
        )
    for row in ((input_ids == mask_token_id) & is_token).any(dim=1).nonzero()[:1, 0].tolist():
        raise ValueError(
            f"`input_ids` must not hold the mask token {mask_token_id}, which belongs in `answer_ids` "
            f"(got it in row {row})"
        )
    return attention_mask


def checked_canvas(inputs: torch.LongTensor, answer_ids: torch.LongTensor | None) -> torch.LongTensor | None:
    """Checks the shape of `answer_ids`, if they are given."""
    if answer_ids is None:
        return None
    check_tensor("answer_ids", answer_ids)
    if answer_ids.ndim != 2 or len(answer_ids) != len(inputs) or answer_ids.shape[1] == 0:
        raise ValueError(
            f"`answer_ids` must have shape (batch_size={len(inputs)}, answer_length >= 1) "
            f"(got {tuple(answer_ids.shape)})"
        )
    return answer_ids.to(inputs.device, torch.long)


@dataclass(frozen=True)
class GenerationInputs:
    """
    The inputs of a call in bidirectional mode, a row for each prompt.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
            Prompt tokens.
        attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
            1 at tokens, 0 at padding on the left.
        canvas (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            Fixed tokens and mask tokens.
        answer_attention_mask (`torch.LongTensor` of shape `(batch_size, answer_length)`):
            1 at the canvas, 0 at padding after it.
        constraint ([`AnswerConstraint`], *optional*):
            What the answers must keep to.
        pixel_values, image_grid_thw (`torch.Tensor`, *optional*):
            All images, as [`DimpleImageProcessor`] makes them.
        mm_encoder_outputs (`dict`, *optional*):
            In place of `pixel_values`: under `"image"`, what [`~DimpleForConditionalGeneration.get_image_features`]
            returned.
    """

    input_ids: torch.LongTensor
    attention_mask: torch.LongTensor
    canvas: torch.LongTensor
    answer_attention_mask: torch.LongTensor
    constraint: AnswerConstraint | None
    pixel_values: torch.FloatTensor | None
    image_grid_thw: torch.LongTensor | None
    mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None

    @classmethod
    def checked(
        cls,
        input_ids: torch.LongTensor,
        canvas: torch.LongTensor,
        mask_token_id: int,
        max_positions: int,
        given: dict[str, Any],
    ) -> "GenerationInputs":
        """
        Args:
            input_ids, canvas:
                See above.
            mask_token_id (`int`):
                The mask token.
            max_positions (`int`):
                Most tokens of prompt and answer together.
            given (`dict[str, Any]`):
                The call's other inputs, by name; all may be missing.

        Raises:
            ValueError: If one has another shape, is padded on the wrong side, or has the mask token where it must not.
        """
        check_length(input_ids.shape[1], canvas.shape[1], max_positions)
        attention_mask = check_prompt(input_ids, given.get("attention_mask"), mask_token_id)
        constraint = given.get("answer_constraint")
        _check_constraint(constraint, len(input_ids))
        answer_attention_mask = given.get("answer_attention_mask")
        if answer_attention_mask is None:
            answer_attention_mask = torch.ones_like(canvas)
        _check_answer_attention_mask(answer_attention_mask, canvas, mask_token_id)
        images = {name: given.get(name) for name in ("pixel_values", "image_grid_thw", "mm_encoder_outputs")}
        _check_images(**images)
        return cls(input_ids, attention_mask, canvas, answer_attention_mask, constraint, **images)

    def runner(
        self, model: Any, num_return_sequences: int, cache_policy: CachePolicy | None, is_static: bool = False
    ) -> CanvasRunner:
        """
        Encodes the images, once, and repeats each prompt with its features for each returned sequence.

        Args:
            model ([`DimpleForConditionalGeneration`]):
                The model.
            num_return_sequences (`int`):
                Rows for each prompt, one after the other.
            cache_policy, is_static:
                See [`CanvasRunner`].

        Returns:
            [`CanvasRunner`]
        """
        full_mask = torch.cat([self.attention_mask, self.answer_attention_mask], dim=1)
        # Where the answer stands is text to the positions, whatever tokens a canvas fixes there.
        sequences = torch.cat([self.input_ids, torch.full_like(self.canvas, model.config.mask_token_id)], dim=1)
        position_ids = model.get_rope_index(sequences, self.image_grid_thw, full_mask)
        image_features = None
        if self.mm_encoder_outputs:
            image_features = torch.cat(self.mm_encoder_outputs["image"].pooler_output)
        elif self.pixel_values is not None:
            image_features = torch.cat(model.get_image_features(self.pixel_values, self.image_grid_thw).pooler_output)
        runner = CanvasRunner(model, self.input_ids, full_mask, position_ids, image_features, cache_policy, is_static)
        if num_return_sequences > 1:
            rows = torch.arange(len(self.input_ids), device=self.input_ids.device)
            runner.select_rows(rows.repeat_interleave(num_return_sequences))
        return runner


def _check_answer_attention_mask(
    answer_attention_mask: torch.LongTensor, canvas: torch.LongTensor, mask_token_id: int
) -> None:
    check_tensor("answer_attention_mask", answer_attention_mask)
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


def _check_images(
    pixel_values: torch.FloatTensor | None,
    image_grid_thw: torch.LongTensor | None,
    mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
) -> None:
    if pixel_values is not None and mm_encoder_outputs:
        raise ValueError("only one of `pixel_values` and `mm_encoder_outputs` must be given (got both)")
    if (pixel_values is None and not mm_encoder_outputs) != (image_grid_thw is None):
        missing = "image_grid_thw" if image_grid_thw is None else "pixel_values"
        raise ValueError(f"`pixel_values` and `image_grid_thw` must be given together (got no `{missing}`)")
    for name, value in (("pixel_values", pixel_values), ("image_grid_thw", image_grid_thw)):
        if value is not None:
            check_tensor(name, value)


def _check_constraint(constraint: AnswerConstraint | None, num_rows: int) -> None:
    if isinstance(constraint, (list, tuple)):  # what `pipeline` makes of several rows
        raise ValueError(
            "`answer_constraint` must be one object for all rows, as the processor makes it for a batch (got "
            f"{len(constraint)} of them; a pipeline cannot join them: leave its `batch_size` at 1)"
        )
    if constraint is not None and not hasattr(constraint, "constrained_rows"):
        raise ValueError(f"`answer_constraint` must be an `AnswerConstraint` (got {constraint!r})")
    if constraint is not None and len(constraint.constrained_rows) != num_rows:
        raise ValueError(
            f"`answer_constraint` must be for {num_rows} rows (got one for {len(constraint.constrained_rows)})"
        )

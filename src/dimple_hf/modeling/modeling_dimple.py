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
"""The Dimple model: Qwen2.5-VL's vision tower and text layers, a projector between them, two attention modes.

Source: Dimple, section 3 (arXiv 2505.16990). Parameter names and shapes are those of the released checkpoint. The
logits at position i predict the token at position i + 1 in both modes, because the language model was autoregressive
first.
"""

import copy
import os
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, torch_compilable_check
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.output_capturing import capture_outputs

from .adapter_dimple import AdapterMixin, copy_adapter_mode
from .configuration_dimple import DimpleConfig
from .diffusion_dimple import image_keys
from .generation_config_dimple import DimpleGenerationConfig
from .generation_dimple import DimpleGenerationMixin
from .generation_inputs_dimple import check_no_video
from .likelihood_dimple import DimpleLikelihoodMixin
from .objective_dimple import (
    NoisySequences,
    TokenLosses,
    add_noise,
    make_sequences,
    reduce_losses,
    refuse_copying,
    token_losses,
)
from .position_ids_dimple import (
    continued_position_ids,
    get_position_offset,
    image_token_counts,
    multimodal_position_ids,
    set_position_offset,
)
from .trl_dimple import FusedHeadOutput, fused_head_output, keeps_own_forward
from .turns_dimple import branch_offsets, sees_branch
from .vision_dimple import DimpleProjector, DimpleVisionModel
from .weight_files_dimple import (
    add_end_token,
    check_weights,
    end_token_id,
    find_folder,
    model_files,
    refuse_damaged_files,
)


@dataclass
class DimpleOutput(ModelOutput):
    """
    Output of [`DimpleForConditionalGeneration.forward`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            Loss of the current mode, when `labels` were given.
        logits (`torch.FloatTensor`, *optional*):
            Of shape `(batch_size, num_kept, vocab_size)`, or `(num_positions, vocab_size)` when `logits_to_keep` is a
            mask.
            `None` when `labels` were given without `logits_to_keep`: the loss never needs all of them.
        past_key_values (`Cache`, *optional*):
            Keys and values of the tokens so far.
        hidden_states, attentions (`tuple(torch.FloatTensor)`, *optional*):
            Of each text layer, on request.
        token_predictions (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            The most probable token at each position that the loss counts, when `labels` were given; -100 elsewhere.
        token_losses (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Cross-entropy in nats at the same positions, without gradient; -100 elsewhere.
        token_noise_levels (`torch.FloatTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Noise level at which the token was masked, at the same positions; -100 elsewhere. Diffusion loss only.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    token_predictions: torch.LongTensor | None = None
    token_losses: torch.FloatTensor | None = None
    token_noise_levels: torch.FloatTensor | None = None


class DimpleTextModel(Qwen2_5_VLTextModel):
    """
    Qwen2.5-VL's text layers with the attention mode as an argument.

    CHANGED: transformers' own switch writes `is_causal` into the shared config for the time of a call, so two threads
    in different modes disturb each other. Here it only travels as an argument, which every attention backend obeys.
    """

    config: DimpleConfig
    _supports_flex_attn = True
    generation_config = None  # `get_compiled_call` reads it, also here

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        is_causal: bool = True,
        branch_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        See [`DimpleForConditionalGeneration.forward`]; `position_ids` are required here, and `branch_ids` are of the
        causal mode: in bidirectional mode each answer is a sequence of its own already.
        """
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        attention_mask = self.prepare_attention_mask(
            inputs_embeds, attention_mask, past_key_values, is_causal, branch_ids if is_causal else None
        )
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        if self.training and past_key_values is not None:
            # Activation checkpointing drops the cache, which its second run of a layer would fill twice. Without
            # gradients, as in `generate` while a model is trained, there is no second run.
            for layer in self.layers:
                layer._can_checkpoint_with_cache = not torch.is_grad_enabled()
        for layer in islice(self.layers, self.config.num_hidden_layers):  # a slice is a new module
            # Positional, so that reentrant activation checkpointing sees a tensor that needs a gradient.
            hidden_states = layer(
                hidden_states,
                attention_mask=attention_mask["full_attention"],
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                is_causal=is_causal,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def prepare_attention_mask(
        self,
        inputs_embeds: torch.FloatTensor,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
        past_key_values: Cache | None,
        is_causal: bool,
        branch_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor | None]:
        """
        Returns:
            `dict[str, torch.Tensor | None]`: What the attention backend wants, under `"full_attention"`; `None` where
            a backend needs no mask. A dict is returned as it is, so that a loop can prepare it once.
        """
        if isinstance(attention_mask, dict):
            return attention_mask
        create_mask = create_causal_mask if is_causal else create_bidirectional_mask
        mask = create_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            and_mask_function=None if branch_ids is None else sees_branch(branch_ids),
        )
        return {"full_attention": mask}


class DimplePreTrainedModel(AdapterMixin, PreTrainedModel):
    """What all models of this package share: the configuration and what they support."""

    config: DimpleConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Any:
        """
        See `PreTrainedModel.from_pretrained`. CHANGED: names the file that is damaged, and refuses weights that are
        missing or no floating-point numbers, which transformers draws or converts; answers end with the end token of a
        tokenizer beside the weights, too.
        """
        location: dict[str, Any] = {name: kwargs.get(name) for name in ("revision", "cache_dir")}
        location |= {"checkpoint": pretrained_model_name_or_path, "subfolder": kwargs.get("subfolder") or ""}
        returns_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)  # others are pickled
        is_whole = not kwargs.get("ignore_mismatched_sizes") and kwargs.get("state_dict") is None
        with refuse_damaged_files(**location):
            folder = find_folder(**location)
            files = [] if folder is None else model_files(folder)
            # The Hub's cache may hold some of the files only; the others are about to be downloaded.
            is_here = os.path.isdir(pretrained_model_name_or_path or "") or all(file.is_file() for file in files)
            if folder is not None and files and is_whole and is_here:
                # Before loading, which draws what is missing, whatever size the configuration has.
                config = kwargs.get("config") or cls.config_class.from_pretrained(folder)
                with torch.device("meta"):
                    empty = cls(copy.deepcopy(config))
                check_weights(folder, empty, "quantization_config" in kwargs)
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, *model_args, output_loading_info=True, **kwargs
            )
        folder = find_folder(**location)
        if folder is not None and is_whole and info["missing_keys"]:
            raise ValueError(f"{folder} must hold all weights (got none of {', '.join(sorted(info['missing_keys']))})")
        if folder is not None and model.can_generate() and "generation_config" not in kwargs:
            add_end_token(model.generation_config, end_token_id(folder))
        return (model, info) if returns_info else model

    def load_adapter(
        self, peft_model_id: str | None = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """
        See `PreTrainedModel.load_adapter`, which `from_pretrained` calls for an adapter's directory or Hub id, too.
        CHANGED: switches the model to the mode that the adapter was trained in, and names a damaged file.
        """
        load_config, adapter_kwargs = kwargs.get("load_config"), kwargs.get("adapter_kwargs") or {}
        download = ({} if load_config is None else load_config.download_kwargs) | adapter_kwargs
        is_swap = (adapter_name or "default") in getattr(self, "peft_config", {})
        with refuse_damaged_files(
            peft_model_id, download.get("revision"), download.get("cache_dir"), config_name="adapter_config.json"
        ):
            loading_info = super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)
        if is_swap and peft_model_id is not None:  # it replaces one with a configuration of its own
            copy_adapter_mode(peft_model_id, self.peft_config[adapter_name or "default"], **download)
        self.follow_active_adapter()
        return loading_info


class DimpleForConditionalGeneration(DimplePreTrainedModel, DimpleLikelihoodMixin, DimpleGenerationMixin):
    r"""
    Dimple, a vision-language model that answers by masked diffusion (or, in its first training phase, token by token).

    `config.full_attn_mask` is the mode: `True`, every token sees every token; `False`, causal. `forward` takes it as
    `is_causal`, too.

    Args:
        config (`DimpleConfig`):
            The model's shape and mode.

    Example:

    ```python
    >>> from transformers import AutoModel, AutoProcessor
    >>> import dimple_hf

    >>> model = AutoModel.from_pretrained("rp-yu/Dimple-7B", dtype="auto", device_map="auto")
    >>> processor = AutoProcessor.from_pretrained("rp-yu/Dimple-7B")
    >>> content = [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is it?"}]
    >>> inputs = processor.apply_chat_template(
    ...     [{"role": "user", "content": content}],
    ...     add_generation_prompt=True,
    ...     tokenize=True,
    ...     return_dict=True,
    ...     return_tensors="pt",
    ... ).to(model.device)
    >>> output = model.generate(**inputs, max_new_tokens=64)
    >>> processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    ```
    """

    # Here and not in the mixin, which `PreTrainedModel` comes before.
    generation_config_class = DimpleGenerationConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    #: With a number, masks follow from it and what a row holds, and not from torch's generator. `PhaseCallback` sets
    #: it for each optimizer step, so that masks do not depend on how the rows of a step are divided.
    mask_seed: int | None = None

    def __init__(self, config: DimpleConfig):
        super().__init__(config)
        self.visual = DimpleVisionModel._from_config(config.vision_config)
        self.img_projector = DimpleProjector(config, self.visual.config)
        self.model = DimpleTextModel._from_config(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def __setattr__(self, name: str, value: Any) -> None:
        """CHANGED: `forward` stays when TRL's `SFTTrainer` would replace it; it takes `fused_lm_head` itself."""
        # CODEPATH: every checkpoint has both attention modes; training and adapters switch between them.
        if name != "forward" or not keeps_own_forward(value, self.config.full_attn_mask):
            super().__setattr__(name, value)

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether `Trainer` passes `num_items_in_batch`; else it averages the losses of micro-batches."""
        return self.config.loss_normalization == "token"

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, image_grid_thw: torch.LongTensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Encodes images and projects them to the language model's width.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(num_patches, patch_size)`):
                Normalised patches of all images, one after the other, as [`DimpleImageProcessor`] makes them.
            image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`):
                Patches of each image along time, height and width.

        Returns:
            `BaseModelOutputWithPooling`: `pooler_output` is a tuple with one tensor of shape
            `(num_image_tokens, hidden_size)` for each image.

        Raises:
            ValueError: If the arguments contradict each other or the vision tower's shape.
        """
        self._check_images(pixel_values, image_grid_thw)
        outputs = self.visual(pixel_values.to(self.visual.dtype), grid_thw=image_grid_thw, **kwargs)
        counts = image_token_counts(image_grid_thw, self.visual.spatial_merge_size).tolist()
        outputs.pooler_output = self.img_projector(outputs.pooler_output).split(counts)
        return outputs

    def get_rope_index(
        self,
        input_ids: torch.LongTensor,
        image_grid_thw: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
    ) -> torch.LongTensor:
        """
        Positions of a prompt's tokens; see [`multimodal_position_ids`].

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Tokens with image placeholders.
            image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`, *optional*):
                Patches of each image, in the order of the placeholders.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 at tokens, 0 at padding.

        Returns:
            `torch.LongTensor` of shape `(3, batch_size, sequence_length)`: Temporal, height and width positions.

        Raises:
            ValueError: If placeholders and images differ in number, or an image's placeholders are not adjacent.
        """
        image_mask = input_ids == self.config.image_token_id
        self._check_placeholders(image_mask, image_grid_thw)
        merge_size = self.visual.config.spatial_merge_size
        return multimodal_position_ids(image_mask, attention_mask, image_grid_thw, merge_size)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_grid_thw: torch.LongTensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        mm_token_type_ids: torch.IntTensor | None = None,
        labels: torch.LongTensor | None = None,
        masked_positions: torch.BoolTensor | None = None,
        branch_ids: torch.LongTensor | None = None,
        is_causal: bool | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        fused_lm_head: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> DimpleOutput | FusedHeadOutput:
        r"""
        One forward pass, in six steps:

        1. The mode: causal or bidirectional.
        2. Embed tokens and put image features at the placeholders.
        3. Positions on the three axes.
        4. With labels in bidirectional mode: mask tokens by the noise schedule, or those of `masked_positions`.
        5. The language model.
        6. The loss at supervised positions, or the logits at the requested positions.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                Tokens; each image stands as a run of `config.image_token_id`.
            attention_mask (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 at tokens, 0 at padding. Also a mask of four dimensions, or the dict that
                `DimpleTextModel.prepare_attention_mask` returns.
            position_ids (`torch.LongTensor` of shape `(3, batch_size, sequence_length)`, *optional*):
                Positions on the three axes, or of shape `(batch_size, sequence_length)` where all three are the same.
                When missing, computed from the tokens and `image_grid_thw`, and after those of a filled cache.
            past_key_values (`Cache`, *optional*):
                Keys and values of earlier tokens.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                In place of `input_ids` and images.
            pixel_values (`torch.FloatTensor` of shape `(num_patches, patch_size)`, *optional*):
                Patches of all images.
            image_grid_thw (`torch.LongTensor` of shape `(num_images, 3)`, *optional*):
                Patches of each image along time, height and width.
            mm_encoder_outputs (`dict`, *optional*):
                In place of `pixel_values`: under `"image"`, what
                [`~DimpleForConditionalGeneration.get_image_features`] returned.
            mm_token_type_ids (`torch.IntTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The same information as the placeholders; accepted, because processors can make it, and not used.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The right token at each position, *not* shifted; -100 where nothing is learned.
            shift_labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The token that follows each position, instead of `labels`, as sequence parallelism passes it; -100
                where nothing is learned. Causal mode only.
            masked_positions (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                `True` where the token is replaced by the mask token. Bidirectional mode with labels only; drawn from
                the noise schedule among the supervised positions when missing: from torch's generator in training, or
                from `mask_seed` and what the rows hold; in evaluation mode always from what the rows hold.
            branch_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                With labels, for rows with several answers: 0 at the conversation, 1, 2, ... at the runs of padding
                after all answers but the last. In bidirectional mode each answer becomes a sequence of its own; see
                [`~modeling.turns_dimple.turn_copies`].
            is_causal (`bool`, *optional*, defaults to `not config.full_attn_mask`):
                `True`: a token sees those before it, and the loss is next-token cross-entropy. `False`: it sees all,
                and the loss is the masked-diffusion loss.
            use_cache (`bool`, *optional*, defaults to `False`):
                Whether to return keys and values in a new `DynamicCache` when no `past_key_values` are given.
            logits_to_keep (`int`, `torch.Tensor` or `tuple(torch.Tensor)`, *optional*):
                Which positions to compute logits at: the last n (0: all), those of a 1-D index tensor, those where a
                bool mask of shape `(batch_size, sequence_length)` is `True`, packed row by row, or those of a pair of
                1-D index tensors, rows and positions. All when missing, none when `labels` are given.
            num_items_in_batch (`int` or `torch.LongTensor`, *optional*):
                Supervised tokens of the whole optimizer step; `Trainer` passes it. See [`diffusion_loss`].
            fused_lm_head (`bool`, defaults to `False`):
                `True`: return the losses in the form that TRL's `SFTTrainer` reads, [`FusedHeadOutput`].

        Returns:
            [`DimpleOutput`]

        Raises:
            ValueError: If the arguments contradict each other, or images do not fit their placeholders.
        """
        # 1. Mode
        is_causal = self._attention_mode(is_causal)
        _check_inputs(input_ids, inputs_embeds, pixel_values, image_grid_thw, mm_encoder_outputs, kwargs)
        self._check_labels(input_ids, attention_mask, labels, masked_positions, branch_ids, is_causal)
        labels = self._supervised_labels(labels, kwargs.pop("shift_labels", None), input_ids, is_causal)

        # 2. Embeddings
        inputs_embeds = self._embed_inputs(input_ids, inputs_embeds, pixel_values, image_grid_thw, mm_encoder_outputs)

        # 3. Positions
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        position_ids = self._position_ids(
            position_ids, input_ids, inputs_embeds, image_grid_thw, attention_mask, branch_ids, past_key_values
        )

        # 4. Forward process
        clean = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        text, noisy = clean, None
        if labels is not None and not is_causal:
            noisy = self._add_noise(
                input_ids, attention_mask, labels, masked_positions, branch_ids, pixel_values, image_grid_thw
            )
            text = self._noisy_inputs(noisy, **clean)

        # 5. Language model
        out = self.model(**text, past_key_values=past_key_values, is_causal=is_causal, branch_ids=branch_ids, **kwargs)

        # 6. Loss and logits
        losses, logits = {}, None
        if labels is not None:
            tokens = self._token_losses(out.last_hidden_state, labels, noisy, branch_ids, clean, kwargs)
            if fused_lm_head:
                return self._fused_head_output(tokens, labels)
            losses = self._loss_fields(tokens, labels, num_items_in_batch)
        if labels is None or logits_to_keep is not None:
            rows = out.last_hidden_state[: len(inputs_embeds)]  # the caller's, not their complements
            logits = self._logits(rows, logits_to_keep, None if is_causal or labels is not None else input_ids)
        return DimpleOutput(logits=logits, **losses, **_other_fields(out))

    def embed(self, input_ids: torch.LongTensor, image_features: torch.FloatTensor | None = None) -> torch.FloatTensor:
        """
        Embeds tokens and puts image features at their placeholders.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Tokens with image placeholders.
            image_features (`torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
                Features of all images, in the order of the placeholders.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`

        Raises:
            ValueError: If there are not as many placeholders as features.
        """
        inputs_embeds = self.get_input_embeddings()(input_ids)
        if image_features is None:
            return inputs_embeds
        image_mask = input_ids == self.config.image_token_id
        num_placeholders = image_mask.sum()
        torch_compilable_check(
            num_placeholders == len(image_features),
            lambda: (
                f"`input_ids` must hold an image placeholder (id {self.config.image_token_id}) for each image feature "
                f"(got {int(num_placeholders)} placeholders and {len(image_features)} features)"
            ),
        )
        image_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(image_mask[..., None], image_features)

    def _attention_mode(self, is_causal: bool | None) -> bool:
        """The mode of a forward pass; an adapter keeps the one that it is trained in."""
        self.follow_active_adapter()
        is_causal = not self.config.full_attn_mask if is_causal is None else is_causal
        if self.training and torch.is_grad_enabled():
            self.note_adapter_mode(not is_causal)
        return is_causal

    def _embed_inputs(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor | None,
        pixel_values: torch.FloatTensor | None,
        image_grid_thw: torch.LongTensor | None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
    ) -> torch.FloatTensor:
        """
        Embeddings of the tokens, with the image features at their placeholders. In training, a batch without images
        runs the vision tower too, and before the embedding: processes that share weights (FSDP, ZeRO-3) gather them in
        the order of use, which must be the same on all.
        """
        if pixel_values is not None:
            mm_encoder_outputs = {"image": self.get_image_features(pixel_values, image_grid_thw)}
        no_image = None
        if not mm_encoder_outputs and self.training and torch.is_grad_enabled():
            no_image = self._no_image_features()
        if inputs_embeds is None:
            images = mm_encoder_outputs["image"].pooler_output if mm_encoder_outputs else ()
            inputs_embeds = self.embed(input_ids, torch.cat(images) if images else None)
        if no_image is None:
            return inputs_embeds
        return inputs_embeds + no_image.to(inputs_embeds.device, inputs_embeds.dtype)

    def _no_image_features(self) -> torch.FloatTensor:
        """
        0, by way of the vision tower and the projector: so that in training each of their parameters has a gradient,
        and each process runs the same modules, whether its rows have images or not.
        """
        vision = self.visual.config
        size = vision.spatial_merge_size
        num_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixel_values = torch.zeros(size**2, num_values, device=self.visual.device, dtype=self.visual.dtype)
        grid = torch.tensor([[1, size, size]], device=pixel_values.device)
        return self.get_image_features(pixel_values, grid).pooler_output[0][:0].sum()

    def _add_noise(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        labels: torch.LongTensor,
        masked_positions: torch.BoolTensor | None,
        branch_ids: torch.LongTensor | None,
        pixel_values: torch.FloatTensor | None,
        image_grid_thw: torch.LongTensor | None,
    ) -> NoisySequences:
        """The sequences of a batch with masks; see [`add_noise`]."""
        is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        index = make_sequences(labels, attention_mask if is_padding_mask else None, branch_ids)
        seed, keys = self.mask_seed, None
        if seed is None and not self.training:
            seed = 0
        if seed is not None and input_ids is not None and pixel_values is not None and image_grid_thw is not None:
            counts = image_token_counts(image_grid_thw, self.visual.spatial_merge_size)
            rows = (input_ids == self.config.image_token_id).nonzero()[:, 0]
            rows = rows[counts.cumsum(dim=0).to(rows.device) - 1]
            keys = image_keys(pixel_values, image_grid_thw.prod(dim=-1).tolist(), rows, len(labels)).to(labels.device)
        return add_noise(
            index,
            input_ids,
            masked_positions,
            self.config.noise_schedule,
            self.config.complementary_masks,
            seed,
            keys,
        )

    def _noisy_inputs(
        self,
        noisy: NoisySequences,
        inputs_embeds: torch.FloatTensor,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
        position_ids: torch.LongTensor,
    ) -> dict[str, Any]:
        """Embeddings with the mask token's at masked positions, attention mask and positions of noisy sequences."""
        index = noisy.index
        is_masked = noisy.is_masked.to(inputs_embeds.device)
        # One for each position, so that hooks of the embedding (NEFTune) see whole sequences.
        mask_tokens = torch.full_like(is_masked, self.config.mask_token_id, dtype=torch.long)
        mask_embeds = self.get_input_embeddings()(mask_tokens).to(inputs_embeds.dtype)
        if not index.are_rows:
            attention_mask = index.is_token.long()
        elif isinstance(attention_mask, torch.Tensor):
            attention_mask = attention_mask[index.rows[:, 0]]
        return {
            "inputs_embeds": torch.where(is_masked[..., None], mask_embeds, index.take(inputs_embeds)),
            "attention_mask": attention_mask,
            "position_ids": position_ids[:, index.rows, index.positions],
        }

    def _token_losses(
        self,
        hidden_states: torch.FloatTensor,
        labels: torch.LongTensor,
        noisy: NoisySequences | None,
        branch_ids: torch.LongTensor | None,
        clean: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> list[TokenLosses]:
        """The losses of the mode; for hybrid training also the next-token losses on the unmasked rows, `clean`."""
        tokens = [token_losses(hidden_states, self.lm_head, labels, noisy, self.config.vocab_size)]
        # CODEPATH: hybrid training, of any checkpoint.
        if noisy is not None and self.config.causal_loss_weight:
            hidden_states = self.model(**clean, is_causal=True, branch_ids=branch_ids, **kwargs).last_hidden_state
            tokens.append(token_losses(hidden_states, self.lm_head, labels, None, self.config.vocab_size))
        return tokens

    def _loss_fields(
        self, tokens: list[TokenLosses], labels: torch.LongTensor, num_items_in_batch: int | torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """The loss and what it is made of: fields of [`DimpleOutput`]. `tokens` are those of the mode, and then the
        causal ones of hybrid training."""
        first, shape = tokens[0], labels.shape
        loss = reduce_losses(first, labels, self.config, num_items_in_batch)
        for further in tokens[1:]:
            causal_loss = reduce_losses(further, labels, self.config, num_items_in_batch)
            loss = loss + self.config.causal_loss_weight * causal_loss
        fields = {
            "loss": loss,
            "token_predictions": first.grid(first.predictions, shape),
            "token_losses": first.grid(first.losses.detach(), shape),
        }
        if first.noise_levels is not None:
            fields["token_noise_levels"] = first.grid(first.noise_levels, shape)
        return fields

    def _fused_head_output(self, tokens: list[TokenLosses], labels: torch.LongTensor) -> FusedHeadOutput:
        if len(tokens) > 1 or self.config.loss_normalization != "token":
            raise ValueError(
                '`loss_normalization` must be "token" and `causal_loss_weight` 0 with TRL\'s `SFTTrainer` (got '
                f"{self.config.loss_normalization!r} and {self.config.causal_loss_weight}): use plain `Trainer`"
            )
        weights = tokens[0].weights(self.config)
        return fused_head_output(tokens[0], weights, labels, reduce_losses(tokens[0], labels, self.config, None))

    def _logits(
        self,
        hidden_states: torch.FloatTensor,
        logits_to_keep: int | torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None,
        copied_ids: torch.LongTensor | None,
    ) -> torch.FloatTensor:
        """Logits at the requested positions. A loss on them in training must not teach to copy `copied_ids`."""
        logits = self.lm_head(select_positions(hidden_states, logits_to_keep))
        if copied_ids is not None and self.training and logits.requires_grad:
            logits.register_hook(partial(refuse_copying, copied_ids, self.config.mask_token_id))
        return logits

    def _supervised_labels(
        self,
        labels: torch.LongTensor | None,
        shift_labels: torch.LongTensor | None,
        input_ids: torch.LongTensor | None,
        is_causal: bool,
    ) -> torch.LongTensor | None:
        """
        The labels that the loss counts. `shift_labels`, which is no parameter of `forward` because `Trainer` takes all
        with "label" in their name for ones that a batch must have, gets one more position: its last token predicts one
        that is not part of the sequence. Images are never masked.
        """
        if shift_labels is not None:
            if not is_causal:
                raise ValueError(
                    "`shift_labels` must be used in causal mode; masked diffusion needs `labels`, which are not "
                    "shifted"
                )
            return nn.functional.pad(shift_labels, (1, 0), value=-100)
        if labels is None or is_causal:
            return labels
        return labels.masked_fill(input_ids == self.config.image_token_id, -100)

    def _position_ids(
        self,
        position_ids: torch.LongTensor | None,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor | None,
        image_grid_thw: torch.LongTensor | None,
        attention_mask: torch.Tensor | dict | None,
        branch_ids: torch.LongTensor | None,
        past_key_values: Cache | None,
    ) -> torch.LongTensor:
        """
        Positions on three axes: those given, or those that follow from the tokens and images, after those of a filled
        cache; a cache that is being filled keeps their offset.
        """
        if position_ids is not None:
            return position_ids.expand(3, -1, -1)
        if branch_ids is not None:
            trunk = (branch_ids == 0) & (attention_mask != 0)
            position_ids = self._position_ids(
                None, input_ids, inputs_embeds, image_grid_thw, trunk, None, past_key_values
            )
            return position_ids + branch_offsets(branch_ids)
        is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        attention_mask = attention_mask if is_padding_mask else None
        if input_ids is not None:
            image_mask = input_ids == self.config.image_token_id
        elif inputs_embeds is not None:
            image_mask = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if past_length > 0:
            if image_mask.any():
                raise ValueError("`position_ids` must be given for images after a filled cache (got None)")
            offset = get_position_offset(past_key_values, len(image_mask))
            return continued_position_ids(image_mask.shape[1], past_length, offset, attention_mask)
        self._check_placeholders(image_mask, image_grid_thw)
        merge_size = self.visual.config.spatial_merge_size
        position_ids = multimodal_position_ids(image_mask, attention_mask, image_grid_thw, merge_size)
        if past_key_values is not None:
            set_position_offset(past_key_values, position_ids, attention_mask)
        return position_ids

    def _check_labels(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None,
        labels: torch.LongTensor | None,
        masked_positions: torch.BoolTensor | None,
        branch_ids: torch.LongTensor | None,
        is_causal: bool,
    ) -> None:
        if masked_positions is not None and (labels is None or is_causal):
            raise ValueError("`masked_positions` must come with `labels` in bidirectional mode (`is_causal=False`)")
        if labels is not None and not is_causal and input_ids is None:
            raise ValueError(
                "`input_ids` must be given for the diffusion loss, which masks tokens (got `inputs_embeds`)"
            )
        doubles_rows = labels is not None and not is_causal and self.config.complementary_masks
        if doubles_rows and isinstance(attention_mask, dict):
            raise ValueError("`attention_mask` must be a tensor with `complementary_masks`, which double the rows")
        if branch_ids is not None:
            self._check_branches(attention_mask, labels, is_causal)
        for name, tensor in (("labels", labels), ("masked_positions", masked_positions), ("branch_ids", branch_ids)):
            if tensor is not None and input_ids is not None and tensor.shape != input_ids.shape:
                raise ValueError(
                    f"`{name}` must have the shape of `input_ids`, {tuple(input_ids.shape)} "
                    f"(got {tuple(tensor.shape)})"
                )

    def _check_branches(
        self, attention_mask: torch.Tensor | dict[str, torch.Tensor | None] | None, labels: Any, is_causal: bool
    ) -> None:
        if labels is None or not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
            raise ValueError("`branch_ids` must come with `labels` and an `attention_mask` of two dimensions")
        if is_causal and is_flash_attention_requested(self.config):
            raise ValueError(
                "`attn_implementation` must be 'sdpa', 'eager' or 'flex_attention' for rows with several answers in "
                f"causal mode (got {self.config._attn_implementation!r}): or set `join_turns=False` in the collator"
            )

    def _check_images(self, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor | None) -> None:
        vision = self.visual.config
        patch_elements = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        if not torch.is_floating_point(pixel_values):
            raise ValueError(f"`pixel_values` must be floating point (got {pixel_values.dtype})")
        if pixel_values.ndim != 2 or pixel_values.shape[1] != patch_elements:
            raise ValueError(
                f"`pixel_values` must have shape (num_patches, {patch_elements}) (got {tuple(pixel_values.shape)})"
            )
        if image_grid_thw is None:
            raise ValueError("`image_grid_thw` must be given with `pixel_values` (got None)")
        self._check_grid(image_grid_thw)
        num_patches = int(image_grid_thw.prod(dim=-1).sum())
        if num_patches != len(pixel_values):
            raise ValueError(
                f"`pixel_values` must hold the {num_patches} patches that `image_grid_thw` counts (got "
                f"{len(pixel_values)}); with a streaming data set, `TrainingArguments` needs "
                '`accelerator_config={"dispatch_batches": False}`'
            )

    def _check_grid(self, image_grid_thw: torch.Tensor) -> None:
        if torch.is_floating_point(image_grid_thw) or image_grid_thw.ndim != 2 or image_grid_thw.shape[1] != 3:
            raise ValueError(
                "`image_grid_thw` must be an integer tensor of shape (num_images, 3) "
                f"(got {image_grid_thw.dtype}, {tuple(image_grid_thw.shape)})"
            )
        merge_size = self.visual.config.spatial_merge_size
        for index, (time, height, width) in enumerate(image_grid_thw.tolist()):
            if time != 1:
                raise ValueError(
                    f"`image_grid_thw[{index}]` must be a still image: video is not supported (got t={time})"
                )
            if height < 1 or width < 1 or height % merge_size or width % merge_size:
                raise ValueError(
                    f"`image_grid_thw[{index}]` must have positive sides that are multiples of {merge_size} "
                    f"(got {height} x {width})"
                )

    def _check_placeholders(self, image_mask: torch.Tensor, image_grid_thw: torch.Tensor | None) -> None:
        positions = image_mask.nonzero()
        if image_grid_thw is None:
            # Placeholders without images are ordinary tokens to the embedding; most likely the images were forgotten.
            if len(positions):
                raise ValueError(f"`image_grid_thw` must be given for {len(positions)} image placeholders (got None)")
            return
        self._check_grid(image_grid_thw)
        counts = image_token_counts(image_grid_thw, self.visual.config.spatial_merge_size)
        if int(counts.sum()) != len(positions):
            raise ValueError(
                f"`input_ids` must hold {int(counts.sum())} image placeholders for the {len(image_grid_thw)} images "
                f"of `image_grid_thw` (got {len(positions)})"
            )
        ends = counts.cumsum(dim=0).to(positions.device)
        first, last = positions[ends - counts.to(positions.device)], positions[ends - 1]
        adjacent = (first[:, 0] == last[:, 0]) & (last[:, 1] - first[:, 1] == counts.to(positions.device) - 1)
        if not adjacent.all():
            index = int((~adjacent).nonzero()[0])
            raise ValueError(
                f"the {int(counts[index])} placeholders of image {index} must be adjacent in one row of `input_ids` "
                f"(got them from row {int(first[index, 0])} to row {int(last[index, 0])})"
            )


def _check_inputs(
    input_ids: torch.LongTensor | None,
    inputs_embeds: torch.FloatTensor | None,
    pixel_values: torch.FloatTensor | None,
    image_grid_thw: torch.LongTensor | None,
    mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None,
    others: dict[str, Any],
) -> None:
    check_no_video(others)
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("exactly one of `input_ids` and `inputs_embeds` must be given")
    has_images = pixel_values is not None or bool(mm_encoder_outputs)
    if image_grid_thw is not None and inputs_embeds is None and not has_images:
        raise ValueError("`pixel_values` must be given with `image_grid_thw` (got None)")
    if inputs_embeds is not None and has_images:
        raise ValueError(
            "`inputs_embeds` must already hold the images (got `pixel_values` or `mm_encoder_outputs` too)"
        )
    if pixel_values is not None and mm_encoder_outputs:
        raise ValueError("only one of `pixel_values` and `mm_encoder_outputs` must be given (got both)")


def _other_fields(output: BaseModelOutputWithPast) -> dict[str, Any]:
    """What an output of the language model holds besides its last hidden states."""
    return {name: value for name, value in output.items() if name != "last_hidden_state"}


def select_positions(
    hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    """
    Picks the positions at which logits are wanted.

    Args:
        hidden_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`):
            Outputs of the language model.
        logits_to_keep (`int`, `torch.Tensor` or `tuple(torch.Tensor)`, *optional*):
            The last n positions (0 or `None`: all), a 1-D index tensor of positions, a bool mask of shape
            `(batch_size, sequence_length)`, or its `True` positions as a pair of 1-D index tensors, rows and
            positions, for which a device need not be waited for.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_kept, hidden_size)`, or `(num_positions, hidden_size)` for a
        mask or a pair.

    Raises:
        ValueError: If `logits_to_keep` is negative or of another shape.
    """
    if logits_to_keep is None or (isinstance(logits_to_keep, int) and logits_to_keep == 0):
        return hidden_states
    if isinstance(logits_to_keep, int):
        if logits_to_keep < 0:
            raise ValueError(f"`logits_to_keep` must be >= 0 (got {logits_to_keep})")
        return hidden_states[:, -logits_to_keep:]
    if isinstance(logits_to_keep, tuple):
        rows, positions = (index.to(hidden_states.device) for index in logits_to_keep)
        return hidden_states[rows, positions]
    if logits_to_keep.dtype == torch.bool and logits_to_keep.shape == hidden_states.shape[:2]:
        return hidden_states[logits_to_keep.to(hidden_states.device)]
    if logits_to_keep.dtype != torch.bool and logits_to_keep.ndim == 1:
        return hidden_states[:, logits_to_keep.to(hidden_states.device)]
    raise ValueError(
        "`logits_to_keep` must be an int, a 1-D index tensor or a bool mask of shape "
        f"{tuple(hidden_states.shape[:2])} (got {logits_to_keep.dtype} of shape {tuple(logits_to_keep.shape)})"
    )


__all__ = ["DimpleForConditionalGeneration", "DimpleOutput", "DimplePreTrainedModel"]

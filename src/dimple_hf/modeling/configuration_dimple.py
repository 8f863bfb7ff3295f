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
"""Configuration of Dimple: a Qwen2.5-VL vision tower, a projector and a Dream-7B language model.

Source: "Dimple: Discrete Diffusion Multimodal Large Language Model with Parallel Decoding" (arXiv 2505.16990) and the
`config.json` of the released checkpoint, which loads as it is.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from .adapter_dimple import register_lora_targets

#: The Auto classes that find the model without this package, in the code that is saved with it.
MODEL_AUTO_CLASSES = (
    "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM",
)  # fmt: skip


#: More layers than any model of this kind has. A file with a billion of them must not be built for an hour.
MAX_LAYERS = 1024


def _check_positive(config: PreTrainedConfig, name: str, most: int | None = None) -> None:
    value = getattr(config, name)
    if value < 1:
        raise ValueError(f"`{name}` must be >= 1 (got {value})")
    if most is not None and value > most:
        raise ValueError(f"`{name}` must be <= {most} (got {value})")


@strict
class DimpleVisionConfig(Qwen2_5_VLVisionConfig):
    r"""
    Configuration of Dimple's vision tower. All fields are those of `Qwen2_5_VLVisionConfig`; the defaults are the
    released model's.

    Args:
        out_hidden_size (`int`, defaults to 3584):
            Width of the merged image features, which is also the width of the projector's input.
        window_size (`int`, defaults to 112):
            Side of an attention window, in pixels.
        fullatt_block_indexes (`list[int]`, defaults to `[7, 15, 23, 31]`):
            Blocks that attend to the whole image instead of one window.

    Raises:
        ValueError: If a size is not positive, `hidden_size` is no multiple of 4 * `num_heads`, or a window is smaller
            than a merged patch.
    """

    model_type = "dimple_vision"

    hidden_size: int = 1280
    patch_size: int = 14
    temporal_patch_size: int = 2
    tokens_per_second: int = 2

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _check_positive(self, "depth", MAX_LAYERS)
        for name in ("hidden_size", "num_heads", "patch_size", "spatial_merge_size", "temporal_patch_size"):
            _check_positive(self, name)
        # Rows and columns each turn pairs of channels of a head.
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"`hidden_size` of the vision tower must be a multiple of 4 * `num_heads` (got {self.hidden_size} and "
                f"{self.num_heads})"
            )
        merged_size = self.spatial_merge_size * self.patch_size
        if self.window_size < merged_size:
            raise ValueError(
                f"`window_size` must hold a merged patch of {merged_size} pixels, `spatial_merge_size` * `patch_size` "
                f"(got {self.window_size})"
            )


#: Options of the training loss, and their values.
LOSS_OPTIONS = {
    "loss_weighting": ("uniform", "elbo"),
    "noise_schedule": ("linear", "cosine", "full"),
    "loss_normalization": ("token", "sequence"),
}


def check_noise_schedule(noise_schedule: str, loss_weighting: str, complementary_masks: bool) -> None:
    """
    Args:
        noise_schedule, loss_weighting, complementary_masks:
            See [`DimpleConfig`].

    Raises:
        ValueError: If the schedule does not go with the others.
    """
    if complementary_masks and loss_weighting == "elbo" and noise_schedule != "linear":
        # A complement's level is 1 - p, which only the linear schedule draws as often as p.
        raise ValueError(
            '`noise_schedule` must be "linear" with `complementary_masks` and `loss_weighting="elbo"` '
            f"(got {noise_schedule!r})"
        )
    if noise_schedule == "full" and (complementary_masks or loss_weighting == "elbo"):
        # A complement would mask nothing, and one noise level bounds no likelihood.
        raise ValueError(
            '`noise_schedule` must be "linear" or "cosine" with `complementary_masks` or `loss_weighting="elbo"` '
            "(got 'full')"
        )


@strict
class DimpleConfig(Qwen2_5_VLTextConfig):
    r"""
    Configuration of [`DimpleForConditionalGeneration`]: the language model's fields at the top level (the released
    checkpoint's layout), the vision tower's in `vision_config`. The defaults are the released 7B model's.

    Args:
        vision_config (`dict` or `DimpleVisionConfig`, *optional*):
            Configuration of the vision tower.
        full_attn_mask (`bool`, defaults to `True`):
            Which of its two modes the model is in. `True`: every token sees every token, `generate` denoises and
            `forward(labels=...)` is the masked-diffusion loss. `False`: causal, `generate` is autoregressive and the
            loss is next-token cross-entropy.
        mrope_section (`list[int]`, defaults to `[16, 24, 24]`):
            How many rotary frequencies take the temporal, height and width position. They sum to half the head size.
        loss_weighting (`str`, defaults to `"uniform"`):
            Weights of the masked-diffusion loss: `"uniform"` (the released code) or `"elbo"` (1 / t, the paper's
            equation 3).
        noise_schedule (`str`, defaults to `"linear"`):
            How noise levels are drawn in training: `"linear"` (t ~ U(1e-3, 1), the paper), `"cosine"` (MDLM, arXiv
            2406.07524) or `"full"`: every answer token is masked, for answers that are read in one pass, as decisions
            are. See [`~modeling.diffusion_dimple.NoiseSchedule`].
        loss_normalization (`str`, defaults to `"token"`):
            What the loss is a mean over: `"token"`, the supervised tokens of the optimizer step, or `"sequence"`, the
            rows, each with the mean of its tokens (LLaDA, arXiv 2502.09992).
        causal_loss_weight (`float`, defaults to 0):
            What the next-token loss is multiplied by that is added to the masked-diffusion loss (a second forward pass
            of the language model; hybrid training as of Nemotron-Labs-Diffusion).
        complementary_masks (`bool`, defaults to `False`):
            Whether the masked-diffusion loss trains each row on a mask and on its complement, so that every answer
            token is learned in every pass (the released code's "dual" strategy). Images are encoded once.
        use_cache (`bool`, defaults to `False`):
            For the original's code, where `True` changes how it decodes. Here it is a generation option.
        rope_theta (`float`, *optional*):
            Base of the rotary frequencies; accepted as a keyword and kept in `rope_parameters`. 10000 when missing, as
            the original's.
        mask_token_id (`int`, defaults to 151666):
            The token of masked positions.
        pad_token_id (`int`, defaults to 151643):
            Fills batches, and ends answers: the released model closes an answer with a run of it.
        image_token_id, video_token_id, vision_start_token_id, vision_end_token_id, vision_token_id (`int`):
            Placeholder ids around and for image features. Video is not supported by the model.

    Raises:
        ValueError: If a size is not positive, an option of the loss is unknown or contradicts another, a sliding
            window is set, `mrope_section` does not sum to half the head size, heads do not divide each other or
            the hidden size, or a special token id lies outside the vocabulary.
    """

    model_type = "dimple"
    base_config_key = ""
    default_theta = 10000.0
    sub_configs_defaults = {"vision_config": DimpleVisionConfig}

    vision_config: dict | PreTrainedConfig | None = None
    hidden_size: int = 3584
    intermediate_size: int = 18944
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 131072
    rms_norm_eps: float | int = 1e-6
    max_window_layers: int | None = 28
    tie_word_embeddings: bool = False
    full_attn_mask: bool = True
    loss_weighting: str = "uniform"
    noise_schedule: str = "linear"
    loss_normalization: str = "token"
    causal_loss_weight: float | int = 0.0
    complementary_masks: bool = False
    use_cache: bool = False
    mrope_section: list[int] | tuple[int, ...] = (16, 24, 24)
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = 151643
    mask_token_id: int = 151666
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    vision_token_id: int = 151654

    def __post_init__(self, **kwargs: Any) -> None:
        # Pointers to code inside a checkpoint. The package needs none, as its classes are registered; where this file
        # itself came with a checkpoint, they lead to the model.
        if not __name__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
            kwargs["auto_map"] = {}  # TRL reads it of every model that is not transformers' own
        if isinstance(self.vision_config, dict):
            # The original writes "dimple" as the tower's type too; the class has its own.
            self.vision_config = {k: v for k, v in self.vision_config.items() if k != "model_type"}
        if isinstance(self.num_hidden_layers, int):  # before the parent lists the layers
            _check_positive(self, "num_hidden_layers", MAX_LAYERS)
        super().__post_init__(**kwargs)
        self._check_consistency()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "DimpleConfig":
        """See `PreTrainedConfig.from_dict`. CHANGED: an invalid value is refused in one line that names the file."""
        try:
            return super().from_dict(config_dict, **kwargs)
        except (ValueError, TypeError, AttributeError, KeyError, StrictDataclassError) as error:
            raise ValueError(f"config.json must hold valid values: {' '.join(str(error).split())}") from error

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        kwargs = super().convert_rope_params_to_dict(**kwargs)
        # The original keeps the sections at the top level, transformers' rotary embedding reads them from here. Our
        # own files have both, and they are equal.
        self.rope_parameters.setdefault("mrope_section", list(self.mrope_section))
        self.mrope_section = list(self.rope_parameters["mrope_section"])
        return kwargs

    def _check_consistency(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads"):
            _check_positive(self, name)
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` must be one of {', '.join(ACT2FN)} (got {self.hidden_act!r})")
        if not self.rope_parameters.get("rope_theta", 1.0) > 0:
            raise ValueError(f"`rope_theta` must be positive (got {self.rope_parameters['rope_theta']})")
        for name, known in LOSS_OPTIONS.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)} (got {getattr(self, name)!r})")
        check_noise_schedule(self.noise_schedule, self.loss_weighting, self.complementary_masks)
        if not 0 <= self.causal_loss_weight < math.inf:
            raise ValueError(f"`causal_loss_weight` must be >= 0 (got {self.causal_loss_weight})")
        if self.use_sliding_window:
            raise ValueError("`use_sliding_window` must be False: the model attends to the whole sequence (got True)")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads` (got {self.hidden_size} and "
                f"{self.num_attention_heads})"
            )
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                "`num_attention_heads` must be a multiple of `num_key_value_heads` "
                f"(got {self.num_attention_heads} and {self.num_key_value_heads})"
            )
        head_dim = self.hidden_size // self.num_attention_heads
        if len(self.mrope_section) != 3 or 2 * sum(self.mrope_section) != head_dim:
            raise ValueError(
                f"`mrope_section` must be three numbers that sum to half the head size, {head_dim // 2} "
                f"(got {list(self.mrope_section)})"
            )
        for name in ("mask_token_id", "image_token_id", "pad_token_id"):
            token_id = getattr(self, name)
            if token_id is not None and not 0 <= token_id < self.vocab_size:
                raise ValueError(f"`{name}` must lie in [0, vocab_size={self.vocab_size}) (got {token_id})")
        if self.mask_token_id in (self.pad_token_id, self.image_token_id):
            raise ValueError(
                "`mask_token_id` must differ from `pad_token_id` and `image_token_id` "
                f"(got {self.mask_token_id} for two of them)"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields. `auto_map` is none: it locates code, and [`~DimpleConfig.to_json_file`] writes it."""
        register_lora_targets()
        return {name: value for name, value in super().to_dict().items() if name != "auto_map"}

    def to_json_file(self, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """
        Writes the configuration as JSON, with the names that the original code reads next to transformers' own:
        without them it would load what we save with a rotary base of 10000, silently.

        Beside the code, which `save_pretrained` copies, the file also locates the classes (`auto_map`);
        elsewhere it does not, whatever the loaded checkpoint had.

        Args:
            json_file_path (`str` or `os.PathLike`):
                Where to write.
            use_diff (`bool`, defaults to `True`):
                Whether to leave out fields that have their default.
        """
        fields = json.loads(self.to_json_string(use_diff=use_diff))
        rope = {k: v for k, v in self.rope_parameters.items() if k not in ("rope_theta", "mrope_section")}
        fields["rope_theta"] = self.rope_parameters["rope_theta"]
        fields["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
        fields["mrope_section"] = self.mrope_section
        fields["full_attn_mask"] = self.full_attn_mask
        fields["torch_dtype"] = fields.get("dtype")
        if (Path(json_file_path).parent / "modeling_dimple.py").is_file():
            # Also what lets a configuration that is saved or pushed alone bring the model's code: `save_pretrained`
            # copies the files that its text search finds imported here.
            from .modeling_dimple import DimpleForConditionalGeneration

            reference = f"modeling_dimple.{DimpleForConditionalGeneration.__name__}"
            fields["auto_map"] = {"AutoConfig": "configuration_dimple.DimpleConfig"}
            fields["auto_map"] |= dict.fromkeys(MODEL_AUTO_CLASSES, reference)
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(fields, indent=2, sort_keys=True) + "\n")


__all__ = ["DimpleConfig", "DimpleVisionConfig"]

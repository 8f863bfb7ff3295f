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
"""The stages of training: trained parts, attention mode and defaults.

Source: Dimple, section 4 (arXiv 2505.16990): alignment and instruction tuning are causal, diffusion tuning is
bidirectional, the vision tower stays frozen.
"""

import math
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from torch import nn

from ..modeling.configuration_dimple import LOSS_OPTIONS, check_noise_schedule
from ..modeling.generation_config_dimple import nearest_name
from .phases import Phase, PhaseCallback, is_number

#: Part of the model -> its module. A head that is tied to the embeddings belongs to the language model.
PARTS = MappingProxyType(
    {"vision": "visual", "projector": "img_projector", "language_model": "model", "head": "lm_head"}
)

MODES = ("causal", "bidirectional")


@dataclass(frozen=True)
class Stage:
    """
    One stage of training.

    Args:
        name (`str`):
            Also the name of its directory.
        mode (`str`):
            `"causal"`: next-token training. `"bidirectional"`: masked diffusion.
        train (`tuple[str, ...]`):
            Parts that are trained, of `"vision"`, `"projector"`, `"language_model"` and `"head"`; the others are
            frozen.
        learning_rate (`float`):
            Highest learning rate, > 0.
        batch_size (`int`):
            Rows of one optimizer step, over all processes and micro-batches.
        num_epochs (`float`, *optional*):
            Passes over the data. Exactly one of `num_epochs` and `max_steps` is given.
        max_steps (`int`, *optional*):
            Optimizer steps.
        max_grad_norm (`float`, defaults to 1.0):
            Norm to which gradients are clipped.
        warmup_ratio (`float`, defaults to 0.03):
            Share of the steps, in [0, 1], over which the learning rate rises from 0.
        decay_ratio (`float`, defaults to 1.0):
            Share of the steps after the warm-up, in [0, 1], over which it falls linearly to 0 at the end. 0: it stays.
        loss_weighting (`str`, *optional*):
            Bidirectional stages only: `"uniform"` (the default) or `"elbo"`; see [`DimpleConfig`].
        complementary_masks (`bool`, *optional*):
            Bidirectional stages only: whether each row is trained on with a mask and with its complement (`False` by
            default).
        noise_schedule (`str`, *optional*):
            Bidirectional stages only: `"linear"` (the default), `"cosine"` or `"full"`; see [`DimpleConfig`].
        causal_loss_weight (`float`, *optional*):
            Bidirectional stages only: weight of the next-token loss that is added (0 by default).
        loss_normalization (`str`, *optional*):
            `"token"` (the default) or `"sequence"`; see [`DimpleConfig`].
        learning_rate_multipliers (`dict[str, float]`, *optional*):
            What the learning rate of a part is multiplied by, such as `{"vision": 0.1}`.

    Raises:
        ValueError: If a value is out of range or contradicts another.
    """

    name: str
    mode: str
    train: tuple[str, ...]
    learning_rate: float
    batch_size: int
    num_epochs: float | None = None
    max_steps: int | None = None
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.03
    decay_ratio: float = 1.0
    loss_weighting: str | None = None
    complementary_masks: bool | None = None
    noise_schedule: str | None = None
    causal_loss_weight: float | None = None
    loss_normalization: str | None = None
    learning_rate_multipliers: dict[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.name or not all(char.isalnum() or char in "-_." for char in self.name) or self.name[0] == ".":
            raise ValueError(f"`name` must be made of letters, digits, '-', '_' and '.' (got {self.name!r})")
        if self.mode not in MODES:
            raise ValueError(f"`mode` must be one of {', '.join(MODES)} (got {self.mode!r})")
        if not self.train:
            raise ValueError("`train` must name at least one part (got none)")
        for part in self.train:
            if not isinstance(part, str) or part not in PARTS:
                raise ValueError(f"`train` must name parts of {', '.join(PARTS)} (got {part!r}){_hint(part, PARTS)}")
        self._check_numbers()
        if (self.num_epochs is None) == (self.max_steps is None):
            raise ValueError(
                f"exactly one of `num_epochs` and `max_steps` must be given (got {self.num_epochs} and "
                f"{self.max_steps})"
            )
        for name in ("loss_weighting", "complementary_masks", "noise_schedule", "causal_loss_weight"):
            if self.mode == "causal" and getattr(self, name) is not None:
                raise ValueError(f"`{name}` must not be given in a causal stage (got {getattr(self, name)!r})")
        for name, known in LOSS_OPTIONS.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ValueError(f"`{name}` must be {' or '.join(map(repr, known))} (got {value!r})")
        check_noise_schedule(
            self.noise_schedule or "linear", self.loss_weighting or "uniform", bool(self.complementary_masks)
        )
        if not isinstance(self.learning_rate_multipliers, (dict, type(None))):
            raise ValueError(
                "`learning_rate_multipliers` must be a mapping such as {'vision': 0.1} "
                f"(got {self.learning_rate_multipliers!r})"
            )
        for part, multiplier in (self.learning_rate_multipliers or {}).items():
            if part not in self.train:
                raise ValueError(
                    f"`learning_rate_multipliers` must name parts of `train`, {', '.join(self.train)} (got {part!r})"
                )
            if not is_number(multiplier) or not 0 < multiplier < math.inf:
                raise ValueError(f"`learning_rate_multipliers` must be > 0 (got {multiplier!r} for {part})")
        if not isinstance(self.complementary_masks, (bool, type(None))):
            raise ValueError(f"`complementary_masks` must be true or false (got {self.complementary_masks!r})")

    def _check_numbers(self) -> None:
        for name in (
            "learning_rate", "max_grad_norm", "num_epochs", "warmup_ratio", "decay_ratio", "causal_loss_weight",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and (not is_number(value) or not math.isfinite(value)):
                raise ValueError(f"`{name}` must be a number (got {value!r})")
        for name in ("batch_size", "max_steps"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 1 <= value < 1 << 31):
                raise ValueError(f"`{name}` must be an integer from 1 to 2**31 - 1 (got {value!r})")
        if self.causal_loss_weight is not None and self.causal_loss_weight < 0:
            raise ValueError(f"`causal_loss_weight` must be >= 0 (got {self.causal_loss_weight})")
        if self.num_epochs is not None and not self.num_epochs > 0:
            raise ValueError(f"`num_epochs` must be > 0 (got {self.num_epochs})")
        self.phase()  # checks the rest

    @property
    def full_attn_mask(self) -> bool:
        """The mode as the model's config has it."""
        return self.mode == "bidirectional"

    def phase(self) -> Phase:
        """Learning rate and clipping for [`PhaseCallback`]."""
        return Phase(self.learning_rate, self.warmup_ratio, self.decay_ratio, self.max_grad_norm)

    def phase_callback(self) -> PhaseCallback:
        """
        Returns:
            [`PhaseCallback`]: Keeps the whole run in this stage's mode, with its learning rate and clipping, and draws
            the same masks in a resumed run.
        """
        switch_at = 0.0 if self.full_attn_mask else 1.0
        return PhaseCallback(switch_at, switch_unit="fraction", causal=self.phase(), diffusion=self.phase())

    def training_arguments(self) -> dict[str, Any]:
        """
        Returns:
            `dict[str, Any]`: Keyword arguments of `TrainingArguments` for this stage.
        """
        length = {"max_steps": self.max_steps} if self.num_epochs is None else {"num_train_epochs": self.num_epochs}
        return {"learning_rate": self.learning_rate, "max_grad_norm": self.max_grad_norm, **length}


def _hint(name: Any, known: Any) -> str:
    return nearest_name(str(name), known)


#: The paper's stages and figures (Dimple, section 4 and its appendix). A recipe changes what it likes.
STAGES = MappingProxyType(
    {
        stage.name: stage
        for stage in (
            Stage("align", "causal", ("projector",), learning_rate=1e-3, batch_size=256, num_epochs=1),
            Stage(
                "instruct", "causal", ("projector", "language_model", "head"),
                learning_rate=5e-6, batch_size=128, num_epochs=1,
            ),
            Stage(
                "diffusion", "bidirectional", ("language_model", "head"),
                learning_rate=5e-7, batch_size=128, num_epochs=1, max_grad_norm=0.1,
            ),
        )
    }
)  # fmt: skip

STAGE_FIELDS = tuple(field.name for field in fields(Stage))


def set_mode(model: nn.Module, stage: Stage) -> None:
    """
    Puts a model into a stage's mode and gives it the stage's loss.

    Args:
        model ([`DimpleForConditionalGeneration`] or `PeftModel`):
            The model.
        stage ([`Stage`]):
            What to train.
    """
    model.config.full_attn_mask = stage.full_attn_mask
    if stage.full_attn_mask:
        model.config.loss_weighting = stage.loss_weighting or "uniform"
        model.config.complementary_masks = bool(stage.complementary_masks)
        model.config.noise_schedule = stage.noise_schedule or "linear"
        model.config.causal_loss_weight = stage.causal_loss_weight or 0.0
    model.config.loss_normalization = stage.loss_normalization or "token"


def freeze_other_parts(model: nn.Module, parts: tuple[str, ...]) -> None:
    """
    Makes the named parts trainable and freezes all others.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model, not wrapped by PEFT (which freezes by itself).
        parts (`tuple[str, ...]`):
            Keys of `PARTS`.
    """
    modules = {PARTS[part] for part in parts}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] in modules)

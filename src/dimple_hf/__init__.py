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
"""Dimple, the first discrete-diffusion multimodal language model, as an ordinary citizen of the Hugging Face
ecosystem.

Importing this package registers Dimple with transformers' Auto classes (here and nowhere else), so that
`AutoModel.from_pretrained("rp-yu/Dimple-7B")` and its siblings need no remote code. And what is saved brings its code
along, for machines without this package.
"""

from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
)

# From its own module: `transformers.AutoVideoProcessor` is a stand-in without torchvision, `pipeline`'s is not.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .modeling import (
    DimpleConfig,
    DimpleForConditionalGeneration,
    DimpleGenerationConfig,
    DimpleGenerationOutput,
    DimpleGenerationStep,
    DimpleVisionConfig,
    EntropyBoundConfig,
    FactorConfig,
    KlassConfig,
    ProphetConfig,
    ThresholdConfig,
    WinoConfig,
)
from .processing import (
    DimpleImageProcessor,
    DimpleProcessor,
    DimpleTokenizer,
    OptionalPart,
    RepeatedPart,
    Slot,
    StructurePrior,
)

__version__ = "0.1.0"

__all__ = [
    "DimpleConfig",
    "DimpleForConditionalGeneration",
    "DimpleGenerationConfig",
    "DimpleGenerationOutput",
    "DimpleGenerationStep",
    "DimpleImageProcessor",
    "DimpleProcessor",
    "DimpleTokenizer",
    "DimpleVisionConfig",
    "EntropyBoundConfig",
    "FactorConfig",
    "KlassConfig",
    "OptionalPart",
    "ProphetConfig",
    "RepeatedPart",
    "Slot",
    "StructurePrior",
    "ThresholdConfig",
    "WinoConfig",
]


class _TokenizerKey(PreTrainedConfig):
    """
    Stands for no model. Transformers finds a tokenizer by the name in a checkpoint's files as soon as its class is
    registered under any configuration; under `DimpleConfig` itself, `trust_remote_code=True` would prefer the code
    that a checkpoint's `auto_map` points to.
    """

    model_type = "dimple_tokenizer"


class _NoVideoProcessor:
    """
    Stands where `pipeline` looks for a video processor, which it can do without. With nothing there, transformers
    would derive one's name from a checkpoint's `auto_map` and ask on stdin whether to run its code.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, **kwargs: Any) -> "_NoVideoProcessor":
        raise ValueError(f"Dimple does not support video, so it has no processor (in {pretrained_model_name_or_path})")


def _register() -> None:
    AutoConfig.register(DimpleConfig.model_type, DimpleConfig, exist_ok=True)
    # PEFT and TRL look for a language model of any kind under `AutoModelForCausalLM`.
    for auto_class in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(DimpleConfig, DimpleForConditionalGeneration, exist_ok=True)
    AutoImageProcessor.register(DimpleConfig, image_processor_classes={"pil": DimpleImageProcessor}, exist_ok=True)
    AutoProcessor.register(DimpleConfig, DimpleProcessor, exist_ok=True)
    AutoVideoProcessor.register(DimpleConfig, video_processor_class=_NoVideoProcessor, exist_ok=True)
    AutoTokenizer.register(_TokenizerKey, tokenizer_class=DimpleTokenizer, exist_ok=True)
    # What `save_pretrained` and `push_to_hub` write is whole: the code travels with it.
    DimpleConfig.register_for_auto_class()
    DimpleForConditionalGeneration.register_for_auto_class("AutoModel")
    DimpleProcessor.register_for_auto_class()


_register()

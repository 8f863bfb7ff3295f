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
"""Configuration, model and generation of Dimple.

The files of this folder travel flat to the Hub, so nothing in them may rely on this one.
"""

from .cache_dimple import CachePolicy
from .configuration_dimple import DimpleConfig, DimpleVisionConfig
from .denoising_dimple import DecodingState
from .generation_config_dimple import DimpleGenerationConfig
from .generation_dimple import DimpleGenerationMixin
from .modeling_dimple import DimpleForConditionalGeneration, DimpleOutput, DimplePreTrainedModel
from .prepared_call_dimple import DimpleGenerationOutput
from .rules_dimple import (
    EntropyBoundConfig,
    FactorConfig,
    KlassConfig,
    ProphetConfig,
    SamplerConfig,
    SamplerRule,
    ThresholdConfig,
    WinoConfig,
)
from .streaming_dimple import DimpleGenerationStep

__all__ = [
    "CachePolicy",
    "DecodingState",
    "DimpleConfig",
    "DimpleForConditionalGeneration",
    "DimpleGenerationConfig",
    "DimpleGenerationMixin",
    "DimpleGenerationOutput",
    "DimpleGenerationStep",
    "DimpleOutput",
    "DimplePreTrainedModel",
    "DimpleVisionConfig",
    "EntropyBoundConfig",
    "FactorConfig",
    "KlassConfig",
    "ProphetConfig",
    "SamplerConfig",
    "SamplerRule",
    "ThresholdConfig",
    "WinoConfig",
]

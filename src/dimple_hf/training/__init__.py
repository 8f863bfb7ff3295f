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
"""Training Dimple with `transformers.Trainer`: recipes, collator, callbacks, adapters.

`dimple_hf` itself does not import it.
"""

from ..data.examples import BadExampleError
from .adapters import load_adapter, lora_config, remember_mode
from .checkpoints import last_complete_checkpoint
from .collator import DimpleDataCollator
from .held_out import GenerationCallback
from .metrics import MetricsCallback, add_before_reporters
from .phases import Phase, PhaseCallback
from .recipe import load_recipe
from .run import train_recipe
from .stages import STAGES, Stage

__all__ = [
    "STAGES",
    "BadExampleError",
    "DimpleDataCollator",
    "GenerationCallback",
    "MetricsCallback",
    "Phase",
    "PhaseCallback",
    "Stage",
    "add_before_reporters",
    "last_complete_checkpoint",
    "load_adapter",
    "load_recipe",
    "lora_config",
    "remember_mode",
    "train_recipe",
]

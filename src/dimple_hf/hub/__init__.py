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
"""Checkpoints for the Hub: model card, check of the files, clean copy, first weights.

`dimple_hf` itself does not import it.
"""

from .card import build_model_card, write_model_card
from .convert import convert_checkpoint
from .doctor import check_checkpoint
from .environment import check_environment, describe_environment
from .findings import Finding

__all__ = [
    "Finding",
    "build_model_card",
    "check_checkpoint",
    "check_environment",
    "convert_checkpoint",
    "describe_environment",
    "write_model_card",
]

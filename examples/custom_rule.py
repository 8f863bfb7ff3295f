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
"""A sampler rule of one's own: a confidence threshold that falls as the answer is committed.

The first tokens of an answer are committed with little context and decide what follows, so they must be sure; the last
ones have almost the whole answer around them. `docs/custom_rules.md` walks through it.

Command:
    python benchmarks/quality.py --rule examples/custom_rule.py:falling_threshold --families threshold \
        --output falling.json --figure falling.png

Hardware: one CPU core, about a minute a line.
"""

import torch

from dimple_hf.modeling import DecodingState


def falling_threshold(
    logits: torch.Tensor, confidence: torch.Tensor, masked: torch.Tensor, state: DecodingState
) -> torch.Tensor:
    """Every masked position above a threshold that falls from 0.99 to 0.8 as the row's answer is committed."""
    threshold = 0.99 - 0.19 * state.progress  # of each row
    return masked & (confidence > threshold[:, None])

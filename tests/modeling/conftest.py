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
"""What the tests of `modeling/` share: tiny models, one for each mode. Tests that change a model build their own.

Used by pytest itself; tests take the fixtures by name.
"""

import pytest
from helpers import tiny_model

from dimple_hf import DimpleForConditionalGeneration


@pytest.fixture(scope="session")
def model() -> DimpleForConditionalGeneration:
    """A tiny model in bidirectional mode."""
    return tiny_model()


@pytest.fixture(scope="session")
def causal_model() -> DimpleForConditionalGeneration:
    """The same weights in causal mode."""
    return tiny_model(full_attn_mask=False)

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
"""What the tests of training share: a processor whose prompts are short, and a model of the same vocabulary.

Used by pytest itself; tests take the fixtures by name.
"""

import pytest
from training_run import CHECKPOINT

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor

#: `Q:`, the parts of a user turn, ` A:`, and after an earlier answer the end of a turn. Short enough for a docstring.
SHORT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}Q:{% endif %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}"
    "{% endif %}"
    "{% endfor %}{% if message['role'] == 'user' %} A:{% else %}<|im_end|>{% endif %}{% endfor %}"
)


@pytest.fixture
def processor() -> DimpleProcessor:
    """The toy processor with `SHORT_TEMPLATE`. Padding is token 420, the mask 423, an image token 427."""
    processor = DimpleProcessor.from_pretrained(CHECKPOINT)
    processor.chat_template = SHORT_TEMPLATE
    return processor


@pytest.fixture
def model() -> DimpleForConditionalGeneration:
    """The toy model, random weights, bidirectional."""
    return DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)

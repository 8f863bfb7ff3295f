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
"""The mode that an adapter was trained in.

An adapter changes a model by a little; in the other attention mode that little means nothing. So the mode travels in
the adapter's own `adapter_config.json`, and whatever loads the adapter switches the model to it. Imported by
`modeling_dimple` and the package's `training.adapters`.
"""

import logging
from typing import Any

from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

#: Where the mode stands in an adapter's config: a free-form field of PEFT's, in which it keeps other loading hints.
MODE_KEY = "full_attn_mask"


def take_mode_of_adapter(config: PreTrainedConfig, adapter_config: Any, adapter: str) -> None:
    """
    Switches a model to the mode that its adapter was trained in.

    A switch is logged as a warning, because it changes what the model does. So is an adapter that does not know its
    mode; then the model's mode stays.

    Args:
        config (`DimpleConfig`):
            The model's configuration, which is changed.
        adapter_config (`PeftConfig`):
            The adapter's.
        adapter (`str`):
            Its directory or Hub id, for the message.
    """
    full_attn_mask = (adapter_config.auto_mapping or {}).get(MODE_KEY)
    if full_attn_mask is None:
        logger.warning(
            "The adapter %s does not say in which mode it was trained; the model stays %s.",
            adapter,
            _mode_name(config.full_attn_mask),
        )
    elif full_attn_mask != config.full_attn_mask:
        logger.warning(
            "The adapter %s was trained in %s mode: the model, which was %s, is switched to it.",
            adapter,
            _mode_name(full_attn_mask),
            _mode_name(config.full_attn_mask),
        )
        config.full_attn_mask = full_attn_mask


def _mode_name(full_attn_mask: bool) -> str:
    return "bidirectional" if full_attn_mask else "causal"

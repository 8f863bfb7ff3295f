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
"""Quantization of the language model's layers by bitsandbytes or torchao, for adapters and for `convert`.

The vision tower, the projector and the head stay whole.
"""

from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils import is_bitsandbytes_available, is_torchao_available

#: What a quantization needs, and whether it is there.
QUANTIZATIONS = {
    "nf4": ("bitsandbytes", is_bitsandbytes_available),
    "int8": ("bitsandbytes", is_bitsandbytes_available),
    "torchao-int8": ("torchao", is_torchao_available),
}

WHOLE_MODULES = ["visual", "img_projector", "lm_head"]


def check_quantization(quantization: str | None) -> None:
    """
    Args:
        quantization (`str`, *optional*):
            One of `QUANTIZATIONS`, or none.

    Raises:
        ValueError: If it is unknown, or its library is not installed.
    """
    if quantization is None:
        return
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"`quantization` must be one of {', '.join(QUANTIZATIONS)} (got {quantization!r})")
    library, is_available = QUANTIZATIONS[quantization]
    if not is_available():
        raise ValueError(
            f"`quantization` {quantization!r} needs {library}: run `pip install 'dimple_hf[quantize]'` (got no such "
            "package)"
        )


def quantization_config(quantization: str) -> Any:
    """
    Args:
        quantization (`str`):
            `"nf4"` (QLoRA, arXiv 2305.14314: 4-bit NormalFloat, constants quantized again), `"int8"` or
            `"torchao-int8"`; its library is installed.

    Returns:
        `BitsAndBytesConfig` or `TorchAoConfig`: For `from_pretrained`.
    """
    if quantization == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=WHOLE_MODULES)
    # bitsandbytes skips the same modules in both formats, whatever the option's name suggests.
    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=WHOLE_MODULES)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=WHOLE_MODULES,
    )

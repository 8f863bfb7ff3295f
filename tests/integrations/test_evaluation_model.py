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
"""What an evaluation loads: the arguments reach the model and the processor."""

from pathlib import Path

from peft import get_peft_model

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.integrations.evaluation_model import load_evaluated, with_system_prompt
from dimple_hf.training import lora_config


def test_load_evaluated_takes_adapter_attention_and_image_bound(parity_dir: Path, tmp_path: Path) -> None:
    """Each would be ignored in silence if it stayed on the way."""
    checkpoint = parity_dir / "checkpoint"
    plain, processor = load_evaluated(str(checkpoint))
    adapted = get_peft_model(
        DimpleForConditionalGeneration.from_pretrained(checkpoint), lora_config(full_attn_mask=True)
    )
    adapted.save_pretrained(tmp_path)
    model, bounded = load_evaluated(
        str(checkpoint), adapter=str(tmp_path), attn_implementation="eager", max_pixels=3136
    )
    assert any("lora" in name for name, _ in model.named_parameters())
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert (model.config._attn_implementation, plain.config._attn_implementation) == ("eager", "sdpa")
    assert bounded.image_processor.size["longest_edge"] == 3136
    assert processor.image_processor.size["longest_edge"] > 3136


def test_system_prompt_comes_first_unless_there_is_one() -> None:
    """A task's own system prompt is part of the task."""
    question = [{"role": "user", "content": "Hi"}]
    own = [{"role": "system", "content": "Mine"}, *question]
    assert with_system_prompt(question, "Be brief")[0]["content"] == [{"type": "text", "text": "Be brief"}]
    assert with_system_prompt(own, "Be brief") == own
    assert with_system_prompt(question, None) == question

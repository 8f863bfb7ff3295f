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
"""What an evaluation loads: the arguments reach the model and the processor; and the likelihood of answers."""

from pathlib import Path

import PIL.Image
import pytest
import torch
from peft import get_peft_model

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.checkpoints import FORMS_CHECKPOINT, FORMS_SAMPLE
from dimple_hf.integrations.evaluation_model import answer_likelihood, load_evaluated, with_system_prompt
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


def test_likelihood_is_that_of_the_model_and_greedy_answers_are_known(parity_dir: Path) -> None:
    """The same in each run and with any batch size; white space before an answer is not part of it."""
    model, processor = load_evaluated(str(parity_dir / "checkpoint"))
    image = PIL.Image.open(parity_dir / "tiny" / "images" / "0.png")
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    found = {}
    for answer in ("a red box", "nothing"):
        found[answer] = answer_likelihood(model, processor, messages, answer, batch_size=3)
        ids = torch.tensor([processor.tokenizer.encode(answer)])
        with torch.no_grad():
            many = model.answer_log_likelihood(inputs, ids, num_samples=600)
        assert found[answer][0] == pytest.approx(many.item(), rel=0.1)
        assert answer_likelihood(model, processor, messages, f" {answer}") == pytest.approx(found[answer], rel=1e-4)
        assert found[answer][1] is False
    assert found["a red box"][0] != pytest.approx(found["nothing"][0], rel=0.1)  # control


def test_greedy_answer_is_found_among_others() -> None:
    """Whatever the evaluation sets for sampling, and for the length of its own answers."""
    model, processor = load_evaluated(str(FORMS_CHECKPOINT), dtype="float32")
    image = {"type": "image", "path": str(FORMS_SAMPLE)}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "Read the form."}]}]
    inputs = processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=6, confidence_threshold=None)[0, -6:].tolist()
    answer = processor.tokenizer.decode(ids)
    assert processor.tokenizer.encode(answer) == ids
    options = {"confidence_threshold": None, "max_new_tokens": 3, "do_sample": True, "temperature": 9.0}
    likelihood, is_greedy = answer_likelihood(model, processor, messages, answer, **options)
    other, other_is_greedy = answer_likelihood(model, processor, messages, answer[::-1], **options)
    assert (is_greedy, other_is_greedy) == (True, False)
    assert other < likelihood < 0


def test_likelihood_of_nothing_is_refused(parity_dir: Path) -> None:
    """An answer of white space alone has no token."""
    model, processor = load_evaluated(str(parity_dir / "checkpoint"))
    with pytest.raises(ValueError, match="`answer` must have at least one token"):
        answer_likelihood(model, processor, [{"role": "user", "content": "Hi"}], " ")

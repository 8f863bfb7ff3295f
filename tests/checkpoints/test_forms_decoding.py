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
"""The small model decodes with all exact savings as it does with none: step by step, alone and in a batch.

The reference is the plain loop of `benchmarks/decode_arms.py`, which knows neither batches with padding nor ends.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from decode_arms import PlainLoop

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.checkpoints import FORMS_CHECKPOINT

LENGTH = 16

#: No end, no threshold: one position a pass, as the plain loop.
OPTIONS: dict[str, Any] = {
    "max_new_tokens": LENGTH, "confidence_threshold": None, "eos_token_id": None, "pad_token_id": None,
    "output_history": True, "return_dict_in_generate": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> DimpleForConditionalGeneration:
    """The small model with its scores scaled down. As it is, it is so sure that many positions have a confidence of 1,
    and rounding says which comes first."""
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()
    model.lm_head.register_forward_hook(lambda head, args, scores: 0.15 * scores)
    return model


@pytest.fixture(scope="module")
def chats(repo_root: Path) -> list[list[dict[str, Any]]]:
    """Questions of different lengths about the sample, and one without an image."""
    forms = repo_root / "examples" / "forms"
    image = Image.open(forms / "sample.png")
    questions = [question["question"] for question in json.loads((forms / "sample.json").read_text())["questions"]]
    contents: list[list[dict[str, Any]]] = [
        [{"type": "image", "image": image}, {"type": "text", "text": question}] for question in questions[:3]
    ]
    return [[{"role": "user", "content": content}] for content in [*contents, [{"type": "text", "text": "Read."}]]]


def inputs_of(*chats: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    return processor.apply_chat_template(
        list(chats), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
    )


def plain_history(
    model: DimpleForConditionalGeneration, chat: list[dict[str, Any]], use_cache: bool
) -> list[list[int]]:
    """The answer after each step of the plain loop, until nothing is masked."""
    inputs = {"pixel_values": None, "image_grid_thw": None, **inputs_of(chat)}
    loop, history = PlainLoop(model, inputs, LENGTH, LENGTH, use_cache), []
    while (loop.answer == loop.mask_token_id).any():
        loop.step()
        history.append(loop.answer[0].tolist())
    return history


@pytest.mark.parametrize("options", [
    pytest.param({"use_cache": False}, id="no-cache"),
    pytest.param({"use_cache": True}, id="cache"),
    pytest.param({"use_cache": True, "cache_implementation": "static"}, id="static"),
])  # fmt: skip
def test_history_is_the_plain_loops_alone_and_in_a_batch(
    model: DimpleForConditionalGeneration, chats: list[list[dict[str, Any]]], options: dict[str, Any]
) -> None:
    """Every answer of every step, greedy, in float32."""
    expected = [plain_history(model, chat, options["use_cache"]) for chat in chats]
    together = model.generate(**inputs_of(*chats), **OPTIONS, **options)
    for row, (chat, plain) in enumerate(zip(chats, expected, strict=True)):
        alone = model.generate(**inputs_of(chat), **OPTIONS, **options)
        assert [step[0, -LENGTH:].tolist() for step in alone.history] == plain
        assert [step[row, -LENGTH:].tolist() for step in together.history] == plain
        assert alone.num_forward_passes.tolist() == [len(plain)] == [together.num_forward_passes[row]]
    # control: the histories differ from row to row, and step to step
    assert len({str(history) for history in expected}) == len(chats)
    assert len({str(answer) for answer in expected[0]}) == LENGTH - 1


def test_history_with_early_stop_is_the_plain_loops_up_to_the_end(
    model: DimpleForConditionalGeneration, chats: list[list[dict[str, Any]]]
) -> None:
    """Rows that are finished leave the batch; nothing before their ends is other than without."""
    ends = {"eos_token_id": model.config.eos_token_id, "pad_token_id": model.config.pad_token_id}
    end_ids = {*([ends["eos_token_id"]] if isinstance(ends["eos_token_id"], int) else ends["eos_token_id"] or [])}
    end_ids.add(ends["pad_token_id"])
    together = model.generate(**inputs_of(*chats), **OPTIONS | ends)
    for row, chat in enumerate(chats):
        plain = plain_history(model, chat, use_cache=True)
        num_passes = int(together.num_forward_passes[row])
        steps = [step[row, -LENGTH:].tolist() for step in together.history]
        assert steps[:num_passes] == plain[:num_passes]
        stop = next((position for position, token in enumerate(plain[-1]) if token in end_ids), LENGTH - 1) + 1
        assert together.sequences[row, -LENGTH:].tolist()[:stop] == plain[-1][:stop]

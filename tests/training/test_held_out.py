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
"""What the model says about held-out rows reaches the logs, in both phases."""

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_run import CHECKPOINT, make_rows, make_trainer

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor, StructurePrior
from dimple_hf.training import BadExampleError, GenerationCallback, add_before_reporters, held_out
from dimple_hf.training.held_out import HeldOutAnswer


@pytest.fixture
def callback() -> GenerationCallback:
    """Three rows, the last without an image."""
    rows = make_rows(3)
    rows[2]["messages"][0]["content"] = "What?"
    rows[2]["images"] = []
    return GenerationCallback(DimpleProcessor.from_pretrained(CHECKPOINT), rows, max_new_tokens=6)


@pytest.mark.parametrize("full_attn_mask", [True, False])
def test_generation_callback_answers_equal_generate_row_by_row(
    callback: GenerationCallback, model: DimpleForConditionalGeneration, full_attn_mask: bool
) -> None:
    """As the user would ask: the prompt of the row, in the mode of the model, ending with padding."""
    model.config.full_attn_mask = full_attn_mask
    model.train()
    answers = callback.answer(model)
    assert model.training
    assert [answer.question for answer in answers] == ["What 0?", "What 1?", "What?"]
    assert [answer.expected for answer in answers] == ["red", "blueblue", "greengreengreen"]
    processor = callback.processor
    for answer, row in zip(answers, make_rows(2), strict=False):
        inputs = processor.apply_chat_template(
            row["messages"][:1], processor_kwargs={"images": row["images"]},
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        tokens = model.eval().generate(**inputs, max_new_tokens=6, eos_token_id=[422, 420])
        said = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
        assert answer.answer == said
        assert 1 <= answer.num_forward_passes <= 6


@pytest.mark.parametrize("full_attn_mask", [True, False])
def test_generation_callback_row_with_a_prior_is_answered_under_it(
    model: DimpleForConditionalGeneration, full_attn_mask: bool
) -> None:
    """And beside it a free row, whose answer is not cut to the canvas. Causal mode knows no priors."""
    rows = make_rows(2)
    free = GenerationCallback(DimpleProcessor.from_pretrained(CHECKPOINT), rows, max_new_tokens=6)
    rows[0]["structure_prior"] = StructurePrior.from_template("a{n:1:int}")
    callback = GenerationCallback(free.processor, rows, max_new_tokens=6)
    model.config.full_attn_mask = full_attn_mask
    answers, free_answers = callback.answer(model), free.answer(model)
    assert (re.fullmatch(r"a\d", answers[0].answer) is not None) is full_attn_mask
    assert answers[1] == free_answers[1]
    assert (answers[0] == free_answers[0]) is not full_attn_mask


def test_generation_callback_causal_passes_count_up_to_the_end(
    callback: GenerationCallback, model: DimpleForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token each token is a pass, the end too, and what is after it is not."""

    def generate(input_ids: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
        answers = torch.tensor([[64, 65, 420, 420], [64, 65, 66, 67], [422, 420, 420, 420]])
        return types.SimpleNamespace(sequences=torch.cat([input_ids, answers], dim=1), get=lambda name: None)

    monkeypatch.setattr(model, "generate", generate)
    assert [answer.num_forward_passes for answer in callback.answer(model)] == [3, 4, 1]


def test_generation_callback_adds_answers_to_the_log_of_each_evaluation(
    tmp_path: Path, callback: GenerationCallback
) -> None:
    """Text and numbers, in both phases; also what `evaluate` returns, from which the best model is chosen."""
    trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=3)
    add_before_reporters(trainer, callback)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(entries) == 2
    for entry in entries:
        assert entry["eval_answers"].count(" passes; expected: ") == 3
        assert entry["eval_answers"].startswith("What 0?\n-> ")
        assert entry["eval_exact_match"] == 0
        assert 1 <= entry["eval_passes"] <= 6
    assert not any("answers" in entry for entry in trainer.state.log_history if "loss" in entry)


def test_generation_callback_changes_no_loss(tmp_path: Path, callback: GenerationCallback) -> None:
    """Answers in between must not move the draws of later steps."""

    def train(*callbacks: GenerationCallback) -> list[float]:
        trainer = make_trainer(tmp_path, eval_strategy="steps", eval_steps=2)
        add_before_reporters(trainer, *callbacks)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert train(callback) == train()


def test_generation_callback_several_data_sets_are_answered_once(
    tmp_path: Path, callback: GenerationCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out rows are the same for all of them."""
    calls = []
    answer = HeldOutAnswer("Q", " yes", "yes ", 2)
    monkeypatch.setattr(callback, "answer", lambda model: calls.append(1) or [answer] * 3)
    trainer = make_trainer(tmp_path, max_steps=1)
    add_before_reporters(trainer, callback)
    trainer.evaluate({"a": trainer.eval_dataset, "b": trainer.eval_dataset})
    assert len(calls) == 1
    assert trainer.state.log_history[0]["eval_a_exact_match"] == 1.0  # but for spaces


def test_generation_callback_shows_images_where_a_reporter_can(
    callback: GenerationCallback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table for Weights & Biases while a run of it is on, images for TensorBoard's writer."""
    logged, rows, shown = [], [], []
    table = types.SimpleNamespace(add_data=lambda *row: rows.append(row))
    wandb = types.ModuleType("wandb")
    wandb.run = None
    wandb.Table, wandb.Image = (lambda columns: table), (lambda image: image.shape)
    wandb.log = lambda values, commit: logged.append(values)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr(held_out, "is_wandb_available", lambda: True)
    callback.summary_writer = types.SimpleNamespace(
        add_image=lambda tag, image, step, dataformats: shown.append((tag, image, step, dataformats))
    )
    answers = [HeldOutAnswer("Q", "yes", "no", 2)] * 3
    callback._show_images(answers, step=4)
    assert not logged
    wandb.run = object()
    callback._show_images(answers, step=5)
    assert logged == [{"held_out_answers": table}]
    assert rows == [
        ((28, 56, 3), "Q", "no", "yes", 2),
        ((56, 56, 3), "Q", "no", "yes", 2),
        (None, "Q", "no", "yes", 2),
    ]
    assert [(tag, step) for tag, _, step, _ in shown] == [
        ("held_out/0", 4), ("held_out/1", 4), ("held_out/0", 5), ("held_out/1", 5)
    ]  # fmt: skip
    assert np.array_equal(shown[0][1], np.broadcast_to([255, 0, 0], (28, 56, 3)))


@pytest.mark.parametrize("max_new_tokens", [0, "x", True, 1.5])
def test_generation_callback_with_bad_length_is_refused(max_new_tokens: Any) -> None:
    """At once, and not at the first evaluation."""
    with pytest.raises(ValueError, match="`max_new_tokens` must be an integer >= 1"):
        GenerationCallback(DimpleProcessor.from_pretrained(CHECKPOINT), make_rows(1), max_new_tokens)


def test_generation_callback_bad_rows_are_refused() -> None:
    """When it is made, not at the first evaluation."""
    processor = DimpleProcessor.from_pretrained(CHECKPOINT)
    with pytest.raises(ValueError, match="`examples` must hold at least one example"):
        GenerationCallback(processor, [])
    with pytest.raises(BadExampleError, match="example 'x' is bad: it must have an assistant turn"):
        GenerationCallback(processor, [{"id": "x", "messages": [{"role": "user", "content": "hi"}]}])

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
"""Tests of examples/forms/forms_model.py and train_vision.py: size, images unchanged, and a stage that resumes."""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

import extend_vision
import forms_tokenizer
import train_vision
from forms_dataset import forms_row
from forms_model import write_model
from safetensors.torch import load_file

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor, DimpleTokenizer
from dimple_hf.checkpoints import FORMS_CHECKPOINT


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("untrained")
    write_model(directory)
    return directory


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A model whose tokenizer knows no decisions."""
    directory = tmp_path_factory.mktemp("earlier")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms_tokenizer, "_decision_lines", list)
        write_model(directory, seed=1)
    return directory


@pytest.fixture(scope="module")
def later(tmp_path_factory, earlier) -> Path:
    """A model with the weights of the earlier one, and more tokens."""
    directory = tmp_path_factory.mktemp("later")
    write_model(directory, weights=earlier)
    return directory


def stage(output: Path, **changes) -> dict[str, torch.Tensor]:
    """Runs the vision stage for a few steps and returns the tower that it wrote."""
    arguments = {
        "cell_steps": 3,
        "context_steps": 3,
        "batch_size": 2,
        "lr": 1e-3,
        "seed": 0,
        "save_steps": 2,
        "eval_images": 10,
        "bf16": False,
    }
    train_vision.train(Namespace(output=output, **(arguments | changes)))
    return load_file(output / "visual.safetensors")


def test_untrained_model_is_small_and_causal(untrained):
    """At most 5 M parameters and, in bf16, 12 MB; the first phase is the causal one."""
    model = DimpleForConditionalGeneration.from_pretrained(untrained)
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_239_744
    assert not model.config.full_attn_mask
    processor = DimpleProcessor.from_pretrained(untrained)
    assert model.config.vocab_size == len(processor.tokenizer)
    assert model.config.mask_token_id == processor.tokenizer.mask_token_id
    assert model.config.eos_token_id == processor.tokenizer.eos_token_id


def test_processor_leaves_a_form_as_it_is_and_brings_others_to_its_size(untrained):
    """Digits must stay in their cells: 30 tokens, for the composed image and for the same form twice as large."""
    processor = DimpleProcessor.from_pretrained(untrained)
    image = forms_row("test", 0)["images"][0]
    inputs = processor.image_processor([image], return_tensors="pt")
    torch.testing.assert_close(inputs.pixel_values, train_vision.patchify(np.array(image)[None]), rtol=0, atol=0)
    large = processor.image_processor([image.resize((336, 280))], return_tensors="pt")
    assert inputs.image_grid_thw.tolist() == large.image_grid_thw.tolist() == [[1, 10, 12]]
    # As people cut them out: any size, and sides that are a tenth off.
    for size in ((400, 333), (250, 208), (100, 84), (1000, 790), (900, 800)):
        cut = processor.image_processor([image.resize(size)], return_tensors="pt")
        assert cut.image_grid_thw.tolist() == [[1, 10, 12]], size
    tall = processor.image_processor([image.resize((300, 400))], return_tensors="pt")
    assert tall.image_grid_thw.tolist() != [[1, 10, 12]]  # control


def test_model_answers_a_forms_row_with_a_finite_loss(untrained):
    """Row, processor and model fit together: the image's 30 placeholders meet 30 features."""
    model = DimpleForConditionalGeneration.from_pretrained(untrained)
    processor = DimpleProcessor.from_pretrained(untrained)
    row = forms_row("train", 0, kind="json")
    text = processor.apply_chat_template(row["messages"])
    inputs = processor(text=text, images=row["images"], return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == 30
    assert torch.isfinite(model(**inputs, labels=inputs.input_ids).loss)


def test_model_with_earlier_weights_answers_as_the_earlier_one(earlier, later):
    """More tokens, and the same weights for the old ones: text of old tokens has the old logits."""
    text = "<|im_start|>user\nqty 12<|im_end|>\n"
    logits = {}
    for name, path in (("earlier", earlier), ("later", later)):
        tokenizer = DimpleTokenizer.from_pretrained(path)
        model = DimpleForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        model.config.full_attn_mask = True
        words = [tokenizer.convert_tokens_to_ids(token) for token in ("qty", "age", "4")]
        logits[name] = model(**tokenizer(text, return_tensors="pt")).logits[..., words]
    torch.testing.assert_close(logits["later"], logits["earlier"])


def test_a_new_token_begins_as_the_mean_of_its_pieces(earlier, later):
    """ " A" was a space and a letter."""
    weights, tokens = {}, {}
    for name, path in (("earlier", earlier), ("later", later)):
        tokens[name] = DimpleTokenizer.from_pretrained(path)(" A").input_ids
        model = DimpleForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        weights[name] = model.get_input_embeddings().weight
    assert (len(tokens["earlier"]), len(tokens["later"])) == (2, 1)
    mean = weights["earlier"][tokens["earlier"]].mean(dim=0)
    torch.testing.assert_close(weights["later"][tokens["later"][0]], mean)


@pytest.mark.slow  # the second stage, below, is interrupted by default
def test_vision_stage_interrupted_ends_with_the_same_weights(tmp_path, monkeypatch):
    """Kill it and run it again: nothing is lost and nothing is repeated, bit for bit."""
    expected = stage(tmp_path / "whole")
    train_step = train_vision.Run.train_step

    def killed_in_step_5(run: train_vision.Run, *batch: Any) -> float:
        if run.step == 4:
            raise KeyboardInterrupt
        return train_step(run, *batch)

    monkeypatch.setattr(train_vision.Run, "train_step", killed_in_step_5)
    with pytest.raises(KeyboardInterrupt):
        stage(tmp_path / "cut")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["state.pt"]
    resumed = stage(tmp_path / "cut")
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    # Control: another seed ends elsewhere.
    other = stage(tmp_path / "other", seed=1)
    assert not torch.equal(other["merger.mlp.2.weight"], expected["merger.mlp.2.weight"])


def test_vision_stage_weights_load_into_the_model(tmp_path, untrained):
    """The stage's file is read by name into `model.visual`, and it replaces what stood there."""
    tower = stage(tmp_path / "stage", cell_steps=1, context_steps=0)
    write_model(tmp_path / "model", visual=tmp_path / "stage" / "visual.safetensors")
    model = DimpleForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert all(torch.equal(parameter, tower[name]) for name, parameter in model.visual.state_dict().items())
    fresh = DimpleForConditionalGeneration.from_pretrained(untrained)
    assert not torch.equal(fresh.visual.merger.mlp[2].weight, model.visual.merger.mlp[2].weight)
    torch.testing.assert_close(fresh.lm_head.weight, model.lm_head.weight, rtol=0, atol=0)


def test_vision_stage_learns_the_context_only_in_its_second_part(tmp_path):
    """Part one trains one head and the tower, part two all of them."""
    states = []
    for name, context_steps in (("one", 0), ("two", 2)):
        stage(tmp_path / name, context_steps=context_steps)
        states.append(torch.load(tmp_path / name / "state.pt", weights_only=True)["model"])
    torch.manual_seed(0)
    fresh = train_vision.CellReader().state_dict()
    for part, trained in zip(states, ({"shows"}, {"shows", "label", "row", "position", "digit"}), strict=True):
        moved = {name for name in fresh if not torch.equal(part[name], fresh[name])}
        assert {name.split(".")[1] for name in moved if name.startswith("heads")} == trained
        assert any(name.startswith("visual") for name in moved)


def test_rate_at_warms_up_and_decays_in_both_parts():
    rates = [train_vision.rate_at(step, cell_steps=1000, context_steps=500) for step in range(1501)]
    assert rates[0] == pytest.approx(1 / 200)
    assert max(rates[:1000]) == pytest.approx(rates[199]) == pytest.approx(0.905, abs=1e-3)
    assert max(rates[1000:]) < 0.5
    assert rates[999] < 1e-5
    assert rates[1500] == 0


def extension(output: Path, **changes) -> dict[str, torch.Tensor]:
    """Runs the second vision stage for a few steps and returns the tower that it wrote."""
    arguments = {"model": str(FORMS_CHECKPOINT), "steps": 3, "batch_size": 5, "lr": 1e-3, "seed": 0, "save_steps": 2}
    arguments |= {"eval_images": 10, "bf16": False}
    extend_vision.train(Namespace(output=output, **(arguments | changes)))
    return load_file(output / "visual.safetensors")


def test_second_vision_stage_interrupted_ends_with_the_same_weights(tmp_path, monkeypatch):
    """And it begins with the tower of a model, which stands still until the new heads have learned a little."""
    monkeypatch.setattr(extend_vision, "WARMUP_STEPS", 1)
    monkeypatch.setattr(extend_vision, "evaluate", lambda *arguments: {})
    expected = extension(tmp_path / "whole")
    with monkeypatch.context() as patch:
        train_step = extend_vision.ExtensionRun.train_step
        patch.setattr(
            extend_vision.ExtensionRun,
            "train_step",
            lambda run, *batch: pytest.fail("killed") if run.step == 2 else train_step(run, *batch),
        )
        with pytest.raises(pytest.fail.Exception, match="killed"):
            extension(tmp_path / "cut")
    resumed = extension(tmp_path / "cut")
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    first = DimpleForConditionalGeneration.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).visual.state_dict()
    still = extension(tmp_path / "still", steps=1)
    assert all(torch.equal(still[name], first[name]) for name in first)
    assert not torch.equal(expected["merger.mlp.2.weight"], first["merger.mlp.2.weight"])  # control


def test_images_of_the_second_vision_stage_show_what_their_targets_say():
    """Of five images two are plain forms, two rich ones, and one is no form: nothing in any cell."""
    pixel_values, targets = extend_vision.batch_of("train", range(5), seed=0)
    assert pixel_values.shape == (5 * 120, 1176)
    shows = targets["shows"].view(5, 30)
    assert shows.any(dim=1).tolist() == [True, True, True, True, False]
    assert extend_vision.is_plain(range(5)).tolist() == [True, False, True, False, False]

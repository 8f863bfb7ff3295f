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
"""Stages: their figures, their errors, and that nothing moves but what a stage trains."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_run import make_rows
from transformers import Trainer, TrainingArguments

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import DimpleDataCollator, Phase
from dimple_hf.training.stages import PARTS, STAGES, Stage, freeze_other_parts, set_mode

SMALL: dict[str, Any] = {"name": "s", "mode": "bidirectional", "train": ("head",), "learning_rate": 1, "batch_size": 1}


def moved_parts(
    model: DimpleForConditionalGeneration, processor: DimpleProcessor, stage: Stage, directory: Path
) -> set[str]:
    """Trains two steps of a stage; returns the parts that changed, after checking that each did so as a whole."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    set_mode(model, stage)
    freeze_other_parts(model, stage.train)
    arguments = stage.training_arguments() | {"max_steps": 2, "learning_rate": 1e-2}
    trainer = Trainer(
        model,
        TrainingArguments(
            str(directory), per_device_train_batch_size=4, remove_unused_columns=False, use_cpu=True,
            save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, **arguments,
        ),
        train_dataset=make_rows(),
        data_collator=DimpleDataCollator(processor),
        callbacks=[replace(stage, warmup_ratio=0.0).phase_callback()],
    )  # fmt: skip
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    parts = {part for part, module in PARTS.items() if any(name.startswith(f"{module}.") for name in changed)}
    for part in parts:
        for name in before:
            # The bias of the keys shifts all scores of a query alike, so it has no gradient but rounding.
            assert name in changed or not name.startswith(f"{PARTS[part]}.") or "k_proj.bias" in name, name
    return parts


@pytest.mark.parametrize(
    ("name", "parts", "full_attn_mask"),
    [
        ("align", {"projector"}, False),
        ("instruct", {"projector", "language_model", "head"}, False),
        ("diffusion", {"language_model", "head"}, True),
    ],
)
def test_stage_moves_its_parts_and_no_other_parameter(
    model: DimpleForConditionalGeneration,
    processor: DimpleProcessor,
    tmp_path: Path,
    name: str,
    parts: set[str],
    full_attn_mask: bool,
) -> None:
    """The paper's table: what each stage trains, in which mode. Every parameter is compared before and after."""
    model.config.full_attn_mask = not full_attn_mask
    assert moved_parts(model, processor, STAGES[name], tmp_path) == parts
    assert model.config.full_attn_mask == full_attn_mask


def test_stage_that_trains_vision_moves_the_tower(
    model: DimpleForConditionalGeneration, processor: DimpleProcessor, tmp_path: Path
) -> None:
    """Control, and what a small model without a pretrained tower needs: the tower is only frozen by choice."""
    stage = Stage("see", "causal", ("vision", "projector"), learning_rate=1e-2, batch_size=4, max_steps=2)
    assert moved_parts(model, processor, stage, tmp_path) == {"vision", "projector"}


def test_stages_have_the_papers_figures() -> None:
    """Dimple, section 4: rates, batches and clipping of the three stages; 3 % warm-up, linear decay, one epoch."""
    figures = {
        name: (stage.learning_rate, stage.batch_size, stage.max_grad_norm, stage.num_epochs)
        for name, stage in STAGES.items()
    }
    assert figures == {
        "align": (1e-3, 256, 1.0, 1),
        "instruct": (5e-6, 128, 1.0, 1),
        "diffusion": (5e-7, 128, 0.1, 1),
    }
    assert {(stage.warmup_ratio, stage.decay_ratio) for stage in STAGES.values()} == {(0.03, 1.0)}


def test_stage_gives_the_trainer_and_the_callback_its_figures() -> None:
    """The Trainer's arguments and the phase have the same numbers."""
    stage = Stage(**SMALL | {"max_steps": 7, "max_grad_norm": 0.5, "warmup_ratio": 0.1, "decay_ratio": 0.25})
    assert stage.training_arguments() == {"learning_rate": 1, "max_grad_norm": 0.5, "max_steps": 7}
    assert stage.phase() == Phase(1, 0.1, 0.25, 0.5)
    callback = stage.phase_callback()
    assert callback.switch_at == 0
    assert replace(stage, mode="causal").phase_callback().switch_at == 1
    epochs = replace(stage, max_steps=None, num_epochs=2)
    assert epochs.training_arguments() == {"learning_rate": 1, "max_grad_norm": 0.5, "num_train_epochs": 2}


def test_set_mode_in_bidirectional_stage_sets_the_loss_too(model: DimpleForConditionalGeneration) -> None:
    """The loss of a stage goes into the config, from which the model takes it; a causal stage leaves it alone."""
    stage = Stage(**SMALL | {"max_steps": 1, "loss_weighting": "elbo", "complementary_masks": True})
    set_mode(model, stage)
    assert (model.config.full_attn_mask, model.config.loss_weighting) == (True, "elbo")
    assert model.config.complementary_masks is True
    set_mode(model, Stage(**SMALL | {"max_steps": 1, "mode": "causal"}))
    assert (model.config.full_attn_mask, model.config.loss_weighting) == (False, "elbo")
    set_mode(model, Stage(**SMALL | {"max_steps": 1}))
    assert (model.config.loss_weighting, model.config.complementary_masks) == ("uniform", False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "`name` must be made of letters"),
        ({"name": "../up"}, "`name` must be made of letters"),
        ({"name": ".hidden"}, "`name` must be made of letters"),
        ({"mode": "diffusion"}, r"`mode` must be one of causal, bidirectional \(got 'diffusion'\)"),
        ({"train": ()}, "`train` must name at least one part"),
        ({"train": ("projektor",)}, r"`train` must name parts of .* \(got 'projektor'\); did you mean `projector`\?"),
        ({"learning_rate": "fast"}, r"`learning_rate` must be a number \(got 'fast'\)"),
        ({"learning_rate": True}, "`learning_rate` must be a number"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a number"),
        ({"learning_rate": 0}, "`learning_rate` must be > 0"),
        ({"max_grad_norm": -1}, "`max_grad_norm` must be > 0"),
        ({"warmup_ratio": 1.5}, r"`warmup_ratio` must lie in \[0, 1\]"),
        ({"decay_ratio": -0.5}, r"`decay_ratio` must lie in \[0, 1\]"),
        ({"causal_loss_weight": -1}, r"`causal_loss_weight` must be >= 0 \(got -1\)"),
        ({"learning_rate_multipliers": [1]}, r"`learning_rate_multipliers` must be a mapping .*\(got \[1\]\)"),
        ({"train": (["head"],)}, r"`train` must name parts of .* \(got \['head'\]\)"),
        ({"batch_size": 0}, "`batch_size` must be an integer from 1 to"),
        ({"batch_size": 2.0}, "`batch_size` must be an integer from 1 to"),
        ({"max_steps": 0}, "`max_steps` must be an integer from 1 to"),
        ({"max_steps": None}, r"exactly one of `num_epochs` and `max_steps` .* \(got None and None\)"),
        ({"num_epochs": 1}, r"exactly one of `num_epochs` and `max_steps` .* \(got 1 and 3\)"),
        ({"num_epochs": 0, "max_steps": None}, "`num_epochs` must be > 0"),
        ({"mode": "causal", "loss_weighting": "elbo"}, "`loss_weighting` must not be given in a causal stage"),
        ({"mode": "causal", "complementary_masks": False}, "`complementary_masks` must not be given in a causal"),
        ({"loss_weighting": "mean"}, "`loss_weighting` must be 'uniform' or 'elbo'"),
        ({"complementary_masks": "yes"}, "`complementary_masks` must be true or false"),
        ({"noise_schedule": "full", "loss_weighting": "elbo"}, '`noise_schedule` must be "linear" or "cosine" with'),
        (
            {"noise_schedule": "full", "complementary_masks": True},
            '`noise_schedule` must be "linear" or "cosine" with',
        ),
        (
            {"noise_schedule": "cosine", "loss_weighting": "elbo", "complementary_masks": True},
            '`noise_schedule` must be "linear" with',
        ),
    ],
)
def test_stage_with_bad_value_is_refused(changes: dict[str, Any], message: str) -> None:
    """Each fault is named with its value. Control: without it the stage is good."""
    Stage(**SMALL | {"max_steps": 3})
    with pytest.raises(ValueError, match=message):
        Stage(**SMALL | {"max_steps": 3} | changes)

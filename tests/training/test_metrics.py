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
"""What is logged besides the loss, and who sees it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_run import make_trainer
from transformers import TrainerCallback

from dimple_hf.training import MetricsCallback, add_before_reporters
from dimple_hf.training.metrics import TokenAverages, logged_prefix


class Reporter(TrainerCallback):
    """Keeps what a reporter would show, when it would show it."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        self.entries.append(dict(logs))


def test_token_averages_are_over_tokens_and_start_anew() -> None:
    """Two micro-batches of different sizes: 1 of 2 and 2 of 3 hits; losses sorted into five bins by noise level."""
    averages = TokenAverages(num_noise_bins=5)
    averages.add(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), torch.tensor([0.1, 0.5]))
    averages.add(torch.tensor([4.0, 5.0, 9.0]), torch.tensor([True, True, False]), torch.tensor([0.59, 1.0, 0.9]))
    assert averages.take(torch.device("cpu")) == {
        "masked_token_accuracy": pytest.approx(3 / 5),
        "loss_noise_0.0_0.2": 1.0,
        "loss_noise_0.4_0.6": 3.0,
        "loss_noise_0.8_1.0": 7.0,
    }
    averages.add(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), None)
    assert averages.take(torch.device("cpu")) == {"token_accuracy": 0.5}
    assert averages.take(torch.device("cpu")) == {}


def test_logged_prefix_tells_entries_apart() -> None:
    """Training, an evaluation, an evaluation of one of several data sets, and the summary at the end."""
    assert logged_prefix({"loss": 1.0, "grad_norm": 1.0}) == ""
    assert logged_prefix({"eval_loss": 1.0}) == "eval_"
    assert logged_prefix({"eval_forms_loss": 1.0}) == "eval_forms_"
    assert logged_prefix({"train_loss": 1.0, "train_runtime": 1.0}) is None


def test_metrics_callback_adds_each_phases_numbers_for_reporters(tmp_path: Path) -> None:
    """A reporter, the progress bar after it and the history that checkpoints keep show the same."""
    reporter = Reporter()
    trainer = make_trainer(tmp_path, callbacks=(reporter,), eval_strategy="steps", eval_steps=3)
    add_before_reporters(trainer, MetricsCallback(num_noise_bins=1))
    trainer.train()
    steps = [entry for entry in reporter.entries if "loss" in entry]
    assert [entry["phase"] for entry in steps] == [0, 0, 0, 1, 1, 1]
    assert ["token_accuracy" in entry for entry in steps] == [True] * 3 + [False] * 3
    assert ["masked_token_accuracy" in entry for entry in steps] == [False] * 3 + [True] * 3
    assert ["loss_noise_0.0_1.0" in entry for entry in steps] == [False] * 3 + [True] * 3
    evaluations = [entry for entry in reporter.entries if "eval_loss" in entry]
    assert [entry["eval_phase"] for entry in evaluations] == [0, 1]
    assert "eval_token_accuracy" in evaluations[0]
    assert "eval_masked_token_accuracy" in evaluations[1]
    kept = [{k: v for k, v in entry.items() if k != "step"} for entry in trainer.state.log_history]
    assert kept == reporter.entries


def test_metrics_callback_numbers_are_those_of_the_forward_pass(tmp_path: Path) -> None:
    """Against the model's own output, in an evaluation without training, which is one batch."""
    trainer = make_trainer(tmp_path)
    outputs = []
    trainer.model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    add_before_reporters(trainer, MetricsCallback(num_noise_bins=1))
    metrics = trainer.evaluate()
    assert len(outputs) == 1
    counted = outputs[0].token_losses != -100
    assert metrics["eval_loss_noise_0.0_1.0"] == pytest.approx(
        float(outputs[0].token_losses[counted].mean()), rel=1e-5
    )
    labels = trainer.data_collator(trainer.eval_dataset)["labels"]
    hits = outputs[0].token_predictions[counted] == labels[counted]
    assert metrics["eval_masked_token_accuracy"] == pytest.approx(float(hits.float().mean()))
    assert metrics["eval_phase"] == 1


def test_metrics_callback_after_the_reporters_is_seen_by_the_history_only(tmp_path: Path) -> None:
    """Control of `add_before_reporters`: the Trainer's own argument appends."""
    reporter = Reporter()
    trainer = make_trainer(tmp_path, callbacks=(reporter, MetricsCallback()), max_steps=1)
    trainer.train()
    assert "phase" not in reporter.entries[0]
    assert trainer.state.log_history[0]["phase"] == 0


def test_metrics_callback_changes_no_loss(tmp_path: Path) -> None:
    """Looking must not disturb."""

    def train(*callbacks: TrainerCallback) -> list[float]:
        trainer = make_trainer(tmp_path)
        add_before_reporters(trainer, *callbacks)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    assert train(MetricsCallback()) == train()


def test_metrics_callback_without_bins_is_refused() -> None:
    """Zero bins would be a division by zero later."""
    with pytest.raises(ValueError, match=r"`num_noise_bins` must be >= 1 \(got 0\)"):
        MetricsCallback(num_noise_bins=0)

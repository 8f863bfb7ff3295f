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
"""The training benchmark at toy size: what its report holds, and that its arms do the same work.

Times themselves are never judged here: a loaded machine must not fail the tests.
"""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import train

from dimple_hf.modeling import diffusion_dimple

ARMS = [
    "causal", "causal_full_logits", "diffusion", "diffusion_full_logits", "complementary", "complementary_twice",
    "turns", "turns_apart",
]  # fmt: skip


def test_train_tiny_shape_reports_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """All figures are there, with the machine, the versions and the command."""
    output = tmp_path / "train.json"
    small_loss = ["--loss-tokens", "8", "--loss-vocab-size", "100"]
    report = train.main(["--repeats", "2", *small_loss, "--output", str(output)])
    assert json.loads(output.read_text()) == json.loads(json.dumps(report))
    assert report["command"].startswith("python benchmarks/train.py --repeats 2 ")
    assert set(report["versions"]) == {"python", "torch", "transformers", "dimple_hf"}
    assert list(report["results"]) == ARMS
    for arm, line in report["results"].items():
        assert line["samples_per_second"] > 0
        assert line["step_memory_mib"] > 0
        is_other = arm not in train.PHASES
        assert ("ratio" in line) == is_other
        if is_other:
            assert line["ratio"]["num_pairs"] == 2
            assert line["ratio"]["low"] <= line["ratio"]["median"] <= line["ratio"]["high"]
    assert report["loss"]["logits_mib"] == 8 * 100 * 4 / 2**20
    assert set(report["loss"]["memory_mib"]) == {"slices", "full_logits"}
    assert "| causal_full_logits | " in capsys.readouterr().out


@pytest.fixture
def training() -> train.Training:
    return train.Training(train.SHAPES["tiny"], 2, "cpu", "float32", "sdpa")


@pytest.mark.parametrize("phase", ["causal", "diffusion", "complementary", "turns"])
def test_train_arms_of_a_phase_have_the_same_gradients(training: train.Training, phase: str) -> None:
    """Else one of them would do less, and the other look slow for it."""
    gradients = []
    for arm in train.PHASES[phase]:
        training.loss(arm).backward()
        named = training.model.named_parameters()
        gradients.append({name: parameter.grad.clone() for name, parameter in named if parameter.requires_grad})
        training.model.zero_grad()
    own, other = gradients
    for name, gradient in own.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert max(gradient.abs().max() for gradient in own.values()) > 1e-2  # control
    assert not any(name.startswith("visual.") for name in own)  # frozen, as in training


def test_train_other_losses_in_an_arm_fail_the_run(training: train.Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(train.ARMS, "causal_full_logits", (train.diffusion, "rows"))
    with pytest.raises(RuntimeError, match="the arms of causal must have the same loss"):
        train.measure_phase("causal", training, 1, lambda: 0.0, None)


def test_loss_memory_is_three_times_the_logits_or_a_slice_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits, their log-probabilities and their gradient: of 256 x 8,192 at once, or of 32 tokens (1 MiB)."""
    monkeypatch.setattr(diffusion_dimple, "MAX_LOGITS_ELEMENTS", 2**18)
    slices, full = (train.loss_memory(arm, "cpu", "float32", 256, 8192) for arm in ("slices", "full_logits"))
    rest = 256 * train.LOSS_WIDTH * 4 / 2**20  # gradient of the hidden states
    assert 3 * 8 <= full <= 3 * 8 + 2 * rest
    assert 3 * 1 <= slices <= 3 * 1 + 3 * rest


def test_peak_memory_counts_what_is_alive_at_once() -> None:
    """1 MiB and 2 MiB together, though 5 MiB are asked for in all; nothing of what was there before."""
    before = torch.empty(2**20, dtype=torch.uint8)

    def run() -> None:
        first = torch.empty(2**20, dtype=torch.uint8)
        second = torch.empty(2**21, dtype=torch.uint8)
        del first, second
        torch.empty(2**21, dtype=torch.uint8)

    assert train.peak_memory(torch.device("cpu"), run) == 3
    assert train.peak_memory(torch.device("cpu"), before.numel) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--device", "cuda", "--clock", "cpu"], "--clock cpu must be used on the CPU"),
    ],
)
def test_train_refuses_what_it_cannot_measure(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        train.parse_arguments(arguments)
    assert message in capsys.readouterr().err


def test_train_without_a_gpu_refuses_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        train.parse_arguments(["--device", "cuda"])
    assert "--device must be cpu on a machine without a GPU" in capsys.readouterr().err

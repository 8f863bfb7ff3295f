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
"""The checkpoint that ships: small, in bfloat16, complete, and it reads a held-out form."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor

from dimple_hf import DimpleConfig
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.cli.main import main
from dimple_hf.hub import check_checkpoint
from dimple_hf.modeling.configuration_dimple import LOSS_OPTIONS

MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def sample(repo_root: Path) -> dict:
    return json.loads((repo_root / "examples" / "forms" / "sample.json").read_text())


def test_checkpoint_is_small_and_in_bfloat16() -> None:
    """At most 5 M parameters and 12 MB, so that it can come with the package."""
    weights = FORMS_CHECKPOINT / "model.safetensors"
    assert weights.stat().st_size <= MAX_BYTES
    with safe_open(weights, "pt") as file:
        tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118  (no mapping)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}
    assert sum(tensor.numel() for tensor in tensors) <= 5_000_000


def test_checkpoint_passes_the_doctor() -> None:
    """Files, names, shapes, special tokens: as any checkpoint should be."""
    assert [finding for finding in check_checkpoint(str(FORMS_CHECKPOINT)) if finding.status != "ok"] == []


def test_checkpoint_holds_no_code_and_a_card_with_scores() -> None:
    """Inside the package the code is the package's own; the card's figures are of these weights."""
    assert not list(FORMS_CHECKPOINT.glob("*.py"))
    config = AutoConfig.from_pretrained(FORMS_CHECKPOINT)
    assert config.full_attn_mask is True
    assert not getattr(config, "auto_map", None)
    card = ModelCard.load(FORMS_CHECKPOINT / "README.md")
    scores = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert {"text/fields", "json/whole", "sum/exact", "held-out words text/whole"} <= scores.keys()


def test_checkpoint_trains_as_any_other() -> None:
    """Options of the loss that its last stage needed are not a user's: some of them no other trainer can serve."""
    config = AutoConfig.from_pretrained(FORMS_CHECKPOINT)
    names = [*LOSS_OPTIONS, "causal_loss_weight", "complementary_masks"]
    assert {name: getattr(config, name) for name in names} == {name: getattr(DimpleConfig(), name) for name in names}


@pytest.mark.parametrize("kind", ["text", "json"])
def test_generate_without_a_model_reads_the_sample(
    kind: str, sample: dict, repo_root: Path, capsys: pytest.CaptureFixture
) -> None:
    """The default of the command line is this checkpoint, and it reads what it never saw in training."""
    (asked,) = (question for question in sample["questions"] if question["kind"] == kind)
    image = repo_root / "examples" / "forms" / "sample.png"
    assert main(["generate", "--image", str(image), "--json", asked["question"]]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["answer"] == asked["answer"]
    num_tokens = len(AutoProcessor.from_pretrained(FORMS_CHECKPOINT).tokenizer.encode(asked["answer"]))
    assert report["passes"] < num_tokens / 2  # control: it is no reading token by token

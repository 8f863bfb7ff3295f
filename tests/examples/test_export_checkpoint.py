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
"""`examples/forms/export_checkpoint.py` writes a checkpoint as it ships: the weights, no code, scores in the card."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from dimple_hf.checkpoints import FORMS_CHECKPOINT

pytest.importorskip("sklearn")


@pytest.mark.slow
def test_export_of_the_shipped_checkpoint_is_that_checkpoint(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported again, the checkpoint that ships is itself; an old one stays until the new one is whole."""
    script = repo_root / "examples" / "forms" / "export_checkpoint.py"
    out = tmp_path / "forms"
    out.mkdir()
    (out / "old.txt").write_text("old")
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), str(FORMS_CHECKPOINT), "--output", str(out), "--rows", "1"])
    runpy.run_path(str(script), run_name="__main__")
    assert [path.name for path in tmp_path.iterdir()] == ["forms"]
    assert {path.name for path in out.iterdir()} == {path.name for path in FORMS_CHECKPOINT.iterdir()}
    written, shipped = (load_file(folder / "model.safetensors") for folder in (out, FORMS_CHECKPOINT))
    assert written.keys() == shipped.keys()
    assert all(written[name].equal(shipped[name]) for name in shipped)
    assert not any("auto_map" in json.loads(path.read_text()) for path in out.glob("*.json"))
    card = ModelCard.load(out / "README.md")
    names = {result.metric_name for result in card.data.eval_results}
    assert {"text/fields", "held-out words text/fields"} <= names


def test_average_models_is_the_mean_of_the_weights(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the checkpoint and one of thrice its weights: twice its weights, exactly."""
    monkeypatch.syspath_prepend(str(repo_root / "examples" / "forms"))
    average_models = runpy.run_path(str(repo_root / "examples" / "forms" / "export_checkpoint.py"))["average_models"]
    shipped = load_file(FORMS_CHECKPOINT / "model.safetensors")
    shutil.copytree(FORMS_CHECKPOINT, tmp_path / "thrice")
    thrice = {name: 3 * weight.float() for name, weight in shipped.items()}
    save_file(thrice, tmp_path / "thrice" / "model.safetensors", metadata={"format": "pt"})
    alone, mean = (average_models(paths) for paths in ([FORMS_CHECKPOINT], [FORMS_CHECKPOINT, tmp_path / "thrice"]))
    weights = dict(alone.named_parameters())
    assert len(weights) > 100
    for name, weight in mean.named_parameters():
        assert weight.equal(2 * weights[name]), name

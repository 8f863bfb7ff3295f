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
"""What `docs/fine_tuning.md` shows is true: commands, recipe, rows and Python, on toy models in place of the 7B one.

Runs of hours are only planned (`--dry-run`); `test_run` and `test_train` run such recipes at toy size.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import tiny_parts
from PIL import Image
from training_run import CHECKPOINT
from transformers import AutoModel

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.cli.main import main
from dimple_hf.data.examples import read_example
from dimple_hf.training import load_recipe, lora_config

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "fine_tuning.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if language == "bash"
]
ANOTHER_LAUNCHER = ["accelerate", "launch", "--config_file"]


@pytest.fixture
def here(tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a repository, with the data and models that the page names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(repo_root / "recipes", tmp_path / "recipes")
    shutil.copytree(CHECKPOINT, tmp_path / "rp-yu" / "Dimple-7B")
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("train", "captions-559k", "instructions-739k"):
        (tmp_path / "data" / f"{name}.jsonl").write_text("{}\n")
    Image.new("RGB", (56, 56)).save(tmp_path / "cat.png")
    for owner in ("Qwen", "Dream-org"):
        Path(owner).mkdir()
    tiny_parts.write_qwen(tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    tiny_parts.write_dream(tmp_path / "Dream-org" / "Dream-v0-Instruct-7B")
    return tmp_path


def test_commands_run(here: Path, capsys: pytest.CaptureFixture) -> None:
    """From the last one, which makes the model that the recipes of all stages start from, to the first."""
    assert {command[0] for command in COMMANDS} == {"dimple-hf", "accelerate"}
    for command in reversed(COMMANDS):
        if command[:3] == ANOTHER_LAUNCHER:
            assert Path(command[3]).is_file()
            assert command[4:6] == ["-m", "dimple_hf.cli.main"]
            command = ["dimple-hf", *command[6:]]
        if command[1] == "train" and "--dry-run" not in command:
            command = [*command, "--dry-run"]
        assert main(command[1:]) == 0, capsys.readouterr().err
    assert (here / "runs" / "dimple-7b" / "raw" / "config.json").is_file()
    assert "diffusion" in capsys.readouterr().out
    (here / "data" / "train.jsonl").unlink()
    assert main(COMMANDS[0][1:]) == 1  # control: a plan is no empty promise


def test_recipe_loads(here: Path) -> None:
    """With what it changes."""
    (recipe,) = [block for language, block in BLOCKS if language == "yaml"]
    (here / "mine.yaml").write_text(recipe)
    instruct, diffusion = (plan.stage for plan in load_recipe(here / "mine.yaml").plans)
    assert instruct.learning_rate == 5e-6
    assert (diffusion.learning_rate, diffusion.batch_size, diffusion.num_epochs) == (1e-4, 64, 2)


def test_rows_are_read_alike(here: Path) -> None:
    """Both forms of the same row."""
    (block,) = [block for language, block in BLOCKS if language == "json"]
    first, end = json.JSONDecoder().raw_decode(block)
    second = json.loads(block[end:])
    assert first.keys() == {"messages", "images"}
    assert second.keys() == {"conversations", "image"}
    assert read_example(first).messages == read_example(second).messages
    assert read_example(first).answer(1) == "A cat."


def test_adapter_snippet_runs(here: Path) -> None:
    """Loads the adapter that the recipe left and merges it into a plain model."""
    from peft import get_peft_model

    base = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
    adapted = get_peft_model(base, lora_config(True, r=2, init_lora_weights=False))
    adapted.save_pretrained(here / "runs" / "dimple-7b-lora" / "diffusion")
    (snippet,) = [block for language, block in BLOCKS if language == "python"]
    lines = [re.sub(r"^(>>>|\.\.\.) ?", "", line) for line in snippet.splitlines()]
    exec(compile("\n".join(lines), PAGE.name, "exec"), {})
    merged = AutoModel.from_pretrained(here / "merged")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not merged.state_dict()[name].equal(AutoModel.from_pretrained(CHECKPOINT).state_dict()[name])

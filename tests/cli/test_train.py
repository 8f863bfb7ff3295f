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
"""`dimple-hf train`: what it prints, how it refuses, and that the same command goes on after a `kill -9`."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from launcher import Launcher

TRAINING = Path(__file__).resolve().parent.parent / "training"
sys.path.insert(0, str(TRAINING))

from recipe_run import STAGES, step_losses, write_recipe  # noqa: E402

from dimple_hf.cli.main import main  # noqa: E402
from dimple_hf.training import run  # noqa: E402


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths in a recipe are relative to the current directory."""
    monkeypatch.chdir(tmp_path)


def test_train_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is YAML, too, with what was resolved: the batch's division and where each stage starts."""
    path = write_recipe(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--dry-run", str(path)]) == 0
    plan = yaml.safe_load(capsys.readouterr().out)
    assert [stage["name"] for stage in plan] == ["instruct", "diffusion"]
    assert [stage["to do"] for stage in plan] == ["from its beginning"] * 2
    assert plan[1]["base"] == "out/instruct"
    # 4 rows: 2 processes x 2 rows x 1 micro-batch.
    assert plan[0]["trainer"]["gradient_accumulation_steps"] == 1
    monkeypatch.delenv("WORLD_SIZE")
    assert main(["train", "--dry-run", str(path)]) == 0
    assert yaml.safe_load(capsys.readouterr().out)[0]["trainer"]["gradient_accumulation_steps"] == 2
    assert not (tmp_path / "out").exists()


def test_train_prints_the_last_stages_directory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The last line in the pipe is what the next command needs."""
    path = write_recipe(tmp_path, stages=[STAGES[0] | {"max_steps": 1}])
    assert main(["train", str(path)]) == 0
    assert capsys.readouterr().out.endswith("\nout/instruct\n")


def test_train_with_faulty_recipe_returns_one_before_a_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line with the position in the recipe, not a trace."""
    monkeypatch.setattr(run, "load_model", lambda *args: pytest.fail("a model was loaded"))
    path = write_recipe(tmp_path, stages=[STAGES[0], STAGES[1] | {"learning_rte": 1}])
    assert main(["train", str(path)]) == 1
    message = f"dimple-hf train: {path}: stages[1]: `learning_rte` is unknown; did you mean `learning_rate`?\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft": {"r": 0}}, "peft: `r` must be an integer >= 1 (got 0)"),
        ({"trainer": {"adam_beta2": "x"}}, "trainer: `adam_beta2` must be a number in [0, 1) (got 'x')"),
    ],
)
def test_train_with_option_out_of_range_returns_one_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, changes: dict[str, Any], message: str
) -> None:
    """Options that are passed on are refused like those of the recipe itself."""
    path = write_recipe(tmp_path, **changes)
    assert main(["train", str(path)]) == 1
    assert capsys.readouterr().err == f"dimple-hf train: {path}: {message}\n"


def test_train_killed_and_run_again_ends_as_the_uninterrupted_run(tmp_path: Path) -> None:
    """`kill -9` past the checkpoint of a stage: the losses of all steps and the weights are the same."""
    write_recipe(tmp_path, stages=STAGES[1:])
    assert main(["train", "recipe.yaml"]) == 0
    os.rename("out", "whole")
    Path("interrupt_at").write_text("15")  # in step 4
    Path("kill").touch()
    launcher = Launcher(tmp_path / "errors.txt")
    (process,) = launcher.start(["train", "recipe.yaml"])
    assert launcher.wait(process) == -signal.SIGKILL, launcher.errors.read_text()
    assert Path("out/diffusion/checkpoint-2").is_dir()
    assert not Path("out/diffusion/model.safetensors").exists()
    assert main(["train", "recipe.yaml"]) == 0
    assert step_losses(Path("out", "diffusion")) == step_losses(Path("whole", "diffusion"))
    weights = [Path(out, "diffusion", "model.safetensors").read_bytes() for out in ("out", "whole")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_train_under_accelerate_launch_trains_with_two_processes(tmp_path: Path) -> None:
    """The command as the recipes give it. The global batch is the same, so the first loss is that of one process."""
    write_recipe(tmp_path)
    assert main(["train", "recipe.yaml"]) == 0
    os.rename("out", "whole")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launch, *options, "-m", "dimple_hf.cli.main", "train", "recipe.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("out/diffusion\n")
    for stage in ("instruct", "diffusion"):
        assert Path("out", stage, "model.safetensors").is_file()
    expected, found = (step_losses(Path(out, "instruct")) for out in ("whole", "out"))
    assert found == pytest.approx(expected, rel=1e-2)

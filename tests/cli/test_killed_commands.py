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
"""Long commands, killed ten times at random moments: they leave a whole result or none, and end as if never killed."""

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_parts
from launcher import Launcher

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "training"))

from recipe_run import step_losses, write_recipe  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NUM_KILLS = 10


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    """Paths in a recipe are relative to the current directory."""
    monkeypatch.chdir(tmp_path)
    return Launcher(tmp_path / "errors.txt")


def run(processes: Launcher, command: list[str]) -> float:
    """Runs a command to its end; returns the seconds that it took."""
    began = time.monotonic()
    (process,) = processes.start(command, 1)
    assert processes.wait(process) == 0, processes.errors.read_text()[-3000:]
    return time.monotonic() - began


def kill_after(processes: Launcher, command: list[str], seconds: float) -> bool:
    """Starts a command and kills it after so long. Returns whether that came before its end."""
    (process,) = processes.start(command, 1)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    status = processes.wait(process)
    assert status in (-signal.SIGKILL, 0), processes.errors.read_text()[-3000:]
    return status != 0


def kill_again_and_again(
    processes: Launcher, command: list[str], seconds: float, is_begun: Callable[[], bool], finish: Callable[[], None]
) -> None:
    """
    Kills a command ten times, some time of about `seconds` after its start, and often enough that some kills come in
    the middle of its work. What a run leaves that was quicker is checked and cleared away by `finish`.
    """
    rng, num_killed, num_begun = random.Random(0), 0, 0
    while num_killed < NUM_KILLS or num_begun < 2:
        if kill_after(processes, command, rng.uniform(0, seconds)):
            num_killed, num_begun, seconds = num_killed + 1, num_begun + is_begun(), 1.1 * seconds
        else:
            finish()
            seconds /= 2


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["convert", "init"])
def test_command_that_writes_a_model_leaves_it_whole_or_not_at_all(
    name: str, processes: Launcher, tmp_path: Path, parity_dir: Path
) -> None:
    """The directory appears when everything is in it; the next run clears away what was begun."""
    command = ["convert", str(parity_dir / "checkpoint")]
    if name == "init":
        tiny_parts.write_dream(tmp_path / "dream")
        tiny_parts.write_qwen(tmp_path / "qwen")
        command = ["init", "--language-model", str(tmp_path / "dream"), "--vision-model", str(tmp_path / "qwen")]
    seconds = run(processes, [*command, "whole"])
    whole, output, partial = contents(tmp_path / "whole"), tmp_path / "killed", tmp_path / "killed.partial"

    def is_begun() -> bool:
        """Also after the very last moment, when the directory has its name already."""
        if output.exists():
            finish()
        return partial.exists()

    def finish() -> None:
        assert contents(output) == whole
        shutil.rmtree(output)

    kill_again_and_again(processes, [*command, "killed"], seconds, is_begun, finish)
    run(processes, [*command, "killed"])
    assert not partial.exists()
    finish()


def test_train_killed_again_and_again_ends_as_the_uninterrupted_run(processes: Launcher, tmp_path: Path) -> None:
    """The losses of all steps and the weights of both stages, in whichever step, save or start the kills came."""
    write_recipe(tmp_path)
    seconds = run(processes, ["train", "recipe.yaml"])
    os.rename("out", "whole")

    def is_begun() -> bool:
        return any(Path("out").glob("*/checkpoint-*"))

    def finish() -> None:
        for stage in ("instruct", "diffusion"):
            assert step_losses(Path("out", stage)) == step_losses(Path("whole", stage))
            weights = [Path(out, stage, "model.safetensors").read_bytes() for out in ("out", "whole")]
            assert weights[0] == weights[1]
        shutil.rmtree("out")

    kill_again_and_again(processes, ["train", "recipe.yaml"], seconds, is_begun, finish)
    run(processes, ["train", "recipe.yaml"])
    finish()


@pytest.mark.parametrize("limit", [20_000, 150_000, 300_000])
def test_train_on_a_full_disk_says_so_and_goes_on_from_its_checkpoint(
    limit: int, processes: Launcher, tmp_path: Path
) -> None:
    """Files that cannot grow stand for it; which one cannot depends on the limit: weights or the optimizer's state."""
    write_recipe(tmp_path)
    run(processes, ["train", "recipe.yaml"])
    os.rename("out", "whole")
    processes.errors.write_text("")
    (process,) = processes.start(["train", "recipe.yaml"], 1, limit)
    assert processes.wait(process) == 1
    lines = processes.errors.read_text().splitlines()
    assert any(re.match("dimple-hf train: .*(too large|may be full)", line) for line in lines), lines
    assert not any("Traceback" in line for line in lines)
    run(processes, ["train", "recipe.yaml"])
    for stage in ("instruct", "diffusion"):
        weights = [Path(out, stage, "model.safetensors").read_bytes() for out in ("out", "whole")]
        assert weights[0] == weights[1]

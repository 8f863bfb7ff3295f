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
"""Broken checkpoints are refused in one line that names the file, or loaded; nothing of them is run.

The kinds are those of `broken_checkpoints`. The class reads some of them, and all with the marker `slow`; the command
line, which reads the same files through the same classes, those.
"""

import shutil
import time
from pathlib import Path

import pytest
from broken_checkpoints import INDEX, KINDS, SHARD
from memory import PeakMemory

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.cli.main import main

#: What still loads, and is right to: files that the model or the processor can do without, or a value of no effect.
HARMLESS = {
    "config.json: quantization unknown", "generation_config.json: a directory",
    "tokenizer_config.json: added token without content", "tokenizer_config.json: length as text",
    "config.json: no model type", f"{SHARD}: a weight that is not a number",
}  # fmt: skip
PROCESSOR_FILES = ("preprocessor_config.json", "tokenizer_config.json", "vocab.json", "merges.txt")

SECONDS, BYTES = 10, 2 * 2**30

#: Kinds that are tried through each command.
COMMAND_KINDS = (
    "config.json: null", "config.json: deep objects", "config.json: too many layers", "config.json: width as text",
    "config.json: unknown activation", "generation_config.json: a list", "preprocessor_config.json: mean as text",
    "vocab.json: deep", "merges.txt: not merges", "tokenizer_config.json: pad token as a number", f"{INDEX}: outside",
    f"{SHARD}: half", f"{SHARD}: integer weights", f"{SHARD}: a missing weight", f"{SHARD}: a weight of another shape",
)  # fmt: skip


@pytest.fixture
def broken(request: pytest.FixtureRequest, parity_dir: Path, tmp_path: Path) -> tuple[str, str, Path]:
    """A kind of damage, the file that it is in, and a checkpoint that has it."""
    file, damage = KINDS[request.param]
    folder = Path(shutil.copytree(parity_dir / "checkpoint", tmp_path / "checkpoint"))
    damage(folder)
    return request.param, file, folder


def names(message: str, file: str) -> bool:
    """Whether a message is one line that names the file, or one that it has to agree with."""
    known = (file, INDEX, "config.json") if file == SHARD else (file,)
    return len(message.strip().splitlines()) == 1 and any(name in message for name in known)


@pytest.mark.parametrize(
    "broken",
    [kind if kind in COMMAND_KINDS else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS],
    indirect=True,
)
def test_broken_checkpoint_is_refused_by_name_or_loads(broken: tuple[str, str, Path]) -> None:
    """By the class of the part that reads the file; in time, in memory, and without running anything."""
    kind, file, folder = broken
    start = time.process_time()
    reader = DimpleProcessor if file in PROCESSOR_FILES else DimpleForConditionalGeneration
    refusal = None
    with PeakMemory() as peak:
        try:
            reader.from_pretrained(folder)
        except (ValueError, OSError) as error:
            refusal = str(error)
    assert time.process_time() - start < SECONDS
    assert not (folder.parent / "executed").exists()
    assert peak.growth < BYTES
    if kind in HARMLESS:
        assert refusal is None
    else:
        assert refusal is not None
        assert names(refusal, file)


@pytest.mark.parametrize("command", ["generate", "convert"])
@pytest.mark.parametrize("broken", COMMAND_KINDS, indirect=True)
def test_command_on_a_broken_checkpoint_prints_one_line(
    broken: tuple[str, str, Path], command: str, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    """No traceback: the file and the reason."""
    _, file, folder = broken
    arguments = {
        "generate": ["generate", "hi", "--model", str(folder), "--device", "cpu", "--max-new-tokens", "2"],
        "convert": ["convert", str(folder), str(tmp_path / "out")],
    }
    assert main(arguments[command]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dimple-hf ")]
    assert len(error) == 1
    assert names(error[0], file)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "executed").exists()


def test_kinds_are_many_and_the_good_checkpoint_loads(parity_dir: Path) -> None:
    """Control: what the damage is done to loads."""
    assert len(KINDS) >= 60
    assert HARMLESS | set(COMMAND_KINDS) <= set(KINDS)
    DimpleForConditionalGeneration.from_pretrained(parity_dir / "checkpoint")
    DimpleProcessor.from_pretrained(parity_dir / "checkpoint")

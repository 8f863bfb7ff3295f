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
"""Tests of cli/arguments.py: what every sub-command refuses alike."""

from pathlib import Path

import pytest

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.cli.arguments import checkpoint_name
from dimple_hf.cli.main import build_parser


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--confidence-treshold=0.9", "unknown option --confidence-treshold; did you mean --confidence-threshold?"),
        ("--max-tokens", "unknown option --max-tokens; did you mean --max-new-tokens?"),
        ("--zzz", "unknown option --zzz\n"),
    ],
)
def test_unknown_option_is_refused_with_the_nearest_name(
    option: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    """Under the sub-command's own usage, before anything is loaded."""
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["generate", "Read the form.", option])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: dimple-hf generate ")
    assert message in error
    if option == "--zzz":
        assert "did you mean" not in error


def test_known_options_and_words_too_many_are_as_ever(capsys: pytest.CaptureFixture) -> None:
    args = build_parser().parse_args(["generate", "Read the form.", "--confidence-threshold", "0.9"])
    assert (args.question, args.confidence_threshold, args.model) == ("Read the form.", 0.9, str(FORMS_CHECKPOINT))
    with pytest.raises(SystemExit):
        build_parser().parse_args(["generate", "Read the form.", "twice"])
    assert "unrecognized arguments: twice" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [str(2**70), str(2**64), "-1", "1.5", "", "9" * 5000, "²"])
@pytest.mark.parametrize("command", [["generate"], ["init", "out", "--vision-model", "owner/name"]])
def test_seed_out_of_range_is_refused_with_the_range(
    command: list[str], seed: str, capsys: pytest.CaptureFixture
) -> None:
    """Before anything is loaded; torch would only tell of an overflow."""
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command, f"--seed={seed}"])
    assert "argument --seed: must be an integer from 0 to 2**64 - 1 (got " in capsys.readouterr().err
    assert build_parser().parse_args([*command, f"--seed={2**64 - 1}"]).seed == 2**64 - 1  # control


def test_checkpoint_is_a_directory_or_what_may_be_on_the_hub(tmp_path: Path) -> None:
    for name in (str(tmp_path), "rp-yu/Dimple-7B", "dimple"):
        assert checkpoint_name(name) == name


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "?", "--model"],
        ["generate", "?", "--adapter"],
        ["extract", "--schema", "s.json", "--image", "a.png", "--model"],
        ["batch", "rows.jsonl", "--output", "out.jsonl", "--model"],
        ["demo", "--model"],
        ["serve"],
    ],
)
def test_checkpoint_that_can_be_neither_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An empty name neither, although it is the current directory as a path."""
    for name in (str(tmp_path / "missing"), ""):
        with pytest.raises(SystemExit) as stopped:
            build_parser().parse_args([*arguments, name])
        assert stopped.value.code == 2
        assert f"must be a directory or an id on the Hub (got {name!r})" in capsys.readouterr().err
    (tmp_path / "model.zip").touch()
    with pytest.raises(SystemExit):
        build_parser().parse_args([*arguments, str(tmp_path / "model.zip")])
    assert (
        f"must be a directory or an id on the Hub (got the file {tmp_path / 'model.zip'})" in capsys.readouterr().err
    )

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
"""`dimple-hf generate`: what it prints in a pipe, as JSON and in a terminal, and how it refuses."""

import io
import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from rich.console import Console
from rich.live import Live
from transformers import AutoModelForImageTextToText, AutoTokenizer

from dimple_hf.cli import generate
from dimple_hf.cli.live_answer import MASK_SIGN, STEP_STYLES, LiveAnswer
from dimple_hf.cli.main import main
from dimple_hf.training import lora_config


@pytest.fixture
def arguments(parity_dir: Path) -> list[str]:
    image = parity_dir / "tiny" / "images" / "0.png"
    return ["generate", "--model", str(parity_dir / "checkpoint"), "--image", str(image), "--max-new-tokens", "6"]


def test_generate_in_a_pipe_prints_the_answer_alone_to_stdout(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    """A pipe gets the answer and nothing else; figures go to stderr."""
    assert main([*arguments, "What?"]) == 0
    plain = capsys.readouterr()
    assert main([*arguments, "--json", "What?"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert plain.out == report["answer"] + "\n"
    assert f"{report['passes']} forward pass" in plain.err
    assert report["question"] == "What?"
    assert 1 <= report["passes"] <= 6
    confidences = [token["confidence"] for token in report["tokens"]]
    assert report["confidence"] == pytest.approx(math.prod(confidences), rel=1e-4)
    assert all(0 < confidence < 1 for confidence in confidences)
    assert report["answer"] in "".join(token["token"] for token in report["tokens"])


def test_generate_with_missing_image_returns_one_and_says_so(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    """The path is checked before the model is loaded, and named."""
    assert main([*arguments, "--image", "nowhere.png", "What?"]) == 1
    assert "`--image` must be a file (got nowhere.png)" in capsys.readouterr().err


def test_generate_with_a_folder_or_archive_for_an_image_returns_one_and_says_so(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """One line with the name, what it is, and what to do."""
    assert main([*arguments, "--image", str(tmp_path)]) == 1
    message = f"`--image` must be a file (got the folder {tmp_path}; `dimple-hf extract` reads folders)\n"
    assert capsys.readouterr().err == f"dimple-hf generate: {message}"
    archive = tmp_path / "forms.zip"
    archive.write_bytes(b"PK\x03\x04")
    assert main([*arguments, "--image", str(archive)]) == 1
    assert capsys.readouterr().err.endswith(
        "forms.zip') must be a PNG, JPEG, WEBP, GIF, BMP, TIFF, PPM, AVIF, HEIF "
        "file (got a ZIP archive: extract it first)\n"
    )


def test_generate_takes_a_question_that_is_too_long_for_the_name_of_a_file(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    """Names of files have 255 bytes at most, and 100 Chinese characters have 300. The name of a file is refused."""
    assert main([*arguments, "图" * 100]) == 0
    assert main([*arguments, arguments[4]]) == 1
    assert "the question must be text (got the file" in capsys.readouterr().err
    assert main(["generate", "--image", "图" * 100, "What?"]) == 1
    assert "`--image` must be a file (got 图" in capsys.readouterr().err


def test_generate_with_option_out_of_range_returns_one_and_says_so(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    """What the model's options refuse is one line, not a trace."""
    assert main([*arguments, "--confidence-threshold", "2", "What?"]) == 1
    assert "`confidence_threshold` must lie in (0, 1] (got 2.0)" in capsys.readouterr().err


def test_generate_with_defect_keeps_its_trace(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: only errors that the user can mend are shortened."""

    def broken(args: object) -> int:
        raise RuntimeError("defect")

    monkeypatch.setattr(generate, "run", broken)
    with pytest.raises(RuntimeError, match="defect"):
        main([*arguments, "What?"])


def test_generate_in_a_terminal_shows_masks_then_the_answer(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In a terminal masked positions are drawn as shades, on the way to the same answer."""
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda: Console(file=screen, force_terminal=True, width=80))
    assert main([*arguments, "What?"]) == 0
    shown = screen.getvalue()
    assert MASK_SIGN in shown
    assert main([*arguments, "--json", "What?"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == json.loads(lines[1])["answer"]


def test_live_answer_colours_each_token_by_the_pass_that_unmasked_it(parity_dir: Path) -> None:
    """Two passes: the second position is decided in the first, the first position in the second; padding never
    shows."""
    tokenizer = AutoTokenizer.from_pretrained(parity_dir / "checkpoint")
    mask, pad = tokenizer.mask_token_id, tokenizer.pad_token_id
    letters = [tokenizer.encode(letter)[0] for letter in "ab"]
    live = Live(console=Console(file=io.StringIO()), auto_refresh=False)
    streamer = LiveAnswer(tokenizer, mask, live)
    streamer.put_draft(torch.tensor([[mask, letters[1], mask]]))
    first = streamer.render([mask, letters[1], mask])
    assert first.plain == f"{MASK_SIGN}b{MASK_SIGN}"
    streamer.put_draft(torch.tensor([[letters[0], letters[1], pad]]))
    second = streamer.render([letters[0], letters[1], pad])
    assert second.plain == "ab"
    assert [span.style for span in second.spans] == [STEP_STYLES[1], STEP_STYLES[0]]


def test_generate_with_an_adapter_takes_its_mode_and_its_weights(
    arguments: list[str], parity_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """An adapter trained causally answers causally: one pass a token, with other tokens than the base's."""
    torch.manual_seed(0)
    base = AutoModelForImageTextToText.from_pretrained(parity_dir / "checkpoint")
    base.config.full_attn_mask = False
    adapted = get_peft_model(base, lora_config(full_attn_mask=False, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    assert main([*arguments, "--json", "What?"]) == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main([*arguments, "--adapter", str(tmp_path / "adapter"), "--json", "What?"]) == 0
    assert not [warning for warning in caught if issubclass(warning.category, (FutureWarning, RuntimeWarning))]
    plain, with_adapter = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert with_adapter["answer"] != plain["answer"]
    assert with_adapter["passes"] <= 6
    assert ["confidence" in report for report in (plain, with_adapter)] == [True, False]

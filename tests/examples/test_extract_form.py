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
"""Tests of examples/extract_form.py: with random weights the object is noise, but it is an object."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import extract_form


@pytest.mark.parametrize("layout", ["padded", "compact"])
def test_extract_form_with_random_weights_prints_a_valid_object(
    parity_dir: Path, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The class bounds every field, whatever the weights; the canvas ends without a mask."""
    image = tmp_path / "canvas.svg"
    command = ["--model", str(parity_dir / "checkpoint"), "--layout", layout, "--svg", str(image)]
    form = extract_form.main(command)
    assert all(0 <= value <= 9999 for value in form.model_dump().values())
    *canvases, printed = capsys.readouterr().out.splitlines()
    assert printed == repr(form)
    assert extract_form.MASK_SIGN in canvases[0]  # control: it began with gaps
    text = canvases[-1].split("  ", 1)[1].replace(extract_form.FILLER_SIGN, "")
    assert json.loads(text) == form.model_dump()
    assert image.read_text().startswith("<svg")


def test_extract_form_has_the_rows_of_the_sample() -> None:
    """The committed image and the class belong together."""
    truth = json.loads((extract_form.SAMPLE.parent / "sample.json").read_text())["fields"]
    assert extract_form.Form(**truth).model_dump() == truth
    assert list(extract_form.Form.model_fields) == list(truth)


def test_extract_form_prints_what_the_page_shows(repo_root: Path, capsys: pytest.CaptureFixture) -> None:
    """With the weights of the package: the first canvas, and the last one with its number of passes."""
    extract_form.main([])
    *canvases, _ = capsys.readouterr().out.splitlines()
    page = (repo_root / "docs" / "structured_extraction.md").read_text(encoding="utf-8").splitlines()
    assert canvases[0].rstrip() in page
    assert canvases[-1].rstrip() in page


def test_extract_form_without_its_image_says_so(parity_dir: Path, capsys: pytest.CaptureFixture) -> None:
    """The path is checked before the model is loaded."""
    with pytest.raises(SystemExit):
        extract_form.main(["--model", str(parity_dir / "checkpoint"), "--image", "nowhere.png"])
    assert "--image must be a file (got nowhere.png)" in capsys.readouterr().err

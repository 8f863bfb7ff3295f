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
"""`examples/forms/forms_folder.py`: the folder that `docs/walk.md` starts from; `test_walk` runs the page itself."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_data import draw_form, form_rng
from forms_folder import main


def test_folder_holds_a_image_and_an_answer_for_each_line(tmp_path: Path) -> None:
    """The answers are the forms' own, and no held-out image is among those to train on."""
    main([str(tmp_path / "mine"), "--rows", "3", "--held-out", "2"])
    for split, file, number in (("train", "answers.jsonl", 3), ("test", "held_out.jsonl", 2)):
        lines = [json.loads(line) for line in (tmp_path / "mine" / file).read_text().splitlines()]
        assert len(lines) == number
        for index, line in enumerate(lines):
            fields = draw_form(split, form_rng(split, index)).fields
            assert dict(row.split("=") for row in line["answer"].splitlines()) == {
                label: str(value) for label, value in fields.items()
            }
            assert Image.open(tmp_path / "mine" / line["image"]).size == (168, 140)
    assert len(list((tmp_path / "mine").glob("*.png"))) == 5


@pytest.mark.parametrize("option", ["--rows", "--held-out"])
def test_folder_without_images_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Before anything is written."""
    with pytest.raises(SystemExit):
        main([str(tmp_path / "mine"), option, "0"])
    assert "must be >= 1" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()

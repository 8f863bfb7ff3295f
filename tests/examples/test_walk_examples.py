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
"""The scripts of `examples/walk`: what they draw and read. `tests/hub/test_walk.py` runs them as the page does."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "walk"))

import draw_learning
import draw_shapes


def test_folder_holds_a_chat_and_an_image_for_each_line(tmp_path: Path) -> None:
    """No held-out image is among those to train on; another seed draws others."""
    draw_shapes.main([str(tmp_path / "mine"), "--rows", "5", "--held-out", "3"])
    draw_shapes.main([str(tmp_path / "other"), "--rows", "5", "--held-out", "3", "--seed", "1"])
    images = []
    for file, number in (("train.jsonl", 5), ("held_out.jsonl", 3)):
        lines = [json.loads(line) for line in (tmp_path / "mine" / file).read_text().splitlines()]
        assert len(lines) == number
        for line in lines:
            question, answer = line["messages"]
            fill, shape = answer["content"].split()
            assert (fill in draw_shapes.FILLS, shape in draw_shapes.SHAPES) == (True, True)
            images.append((tmp_path / "mine" / question["content"][0]["path"]).read_bytes())
    assert len(set(images)) == 8
    assert images[0] != (tmp_path / "other" / "train-0000.png").read_bytes()


def test_filled_shapes_are_darker_inside_than_empty_ones() -> None:
    """At the center of the image's dark pixels; each shape lies within the image."""
    seen = set()
    for seed in range(60):
        image, answer = draw_shapes.draw_shape(random.Random(seed))
        pixels = np.asarray(image, dtype=float)
        assert image.size == (draw_shapes.SIZE, draw_shapes.SIZE)
        background = pixels[0, 0]
        for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
            assert (abs(edge - background) < 40).all(), answer
        rows, columns = (pixels < background - 60).nonzero()
        center = pixels[round(rows.mean()), round(columns.mean())]
        assert (center < background - 60) == answer.startswith("filled"), answer
        seen.add(answer)
    assert len(seen) == len(draw_shapes.FILLS) * len(draw_shapes.SHAPES)


@pytest.mark.parametrize("option", ["--rows", "--held-out"])
def test_folder_without_images_is_refused(option: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Before anything is written."""
    with pytest.raises(SystemExit):
        draw_shapes.main([str(tmp_path / "mine"), option, "0"])
    assert "must be >= 1" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_learning_is_read_from_the_state_of_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Loss and exact answers by step, and the last line."""
    run = tmp_path / "shapes-0"
    run.mkdir()
    log = [{"step": 2, "loss": 3.0}, {"step": 4, "eval_loss": 1.0, "eval_exact_match": 0.5}, {"exact": 0.75}]
    (run / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    arguments = [str(run), "--figure", str(tmp_path / "walk.svg"), "--output", str(tmp_path / "walk.json")]
    pytest.importorskip("matplotlib")
    runs = draw_learning.main(arguments)
    assert runs == {"shapes-0": {"loss": [[2, 3.0]], "exact": [[4, 0.5]], "result": {"exact": 0.75}}}
    assert capsys.readouterr().out == 'shapes-0 {"exact": 0.75}\n'
    assert json.loads((tmp_path / "walk.json").read_text())["runs"] == runs
    assert (tmp_path / "walk.svg").read_text().startswith("<?xml")

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
"""`dimple-hf init`: what it prints, and how it refuses."""

from pathlib import Path

import pytest
import tiny_parts
from transformers import AutoModel

from dimple_hf.cli.main import main


def test_init_writes_a_model_and_prints_its_directory(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The line in the pipe is what the next command needs. The seed decides the projector."""
    tiny_parts.write_dream(tmp_path / "dream")
    tiny_parts.write_qwen(tmp_path / "qwen")
    weights = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        out = str(tmp_path / name)
        parts = ["--language-model", str(tmp_path / "dream"), "--vision-model", str(tmp_path / "qwen")]
        assert main(["init", *parts, "--seed", seed, out]) == 0
        assert capsys.readouterr().out == out + "\n"
        weights.append(AutoModel.from_pretrained(out).img_projector.linear_1.weight)
        capsys.readouterr()
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_init_from_a_vision_model_alone_uses_its_language_model(tmp_path: Path) -> None:
    """`--language-model` may be left out."""
    _, language = tiny_parts.write_qwen(tmp_path / "qwen")
    assert main(["init", "--vision-model", str(tmp_path / "qwen"), str(tmp_path / "out")]) == 0
    assert AutoModel.from_pretrained(tmp_path / "out", dtype="auto").lm_head.weight.equal(language["lm_head.weight"])


def test_init_that_is_refused_returns_one_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What the user can mend is one line, not a trace."""
    tiny_parts.write_dream(tmp_path / "dream")
    assert main(["init", "--vision-model", str(tmp_path / "dream"), str(tmp_path / "out")]) == 1
    assert "dimple-hf init: the vision model must be of type qwen2_5_vl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

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
"""`dimple-hf convert`: its options reach the output, nothing of the source is run, and it refuses in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel
from traps import set_traps

from dimple_hf.cli.main import main
from dimple_hf.quantization import QUANTIZATIONS


@pytest.fixture
def checkpoint(parity_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_dir / "checkpoint", tmp_path / "checkpoint"))


def test_convert_and_doctor_take_the_original_layout(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In a type and in shards of another size; nobody is asked, no trap is run, and the output is healthy."""
    mark = set_traps(checkpoint)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    out = tmp_path / "out"
    assert main(["convert", str(checkpoint), str(out), "--dtype", "bfloat16", "--max-shard-size", "200000"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert not mark.exists()
    shards = list(out.glob("*.safetensors"))
    assert len(shards) > 1
    assert max(path.stat().st_size for path in shards) < 220_000
    assert AutoModel.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    assert main(["doctor", "--model", str(out), "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]["model"]
    assert {finding["status"] for finding in findings} == {"ok"}
    assert main(["convert", str(checkpoint), str(out)]) == 1
    assert "the output directory must be new or empty" in capsys.readouterr().err


def test_convert_refuses_in_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A size without a unit that is known, and a quantization whose library is not there."""
    command = ["convert", str(checkpoint), str(tmp_path / "out")]
    assert main([*command, "--max-shard-size", "much"]) == 1
    assert "`size` much is not in a valid format" in capsys.readouterr().err
    assert main([*command, "--max-shard-size", "0"]) == 1
    assert "`--max-shard-size` must be at least 1 (got 0)" in capsys.readouterr().err
    monkeypatch.setitem(QUANTIZATIONS, "nf4", ("bitsandbytes", lambda: False))
    assert main([*command, "--quantize", "nf4"]) == 1
    assert "needs bitsandbytes: run `pip install 'dimple_hf[quantize]'`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--quantize", "nf5"])
    assert not (tmp_path / "out").exists()

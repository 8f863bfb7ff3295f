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
"""The benchmark of answer lengths with the package's model: what its report holds, and what makes a run fail.

Times are never judged here: a loaded machine must not fail the tests.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import answer_length

from dimple_hf.modeling import prepared_call_dimple


def test_report_holds_times_and_passes_of_each_canvas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The count of a form's rows is the shortest of answers."""
    path = tmp_path / "report.json"
    report = answer_length.main(["--rows", "2", "--kinds", "rows", "--output", str(path)])
    assert json.loads(path.read_text()) == report
    assert [line["kind"] for line in report["results"]] == ["rows"]
    for line in report["results"]:
        assert 1 <= line["num_short"] <= 2
        # The first pass over a canvas of 32 positions sees that it is long enough.
        assert line["grown"]["passes"] == line["short"]["passes"]
        for name in answer_length.CANVASES:
            assert line[name]["call_ms"] > 0
        assert 0 < line["grown_over_short"]["low"] <= line["grown_over_short"]["high"]
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 1


def test_other_tokens_on_a_grown_canvas_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: were the canvas in truth a longer one, its times would say nothing."""
    grow = prepared_call_dimple.grow_canvases

    def grow_and_write(runner: Any, canvas: Any, sampler: Any, *args: Any) -> Any:
        grown, num_passes = grow(runner, canvas, sampler, *args)
        return torch.where(grown == sampler.mask_token_id, 7, grown), num_passes

    monkeypatch.setattr(prepared_call_dimple, "grow_canvases", grow_and_write)
    with pytest.raises(RuntimeError, match=r"must have the tokens of one|must give short answers"):
        answer_length.main(["--rows", "1", "--kinds", "rows"])


def test_no_rows_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Before a model is loaded."""
    with pytest.raises(SystemExit):
        answer_length.main(["--rows", "0"])
    assert "--rows must be at least 1 (got 0)" in capsys.readouterr().err

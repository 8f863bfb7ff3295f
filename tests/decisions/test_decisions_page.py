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
"""`docs/decisions.md` typed in from top to bottom."""

import re
from pathlib import Path

import pytest


def test_decisions_page_runs_as_it_stands(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (repo_root / "docs" / "decisions.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    assert len(snippets) == 4
    namespace: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "decisions.md", "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    has_price, rows, digits = map(float, printed[0].split())
    assert has_price > 0.9
    assert rows == pytest.approx(2, abs=0.2)  # four
    assert digits > 0.8
    assert "92" in printed  # the floor
    assert printed[-1].startswith("tensor([")
    assert (tmp_path / "calibrated" / "decision_calibration.json").exists()

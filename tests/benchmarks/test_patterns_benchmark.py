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
"""The benchmark of patterns on a file of two."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import patterns


def test_patterns_of_a_file_are_checked_in_both_dialects(tmp_path: Path) -> None:
    """Patterns anywhere count; what is not supported is refused, and no text of the others is without a match."""
    schema = {"anyOf": [{"pattern": "^[a-z]{2}$"}, {"patternProperties": {"x|^y": {"pattern": r"(a)\1"}}}]}
    path = tmp_path / "schemas.jsonl"
    path.write_text(json.dumps({"schema": schema, "tests": []}))

    found = patterns.main([str(path), "--texts", "5"])["results"]

    assert (found["patterns"], round(found["accepted"], 2), found["texts"]) == (3, 0.67, 10)
    assert len(found["refused"]) == 1
    assert found["unsound_in_python"] == found["unknown_to_python"] == found.get("unsound_in_ecmascript", 0) == 0


ROWS = [("^[ab]$", ["a", "c"]), ("(?<", ["a"])]
"""A pattern with a text that does not match, and one that no dialect knows."""


def test_texts_that_python_does_not_match_are_found() -> None:
    """The control of the benchmark."""
    assert [patterns.python_matches(*row) for row in ROWS] == [[True, False], None]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, as the benchmark does for this dialect")
def test_texts_that_node_does_not_match_are_found() -> None:
    """The control of the other dialect."""
    assert patterns.node_matches(ROWS) == [[True, False], None]

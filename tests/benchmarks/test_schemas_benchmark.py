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
"""`benchmarks/schemas.py`: what it counts on schemas of known figures, and engines that cannot be interrupted."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dimple_hf.checkpoints import FORMS_CHECKPOINT

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import schemas

PAIR = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["a", "b"]}
ROWS = [
    {
        "schema": PAIR | {"additionalProperties": False},
        "tests": [
            {"data": {"a": 1, "b": True}, "valid": True},
            {"data": {"b": True, "a": 1}, "valid": True},
            {"data": {"a": 1}, "valid": False},
        ],
    },
    {"schema": {"type": "string", "pattern": r"^(a)\1$"}, "tests": [{"data": "aa", "valid": True}]},
]


def test_schemas_accepted_refused_and_their_instances(tmp_path: Path) -> None:
    """One of two schemas is accepted; of its valid instances one has another order of properties."""
    file, output = tmp_path / "rows.jsonl", tmp_path / "report.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    arguments = [str(file), "--tokenizer", str(FORMS_CHECKPOINT), "--engines", "dimple_hf", "--output", str(output)]
    report = schemas.main(arguments)
    found = report["engines"]["dimple_hf"]
    assert (found["schemas"], found["accepted"]) == (2, 0.5)
    assert (found["valid"], found["valid_as_written"], found["invalid"]) == (1, 0.5, "0 of 1")
    assert (found["refused_without_path"], sum(found["refused"].values())) == (0, 1)
    assert found["build_ms"] > 0
    assert found["rebuild_ms"] > 0
    assert 0 <= found["memory_mb"] < 1000
    assert found["memory_with_answers_mb"] >= 0
    assert json.loads(output.read_text()) == report


def _takes_all(schema: Any) -> Callable[[str], tuple[bool, None]]:
    return lambda text: (True, None)


def _refuses(schema: Any) -> Callable[[str], tuple[bool, None]]:
    raise ValueError("no such keyword")


def _never_ends(schema: Any) -> Callable[[str], tuple[bool, None]]:
    while True:
        pass


def _takes_memory(schema: Any) -> Callable[[str], tuple[bool, None]]:
    """Takes 128 MiB for one schema."""
    if schema == ROWS[1]["schema"]:
        held = bytearray(1 << 27)
        held[::1024] = b"1" * (1 << 17)  # written to, so that it is there
    return lambda text: (True, None)


def test_memory_of_builds() -> None:
    """What the second build takes is seen; that of the first, of a builder without any, and of a refusal is not."""
    assert schemas.build_memory(_takes_memory, ROWS) >= 120
    assert schemas.build_memory(_takes_memory, ROWS[::-1]) < 60
    assert schemas.build_memory(_takes_all, ROWS) < 60
    assert schemas.build_memory(_refuses, ROWS) < 60


def test_engine_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its figures are those of one that is not, and a build without an end ends at the limit."""
    monkeypatch.setattr(schemas, "TIME_LIMIT", 1)
    apart, here = schemas.try_apart(_takes_all, ROWS[0]), schemas.try_schema(_takes_all, ROWS[0])
    assert apart.counts == here.counts == {
        "valid": 2, "valid as written": 2, "valid in some order": 2, "measured orders": 0,
        "invalid": 1, "invalid as written": 1, "invalid in some order": 1,
    }  # fmt: skip
    assert schemas.try_apart(_refuses, ROWS[0]).reason == "no such keyword"
    ended = schemas.try_apart(_never_ends, ROWS[0])
    assert ended.reason == "not done within 1 s"
    assert ended.build_time == 1
    report = schemas.measure(schemas.try_apart(build, ROWS[0]) for build in (_takes_all, _refuses, _never_ends))
    assert report["accepted"] == 1 / 3
    assert report["valid"] is None
    assert report["valid_as_written"] == 1
    assert report["refused"] == {"no such keyword": 1, "not done within 1 s": 1}

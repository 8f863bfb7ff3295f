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
"""`benchmarks/decisions.py` at toy size."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def benchmark(repo_root: Path) -> ModuleType:
    sys.path.insert(0, str(repo_root / "benchmarks"))
    spec = importlib.util.spec_from_file_location("decisions_benchmark", repo_root / "benchmarks" / "decisions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_benchmark_measures_and_draws(benchmark: ModuleType, tmp_path: Path) -> None:
    fixed = set(benchmark.FIXED_OPTIONS)
    output, figure = tmp_path / "decisions.json", tmp_path / "reliability.svg"
    arguments = ["--rows", "4", "--repeats", "1", "--output", str(output), "--figure", str(figure)]
    results = benchmark.main(arguments)
    assert results["speed"]["together"] < results["speed"]["one by one"]
    assert 0 < results["shared"]["mean difference"] <= results["shared"]["largest difference"] <= 1
    scores = results["accuracy"]["label"]["all"]
    assert scores["number"] >= 2
    assert 0 <= scores["accuracy"] <= 1
    assert sum(share for *_, share in scores["reliability"]) == pytest.approx(1)
    written = json.loads(output.read_text())["accuracy"]
    assert list(written) == ["label", "label, independent", "text"]
    assert all(scores["temperatures"].keys() <= {"predicate", "choice", "score"} for scores in written.values())
    asked = {name for scores in results["learned"].values() for name in scores["by question"]}
    assert asked
    assert asked <= fixed
    assert not set(results["accuracy"]["label"]["by question"]) <= fixed  # control
    assert results["fields"]["accuracy"] > 0.9
    assert results["fields"]["number"] >= 4
    assert figure.read_text().startswith("<?xml")
    assert 0 < results["recording"]["without"] < results["recording"]["with"] < 0.5
    later = benchmark.main(["--parts", "recording", "--repeats", "1", "--output", str(output)])
    assert later["accuracy"] == json.loads(json.dumps(results["accuracy"]))  # other parts stay in the file


def test_held_out_questions_have_their_right_options(benchmark: ModuleType) -> None:
    """Control: the same form again, and another one for another seed."""
    first, again, other = benchmark.held_out(3, 1, 8), benchmark.held_out(3, 1, 8), benchmark.held_out(3, 2, 8)
    assert first[1:] == again[1:]
    assert first[1:] != other[1:]
    assert all(0 <= right < len(question.options) for question, right in zip(*first[2:], strict=True))

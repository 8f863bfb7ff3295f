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
"""The benchmark of `dimple-hf batch` at toy size: what its report holds, and that its arms do the same work.

Times themselves are never judged here: a loaded machine must not fail the tests.
"""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def benchmark(repo_root: Path) -> ModuleType:
    """The script as a module; `benchmarks/` is no package."""
    path = repo_root / "benchmarks" / "batch.py"
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location("batch_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LARGE_WIDTH = 300  # reading larger ones takes most of the time
    return module


@pytest.fixture(scope="module")
def report(benchmark: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the script; its file holds what it returns."""
    path = tmp_path_factory.mktemp("benchmark") / "batch.json"
    size = ["--rows", "4", "--batch-size", "2", "--repeats", "2", "--max-new-tokens", "4"]
    report = benchmark.main([*size, "--output", str(path)])
    assert json.loads(path.read_text()) == report
    return report


@pytest.mark.slow
def test_report_has_command_machine_and_versions(report: dict[str, Any]) -> None:
    """A figure without them cannot be compared with another."""
    assert report["command"].startswith("python benchmarks/batch.py --rows 4 --batch-size 2 ")
    assert set(report["versions"]) == {"python", "torch", "transformers", "dimple_hf"}
    assert report["machine"]["cpu"]
    assert report["threads"] >= 1


@pytest.mark.slow
def test_report_arms_answer_alike_and_planned_batches_pad_less(report: dict[str, Any]) -> None:
    """What is compared is the same work; ratios fit the rates."""
    assert list(report["results"]) == ["one small image", "one to four small images", "one large image"]
    for line in report["results"].values():
        assert line["same_answers"] == 1
        assert set(line["rows_per_second"]) == {"generate", "loop", "batch"}
        ratios = [ratio for name, ratio in line.items() if name.startswith("batch_over")]
        assert len(ratios) == 4
        for ratio in ratios:
            assert 0 < ratio["lower_quartile"] <= ratio["median"] <= ratio["upper_quartile"]
        assert 0 <= line["padding"]["planned"] <= line["padding"]["row_order"]
    padding = [line["padding"]["row_order"] for line in report["results"].values()]
    assert padding[1] > padding[0]  # prompts of one to four images differ more


def test_measure_notices_arms_that_answer_differently(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: of an arm that is at other work, the share of equal answers says so."""
    processor = benchmark.AutoProcessor.from_pretrained(benchmark.FORMS_CHECKPOINT)
    model = benchmark.AutoModelForImageTextToText.from_pretrained(benchmark.FORMS_CHECKPOINT).eval()
    arms = benchmark.Arms(model, processor, benchmark.write_rows(tmp_path, 2, 1), 2, 4)
    monkeypatch.setattr(arms, "loop", lambda: ["another answer"] * 2)
    assert benchmark.measure(arms, 2)["same_answers"] == 0

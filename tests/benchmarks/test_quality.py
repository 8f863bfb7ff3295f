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
"""The quality benchmark on one form of each kind: what its report holds, and how it names the best line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import quality

from dimple_hf import DimpleGenerationConfig
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.modeling.cache_dimple import CACHE_POLICIES
from dimple_hf.modeling.rules_dimple import SAMPLER_RULES

FIELDS = {
    "fields", "whole", "parses", "by_wording", "copy", "reverse", "shuffle", "passes", "tokens", "passes_per_token",
    "tokens_per_second", "right",
}  # fmt: skip


def line(whole: float, passes_per_token: float, right: list[int]) -> dict[str, Any]:
    """A line of results as far as tables and verdict read it."""
    return {
        "fields": 1.0, "whole": whole, "parses": 1.0, "by_wording": [whole, whole - 0.1], "copy": 1.0, "reverse": 0.5,
        "shuffle": 0.25, "passes": 2.0, "passes_per_token": passes_per_token, "tokens_per_second": 100.0,
        "right": right,
    }  # fmt: skip


def test_run_scores_each_line_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line takes minutes: what is in the file is not measured again."""
    monkeypatch.setattr(
        quality, "DECODINGS", {"reference": quality.DECODINGS["reference"], "Prophet": quality.DECODINGS["Prophet"]}
    )
    monkeypatch.setattr(quality, "NUM_WORDINGS", 2)
    path, figure = tmp_path / "new" / "quality.json", tmp_path / "quality.svg"
    arguments = ["--rows", "1", "--output", str(path), "--figure", str(figure)]
    report = quality.main(arguments)
    assert json.loads(path.read_text()) == report
    assert list(report["results"]) == [quality.REFERENCE, "Prophet"]
    for scores in report["results"].values():
        assert set(scores) == FIELDS
        assert len(scores["right"]) == 2 * quality.NUM_WORDINGS  # as text and as JSON
        assert sum(scores["right"]) / len(scores["right"]) == pytest.approx(scores["whole"])
        assert sum(scores["by_wording"]) / quality.NUM_WORDINGS == pytest.approx(scores["whole"])
    assert report["results"][quality.REFERENCE]["passes"] > report["results"]["Prophet"]["passes"]
    assert "<svg" in figure.read_text()
    assert "the fewest passes: **" in capsys.readouterr().out
    monkeypatch.setattr(quality, "measure", None)
    assert quality.main(arguments)["results"] == report["results"]
    with pytest.raises(SystemExit):
        quality.main([*arguments, "--rows", "2"])
    assert "--output must be a new file" in capsys.readouterr().err


def test_lines_cover_every_rule_and_policy_and_are_options_of_generate() -> None:
    """The line that is called the default is what the model of the package does."""
    lines = {name: options for family in quality.DECODINGS.values() for name, options in family.items()}
    configs = {name: DimpleGenerationConfig(**options) for name, options in lines.items()}
    assert {config.sampler_name for config in configs.values()} == set(SAMPLER_RULES)
    assert {config.with_defaults().cache_policy for config in configs.values()} == set(CACHE_POLICIES)
    shipped = DimpleGenerationConfig.from_pretrained(FORMS_CHECKPOINT)
    assert configs[quality.DEFAULT].rule() == shipped.rule()
    assert configs["threshold 0.9"].rule() != shipped.rule()  # control


def test_best_line_has_the_fewest_passes_of_those_without_loss() -> None:
    """Half a point below the reference is none; a hair more is."""
    results = {
        quality.REFERENCE: line(0.95, 1.0, [1, 1, 0]),
        "careful": line(0.96, 0.3, [1, 1, 1]),
        "just right": line(0.945, 0.1, [1, 0, 1]),
        "fast and wrong": line(0.9449, 0.05, [0, 0, 0]),
    }
    assert quality.best_without_loss(results) == "just right"
    assert "**just right**, 0.100 passes per token." in quality.verdict(results)
    results[quality.DEFAULT] = line(0.94, 0.2, [1, 1, 0])
    assert quality.verdict(results).endswith("The default, threshold 0.99: 0.200 and -1.0.")
    rows = quality.format_table(results).splitlines()
    assert "| +1.0 | 0, 1 |" in rows[3]  # lost, won
    assert "| -0.5 | 1, 1 | 10.0 | 100.0 % | 100.0 % | 50.0 % | 25.0 % | 2.00 |" in rows[4]


@pytest.mark.parametrize("name", ["rows", "batch-size"])
def test_numbers_below_one_are_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the model is loaded."""
    with pytest.raises(SystemExit):
        quality.main([f"--{name}", "0", "--output", str(tmp_path / "q.json")])
    assert f"--{name} must be at least 1 (got 0)" in capsys.readouterr().err

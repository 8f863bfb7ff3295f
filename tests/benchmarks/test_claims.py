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
"""The benchmark of the paper's claims at toy size: interrupted and resumed, and its page of known figures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import claims
import claims_data
import claims_report

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import DimpleDataCollator


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untrained")
    claims_data.write_untrained(path, seed=0)
    return path


def test_claims_row_is_hard_and_its_answer_fits_the_canvas(untrained: Path) -> None:
    """Easy forms told the ways to train hardly apart."""
    tokenizer = DimpleProcessor.from_pretrained(untrained).tokenizer
    lengths = set()
    for index in range(60):
        row = claims_data.claims_row("train", index)
        fields = json.loads(row["fields"])
        assert 3 <= len(fields) <= 5
        lengths.add(len(tokenizer.encode(row["answer"])))
    assert max(lengths) <= 34 < claims_data.ANSWER_LENGTH  # and padding that ends it
    assert max(lengths) > 28
    short = claims_data.short_rows("train", 5, tokenizer)
    assert len(short) == 5
    assert max(len(tokenizer.encode(row["answer"])) for row in short) < min(claims.LENGTHS)


def test_pool_gives_the_losses_of_the_images_themselves(untrained: Path, tmp_path: Path) -> None:
    """Encoding each image once must not change what is learned."""
    file = tmp_path / "pool.safetensors"
    claims_data.write_pool(file, untrained, num_images=5, batch_size=2)
    processor = DimpleProcessor.from_pretrained(untrained)
    model = DimpleForConditionalGeneration.from_pretrained(untrained).eval()
    pool = claims_data.Pool(file, untrained)
    assert len(pool) == 5
    encoded = claims_data.PoolCollator(processor)([pool[4], pool[0]])
    assert "pixel_values" not in encoded
    images = DimpleDataCollator(processor)([claims_data.claims_row("train", index) for index in (4, 0)])
    expected = model(**images)
    output = model(**encoded)
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.token_losses, expected.token_losses, rtol=1e-4, atol=1e-5)
    # Control: the images matter.
    encoded["mm_encoder_outputs"]["image"].pooler_output = encoded["mm_encoder_outputs"]["image"].pooler_output[::-1]
    assert not torch.allclose(model(**encoded).token_losses, expected.token_losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 1000])
def test_claims_stages_have_the_same_number_of_forward_passes_in_all(steps: int) -> None:
    """Ways that take more would compare nothing."""
    settings = claims.Settings(steps, batch_size=32, learning_rate=1e-3, pool=32, rows=2)
    names = []
    for way in claims.WAYS:
        stages = claims.stages(way, settings)
        assert sum(stage["max_steps"] * (2 if stage["name"] == "both" else 1) for stage in stages) == steps
        assert [stage["decay_ratio"] for stage in stages] == [0] * (len(stages) - 1) + [0.25]
        names.append([stage["name"] for stage in stages])
    two_stages = ["instruct", "diffusion"]
    assert names == [["diffusion"], ["instruct"], two_stages, two_stages[::-1], ["both"]]


def test_both_losses_in_one_step_are_their_mean(untrained: Path, tmp_path: Path) -> None:
    """Masks are drawn from torch's generator, so the same seed draws the same ones."""
    claims_data.write_pool(tmp_path / "pool.safetensors", untrained, num_images=2)
    pool = claims_data.Pool(tmp_path / "pool.safetensors", untrained)
    batch = claims_data.PoolCollator(DimpleProcessor.from_pretrained(untrained))([pool[0], pool[1]])
    model = DimpleForConditionalGeneration.from_pretrained(untrained).train()
    torch.manual_seed(0)
    causal, diffusion = (model(**batch, is_causal=is_causal).loss for is_causal in (True, False))
    torch.manual_seed(0)
    both = claims.BothLossesTrainer.compute_loss(None, model, batch)
    torch.testing.assert_close(both, (causal + diffusion) / 2)
    assert causal != diffusion  # control


@pytest.mark.slow
def test_claims_interrupted_goes_on_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours of training are at stake. Within a stage it is the recipe's own resuming, which has its tests."""
    for name, value in (("LENGTHS", (16,)), ("THRESHOLDS", (0.95,)), ("FIXED_STEPS", (1,)), ("CURVE_POINTS", 2)):
        monkeypatch.setattr(claims, name, value)
    output, docs = tmp_path / "claims.json", tmp_path / "docs"
    docs.mkdir()
    arguments = ["--seeds", "3", "--steps", "4", "--batch-size", "2", "--pool", "4", "--rows", "2"]
    arguments += ["--docs", str(docs), "--work-dir", str(tmp_path / "work"), "--output", str(output)]
    run_stage, trained, fail_at = claims.run_stage, [], "autoregressive_then_diffusion/diffusion"

    def train_or_fail(recipe: Any, plan: Any, *rest: Any) -> None:
        name = "/".join(plan.directory.parts[-2:])
        if name == fail_at:
            raise KeyboardInterrupt
        trained.append(name)
        run_stage(recipe, plan, *rest)

    monkeypatch.setattr(claims, "run_stage", train_or_fail)
    with pytest.raises(KeyboardInterrupt):
        claims.main(arguments)
    assert trained == ["diffusion/diffusion", "autoregressive/instruct", "autoregressive_then_diffusion/instruct"]
    first = json.loads(output.read_text())["runs"]["3"]
    assert list(first) == ["diffusion", "autoregressive"]
    assert not (docs / "results.md").exists()

    trained.clear()
    fail_at = ""
    second = claims.main(arguments)["runs"]["3"]
    assert trained == [
        "autoregressive_then_diffusion/diffusion",
        "diffusion_then_autoregressive/diffusion",
        "diffusion_then_autoregressive/instruct",
    ]
    assert list(second) == list(claims.WAYS)
    assert {name: second[name] for name in first} == first
    by_diffusion = {"default", "other_mode", "curve", "length", "threshold", "fixed", "left_to_right"}
    assert set(second["diffusion"]) == set(second["both_at_once"]) == by_diffusion
    assert second["diffusion"]["fixed"]["1"]["passes"] == 1
    assert set(second["autoregressive"]) == {"default", "other_mode", "curve"}
    # Checkpoints of both stages, counted from the beginning of the first.
    assert list(second["autoregressive_then_diffusion"]["curve"]) == ["1", "3", "4"]
    assert "Seeds 3: " in (docs / "results.md").read_text()

    monkeypatch.setattr(claims, "train", None)  # whoever trains or evaluates now fails
    assert claims.main(arguments)["runs"]["3"] == second
    with pytest.raises(ValueError, match="must hold figures of the same settings"):
        claims.main([*arguments, "--steps", "8"])


def known_report() -> dict[str, Any]:
    """Figures of two seeds that are easy to check."""

    def scores(share: float, passes: float) -> dict[str, float]:
        return {"fields": share, "whole": share / 2, "passes": passes}

    runs = {}
    for seed, share in (("0", 0.5), ("1", 0.75)):
        causal = {"default": scores(share, 9.0), "other_mode": scores(share, 2.0), "curve": {"5": scores(share, 9.0)}}
        by_diffusion = causal | {
            "default": scores(share, 2.0),
            "length": {"16": scores(share, 1.0), "64": scores(0.25, 1.0)},
            "threshold": {"0.5": scores(share, 1.5), "0.95": scores(share, 2.0)},
            "fixed": {"1": scores(0.1, 1.0), "16": scores(share, 16.0)},
            "left_to_right": scores(share, 15.0),
        }
        runs[seed] = {way: causal if way in claims_report.CAUSAL else by_diffusion for way in claims_report.TITLES}
    settings = {"steps": 10, "batch_size": 2, "pool": 20, "rows": 4}
    return {"command": "python benchmarks/claims.py", "settings": settings, "runs": runs}


def test_claims_report_writes_means_and_ranges_of_known_figures(tmp_path: Path) -> None:
    """0.5 and 0.75 have the mean 62.5 %; what is alike in all seeds has no range."""
    claims_report.write_report(known_report(), tmp_path)
    page = (tmp_path / "results.md").read_text()
    for line in (
        "| diffusion only | diffusion | 2 | 62.5 % (50.0 % to 75.0 %) | 31.2 % (25.0 % to 37.5 %) | 2.00 |",
        "| autoregressive only | token by token | 2 | 62.5 % (50.0 % to 75.0 %) | 31.2 % (25.0 % to 37.5 %) | 9.00 |",
        "| training | 16 positions | 64 positions |",
        "| diffusion only | 31.2 % (25.0 % to 37.5 %) | 12.5 % |",
        "| threshold 0.5 | 62.5 % (50.0 % to 75.0 %) | 31.2 % (25.0 % to 37.5 %) | 1.50 |",
        "| schedule, passes: 1 | 10.0 % | 5.0 % | 1.00 |",
    ):
        assert line in page
    figures = sorted((tmp_path / "figures").iterdir())
    assert [figure.name for figure in figures] == ["claims-curve.svg", "claims-decoding.svg", "claims-length.svg"]
    before = [figure.read_bytes() for figure in figures]
    assert all(b"<svg" in content for content in before)
    claims_report.write_report(known_report(), tmp_path)
    assert [figure.read_bytes() for figure in figures] == before  # so that only new figures are a change
    other = known_report()
    other["runs"]["0"]["diffusion"]["length"]["16"]["whole"] = 0.9
    claims_report.write_report(other, tmp_path)
    assert [figure.read_bytes() == content for figure, content in zip(figures, before, strict=True)] == [
        True,
        True,
        False,
    ]


def test_claims_report_of_seeds_that_are_not_done_says_what_there_is(tmp_path: Path) -> None:
    """The page can be written while the runs go on."""
    report = known_report()
    report["runs"] = {"0": {"diffusion": report["runs"]["0"]["diffusion"]}}
    claims_report.write_report(report, tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert "| diffusion only | diffusion | 1 | 50.0 % | 25.0 % | 2.00 |" in page
    assert "autoregressive only" not in page


def test_claims_report_keeps_what_stands_around_it(tmp_path: Path) -> None:
    """The page has other parts, which other programs and people write."""
    page = tmp_path / "results.md"
    page.write_text(f"# Mine\n\n{claims_report.BEGIN}\nold\n{claims_report.END}\n\n## Others\n")
    claims_report.write_report(known_report(), tmp_path)
    text = page.read_text()
    assert text.startswith(f"# Mine\n\n{claims_report.BEGIN}\n")
    assert text.endswith(f"{claims_report.END}\n\n## Others\n")
    assert "\nold\n" not in text
    page.write_text(f"{claims_report.BEGIN}\n")
    with pytest.raises(ValueError, match="must hold the lines"):
        claims_report.write_report(known_report(), tmp_path)
    assert page.read_text() == f"{claims_report.BEGIN}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ways", "diffusing"], "argument --ways: invalid choice: 'diffusing'"),
        (["--report-only", "--output", "missing.json"], "--output must be there for --report-only"),
        (["--steps", "3"], "--steps must be at least 4"),
        (["--pool", "31"], "--pool must be at least 32"),
    ],
)
def test_claims_refuses_before_any_work(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        claims.parse_arguments(arguments)
    assert message in capsys.readouterr().err

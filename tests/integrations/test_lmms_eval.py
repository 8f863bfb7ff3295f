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
"""Tests of the model for lmms-eval, in the real lmms-eval: its command, its evaluator, its entry points.

lmms-eval has a hundred dependencies, among them a torchvision that breaks a torch for CPUs, so it is no dependency of
the tests. These install it with the dozen that its core imports into an environment on top of this one: marked
`packaging`, and run by CI. What needs no lmms-eval is in `test_evaluation_settings.py`.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from environments import make_environment, pip_install
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.integrations.evaluation_settings import PRESETS

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms" / "lmms_eval"))

import forms_task
from forms_dataset import forms_row
from forms_evaluation import Answer, ask, score

CORE_REQUIREMENTS = (
    "aiohttp", "colorama", "evaluate", "loguru", "lxml", "numexpr", "portalocker", "protobuf", "pytablewriter",
    "python-dotenv", "pytz", "sacrebleu", "sentencepiece", "sniffio", "tenacity", "wcwidth", "zstandard",
)  # fmt: skip
"""What `lmms_eval.__main__` imports, the project's own dependencies left out."""
NUM_ROWS = 3 * len(forms_task.KINDS)


def run(python: Path, *arguments: str | Path, cwd: Path) -> str:
    """Runs Python and returns what it prints on stdout; shows stderr where it fails."""
    environment = os.environ | {"HF_DATASETS_CACHE": str(python.parents[1] / "datasets")}
    done = subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def python(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has lmms-eval, and from this environment all the rest."""
    below = Path(sysconfig.get_path("purelib"))
    python = make_environment(tmp_path_factory.mktemp("lmms_eval") / "venv", below)
    pip_install(python, *CORE_REQUIREMENTS)
    pip_install(python, "--no-deps", "lmms-eval")
    return python


@pytest.fixture(scope="module")
def forms_model() -> tuple[Any, Any]:
    """The small model of the package in float32, and its processor."""
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()
    return model, AutoProcessor.from_pretrained(FORMS_CHECKPOINT)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """The rows of the task, drawn by the project's own evaluation."""
    kinds, num_kinds = forms_task.KINDS, len(forms_task.KINDS)
    return [forms_row("test", number // num_kinds, kind=kinds[number % num_kinds]) for number in range(NUM_ROWS)]


def costs(answers: list[Answer]) -> dict[str, float]:
    """What lmms-eval's summary should say of answers of the project's own evaluation."""
    num_passes = sum(answer.num_passes for answer in answers)
    return {
        "avg_handwritten_forms/passes_per_answer": num_passes / len(answers),
        "avg_handwritten_forms/tokens_per_pass": sum(answer.num_tokens for answer in answers) / num_passes,
    }


def test_entry_point_names_the_manifest(repo_root: Path) -> None:
    """Without it lmms-eval does not know the model; the tests below load it."""
    (entry_point,) = entry_points(group="lmms_eval.models", name="dimple")
    assert entry_point.value == "dimple_hf.integrations.lmms_eval:MANIFEST"
    source = (repo_root / "src/dimple_hf/integrations/lmms_eval.py").read_text()
    (manifest,) = re.findall(r"^MANIFEST = ModelManifest\((.*?)^\)", source, re.MULTILINE | re.DOTALL)
    for kind, name in (("chat", "Dimple"), ("simple", "DimpleLikelihoods")):
        assert f'{kind}_class_path="dimple_hf.integrations.lmms_eval.{name}"' in manifest
        assert re.search(rf"^class {name}\(", source, re.MULTILINE)


@pytest.mark.packaging
@pytest.mark.timeout(900)
def test_command_of_the_documents_scores_as_the_projects_own_evaluation(
    python: Path, forms_model: tuple[Any, Any], rows: list[dict[str, Any]], repo_root: Path, tmp_path: Path
) -> None:
    """The same answers, so the same scores and costs, exactly; in batches of another size, too."""
    commands = re.findall(r"^lmms-eval (.*?[^\\])$", (repo_root / "docs/evaluation.md").read_text(), re.M | re.S)
    (arguments,) = [shlex.split(command.replace("\\\n", "")) for command in commands if "handwritten_forms" in command]
    arguments[arguments.index("--batch_size") + 1] = "4"
    shown = run(
        python, "-m", "lmms_eval", *arguments, "--limit", str(NUM_ROWS), "--log_samples", "--output_path", tmp_path,
        cwd=repo_root,
    )  # fmt: skip
    (samples_file,) = tmp_path.rglob("*_samples_handwritten_forms.jsonl")
    (results_file,) = tmp_path.rglob("*_results.json")
    samples = [json.loads(line) for line in samples_file.read_text().splitlines()]
    results = json.loads(results_file.read_text())

    answers = ask(*forms_model, rows, batch_size=7)
    assert [sample["filtered_resps"] for sample in samples] == [answer.text for answer in answers]
    assert [sample["target"] for sample in samples] == [row["answer"] for row in rows]
    own_scores = score(rows, answers)
    own_scores.pop("passes_per_token")
    scores = {name.split(",")[0]: value for name, value in results["results"]["handwritten_forms"].items()}
    assert {name: scores[name] for name in own_scores} == own_scores
    assert {name: results["throughput"][name] for name in costs(answers)} == costs(answers)
    assert "avg_handwritten_forms/tokens_per_pass" in shown  # in the table under the scores
    # controls: these are answers, not all of them the same, and other settings would have given other figures
    assert len({answer.text for answer in answers}) > NUM_ROWS // 2
    assert max(own_scores.values()) > 0
    assert costs(answers) != costs(ask(*forms_model, rows, batch_size=7, confidence_threshold=None))


@pytest.mark.packaging
@pytest.mark.timeout(900)
def test_presets_stop_strings_and_refusals_in_the_evaluator(
    python: Path,
    forms_model: tuple[Any, Any],
    rows: list[dict[str, Any]],
    repo_root: Path,
    parity_dir: Path,
    tmp_path: Path,
) -> None:
    """A preset is its options; a task's stop string ends answers; what is wrong is refused with its reason."""
    causal = tmp_path / "causal"
    causal.mkdir()
    config = json.loads((parity_dir / "checkpoint" / "config.json").read_text()) | {"full_attn_mask": False}
    (causal / "config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    script = Path(__file__).with_name("lmms_eval_session.py")
    shown = run(python, script, FORMS_CHECKPOINT, causal, tmp_path, str(NUM_ROWS), cwd=repo_root)
    report = json.loads(shown.splitlines()[-1])

    own = ask(*forms_model, rows, batch_size=5, **PRESETS["paper-8"])
    assert report["paper"]["answers"] == [answer.text for answer in own]
    assert report["paper"]["num_tokens"] == [answer.num_tokens for answer in own]
    assert costs(own).items() <= report["paper"]["throughput"].items()
    own = ask(*forms_model, rows, **PRESETS["confident-16"])
    assert report["cut"]["answers"] == [answer.text.split("e")[0] for answer in own]
    assert any("e" in answer.text for answer in own)  # control: something was cut
    assert "image_aspect_ratio mean nothing for Dimple" in shown

    # The likelier choice is the answer, so the sign is the one that lmms-eval's scoring takes.
    assert report["choices"]["accuracy"] == 1
    for (chosen, _), (other, _) in report["choices"]["values"]:
        assert 0 < chosen < other

    refusals = report["refusals"]
    assert "did you mean `confidence_threshold`?" in refusals["unknown"]
    assert "did you mean `pretrained`?" in refusals["argument"]
    assert refusals["batch_size"] == "ValueError: `batch_size` must be a positive integer (got 'auto')"
    assert "(got 'float12')" in refusals["dtype"]
    assert "`pretrained` must be a Dimple in bidirectional mode (got " in refusals["causal"]
    assert "`pretrained` must be a Dimple in bidirectional mode (got " in refusals["other"]
    assert "must be run without `--force_simple`" in refusals["simple"]
    assert refusals["rounds"].startswith("NotImplementedError: ")

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
"""Every snippet of the README and every example runs, on the parity checkpoint in place of the 7B model."""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from dimple_hf.cli.main import build_parser, main

PUBLISHED_MODEL = "rp-yu/Dimple-7B"


def python_snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def load_example(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_snippets_run_in_order(
    repo_root: Path, parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The snippets are one session: a reader who types them one after the other gets what the text promises."""
    shutil.copy(parity_dir / "tiny" / "images" / "0.png", tmp_path / "photo.png")
    shutil.copy(parity_dir / "tiny" / "images" / "1.png", tmp_path / "other.png")
    monkeypatch.chdir(tmp_path)
    snippets = python_snippets((repo_root / "README.md").read_text())
    assert len(snippets) == 2
    namespace: dict[str, object] = {}
    for snippet in snippets:
        code = snippet.replace(PUBLISHED_MODEL, str(parity_dir / "checkpoint"))
        exec(compile(code, "README.md", "exec"), namespace)
    decided, answer = capsys.readouterr().out.split("\n", 1)
    has_price, rows = map(float, decided.split())
    assert has_price > 0.9
    assert rows == pytest.approx(2, abs=0.2)  # four
    assert answer.strip()


def test_readme_snippets_name_the_published_model(repo_root: Path) -> None:
    """Control: were the name not there, the snippets would run on something else than what they are tested on."""
    assert PUBLISHED_MODEL in (repo_root / "README.md").read_text()


def test_structured_extraction_snippets_run_in_order(repo_root: Path, parity_dir: Path) -> None:
    """The page's promise holds with random weights: whatever they say, the answer is a receipt."""
    from transformers import AutoModel, AutoProcessor

    snippets = python_snippets((repo_root / "docs" / "structured_extraction.md").read_text())
    assert len(snippets) >= 5
    namespace: dict[str, Any] = {
        "processor": AutoProcessor.from_pretrained(parity_dir / "checkpoint"),
        "model": AutoModel.from_pretrained(parity_dir / "checkpoint"),
        "messages": [{"role": "user", "content": "Read the receipt."}],
    }
    namespace["model"].generation_config.confidence_threshold = 1e-3  # else it has as many steps as positions
    for snippet in snippets:
        exec(compile(snippet, "structured_extraction.md", "exec"), namespace)
    assert type(namespace["receipt"]) is namespace["Receipt"]
    assert int((namespace["batch"]["labels"] != -100).sum()) == 4  # a number of up to four digits


def test_structured_extraction_commands_run(
    repo_root: Path, parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command over a folder of images, and the example that draws its canvas."""
    page = (repo_root / "docs" / "structured_extraction.md").read_text()
    extract, draw = map(shlex.split, re.findall(r"^```bash\n(.*)\n```", page, flags=re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(parity_dir / "checkpoint", tmp_path / PUBLISHED_MODEL)
    (tmp_path / "receipt.json").write_text(json.dumps({"type": "integer", "minimum": 0, "maximum": 9}))
    (tmp_path / "scans").mkdir()
    shutil.copy(parity_dir / "tiny" / "images" / "0.png", tmp_path / "scans")
    assert main(extract[1:]) == 0
    (line,) = (tmp_path / "receipts.jsonl").read_text().splitlines()
    assert json.loads(line)["value"] in range(10)
    assert draw[0] == "python"
    load_example(repo_root / draw[1]).main(draw[2:])
    assert (tmp_path / "canvas.svg").read_text().startswith("<svg")


def test_readme_commands_run(repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The first two run in a checkout as they stand: nobody has files of their own yet."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (repo_root / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    commands = [command for command in commands if command[0] == "dimple-hf"]
    assert [command[1] for command in commands] == ["generate", "extract", "batch"]
    for command in commands:
        build_parser().parse_args(command[1:])
    assert main(commands[0][1:]) == 0
    assert capsys.readouterr().out.startswith("price ")
    monkeypatch.chdir(repo_root)
    assert main(commands[1][1:]) == 0
    truth = json.loads((repo_root / "examples" / "forms" / "sample.json").read_text())["fields"]
    assert json.loads(capsys.readouterr().out)["value"] == truth


def test_decoding_snippets_run_in_order(
    repo_root: Path, parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each choice of the page is made once, and every rule is among them."""
    from transformers import AutoModel, AutoProcessor

    from dimple_hf.modeling.rules_dimple import SAMPLER_RULES, FactorConfig

    monkeypatch.chdir(tmp_path)
    page = (repo_root / "docs" / "decoding.md").read_text()
    assert [name for name in SAMPLER_RULES if f'| `"{name}"` |' not in page] == []
    namespace: dict[str, object] = {
        "processor": AutoProcessor.from_pretrained(parity_dir / "checkpoint"),
        "model": AutoModel.from_pretrained(parity_dir / "checkpoint"),
        "messages": [{"role": "user", "content": "Read the receipt."}],
    }
    snippets = python_snippets(page)
    assert len(snippets) >= 9
    for snippet in snippets:
        exec(compile(snippet, "decoding.md", "exec"), namespace)
    assert namespace["config"].rule() == FactorConfig(confidence_factor=1.0)  # type: ignore[attr-defined]


def test_example_generate_prints_answer_and_passes(
    repo_root: Path, parity_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    """`make demo` is this call; the answer is what the model's tokens decode to."""
    example = load_example(repo_root / "examples" / "generate.py")
    image = parity_dir / "tiny" / "images" / "3.png"
    arguments = ["--model", str(parity_dir / "checkpoint"), "--image", str(image), "--max-new-tokens", "8"]
    answer = example.main(arguments)
    printed = capsys.readouterr().out
    assert "answer    " + answer.replace("\n", "\n          ") in printed
    assert "for 8 positions" in printed


def test_example_generate_with_missing_image_exits_with_a_message(
    repo_root: Path, parity_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    """A wrong path is said before a model of 15 GB is loaded."""
    example = load_example(repo_root / "examples" / "generate.py")
    with pytest.raises(SystemExit):
        example.main(["--model", str(parity_dir / "checkpoint"), "--image", "nowhere.png"])
    assert "--image must be a file (got nowhere.png)" in capsys.readouterr().err


def test_example_draws_the_animation_of_the_readme(repo_root: Path, tmp_path: Path) -> None:
    """A real run, as a file that XML readers take; each token is a mask first."""
    example = load_example(repo_root / "examples" / "draw_denoising.py")
    example.main([str(tmp_path / "run.svg"), "--confidence-threshold", "0.9"])
    root = ElementTree.parse(tmp_path / "run.svg").getroot()
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    assert names.count("animate") == 2 * (names.count("text") - 1) > 10
    committed = ElementTree.parse(repo_root / "docs" / "figures" / "denoising.svg").getroot()
    assert committed.get("aria-label", "").startswith("An answer is denoised in ")

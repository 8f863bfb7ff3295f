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
"""Every command of docs/commands.md runs as it stands there, in a directory that has what it names."""

import json
import re
import shlex
import shutil
import sys
import threading
from pathlib import Path

import pytest
import tiny_parts
import uvicorn

TRAINING = Path(__file__).resolve().parent.parent / "training"
sys.path.insert(0, str(TRAINING))

from recipe_run import STAGES, write_recipe  # noqa: E402

from dimple_hf.cli.main import COMMANDS, main  # noqa: E402

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "commands.md"

#: Command lines of the page; a line that ends in a backslash goes on in the next.
LINES = [
    line.strip()
    for block in re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
]

#: What each command leaves.
RESULTS = {
    "extract": "receipts.jsonl",
    "batch": "answers.jsonl",
    "decide": "decisions.jsonl",
    "calibrate": "calibrated/decision_calibration.json",
    "init": "untrained/config.json",
    "card": "my-model/README.md",
    "convert": "my-dimple/config.json",
}


@pytest.fixture
def here(tmp_path: Path, parity_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; models lie where a Hub id, taken for a path, leads to."""
    monkeypatch.chdir(tmp_path)
    for name in ("rp-yu/Dimple-7B", "my-model"):
        shutil.copytree(parity_dir / "checkpoint", tmp_path / name)
        options = tmp_path / name / "generation_config.json"  # else an answer has as many tokens as its canvas
        options.write_text(json.dumps(json.loads(options.read_text()) | {"max_new_tokens": 8}))
    (tmp_path / "receipts").mkdir()
    for name in ("photo.png", "receipts/1.png"):
        shutil.copy(parity_dir / "tiny" / "images" / "0.png", tmp_path / name)
    Path("receipt.json").write_text(json.dumps({"type": "integer", "minimum": 0, "maximum": 9}))
    questions = [{"type": "choice", "instructions": "What is it?", "choices": ["receipt", "form"]}]
    Path("decisions.json").write_text(json.dumps(questions))
    example = json.dumps({"text": "A form.", "questions": questions, "answers": ["form"]})
    Path("labelled.jsonl").write_text(f"{example}\n{example}\n")
    Path("scores.json").write_text(json.dumps({"text/fields": 0.97, "passes_per_token": 0.3}))
    Path("answers.csv").write_text("question,answer,image\nHow much?,Nine.,1.png\n")
    Path("questions.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Which?"}]}))
    # The page is served, and the command returns instead of waiting for Ctrl-C; so does the server of chat
    # completions, which runs in the main thread, where gradio's never does.
    monkeypatch.setattr("gradio.Blocks.block_thread", lambda page: page.close())
    serve, main_thread = uvicorn.Server.run, threading.main_thread()
    monkeypatch.setattr(
        "uvicorn.Server.run", lambda server: None if threading.current_thread() is main_thread else serve(server)
    )
    for owner in ("Qwen", "Dream-org"):
        Path(owner).mkdir()
    tiny_parts.write_qwen(tmp_path / "Qwen" / "Qwen2.5-VL-7B-Instruct")
    tiny_parts.write_dream(tmp_path / "Dream-org" / "Dream-v0-Instruct-7B")
    write_recipe(tmp_path, stages=[STAGES[0] | {"max_steps": 1}])
    return tmp_path


def test_page_describes_every_command_and_no_other() -> None:
    """A section with an example, and a row in the table, for each."""
    assert {shlex.split(line)[1] for line in LINES} == set(COMMANDS)
    text = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^## (.*)$", text, flags=re.MULTILINE)) == set(COMMANDS)
    assert set(re.findall(r"^\| \[`(\w+)`\]", text, flags=re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("line", LINES, ids=[" ".join(shlex.split(line)[1:3]) for line in LINES])
def test_command_of_the_page_runs(line: str, here: Path, capsys: pytest.CaptureFixture) -> None:
    """Not a character of it is changed."""
    program, *arguments = shlex.split(line)
    assert program == "dimple-hf"
    assert main(arguments) == 0, capsys.readouterr().err
    result = RESULTS.get(arguments[0])
    assert result is None or Path(result).stat().st_size > 0

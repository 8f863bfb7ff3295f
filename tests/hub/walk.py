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
"""Types in sections of `docs/walk.md` from top to bottom, in a process of its own. Run by `test_walk`.

Usage: walk.py DIRECTORY PAGE RESULT HEADING... The result (JSON) has what each section printed, and the tokens that
the model of the page answers to its last question, with the adapter and without it.
"""

import contextlib
import io
import json
import os
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from session import NEW_TOKENS, read_sections
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.cli.main import main
from dimple_hf.training import load_adapter

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


#: What makes the page's commands short.
SHORTER = {
    "draw_shapes.py": ["--rows", "64", "--held-out", "8"],
    "train_shapes.py": ["--steps", "8"],
}


def run_command(line: str) -> None:
    """Runs a command line of the page, in this process; packages are installed already. A loop runs once."""
    if loop := re.fullmatch(r"for (\w+) in (\w+) .*; do (.*); done", line):
        return run_command(loop[3].replace(f"${loop[1]}", loop[2]))
    program, *arguments = shlex.split(line)
    if program == "dimple-hf":
        assert main(arguments) == 0
    elif program == "python":
        # Runs of later seeds are not there.
        arguments = [name for name in arguments if not name.startswith("runs/shapes-") or name.endswith("-0")]
        arguments += SHORTER.get(Path(arguments[0]).name, [])
        script = EXAMPLES / Path(arguments[0]).relative_to("examples")
        sys.argv = [str(script), *arguments[1:]]
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
    else:
        assert line.startswith("pip install "), line


def run_section(page: Path, heading: str, namespace: dict[str, Any]) -> str:
    """Runs the snippets of a section, Python and commands, in their order; returns what they print."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for language, snippet in read_sections(page)[heading]:
            if language == "python":
                exec(compile(snippet, f"{page.name}, {heading}", "exec"), namespace)
            elif language == "bash":
                for line in snippet.splitlines():
                    run_command(line)
    return printed.getvalue()


def answer(model: Any, processor: Any) -> list[int]:
    """Tokens of the answer to the page's last question."""
    content = [
        {"type": "image", "path": "my-shapes/held_out-0000.png"},
        {"type": "text", "text": "What is it?"},
    ]
    inputs = processor.apply_chat_template([{"role": "user", "content": content}], **NEW_TOKENS)
    return model.eval().generate(**inputs, max_new_tokens=16)[0, inputs["input_ids"].shape[1] :].tolist()


torch.set_num_threads(1)
os.chdir(sys.argv[1])
page, result = Path(sys.argv[2]), Path(sys.argv[3])
namespace: dict[str, Any] = {}
report: dict[str, Any] = {"printed": {heading: run_section(page, heading, namespace) for heading in sys.argv[4:]}}
if "model" not in namespace:  # trained by a command
    base = AutoModelForImageTextToText.from_pretrained("me/dimple-forms", dtype=torch.float32)
    namespace["model"] = load_adapter(base, "runs/shapes")
    namespace["processor"] = AutoProcessor.from_pretrained("runs/shapes")
model, processor = namespace["model"], namespace["processor"]
report["adapted"] = answer(model, processor)
with model.disable_adapter():
    report["base"] = answer(model, processor)
if "steps" in namespace:
    report["losses"] = [entry["eval_loss"] for entry in namespace["steps"] if "eval_loss" in entry]
result.write_text(json.dumps(report))

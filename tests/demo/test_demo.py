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
"""`dimple-hf demo` without a browser: it starts, serves, asks nobody for anything, stops on Ctrl-C and refuses kindly.

What people do on the page is tested in `test_demo_page`, in a real Chromium.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.cli.address import refuse_taken_address
from dimple_hf.cli.main import build_parser, main
from dimple_hf.demo.answers import AnswerState
from dimple_hf.demo.canvas import Run
from dimple_hf.demo.page import answer_markdown, build_page, status_text

#: Runs the command and says on stderr with whom it talks: every look-up of a name and every connection.
COMMAND = """
import signal
import sys
def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.connect"):
        print(event, args, file=sys.stderr)
sys.addaudithook(watch)
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from dimple_hf.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """The command in a process of its own, and where its page is; killed if it has not ended."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", COMMAND, "demo", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "GRADIO_ANALYTICS_ENABLED": "True"},
    )  # fmt: skip
    watchdog = threading.Timer(240, process.kill)
    watchdog.start()
    try:
        line = next(line for line in process.stdout or () if "http://" in line)
        yield process, line.split()[-1]
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


@pytest.mark.slow
def test_demo_serves_the_page_to_this_machine_alone_and_stops_on_interrupt() -> None:
    """No other machine is asked for anything, nor can one reach the page; statistics are off whatever was set."""
    with running() as (process, url):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+", url)
        with urllib.request.urlopen(url, timeout=30) as response:
            html = response.read().decode()
        config = json.loads(urllib.request.urlopen(f"{url}/config", timeout=30).read())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0
    assert "gradio" in html
    assert config["title"] == "Dimple"
    assert config["analytics_enabled"] is False
    labels = {part["props"].get("label") for part in config["components"]}
    assert {"Image", "Question", "Form of the answer", "Confidence threshold", "Answer length", "Chat"} <= labels
    contacts = [line for line in errors.splitlines() if line.startswith("socket.")]
    assert contacts  # control: gradio asks its own server whether it is there
    assert [line for line in contacts if "127.0.0.1" not in line and "localhost" not in line] == []
    assert "Traceback" not in errors
    assert "share=True" not in errors


def test_demo_refuses_an_address_that_is_none_or_taken(capsys: pytest.CaptureFixture) -> None:
    """One line, and no trace, before anything is loaded."""
    assert main(["demo", "--port", "70000", "--model", "nowhere"]) == 1
    assert "`--port` must lie between 1 and 65535 (got 70000)" in capsys.readouterr().err
    assert main(["demo", "--host", "203.0.113.9", "--model", "nowhere"]) == 1  # reserved: never this machine's
    assert "demo: nothing can listen at 203.0.113.9: Cannot assign" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["demo", "--port", str(port), "--model", "nowhere"]) == 1
    assert f"nothing can listen at 127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err
    refuse_taken_address("127.0.0.1", port)  # control: it is free again
    refuse_taken_address("localhost", None)


def test_demo_without_gradio_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The extra is named, before a model is loaded."""
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", "nowhere"]) == 1
    assert "pip install 'dimple_hf[demo]'" in capsys.readouterr().err


def test_page_of_a_causal_model_is_refused() -> None:
    """It writes from left to right: there is no canvas to be watched."""
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT)
    assert build_page(model, processor, "small").title == "Dimple"  # control
    model.config.full_attn_mask = False
    with pytest.raises(ValueError, match="`model` must be in bidirectional mode"):
        build_page(model, processor, "small")


def state(**changes: Any) -> AnswerState:
    runs = [Run("ab", 2, "text", 1), Run("░", 1, "mask", None)]
    return AnswerState(**({"runs": runs, "step": 1, "num_passes": 1, "seconds": 0.125} | changes))


def test_status_counts_positions_on_the_way_and_passes_at_the_end() -> None:
    """Passes and time are what the page is about."""
    assert status_text(state()) == "1 forward pass, 2 of 3 positions unmasked, 0.12 s"
    assert status_text(state(text="ab", num_passes=2)) == "Done: 2 forward passes for 3 positions, 0.12 s"


def test_chat_shows_the_text_the_json_or_what_was_decided(tmp_path: Path) -> None:
    """JSON is rendered as JSON, dates included; an empty answer is said to be one."""
    assert answer_markdown(state(text="a<b")) == "a<b"
    assert answer_markdown(state(text="")) == "(an empty answer)"
    assert answer_markdown(state()) == "ab░ (stopped)"
    assert answer_markdown(state(text="x", value={"é": 1})) == '```json\n{\n  "é": 1\n}\n```'
    assert json.loads(answer_markdown(state(text="x", value=False))[8:-4]) is False


def test_page_of_the_documentation_runs(repo_root: Path, capsys: pytest.CaptureFixture) -> None:
    """Its snippets, in order, and its command lines, as far as their arguments."""
    text = (repo_root / "docs" / "demo.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {}
    snippets = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    try:
        for snippet in snippets:
            exec(compile(snippet, "demo.md", "exec"), namespace)
        with urllib.request.urlopen(namespace["url"], timeout=30) as response:
            assert response.status == 200
    finally:
        namespace["page"].close(verbose=False)
    printed = capsys.readouterr().out
    assert f"{namespace['state'].num_passes} 64/64" in printed
    assert printed.endswith(namespace["state"].text + "\n")
    options = re.findall(r"`(--[^`]+)`", text)
    assert "--host 0.0.0.0 --port 8080" in options
    for line in options:
        assert build_parser().parse_args(["demo", *line.split()]).command == "demo"

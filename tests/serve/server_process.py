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
"""Chats about images that differ from each other; the server's process and the images are the benchmark's."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from launcher import Launcher
from serve_load import QUESTIONS, ServerProcess, data_url, noise_image

from dimple_hf.checkpoints import FORMS_CHECKPOINT

__all__ = [
    "LETTERS",
    "QUESTIONS",
    "ForkedServer",
    "ServerProcess",
    "body",
    "chat",
    "data_url",
    "messages",
    "noise_image",
    "own_answer",
    "slow_checkpoint",
]

#: Under it an answer of the slow checkpoint takes 80 forward passes.
LETTERS = {"type": "string", "pattern": "^[a-z]{80}$", "x-max-tokens": 80}


class ForkedProcess:
    """A process of a [`Launcher`], with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, launcher: Launcher, script: Path, *arguments: str):
        self.launcher, self.returncode = launcher, None
        (self.pid,) = launcher.start(list(arguments), script=script)

    def poll(self) -> int | None:
        if self.returncode is None:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return self.wait() if state == "Z" else None  # ended, and not yet waited for
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; pytest ends a test that waits too long."""
        if self.returncode is None:
            self.returncode = self.launcher.wait(self.pid)
        return self.returncode

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)


class ForkedServer(ServerProcess):
    """A [`ServerProcess`] without the seconds that imports take. Its log is in a file of `folder`."""

    def __init__(self, folder: Path, *arguments: str):
        self.log = folder / "log.txt"
        script = Path(__file__).with_name("forked_serve.py")
        self.process = ForkedProcess(Launcher(self.log), script, "serve", "--port", "0", *arguments)
        while not (found := re.search(r"running on (http://\S+)\s", "".join(self.lines))):
            if self.process.poll() is not None:
                raise RuntimeError("".join(self.lines))
            time.sleep(0.02)
        self.url = found[1]

    @property
    def lines(self) -> list[str]:
        return self.log.read_text().splitlines(keepends=True) if self.log.exists() else []


def slow_checkpoint(folder: Path) -> Path:
    """A copy of the small model that commits one position a step, however confident it is."""
    shutil.copytree(FORMS_CHECKPOINT, folder)
    options = json.loads((folder / "generation_config.json").read_text()) | {"confidence_threshold": None}
    (folder / "generation_config.json").write_text(json.dumps(options))
    return folder


def messages(seed: int) -> list[dict[str, Any]]:
    """A chat about an image, as clients send it."""
    url = {"type": "image_url", "image_url": {"url": data_url(noise_image(seed))}}
    return [{"role": "user", "content": [url, {"type": "text", "text": QUESTIONS[seed % len(QUESTIONS)]}]}]


def chat(seed: int) -> list[dict[str, Any]]:
    """The same chat, as the processor takes it."""
    content = [
        {"type": "image", "image": noise_image(seed)},
        {"type": "text", "text": QUESTIONS[seed % len(QUESTIONS)]},
    ]
    return [{"role": "user", "content": content}]


def body(**changes: Any) -> bytes:
    """The body of a request without images."""
    return json.dumps({"model": "forms", "messages": [{"role": "user", "content": "Hello."}]} | changes).encode()


def own_answer(
    model: Any, processor: Any, conversation: list[dict[str, Any]], prior: Any = None, **options: Any
) -> str:
    """What `generate` answers to a chat alone."""
    extra = {} if prior is None else {"structure_prior": prior}
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **extra
    )
    output = model.generate(**inputs, **options)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

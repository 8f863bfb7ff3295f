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
"""A server in a process of its own, and chats about pictures that differ from each other.

Imported by the tests of the server and by `benchmarks/serve_load.py`'s.
"""

import base64
import io
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

SAMPLE = Path(__file__).resolve().parents[3] / "examples" / "forms" / "sample.png"

QUESTIONS = (
    "Give the form as JSON.",
    "What does the form say?",
    "Read the floor.",
    "How many rows does the form have?",
)


class ServerProcess:
    """`dimple-hf serve` with these arguments, on a free port; its log is kept in `lines`."""

    def __init__(self, *arguments: str):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dimple_hf.cli.main", "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.url = ""
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                self.url = found[1]
                break
        assert self.url, "".join(self.lines)
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()

    def stop(self) -> int:
        """Asks it to end, as a supervisor does, and returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=120)
        finally:
            self.process.kill()

    def resident_bytes(self) -> int:
        """Memory that the process has."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * 4096


def picture(seed: int) -> PIL.Image.Image:
    """The sample form with noise, moved a little: the model answers it in its own way."""
    random = np.random.default_rng(seed)
    pixels = np.asarray(PIL.Image.open(SAMPLE).convert("L")).astype(int)
    pixels = np.clip(pixels + random.integers(-60, 60, pixels.shape), 0, 255).astype(np.uint8)
    return PIL.Image.fromarray(np.roll(pixels, int(random.integers(-8, 8)), axis=int(random.integers(0, 2))))


def data_url(image: PIL.Image.Image, kind: str = "png") -> str:
    """A picture as clients send it."""
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def messages(seed: int) -> list[dict[str, Any]]:
    """A chat about a picture, as clients send it."""
    url = {"type": "image_url", "image_url": {"url": data_url(picture(seed))}}
    return [{"role": "user", "content": [url, {"type": "text", "text": QUESTIONS[seed % len(QUESTIONS)]}]}]


def chat(seed: int) -> list[dict[str, Any]]:
    """The same chat, as the processor takes it."""
    content = [{"type": "image", "image": picture(seed)}, {"type": "text", "text": QUESTIONS[seed % len(QUESTIONS)]}]
    return [{"role": "user", "content": content}]


def body(**changes: Any) -> bytes:
    """The body of a request without pictures."""
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

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
"""What the tests of text and images share: the parts of the released layout, its images, and a web server.

Used by pytest itself; tests take the fixtures by name.
"""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import PIL.Image
import pytest

from dimple_hf.processing import DimpleImageProcessor, DimpleProcessor, DimpleTokenizer


@pytest.fixture
def tokenizer(parity_dir: Path) -> DimpleTokenizer:
    """The toy tokenizer, from files as upstream writes them: 420 tokens and 9 added ones."""
    return DimpleTokenizer.from_pretrained(parity_dir / "tokenizer")


@pytest.fixture
def image_processor(parity_dir: Path) -> DimpleImageProcessor:
    """An image processor from a file as upstream writes it: 784 to 50176 pixels, so that no image is large."""
    return DimpleImageProcessor.from_pretrained(parity_dir / "tiny")


@pytest.fixture
def processor(parity_dir: Path) -> DimpleProcessor:
    """A processor from a directory as upstream writes it."""
    return DimpleProcessor.from_pretrained(parity_dir / "tokenizer")


@pytest.fixture(scope="session")
def image_paths(parity_dir: Path) -> list[Path]:
    """The five test images; they give 4, 15, 8, 64 and 33 image tokens."""
    return [parity_dir / "tiny" / "images" / f"{index}.png" for index in range(5)]


@pytest.fixture
def images(image_paths: list[Path]) -> list[PIL.Image.Image]:
    """The five test images, opened and in memory."""
    opened = []
    for path in image_paths:
        with PIL.Image.open(path) as image:
            image.load()
            opened.append(image)
    return opened


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """A web server on this machine: its address, and its pages (path -> status and body), to be filled by the test."""
    pages: dict[str, tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = pages.get(self.path, (404, b"<html>not here</html>"))
            if self.headers["User-Agent"].startswith("Python"):  # as large hosts of images do
                status = 403
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", pages
    server.shutdown()
    thread.join()
    server.server_close()

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
"""Images of requests: what is refused before anything is decoded, and what is fetched from where."""

import base64
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import PIL.Image
import pytest
from serve_load import png_bomb
from server_process import data_url, noise_image

from dimple_hf.serve import chat as chat_module
from dimple_hf.serve import fetching
from dimple_hf.serve.chat import ChatCompletions
from dimple_hf.serve.fetching import fetch, is_public, public_address
from dimple_hf.serve.images import data_url_bytes, read_images
from dimple_hf.serve.limits import Limits, RefusedRequest


def test_images_of_every_format_are_read_as_they_are() -> None:
    """Lossless ones exactly, so that the model sees what the client sent."""
    image = noise_image(0).convert("RGB")
    read = read_images([data_url(image, kind) for kind in ("png", "jpeg", "webp", "gif")], {}, Limits())
    assert [one.size for one in read] == [image.size] * 4
    assert np.array_equal(np.asarray(read[0]), np.asarray(image))


def test_base64_in_lines_is_read() -> None:
    """As the `base64` command and mails write it."""
    url = data_url(noise_image(0))
    head, _, text = url.partition(",")
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    assert len(lines) > len(text)
    assert data_url_bytes(f"{head}, {lines}\n", 10**6) == data_url_bytes(url, 10**6)


def test_decompression_bombs_are_refused_undecoded() -> None:
    """By the header: nothing of the size that it announces is ever in memory."""
    for side in (12_000, 30_000):  # 144 million pixels, 432 MB; beyond what Pillow itself opens
        url = "data:image/png;base64," + base64.b64encode(png_bomb(side)).decode()
        tracemalloc.start()
        with pytest.raises(RefusedRequest, match="at most 16777216 pixels"):
            read_images([url], {}, Limits())
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


def test_many_small_images_count_together() -> None:
    """A thousand files of a kilobyte would else be gigabytes."""
    url = data_url(PIL.Image.new("RGB", (100, 100)))
    limits = Limits(max_image_pixels=25_000)
    assert len(read_images([url] * 2, {}, limits)) == 2
    with pytest.raises(RefusedRequest, match=r"at most 5000 pixels .*at most 25000 pixels together"):
        read_images([url] * 3, {}, limits)
    size = len(data_url_bytes(url, 10_000))
    with pytest.raises(RefusedRequest, match="MiB together"):
        read_images([url] * 3, {}, Limits(max_image_bytes=3 * size - 1))
    assert len(read_images([url] * 3, {}, Limits(max_image_bytes=3 * size))) == 3
    with pytest.raises(RefusedRequest, match="MiB together"):
        read_images(["http://a"], {"http://a": bytes(11)}, Limits(max_image_bytes=10))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "must be a URL such as data:image"),
        ("/etc/passwd", "must be a URL such as data:image"),
        ("data:text/plain;base64,AAAA", "must be a URL such as data:image"),
        ("data:image/png,AAAA", "must be a URL such as data:image"),
        ("data:image/png;base64,A*A=", "must be base64"),
        ("data:image/png;base64,AAAA", "must be a PNG, JPEG, WEBP, GIF file"),
        ("data:image/png;base64,", "must be a PNG, JPEG, WEBP, GIF file"),
    ],
)
def test_what_is_no_image_is_refused(url: str, reason: str) -> None:
    with pytest.raises(RefusedRequest, match=reason):
        read_images([url], {}, Limits())


def test_images_of_other_formats_and_broken_ones_are_refused() -> None:
    """Pillow has readers that run programs; and a file may be whole at its head only."""
    with pytest.raises(RefusedRequest, match="must be a PNG"):
        read_images([data_url(noise_image(0), "bmp")], {}, Limits())
    head, data = data_url(noise_image(0)).split(",")
    with pytest.raises(RefusedRequest, match="must be a readable image"):
        read_images([f"{head},{data[: len(data) // 8 * 4]}"], {}, Limits())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "192.0.2.1", "::1", "::", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public(address: str) -> None:
    """Neither this machine nor its network, however they are written."""
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111"])
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1", "127.1"])
def test_names_of_this_machine_are_resolved_and_refused(host: str) -> None:
    """What counts is the address, not how it is written."""
    with pytest.raises(PermissionError, match="private"):
        anyio.run(public_address, host, 80)


class Files(BaseHTTPRequestHandler):
    """An image, a loop, a redirect out of HTTP, one to another name, and a file that never ends."""

    protocol_version = "HTTP/1.1"
    data = b"image"

    def do_GET(self) -> None:
        name = self.path.strip("/")
        targets = {
            "moved": "/image",
            "loop": "/loop",
            "file": "file:///etc/passwd",
            "elsewhere": "http://private.test/",
        }
        if name in targets:
            self.send_response(302)
            self.send_header("Location", targets[name])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if name in ("image", "slow") else 404)
        self.send_header("Content-Length", str(len(self.data) if name != "slow" else 10**9))
        self.end_headers()
        self.wfile.write(self.data)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this machine, where `image.test` leads to. Its address counts as public, that of no other."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    async def resolved(host: str, port: int, **kwargs: Any) -> list[Any]:
        lookups.append(host)
        return [(None, None, None, "", ("127.0.0.1" if host == "image.test" else "127.0.0.2", port))]

    lookups.clear()
    monkeypatch.setattr(fetching.anyio, "getaddrinfo", resolved)
    monkeypatch.setattr(fetching, "is_public", lambda found: found == "127.0.0.1")
    yield f"http://image.test:{server.server_port}"
    server.shutdown()
    server.server_close()


lookups: list[str] = []


def test_fetch_connects_to_the_address_that_it_checked(address: str) -> None:
    """The name is asked once, so that it cannot mean another address a moment later; redirects are followed."""
    assert anyio.run(fetch, f"{address}/image", 100) == b"image"
    assert lookups == ["image.test"]
    assert anyio.run(fetch, f"{address}/moved", 100) == b"image"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("elsewhere", "it is private"),
        ("file", "unsupported|Unsupported|protocol"),
        ("loop", "more than 5 times"),
        ("nothing", "status 404"),
    ],
)
def test_fetch_refuses_what_leads_elsewhere(address: str, path: str, reason: str) -> None:
    with pytest.raises(RefusedRequest, match=reason):
        anyio.run(fetch, f"{address}/{path}", 100)


def test_fetch_is_bounded_in_bytes_and_seconds(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RefusedRequest, match="MiB together"):
        anyio.run(fetch, f"{address}/image", 4)
    monkeypatch.setattr(fetching, "FETCH_SECONDS", 0.5)
    with pytest.raises(RefusedRequest, match="too long"):
        anyio.run(fetch, f"{address}/slow", 100)


def test_fetched_images_of_a_request_share_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each download may take what the ones before it have left; one that comes twice is downloaded once."""
    bounds = []

    async def counted(url: str, max_bytes: int) -> bytes:
        bounds.append(max_bytes)
        return bytes(300)

    monkeypatch.setattr(chat_module, "fetch", counted)
    urls = ["http://a", "https://b", "data:image/png;base64,AAAA", "http://a", "http://c"]
    request = SimpleNamespace(image_urls=lambda: urls)
    chat = ChatCompletions("m", *[SimpleNamespace()] * 2, Limits(max_image_bytes=1000, max_images=5), None, True)
    assert list(anyio.run(chat.fetch_images, request)) == ["http://a", "https://b", "http://c"]
    assert bounds == [1000, 700, 400]
    with pytest.raises(RefusedRequest, match=r"at most 5 images \(got 6\)"):
        anyio.run(chat.fetch_images, SimpleNamespace(image_urls=lambda: [*urls, "http://d"]))


@pytest.mark.parametrize("url", ["http://[", "http://", "https://image.test:99999/", "http://a b/"])
def test_fetch_refuses_urls_that_are_none(url: str) -> None:
    with pytest.raises(RefusedRequest):
        anyio.run(fetch, url, 100)

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
"""The image opener: every source, bounds that hold before decoding, and errors that name the file."""

import base64
import io
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dimple_hf.data.images import FORMATS, WEB_FORMATS, open_image

MAX_PIXELS = PIL.Image.MAX_IMAGE_PIXELS

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def file_of(image: PIL.Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_header(side: int) -> bytes:
    """A PNG file of a few bytes whose header announces `side` x `side` pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_open_image_takes_every_source(tmp_path: Path) -> None:
    """The same pixels, however the image is handed in."""
    image = PIL.Image.fromarray(PIXELS)
    data = file_of(image)
    path = tmp_path / "image.png"
    path.write_bytes(data)
    encoded = base64.b64encode(data).decode()
    for source in (data, path, str(path), path.as_uri(), f"data:image/png;base64,{encoded}", encoded, image):
        assert np.array_equal(np.asarray(open_image(source)), PIXELS)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("AVIF", "HEIF")])
def test_open_image_reads_the_common_formats(kind: str) -> None:
    assert open_image(file_of(PIL.Image.fromarray(PIXELS), kind)).size == (12, 8)


@pytest.mark.parametrize("kind", ["bmp", "tiff", "ppm", "eps"])
def test_open_image_with_formats_refuses_others(kind: str) -> None:
    """Pillow has readers that run programs."""
    with pytest.raises(ValueError, match=r"the image of \d+ bytes must be a PNG, JPEG, WEBP, GIF file"):
        open_image(file_of(PIL.Image.fromarray(PIXELS), kind), formats=WEB_FORMATS)


def test_open_image_turns_images_upright() -> None:
    """Telephones write images lying on their side. An image that was opened already is turned too, but only once."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    data = file_of(PIL.Image.fromarray(PIXELS), exif=exif)
    upright = open_image(data)
    assert upright.size == (8, 12)
    assert open_image(PIL.Image.open(io.BytesIO(data))).size == (8, 12)
    assert open_image(upright).size == (8, 12)
    assert open_image(file_of(PIL.Image.fromarray(PIXELS))).size == (12, 8)  # control


def test_open_image_keeps_16_bit_grey() -> None:
    """`convert("RGB")` of Pillow turns it white."""
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    assert np.array_equal(np.asarray(open_image(file_of(PIL.Image.fromarray(grey))).convert("L")), grey // 257)


def test_open_image_refuses_too_many_pixels_before_decoding() -> None:
    """By the header: nothing of the size that it announces is ever in memory."""
    tracemalloc.start()
    for side in (9_460, 30_000):  # just above our bound; beyond what Pillow itself opens
        with pytest.raises(ValueError, match=f"at most {MAX_PIXELS} pixels"):
            open_image(png_header(side))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    data = file_of(PIL.Image.fromarray(PIXELS))
    assert open_image(data, max_pixels=96).size == (12, 8)
    with pytest.raises(ValueError, match=r"at most 95 pixels \(it has 12 x 8 pixels\)"):
        open_image(data, max_pixels=95)
    with pytest.raises(ValueError, match="at most 95 pixels"):
        open_image(PIL.Image.fromarray(PIXELS), max_pixels=95)


@pytest.mark.parametrize("kind", ["jpeg", "mpo"])
def test_open_image_bounds_the_scans_of_a_jpeg_file(kind: str) -> None:
    """Each scan goes over all pixels: a small file, and minutes of work. MPO is what cameras make of JPEG."""
    image = PIL.Image.fromarray(PIXELS)
    options = {"save_all": True, "append_images": [image]} if kind == "mpo" else {"progressive": True}
    data = file_of(image, kind, **options)
    scans = data.count(b"\xff\xda")
    last = data[data.rfind(b"\xff\xda") : -2]
    assert open_image(data[:-2] + last * (100 - scans) + data[-2:]).size == (12, 8)
    with pytest.raises(ValueError, match="at most 100 scans, it has 101"):
        open_image(data[:-2] + last * (101 - scans) + data[-2:])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/a.png", r"the image '/nowhere/a.png' must be a readable image \(there is no such file"),
        ("/", r"the image '/' must be a readable image \(it is not a regular file\)"),
        (__file__, r"the image '.*test_images.py' must be a PNG"),
        ("data:image/png;base64,A*A=", "the image 'data:image/png;base64,A"),
        (b"", "the image of 0 bytes must be a PNG"),
        (file_of(PIL.Image.fromarray(PIXELS))[:-60], r"the image of \d+ bytes must be a readable image"),
        (PIL.Image.new("F", (2, 2)), "the image must be a readable image .mode 'F'"),
        (PIL.Image.new("RGB", (0, 2)), "it has 0 x 2 pixels"),
        (5, r"the image must be a path, a URL, base64, bytes or a Pillow image \(got int\)"),
    ],
)
def test_open_image_names_the_file_and_the_reason(source: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_image(source)
    long_source = "A" * 100_000
    with pytest.raises(ValueError, match="the image") as caught:
        open_image(long_source)
    assert len(str(caught.value)) < 300

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
"""300 hostile image files: each is refused in one line that names it, or opened; in time and in memory."""

import io
import random
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
from memory import PeakMemory

from dimple_hf.processing.image_opening_dimple import open_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
NUM_FILES = 300


def good_files() -> list[bytes]:
    """A file of each format."""
    image = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    files = []
    for name in FORMATS:
        if name == "AVIF" and name not in PIL.Image.SAVE:
            continue
        file = io.BytesIO()
        image.save(file, name)
        files.append(file.getvalue())
    return files


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def hostile_files() -> list[bytes]:
    """Cut, flipped, spliced and lying files; what other programs would run; and what unpacks to gigabytes."""
    PIL.Image.init()
    draw, good = random.Random(0), good_files()
    signature, end = b"\x89PNG\r\n\x1a\n", png_chunk(b"IEND", b"")
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 6, 0, 0, 0)
    files = [
        b"", b"\0" * 100, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(id) system\n", b"<svg/>", b"<html>",
        signature + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 6, 0, 0, 0)) + end,
        signature + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + end,
        signature + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
        + png_chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(200 << 20))) + end,
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0,", b"P6 99999 99999 255\n", b"BM" + b"\xff" * 60,
        b"II*\0" + b"\xff" * 60,
    ]  # fmt: skip
    while len(files) < NUM_FILES:
        data = bytearray(draw.choice(good))
        match draw.randrange(4):
            case 0:
                del data[draw.randrange(len(data)) :]
            case 1:
                for _ in range(draw.randrange(1, 30)):
                    data[draw.randrange(min(len(data), draw.choice([64, 10_000])))] = draw.randrange(256)
            case 2:
                data = data[: draw.randrange(len(data))] + bytearray(draw.choice(good))
            case 3:
                start = draw.randrange(len(data))
                data[start : start + draw.randrange(1, 40)] = draw.randbytes(draw.randrange(40))
        files.append(bytes(data))
    return files


def test_hostile_images_are_refused_by_name_or_opened(tmp_path: Path) -> None:
    """None raises anything else, takes ten seconds, or two gigabytes."""
    opened = 0
    with PeakMemory() as peak:
        for number, data in enumerate(hostile_files()):
            path = tmp_path / f"{number}.img"
            path.write_bytes(data)
            start = time.process_time()
            refusal = None
            try:
                open_image(path).convert("RGB")
            except ValueError as error:
                refusal = str(error)
            assert time.process_time() - start < 10
            opened += refusal is None
            assert refusal is None or (f"{number}.img" in refusal and "\n" not in refusal)
    assert 20 < opened < NUM_FILES - 20  # control: the damage is neither total nor none
    assert peak.growth < 2 * 2**30

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
"""The one opener of images: formats, bounds, orientation and colour modes, the same for every kind of source."""

import base64
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest

from dimple_hf.processing.image_opening_dimple import MAX_JPEG_SCANS, open_image


def encoded(image: PIL.Image.Image, format: str = "PNG", **options: object) -> bytes:
    """A file of an image."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG file of any bit depth, which Pillow itself cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + (chunk(b"tRNS", transparent) if transparent else b"")
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_open_image_takes_every_kind_of_source_alike(tmp_path: Path) -> None:
    """Orientation, format and bounds must not depend on the door that an image comes through."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    image = PIL.Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    data = encoded(image, exif=exif)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    upright = np.asarray(image.transpose(PIL.Image.Transpose.ROTATE_270))
    text = base64.b64encode(data).decode()
    with PIL.Image.open(path) as opened:
        for source in (path, str(path), path.as_uri(), data, text, f"data:image/png;base64,{text}", opened):
            np.testing.assert_array_equal(np.asarray(open_image(source)), upright)
    assert upright.shape != np.asarray(image).shape  # control


@pytest.mark.parametrize(("bits", "grey"), [(2, 1), (2, 3), (4, 5), (8, 5), (16, 5), (16, 40_000)])
def test_open_image_on_grey_png_lays_the_transparent_level_on_white(bits: int, grey: int) -> None:
    """A tRNS chunk names one level as transparent, in the file's own bit depth (transformers#49003)."""
    levels = f"{grey:0{bits}b}{grey ^ 3:0{bits}b}".ljust(32, "0")
    rows = (b"\0" + int(levels, 2).to_bytes(4, "big")[: max(1, bits // 4)]) * 2
    alpha = np.asarray(open_image(png(2, 2, bits, 0, rows, struct.pack(">H", grey))).convert("RGBA"))[..., 3]
    assert alpha.tolist() == [[0, 255], [0, 255]]
    opaque = np.asarray(open_image(png(2, 2, bits, 0, rows)).convert("RGBA"))[..., 3]
    assert opaque.min() == 255  # control


def test_open_image_on_a_16_bit_colour_png_lays_the_transparent_colour_on_white() -> None:
    """Pillow keeps the upper byte of each pixel, and both bytes of the transparent colour."""
    colour = (0x1234, 0x5678, 0x9ABC)
    rows = b"\0" + struct.pack(">6H", *colour, 1, 2, 3)
    alpha = np.asarray(open_image(png(2, 1, 16, 2, rows, struct.pack(">3H", *colour))).convert("RGBA"))[..., 3]
    assert alpha.tolist() == [[0, 255]]


def test_open_image_on_lab_gives_the_colours() -> None:
    """Its band "A" is a colour; taken for transparency, it turns the image white."""
    image = PIL.Image.new("RGB", (40, 30), (200, 40, 60))
    for lab in (image.convert("LAB"), image.convert("LAB").resize((20, 15))):
        opened = open_image(lab)
        assert opened.mode == "RGB"
        assert np.abs(np.asarray(opened).astype(int) - (200, 40, 60)).max() <= 2
    tiff = open_image(encoded(image.convert("LAB"), "TIFF"))
    assert np.abs(np.asarray(tiff).astype(int) - (200, 40, 60)).max() <= 2


def test_open_image_on_eps_never_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's EPS reader hands the file to Ghostscript, which is a language interpreter."""
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(subprocess, "check_call", lambda *args, **kwargs: started.append(args))
    eps = encoded(PIL.Image.new("RGB", (8, 8)), "EPS")
    (tmp_path / "a.png").write_bytes(eps)
    with PIL.Image.open(io.BytesIO(eps)) as lazy:
        assert lazy.format == "EPS"  # control: Pillow itself takes it for an image
        for source in (eps, tmp_path / "a.png", lazy):
            with pytest.raises(ValueError, match=r"the image .*must be a PNG, JPEG"):
                open_image(source)
    assert not started


def test_open_image_names_what_a_phone_writes_and_how_to_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """HEIC is what iPhones save; without its library it is refused by name, with it it is read."""
    heic = b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(64)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"a HEIC file, which `pip install pillow-heif` makes readable"):
        open_image(heic)
    avif = b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + bytes(64)
    monkeypatch.delitem(PIL.Image.OPEN, "AVIF", raising=False)
    with pytest.raises(ValueError, match=r"an AVIF file, which Pillow 11.3 or later reads"):
        open_image(avif)


def test_open_image_reads_heic_with_its_library() -> None:
    """The library registers itself when the first such file comes."""
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(PIL.Image.new("RGB", (64, 64), "red")).save(file)
    assert open_image(file.getvalue()).convert("RGB").getpixel((32, 32))[0] > 200


def test_open_image_reads_avif() -> None:
    """Pillow's wheels bring the decoder."""
    if "AVIF" not in PIL.Image.OPEN:
        PIL.Image.init()
    if "AVIF" not in PIL.Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    assert open_image(encoded(PIL.Image.new("RGB", (64, 64), "red"), "AVIF")).size == (64, 64)


@pytest.mark.parametrize("block", [b"II*\x00\x08", b"no TIFF header"])
def test_open_image_on_damaged_exif_keeps_the_pixels(block: bytes) -> None:
    """Pillow overlooks the damage in a file, and raises when the image from it is opened again."""
    image = PIL.Image.new("RGB", (12, 8), "red")
    opened = open_image(encoded(image, "JPEG", exif=b"Exif\x00\x00" + block))
    assert open_image(opened).size == (12, 8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(image, "JPEG", exif=exif)).size == (8, 12)  # control


def test_open_image_bounds_the_pixels_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes of a file can ask for gigabytes of memory."""
    data = encoded(PIL.Image.new("L", (100, 50)))
    decoded: list[int] = []
    load = PIL.ImageFile.ImageFile.load
    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda self: decoded.append(1) or load(self))
    with pytest.raises(ValueError, match=r"the image of .* must have at most 4999 pixels \(it has 100"):
        open_image(data, max_pixels=4999)
    assert not decoded
    open_image(data, max_pixels=5000)
    assert decoded  # control: the bound itself is allowed


def test_open_image_bounds_the_scans_of_a_jpeg() -> None:
    """Thousands of scans make a small file cost minutes."""
    data = encoded(PIL.Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    scans = data.count(b"\xff\xda")
    last = data.rindex(b"\xff\xda")
    assert 2 <= scans < MAX_JPEG_SCANS
    open_image(data[:-2] + data[last:-2] * (MAX_JPEG_SCANS - scans) + data[-2:])  # the bound itself
    with pytest.raises(ValueError, match="at most 100 scans, it has 101"):
        open_image(data[:-2] + data[last:-2] * (MAX_JPEG_SCANS - scans + 1) + data[-2:])


def test_open_image_bounds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are in memory while they are read."""
    data = encoded(PIL.Image.new("RGB", (64, 64), "red"))
    (tmp_path / "a.png").write_bytes(data)
    monkeypatch.setattr("dimple_hf.processing.image_opening_dimple.MAX_FILE_BYTES", len(data) - 1)
    with pytest.raises(ValueError, match=rf"a.png' must .*it has more than {len(data) - 1} bytes"):
        open_image(tmp_path / "a.png")
    monkeypatch.setattr("dimple_hf.processing.image_opening_dimple.MAX_FILE_BYTES", len(data))
    open_image(tmp_path / "a.png")  # control


def test_open_image_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to never returns."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"the image '.*a.png' must be a readable image \(it is not a regular file\)"):
        open_image(tmp_path / "a.png")

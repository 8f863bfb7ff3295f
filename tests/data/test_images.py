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
import bz2
import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dimple_hf.data.images import FORMATS, WEB_FORMATS, open_image
from dimple_hf.data.sources import Source, load_named_dataset

MAX_PIXELS = PIL.Image.MAX_IMAGE_PIXELS

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def archive_of(write: Callable[[io.BytesIO], Any]) -> bytes:
    """What `write` writes into a file."""
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def write_zip(file: io.BytesIO) -> None:
    """A ZIP archive of one file."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.jsonl", "{}")


def write_tar(file: io.BytesIO) -> None:
    """A tar archive of one file."""
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))


#: Name, content, and what an error calls it.
OTHER_FILES = [
    ("images.zip", archive_of(write_zip), "a ZIP archive: extract it"),
    ("images.tar", archive_of(write_tar), "a tar archive: extract it"),
    ("images.tar.gz", gzip.compress(archive_of(write_tar)), "a gzip file: extract it"),
    ("images.tar.xz", lzma.compress(archive_of(write_tar)), "an xz file: extract it"),
    ("images.tar.bz2", bz2.compress(archive_of(write_tar)), "a bzip2 file: extract it"),
    ("images.7z", b"anything", "a 7z archive: extract it"),
    ("images.TGZ", b"anything", "a tar archive: extract it"),
    ("images.7z", b"7z\xbc\xaf\x27\x1c\0\4" + bytes(24), "a 7z archive: extract it"),
    ("scan.pdf", b"%PDF-1.7\n1 0 obj\n", "a PDF document: convert its pages"),
]


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


@pytest.mark.parametrize(("name", "data", "kind"), OTHER_FILES, ids=[name for name, _, _ in OTHER_FILES])
def test_open_image_of_an_archive_or_document_says_what_it_is(
    tmp_path: Path, name: str, data: bytes, kind: str
) -> None:
    """By what the file holds, whatever its name, and by the name where that tells nothing."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"the image '.*{name}' must be a PNG, .*\(got {kind} first\)$"):
        open_image(tmp_path / name)
    (tmp_path / "scan").write_bytes(data)
    content = kind if data != b"anything" else "another format, or a damaged file"
    for source in (tmp_path / "scan", data):
        with pytest.raises(ValueError, match=rf"the image .*must be a PNG, .*\(got {content}"):
            open_image(source)


@pytest.mark.parametrize(("name", "data", "kind"), OTHER_FILES, ids=[name for name, _, _ in OTHER_FILES])
def test_data_that_are_an_archive_or_document_say_what_they_are(
    tmp_path: Path, name: str, data: bytes, kind: str
) -> None:
    """Also under the name of a file of examples, each line of which was an error before."""
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name} must be a file of .jsonl, .*\(got {kind} first\)$"):
        Source(str(tmp_path / name)).check(tmp_path)
    with pytest.raises(ValueError, match=f"a data set must be a directory or a Hub id .*, {kind} first"):
        load_named_dataset(str(tmp_path / name), "train")
    if data != b"anything":
        (tmp_path / "rows.jsonl").write_bytes(data)
        with pytest.raises(ValueError, match=rf"rows.jsonl must be a file of .jsonl, .*\(got {kind} first\)$"):
            Source(str(tmp_path / "rows.jsonl")).check(tmp_path)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "tiff"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".png"])
def test_data_that_are_an_image_say_so(tmp_path: Path, kind: str, suffix: str) -> None:
    """Of any name. Control: a file of examples is fine."""
    path = tmp_path / f"rows{suffix}"
    PIL.Image.fromarray(PIXELS).save(path, kind)
    with pytest.raises(ValueError, match=r"must be a file of .jsonl, .*\(got an image: name it in a file of examples"):
        Source(str(path)).check(tmp_path)
    (tmp_path / "good.jsonl").write_text("{}")
    Source(str(tmp_path / "good.jsonl")).check(tmp_path)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/nowhere/a.png", r"the image '/nowhere/a.png' must be a readable image \(there is no such file"),
        ("/", r"the image '/' must be a readable image \(it is a folder: name an image in it\)"),
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

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
"""Short digests of a row with the contents of its image files, and of a checkpoint."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL.Image

#: Fields of a row, or of a part of a message, that may name an image file.
IMAGE_FIELDS = ("image", "images", "path", "url")

#: Hexadecimal digits of a digest.
DIGEST_LENGTH = 16

#: Bytes that are read from a file's beginning, middle and end for the digest of a checkpoint: training changes all
#: of a weight file, and a large one takes minutes to read.
SAMPLE_SIZE = 1 << 20


def row_digest(row: Mapping[str, Any], image_folder: Path | None = None) -> str:
    """
    Args:
        row (`Mapping[str, Any]`):
            A row of chats; see [`~dimple_hf.data.examples.read_prompt`].
        image_folder (`Path`, *optional*):
            What relative paths are relative to.

    Returns:
        `str`: The same for the same content: other texts, or another image under the same name, give another one. An
        image that is missing, or is at an address, counts by its name.

    Raises:
        RecursionError: If the row is nested too deeply.
    """
    hasher = hashlib.sha256()
    _feed(hasher, row, None, image_folder or Path())
    return hasher.hexdigest()[:DIGEST_LENGTH]


def text_digest(text: str) -> str:
    """The digest of a text (`str`)."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGEST_LENGTH]


def checkpoint_digest(directory: Path) -> str:
    """
    Args:
        directory (`Path`):
            A checkpoint.

    Returns:
        `str`: The same for the same files: of each its name, its size, and samples of its content.
    """
    hasher = hashlib.sha256()
    for path in sorted(path for path in directory.iterdir() if path.is_file()):
        size = path.stat().st_size
        hasher.update(f"{path.name}\0{size}\0".encode(errors="surrogatepass"))
        with path.open("rb") as file:
            for offset in (0, size // 2, max(size - SAMPLE_SIZE, 0)):
                file.seek(offset)
                hasher.update(file.read(SAMPLE_SIZE))
    return hasher.hexdigest()[:DIGEST_LENGTH]


def _feed(hasher: Any, value: Any, field: str | None, folder: Path) -> None:
    """Adds `value`, which stands in `field`; each kind with a sign of its own, so that none can pass for another."""
    if isinstance(value, Mapping):
        hasher.update(b"{")
        for name in sorted(value, key=str):
            hasher.update(str(name).encode(errors="surrogatepass") + b":")
            _feed(hasher, value[name], str(name), folder)
    elif isinstance(value, (list, tuple)):
        hasher.update(b"[%d:" % len(value))
        for item in value:
            _feed(hasher, item, field, folder)
    elif isinstance(value, PIL.Image.Image):
        hasher.update(f"{value.mode}{value.size}".encode())
        with suppress(OSError, ValueError):  # a damaged one, which is the row's error
            hasher.update(value.tobytes())
    elif isinstance(value, bytes):
        hasher.update(b"b%d:" % len(value) + value)
    else:
        text = str(value).encode(errors="surrogatepass")
        hasher.update(f"{type(value).__name__}{len(text)}:".encode() + text)
        if isinstance(value, (str, os.PathLike)) and field in IMAGE_FIELDS:
            _feed_file(hasher, os.fspath(value), folder)


def _feed_file(hasher: Any, name: str, folder: Path) -> None:
    """Adds the content of a file, if there is one of this name; a named pipe would never end."""
    if len(name) > 4096 or "\0" in name:
        return
    try:
        path = folder / name.removeprefix("file://")
        if path.is_file():
            hasher.update(hashlib.sha256(path.read_bytes()).digest())
    except OSError:
        return  # it cannot be read, which is the row's error

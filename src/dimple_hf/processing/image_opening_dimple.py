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
"""Opens an image from any source, within bounds: formats, file size, pixels, JPEG scans.

Nothing is decoded before the header has been read and the size checked. Only Pillow's own decoders are used: a format
whose reader starts another program, such as EPS and Ghostscript, is refused.
"""

import base64
import io
import os
import stat
import struct
import warnings
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

import numpy as np
import PIL.Image
import PIL.ImageOps

#: Formats that are read. HEIF needs the library pillow-heif, which is used when it is installed.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "HEIF")

#: The formats of images on the web, for those who take files from strangers.
WEB_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

#: Most characters of a path or URL in an error message.
MAX_NAME = 200

#: Largest file: about what the largest image of `PIL.Image.MAX_IMAGE_PIXELS` takes without compression.
MAX_FILE_BYTES = 256 * 2**20

#: An image of a camera has about ten scans. Thousands of them make a small file cost minutes.
MAX_JPEG_SCANS = 100

#: Seconds without an answer after which an image address is given up.
URL_TIMEOUT = 30

#: Brands at the beginning of a HEIC file (ISO/IEC 23008-12), and those of AVIF.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")

#: Files that are taken for others -> offset of what they hold, what that is, the ends of their names.
OTHER_FILES = {
    "a ZIP archive": (0, (b"PK\x03\x04", b"PK\x05\x06"), (".zip",)),
    "a 7z archive": (0, (b"7z\xbc\xaf\x27\x1c",), (".7z",)),
    "a RAR archive": (0, (b"Rar!\x1a\x07",), (".rar",)),
    "a tar archive": (257, (b"ustar\0", b"ustar "), (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".tar.zst")),
    "a gzip file": (0, (b"\x1f\x8b\x08",), (".gz",)),
    "an xz file": (0, (b"\xfd7zXZ\0",), (".xz",)),
    "a bzip2 file": (4, (b"1AY&SY",), (".bz2",)),
    "a Zstandard file": (0, (b"\x28\xb5\x2f\xfd",), (".zst",)),
    "a PDF document": (0, (b"%PDF-",), (".pdf",)),
}

#: Bytes of a file that tell what it is.
NUM_HEAD_BYTES = 264

#: PNG's bit depths that Pillow widens or narrows without doing the same to the transparent colour (tRNS), by the raw
#: mode: what the colour has to be multiplied by.
TRANSPARENCY_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}


def open_image(
    source: str | os.PathLike[str] | bytes | PIL.Image.Image,
    *,
    max_pixels: int | None = None,
    formats: Sequence[str] = FORMATS,
    index: int | None = None,
) -> PIL.Image.Image:
    """
    Opens and decodes one image.

    Args:
        source (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`):
            A path; an `http(s)`, `file` or `data` URL; base64; the bytes of a file; or an image.
        max_pixels (`int`, *optional*):
            Maximum number of pixels, compared with the file's header before anything is decoded. Defaults to Pillow's
            own bound, `PIL.Image.MAX_IMAGE_PIXELS`.
        formats (`Sequence[str]`, defaults to `FORMATS`):
            Pillow's names of the formats that a file may have.
        index (`int`, *optional*):
            Position of the image among those of a call, for the errors.

    Returns:
        `PIL.Image.Image`: The image with its pixels in memory, upright by its EXIF orientation, in a mode that
        `convert("RGB")` keeps the look of. Transparency is kept.

    Raises:
        ValueError: If there is no such file or address, it is not an image of these formats, it is damaged or empty,
            it exceeds a bound, or its mode has no fixed range (`"I"`, `"F"`, `"La"`, `"RGBa"`). The message is one
            line, and names the file and the reason.

    Example:

    ```python
    >>> from dimple_hf.data.images import open_image

    >>> open_image("photo.jpg", max_pixels=4096 * 4096).convert("RGB")
    ```
    """
    name = _name(source, index)
    if not isinstance(source, (str, os.PathLike, bytes, PIL.Image.Image)):
        raise ValueError(
            f"{name} must be a path, a URL, base64, bytes or a Pillow image (got {type(source).__name__})"
        )
    if max_pixels is None:
        max_pixels = PIL.Image.MAX_IMAGE_PIXELS
    try:
        return _displayable(_upright(_decode(source, max_pixels, formats)))
    except PIL.Image.DecompressionBombError as error:
        raise ValueError(f"{name} must have at most {max_pixels} pixels ({_reason(error)})") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name} must be a {', '.join(formats)} file (got {error})") from error
    except Exception as error:  # a damaged file raises any of a dozen types, depending on its format
        raise ValueError(f"{name} must be a readable image ({_reason(error)})") from error


def _decode(source: Any, max_pixels: int | None, formats: Sequence[str]) -> PIL.Image.Image:
    """The image as it is stored. Raises whatever Pillow raises, and where Pillow would only warn."""
    if isinstance(source, PIL.Image.Image):
        image = source
        if getattr(image, "tile", None) and image.format not in formats:  # not decoded yet
            raise PIL.UnidentifiedImageError(f"{image.format}; call its `load()` first if you trust it")
    else:
        path = "" if isinstance(source, bytes) else os.fsdecode(source)
        image = _open_bytes(source if isinstance(source, bytes) else _read(path), formats, path)
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    # Up to twice its bound Pillow only warns, while a file of a few kilobytes can need gigabytes of memory.
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise PIL.Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels")
    _scale_transparency(image)
    image.load()
    return image


def _name(source: object, index: int | None) -> str:
    """What to call an image in an error message: by its path or address, shortened, or its size."""
    if isinstance(source, bytes):
        label = f"of {len(source)} bytes"
    else:
        path = getattr(source, "filename", "") if isinstance(source, PIL.Image.Image) else source
        text = os.fsdecode(path) if isinstance(path, (str, os.PathLike)) else ""
        is_data = text.startswith("data:") or len(text) > 4 * MAX_NAME  # a long string is base64
        label = f"{text[:30]!r}..." if is_data else repr(text[:MAX_NAME]) if text else ""
    if index is None:
        return f"the image {label}".strip()
    return f"image {index} ({label})" if label else f"image {index}"


def _reason(error: Exception) -> str:
    """What went wrong, in one line."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__


def _read(source: str) -> bytes:
    """The bytes of a path, an address or base64."""
    if source.startswith(("http://", "https://")):
        request = Request(source, headers={"User-Agent": "dimple_hf (python)"})  # some hosts refuse Python's own name
        with urlopen(request, timeout=URL_TIMEOUT) as response:
            return _at_most(response.read(MAX_FILE_BYTES + 1))
    if source.startswith("file://"):
        return _read_file(url2pathname(urlparse(source).path))
    if source.startswith("data:"):
        return _decode_base64(source.partition(",")[2])
    if os.path.exists(source):
        return _read_file(source)
    try:
        return _decode_base64(source)
    except ValueError as error:
        raise FileNotFoundError("there is no such file, and it is neither a URL nor base64") from error


def _read_file(path: str) -> bytes:
    if os.path.isdir(path):
        raise ValueError("it is a folder: name an image in it")
    # Reading a pipe or a device would wait, or never end.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        return _at_most(file.read(MAX_FILE_BYTES + 1))


def _at_most(data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
    return data


def _decode_base64(text: str) -> bytes:
    """The bytes that base64 stands for. Line breaks are allowed, other foreign characters are not."""
    return base64.b64decode("".join(text.split()), validate=True)


def describe_other_file(data: bytes, name: str = "") -> str | None:
    """
    Args:
        data (`bytes`):
            A file, or its first `NUM_HEAD_BYTES`.
        name (`str`, defaults to `""`):
            Its name, which counts where the bytes tell nothing.

    Returns:
        `str`, *optional*: What it is and what to do, such as `"a ZIP archive: extract it first"`, if it is an archive,
        a compressed file or a PDF document.
    """
    by_content = [
        kind for kind, (offset, marks, _) in OTHER_FILES.items() if data[offset : offset + 8].startswith(marks)
    ]
    by_name = [kind for kind, (_, _, suffixes) in OTHER_FILES.items() if name.lower().endswith(suffixes)]
    for kind in (*by_content, *by_name):
        return f"{kind}: {'convert its pages' if kind == 'a PDF document' else 'extract it'} first"
    return None


def _open_bytes(data: bytes, formats: Sequence[str], name: str = "") -> PIL.Image.Image:
    """An image whose header has been read and whose pixels have not."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in HEIF_BRANDS and "HEIF" in formats:
        _register_heif()
    PIL.Image.init()
    known = [name for name in formats if name in PIL.Image.OPEN]
    try:
        with warnings.catch_warnings():
            # Pillow warns of images that are refused here anyway.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            image = PIL.Image.open(io.BytesIO(data), formats=known)
    except PIL.UnidentifiedImageError as error:
        other = describe_other_file(data, name)
        if other is not None:
            found = other
        elif brand in HEIF_BRANDS:
            found = "a HEIC file, which `pip install pillow-heif` makes readable"
        elif brand in AVIF_BRANDS:
            found = "an AVIF file, which Pillow 11.3 or later reads"
        else:
            found = "another format, or a damaged file"
        raise PIL.UnidentifiedImageError(found) from error
    num_scans = data.count(b"\xff\xda")  # compressed data never holds this marker
    if image.format in ("JPEG", "MPO") and num_scans > MAX_JPEG_SCANS:
        raise ValueError(f"a JPEG file must have at most {MAX_JPEG_SCANS} scans, it has {num_scans}")
    return image


def _register_heif() -> None:
    try:
        import pillow_heif
    except ImportError:  # the caller names what is missing
        return
    pillow_heif.register_heif_opener()


def _scale_transparency(image: PIL.Image.Image) -> None:
    """Brings the transparent colour of a PNG that is not decoded yet to the 8 bits of its pixels."""
    transparency = image.info.get("transparency")
    tile = getattr(image, "tile", None)
    if image.format != "PNG" or not tile or transparency is None:
        return
    scale = TRANSPARENCY_SCALES.get(str(tile[0].args))
    if scale is not None and isinstance(transparency, int):
        image.info["transparency"] = int(transparency * scale)
    elif scale is not None and isinstance(transparency, tuple):
        image.info["transparency"] = tuple(int(value * scale) for value in transparency)


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turns an image by its EXIF orientation. With a damaged block it counts as upright, as in browsers."""
    try:
        return PIL.ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, struct.error):
        return image


def _displayable(image: PIL.Image.Image) -> PIL.Image.Image:
    """Brings an image into a mode that `convert("RGB")` does not spoil, or refuses it."""
    if image.mode.startswith("I;16"):
        # convert() clips at 255, which turns nearly every 16-bit image white; 65535 / 257 = 255
        values = np.asarray(image, dtype=np.uint16)
        grey = PIL.Image.fromarray(np.round(values.astype(np.float32) / 257).astype(np.uint8))
        transparent = image.info.get("transparency")
        if not isinstance(transparent, int):
            return grey
        return PIL.Image.merge("LA", (grey, PIL.Image.fromarray(np.where(values == transparent, 0, 255).astype("u1"))))
    if image.mode == "LAB":  # its band "A" is a colour, which transformers takes for transparency
        return image.convert("RGB")
    if image.mode in ("I", "F", "La", "RGBa"):  # no fixed range, or already multiplied by their transparency
        raise ValueError(f"mode {image.mode!r} must be converted to 8-bit grey or RGB first")
    return image


__all__ = ["FORMATS", "NUM_HEAD_BYTES", "WEB_FORMATS", "describe_other_file", "open_image"]

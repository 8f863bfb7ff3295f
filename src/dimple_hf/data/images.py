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
"""The one opener of images: bounded before decoding, upright, of a few formats, with errors that name the file."""

import os
from pathlib import Path

import PIL.Image
import PIL.ImageOps

from ..processing.image_processing_dimple import decode_image

#: The formats of images on the web. Pillow's other readers are rarely needed, and some of them run programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

#: Default of the maximum number of pixels of an image, 89 million: Pillow's own. The decoded image takes 3 bytes each.
MAX_PIXELS = (1 << 30) // 4 // 3

#: Most characters of a path or URL in an error message.
MAX_NAME = 100


def open_image(source: str | Path | bytes | PIL.Image.Image, *, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """
    Opens and decodes one image.

    Args:
        source (`str`, `Path`, `bytes` or `PIL.Image.Image`):
            A path, an `http(s)`, `file` or `data` URL, base64, the bytes of a file, or an image.
        max_pixels (`int`, *optional*, defaults to 89,478,485):
            Maximum number of pixels, compared with the file's header before anything is decoded.

    Returns:
        `PIL.Image.Image`: The image with its pixels in memory, upright by its EXIF orientation, in a mode that
        `convert("RGB")` takes without loss: 16-bit grey has become 8-bit grey.

    Raises:
        ValueError: If there is no such file, it is no PNG, JPEG, WebP or GIF file, it is damaged or empty, has more
            pixels or more JPEG scans than allowed, or a mode without a fixed range (`"I"`, `"F"`, `"La"`, `"RGBa"`).
            The message names the file and the reason.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, (str, bytes, PIL.Image.Image)):
        raise ValueError(f"`source` must be a path, a URL, bytes or a Pillow image (got {type(source).__name__})")
    name = _name(source)
    try:
        image = decode_image(source, max_pixels, FORMATS)
        return PIL.ImageOps.exif_transpose(image) if image is source else image
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} must have at most {max_pixels} pixels ({error})") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} must be a {', '.join(FORMATS)} file (got another format, or a damaged file)"
        ) from error
    except Exception as error:  # a damaged file raises any of a dozen types, depending on its format
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ValueError(f"{name} must be a readable image ({reason or type(error).__name__})") from error


def _name(source: str | bytes | PIL.Image.Image) -> str:
    """What to call an image in an error message."""
    if isinstance(source, bytes):
        return f"the image of {len(source)} bytes"
    if isinstance(source, PIL.Image.Image):
        filename = getattr(source, "filename", "")
        return f"the image {filename!r}" if filename else "the image"
    is_data = source.startswith("data:") or len(source) > 4 * MAX_NAME  # a long string is base64
    return f"the image {source[:30]!r}..." if is_data else f"the image {source[:MAX_NAME]!r}"

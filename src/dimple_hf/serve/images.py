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
"""Images of a request, within bounds: no file is decoded before its header has been read and its size counted.

Imported by `preparation` and `fetching`.
"""

import base64
import io
from collections.abc import Mapping

import PIL.Image
import PIL.ImageOps

from .limits import MIB, Limits, RefusedRequest

#: What OpenAI's clients send. Pillow's other readers are not needed, and some of them run programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

#: An image of a camera has about ten scans. Thousands of them make a small file cost minutes.
MAX_JPEG_SCANS = 100


def too_large(max_bytes: int) -> RefusedRequest:
    """The refusal of images of more than `max_bytes` (`int`)."""
    return RefusedRequest(f"the images must be files of at most {max_bytes / MIB:.3g} MiB together", "messages")


def data_url_bytes(url: str, max_bytes: int) -> bytes:
    """
    Args:
        url (`str`):
            A URL such as `data:image/png;base64,iVBORw0KGgo...`.
        max_bytes (`int`):
            Most bytes.

    Returns:
        `bytes`: The file.

    Raises:
        RefusedRequest: If it is no such URL, or the file has more.
    """
    head, comma, text = url.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64") and comma):
        raise RefusedRequest("an image must be a URL such as data:image/png;base64,iVBORw0KGgo...", "messages")
    if len(text) // 4 * 3 > max_bytes + 2:  # up to two bytes are padding
        raise too_large(max_bytes)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise RefusedRequest(f"an image must be base64 ({error})", "messages") from error


def open_image(data: bytes, max_pixels: int) -> PIL.Image.Image:
    """
    Reads the header of an image. Its pixels stay undecoded.

    Args:
        data (`bytes`):
            The file.
        max_pixels (`int`):
            Most pixels.

    Returns:
        `PIL.Image.Image`

    Raises:
        RefusedRequest: If it is no image of `FORMATS`, or has more pixels, or more scans than images have.
    """
    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
    except PIL.Image.DecompressionBombError as error:
        raise RefusedRequest(
            f"the images must have at most {max_pixels} pixels together ({error})", "messages"
        ) from error
    except Exception as error:  # a broken file raises any of a dozen types, depending on its format
        raise RefusedRequest(
            f"an image must be a {', '.join(FORMATS)} file (got another, or a broken one)", "messages"
        ) from error
    if image.width * image.height > max_pixels:
        raise RefusedRequest(
            f"the images must have at most {max_pixels} pixels together (got one of {image.width} x "
            f"{image.height}, with {max_pixels} left for it)",
            "messages",
        )
    # Within its compressed data a JPEG file never has this sign.
    if image.format == "JPEG" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise RefusedRequest(f"a JPEG file must have at most {MAX_JPEG_SCANS} scans", "messages")
    return image


def decode_image(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    Args:
        image (`PIL.Image.Image`):
            What `open_image` returned.

    Returns:
        `PIL.Image.Image`: The image with its pixels in memory, upright.

    Raises:
        RefusedRequest: If the file is broken.
    """
    try:
        return PIL.ImageOps.exif_transpose(image)
    except Exception as error:  # a broken file raises any of a dozen types, depending on its format
        raise RefusedRequest(f"an image must be readable ({error})", "messages") from error


def read_images(urls: list[str], fetched: Mapping[str, bytes], limits: Limits) -> list[PIL.Image.Image]:
    """
    Args:
        urls (`list[str]`):
            Where the images are, in reading order.
        fetched (`Mapping[str, bytes]`):
            The files of those that are not `data:` URLs.
        limits ([`Limits`]):
            Most bytes and pixels.

    Returns:
        `list[PIL.Image.Image]`: The images, decoded when all of them are known to be small enough.

    Raises:
        RefusedRequest: If one is none, or broken, or together they are too large.
    """
    images, bytes_left, pixels_left = [], limits.max_image_bytes, limits.max_image_pixels
    for url in urls:
        data = fetched[url] if url in fetched else data_url_bytes(url, bytes_left)
        bytes_left -= len(data)
        if bytes_left < 0:
            raise too_large(limits.max_image_bytes)
        image = open_image(data, pixels_left)
        pixels_left -= image.width * image.height
        images.append(image)
    return [decode_image(image) for image in images]

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
"""Images of a request, within bounds: sizes are read from the headers before anything is decoded."""

import base64
from collections.abc import Mapping

import PIL.Image

from ..data.images import WEB_FORMATS, open_image
from .limits import MIB, Limits, RefusedRequest


def too_large(max_bytes: int) -> RefusedRequest:
    """The refusal of images of more than `max_bytes` (`int`)."""
    return RefusedRequest(f"the images must be files of at most {max_bytes / MIB:.3g} MiB together", "messages")


def data_url_bytes(url: str, max_bytes: int) -> bytes:
    """
    Args:
        url (`str`):
            A URL such as `data:image/png;base64,iVBORw0KGgo...`. White space in the base64 is ignored.
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
        return base64.b64decode("".join(text.split()), validate=True)  # the `base64` command breaks lines
    except ValueError as error:
        raise RefusedRequest(f"an image must be base64 ({error})", "messages") from error


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
        `list[PIL.Image.Image]`: The images, decoded; each is known to be small enough before it is.

    Raises:
        RefusedRequest: If one is none, or broken, or together they are too large.
    """
    if len(urls) > limits.max_images:
        raise RefusedRequest(f"a request must have at most {limits.max_images} images (got {len(urls)})", "messages")
    images: list[PIL.Image.Image] = []
    bytes_left, pixels_left = limits.max_image_bytes, limits.max_image_pixels
    for url in urls:
        data = fetched[url] if url in fetched else data_url_bytes(url, bytes_left)
        bytes_left -= len(data)
        if bytes_left < 0:
            raise too_large(limits.max_image_bytes)
        try:
            image = open_image(data, max_pixels=pixels_left, formats=WEB_FORMATS)
        except ValueError as error:
            advice = f"; the images of a request must have at most {limits.max_image_pixels} pixels together"
            raise RefusedRequest(f"{error}{advice if images else ''}", "messages") from error
        pixels_left -= image.width * image.height
        images.append(image)
    return images

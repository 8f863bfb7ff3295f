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
"""The image processor of Dimple: Qwen2-VL's patches, made with Pillow and numpy.

Opens what users hand in (Pillow images, arrays, tensors, paths, URLs, base64), refuses what is no image by its index
before any work, and cuts the rest into patches, bit for bit as the released processor does for RGB images.
Source: Dimple, section 3 (arXiv 2505.16990) and the released `preprocessor_config.json`. Imported by
`processing_dimple` and `dimple_hf`.
"""

import base64
import difflib
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import Request, url2pathname, urlopen

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, SizeDict, infer_channel_dimension_format
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorKwargs,
    Qwen2VLImageProcessorPil,
)
from transformers.processing_utils import Unpack

#: Longer side over shorter side. Beyond this, an image scaled to the pixel bounds is a strip that shows nothing.
MAX_ASPECT_RATIO = 200

#: A camera's image has about ten scans. With thousands of them a small file takes minutes to decode.
MAX_JPEG_SCANS = 100

#: Seconds without an answer after which an image address is given up.
URL_TIMEOUT = 30


def refuse_unknown_names(given: Iterable[str], known: Iterable[str], owner: str) -> None:
    """
    Refuses argument names that would be ignored otherwise.

    Args:
        given (`Iterable[str]`):
            The names that the caller used.
        known (`Iterable[str]`):
            The names that mean something.
        owner (`str`):
            What takes the arguments, for the message.

    Raises:
        ValueError: Where a name is not known; the message holds the known names nearest to it.
    """
    known = set(known)
    for name in given:
        if name not in known:
            near = " or ".join(f"`{match}`" for match in difflib.get_close_matches(name, sorted(known), n=2))
            hint = f"; did you mean {near}?" if near else ""
            raise ValueError(f"arguments of {owner} must have names that it knows (got `{name}`{hint})")


def flatten_images(images: Any) -> list[Any]:
    """
    Lists images in reading order, whatever their nesting. Nothing is opened or checked.

    Args:
        images (`Any`):
            One image, or lists of images nested to any depth. A 4-D array or tensor is a batch of images.

    Returns:
        `list`: The images.
    """
    if isinstance(images, (list, tuple)):
        return [image for entry in images for image in flatten_images(entry)]
    if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def _decode_base64(text: str) -> io.BytesIO:
    """The bytes that base64 stands for. Line breaks are allowed, other foreign characters are not."""
    return io.BytesIO(base64.b64decode("".join(text.split()), validate=True))


def _open_source(source: str) -> io.BytesIO | str:
    """What Pillow can open, for an address, a path or base64. Whether it is an image is not looked at."""
    if source.startswith(("http://", "https://")):
        request = Request(source, headers={"User-Agent": "dimple_hf (python)"})  # some hosts refuse Python's own name
        with urlopen(request, timeout=URL_TIMEOUT) as response:
            return io.BytesIO(response.read())
    if source.startswith("file://"):
        return url2pathname(urlparse(source).path)
    if source.startswith("data:"):
        return _decode_base64(source.partition(",")[2])
    if os.path.exists(source):
        return source
    try:
        return _decode_base64(source)
    except ValueError as error:
        raise FileNotFoundError("there is no such file, and it is neither a URL nor base64") from error


def _to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Brings an image into a mode that `convert("RGB")` does not spoil, or refuses it."""
    if image.mode.startswith("I;16"):
        # convert() clips at 255, which turns nearly every 16-bit image white; 65535 / 257 = 255
        return PIL.Image.fromarray(np.round(np.asarray(image, dtype=np.float32) / 257).astype(np.uint8))
    if image.mode in ("I", "F", "La", "RGBa"):  # no fixed range, or already multiplied by their transparency
        raise ValueError(f"mode {image.mode!r} must be converted to 8-bit grey or RGB first")
    return image


def _check_scans(image: Any) -> None:
    """Refuses a JPEG file with more scans than images have. Its pixels stay undecoded."""
    if image.format not in ("JPEG", "MPO"):
        return
    position = image.fp.tell()
    image.fp.seek(0)
    num_scans = image.fp.read().count(b"\xff\xda")  # compressed data never holds this marker
    image.fp.seek(position)
    if num_scans > MAX_JPEG_SCANS:
        raise ValueError(f"a JPEG file must have at most {MAX_JPEG_SCANS} scans, it has {num_scans}")


def decode_image(
    source: str | bytes | PIL.Image.Image, max_pixels: int | None, formats: tuple[str, ...] | None = None
) -> PIL.Image.Image:
    """
    Opens and decodes one image. Its size is checked before anything is decoded.

    Args:
        source (`str`, `bytes` or `PIL.Image.Image`):
            A path, an `http(s)`, `file` or `data` URL, base64, the bytes of a file, or an image.
        max_pixels (`int`, *optional*):
            Maximum number of pixels; no bound if `None`.
        formats (`tuple[str, ...]`, *optional*):
            Pillow's names of the formats that a file may have; all of them if `None`.

    Returns:
        `PIL.Image.Image`: The image with its pixels in memory. What is opened here is upright by its EXIF orientation.

    Raises:
        PIL.Image.DecompressionBombError: If the image has more pixels than `max_pixels`.
        Exception: Whatever Pillow raises for a file that it cannot read: a dozen types, depending on the format.
    """
    if isinstance(source, PIL.Image.Image):
        image = source
    else:
        file = io.BytesIO(source) if isinstance(source, bytes) else _open_source(source)
        image = PIL.Image.open(file, formats=formats)
        _check_scans(image)
    if 0 in image.size:
        raise ValueError(f"it has {image.width} x {image.height} pixels")
    # Up to twice its limit Pillow only warns, while a few kilobytes of a file already ask for gigabytes of memory.
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise PIL.Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels")
    image.load()
    return _to_eight_bits(image if image is source else PIL.ImageOps.exif_transpose(image))


def load_pil_image(source: str | os.PathLike[str] | PIL.Image.Image, index: int) -> PIL.Image.Image:
    """
    Opens and decodes one image.

    Args:
        source (`str`, `os.PathLike` or `PIL.Image.Image`):
            A path, an `http(s)`, `file` or `data` URL, base64, or an image. What is opened here is turned upright by
            its EXIF orientation; an image that the caller opened is taken as it is.
        index (`int`):
            The position of the image among all images of the call, for the message.

    Returns:
        `PIL.Image.Image`: The image, with its pixels in memory. 16-bit grey has become 8-bit grey.

    Raises:
        ValueError: Where there is no such file or address, it holds no image, the image is cut off or empty, has more
            pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or is in one of Pillow's modes `"I"`, `"F"`, `"La"` and `"RGBa"`.
    """
    if not isinstance(source, PIL.Image.Image):
        source = os.fsdecode(source)
    name = repr(source[:100]) if isinstance(source, str) else f"of type {type(source).__name__}"
    try:
        return decode_image(source, PIL.Image.MAX_IMAGE_PIXELS)
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"`images` must have at most {PIL.Image.MAX_IMAGE_PIXELS} pixels each (PIL.Image.MAX_IMAGE_PIXELS), as a"
            f" guard against decompression bombs (image {index} is {name}: {error})"
        ) from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"`images` must be images of a format that Pillow knows (image {index} is {name})") from error
    except Exception as error:  # a broken file raises any of a dozen types, depending on its format
        raise ValueError(f"`images` must be readable images (image {index} is {name}: {error})") from error


def load_array_image(
    source: np.ndarray | torch.Tensor, index: int, input_data_format: str | None, to_uint8: bool
) -> np.ndarray:
    """
    Checks one image given as numbers and brings it into channels-last form.

    Args:
        source (`np.ndarray` or `torch.Tensor` of shape `(H, W)`, `(H, W, C)` or `(C, H, W)`):
            The image, C being 1, 3 or 4. Integers run from 0 to 255. Floats run from 0 to 1, or are whole numbers from
            0 to 255 of which one is above 1.
        index (`int`):
            The position of the image among all images of the call, for the message.
        input_data_format (`str`, *optional*):
            `"channels_first"` or `"channels_last"`. When `None`, it is read off the shape; channels first, where both
            would do.
        to_uint8 (`bool`):
            Whether to return 8-bit numbers from 0 to 255, floats from 0 to 1 being scaled and rounded.

    Returns:
        `np.ndarray` of shape `(H, W, C)`: The image.

    Raises:
        ValueError: Where type, shape or range of the numbers are not as above, or one is NaN or infinite.
    """
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
    if source.dtype.kind not in "uif":
        raise ValueError(f"`images` must be numbers (image {index} has dtype {source.dtype})")
    array = source[..., None] if source.ndim == 2 else source
    if array.ndim != 3 or 0 in array.shape:
        raise ValueError(
            "`images` must have shape (height, width), (height, width, channels) or (channels, height, width), none of"
            f" them 0 (image {index} has shape {source.shape})"
        )
    if source.ndim == 2:
        input_data_format = ChannelDimension.LAST
    elif input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        except ValueError as error:
            raise ValueError(f"`images` must have 1, 3 or 4 channels (image {index} has {source.shape})") from error
    if input_data_format == ChannelDimension.FIRST:
        array = np.moveaxis(array, 0, -1)

    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # written so that NaN fails too
        raise ValueError(f"`images` must have values from 0 to 255 (image {index} has {low} to {high})")
    if not to_uint8:
        return array
    if array.dtype.kind == "f":
        if high <= 1:
            array = np.round(array * 255)
        elif (array != np.round(array)).any():
            raise ValueError(
                "`images` of floats must run from 0 to 1, or be whole numbers from 0 to 255"
                f" (image {index} has fractions and runs from {low} to {high})"
            )
    return array.astype(np.uint8)


def _check_shape(shape: tuple[int, ...], index: int, side: int) -> None:
    """Refuses shapes (H, W, C) that cannot become patches; `side` is what height and width must be multiples of."""
    if len(shape) != 3 or shape[-1] != 3:
        raise ValueError(
            f"`do_convert_rgb` must be True for images that are not RGB (image {index} has shape {shape})"
        )
    height, width, _ = shape
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"`images` must have sides of a ratio of at most {MAX_ASPECT_RATIO} to 1"
            f" (image {index} has {width} x {height} pixels)"
        )
    if height % side or width % side:
        raise ValueError(
            f"`do_resize` must be True for images whose sides are not multiples of {side}"
            f" (image {index} has {width} x {height} pixels)"
        )


class DimpleImageProcessor(Qwen2VLImageProcessorPil):
    r"""
    Cuts images into the patches that Dimple's vision tower reads. Qwen2-VL's image processor (Pillow, no torchvision),
    with these differences:

    - Every way to name an image is opened here, and every image is checked before the first one is processed.
    - `min_pixels` and `max_pixels`, the released model's names, are taken as arguments and within `size` like
      `shortest_edge` and `longest_edge`, and are saved next to them, so that the released code reads what this saves.
    - Unknown arguments are refused. `auto_map` of a loaded file is dropped: it names code that is not needed.

    What becomes of images that are not plain RGB:

    | image | becomes |
    |---|---|
    | transparent (RGBA, LA, palette, 4-channel array) | laid on white (the released code drops alpha) |
    | grey, palette, CMYK, 1-bit | converted to RGB, as Pillow does |
    | 16-bit grey | scaled to 8 bits |
    | Pillow modes `"I"` and `"F"` | refused: they have no fixed range |
    | floats from 0 to 1 | scaled to 8 bits, as long as `do_rescale` is on |
    | several frames | the first frame |
    | with an EXIF orientation | turned upright when opened here; a Pillow image is taken as it is |

    Args:
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 3136, "longest_edge": 1003520}`):
            The least and the largest area of the resized image, in pixels.
        min_pixels (`int`, *optional*):
            The same as `size["shortest_edge"]`.
        max_pixels (`int`, *optional*):
            The same as `size["longest_edge"]`.
        patch_size (`int`, *optional*, defaults to 14):
            Side of a patch, in pixels.
        temporal_patch_size (`int`, *optional*, defaults to 2):
            How many times an image is repeated along the time axis of its patches.
        merge_size (`int`, *optional*, defaults to 2):
            `merge_size` x `merge_size` patches make one image token. Sides are resized to multiples of
            `patch_size * merge_size`.
        **kwargs:
            `do_resize`, `resample`, `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean`, `image_std` and
            `do_convert_rgb`, as in [`Qwen2VLImageProcessorPil`].

    Raises:
        ValueError: Where the pixel bounds are no pair of integers with 1 <= least <= largest.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)
        if isinstance(kwargs.get("size"), dict):
            kwargs["size"] = dict(kwargs["size"])  # the parent writes `min_pixels` and `max_pixels` into it
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> "DimpleImageProcessor":
        """Like the parent's; a `size` of the caller also wins over `min_pixels` and `max_pixels` of the file."""
        if kwargs.get("size") is not None:
            image_processor_dict = {
                name: value for name, value in image_processor_dict.items() if name not in ("min_pixels", "max_pixels")
            }
        return super().from_dict(image_processor_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings, with the pixel bounds under the released code's names too, and without pointers to code."""
        output = {name: value for name, value in super().to_dict().items() if name != "auto_map"}
        return output | {"min_pixels": self.size["shortest_edge"], "max_pixels": self.size["longest_edge"]}

    def to_json_file(self, json_file_path: str | os.PathLike[str]) -> None:
        """Writes the settings as JSON; beside the code, which `save_pretrained` copies, also where the class is."""
        fields = json.loads(self.to_json_string())
        if (Path(json_file_path).parent / "image_processing_dimple.py").is_file():
            fields["auto_map"] = {"AutoImageProcessor": "image_processing_dimple.DimpleImageProcessor"}
        with open(json_file_path, "w", encoding="utf-8") as file:
            file.write(json.dumps(fields, indent=2, sort_keys=True) + "\n")

    def preprocess(self, images: ImageInput, **kwargs: Unpack[Qwen2VLImageProcessorKwargs]) -> BatchFeature:
        """
        Turns images into patches.

        Args:
            images (`ImageInput`):
                One image or a list, nested to any depth, of `PIL.Image.Image`, `np.ndarray`, `torch.Tensor`, paths
                (`str`, `os.PathLike`), `http(s)`, `file` and `data` URLs, or base64. For arrays and tensors see
                [`load_array_image`].
            **kwargs:
                Settings of the class for this call, and `return_tensors` (`"pt"` or `"np"`).

        Returns:
            [`BatchFeature`] with
            - **pixel_values** (float32 of shape `(num_patches, 3 * temporal_patch_size * patch_size**2)`): the patches
              of all images, one after the other, patches that share an image token side by side.
            - **image_grid_thw** (int64 of shape `(num_images, 3)`): frames (always 1), rows and columns of patches.

        Raises:
            ValueError: Where an image is none, a setting is unknown, or an image is too long and narrow; the message
                holds the image's index.
        """
        refuse_unknown_names(kwargs, self.valid_kwargs.__annotations__, type(self).__name__)
        return super().preprocess(images, **kwargs)

    def _standardize_kwargs(
        self,
        size: dict[str, int] | SizeDict | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Brings both spellings of the pixel bounds into the one that the parent reads, and checks them."""
        given = dict(size) if isinstance(size, (dict, SizeDict)) else {}
        low = given.get("shortest_edge", given.get("min_pixels")) if min_pixels is None else min_pixels
        high = given.get("longest_edge", given.get("max_pixels")) if max_pixels is None else max_pixels
        if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high):
            raise ValueError(
                "`size` must hold the least and the largest number of pixels, 1 <= `shortest_edge` <= `longest_edge`"
                f" (got {low} and {high})"
            )
        return super()._standardize_kwargs(size={"shortest_edge": low, "longest_edge": high}, **kwargs)

    def _prepare_image_like_inputs(
        self,
        images: ImageInput,
        *args: Any,
        do_convert_rgb: bool,
        do_rescale: bool,
        do_resize: bool,
        patch_size: int,
        merge_size: int,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> list[np.ndarray]:
        """Opens and checks all images; returns them as arrays of shape (3, H, W). Nothing is resized yet."""
        sources = flatten_images(images)
        if not sources:
            raise ValueError("`images` must hold at least one image (got none)")
        prepared = []
        for index, source in enumerate(sources):
            if isinstance(source, (np.ndarray, torch.Tensor)):
                image: Any = load_array_image(source, index, input_data_format, to_uint8=do_rescale)
            elif isinstance(source, (str, os.PathLike, PIL.Image.Image)):
                image = load_pil_image(source, index)
            else:
                raise ValueError(
                    "`images` must be Pillow images, arrays, tensors, paths, URLs or base64"
                    f" (image {index} is of type {type(source).__name__})"
                )
            if do_convert_rgb:
                image = self.convert_to_rgb(image, input_data_format=ChannelDimension.LAST)
            image = np.asarray(image)
            _check_shape(image.shape, index, side=1 if do_resize else patch_size * merge_size)
            prepared.append(np.moveaxis(image, -1, 0))
        return prepared


__all__ = ["DimpleImageProcessor"]

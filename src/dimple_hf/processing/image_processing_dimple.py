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

Takes Pillow images, arrays, tensors, paths, URLs and base64, refuses invalid ones by their index before any work, and
cuts the rest into patches, bit for bit as the released processor does for RGB images.
Source: Dimple, section 3 (arXiv 2505.16990) and the released `preprocessor_config.json`.
"""

import copy
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, SizeDict, infer_channel_dimension_format
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorKwargs,
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.processing_utils import Unpack
from transformers.utils import TensorType

from .image_opening_dimple import open_image

#: Longer side over shorter side. Beyond this, an image scaled to the pixel bounds is a strip that shows nothing.
MAX_ASPECT_RATIO = 200


#: Options that one image may have of its own, as parts of messages in Qwen's format.
IMAGE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


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
            raise ValueError(f"arguments of {owner} must have known names (got `{name}`{hint})")


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


def load_pil_image(source: str | os.PathLike[str] | bytes | PIL.Image.Image, index: int) -> PIL.Image.Image:
    """[`open_image`] for image number `index` (`int`) of a call, which its errors name."""
    return open_image(source, index=index)


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


def own_size(options: Mapping[str, Any], size: SizeDict, factor: int, index: int) -> SizeDict:
    """
    The size that one image is to have.

    Args:
        options (`Mapping[str, int]`):
            Of `IMAGE_OPTIONS`: bounds of its area in pixels, or both of its sides.
        size (`SizeDict`):
            The bounds of all images, `shortest_edge` and `longest_edge`.
        factor (`int`):
            What height and width must be multiples of.
        index (`int`):
            The position of the image among all images of the call, for the message.

    Returns:
        `SizeDict`: Bounds of the area; or `height` and `width`, the given sides rounded and scaled to the bounds.

    Raises:
        ValueError: If an option is unknown or no positive integer, or the options contradict each other.
    """
    refuse_unknown_names(options, IMAGE_OPTIONS, f"image {index}")
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` of image {index} must be a positive integer (got {value!r})")
    low, high = options.get("min_pixels"), options.get("max_pixels")
    low = min(size.shortest_edge, high or size.shortest_edge) if low is None else low
    high = max(size.longest_edge, low) if high is None else high
    if low > high:
        raise ValueError(f"`min_pixels` of image {index} must be at most its `max_pixels` (got {low} and {high})")
    sides = [options[name] for name in ("resized_height", "resized_width") if name in options]
    if not sides:
        return SizeDict(shortest_edge=low, longest_edge=high)
    if len(sides) == 1:
        raise ValueError(f"`resized_height` and `resized_width` of image {index} must be given together (got one)")
    if max(sides) > MAX_ASPECT_RATIO * min(sides):
        raise ValueError(
            f"`resized_height` and `resized_width` of image {index} must have a ratio of at most {MAX_ASPECT_RATIO}"
            f" to 1 (got {sides[0]} and {sides[1]})"
        )
    height, width = smart_resize(*sides, factor=factor, min_pixels=low, max_pixels=high)
    return SizeDict(height=height, width=width)


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
    | 16-bit grey | scaled to 8 bits; its transparent colour becomes white |
    | Pillow modes `"I"` and `"F"` | refused: they have no fixed range |
    | floats from 0 to 1 | scaled to 8 bits, as long as `do_rescale` is on |
    | Pillow mode `"LAB"` | converted to RGB |
    | several frames | the first frame |
    | with an EXIF orientation | turned upright, Pillow images too |

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
        for name in ("patch_size", "temporal_patch_size", "merge_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer (got {value!r})")
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            values = value if isinstance(value, (list, tuple)) else [value] * 3
            if len(values) != 3 or not all(isinstance(entry, (int, float)) for entry in values):
                raise ValueError(f"`{name}` must be a number, or one for each of the three colours (got {value!r})")

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

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """As the parent's, which notes in what it saves where the code is; this processor stays as it is."""
        # Not the class's name, which is another class when its module was loaded again.
        saved: Any = super(__class__, copy.copy(self))  # type: ignore[name-defined]
        return saved.save_pretrained(save_directory, *args, **kwargs)

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
                (`str`, `os.PathLike`), `http(s)`, `file` and `data` URLs, base64, or `bytes` of a file. For arrays and
                tensors see [`load_array_image`]. An image with options of its own is a dict: `image`, and some of
                `min_pixels`, `max_pixels`, `resized_height`, `resized_width` (see [`own_size`]).
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
        size: SizeDict,
        patch_size: int,
        merge_size: int,
        input_data_format: str | None = None,
        **kwargs: Any,
    ) -> list[tuple[np.ndarray, SizeDict]]:
        """
        Opens and checks all images; returns them as arrays of shape (3, H, W), and the size that each is to have.
        Nothing is resized yet.
        """
        sources = flatten_images(images)
        if not sources:
            raise ValueError("`images` must hold at least one image (got none)")
        prepared = []
        for index, source in enumerate(sources):
            image_size = size
            if isinstance(source, dict):
                options = {name: value for name, value in source.items() if name != "image"}
                image_size = own_size(options, size, patch_size * merge_size, index) if options else size
                if options and not do_resize:
                    raise ValueError(f"`do_resize` must be True for options of an image (image {index} has {options})")
                source = source.get("image")
            if isinstance(source, (np.ndarray, torch.Tensor)):
                image: Any = load_array_image(source, index, input_data_format, to_uint8=do_rescale)
            else:
                image = load_pil_image(source, index)
            if do_convert_rgb:
                image = self.convert_to_rgb(image, input_data_format=ChannelDimension.LAST)
            image = np.asarray(image)
            _check_shape(image.shape, index, side=1 if do_resize else patch_size * merge_size)
            prepared.append((np.moveaxis(image, -1, 0), image_size))
        return prepared

    def _preprocess(
        self,
        images: list[tuple[np.ndarray, SizeDict]],
        size: SizeDict,
        return_tensors: str | TensorType | None,
        **kwargs: Any,
    ) -> BatchFeature:
        """As the parent's, image by image: each has a size of its own."""
        features = []
        for image, image_size in images:
            features.append(super()._preprocess([image], size=image_size, return_tensors=None, **kwargs))
        data = {name: np.concatenate([entry[name] for entry in features]) for name in features[0]}
        return BatchFeature(data=data, tensor_type=return_tensors)

    def resize(self, image: np.ndarray, size: SizeDict, resample: Any, factor: int, **kwargs: Any) -> np.ndarray:
        """As the parent's; a `size` of `height` and `width` is what the image gets, whatever its shape."""
        if size.height is None:
            return super().resize(image, size, resample, factor, **kwargs)
        return super(Qwen2VLImageProcessorPil, self).resize(image=image, size=size, resample=resample)

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: dict[str, Any] | None = None) -> int:
        """As the parent's; `size` counts, too."""
        options = dict(images_kwargs or {})
        size = options.get("size") or {}
        bounds = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        bounds = {name: value for name, value in bounds.items() if value is not None}
        return super().get_number_of_image_patches(height, width, bounds | options)


__all__ = ["DimpleImageProcessor"]

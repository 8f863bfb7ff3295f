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
"""The image processor against upstream's patches, every way to name an image, and everything that is no image."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dimple_hf.processing import DimpleImageProcessor, DimpleProcessor

Web = tuple[str, dict[str, tuple[int, bytes]]]


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def patches(image_processor: DimpleImageProcessor, image: Any, **kwargs: Any) -> np.ndarray:
    """The patches of one image."""
    return image_processor(image, return_tensors="np", **kwargs)["pixel_values"]


# --- agreement with upstream ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", range(5))
def test_image_processor_on_upstream_images_is_bit_equal(
    index: int, image_processor: DimpleImageProcessor, images: list[PIL.Image.Image], parity_dir: Path
) -> None:
    """The vision tower was trained on these very numbers."""
    goldens = load_file(parity_dir / "tiny" / "goldens.safetensors")
    features = image_processor(images[index], return_tensors="pt")
    assert torch.equal(features["pixel_values"], goldens[f"image_processor.{index}.pixel_values"])
    assert torch.equal(features["image_grid_thw"], goldens[f"image_processor.{index}.grid_thw"])
    assert (features["pixel_values"].dtype, features["image_grid_thw"].dtype) == (torch.float32, torch.int64)


def test_image_processor_on_several_images_joins_their_patches(
    image_processor: DimpleImageProcessor, images: list[PIL.Image.Image]
) -> None:
    """Nesting says which row an image belongs to; the patches are one after the other all the same."""
    features = image_processor([[images[2]], [], [images[0], images[1]]], return_tensors="np")
    alone = [patches(image_processor, images[index]) for index in (2, 0, 1)]
    np.testing.assert_array_equal(features["pixel_values"], np.concatenate(alone))
    assert features["image_grid_thw"].tolist() == [[1, 8, 4], [1, 4, 4], [1, 6, 10]]


def test_image_processor_without_settings_has_upstreams_defaults() -> None:
    """Qwen2-VL's bounds: 56 x 56 to 28 x 28 x 1280 pixels, patches of 14 x 14 x 2, four to a token."""
    image_processor = DimpleImageProcessor()
    assert dict(image_processor.size) == {"shortest_edge": 3136, "longest_edge": 1003520}
    assert (image_processor.patch_size, image_processor.temporal_patch_size, image_processor.merge_size) == (14, 2, 2)


# --- pixel bounds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_pixels": 784, "max_pixels": 1568},
        {"size": {"min_pixels": 784, "max_pixels": 1568}},
        {"size": {"shortest_edge": 784, "longest_edge": 1568}},
        {"size": {"shortest_edge": 784, "longest_edge": 9999}, "max_pixels": 1568},
        {"size": {"min_pixels": 1, "max_pixels": 2}, "min_pixels": 784, "max_pixels": 1568},  # as upstream's file
    ],
)
def test_image_processor_pixel_bounds_in_either_spelling_mean_the_same(
    arguments: dict[str, Any], images: list[PIL.Image.Image]
) -> None:
    """Upstream says `min_pixels` and `max_pixels`, transformers 5 calls them edges. 1568 pixels are 2 tokens."""
    image_processor = DimpleImageProcessor(**arguments)
    assert dict(image_processor.size) == {"shortest_edge": 784, "longest_edge": 1568}
    at_call = DimpleImageProcessor()(images[1], return_tensors="np", **arguments)
    assert at_call["image_grid_thw"].tolist() == [[1, 2, 2]]  # 84 x 140 scaled to area 1568 is 30 x 51
    np.testing.assert_array_equal(at_call["pixel_values"], patches(image_processor, images[1]))


def test_image_processor_loaded_with_bounds_of_the_caller_overrides_the_file(parity_dir: Path) -> None:
    """`min_pixels` in upstream's file must not silently undo the caller's `size`."""
    path = parity_dir / "tiny"
    assert dict(DimpleImageProcessor.from_pretrained(path).size) == {"shortest_edge": 784, "longest_edge": 50176}
    loaded = DimpleImageProcessor.from_pretrained(path, size={"shortest_edge": 1000, "longest_edge": 2000})
    assert dict(loaded.size) == {"shortest_edge": 1000, "longest_edge": 2000}
    size = {"shortest_edge": 1000, "longest_edge": 2000}
    assert dict(DimpleImageProcessor(size=size, min_pixels=784).size) == {"shortest_edge": 784, "longest_edge": 2000}
    assert size == {"shortest_edge": 1000, "longest_edge": 2000}  # the caller's
    loaded = DimpleImageProcessor.from_pretrained(path, max_pixels=2000)
    assert dict(loaded.size) == {"shortest_edge": 784, "longest_edge": 2000}


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": {"shortest_edge": 2000, "longest_edge": 1000}},
        {"min_pixels": 0},
        {"max_pixels": 1000.5},
        {"size": 448},
        {"size": {"height": 56, "width": 56}},
        {"size": {"longest_edge": 1000}},
    ],
)
def test_image_processor_with_impossible_pixel_bounds_is_refused(
    arguments: dict[str, Any], images: list[PIL.Image.Image]
) -> None:
    """Bounds that say nothing, or contradict each other, would fail deep inside the resizing."""
    with pytest.raises(ValueError, match="1 <= `shortest_edge` <= `longest_edge`"):
        DimpleImageProcessor(**arguments)
    if arguments != {"max_pixels": 1000.5}:  # transformers' own type check comes first in a call
        with pytest.raises(ValueError, match="1 <= `shortest_edge` <= `longest_edge`"):
            DimpleImageProcessor()(images[0], **arguments)


SMALL = DimpleImageProcessor(min_pixels=784, max_pixels=50176)


@settings(max_examples=60)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_image_processor_on_any_size_keeps_patches_sides_and_area_in_bounds(height: int, width: int) -> None:
    """Patches must fill the grid, sides must be whole tokens, and the area must stay in its bounds."""
    image = PIL.Image.new("RGB", (width, height))
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValueError, match="ratio of at most 200 to 1"):
            SMALL(image)
        return
    features = SMALL(image, return_tensors="np")
    ((frames, rows, columns),) = features["image_grid_thw"]
    assert features["pixel_values"].shape == (rows * columns, 3 * 2 * 14 * 14)
    assert (frames, rows % 2, columns % 2) == (1, 0, 0)  # sides are multiples of 2 patches = 28 pixels
    assert rows * columns == SMALL.get_number_of_image_patches(height, width)
    area = rows * columns * 14 * 14
    # a strip of one token's height cannot be made thinner to get below the largest area
    assert 784 <= area <= 50176 or min(rows, columns) == 2


# --- ways to name an image -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(lambda path, image: str(path), id="path"),
        pytest.param(lambda path, image: path, id="pathlib"),
        pytest.param(lambda path, image: path.as_uri(), id="file URL"),
        pytest.param(lambda path, image: base64.encodebytes(path.read_bytes()).decode(), id="base64"),
        pytest.param(
            lambda path, image: "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode(), id="data URL"
        ),
        pytest.param(lambda path, image: np.array(image), id="array"),
        pytest.param(lambda path, image: np.array(image)[None], id="batch of one array"),
        pytest.param(lambda path, image: np.array(image).astype(np.int64), id="integers"),
        pytest.param(lambda path, image: np.array(image).astype(np.float32), id="floats to 255"),
        pytest.param(lambda path, image: np.array(image) / 255, id="floats to 1"),
        pytest.param(lambda path, image: torch.tensor(np.array(image)).permute(2, 0, 1), id="tensor"),
        pytest.param(lambda path, image: torch.tensor(np.array(image)).permute(2, 0, 1) / 255, id="float tensor"),
    ],
)
def test_image_processor_on_any_source_gives_the_same_patches(
    name: Callable[[Path, PIL.Image.Image], Any],
    image_processor: DimpleImageProcessor,
    image_paths: list[Path],
    images: list[PIL.Image.Image],
) -> None:
    """One image is one image, however it is handed in."""
    expected = patches(image_processor, images[1])
    np.testing.assert_array_equal(patches(image_processor, name(image_paths[1], images[1])), expected)
    assert not np.array_equal(patches(image_processor, name(image_paths[1], images[1]), do_normalize=False), expected)


def test_image_processor_on_a_web_address_gives_the_same_patches(
    web: Web, image_processor: DimpleImageProcessor, images: list[PIL.Image.Image]
) -> None:
    """A real request to a real server."""
    address, pages = web
    pages["/a.png"] = (200, encoded(images[1]))
    np.testing.assert_array_equal(patches(image_processor, f"{address}/a.png"), patches(image_processor, images[1]))


def test_image_processor_on_a_web_address_without_an_image_is_refused(
    web: Web, image_processor: DimpleImageProcessor, images: list[PIL.Image.Image]
) -> None:
    """An error page must not be taken for an image, even when it is one."""
    address, pages = web
    pages["/text.png"] = (200, b"<html>hello</html>")
    pages["/error.png"] = (500, encoded(images[0]))
    with pytest.raises(ValueError, match=r"image 0 \('http.*missing.png'\) .*HTTP Error 404"):
        image_processor(f"{address}/missing.png")
    with pytest.raises(ValueError, match=r"image 1 \('http.*error.png'\) .*HTTP Error 500"):
        image_processor([images[0], f"{address}/error.png"])
    with pytest.raises(ValueError, match=r"http.*text.png'\) .*got another format"):
        image_processor(f"{address}/text.png")
    with pytest.raises(ValueError, match=r"'http://127.0.0.1:1/a.png'\) .*refused"):
        image_processor("http://127.0.0.1:1/a.png")


@pytest.mark.parametrize(
    ("shape", "data_format", "grid"),
    [
        ((56, 84), None, [1, 4, 6]),
        ((56, 84, 1), None, [1, 4, 6]),
        ((3, 56, 84), None, [1, 4, 6]),
        ((4, 56, 84), None, [1, 4, 6]),
        ((3, 56, 3), None, [1, 10, 2]),  # either end may be the channels; the first is taken
        ((3, 56, 3), "channels_last", [1, 2, 10]),
    ],
)
def test_image_processor_reads_the_layout_of_an_array_off_its_shape(
    shape: tuple[int, ...], data_format: str | None, grid: list[int], image_processor: DimpleImageProcessor
) -> None:
    """Channels may come first or last, or not at all."""
    features = image_processor(np.zeros(shape, np.uint8), input_data_format=data_format, return_tensors="np")
    assert features["image_grid_thw"].tolist() == [grid]


# --- images that are not plain RGB ---------------------------------------------------------------------------------


def transparent() -> PIL.Image.Image:
    """56 x 56 pixels, red at four strengths of alpha."""
    pixels = np.zeros((56, 56, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[..., 3] = np.repeat([0, 100, 200, 255], 14)[None]
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("kind", ["pillow", "file", "array"])
def test_image_processor_lays_transparent_images_on_white(
    kind: str, image_processor: DimpleImageProcessor, tmp_path: Path
) -> None:
    """What is invisible must not show; a file and an opened file must give the same."""
    image = transparent()
    on_white = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.save(tmp_path / "a.png")
    source = {"pillow": image, "file": tmp_path / "a.png", "array": np.array(image)}[kind]
    expected = patches(image_processor, on_white)
    # Pillow rounds the blend its own way: one of 255 levels is 0.015 after normalization
    np.testing.assert_allclose(patches(image_processor, source), expected, atol=0.016 if kind == "array" else 0)
    assert np.abs(patches(image_processor, image.convert("RGB")) - expected).max() > 1  # control: alpha matters


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "YCbCr", "LA", "PA"])
def test_image_processor_converts_modes_as_pillow_does(
    mode: str, image_processor: DimpleImageProcessor, images: list[PIL.Image.Image]
) -> None:
    """Opaque images of any colour mode; upstream converts them so too."""
    image = images[0].convert("P" if mode == "PA" else mode).convert(mode)
    expected = patches(image_processor, image.convert("RGB"))
    np.testing.assert_array_equal(patches(image_processor, image), expected)


def test_image_processor_scales_16_bit_grey_to_8_bits(image_processor: DimpleImageProcessor, tmp_path: Path) -> None:
    """Pillow's own conversion clips: 65535 and 255 would both be white."""
    levels = np.linspace(0, 65535, 56 * 56).reshape(56, 56).astype(np.uint16)
    PIL.Image.fromarray(levels).save(tmp_path / "a.png")
    expected = patches(image_processor, np.round(levels / 257).astype(np.uint8))
    np.testing.assert_array_equal(patches(image_processor, tmp_path / "a.png"), expected)
    clipped = patches(image_processor, PIL.Image.fromarray(levels).convert("RGB"))
    assert not np.array_equal(clipped, expected)  # control


def test_image_processor_turns_files_and_opened_images_upright(
    image_processor: DimpleImageProcessor, images: list[PIL.Image.Image], tmp_path: Path
) -> None:
    """The same image gives the same patches through every door, as transformers' own `load_image` has it."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to the right
    images[1].save(tmp_path / "a.png", exif=exif)
    upright = patches(image_processor, images[1].transpose(PIL.Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(patches(image_processor, tmp_path / "a.png"), upright)
    with PIL.Image.open(tmp_path / "a.png") as opened:
        np.testing.assert_array_equal(patches(image_processor, opened), upright)
    np.testing.assert_array_equal(patches(image_processor, (tmp_path / "a.png").read_bytes()), upright)
    assert not np.array_equal(patches(image_processor, images[1]), upright)  # control


def test_image_processor_takes_the_first_frame_of_an_animation(
    image_processor: DimpleImageProcessor, tmp_path: Path
) -> None:
    """Video is not supported; an animation is seen as viewers show it at first."""
    red, blue = PIL.Image.new("RGB", (56, 56), "red"), PIL.Image.new("RGB", (56, 56), "blue")
    red.save(tmp_path / "a.gif", save_all=True, append_images=[blue])
    np.testing.assert_array_equal(patches(image_processor, tmp_path / "a.gif"), patches(image_processor, red))


def test_image_processor_rounds_floats_to_the_nearest_level(image_processor: DimpleImageProcessor) -> None:
    """Cutting off would darken every image that comes out of a computation. 0.5 * 255 = 127.5 goes to the even 128."""
    floats = np.repeat([[0.0, 0.5, 0.999, 1.0]], 56, axis=0).repeat(14, axis=1)
    levels = np.repeat([[0, 128, 255, 255]], 56, axis=0).repeat(14, axis=1)
    np.testing.assert_array_equal(patches(image_processor, floats), patches(image_processor, levels))
    assert not np.array_equal(patches(image_processor, floats), patches(image_processor, (floats * 255).astype(int)))


def test_image_processor_without_rescaling_takes_floats_as_they_are(
    image_processor: DimpleImageProcessor, images: list[PIL.Image.Image]
) -> None:
    """`do_rescale=False` is how transformers' users say that values run from 0 to 1 already."""
    floats = np.array(images[0], np.float32) / 255
    actual = patches(image_processor, floats, do_rescale=False, do_resize=False)
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(patches(image_processor, images[0])))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            "missing.png",
            r"image 1 \('missing.png'\) must be a readable image \(there is no such file, and it is neither a URL nor",
        ),
        ("cat10.png", r"there is no such file"),  # base64, were the dot left out
        ("data:image/png;base64,&", r"image 1 \('data:image/png;base64,&'"),
        (base64.b64encode(b"no image").decode(), r"image 1 \(.*\) must be a PNG, JPEG"),
        (Path(__file__), r"image 1 \('.*test_image_processing_dimple.py'\) must be a PNG"),
        (Path(__file__).parent, r"image 1 \(.*it is a folder: name an image in it"),
        (None, r"image 1 must .*got NoneType"),
        (7, r"image 1 must .*got int"),
        (b"bytes", r"image 1 \(of 5 bytes\) must .*got another format"),
        ({"image": 1}, r"image 1 must .*got int"),
        ({"bytes": b""}, r"image 1 must have known names .*got `bytes`"),
        (PIL.Image.new("RGB", (0, 5)), r"image 1 must .*it has 0 x 5 pixels"),
        (PIL.Image.new("F", (56, 56)), r"mode 'F' must be converted"),
        (PIL.Image.new("I", (56, 56)), r"mode 'I' must be converted"),
        (np.zeros((56, 56, 3), bool), r"must be numbers \(image 1 has dtype bool\)"),
        (np.zeros((56, 56, 3), object), r"must be numbers \(image 1 has dtype object\)"),
        (np.zeros((56, 0, 3), np.uint8), r"image 1 has shape \(56, 0, 3\)"),
        (np.zeros(56, np.uint8), r"image 1 has shape \(56,\)"),
        (np.zeros((1, 1, 1, 56, 56), np.uint8), r"image 1 has shape \(1, 1, 1, 56, 56\)"),
        (np.zeros((56, 56, 2), np.uint8), r"1, 3 or 4 channels \(image 1 has \(56, 56, 2\)\)"),
        (np.full((56, 56, 3), np.nan), r"values from 0 to 255 \(image 1 has nan to nan\)"),
        (torch.full((3, 56, 56), torch.inf), r"values from 0 to 255 \(image 1 has inf to inf\)"),
        (np.full((56, 56, 3), -1), r"values from 0 to 255 \(image 1 has -1 to -1\)"),
        (np.full((56, 56, 3), 256), r"values from 0 to 255 \(image 1 has 256 to 256\)"),
        (np.full((56, 56, 3), 1.5), r"image 1 has fractions and runs from 1.5 to 1.5"),
        (PIL.Image.new("RGB", (1, 201)), r"ratio of at most 200 to 1 \(image 1 has 1 x 201 pixels\)"),
        (np.zeros((2, 402, 3), np.uint8), r"ratio of at most 200 to 1 \(image 1 has 402 x 2 pixels\)"),
    ],
)
def test_image_processor_on_what_is_no_image_is_refused_before_any_work(
    bad: Any,
    message: str,
    image_processor: DimpleImageProcessor,
    images: list[PIL.Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The message names the image by its position, and the good image before it is not processed."""
    resized: list[Any] = []
    resize = DimpleImageProcessor.resize
    monkeypatch.setattr(
        DimpleImageProcessor,
        "resize",
        lambda self, *args, **kwargs: resized.append(1) or resize(self, *args, **kwargs),
    )
    with pytest.raises(ValueError, match=message):
        image_processor([images[0], bad])
    assert resized == []
    image_processor([images[0]])
    assert resized == [1]  # control: the work would have been seen


def test_image_processor_on_the_longest_allowed_strip_works(image_processor: DimpleImageProcessor) -> None:
    """Control for the ratio: 200 to 1 is still allowed."""
    assert image_processor(PIL.Image.new("RGB", (1, 200)), return_tensors="np")["image_grid_thw"].shape == (1, 3)


def test_image_processor_on_a_file_cut_short_is_refused(
    image_processor: DimpleImageProcessor, images: list[PIL.Image.Image], tmp_path: Path
) -> None:
    """Pillow opens such a file; only decoding shows that it is broken."""
    whole = encoded(images[3])
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"image 0 \('.*a.png'\) must be a readable image \(image file is truncated"):
        image_processor(tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as opened, pytest.raises(ValueError, match="image file is truncated"):
        image_processor(opened)
    (tmp_path / "a.png").write_bytes(whole)
    image_processor(tmp_path / "a.png")  # control


@pytest.mark.parametrize("limit", [3000, 1000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_processor_on_a_decompression_bomb_is_refused(
    limit: int,
    image_processor: DimpleImageProcessor,
    images: list[PIL.Image.Image],
    image_paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Image 0 has 3136 pixels: Pillow itself raises only above twice its limit, and between merely warns."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    small = PIL.Image.new("RGB", (28, 28))
    message = rf"image 1 \('.*0.png'\) must have at most {limit} pixels"
    with pytest.raises(ValueError, match=message):
        image_processor([small, image_paths[0]])
    with PIL.Image.open(image_paths[0]) if limit == 3000 else images[0] as opened:
        with pytest.raises(ValueError, match=rf"at most {limit} pixels .*it has 56 x 56"):
            image_processor([small, opened])
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    image_processor([small, image_paths[0]])  # control: Pillow's way to switch the limit off


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_image_processor_on_a_decompression_bomb_with_warnings_as_errors_says_the_same(
    image_processor: DimpleImageProcessor, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who turns warnings into errors gets our message too, not Pillow's."""
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(ValueError, match="at most 3000 pixels"):
        image_processor(image_paths[0])


def test_image_processor_on_no_images_is_refused(image_processor: DimpleImageProcessor) -> None:
    """An empty list would fail when patches are joined."""
    with pytest.raises(ValueError, match="at least one image"):
        image_processor([[], []])


def test_image_processor_with_an_unknown_argument_is_refused(
    image_processor: DimpleImageProcessor, images: list[PIL.Image.Image]
) -> None:
    """A misspelt setting that is ignored gives other patches than asked for."""
    with pytest.raises(ValueError, match=r"got `max_pixel`; did you mean `max_pixels`"):
        image_processor(images[0], max_pixel=1000)
    with pytest.raises(ValueError, match=r"got `zzz`\)"):
        image_processor(images[0], zzz=1)


def test_image_processor_without_resizing_refuses_sides_that_are_no_tokens(
    image_processor: DimpleImageProcessor,
) -> None:
    """Patches must fill the image."""
    with pytest.raises(ValueError, match=r"not multiples of 28 \(image 0 has 30 x 56 pixels\)"):
        image_processor(PIL.Image.new("RGB", (30, 56)), do_resize=False)
    features = image_processor(PIL.Image.new("RGB", (28, 56)), do_resize=False, return_tensors="np")
    assert features["image_grid_thw"].tolist() == [[1, 4, 2]]


def test_image_processor_without_conversion_refuses_images_that_are_not_rgb(
    image_processor: DimpleImageProcessor, images: list[PIL.Image.Image]
) -> None:
    """The vision tower has three input channels."""
    with pytest.raises(ValueError, match=r"`do_convert_rgb` must be True .*\(image 0 has shape \(56, 56\)\)"):
        image_processor(images[0].convert("L"), do_convert_rgb=False)
    np.testing.assert_array_equal(
        patches(image_processor, images[0], do_convert_rgb=False), patches(image_processor, images[0])
    )


# --- saving --------------------------------------------------------------------------------------------------------


def test_image_processor_saved_and_loaded_gives_the_same_patches(
    image_processor: DimpleImageProcessor, images: list[PIL.Image.Image], tmp_path: Path
) -> None:
    """Settings survive, in the spelling of transformers 5 and in upstream's."""
    image_processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["size"] == {"shortest_edge": 784, "longest_edge": 50176}
    assert (saved["min_pixels"], saved["max_pixels"]) == (784, 50176)
    assert saved["image_processor_type"] == "DimpleImageProcessor"
    loaded = DimpleImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == image_processor.to_dict()
    np.testing.assert_array_equal(patches(loaded, images[4]), patches(image_processor, images[4]))
    assert not np.array_equal(patches(DimpleImageProcessor(max_pixels=9000), images[4]), patches(loaded, images[4]))


def test_image_processor_saved_points_to_its_own_code_only(parity_dir: Path, tmp_path: Path) -> None:
    """Not to what upstream's `auto_map` names, nor to the processor that it was saved with before."""
    source = parity_dir / "tokenizer" / "preprocessor_config.json"
    assert "AutoProcessor" in json.loads(source.read_text())["auto_map"]  # control
    processor = DimpleProcessor.from_pretrained(source.parent)
    processor.save_pretrained(tmp_path / "processor")
    processor.image_processor.save_pretrained(tmp_path / "alone")
    for folder in ("processor", "alone"):
        saved = json.loads((tmp_path / folder / "preprocessor_config.json").read_text())
        assert saved["auto_map"] == {"AutoImageProcessor": "image_processing_dimple.DimpleImageProcessor"}
    assert {path.name for path in (tmp_path / "alone").glob("*.py")} == {
        "image_opening_dimple.py",
        "image_processing_dimple.py",
    }
    processor.image_processor.to_json_file(tmp_path / "no_code_beside.json")
    assert "auto_map" not in (tmp_path / "no_code_beside.json").read_text()


# --- images with options of their own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "grid"),
    [
        ({}, [1, 8, 16]),
        ({"min_pixels": 784, "max_pixels": 1568}, [1, 2, 4]),
        ({"min_pixels": 4 * 112 * 224}, [1, 16, 32]),
        ({"max_pixels": 784}, [1, 2, 2]),  # below the processor's least area, which gives way
        ({"resized_height": 60, "resized_width": 90}, [1, 4, 6]),  # rounded to multiples of 28
        ({"resized_height": 28, "resized_width": 28}, [1, 4, 4]),  # and then scaled to the processor's least area
        ({"resized_height": 28, "resized_width": 28, "min_pixels": 1}, [1, 2, 2]),
    ],
)
def test_image_processor_on_options_of_one_image_applies_them_to_it_alone(
    options: dict[str, int], grid: list[int]
) -> None:
    """As Qwen's processors read a part of a message; the other image keeps the processor's size."""
    processor = DimpleImageProcessor(min_pixels=3136)
    image = PIL.Image.new("RGB", (224, 112))
    features = processor([{"image": image, **options}, image], return_tensors="np")
    assert features["image_grid_thw"].tolist() == [grid, [1, 8, 16]]
    assert len(features["pixel_values"]) == grid[1] * grid[2] + 8 * 16
    alone = processor({"image": image, **options}, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(features["pixel_values"][: len(alone)], alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixel": 5}, r"image 0 must have known names \(got `max_pixel`; did you mean `max_pixels`"),
        ({"max_pixels": 0}, r"`max_pixels` of image 0 must be a positive integer \(got 0\)"),
        ({"min_pixels": True}, r"`min_pixels` of image 0 must be a positive integer \(got True\)"),
        ({"min_pixels": 9, "max_pixels": 8}, r"`min_pixels` of image 0 must be at most its `max_pixels`"),
        ({"resized_height": 28}, r"image 0 must be given together"),
        ({"resized_height": 1, "resized_width": 201}, r"image 0 must have a ratio of at most 200 to 1"),
    ],
)
def test_image_processor_on_options_of_one_image_that_mean_nothing_is_refused(
    options: dict[str, int], message: str, images: list[PIL.Image.Image]
) -> None:
    """An option that is ignored gives another image than was wanted."""
    with pytest.raises(ValueError, match=message):
        DimpleImageProcessor()({"image": images[0], **options})
    with pytest.raises(ValueError, match="`do_resize` must be True for options of an image"):
        DimpleImageProcessor()({"image": images[0], "max_pixels": 3136}, do_resize=False)


def test_image_processor_counts_the_patches_of_a_size(image_processor: DimpleImageProcessor) -> None:
    """Inference engines reserve room before there is an image; every spelling of the bounds counts."""
    for options in ({}, {"max_pixels": 9000}, {"size": {"shortest_edge": 784, "longest_edge": 9000}}):
        grid = image_processor(PIL.Image.new("RGB", (200, 100)), return_tensors="np", **options)["image_grid_thw"]
        assert image_processor.get_number_of_image_patches(100, 200, options) == grid.prod()

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
"""Images without a form, for which the honest answer is "no form": blank paper, noise, charts, text and photographs.

The photographs come with scikit-image and scikit-learn; those of the two splits differ, as do the words of a page.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
from forms_data import CELL, GRID_COLUMNS, GRID_ROWS, SPLITS
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

PHOTOGRAPHS = {
    "train": (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coins.png", "grass.png", "gravel.png",
        "horse.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "china.jpg",
    ),
    "test": ("coffee.png", "rocket.jpg", "page.png", "text.png", "color.png", "flower.jpg"),
}  # fmt: skip
WORDS = {
    "train": "river stone window garden paper yellow morning silver letter winter music bridge doctor north engine",
    "test": "forest copper basket summer castle needle pocket harbour saddle orange ladder museum violet candle",
}
"""Words on pages of text."""

SIZE = GRID_COLUMNS * CELL, GRID_ROWS * CELL
"""Width and height of a form."""


@lru_cache(maxsize=32)
def _photograph(name: str) -> Image.Image:
    if name in ("china.jpg", "flower.jpg"):
        return Image.fromarray(load_sample_image(name))
    return Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")


def _draw_photograph(split: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Part of a photograph, at least half as wide or high as the whole, sometimes mirrored."""
    photograph = _photograph(str(rng.choice(PHOTOGRAPHS[split])))
    scale = rng.uniform(0.5, 1) * min(photograph.width / size[0], photograph.height / size[1])
    width, height = scale * size[0], scale * size[1]
    left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
    part = photograph.resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.integers(2) else part


def _draw_noise(split: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Noise of any grain, grey or in colours, around any brightness: at its weakest, blank paper."""
    grain = int(rng.integers(1, 15))
    num_channels = int(rng.choice([1, 3]))
    pixels = rng.standard_normal((size[1] // grain + 1, size[0] // grain + 1, num_channels)) * rng.uniform(0, 90)
    pixels = np.clip(pixels + rng.uniform(0, 255, num_channels), 0, 255).astype(np.uint8)
    noise = Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())
    return noise.resize(size, Image.Resampling(int(rng.choice([Image.Resampling.NEAREST, Image.Resampling.BILINEAR]))))


def _draw_paper(split: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Paper with nothing on it but, sometimes, rules."""
    paper = Image.new("RGB", size, _colour(rng, 190, 256))
    if rng.integers(2):
        draw = ImageDraw.Draw(paper)
        for y in range(int(rng.integers(10, 30)), size[1], int(rng.integers(12, 30))):
            draw.line((3, y, size[0] - 4, y), fill=_colour(rng, 100, 200))
    return paper


def _draw_chart(split: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Bars, a line or a pie, with axes."""
    width, height = size
    chart = Image.new("RGB", size, _colour(rng, 220, 256))
    draw = ImageDraw.Draw(chart)
    values = rng.uniform(0.1, 0.9, int(rng.integers(3, 9)))
    kind = rng.integers(3)
    if kind == 0:
        angle = 0.0
        for share in values / values.sum():
            box = (width / 2 - height / 3, height / 6, width / 2 + height / 3, 5 * height / 6)
            draw.pieslice(box, angle, angle + 360 * share, fill=_colour(rng, 0, 256))
            angle += 360 * share
        return chart
    draw.line([(12, 8), (12, height - 12), (width - 8, height - 12)], fill=0)
    step = (width - 28) / len(values)
    tops = [(16 + step * index, height - 13 - value * (height - 24)) for index, value in enumerate(values)]
    if kind == 1:
        for left, top in tops:
            draw.rectangle((left, top, left + 0.7 * step, height - 13), fill=_colour(rng, 0, 220))
    else:
        draw.line(tops, fill=_colour(rng, 0, 200), width=int(rng.integers(1, 4)))
    return chart


def _draw_text(split: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A page of words."""
    page = Image.new("RGB", size, _colour(rng, 200, 256))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default_imagefont()
    words = WORDS[split].split()
    for y in range(int(rng.integers(2, 20)), size[1] - 12, int(rng.integers(11, 24))):
        line = " ".join(rng.choice(words, int(rng.integers(2, 7))))
        draw.text((int(rng.integers(2, 16)), y), line, fill=_colour(rng, 0, 100), font=font)
    return page


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(low, high, 3))
    return red, green, blue


OTHERS: dict[str, Callable[[str, tuple[int, int], np.random.Generator], Image.Image]] = {
    "photograph": _draw_photograph,
    "noise": _draw_noise,
    "paper": _draw_paper,
    "chart": _draw_chart,
    "text": _draw_text,
}
"""Kind of image without a form to the function that draws it."""


def draw_other(
    split: str, rng: np.random.Generator, kind: str | None = None, size: tuple[int, int] = SIZE
) -> Image.Image:
    """Draws an image without a form.

    Args:
        split (`str`): `"train"` or `"test"`; they share no photograph and no word of a page.
        rng (`np.random.Generator`): The source of everything in it.
        kind (`str`, *optional*): A key of `OTHERS`; drawn when not given.
        size (`tuple[int, int]`, defaults to that of a form): Width and height.

    Returns:
        `PIL.Image.Image`: RGB.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)} (got {split!r})")
    drawn = str(rng.choice(list(OTHERS)))
    return OTHERS[drawn if kind is None else kind](split, size, rng)

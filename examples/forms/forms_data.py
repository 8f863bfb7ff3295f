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
"""Images of small forms with printed labels and handwritten numbers.

The handwriting is real: the 1,797 digits of 8x8 pixels in scikit-learn's `load_digits` (UCI "Optical Recognition of
Handwritten Digits"). They are split by image before anything is composed, so no digit seen in training appears in a
held-out image. Everything about example `index` follows from `(split, index, seed)`: nothing is stored, nothing is
read from the network. A plain form has numbers only, a rich one also amounts, dates and checkboxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

CELL = 28
"""Side of one merged image token in pixels: patches of 14, merged 2x2."""
GRID_ROWS, GRID_COLUMNS = 5, 6
"""The image in cells: 140 pixels high, 168 wide, so 30 image tokens and nothing to resize."""
LABEL_COLUMNS = 2
"""Cells 0 and 1 of a row hold its printed label, cells 2 to 5 its digits."""
MIN_ROWS, MAX_ROWS = 2, GRID_ROWS
MAX_DIGITS = GRID_COLUMNS - LABEL_COLUMNS

LABELS = (
    "age", "code", "floor", "item", "lot", "order", "page", "phone",
    "price", "qty", "room", "seat", "table", "tax", "total", "year",
)  # fmt: skip
"""Labels of numbers, the only ones on plain forms."""
AMOUNT_LABELS, DATE_LABELS, BOX_LABELS = ("cost", "fee"), ("date", "due"), ("gift", "new", "paid")
"""Labels of amounts with two decimals, of dates (month and day) and of checkboxes, on rich forms."""
ALL_LABELS = LABELS + AMOUNT_LABELS + DATE_LABELS + BOX_LABELS
SPLITS = ("train", "test")
NUM_TRAIN_DIGITS = 1400

CELL_TARGETS = {
    "shows": 1 + 10 + len(ALL_LABELS) + 2,
    "label": 1 + len(ALL_LABELS),
    "row": 1 + MAX_ROWS,
    "position": 1 + MAX_DIGITS,
    "digit": 1 + MAX_DIGITS,
}
"""What the vision stages learn of each cell, and the number of classes; class 0 is always "nothing". The last two of
`"shows"` are an empty and a ticked checkbox."""

Value = int | float | str | bool
"""A number, an amount, a date as `"MM-DD"`, or whether a checkbox is ticked."""

_CROSS = np.array([(-0.7, -0.7), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7)])
_TICK = np.array([(-0.6, 0.0), (-0.1, 0.7), (-0.1, 0.7), (0.8, -0.9)])
"""Two strokes each, from corner to corner: where they begin and end in a box from -1 to 1."""
_GLYPH_BOX = 32
_GLYPH_BORDER = 2
_MARGIN = 16


@dataclass(frozen=True)
class Jitter:
    """How far images vary; each value is the half width of a uniform range unless stated otherwise.

    Args:
        angle (`float`): Rotation of one digit in degrees.
        shear (`float`): Horizontal shear of one digit (x per y).
        stretch (`float`): Relative change of height and width of one digit, drawn separately.
        shift (`float`): Shift of one digit in pixels along both axes, besides `row_shift`.
        row_shift (`float`): Shift of a whole row (label and digits) in pixels along both axes.
        bend (`float`): Shift of one corner of a digit in pixels, which makes a stroke lean as in fast writing.
        ink (`tuple[float, float]`): Range of the stroke's gain; more is thicker and harder-edged.
        noise (`float`): Largest standard deviation of the pixel noise, on the scale 0 to 255.
    """

    angle: float
    shear: float
    stretch: float
    shift: float
    row_shift: float
    bend: float
    ink: tuple[float, float]
    noise: float


JITTER = {
    # Training images vary more than held-out ones: 1,400 digits are few, and the tower must not learn them by heart.
    "train": Jitter(
        angle=14.0, shear=0.25, stretch=0.16, shift=2.5, row_shift=2.0, bend=1.0, ink=(0.95, 1.9), noise=14.0
    ),
    "test": Jitter(
        angle=5.0, shear=0.08, stretch=0.08, shift=1.5, row_shift=1.5, bend=0.0, ink=(1.1, 1.5), noise=10.0
    ),
}


@dataclass(frozen=True)
class FormRow:
    """One row of a form: a label, and the digits of its value by their index in `load_digits` or a checkbox."""

    label: str
    digit_indices: tuple[int, ...] = ()
    is_ticked: bool = False

    @property
    def value(self) -> Value:
        if self.label in BOX_LABELS:
            return self.is_ticked
        values = digit_images()[1]
        digits = "".join(str(values[index]) for index in self.digit_indices)
        if self.label in DATE_LABELS:
            return f"{digits[:2]}-{digits[2:]}"
        return int(digits) / 100 if self.label in AMOUNT_LABELS else int(digits)


@dataclass(frozen=True)
class Form:
    """A form: its rows from top to bottom, and the grid row where the first one stands."""

    rows: tuple[FormRow, ...]
    first_grid_row: int

    @property
    def fields(self) -> dict[str, Value]:
        """Label to value, in reading order."""
        return {row.label: row.value for row in self.rows}


@lru_cache(maxsize=1)
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """All digits as ink, `uint8 (1797, 12, 12)` with a blank border of 2, and their values, `int64 (1797,)`."""
    digits = load_digits()
    ink = np.round(digits.images * (255 / 16)).astype(np.uint8)
    border = ((0, 0), (_GLYPH_BORDER, _GLYPH_BORDER), (_GLYPH_BORDER, _GLYPH_BORDER))
    return np.pad(ink, border), digits.target


@cache
def _glyph(index: int) -> Image.Image:
    return Image.fromarray(digit_images()[0][index])


@lru_cache(maxsize=len(SPLITS))
def split_indices(split: str) -> np.ndarray:
    """Indices into `load_digits` that `split` may use: 1,400 for `"train"`, the other 397 for `"test"`."""
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)} (got {split!r})")
    # RandomState, not Generator: its stream is frozen by NumPy's compatibility policy, so the split never moves.
    order = np.random.RandomState(0).permutation(len(digit_images()[1]))
    return np.sort(order[:NUM_TRAIN_DIGITS] if split == "train" else order[NUM_TRAIN_DIGITS:])


@lru_cache(maxsize=len(SPLITS))
def _indices_by_value(split: str) -> tuple[np.ndarray, ...]:
    indices = split_indices(split)
    values = digit_images()[1][indices]
    return tuple(indices[values == value] for value in range(10))


def form_rng(split: str, index: int, seed: int = 0) -> np.random.Generator:
    """The random stream of example `index`: form, image and question are drawn from it in this order."""
    return np.random.default_rng((seed, SPLITS.index(split), index))


def draw_form(split: str, rng: np.random.Generator, is_rich: bool = False) -> Form:
    """Draws a form: 2 to 5 rows with different labels; numbers of 1 to 4 digits without leading zeros.

    Args:
        split (`str`): `"train"` or `"test"`: whose digits.
        rng (`np.random.Generator`): The source of rows and digits.
        is_rich (`bool`, defaults to `False`): Whether about half of the rows are amounts, dates and checkboxes.
    """
    num_rows = int(rng.integers(MIN_ROWS, MAX_ROWS + 1))
    first_grid_row = int(rng.integers(GRID_ROWS - num_rows + 1))
    labels = list(rng.permutation(len(LABELS))[:num_rows])
    if is_rich:
        special = len(LABELS) + rng.permutation(len(ALL_LABELS) - len(LABELS))[: (num_rows + 1) // 2]
        labels = list(rng.permutation([*special, *labels[len(special) :]]))
    rows = [_draw_row(ALL_LABELS[label], split, rng) for label in labels]
    return Form(tuple(rows), first_grid_row)


def _draw_row(label: str, split: str, rng: np.random.Generator) -> FormRow:
    if label in BOX_LABELS:
        return FormRow(label, is_ticked=bool(rng.integers(2)))
    if label in DATE_LABELS:
        month, day = rng.integers(1, 13), rng.integers(1, 29)
        return FormRow(label, _pick_digits([int(digit) for digit in f"{month:02d}{day:02d}"], split, rng))
    num_digits = int(rng.integers(MAX_DIGITS - 1 if label in AMOUNT_LABELS else 1, MAX_DIGITS + 1))
    values = rng.integers(10, size=num_digits)
    if num_digits > 1:
        values[0] = rng.integers(1, 10)
    return FormRow(label, _pick_digits(values, split, rng))


def _pick_digits(values: Sequence[int], split: str, rng: np.random.Generator) -> tuple[int, ...]:
    """An image of the split for each of these values, by its index in `load_digits`."""
    by_value, picks = _indices_by_value(split), rng.random(len(values))
    return tuple(
        int(by_value[value][int(pick * len(by_value[value]))]) for value, pick in zip(values, picks, strict=True)
    )


#: The values of a pixel of 8 bits, from 0 to 1.
_LEVELS = np.arange(256, dtype=np.float32) / 255


@lru_cache(maxsize=len(ALL_LABELS))
def _label_mask(label: str) -> Image.Image:
    """The label in PIL's built-in bitmap font (the same pixels on every system), ink = 255, blank border of 2."""
    font = ImageFont.load_default_imagefont()
    left, top, right, bottom = (int(edge) for edge in font.getbbox(label))
    mask = Image.new("L", (right - left + 4, bottom - top + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), label, fill=255, font=font)
    return mask


def _draw_digit(ink: np.ndarray, glyph: Image.Image, center: tuple[float, float], size: float, jitter: Jitter,
                darkness: np.ndarray, rng: np.random.Generator) -> None:  # fmt: skip
    """
    Adds one digit to `ink` (`float32`, with a margin) around `center` (x, y); `size` is its height in pixels, and
    `darkness` the ink of each of the 256 values of a glyph's pixel.
    """
    angle, shear, stretch_x, stretch_y, shift_x, shift_y = rng.uniform(-1, 1, 6) * (
        np.deg2rad(jitter.angle), jitter.shear, jitter.stretch, jitter.stretch, jitter.shift, jitter.shift
    )  # fmt: skip
    cos, sin = np.cos(angle), np.sin(angle)
    left, top = int(center[0] + shift_x) - _GLYPH_BOX // 2, int(center[1] + shift_y) - _GLYPH_BOX // 2
    # From the corners of the box on the page back to the glyph: undo the rotation, the shear, then the scale.
    corners = np.array([(0, 0), (0, _GLYPH_BOX), (_GLYPH_BOX, _GLYPH_BOX), (_GLYPH_BOX, 0)], dtype=float)
    corners += (left, top) - np.array((center[0] + shift_x, center[1] + shift_y))
    if jitter.bend:
        corners += rng.uniform(-jitter.bend, jitter.bend, (4, 2))
    x = cos * corners[:, 0] + sin * corners[:, 1]
    y = cos * corners[:, 1] - sin * corners[:, 0]
    scale = (glyph.height - 2 * _GLYPH_BORDER) / size
    quad = np.stack(((x - shear * y) * scale / (1 + stretch_x), y * scale / (1 + stretch_y)), axis=1)
    quad += glyph.height / 2
    box = glyph.transform(
        (_GLYPH_BOX, _GLYPH_BOX), Image.Transform.QUAD, tuple(quad.ravel()), Image.Resampling.BICUBIC
    )
    strokes = darkness[np.asarray(box)]
    target = ink[top : top + _GLYPH_BOX, left : left + _GLYPH_BOX]
    np.maximum(target, strokes, out=target)


def render_form(form: Form, split: str, rng: np.random.Generator) -> Image.Image:
    """Draws the form as an RGB image of 168x140 pixels.

    Args:
        form (`Form`): What to draw.
        split (`str`): `"train"` or `"test"`: which `JITTER` to apply (the digits are the form's own).
        rng (`np.random.Generator`): The source of all jitter, shade and noise.

    Returns:
        `PIL.Image.Image`: RGB, width 168, height 140.
    """
    jitter = JITTER[split]
    height, width = GRID_ROWS * CELL, GRID_COLUMNS * CELL
    ink = np.zeros((height + 2 * _MARGIN, width + 2 * _MARGIN), dtype=np.float32)
    size, gain = rng.uniform(20, 24), rng.uniform(*jitter.ink)
    label_scale = rng.uniform(1.25, 1.5)
    rule = rng.uniform(0.0, 0.35)
    darkness = np.clip((_LEVELS - 0.2) * gain, 0, 1)
    for row_number, row in enumerate(form.rows):
        shift_x, shift_y = rng.uniform(-jitter.row_shift, jitter.row_shift, 2)
        center_y = _MARGIN + (form.first_grid_row + row_number + 0.5) * CELL + shift_y
        baseline = int(center_y + 0.5 * CELL - 1)
        ink[baseline, _MARGIN + 3 : _MARGIN + width - 3] += rule
        mask = _label_mask(row.label)
        mask = mask.resize(
            (round(mask.width * label_scale), round(mask.height * label_scale)), Image.Resampling.BICUBIC
        )
        left, top = int(_MARGIN + 3 + shift_x + rng.uniform(0, 4)), int(center_y - mask.height / 2)
        target = ink[top : top + mask.height, left : left + mask.width]
        np.maximum(target, np.asarray(mask, dtype=np.float32) / 255, out=target)
        for position, index in enumerate(row.digit_indices):
            center_x = _MARGIN + (LABEL_COLUMNS + position + 0.5) * CELL + shift_x
            _draw_digit(ink, _glyph(index), (center_x, center_y), size, jitter, darkness, rng)
        if row.label not in LABELS:
            _draw_printed_marks(ink, row, shift_x, int(center_y), rng)
    ink = ink[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return _shade(ink, jitter, rng)


def _draw_printed_marks(
    ink: np.ndarray, row: FormRow, shift_x: float, center_y: int, rng: np.random.Generator
) -> None:
    """Adds a decimal point, the dash of a date, or a checkbox with its tick, which is drawn by hand."""
    if row.label in BOX_LABELS:
        center_x = int(_MARGIN + (LABEL_COLUMNS + 0.5) * CELL + shift_x)
        half = int(rng.integers(7, 10))
        box = Image.new("L", (2 * half + 9, 2 * half + 9))
        draw = ImageDraw.Draw(box)
        draw.rectangle((4, 4, 2 * half + 4, 2 * half + 4), outline=200)
        if row.is_ticked:
            strokes = rng.permutation([_CROSS, _TICK])[0] * half + half + 4 + rng.uniform(-2, 2, (4, 2))
            for start, stop in ((0, 1), (2, 3)):
                draw.line([tuple(strokes[start]), tuple(strokes[stop])], fill=255, width=int(rng.integers(2, 4)))
        target = ink[center_y - half - 4 : center_y + half + 5, center_x - half - 4 : center_x + half + 5]
        np.maximum(target, np.asarray(box, dtype=np.float32) / 255, out=target)
        return
    num_before = len(row.digit_indices) - 2
    x = int(_MARGIN + (LABEL_COLUMNS + num_before) * CELL + shift_x)
    if row.label in AMOUNT_LABELS:
        ink[center_y + 8 : center_y + 11, x - 1 : x + 2] = 1
    else:
        ink[center_y : center_y + 2, x - 3 : x + 4] = 1


def _shade(ink: np.ndarray, jitter: Jitter, rng: np.random.Generator) -> Image.Image:
    """Lays the ink on tinted paper with a slanting shadow and adds pixel noise."""
    height, width = ink.shape
    paper = rng.uniform(190, 255) + rng.uniform(-12, 0, 3).astype(np.float32)
    pen = rng.uniform(0, 70) + rng.uniform(0, 40, 3).astype(np.float32)
    slope_y, slope_x = rng.uniform(-18, 18, 2)
    shadow = slope_y * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    shadow = shadow + slope_x * np.linspace(-1, 1, width, dtype=np.float32)
    shadow += rng.uniform(0, jitter.noise) * rng.standard_normal(ink.shape, dtype=np.float32)
    pixels = (pen - paper) * np.minimum(ink, 1)[..., None]
    pixels += paper + shadow[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def cell_targets(form: Form) -> dict[str, np.ndarray]:
    """What each of the image's 30 image tokens shows, and what it belongs to, for the vision stage.

    Returns:
        `dict[str, np.ndarray]`: `int64 (5, 6)` each, 0 where there is nothing: `"shows"`, 1 + value for a digit,
        11 + label number for the two cells of a label, the last two classes for a checkbox; `"label"`, 1 + number of
        its row's label; `"row"`, its row in the form, from 1; `"position"`, the decimal position of a digit, 1 for
        units; `"digit"`, its number in reading order.
    """
    values = digit_images()[1]
    targets = {name: np.zeros((GRID_ROWS, GRID_COLUMNS), dtype=np.int64) for name in CELL_TARGETS}
    for number, row in enumerate(form.rows):
        label, num_digits = ALL_LABELS.index(row.label), len(row.digit_indices)
        is_box = row.label in BOX_LABELS
        cells = form.first_grid_row + number, slice(0, LABEL_COLUMNS + max(num_digits, is_box))
        digits = form.first_grid_row + number, slice(LABEL_COLUMNS, LABEL_COLUMNS + num_digits)
        targets["shows"][cells] = 11 + label
        targets["shows"][digits] = 1 + values[list(row.digit_indices)]
        if is_box:
            targets["shows"][form.first_grid_row + number, LABEL_COLUMNS] = CELL_TARGETS["shows"] - 2 + row.is_ticked
        targets["label"][cells] = 1 + label
        targets["row"][cells] = 1 + number
        targets["position"][digits] = np.arange(num_digits, 0, -1)
        targets["digit"][digits] = np.arange(1, num_digits + 1)
    return targets

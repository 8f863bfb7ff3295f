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
"""Tests of examples/forms/forms_data.py: digits split before composing, images that follow from a number."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

import forms_data
from forms_data import cell_targets, digit_images, draw_form, form_rng, render_form, split_indices


def digits_used(split: str, num_forms: int) -> set[int]:
    """The digit images that the first forms of a split are made of."""
    forms = (draw_form(split, form_rng(split, index)) for index in range(num_forms))
    return {digit for form in forms for row in form.rows for digit in row.digit_indices}


def image(split: str, index: int, seed: int = 0) -> np.ndarray:
    rng = form_rng(split, index, seed)
    return np.asarray(render_form(draw_form(split, rng), split, rng))


def test_split_indices_of_both_splits_are_disjoint_and_complete():
    """Scores on held-out digits mean nothing if a single digit is in both splits."""
    train, test = split_indices("train"), split_indices("test")
    assert (len(train), len(test)) == (1400, 397)
    assert sorted([*train, *test]) == list(range(1797))
    # Committed scores belong to this very split: it must never move.
    assert test[:5].tolist() == [11, 23, 24, 25, 28]


def test_split_indices_of_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"`split` must be one of train, test \(got 'val'\)"):
        split_indices("val")


def test_draw_form_uses_only_the_digits_of_its_split():
    """The split must survive the composing: no train form holds a held-out digit, and nearly all digits are used."""
    train, test = digits_used("train", 600), digits_used("test", 300)
    assert train <= set(split_indices("train").tolist())
    assert test <= set(split_indices("test").tolist())
    assert len(train) > 1300
    assert len(test) == 397
    # Control: the check sees a shared digit where the pools do overlap.
    assert digits_used("test", 300) & digits_used("test", 10)


def test_draw_form_gives_numbers_that_json_can_hold():
    """2 to 5 rows, different labels, 1 to 4 digits, no leading zero, and every such size occurs."""
    sizes, lengths, zeros = set(), set(), 0
    for index in range(300):
        form = draw_form("train", form_rng("train", index))
        labels = [row.label for row in form.rows]
        assert len(set(labels)) == len(labels)
        assert form.first_grid_row + len(labels) <= forms_data.GRID_ROWS
        sizes.add(len(labels))
        for row in form.rows:
            lengths.add(len(row.digit_indices))
            zeros += row.value == 0
            assert len(str(row.value)) == len(row.digit_indices)
    assert (sizes, lengths) == ({2, 3, 4, 5}, {1, 2, 3, 4})
    assert zeros > 0


def test_image_of_a_row_follows_from_its_numbers_alone():
    """Resumed and distributed runs must see the same images as an uninterrupted one."""
    first = image("train", 7)
    np.testing.assert_array_equal(image("train", 7), first)
    assert first.shape == (140, 168, 3)
    assert first.dtype == np.uint8
    for other in (image("train", 8), image("test", 7), image("train", 7, seed=1)):
        assert (other != first).mean() > 0.5


def test_image_shows_dark_digits_where_cell_targets_say():
    """The vision stage learns from `cell_targets`: a cell named as a digit must hold ink, a blank one almost none."""
    darkest = {"blank": [], "digit": []}
    for index in range(20):
        rng = form_rng("test", index)
        form = draw_form("test", rng)
        grey = np.asarray(render_form(form, "test", rng).convert("L"), dtype=float)
        cells = grey.reshape(5, 28, 6, 28).transpose(0, 2, 1, 3)
        # The middle of a cell: its border may hold a neighbour's stroke or the rule under the row.
        range_in_cell = np.quantile(cells[:, :, 6:22, 6:22], 0.9, axis=(2, 3)) - cells[:, :, 6:22, 6:22].min((2, 3))
        classes = cell_targets(form)["shows"]
        darkest["blank"] += range_in_cell[classes == 0].tolist()
        darkest["digit"] += range_in_cell[(classes >= 1) & (classes <= 10)].tolist()
    assert np.mean(darkest["digit"]) > 2.5 * np.mean(darkest["blank"])


def test_cell_targets_of_a_known_form_are_exact():
    """The vision stage's whole supervision, written out for a form of two rows that starts in the third grid row."""
    values = digit_images()[1]
    three, zero = (int(np.flatnonzero(values == value)[0]) for value in (3, 0))
    rows = (forms_data.FormRow("age", (three, zero)), forms_data.FormRow("qty", (zero,)))
    form = forms_data.Form(rows, first_grid_row=2)
    assert form.fields == {"age": 30, "qty": 0}
    expected = {
        "shows": [[11, 11, 4, 1, 0, 0], [20, 20, 1, 0, 0, 0]],
        "label": [[1, 1, 1, 1, 0, 0], [10, 10, 10, 0, 0, 0]],
        "row": [[1, 1, 1, 1, 0, 0], [2, 2, 2, 0, 0, 0]],
        "position": [[0, 0, 2, 1, 0, 0], [0, 0, 1, 0, 0, 0]],
        "digit": [[0, 0, 1, 2, 0, 0], [0, 0, 1, 0, 0, 0]],
    }
    targets = cell_targets(form)
    assert targets.keys() == expected.keys() == forms_data.CELL_TARGETS.keys()
    for name, two_rows in expected.items():
        np.testing.assert_array_equal(targets[name][2:4], two_rows)
        assert not targets[name][[0, 1, 4]].any()


def test_render_form_of_a_test_image_bends_less_than_training():
    """Only training images are augmented strongly; the held-out ones are what a user would draw."""
    train, test = (dataclasses.asdict(forms_data.JITTER[split]) for split in ("train", "test"))
    assert all(train[name] >= test[name] for name in train if name != "ink")
    assert train["ink"][0] <= test["ink"][0] < test["ink"][1] <= train["ink"][1]

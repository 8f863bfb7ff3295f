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
"""Tests of examples/forms/forms_other.py: images without a form."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("skimage")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_data import form_rng
from forms_other import OTHERS, PHOTOGRAPHS, WORDS, draw_other


@pytest.mark.parametrize("kind", OTHERS)
def test_draw_other_repeats_itself_and_varies(kind):
    """Resumed runs must see the same images; an image of one kind is not always the same."""
    for split in ("train", "test"):
        first, again, other = (draw_other(split, form_rng(split, index), kind, (90, 70)) for index in (3, 3, 4))
        assert (first.size, first.mode) == ((90, 70), "RGB")
        np.testing.assert_array_equal(np.asarray(first), np.asarray(again))
        assert (np.asarray(first) != np.asarray(other)).any()


def test_draw_other_draws_all_kinds():
    """The kind is drawn first, and the image does not depend on whether it was given."""
    drawn = draw_other("train", form_rng("train", 0)).tobytes()
    assert drawn in {draw_other("train", form_rng("train", 0), kind).tobytes() for kind in OTHERS}


def test_splits_share_no_photograph_and_no_word():
    assert not set(PHOTOGRAPHS["train"]) & set(PHOTOGRAPHS["test"])
    assert not set(WORDS["train"].split()) & set(WORDS["test"].split())


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"`split` must be one of train, test \(got 'val'\)"):
        draw_other("val", form_rng("train", 0))

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
"""Tests of examples/forms/forms_questions.py: enough wordings of every kind, and none of them in two sets."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

import forms_questions
from forms_data import ALL_LABELS
from forms_questions import (
    DRESSED,
    HELD_OUT_WORDINGS,
    LIST_WORDINGS,
    NAMES,
    NOUNS,
    PARTS,
    UNRELATED,
    WORDINGS,
    compose,
    dress,
    unrelated_question,
    word_question,
    wordings_of,
)


def test_every_kind_has_eight_wordings_in_training_and_four_others_held_out():
    assert WORDINGS.keys() == HELD_OUT_WORDINGS.keys()
    for kind in (*WORDINGS, *LIST_WORDINGS):
        wordings, held_out = wordings_of(kind)
        assert len(set(wordings)) == len(wordings) >= 8
        assert len(set(held_out)) == 4
        assert not set(wordings) & set(held_out)


@pytest.mark.parametrize("kind", PARTS)
def test_composed_questions_are_many_and_none_is_held_out(kind):
    """Each names what the wordings of its kind name; a part of them is a wording already."""
    composed = [compose(kind, np.random.default_rng(seed)) for seed in range(2000)]
    assert len(set(composed)) > 150
    assert not set(composed) & set(HELD_OUT_WORDINGS[kind])
    for label in ("{0}", "{1}"):
        assert all((label in question) == (label in WORDINGS[kind][0]) for question in composed)
    assert all(question[-1] in ".?" for question in composed)


def test_parts_would_make_held_out_wordings(monkeypatch):
    """Control of the test above: they are left out by name."""
    monkeypatch.setattr(forms_questions, "HELD_OUT_WORDINGS", dict.fromkeys(PARTS, ()))
    composed = {compose("field", np.random.default_rng(seed)) for seed in range(2000)}
    assert composed & set(HELD_OUT_WORDINGS["field"])


def test_a_wording_belongs_to_one_answer():
    """ "Read the {0}." asks for a field or for several; all others for one kind of answer."""
    kinds = [kind for kind in (*WORDINGS, *LIST_WORDINGS) if kind != "fields"]
    every = [wording for kind in kinds for wordings in wordings_of(kind) for wording in wordings]
    assert len(set(every)) == len(every)


def test_word_question_draws_from_the_words_that_it_is_given():
    drawn = {
        words: {word_question("rows", "test", np.random.default_rng(seed), words) for seed in range(100)}
        for words in ("first", "all", "held_out", 0, len(WORDINGS["rows"]))
    }
    assert drawn["first"] == set(WORDINGS["rows"][:3])
    assert drawn["all"] == set(WORDINGS["rows"])
    assert drawn["held_out"] == set(HELD_OUT_WORDINGS["rows"])
    assert drawn[0] == {WORDINGS["rows"][0]}
    assert drawn[len(WORDINGS["rows"])] == {HELD_OUT_WORDINGS["rows"][0]}


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match=r"`words` must be one of first, all, held_out, or a number \(got 'some'\)"):
        word_question("rows", "test", np.random.default_rng(0), "some")


def test_dress_changes_some_questions_and_keeps_their_words():
    dressed = [dress("Read the form.", np.random.default_rng(seed)) for seed in range(300)]
    assert all("ead the form" in question for question in dressed)
    assert {question[0] for question in dressed} > {"R", "r"}
    num_same = dressed.count("Read the form.")
    assert 0.5 < num_same / 300 < 1 - DRESSED / 2


def test_unrelated_questions_name_no_label_and_share_no_noun_or_place():
    for words in (NOUNS["train"].split(), NOUNS["test"].split(), NAMES["train"], NAMES["test"]):
        assert not set(words) & set(ALL_LABELS)
    assert not set(NOUNS["train"].split()) & set(NOUNS["test"].split())
    assert not set(NAMES["train"]) & set(NAMES["test"])
    assert all("{0}" in wording or "{1}" in wording for split in UNRELATED for wording in UNRELATED[split])
    questions = {unrelated_question("train", np.random.default_rng(seed)) for seed in range(50)}
    assert len(questions) > 40

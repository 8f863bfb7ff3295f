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
"""Tests of examples/forms/forms_decisions.py: the right option is right, and cannot be guessed."""

import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_data import LABELS, Form, FormRow, draw_form, form_rng
from forms_decisions import (
    DECISIONS,
    MAX_DECISIONS,
    RICH_DECISIONS,
    askable,
    decision_prior,
    draw_decisions,
    rotate,
)
from forms_questions import HELD_OUT_WORDINGS, WORDINGS

from dimple_hf import DimpleTokenizer
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.decisions.prompt import decision_answer


def drawn(name, num_forms, is_rich=False, split="test"):
    """Forms with a question of one kind about each, and its right option."""
    for index in range(num_forms):
        form = draw_form(split, form_rng(split, index), is_rich)
        (question, right), *_ = draw_decisions(form, split, form_rng(split, index, 1), is_rich, [name])[1]
        yield form, question, right


def is_true(form, instructions):
    """What a predicate of `_compare` says, worked out from its words."""
    words = instructions.strip("?.").split()
    (label,) = set(words) & set(form.fields)
    number = int(words[-1])
    return form.fields[label] > number if "above" in words else form.fields[label] < number


def test_comparisons_are_right_and_balanced():
    answers = [(is_true(form, question.instructions), right) for form, question, right in drawn("compare", 300)]
    assert all(truth == (right == 0) for truth, right in answers)
    assert 0.35 < np.mean([truth for truth, _ in answers]) < 0.65


def test_choices_name_the_right_label_or_number():
    for form, question, right in drawn("largest", 60):
        best = max if "largest" in question.instructions else min
        assert form.fields[question.choices[right]] == best(form.fields.values())
        assert set(question.choices) == set(form.fields)
    for form, question, right in drawn("which_is_there", 60):
        assert [choice in form.fields for choice in question.choices] == [
            index == right for index in range(len(question.choices))
        ]
    for form, question, right in drawn("which_value", 60):
        words = question.instructions.strip("?.").split()
        assert any(question.choices[right] == str(form.fields.get(word)) for word in words)
    for form, question, right in drawn("which_row", 60):
        row = form.rows[0] if "first" in question.instructions else form.rows[-1]
        assert question.choices[right] == row.label


def test_predicates_and_scores_count_rows_digits_and_ticks():
    for form, question, right in drawn("is_there", 60):
        label = next(word for word in question.instructions.strip("?.").split() if word in (*form.fields, *ALL))
        assert (label in form.fields) == (right == 0)
    for form, question, right in drawn("num_rows", 40):
        assert question.levels[right] == f"{NUMBERS[len(form.rows) - 1]} rows"
    for form, question, right in drawn("num_digits", 40):
        label = next(word for word in question.instructions.strip("?.").split() if word in form.fields)
        assert question.levels[right].startswith(NUMBERS[len(str(form.fields[label])) - 1])
    for form, question, right in drawn("more_rows", 40):
        number = 1 + next(index for index, word in enumerate(NUMBERS) if word in question.instructions.split())
        assert (len(form.rows) > number) == (right == 0)
    boxes = Form((FormRow("paid", is_ticked=True), FormRow("new", is_ticked=False)), 0)
    for seed in range(20):
        ((question, right),) = draw_decisions(boxes, "test", np.random.default_rng(seed), True, ["is_ticked"])[1]
        assert (right == 0) == ("paid" in question.instructions)


ALL = ("age", "code", "floor", "item", "lot", "order", "page", "phone", "price", "qty", "room", "seat", "table", "tax",
       "total", "year")  # fmt: skip
NUMBERS = ("one", "two", "three", "four", "five")


def test_draw_decisions_asks_mostly_few_questions_and_in_other_words_about_held_out_forms():
    numbers, wordings = [], {}
    for split in ("train", "test"):
        for index in range(150):
            form = draw_form(split, form_rng(split, index))
            names, decisions = draw_decisions(form, split, form_rng(split, index, 1))
            numbers.append(len(names))
            wordings.setdefault(split, set()).update(
                question.instructions
                for name, (question, _) in zip(names, decisions, strict=True)
                if name == "num_rows"
            )
    assert set(numbers) == set(range(1, MAX_DECISIONS + 1))
    assert np.mean([number <= 3 for number in numbers]) > 0.75
    assert wordings["test"] - wordings["train"] == {"How many rows does it have?"}


def test_rotate_moves_options_and_keeps_what_is_right():
    for _, question, right in drawn("which_is_there", 20):
        rotated, moved = rotate((question, right), 2)
        assert rotated.choices[moved].value == question.choices[right]
        assert {option.value for option in rotated.choices} == set(question.choices)
        assert moved != right or len(question.choices) == 2


def test_training_rotates_some_questions():
    """A predicate's first option is yes, and in training sometimes no."""
    first = [
        draw_decisions(draw_form("train", form_rng("train", 0)), split, form_rng(split, index), False, ["compare"])[1][
            0
        ]
        for split in ("train", "test")
        for index in range(60)
    ]
    options = [question.options[0].value for question, _ in first]
    assert 3 < options[:60].count("no") < 20
    assert options[60:] == ["yes"] * 60


@pytest.mark.parametrize(("is_rich", "known"), [(False, DECISIONS), (True, RICH_DECISIONS)])
def test_answers_to_all_questions_fit_their_prior(is_rich, known):
    """Open is one label for each question; here two positions, a space and a letter, for this tokenizer."""
    tokenizer = DimpleTokenizer.from_pretrained(FORMS_CHECKPOINT)
    form = draw_form("train", form_rng("train", 2), is_rich)
    _, decisions = draw_decisions(form, "train", form_rng("train", 2, 1), is_rich, list(known))
    answer = decision_answer(["ABCDE"[right] for _, right in decisions])
    prior = decision_prior([question for question, _ in decisions])
    tokens, is_open = prior.write(tokenizer, answer)
    assert tokenizer.decode(tokens) == answer + tokenizer.pad_token  # the end, as `decide` gives it
    per_label = len(tokenizer(" A")["input_ids"])
    assert sum(is_open) == per_label * len(decisions) + 1
    with pytest.raises(ValueError, match="form"):
        prior.write(tokenizer, decision_answer(["Z"] * len(decisions)))


def test_easy_decisions_are_told_by_the_length_of_a_number():
    """Control: the decisions that come after them are not."""
    differ = {}
    for name in ("compare_lengths", "compare"):
        lengths = []
        for form, question, right in drawn(name, 80):
            words = question.instructions.strip("?.").split()
            (label,) = set(words) & set(form.fields)
            assert is_true(form, question.instructions) == (right == 0)
            lengths.append(len(words[-1]) != len(str(form.fields[label])))
        differ[name] = np.mean(lengths)
    assert differ["compare"] < 0.8 < 0.95 < differ["compare_lengths"]
    alone = {}
    for name in ("largest_length", "largest"):
        rows = []
        for form, question, right in drawn(name, 80):
            numbers = [len(str(form.fields[option.text])) for option in question.options]
            best = max if "largest" in question.instructions else min
            assert form.fields[question.options[right].text] == best(form.fields.values())
            rows.append(numbers.count(numbers[right]) == 1)
        alone[name] = np.mean(rows)
    assert alone["largest"] < alone["largest_length"]


def test_easy_decisions_are_asked_by_name_only():
    form = draw_form("train", form_rng("train", 0))
    names = {name for seed in range(40) for name in draw_decisions(form, "train", np.random.default_rng(seed))[0]}
    assert names <= set(DECISIONS)
    assert draw_decisions(form, "train", np.random.default_rng(0), False, ["compare_lengths"])[1]
    assert askable(["compare_lengths", "num_rows"], is_rich=True) == ["num_rows"]


def test_no_decision_is_asked_in_words_that_reading_answers_otherwise():
    """Without its options listed, such a question would have two right answers."""
    reading = {
        wording.format(*labels)
        for wordings in (WORDINGS, HELD_OUT_WORDINGS)
        for kind in wordings
        for wording in wordings[kind]
        for labels in permutations(LABELS, 2)
    }
    assert "What is the price?" in reading  # control
    for name in DECISIONS:
        for split in ("train", "test"):
            asked = {question.instructions for _, question, _ in drawn(name, 60, split=split)}
            assert not asked & reading

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
"""Tests of examples/forms/forms_dataset.py and forms_scores.py: questions, their answers, and what counts as right."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

import forms_dataset as forms_dataset_module
from forms_dataset import KIND_SHARES, QUESTIONS, forms_dataset, forms_row, write_answer, write_sample
from forms_scores import parse_json, parse_result, parse_text, score_answer, summarize

from dimple_hf import DimpleTokenizer
from dimple_hf.checkpoints import FORMS_CHECKPOINT

FIELDS = {"qty": 482, "age": 5}


def test_write_answer_of_every_kind_is_exact():
    """The scorers, the committed scores and the model's training all rest on these strings."""
    assert write_answer("text", FIELDS) == "qty 482\nage 5"
    assert write_answer("json", FIELDS) == '{"qty":482,"age":5}'
    assert write_answer("field", FIELDS, ("age",)) == "age 5"
    assert write_answer("rows", FIELDS) == "qty,age=2"
    assert write_answer("fields", FIELDS, ("age", "qty")) == "age 5\nqty 482"
    assert write_answer("schema", FIELDS) == '{"qty":482,"age":5}'
    assert write_answer("shuffled", FIELDS, ("age", "qty")) == '{"age":5,"qty":482}'
    for kind in ("sum", "worked", "add"):
        assert write_answer(kind, FIELDS, ("age", "qty")) == "age 0005+qty 0482=00487"


def test_forms_row_is_a_chat_about_its_own_image():
    row = forms_row("train", 3, kind="json")
    user, assistant = row["messages"]
    assert user == {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}
    assert assistant == {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}
    assert [image.size for image in row["images"]] == [(168, 140)]
    assert json.loads(row["answer"]) == json.loads(row["fields"])


def test_forms_row_of_another_kind_shows_the_same_image():
    """Evaluations of all kinds must look at the same forms, so that their scores can be compared."""
    rows = [forms_row("test", 5, kind=kind) for kind in QUESTIONS]
    assert len({row["images"][0].tobytes() for row in rows if row["kind"] != "add"}) == 1
    assert len({row["fields"] for row in rows if row["kind"] != "shuffled"}) == 1
    # Under a schema, JSON is asked for in the same words; so is a sum under its working.
    assert len({row["question"] for row in rows}) == 6
    assert forms_row("test", 6)["images"][0].tobytes() != rows[0]["images"][0].tobytes()


def test_forms_row_names_only_labels_that_are_on_the_form():
    """A question about an absent field has no answer; the two fields of a sum differ."""
    for index in range(60):
        row = forms_row("train", index, kind="sum")
        fields = json.loads(row["fields"])
        asked = [label for label in fields if label in row["question"].rstrip("?.").split()]
        assert len(asked) == 2
        assert parse_result(row["answer"]) == sum(fields[label] for label in asked)


def open_positions(row):
    """The texts of the answer's tokens without fillers, and which of all positions of its canvas are open."""
    tokenizer = DimpleTokenizer.from_pretrained(FORMS_CHECKPOINT)
    tokens, is_open = row["structure_prior"].write(tokenizer, row["answer"])
    num_tokens = len(tokenizer(row["answer"])["input_ids"])
    assert tokenizer.decode(tokens[:num_tokens]) == row["answer"]
    assert set(tokens[num_tokens:]) <= {tokenizer.pad_token_id}
    return [tokenizer.decode(token) for token in tokens[:num_tokens]], is_open


@pytest.mark.parametrize(("kind", "num_images"), [("worked", 1), ("add", 0)])
def test_forms_row_to_add_gives_the_terms(kind, num_images):
    """But for up to two digits beside an image, which says them; then open are the digits of the sum and fillers."""
    nums_open = Counter()
    for index in range(60):
        row = forms_row("train", index, kind=kind)
        assert len(row["images"]) == num_images
        question = {"type": "text", "text": row["question"]}
        assert row["messages"][0]["content"] == [{"type": "image"}] * num_images + [question]
        assert row["answer"] == forms_row("train", index, kind="sum")["answer"]
        words, is_open = open_positions(row)
        equals = words.index("=")
        assert all(is_open[equals + 1 :])
        assert not is_open[equals]
        opened = [word for word, flag in zip(words[:equals], is_open, strict=False) if flag]
        assert all(word.isdigit() for word in opened)
        nums_open[len(opened)] += 1
    assert set(nums_open) == ({0, 1, 2} if kind == "worked" else {0})


def test_forms_row_with_given_terms_has_a_canvas_of_any_length_only_beside_a_image():
    """As free answers have, which it is to teach; without an image nothing follows the sum."""
    for kind, lengths in (("worked", range(5, 38)), ("add", [5])):
        seen = set()
        for index in range(300):
            words, is_open = open_positions(forms_row("train", index, kind=kind))
            seen.add(len(is_open) - words.index("=") - 1)
        assert seen == set(lengths)


def test_forms_row_asks_for_two_or_more_fields_in_any_order():
    """Asked for all of them only, a model need not look at which are asked for."""
    counts = Counter()
    for index in range(200):
        row = forms_row("train", index, kind="fields")
        fields = json.loads(row["fields"])
        named = [word.rstrip("?.,") for word in row["question"].split()]
        asked = [word for word in named if word in fields]
        assert row["answer"] == "\n".join(f"{label} {fields[label]}" for label in asked)
        counts[len(fields), len(asked)] += 1
    assert set(counts) == {(2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (4, 4), (5, 2), (5, 3), (5, 4), (5, 5)}


def test_forms_row_under_a_schema_lays_all_fields_out_in_the_forms_order_or_another():
    """The form's order can be read from top to bottom, another only by finding each label."""
    tokenizer = DimpleTokenizer.from_pretrained(FORMS_CHECKPOINT)
    num_in_order = 0
    for index in range(20):
        form = json.loads(forms_row("train", index, kind="json")["fields"])
        for kind in ("schema", "shuffled"):
            row = forms_row("train", index, kind=kind)
            fields = json.loads(row["fields"])
            assert fields == form
            assert kind == "shuffled" or list(fields) == list(form)
            tokens, is_learned = row["structure_prior"].write(tokenizer, row["answer"])
            assert row["structure_prior"].read(tokenizer, tokens) == fields
            assert sum(is_learned) == 4 * len(fields)  # nothing but the positions of digits
        num_in_order += list(fields) == list(form)
    assert num_in_order < 10
    assert forms_row("train", 0, kind="json")["structure_prior"] is None


def test_forms_dataset_repeats_itself_and_mixes_kinds_by_their_shares():
    first, again = forms_dataset("train", 400), forms_dataset("train", 400)
    assert len(first) == 400
    assert first[17]["answer"] == again[17]["answer"]
    np.testing.assert_array_equal(first[17]["images"][0], again[17]["images"][0])
    assert forms_dataset("train", 20, seed=1)[17]["fields"] != first[17]["fields"]
    kinds = Counter(first[:]["kind"])
    for kind, share in KIND_SHARES.items():
        # Three standard deviations of a binomial of 400 draws.
        assert abs(kinds[kind] / 400 - share) < 3 * (share * (1 - share) / 400) ** 0.5
    assert sum(KIND_SHARES.values()) == pytest.approx(1)


def test_forms_dataset_of_one_kind_asks_only_that():
    assert set(forms_dataset("test", 5, kind="rows")[:]["kind"]) == {"rows"}
    assert set(forms_dataset("test", 20, shares={"rows": 0.5, "sum": 0.5})[:]["kind"]) == {"rows", "sum"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, r"`split` must be one of train, test \(got 'val'\)"),
        ({"split": "train", "shares": {"text": 0.5, "rows": 0.4}}, "`shares` must be shares of 1"),
        ({"split": "train", "shares": {"text": 1.5, "rows": -0.5}}, "`shares` must be shares of 1"),
        ({"split": "train", "shares": {"txt": 1.0}}, r"`kind` must be one of text, .* \(got 'txt'\)"),
        (
            {"split": "train", "kind": "xml"},
            r"`kind` must be one of text, json, field, fields, schema, shuffled, rows, sum, worked, add \(got 'xml'\)",
        ),
    ],
)
def test_forms_dataset_with_an_unknown_name_is_refused(arguments, message):
    """At once, not at the first row that a loader's worker reads."""
    with pytest.raises(ValueError, match=message):
        forms_dataset(num_rows=1, **arguments)


def test_parse_text_keeps_well_formed_lines_only():
    assert parse_text("qty 482\nage 5") == FIELDS
    assert parse_text("qty 482\nage  5\nlot x\ntax 05\n") == {"qty": 482}


def test_parse_json_refuses_what_is_not_an_object_of_whole_numbers():
    assert parse_json('{"qty":482,"age":5}') == FIELDS
    for broken in ('{"qty":482', "[1]", '{"qty":"482"}', '{"qty":true}', '{"qty":05}', ""):
        assert parse_json(broken) is None


def test_parse_result_takes_the_number_after_the_last_equals_sign():
    assert parse_result("482+5=487") == 487
    assert parse_result("0482+0005=00487") == 487
    for broken in ("487", "482+5=", "482+5=x", "482+5=-487"):
        assert parse_result(broken) is None


def test_score_answer_counts_fields_and_whole_forms_apart():
    """One wrong digit costs one field and the form; order and extra rows cost the form only."""
    text, right = write_answer("text", FIELDS), write_answer("json", FIELDS)
    assert score_answer("text", text, text, FIELDS) == {"fields": (2, 2), "whole": (1, 1)}
    assert score_answer("text", "qty 482\nage 6", text, FIELDS) == {"fields": (1, 2), "whole": (0, 1)}
    assert score_answer("text", "age 5\nqty 482", text, FIELDS) == {"fields": (2, 2), "whole": (0, 1)}
    assert score_answer("text", text + "\ntax 1", text, FIELDS) == {"fields": (2, 2), "whole": (0, 1)}
    assert score_answer("json", right, right, FIELDS) == {"fields": (2, 2), "whole": (1, 1), "parses": (1, 1)}
    assert score_answer("json", right[:-1], right, FIELDS) == {"fields": (0, 2), "whole": (0, 1), "parses": (0, 1)}


def test_score_answer_of_short_answers_is_exact():
    assert score_answer("field", "age 5\n", "age 5", FIELDS) == {"exact": (1, 1)}
    assert score_answer("field", "age 50", "age 5", FIELDS) == {"exact": (0, 1)}
    assert score_answer("rows", "age,age=2", "qty,age=2", FIELDS) == {"exact": (1, 1)}
    assert score_answer("rows", "qty,age=3", "qty,age=2", FIELDS) == {"exact": (0, 1)}
    # The working may be wrong: what counts is the result. An answer without one is wrong, not equal to nothing.
    assert score_answer("sum", "4820+5=487", "482+5=487", FIELDS) == {"exact": (1, 1)}
    assert score_answer("sum", "487", "482+5=487", FIELDS) == {"exact": (0, 1)}


def test_score_answer_of_an_unknown_kind_is_refused():
    with pytest.raises(
        ValueError,
        match=r"`kind` must be text, json, schema, shuffled, field, fields, rows, sum, worked or add \(got 'xml'\)",
    ):
        score_answer("xml", "", "", FIELDS)


def test_summarize_weighs_fields_by_their_number():
    """Field match is a share of all fields, so a form of two counts twice a form of one."""
    rows = [
        ("text", "qty 482\nage 6", "qty 482\nage 5", FIELDS),
        ("text", "qty 1", "qty 1", {"qty": 1}),
        ("rows", "qty,age=2", "qty,age=2", FIELDS),
    ]
    assert summarize(rows) == {"rows/exact": 1.0, "text/fields": 2 / 3, "text/whole": 0.5}


def test_write_sample_reproduces_the_committed_sample(tmp_path):
    """The demo's image is a held-out form and its truth belongs to it: both follow from a row's number."""
    write_sample(tmp_path)
    committed = Path(forms_dataset_module.__file__).parent
    with Image.open(tmp_path / "sample.png") as written, Image.open(committed / "sample.png") as kept:
        # One grey level of room: resampling may round differently in another version of Pillow.
        assert np.abs(np.asarray(written, dtype=int) - np.asarray(kept, dtype=int)).max() <= 1
    assert (tmp_path / "sample.json").read_text() == (committed / "sample.json").read_text()
    kinds = [question["kind"] for question in json.loads((committed / "sample.json").read_text())["questions"]]
    assert kinds == [kind for kind in QUESTIONS if kind != "add"]  # it is not about an image

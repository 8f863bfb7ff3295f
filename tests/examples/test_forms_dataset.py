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
"""Tests of examples/forms/forms_dataset.py: questions of every kind, and their answers."""

import functools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

import forms_dataset as forms_dataset_module
from forms_data import ALL_LABELS, LABELS, draw_form, form_rng
from forms_dataset import (
    KIND_SHARES,
    KINDS,
    LAID_OUT_WITHOUT_IMAGE,
    NO_FORM,
    NO_IMAGE,
    NOT_ON_FORM,
    PLAIN_ONLY,
    UNDER_PRIOR,
    forms_dataset,
    forms_row,
    write_json,
    write_sample,
    write_sum,
    write_text,
)
from forms_questions import LIST_WORDINGS
from forms_scores import parse_result, score_answer

from dimple_hf import DimpleTokenizer
from dimple_hf.checkpoints import FORMS_CHECKPOINT

FIELDS = {"qty": 482, "age": 5}


def test_answers_are_written_in_one_form():
    """The scores and the model's training rest on these strings."""
    assert write_text(FIELDS) == "qty 482\nage 5"
    assert write_json(FIELDS) == '{"qty":482,"age":5}'
    assert write_sum(FIELDS, ("age", "qty")) == "age 0005+qty 0482=00487"
    rich = {"cost": 4.5, "due": "03-12", "paid": True, "new": False}
    assert write_text(rich) == "cost 4.50\ndue 03-12\npaid yes\nnew no"
    assert write_json(rich | {"tax": None}) == '{"cost":4.50,"due":"03-12","paid":true,"new":false,"tax":null}'
    assert json.loads(write_json(rich)) == rich


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", ["first", "all", "held_out"])
def test_the_expected_answer_of_every_kind_scores_in_full(kind, words):
    """On plain and rich forms, in all words; an answer under a prior lies on its canvas and is read as the fields."""
    tokenizer = DimpleTokenizer.from_pretrained(FORMS_CHECKPOINT)
    for index in range(3):
        row = forms_row("test" if words == "held_out" else "train", index, 0, kind, rich_share=0.5, words=words)
        points = score_answer(kind, row["answer"], row["answer"], json.loads(row["fields"]))
        assert all(scored == possible for scored, possible in points.values())
        assert (row["structure_prior"] is not None) == (kind in UNDER_PRIOR)
        if kind in ("schema", "shuffled", "nullable"):
            tokens, is_open = row["structure_prior"].write(tokenizer, row["answer"])
            assert row["structure_prior"].read(tokenizer, tokens) == json.loads(row["fields"])
            assert any(is_open)


def test_forms_row_is_a_chat_about_its_own_image():
    row = forms_row("train", 3, kind="json")
    user, assistant = row["messages"]
    assert user == {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}
    assert assistant == {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]}
    assert [image.size for image in row["images"]] == [(168, 140)]
    assert json.loads(row["answer"]) == json.loads(row["fields"])


def test_forms_row_of_another_kind_shows_the_same_image():
    """Evaluations of all kinds must look at the same forms, so that their scores can be compared."""
    rows = [forms_row("test", 5, kind=kind) for kind in KINDS]
    assert len({row["images"][0].tobytes() for row in rows if row["kind"] not in (*NO_IMAGE, "no_form")}) == 1
    assert len({row["fields"] for row in rows if row["kind"] not in ("shuffled", "nullable")}) == 1
    assert forms_row("test", 6)["images"][0].tobytes() != rows[0]["images"][0].tobytes()


def test_all_fields_asks_for_each_label_of_the_form_in_another_order():
    """As many lines as the form has, with its values; not in the order of the form throughout."""
    rows = [forms_row("train", index, kind="all_fields", words="all") for index in range(20)]
    orders = set()
    for row in rows:
        lines, fields = row["answer"].split("\n"), json.loads(row["fields"])
        assert sorted(lines) == sorted(f"{label} {value}" for label, value in fields.items())
        positions = [row["question"].index(line.split()[0]) for line in lines]
        assert positions == sorted(positions)
        orders.add([line.split()[0] for line in lines] == list(fields))
    assert orders == {False, True}
    assert {row["answer"].count("\n") + 1 for row in rows} == {2, 3, 4, 5}


def test_repeated_lines_are_those_of_the_question():
    """In its order; with numbers in some examples, and without in others."""
    rows = [forms_row("train", index, kind="repeat") for index in range(30)]
    for row in rows:
        assert row["images"] == []
        lines = row["answer"].split("\n")
        assert row["question"] == f"Repeat in lines: {', '.join(lines[:-1])} and {lines[-1]}."
        assert all(re.fullmatch(r"[a-z]+( \d{1,4})?", line) for line in lines)
        assert len({len(line.split()) for line in lines}) == 1
    assert {len(row["answer"].split("\n")) for row in rows} == {2, 3, 4, 5}
    assert {" " in row["answer"] for row in rows} == {False, True}


@pytest.mark.parametrize("kind", LAID_OUT_WITHOUT_IMAGE)
def test_a_question_without_an_image_is_about_the_text_alone(kind):
    """Its answer lies on its canvas, and each letter is that of its option."""
    tokenizer = DimpleTokenizer.from_pretrained(FORMS_CHECKPOINT)
    for index in range(20):
        row = forms_row("train", index, kind=kind)
        assert row["images"] == []
        tokens, is_open = row["structure_prior"].write(tokenizer, row["answer"])
        assert tokenizer.decode(tokens).startswith(row["answer"])
        assert any(is_open)
        assert not all(is_open)
        lettered = dict(line.split(". ") for line in row["question"].split("\n") if line[1:3] == ". ")
        if kind in ("letters", "options"):
            pairs = [re.split(r"\.? ", line) for line in row["answer"].split("\n")]
            assert {tuple(pair[:: 1 if kind == "options" else -1]) for pair in pairs} == set(lettered.items())
        elif kind == "choose":
            named = re.fullmatch(r"1\. .* (\w+)[.?]", row["question"].split("\n")[0])[1]
            assert lettered[row["answer"].removeprefix("1. ")] == named


def test_decisions_that_are_asked_can_be_chosen():
    """Alone, several at once, in words, and about rich forms, about which fewer can be asked."""
    for kind in ("decide", "decide_one", "freely", "openly"):
        for index in range(20):
            row = forms_row("train", index, kind=kind, rich_share=0.5, decisions=["num_rows", "num_digits"])
            questions = re.findall(r"^\d\. (.*)", row["question"], flags=re.MULTILINE) or [row["question"]]
            assert all(re.search("rows|form|digits|long|length|full", question) for question in questions)
    asked = {forms_row("train", index, kind="decide_one")["question"].split("\n")[0] for index in range(20)}
    assert any("above" in question or "below" in question for question in asked)  # control


def test_forms_row_may_be_about_a_rich_form():
    """Sums need two numbers, and what is no form needs no form at all."""
    for kind in KINDS:
        rows = [forms_row("train", index, kind=kind, rich_share=1.0) for index in range(8)]
        is_rich = [not set(json.loads(row["fields"])) <= set(LABELS) for row in rows]
        # Some labels of a rich form may be all that a schema asks for, and a null may be of a rich label.
        if kind not in ("shuffled", "nullable"):
            assert all(is_rich) == (kind not in PLAIN_ONLY)
        plain = [json.loads(forms_row("train", index, kind=kind)["fields"]) for index in range(8)]
        assert kind == "nullable" or all(set(fields) <= set(LABELS) for fields in plain)


def test_honest_answers_belong_to_questions_without_another_one():
    for index in range(40):
        row = forms_row("train", index, kind="absent", rich_share=0.5, words="all")
        assert row["answer"] == NOT_ON_FORM
        asked = {word.strip("?.,!:") for word in row["question"].split()} & set(ALL_LABELS)
        assert asked
        assert not asked & set(json.loads(row["fields"]))
        assert forms_row("train", index, kind="unrelated")["answer"] == NOT_ON_FORM
        other = forms_row("train", index, kind="no_form", words="all")
        assert other["answer"] == NO_FORM
        assert other["images"][0].size != (168, 140)


def test_a_schema_may_ask_for_labels_that_are_not_on_the_form():
    """Then, and only then, the answer is null."""
    num_null = 0
    for index in range(30):
        row = forms_row("train", index, kind="nullable")
        form = draw_form("train", form_rng("train", index)).fields
        fields = json.loads(row["fields"])
        assert fields == {label: form.get(label) for label in fields}
        num_null += list(fields.values()).count(None)
    assert 30 <= num_null <= 60


def test_words_beside_a_schema_may_be_any():
    """With all words; the first recipe asked for JSON only."""
    asked = {
        words: [forms_row("train", i, kind="shuffled", words=words)["question"] for i in range(60)]
        for words in ("first", "all")
    }
    assert all("JSON" in question for question in asked["first"])
    assert 10 < sum("JSON" not in question for question in asked["all"]) < 50


def test_labels_are_listed_in_their_order_backwards_or_in_any():
    """In training the order of "any" is drawn anew for each example."""
    in_order = 0
    for index in range(20):
        copy, reverse, shuffle = (
            forms_row("train", index, kind=kind)["answer"].split(",") for kind in ("copy", "reverse", "shuffle")
        )
        assert copy == list(json.loads(forms_row("train", index, kind="text")["fields"]))
        assert reverse == copy[::-1]
        assert sorted(shuffle) == sorted(copy)
        in_order += shuffle == copy
    assert in_order < 12


def test_decisions_are_laid_out_with_one_open_position_for_each_question():
    tokenizer = DimpleTokenizer.from_pretrained(FORMS_CHECKPOINT)
    for index in range(10):
        row = forms_row("train", index, kind="decide", rich_share=0.5)
        assert row["structure_prior"].read(tokenizer, row["structure_prior"].write(tokenizer, row["answer"])[0])
        numbers = [line.split(". ")[0] for line in row["answer"].split("\n")]
        assert numbers == [str(number) for number in range(1, len(numbers) + 1)]


def test_forms_row_names_only_labels_that_are_on_the_form():
    """A question about an absent field has no answer; the two fields of a sum differ."""
    for index in range(60):
        row = forms_row("train", index, kind="sum")
        fields = json.loads(row["fields"])
        asked = [label for label in fields if label in row["question"].rstrip("?.").split()]
        assert len(asked) == 2
        assert parse_result(row["answer"]) == sum(fields[label] for label in asked)


@functools.cache
def forms_tokenizer():
    return DimpleTokenizer.from_pretrained(FORMS_CHECKPOINT)


def open_positions(row):
    """The texts of the answer's tokens without padding, and which of all positions of its canvas are open."""
    tokenizer = forms_tokenizer()
    tokens, is_open = row["structure_prior"].write(tokenizer, row["answer"])
    num_tokens = len(tokenizer(row["answer"])["input_ids"])
    assert tokenizer.decode(tokens[:num_tokens]) == row["answer"]
    assert set(tokens[num_tokens:]) <= {tokenizer.pad_token_id}
    return [tokenizer.decode(token) for token in tokens[:num_tokens]], is_open


@pytest.mark.parametrize(("kind", "num_images"), [("worked", 1), ("add", 0)])
def test_forms_row_to_add_gives_the_terms(kind, num_images):
    """But for up to two digits beside an image, which shows them; then the digits of the sum and padding are open."""
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
    for kind, num_rows, lengths in (("worked", 300, range(5, 38)), ("add", 60, [5])):
        seen = set()
        for index in range(num_rows):
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
    num_in_order = 0
    for index in range(20):
        form = json.loads(forms_row("train", index, kind="json")["fields"])
        assert list(json.loads(forms_row("train", index, kind="schema")["fields"]).items()) == list(form.items())
        shuffled = json.loads(forms_row("train", index, kind="shuffled")["fields"])
        assert shuffled.items() <= form.items()
        num_in_order += list(shuffled) == list(form)
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


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe_extend.yaml"])
def test_recipes_ask_for_known_kinds_in_shares_of_1(name):
    """A mistake in the last stage would show after hours."""
    recipe = yaml.safe_load((Path(forms_dataset_module.__file__).parent / name).read_text())
    data = [recipe["data"], *(stage["data"] for stage in recipe["stages"])]
    sources = [source for entry in data for source in entry.values()]
    assert all(source["location"] == "forms_dataset:forms_dataset" for source in sources)
    assert all(forms_dataset(**source["arguments"])[0]["messages"] for source in sources)
    seeds = [entry["train"]["arguments"].get("seed", 0) for entry in data[1:]]
    assert len(set(seeds)) >= len(seeds) - 1  # the stages `find` and `add` ask different kinds about the same forms


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, r"`split` must be one of train, test \(got 'val'\)"),
        ({"split": "train", "shares": {"text": 0.5, "rows": 0.4}}, "`shares` must be shares of 1"),
        ({"split": "train", "shares": {"text": 1.5, "rows": -0.5}}, "`shares` must be shares of 1"),
        ({"split": "train", "shares": {"txt": 1.0}}, r"`kind` must be one of text, .* \(got 'txt'\)"),
        ({"split": "train", "kind": "xml"}, r"`kind` must be one of text, .* \(got 'xml'\)"),
        ({"split": "train", "decisions": ["guess"]}, r"`decisions` must be names of compare, .* \(got 'guess'\)"),
    ],
)
def test_forms_dataset_with_an_unknown_name_is_refused(arguments, message):
    """At once, not at the first row that a loader's worker reads."""
    with pytest.raises(ValueError, match=message):
        forms_dataset(num_rows=1, **arguments)


def test_write_sample_reproduces_the_committed_sample(tmp_path):
    """The demo's image is a held-out form and its truth belongs to it: both follow from a row's number."""
    write_sample(tmp_path)
    committed = Path(forms_dataset_module.__file__).parent
    with Image.open(tmp_path / "sample.png") as written, Image.open(committed / "sample.png") as kept:
        # One grey level of room: resampling may round differently in another version of Pillow.
        assert np.abs(np.asarray(written, dtype=int) - np.asarray(kept, dtype=int)).max() <= 1
    assert (tmp_path / "sample.json").read_text() == (committed / "sample.json").read_text()
    kinds = [question["kind"] for question in json.loads((committed / "sample.json").read_text())["questions"]]
    assert kinds == [
        kind
        for kind in KINDS
        if kind not in (*UNDER_PRIOR, *LIST_WORDINGS, "no_form", "freely", "openly", "repeat", "all_fields")
    ]

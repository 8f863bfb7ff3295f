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
"""Tests of examples/forms/forms_scores.py: what counts as right, and how certain a score is."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_scores import (
    add_points,
    parse_json,
    parse_result,
    parse_text,
    score_answer,
    summarize,
    wilson_interval,
)

FIELDS = {"qty": 482, "age": 5}


def test_parse_text_keeps_well_formed_lines_only():
    assert parse_text("qty 482\nage 5") == FIELDS
    assert parse_text("qty 482\nage  5\nlot x\ntax 05\n") == {"qty": 482}
    assert parse_text("cost 4.50\ndue 03-12\npaid yes\nnew no") == {
        "cost": 4.5,
        "due": "03-12",
        "paid": True,
        "new": False,
    }


def test_parse_json_refuses_what_is_not_an_object_of_plain_values():
    assert parse_json('{"qty":482,"age":5}') == FIELDS
    assert parse_json('{"cost":4.50,"due":"03-12","paid":true,"tax":null}') == {
        "cost": 4.5, "due": "03-12", "paid": True, "tax": None,
    }  # fmt: skip
    for broken in ('{"qty":482', "[1]", '{"qty":[1]}', '{"qty":{}}', '{"qty":05}', ""):
        assert parse_json(broken) is None


def test_parse_result_takes_the_number_after_the_last_equals_sign():
    assert parse_result("482+5=487") == 487
    assert parse_result("0482+0005=00487") == 487
    for broken in ("487", "482+5=", "482+5=x", "482+5=-487"):
        assert parse_result(broken) is None


def test_score_answer_counts_fields_and_whole_forms_apart():
    """One wrong digit costs one field and the form; order and extra rows cost the form only."""
    text, right = "qty 482\nage 5", '{"qty":482,"age":5}'
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


def test_score_answer_tells_values_of_different_types_apart():
    """`true` is not 1, and a null that should be there must be there."""
    fields = {"paid": True, "tax": None}
    right = '{"paid":true,"tax":null}'
    assert score_answer("nullable", right, right, fields)["fields"] == (2, 2)
    assert score_answer("nullable", '{"paid":1,"tax":null}', right, fields)["fields"] == (1, 2)
    assert score_answer("nullable", '{"paid":true}', right, fields)["fields"] == (1, 2)


def test_score_answer_counts_each_decision():
    assert score_answer("decide", "1. A\n2. B", "1. A\n2. C", {}) == {"questions": (1, 2)}
    assert score_answer("decide", "", "1. A\n2. C", {}) == {"questions": (0, 2)}


def test_score_answer_takes_labels_in_any_order_where_any_was_asked_for():
    assert score_answer("shuffle", "age,qty", "qty,age", FIELDS) == {"exact": (1, 1)}
    assert score_answer("shuffle", "age,age", "qty,age", FIELDS) == {"exact": (0, 1)}
    assert score_answer("reverse", "qty,age", "age,qty", FIELDS) == {"exact": (0, 1)}


def test_wilson_interval_of_known_counts():
    """95 of 100: 88.8 to 97.8 %, as in Wilson's formula worked out by hand; certain only with many cases."""
    assert wilson_interval(95, 100) == pytest.approx((0.8882, 0.9785), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    low, high = wilson_interval(10, 10)
    assert (low, high) == pytest.approx((0.7225, 1), abs=1e-4)
    assert wilson_interval(1000, 1000)[0] > 0.996 > low


def test_score_answer_of_an_unknown_kind_is_refused():
    with pytest.raises(
        ValueError,
        match=r"`kind` must be one of text, .* \(got 'xml'\)",
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
    assert add_points(rows) == {"rows/exact": (1, 1), "text/fields": (2, 3), "text/whole": (1, 2)}

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
"""Questions written as JSON: what OpenAI's client sends is read, and each mistake is named by its path."""

from typing import Any

import pytest

from dimple_hf.decisions import Choice, Option, Predicate, Score, questions_from_json

CHOICE = {"type": "choice", "instructions": "Which?", "choices": [{"value": "a"}, {"value": True}]}


def test_questions_of_each_type_are_read() -> None:
    instructions = [{"type": "input_text", "text": "Rate it:"}, {"type": "input_json", "data": {"a": 1}}]
    levels = [{"label": "low", "description": "hardly"}, "high"]
    assert questions_from_json([
        {"type": "predicate", "instructions": "Is it?", "name": "is"},
        CHOICE,
        {"type": "score", "instructions": instructions, "levels": levels, "name": None},
    ]) == [
        Predicate("Is it?", "is"),
        Choice("Which?", [Option("a"), Option(True)]),
        Score('Rate it: {"a": 1}', [Option("low", "hardly"), Option("high")]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"`questions` must be a list of 1 to 400 questions \(got dict\)"),
        ([], r"\(got 0\)"),
        ([CHOICE] * 401, r"\(got 401\)"),
        ([CHOICE, 3], r"`questions\[1\]` must be an object \(got int\)"),
        ([{"type": "vote"}], r"`questions\[0\].type` must be one of predicate, choice, score \(got 'vote'\)"),
        ([{"type": ["choice"]}], r"`questions\[0\].type` must be one of"),
        ([CHOICE | {"name": 3}], r"`questions\[0\].name` must be text \(got 3\)"),
        ([CHOICE | {"instructions": None}], r"`questions\[0\].instructions` must be text or a list of parts"),
        ([CHOICE | {"instructions": " "}], r"`questions\[0\]`: `instructions` must be a text that is not blank"),
        (
            [CHOICE | {"instructions": [{"type": "input_image"}]}],
            r"instructions\[0\]` must be an input_text",
        ),
        ([CHOICE | {"choices": [{"value": "a"}]}], r"`questions\[0\].choices` must be a list of 2 to 255"),
        ([CHOICE | {"choices": [str(i) for i in range(256)]}], r"\(got 256\)"),
        ([CHOICE | {"choices": ["a", {"text": "b"}]}], r"`questions\[0\].choices\[1\]` must hold `value`"),
        ([CHOICE | {"choices": ["a", 1]}], r"`questions\[0\].choices\[1\]`: `value` of an option must be text or a b"),
        ([CHOICE | {"choices": ["a", "a"]}], r"`questions\[0\]`: `choices` must have different values"),
        (
            [CHOICE | {"levels": []}],
            r"`questions\[0\]` must hold type, .* only \(got 'levels'\)",
        ),
    ],
)
def test_mistakes_are_named_by_their_path(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        questions_from_json(values)

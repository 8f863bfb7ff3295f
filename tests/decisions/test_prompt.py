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
"""The text of decisions, and that a label is one token at its position."""

import pytest
from transformers import Qwen2Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from dimple_hf.decisions import Choice, Option, Predicate, Score
from dimple_hf.decisions.prompt import (
    decision_answer,
    decision_prompt,
    decision_question,
    label_prefixes,
    label_token_ids,
    option_labels,
)

QUESTIONS = [
    Predicate("Is the price above 500?"),
    Choice("Which label has\nthe largest number?", ["price", Option("qty", "how many"), True]),
    Score("How many digits has the age?", ["one", "two"]),
]


def byte_tokenizer(*labels: str) -> Qwen2Tokenizer:
    """All bytes, and a token for each of these labels after a space."""
    merges = [("Ġ", label) for label in labels]
    vocab = {token: index for index, token in enumerate([*bytes_to_unicode().values(), *map("".join, merges)])}
    return Qwen2Tokenizer(vocab=vocab, merges=merges)


def test_a_prompt_has_numbered_questions_and_labelled_options():
    assert decision_prompt(QUESTIONS) == (
        "1. Is the price above 500?\nA. yes\nB. no\n"
        "2. Which label has the largest number?\nA. price\nB. qty: how many\nC. true\n"
        "3. How many digits has the age?\nA. one\nB. two\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_a_question_has_other_labels_where_given():
    assert decision_question(QUESTIONS[0], 7, "xy") == "7. Is the price above 500?\nx. yes\ny. no"


def test_a_prompt_without_questions_is_refused():
    with pytest.raises(ValueError, match="at least one question"):
        decision_prompt([])


def test_more_options_than_labels_are_refused():
    with pytest.raises(ValueError, match="at most 2 options"):
        decision_prompt(QUESTIONS, labels=["A", "B"])


def test_the_tokens_of_prefixes_and_labels_are_those_of_the_answer():
    """What lets a canvas be put together of given prefixes and one masked position for each label."""
    tokenizer = byte_tokenizer("A", "C")
    answer = decision_answer(["A", "C", "A"])
    assert answer == "1. A\n2. C\n3. A"
    a, c = label_token_ids(tokenizer, ["A", "C"])
    pieces = [tokenizer(prefix)["input_ids"] for prefix in label_prefixes(3)]
    assert [*pieces[0], a, *pieces[1], c, *pieces[2], a] == tokenizer(answer)["input_ids"]


def test_labels_of_several_tokens_are_refused_or_left_out():
    tokenizer = byte_tokenizer("A", "C", "b")
    assert option_labels(tokenizer, 3) == ["A", "C", "b"]
    with pytest.raises(ValueError, match=r"got 'B', which is 2"):
        label_token_ids(tokenizer, ["A", "B"])
    with pytest.raises(ValueError, match="at most 3 options"):
        option_labels(tokenizer, 4)

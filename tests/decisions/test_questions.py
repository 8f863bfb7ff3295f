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
"""Types of decision: options in order, and what is refused."""

import pytest

from dimple_hf.decisions import Choice, Option, Predicate, Score


def values(question: Predicate | Choice | Score) -> list[str | bool]:
    return [option.value for option in question.options]


def test_options_keep_their_order_and_type():
    assert values(Predicate("The price is above 500.")) == ["yes", "no"]
    assert values(Choice("Which?", ["qty", Option("age", "in years"), True, "true"])) == ["qty", "age", True, "true"]
    assert values(Score("How large?", ("low", "high"))) == ["low", "high"]


def test_the_text_of_an_option_has_its_description():
    texts = [option.text for option in Choice("Paid?", [True, Option("no", "not yet")]).options]
    assert texts == ["true", "no: not yet"]


@pytest.mark.parametrize("instructions", ["", " \n", None])
def test_blank_instructions_are_refused(instructions):
    for make in (Predicate, lambda text: Choice(text, ["a", "b"]), lambda text: Score(text, ["a", "b"])):
        with pytest.raises(ValueError, match="`instructions` must be a text that is not blank"):
            make(instructions)


def test_half_characters_are_refused():
    """JSON can spell them, and no tokenizer takes them."""
    for make in (Predicate, Option, lambda text: Option("a", text), lambda text: Choice("Which?", ["a", text])):
        make("whole: \U0001f600")  # the control
        with pytest.raises(ValueError, match=r"must be valid Unicode \(got 'half: \\ud83d'\)"):
            make("half: \ud83d")


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "at least 2 options"),
        (["a"], "at least 2 options"),
        ("ab", "at least 2 options"),
        (None, "at least 2 options"),
        ({"a": "first", "b": "second"}, "at least 2 options"),
        ({"a", "b"}, "at least 2 options"),
        (iter("ab"), "at least 2 options"),
        (["a", "b", "a"], "'a' twice"),
        ([True, Option(True, "again")], "True twice"),
        (["a", " "], "`value` must be a text that is not blank"),
        (["a", 1], "`value` of an option must be text or a boolean"),
        (["a", None], "`value` of an option must be text or a boolean"),
    ],
)
def test_bad_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        Choice("Which?", choices)


def test_a_text_and_a_boolean_are_two_values():
    assert values(Choice("Which?", ["true", True])) == ["true", True]


def test_levels_are_texts():
    with pytest.raises(ValueError, match="`levels` must be texts"):
        Score("How large?", ["low", True])


def test_a_blank_description_is_refused():
    with pytest.raises(ValueError, match="`description`"):
        Option("a", "")

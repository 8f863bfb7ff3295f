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
"""Decisions about forms: typed questions with a known answer, in the words of `dimple_hf.decisions`."""

from collections.abc import Callable, Sequence

import numpy as np
from forms_data import LABELS, MAX_DIGITS, MAX_ROWS, MIN_ROWS, Form

from dimple_hf import Slot, StructurePrior
from dimple_hf.decisions import Choice, Predicate, Score
from dimple_hf.decisions.prompt import LABEL_PREFIX, label_prefixes
from dimple_hf.decisions.prompt import LABELS as OPTION_LABELS
from dimple_hf.decisions.questions import Question

NUMBER_WORDS = ("one", "two", "three", "four", "five")
MAX_DECISIONS = 8
ROTATED = 0.25
"""Share of training questions whose options are rotated."""

Decision = tuple[Question, int]
"""A question and the number of its right option."""


def _pick(rng: np.random.Generator, wordings: Sequence[str], held_out: Sequence[str], split: str) -> str:
    """A wording of training, or a held-out one in half of the held-out questions."""
    is_held_out = split == "test" and bool(rng.integers(2))
    return str(rng.choice(held_out if is_held_out else wordings))


def _draw_number(rng: np.random.Generator) -> int:
    return int(rng.integers(10 ** rng.integers(1, MAX_DIGITS + 1)))


def _compare(form: Form, split: str, rng: np.random.Generator) -> Decision:
    """Is a number above or below another? Half of the others are close."""
    label = str(rng.choice(list(form.fields)))
    value = form.fields[label]
    distance = int(rng.integers(1, max(3, value // 3) + 1))
    near = max(0, value + distance * int(rng.choice([-1, 1])))
    other = near if rng.integers(2) else _draw_number(rng)
    other += other == value
    is_above = bool(rng.integers(2))
    word = "above" if is_above else "below"
    text = _pick(
        rng,
        (
            "Is the {0} {1} {2}?",
            "The {0} is {1} {2}.",
            "The number of {0} is {1} {2}.",
            "Is the value of {0} {1} {2}?",
        ),
        ("Is {0} {1} {2}?", "The value next to {0} is {1} {2}."),
        split,
    )
    return Predicate(text.format(label, word, other)), int((value > other) != is_above)


def _is_there(form: Form, split: str, rng: np.random.Generator) -> Decision:
    is_there = bool(rng.integers(2))
    label = str(rng.choice([label for label in LABELS if (label in form.fields) == is_there]))
    text = _pick(
        rng,
        (
            "Is there a {0} on the form?",
            "The form has a {0}.",
            "Does the form give the {0}?",
            "The {0} is on the form.",
        ),
        ("The form says what the {0} is.", "Is the {0} given?"),
        split,
    )
    return Predicate(text.format(label)), int(not is_there)


def _more_rows(form: Form, split: str, rng: np.random.Generator) -> Decision:
    number = int(rng.integers(MIN_ROWS, MAX_ROWS))
    text = _pick(
        rng,
        ("Are there more than {0} rows?", "The form has more than {0} rows.", "More than {0} rows are on the form."),
        ("Does the form have more than {0} rows?",),
        split,
    )
    return Predicate(text.format(NUMBER_WORDS[number - 1])), int(len(form.rows) <= number)


def _largest(form: Form, split: str, rng: np.random.Generator) -> Decision:
    """Which label has the largest or smallest number?"""
    values = form.fields
    word, best = (("largest", max), ("smallest", min))[int(rng.integers(2))]
    labels = [str(label) for label in rng.permutation(list(values))]
    text = _pick(
        rng,
        ("Which label has the {0} number?", "Which number is the {0}?", "What is the label of the {0} number?"),
        ("Where is the {0} number?", "Which of these is {0}?"),
        split,
    )
    return Choice(text.format(word), labels), labels.index(best(labels, key=values.__getitem__))


def _which_is_there(form: Form, split: str, rng: np.random.Generator) -> Decision:
    """Which of these labels is on the form? One is."""
    here = str(rng.choice(list(form.fields)))
    others = [str(label) for label in rng.permutation([label for label in LABELS if label not in form.fields])]
    labels = [str(label) for label in rng.permutation([here, *others[: int(rng.integers(1, 4))]])]
    text = _pick(
        rng,
        ("Which of these is on the form?", "Which label is on the form?", "What does the form give?"),
        ("Which of these does the form have?",),
        split,
    )
    return Choice(text, labels), labels.index(here)


def _which_value(form: Form, split: str, rng: np.random.Generator) -> Decision:
    """What is the number of a label? The wrong options differ in a digit, or stand next to another label."""
    label = str(rng.choice(list(form.fields)))
    right = str(form.fields[label])
    wrong = {str(value) for value in form.fields.values()}
    for _ in range(2):
        position = int(rng.integers(len(right)))
        digit = str(int(rng.integers(1, 10)))
        wrong.add(right[:position] + digit + right[position + 1 :])
    others = [str(value) for value in rng.permutation(sorted(wrong - {right}))]
    options = [str(value) for value in rng.permutation([right, *others[: int(rng.integers(1, 4))]])]
    text = _pick(
        rng,
        ("Which number has the {0}?", "Which number is next to {0}?", "What number belongs to {0}?"),
        ("Which number stands next to {0}?", "What is the number of {0}?"),
        split,
    )
    return Choice(text.format(label), options), options.index(right)


def _which_row(form: Form, split: str, rng: np.random.Generator) -> Decision:
    word, position = (("first", 0), ("last", -1))[int(rng.integers(2))]
    labels = [str(label) for label in rng.permutation(list(form.fields))]
    text = _pick(
        rng,
        ("Which label comes {0}?", "Which row is the {0}?", "What is the {0} label of the form?"),
        ("What comes {0} on the form?",),
        split,
    )
    return Choice(text.format(word), labels), labels.index(form.rows[position].label)


def _num_digits(form: Form, split: str, rng: np.random.Generator) -> Decision:
    label = str(rng.choice(list(form.fields)))
    levels = [f"{word} digit{'s' if number else ''}" for number, word in enumerate(NUMBER_WORDS[:MAX_DIGITS])]
    text = _pick(
        rng,
        ("How long is the {0}?", "How many digits has the {0}?", "Rate the length of the {0}."),
        ("How large is the {0}?",),
        split,
    )
    return Score(text.format(label), levels), len(str(form.fields[label])) - 1


def _num_rows(form: Form, split: str, rng: np.random.Generator) -> Decision:
    levels = [f"{word} rows" for word in NUMBER_WORDS[MIN_ROWS - 1 : MAX_ROWS]]
    text = _pick(
        rng,
        ("How full is the form?", "Rate the number of rows.", "How long is the form?"),
        ("How many rows does it have?",),
        split,
    )
    return Score(text, levels), len(form.rows) - MIN_ROWS


def _is_ticked(form: Form, split: str, rng: np.random.Generator) -> Decision:
    """Is a checkbox ticked? Without one on the form: is a label there?"""
    boxes = [label for label, value in form.fields.items() if isinstance(value, bool)]
    if not boxes:
        return _is_there(form, split, rng)
    label = str(rng.choice(boxes))
    text = _pick(
        rng,
        ("Is {0} ticked?", "The box of {0} is ticked.", "Is the checkbox of {0} ticked?", "{0} is ticked."),
        ("Has the box next to {0} a tick?",),
        split,
    )
    return Predicate(text.format(label)), int(not form.fields[label])


DECISIONS: dict[str, Callable[[Form, str, np.random.Generator], Decision]] = {
    "compare": _compare,
    "is_there": _is_there,
    "more_rows": _more_rows,
    "largest": _largest,
    "which_is_there": _which_is_there,
    "which_value": _which_value,
    "which_row": _which_row,
    "num_digits": _num_digits,
    "num_rows": _num_rows,
}
"""What is decided about a plain form, to the function that draws the question."""
FIXED_OPTIONS = ("is_there", "num_rows", "more_rows", "num_digits")
"""Decisions whose options are always the same. The small model has learned to answer them by label."""
RICH_DECISIONS = {
    name: DECISIONS[name] for name in ("is_there", "more_rows", "which_is_there", "which_row", "num_rows")
}
RICH_DECISIONS |= {"is_ticked": _is_ticked}
"""The same for a rich form, not all of whose values are numbers."""


def _compare_lengths(form: Form, split: str, rng: np.random.Generator) -> Decision:
    """As `_compare`, mostly with a number of another length, so that no digit needs to be compared."""
    for _ in range(8):
        question, right = _compare(form, split, rng)
        words = question.instructions.strip("?.").split()
        (label,) = set(words) & set(form.fields)
        if len(words[-1]) != len(str(form.fields[label])):
            break
    return question, right


def _largest_length(form: Form, split: str, rng: np.random.Generator) -> Decision:
    """As `_largest`, without the labels whose numbers are as long as the right one, if others are left."""
    question, right = _largest(form, split, rng)
    choices = [option.text for option in question.options]
    best = choices[right]
    lengths = {label: len(str(form.fields[label])) for label in choices}
    labels = [label for label in choices if label == best or lengths[label] != lengths[best]]
    return (question, right) if len(labels) == 1 else (Choice(question.instructions, labels), labels.index(best))


EASY_DECISIONS = {"compare_lengths": _compare_lengths, "largest_length": _largest_length}
"""What comes before `compare` and `largest` in a curriculum. Asked only by name."""
PLAIN_DECISIONS = DECISIONS | EASY_DECISIONS


def rotate(decision: Decision, rotation: int) -> Decision:
    """The same question with its options in another order, as `decide(..., permutations=...)` asks it."""
    question, right = decision
    options = question.options
    start = rotation % len(options)
    choice = Choice(question.instructions, [*options[start:], *options[:start]])
    return choice, (right - start) % len(options)


def draw_decisions(
    form: Form, split: str, rng: np.random.Generator, is_rich: bool = False, names: Sequence[str] | None = None
) -> tuple[list[str], list[Decision]]:
    """Draws questions about one form.

    Args:
        form (`Form`): What they are about.
        split (`str`): `"train"`, a quarter of whose questions are rotated, or `"test"`, half of whose have held-out
            wordings.
        rng (`np.random.Generator`): The source of the questions.
        is_rich (`bool`, defaults to `False`): Whether the form is rich.
        names (`Sequence[str]`, *optional*): Which questions to ask, of `PLAIN_DECISIONS` or `RICH_DECISIONS`. When not
            given, any but the easy ones, mostly one to three, at most `MAX_DECISIONS`.

    Returns:
        `tuple[list[str], list[Decision]]`: The names, and each question with the number of its right option.
    """
    known = RICH_DECISIONS if is_rich else PLAIN_DECISIONS
    names = draw_names(rng, askable(None, is_rich)) if names is None else names
    decisions = []
    for name in names:
        decision = known[name](form, split, rng)
        rotation = int(rng.integers(1, 5)) if rng.random() < ROTATED else 0
        decisions.append(rotate(decision, rotation) if split == "train" and rotation else decision)
    return list(names), decisions


def draw_names(rng: np.random.Generator, known: Sequence[str]) -> list[str]:
    """Draws which questions are asked about one form: mostly one to three, at most `MAX_DECISIONS`."""
    most = 3 if rng.random() < 0.8 else MAX_DECISIONS
    return [str(name) for name in rng.choice(known, int(rng.integers(1, most + 1)))]


def draw_decision(
    form: Form, split: str, rng: np.random.Generator, is_rich: bool = False, names: Sequence[str] | None = None
) -> Decision:
    """Draws one question about a form, one of `names` or any, its options in their own order; for the arguments see
    [`draw_decisions`]."""
    known = RICH_DECISIONS if is_rich else PLAIN_DECISIONS
    return known[str(rng.choice(askable(names, is_rich)))](form, split, rng)


def askable(names: Sequence[str] | None, is_rich: bool) -> list[str]:
    """Those of `names`, or of all decisions, that can be asked about a rich form, or about a plain one."""
    if not names:
        return list(RICH_DECISIONS if is_rich else DECISIONS)
    return [name for name in names if name in (RICH_DECISIONS if is_rich else PLAIN_DECISIONS)]


def draw_choice(split: str, rng: np.random.Generator) -> Decision:
    """Draws a choice whose question names the right option, so that it needs no form."""
    options = draw_options(rng)
    right = int(rng.integers(len(options)))
    text = _pick(
        rng, ("Choose {0}.", "Which is {0}?", "Where is {0}?", "The answer is {0}."), ("Take {0}.", "Find {0}."), split
    )
    return Choice(text.format(options[right]), options), right


def draw_options(rng: np.random.Generator) -> list[str]:
    """Two to five labels of forms in any order."""
    return [str(label) for label in rng.choice(LABELS, int(rng.integers(2, 6)), replace=False)]


def decision_prior(questions: Sequence[Question]) -> StructurePrior:
    """The answers to these questions: all text is given but a label for each, and one position of padding follows."""
    prefixes = label_prefixes(len(questions))
    template = "".join(f"{prefix}{LABEL_PREFIX}{{q{number}}}" for number, prefix in enumerate(prefixes))
    slots = {
        f"q{number}": Slot(choices=OPTION_LABELS[: len(question.options)]) for number, question in enumerate(questions)
    }
    return StructurePrior.from_template(f"{template}{{end:1}}", slots=slots)

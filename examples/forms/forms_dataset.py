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
"""Questions about images of forms, as chat rows for any Trainer.

An example is `{"messages", "images", "structure_prior", "kind", "question", "answer", "fields"}`: the Hub's chat form
plus what the scores need. Examples are composed when they are read (`Dataset.with_transform`), so a data set of any
length costs nothing to build, and example `index` is the same in every process.
`python examples/forms/forms_dataset.py` writes the committed sample, a held-out image and its truth.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from forms_data import (
    ALL_LABELS,
    AMOUNT_LABELS,
    BOX_LABELS,
    DATE_LABELS,
    MAX_DIGITS,
    SPLITS,
    Form,
    Value,
    draw_form,
    form_rng,
    render_form,
)
from forms_decisions import (
    PLAIN_DECISIONS,
    RICH_DECISIONS,
    Decision,
    askable,
    decision_prior,
    draw_choice,
    draw_decision,
    draw_decisions,
    draw_names,
    draw_options,
)
from forms_other import draw_other
from forms_questions import LIST_WORDINGS, WORDINGS, unrelated_question, word_question

from dimple_hf import Slot, StructurePrior
from dimple_hf.decisions import Predicate
from dimple_hf.decisions.prompt import LABELS as OPTION_LABELS
from dimple_hf.decisions.prompt import decision_answer, decision_prompt

NOT_ON_FORM, NO_FORM = "not on the form", "no form"
"""The honest answers: to a question that the form does not answer, and to any question about another image."""
SUM_DIGITS = MAX_DIGITS + 1
"""Digits of a sum, leading zeros included."""
MAX_SUM_PADDING = 32
"""Most padding after the sum of a `"worked"` answer, whose canvas is of any length as that of a free answer is."""
MAX_OPEN_DIGITS = 2
"""Most digits of the terms that a `"worked"` answer leaves open. While one is, what depends on it in the sum must not
be sure, or it is committed too early."""
OPEN_DIGITS = [n for n in range(2 * MAX_DIGITS) if n % MAX_DIGITS]
"""Which may be. Not the first of a term: a slot takes the space before it, too."""
SAMPLE_INDEX = 1012
"""The first held-out example from 1000 on whose four numbers have one, two, three and four digits."""


@dataclass(frozen=True)
class Question:
    """A question about a form.

    Args:
        text (`str`): The question.
        answer (`str`): The expected answer, in the one form that the model is taught.
        prior ([`StructurePrior`], *optional*): What the answer is laid out by.
        fields (`dict[str, Value]`, defaults to `{}`): Label to value, in the order of the answer, for the scores.
    """

    text: str
    answer: str
    prior: StructurePrior | None = None
    fields: dict[str, Value | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Asker:
    """What questions are drawn from: a split, a random stream, their words (see [`word_question`]), and the names of
    decisions (see [`draw_decisions`])."""

    split: str
    rng: np.random.Generator
    words: str | int = "first"
    decisions: Sequence[str] | None = None

    def word(self, kind: str, *labels: str) -> str:
        """A question of `kind` about these labels."""
        return word_question(kind, self.split, self.rng, self.words).format(*labels)

    def labels(self, form: Form, number: int | None = None) -> list[str]:
        """Labels of the form in any order: so many, or any number from 2."""
        labels = [str(label) for label in self.rng.permutation(list(form.fields))]
        drawn = int(self.rng.integers(2, len(labels) + 1))
        return labels[: drawn if number is None else number]

    def any_words(self) -> str:
        """What somebody may write beside a schema: mostly a request for JSON, with all words also anything else."""
        drawn = self.rng.random()
        if self.words in ("all", "held_out") and drawn < 0.5:
            return self.word("text") if drawn < 0.25 else unrelated_question(self.split, self.rng)
        return self.word("json")


def write_value(value: Value) -> str:
    """A value as text: `"12"`, `"12.50"`, `"03-12"`, `"yes"`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def write_text(fields: Mapping[str, Value]) -> str:
    """Fields as text, for example `"qty 12\\nage 345"`."""
    return "\n".join(f"{label} {write_value(value)}" for label, value in fields.items())


def write_json(fields: Mapping[str, Value | None]) -> str:
    """Fields as JSON without spaces, amounts with two decimals, for example `'{"qty":12,"cost":4.50}'`."""
    values = {
        label: write_value(value) if isinstance(value, float) else json.dumps(value) for label, value in fields.items()
    }
    return "{" + ",".join(f'"{label}":{value}' for label, value in values.items()) + "}"


def write_terms(fields: Mapping[str, int], asked: Collection[str]) -> str:
    """The working before a sum, for example `"qty 0012+age 0345="`.

    Of one width, so that digits of one position always stand at the same distance: numbers of any width are much
    harder to add for a small model.
    """
    return "+".join(f"{label} {fields[label]:0{MAX_DIGITS}d}" for label in asked) + "="


def write_sum(fields: Mapping[str, int], asked: Collection[str]) -> str:
    """A sum with its working, for example `"qty 0012+age 0345=00357"`."""
    return f"{write_terms(fields, asked)}{sum(fields[label] for label in asked):0{SUM_DIGITS}d}"


def value_schema(label: str, largest: int = 10**MAX_DIGITS - 1, is_nullable: bool = False) -> dict[str, Any]:
    """The JSON schema of a label's values, numbers up to `largest`."""
    if label in AMOUNT_LABELS:
        schema: dict[str, Any] = {"type": "number"}
    elif label in DATE_LABELS:
        schema = {"type": "string", "pattern": "[0-9]{2}-[0-9]{2}"}
    elif label in BOX_LABELS:
        schema = {"type": "boolean"}
    else:
        schema = {"type": "integer", "minimum": 0, "maximum": largest}
    return schema | ({"type": [schema["type"], "null"]} if is_nullable else {})


def form_prior(
    labels: Iterable[str], layout: str = "padded", largest: int = 10**MAX_DIGITS - 1, is_nullable: bool = False
) -> StructurePrior:
    """The prior of a JSON object with these labels, in this order; see [`value_schema`]."""
    properties = {label: value_schema(label, largest, is_nullable) for label in labels}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return StructurePrior.from_json_schema(schema, layout=layout)


def sum_prior(
    fields: Mapping[str, int], asked: Collection[str], num_padding: int = 0, open_digits: Collection[int] = ()
) -> StructurePrior:
    """The prior of a sum whose terms are given.

    Args:
        fields, asked: See [`write_sum`].
        num_padding (`int`, defaults to 0): Positions after the digits of the sum.
        open_digits (`Collection[int]`, defaults to `()`): Which digits of the terms are not given, counted from 0
            through both.
    """
    count = itertools.count()
    terms = re.sub(
        r"\d", lambda digit: f"{{digit{n}:1}}" if (n := next(count)) in open_digits else digit[0],
        write_terms(fields, asked),
    )  # fmt: skip
    return StructurePrior.from_template(f"{terms}{{sum:{SUM_DIGITS + num_padding}}}")


def _ask_text(form: Form, asker: Asker) -> Question:
    return Question(asker.word("text"), write_text(form.fields), fields=form.fields)


def _ask_json(form: Form, asker: Asker) -> Question:
    return Question(asker.word("json"), write_json(form.fields), fields=form.fields)


def _ask_schema(form: Form, asker: Asker) -> Question:
    """JSON under the form's own schema, in either layout."""
    layout = str(asker.rng.choice(["padded", "compact"]))
    prior = form_prior(form.fields, layout)
    return Question(asker.any_words(), write_json(form.fields), prior, form.fields)


def _ask_shuffled(form: Form, asker: Asker) -> Question:
    """JSON under a schema of some labels, in any order, with room for longer numbers now and then."""
    labels = asker.labels(form, None if asker.rng.random() < 0.4 else len(form.fields))
    largest = 10 ** int(asker.rng.choice([4, 5, 6, 8], p=[0.7, 0.1, 0.1, 0.1])) - 1
    fields = {label: form.fields[label] for label in labels}
    return Question(asker.any_words(), write_json(fields), form_prior(labels, "padded", largest), fields)


def _ask_nullable(form: Form, asker: Asker) -> Question:
    """JSON under a schema that allows null, with one or two labels that are not on the form."""
    absent = asker.rng.permutation([label for label in ALL_LABELS if label not in form.fields])
    labels = [*asker.labels(form)[:3], *absent[: int(asker.rng.integers(1, 3))]]
    fields = {label: form.fields.get(label) for label in map(str, asker.rng.permutation(labels))}
    return Question(asker.any_words(), write_json(fields), form_prior(fields, "padded", is_nullable=True), fields)


def _ask_field(form: Form, asker: Asker) -> Question:
    (label,) = asker.labels(form, 1)
    return Question(asker.word("field", label), write_text({label: form.fields[label]}))


def _ask_fields(form: Form, asker: Asker) -> Question:
    return _ask_in_order(form, asker.labels(form), asker)


def _ask_all_fields(form: Form, asker: Asker) -> Question:
    """The same of every label of the form: the longest lists are the hardest."""
    return _ask_in_order(form, asker.labels(form, len(form.fields)), asker)


def _ask_in_order(form: Form, labels: Sequence[str], asker: Asker) -> Question:
    named = ", ".join(labels[:-1]) + f" and {labels[-1]}"
    return Question(asker.word("fields", named), write_text({label: form.fields[label] for label in labels}))


def _ask_repeat(form: Form, asker: Asker) -> Question:
    """Labels to be written in lines, without an image, half of the time with numbers, as `fields` asks."""
    labels = [str(label) for label in asker.rng.choice(ALL_LABELS, asker.rng.integers(2, 6), replace=False)]
    if asker.rng.random() < 0.5:
        sizes = 10 ** asker.rng.integers(1, MAX_DIGITS + 1, len(labels))
        labels = [f"{label} {asker.rng.integers(size)}" for label, size in zip(labels, sizes, strict=True)]
    return Question(f"Repeat in lines: {', '.join(labels[:-1])} and {labels[-1]}.", "\n".join(labels))


def _ask_rows(form: Form, asker: Asker) -> Question:
    # The labels are what is counted. Asked for the number alone, a small model is off by one once in four to ten.
    return Question(asker.word("rows"), f"{','.join(form.fields)}={len(form.fields)}")


def _ask_sum(form: Form, asker: Asker) -> Question:
    labels = asker.labels(form, 2)
    return Question(asker.word("sum", *labels), write_sum(form.fields, labels))


def _ask_worked(form: Form, asker: Asker) -> Question:
    """A sum whose terms are given but for up to two digits."""
    labels = asker.labels(form, 2)
    num_open = asker.rng.integers(MAX_OPEN_DIGITS + 1)
    open_digits = asker.rng.choice(OPEN_DIGITS, num_open, replace=False).tolist()
    prior = sum_prior(form.fields, labels, int(asker.rng.integers(MAX_SUM_PADDING + 1)), open_digits)
    return Question(asker.word("sum", *labels), write_sum(form.fields, labels), prior)


def _ask_add(form: Form, asker: Asker) -> Question:
    """A sum whose terms are given, without an image."""
    labels = asker.labels(form, 2)
    return Question(asker.word("sum", *labels), write_sum(form.fields, labels), sum_prior(form.fields, labels))


def _ask_absent(form: Form, asker: Asker) -> Question:
    """A label that is not on the form."""
    label = str(asker.rng.choice([label for label in ALL_LABELS if label not in form.fields]))
    return Question(asker.word("field", label), NOT_ON_FORM)


def _ask_unrelated(form: Form, asker: Asker) -> Question:
    return Question(unrelated_question(asker.split, asker.rng), NOT_ON_FORM)


def _ask_no_form(form: Form, asker: Asker) -> Question:
    """Any question, whose image shows no form."""
    kind = str(asker.rng.choice([*WORDINGS, "unrelated"]))
    if kind == "unrelated":
        return Question(unrelated_question(asker.split, asker.rng), NO_FORM)
    labels = [str(label) for label in asker.rng.choice(ALL_LABELS, 2, replace=False)]
    return Question(asker.word(kind, *(labels if kind != "fields" else [" and ".join(labels)])), NO_FORM)


def _ask_copy(form: Form, asker: Asker) -> Question:
    return Question(asker.word("copy"), ",".join(form.fields), fields=form.fields)


def _ask_reverse(form: Form, asker: Asker) -> Question:
    return Question(asker.word("reverse"), ",".join(reversed(form.fields)), fields=form.fields)


def _ask_shuffle(form: Form, asker: Asker) -> Question:
    """The labels in any order, in training each time another one."""
    return Question(asker.word("shuffle"), ",".join(asker.labels(form, len(form.fields))), fields=form.fields)


def _is_rich(form: Form) -> bool:
    return any(label not in NUMBERS for label in form.fields)


def _ask_freely(form: Form, asker: Asker) -> Question:
    """One decision whose answer is the text of an option: from it a model learns what is asked."""
    question, right = draw_decision(form, asker.split, asker.rng, _is_rich(form), asker.decisions)
    options = [option.text for option in question.options]
    listed = "" if isinstance(question, Predicate) else "\n" + ", ".join(options)
    return Question(f"{question.instructions}{listed}", options[right])


def _ask_openly(form: Form, asker: Asker) -> Question:
    """The same without a list of options, as `decide(..., reading="text")` asks."""
    question, right = draw_decision(form, asker.split, asker.rng, _is_rich(form), asker.decisions)
    return Question(question.instructions, question.options[right].text)


def _ask_decide_one(form: Form, asker: Asker) -> Question:
    """One decision, its options in their own order."""
    return _lay_out([draw_decision(form, asker.split, asker.rng, _is_rich(form), asker.decisions)])


def _ask_decide_two(form: Form, asker: Asker) -> Question:
    """Two decisions on one canvas, their options in their own order."""
    return _lay_out([draw_decision(form, asker.split, asker.rng, _is_rich(form), asker.decisions) for _ in range(2)])


def _ask_decide(form: Form, asker: Asker) -> Question:
    """Several decisions at once."""
    names = draw_names(asker.rng, askable(asker.decisions, _is_rich(form)))
    return _lay_out(draw_decisions(form, asker.split, asker.rng, _is_rich(form), names)[1])


def _ask_choose(form: Form, asker: Asker) -> Question:
    """One decision without an image."""
    return _lay_out([draw_choice(asker.split, asker.rng)])


def _lay_out(decisions: Sequence[Decision]) -> Question:
    questions = [question for question, _ in decisions]
    answer = decision_answer([OPTION_LABELS[right] for _, right in decisions])
    return Question(decision_prompt(questions), answer, decision_prior(questions))


def _ask_letters(form: Form, asker: Asker) -> Question:
    """Options with letters, without an image: which letter has each option?"""
    options = draw_options(asker.rng)
    return _match(asker, options, [(option, f" {OPTION_LABELS[n]}") for n, option in enumerate(options)])


def _ask_options(form: Form, asker: Asker) -> Question:
    """The same the other way round: which option has each letter?"""
    options = draw_options(asker.rng)
    return _match(
        asker, options, [(f"{OPTION_LABELS[number]}.", f" {option}") for number, option in enumerate(options)]
    )


def _match(asker: Asker, options: Sequence[str], pairs: Sequence[tuple[str, str]]) -> Question:
    """Options with letters as the question. As the answer pairs in any order, the first part given, the second not."""
    shuffled = [pairs[index] for index in asker.rng.permutation(len(pairs))]
    slots = {f"part{number}": Slot(choices=sorted(second for _, second in pairs)) for number in range(len(pairs))}
    template = "\n".join(f"{first}{{part{number}}}" for number, (first, _) in enumerate(shuffled))
    return Question(
        "\n".join(f"{letter}. {option}" for letter, option in zip(OPTION_LABELS, options, strict=False)),
        "\n".join(map("".join, shuffled)),
        StructurePrior.from_template(f"{template}{{end:1}}", slots=slots),
    )


NUMBERS = frozenset(ALL_LABELS) - {*AMOUNT_LABELS, *DATE_LABELS, *BOX_LABELS}

KINDS: dict[str, Callable[[Form, Asker], Question]] = {
    "text": _ask_text,
    "json": _ask_json,
    "schema": _ask_schema,
    "shuffled": _ask_shuffled,
    "nullable": _ask_nullable,
    "field": _ask_field,
    "fields": _ask_fields,
    "all_fields": _ask_all_fields,
    "repeat": _ask_repeat,
    "rows": _ask_rows,
    "sum": _ask_sum,
    "worked": _ask_worked,
    "add": _ask_add,
    "absent": _ask_absent,
    "unrelated": _ask_unrelated,
    "no_form": _ask_no_form,
    "freely": _ask_freely,
    "openly": _ask_openly,
    "decide_one": _ask_decide_one,
    "decide_two": _ask_decide_two,
    "decide": _ask_decide,
    "choose": _ask_choose,
    "letters": _ask_letters,
    "options": _ask_options,
    "copy": _ask_copy,
    "reverse": _ask_reverse,
    "shuffle": _ask_shuffle,
}
"""Kind of question to the function that asks one."""
LAID_OUT_WITHOUT_IMAGE = ("add", "choose", "letters", "options")
NO_IMAGE = ("repeat", *LAID_OUT_WITHOUT_IMAGE)
"""Kinds that are asked without an image."""
UNDER_PRIOR = (
    "schema", "shuffled", "nullable", "worked", "decide_one", "decide_two", "decide", *LAID_OUT_WITHOUT_IMAGE,
)  # fmt: skip
"""Kinds whose answers are laid out by a structure prior."""
PLAIN_ONLY = ("sum", "worked", "no_form", *NO_IMAGE)
"""Kinds that are never asked about a rich form."""
KIND_SHARES = {
    "text": 0.17,
    "json": 0.19,
    "schema": 0.05,
    "shuffled": 0.06,
    "field": 0.03,
    "fields": 0.1,
    "rows": 0.12,
    "sum": 0.12,
    "worked": 0.12,
    "add": 0.04,
}
"""How often each kind is asked in the first recipe's diffusion stages. Finding a row by its label has only been
learned where nothing could be read by counting rows first; `docs/results.md` tells how the recipe teaches both."""


def forms_row(
    split: str,
    index: int,
    seed: int = 0,
    kind: str | None = None,
    shares: Mapping[str, float] = KIND_SHARES,
    rich_share: float = 0.0,
    words: str | int = "first",
    decisions: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Example `index` of a split: the image, one question about it and its answer.

    Args:
        split, index, seed: See [`form_rng`].
        kind (`str`, *optional*): Kind of question, a key of `KINDS`; drawn by `shares` when not given.
        shares (`Mapping[str, float]`, defaults to `KIND_SHARES`): Kinds of question and how often each is drawn.
        rich_share (`float`, defaults to 0): Share of rich forms.
        words (`str` or `int`, defaults to `"first"`): See [`word_question`].
        decisions (`Sequence[str]`, *optional*): Which are asked, of `PLAIN_DECISIONS` and `RICH_DECISIONS`; any
            when not given.

    Returns:
        `dict[str, Any]`: `messages` (a user turn with the image and the question, an assistant turn with the
        answer), `images` (one `PIL.Image.Image`, none for the kinds of `NO_IMAGE`), `structure_prior` (a
        [`StructurePrior`] for the kinds of `UNDER_PRIOR`, else `None`), and for scoring `kind`, `question`, `answer`,
        `fields` (JSON: label to value, in the order of the answer).
    """
    rng = form_rng(split, index, seed)
    (question_rng,) = rng.spawn(1)  # its own, so that a question needs no image to be drawn
    # Both are drawn whether or not they are needed, so that the same example asks for the same labels.
    drawn = str(question_rng.choice(list(shares), p=list(shares.values())))
    is_rich = bool(question_rng.random() < rich_share)
    kind = drawn if kind is None else kind
    form = draw_form(split, rng, is_rich and kind not in PLAIN_ONLY)
    question = KINDS[kind](form, Asker(split, question_rng, words, decisions))
    images = [] if kind in NO_IMAGE else [render_form(form, split, rng)]
    if kind == "no_form":
        size = (int(rng.integers(60, 400)), int(rng.integers(60, 400)))
        images = [draw_other(split, rng, size=size)]
    user = [*[{"type": "image"}] * len(images), {"type": "text", "text": question.text}]
    return {
        "messages": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
        ],
        "images": images,
        "structure_prior": question.prior,
        "kind": kind,
        "question": question.text,
        "answer": question.answer,
        "fields": json.dumps(question.fields or form.fields),
    }


def forms_dataset(
    split: str,
    num_rows: int,
    seed: int = 0,
    kind: str | None = None,
    shares: Mapping[str, float] = KIND_SHARES,
    rich_share: float = 0.0,
    words: str | int = "first",
    decisions: Sequence[str] | None = None,
) -> Dataset:
    """A data set of `num_rows` questions about as many images, composed when they are read.

    Train with `remove_unused_columns=False`: the only stored column is the example's index.

    Args:
        split (`str`): `"train"` or `"test"`; no digit image is in both.
        num_rows (`int`): Number of examples.
        seed (`int`, defaults to 0): Another seed gives other forms from the same digits.
        kind (`str`, *optional*): One kind of question for all examples; mixed by `shares` when not given.
        shares (`Mapping[str, float]`, defaults to `KIND_SHARES`): Kinds of question and how often each is drawn.
        rich_share (`float`, defaults to 0): Share of rich forms, where a kind of question can be about one.
        words (`str` or `int`, defaults to `"first"`): See [`word_question`].
        decisions (`Sequence[str]`, *optional*): Which are asked, of `PLAIN_DECISIONS` and `RICH_DECISIONS`; any
            when not given.

    Raises:
        ValueError: If `split` or a kind is unknown, or the shares are not shares of 1.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)} (got {split!r})")
    for name in (*shares, *([] if kind is None else [kind])):
        if name not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)} (got {name!r})")
    for name in decisions or ():
        if name not in PLAIN_DECISIONS | RICH_DECISIONS:
            raise ValueError(
                f"`decisions` must be names of {', '.join(PLAIN_DECISIONS | RICH_DECISIONS)} (got {name!r})"
            )
    if not math.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
        raise ValueError(f"`shares` must be shares of 1 (got {dict(shares)})")

    def compose(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [forms_row(split, index, seed, kind, shares, rich_share, words, decisions) for index in batch["index"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    return Dataset.from_dict({"index": range(num_rows)}).with_transform(compose)


def write_sample(directory: Path) -> None:
    """Writes `sample.png`, a held-out form, and `sample.json`: its fields and a question about it of each kind that is
    asked in words alone, but for lists of labels and for decisions.
    """
    asked_freely = [
        kind
        for kind in KINDS
        if kind not in (*UNDER_PRIOR, *LIST_WORDINGS, "no_form", "freely", "openly", "repeat", "all_fields")
    ]
    rows = [forms_row("test", SAMPLE_INDEX, kind=kind) for kind in asked_freely]
    rows[0]["images"][0].save(directory / "sample.png")
    asked = [{name: row[name] for name in ("kind", "question", "answer")} for row in rows]
    truth = {"fields": json.loads(rows[0]["fields"]), "questions": asked}
    (directory / "sample.json").write_text(json.dumps(truth, indent=2) + "\n")


if __name__ == "__main__":
    write_sample(Path(__file__).parent)

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
"""Questions about images of forms, as chat rows for any Trainer, and the scores of their answers.

A row is `{"messages", "images", "kind", "question", "answer", "fields"}`: the Hub's chat form plus what the scorers
need. Rows are composed when they are read (`Dataset.with_transform`), so a data set of any length costs nothing to
build, and row `index` is the same in every process. Used by the training recipe, the benchmarks and the demo.
`python examples/forms/forms_dataset.py` writes the committed sample, a held-out image and its truth.
"""

import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from forms_data import MAX_DIGITS, SPLITS, Form, draw_form, form_rng, render_form

from dimple_hf import StructurePrior

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
"""Kinds of question and how often each is asked. Finding a row by its label has only been learned where nothing could
be read by counting rows first; `docs/results.md` tells how the recipe teaches both."""
QUESTIONS = {
    "text": ("Read the form.", "What does the form say?", "Read this form as text."),
    "json": ("Read the form as JSON.", "Give the form as JSON.", "What does the form say in JSON?"),
    "field": ("What is the {0}?", "Read the {0}.", "What does the form say for {0}?"),
    "fields": ("Read the {0}.", "What are the {0}?", "Give the {0}."),
    # The same questions as for JSON, but the answer is laid out under the form's schema, or one with its labels in
    # another order.
    "schema": ("Read the form as JSON.", "Give the form as JSON.", "What does the form say in JSON?"),
    "shuffled": ("Read the form as JSON.", "Give the form as JSON.", "What does the form say in JSON?"),
    "rows": ("How many rows are there?", "How many rows does the form have?", "Count the rows."),
    "sum": ("What is the sum of {0} and {1}?", "What is {0} plus {1}?", "Add {0} and {1}."),
    # The same questions when the numbers stand in the answer already: beside an image, but for up to two digits, and
    # all of them without one.
    "worked": ("What is the sum of {0} and {1}?", "What is {0} plus {1}?", "Add {0} and {1}."),
    "add": ("What is the sum of {0} and {1}?", "What is {0} plus {1}?", "Add {0} and {1}."),
}
NUM_ASKED = {"field": 1, "sum": 2, "worked": 2, "add": 2}
"""How many labels a question names; `"fields"` names two or more and `"shuffled"` all of them, in any order."""
UNDER_PRIOR = ("schema", "shuffled", "worked", "add")
"""Kinds whose answers are laid out by a structure prior."""
SUM_DIGITS = MAX_DIGITS + 1
"""Digits of a sum, leading zeros included."""
MAX_SUM_FILLERS = 32
"""Most fillers after the sum of a `"worked"` row, whose canvas is of any length as that of a free answer is."""
MAX_OPEN_DIGITS = 2
"""Most digits of the terms that a `"worked"` row leaves open. While one is, what depends on it in the sum must not be
sure, or it is decided too early."""
OPEN_DIGITS = [n for n in range(2 * MAX_DIGITS) if n % MAX_DIGITS]
"""Which may be. Not the first of a term: a slot takes the space before it, too."""

SAMPLE_INDEX = 1012
"""The first held-out row from 1000 on whose four numbers have one, two, three and four digits."""


def write_answer(kind: str, fields: Mapping[str, int], asked: tuple[str, ...] = ()) -> str:
    """The expected answer, in the one form that the model is taught.

    Args:
        kind (`str`): Kind of question, a key of `QUESTIONS`.
        fields (`Mapping[str, int]`): Label to number, from top to bottom.
        asked (`tuple[str, ...]`, defaults to `()`): The labels named in the question: one for `"field"`, two for
            `"sum"`, `"worked"` and `"add"`, any number for `"fields"` and `"shuffled"`, else none.

    Returns:
        `str`: For example `"qty 12\\nage 345"`, `'{"qty":12,"age":345}'`, `"age 345"`,
        `"qty,age=2"`, `"qty 0012+age 0345=00357"`.
    """
    if kind == "text":
        return "\n".join(f"{label} {number}" for label, number in fields.items())
    if kind in ("json", "schema"):
        return json.dumps(fields, separators=(",", ":"))
    if kind == "shuffled":
        return json.dumps({label: fields[label] for label in asked}, separators=(",", ":"))
    if kind in ("field", "fields"):
        return "\n".join(f"{label} {fields[label]}" for label in asked)
    if kind == "rows":
        # The labels are what is counted. Asked for the number alone, a small model is off by one once in four to ten.
        return f"{','.join(fields)}={len(fields)}"
    return f"{write_terms(fields, asked)}{sum(fields[label] for label in asked):0{SUM_DIGITS}d}"


def write_terms(fields: Mapping[str, int], asked: tuple[str, ...]) -> str:
    """The working before a sum, for example `"qty 0012+age 0345="`.

    Of one width, so that digits of one position always stand at the same distance: numbers of any width are much
    harder to add for a small model.
    """
    return "+".join(f"{label} {fields[label]:0{MAX_DIGITS}d}" for label in asked) + "="


def form_prior(labels: Iterable[str], layout: str = "padded") -> StructurePrior:
    """The prior of a JSON object with these labels, in this order, each with a number of up to four digits."""
    number = {"type": "integer", "minimum": 0, "maximum": 10**MAX_DIGITS - 1}
    properties = dict.fromkeys(labels, number)
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return StructurePrior.from_json_schema(schema, layout=layout)


def answer_prior(
    kind: str,
    fields: Mapping[str, int],
    asked: tuple[str, ...],
    num_fillers: int = 0,
    open_digits: Collection[int] = (),
) -> StructurePrior | None:
    """The prior that an answer is given under, for the kinds of `UNDER_PRIOR`.

    Args:
        kind, fields, asked: See [`write_answer`].
        num_fillers (`int`, defaults to 0): Positions after the digits of a `"worked"` sum.
        open_digits (`Collection[int]`, defaults to `()`): Which digits of the terms of a `"worked"` sum are not given,
            counted from 0 through both.
    """
    if kind == "add":
        return StructurePrior.from_template(f"{write_terms(fields, asked)}{{sum:{SUM_DIGITS}}}")
    if kind == "worked":
        count = itertools.count()
        terms = re.sub(
            r"\d", lambda digit: f"{{digit{n}:1}}" if (n := next(count)) in open_digits else digit[0],
            write_terms(fields, asked),
        )  # fmt: skip
        return StructurePrior.from_template(f"{terms}{{sum:{SUM_DIGITS + num_fillers}}}")
    if kind in UNDER_PRIOR:
        return form_prior(asked if kind == "shuffled" else fields)
    return None


def draw_question(
    form: Form, rng: np.random.Generator, kind: str | None = None, shares: Mapping[str, float] = KIND_SHARES
) -> tuple[str, str, str, tuple[str, ...]]:
    """Draws a question about the form.

    Args:
        form (`Form`): What the question is about.
        rng (`np.random.Generator`): The source of the kind, the wording and the labels asked for.
        kind (`str`, *optional*): Kind of question; drawn by `shares` when not given.
        shares (`Mapping[str, float]`, defaults to `KIND_SHARES`): Kinds of question and how often each is drawn.

    Returns:
        `tuple[str, str, str, tuple[str, ...]]`: Kind, question, expected answer, labels asked for.
    """
    # All draws happen whether or not `kind` is given, so that the same row asks for the same labels.
    drawn = str(rng.choice(list(shares), p=list(shares.values())))
    labels = [str(label) for label in rng.permutation(list(form.fields))]
    wording = int(rng.integers(3))
    num_fields = int(rng.integers(2, len(labels) + 1))
    kind = drawn if kind is None else kind
    asked = tuple(labels[: num_fields if kind == "fields" else NUM_ASKED.get(kind, len(labels))])
    named = (", ".join(asked[:-1]) + f" and {asked[-1]}",) if kind == "fields" else asked
    question = QUESTIONS[kind][wording].format(*named)
    return kind, question, write_answer(kind, form.fields, asked), asked


def forms_row(
    split: str, index: int, seed: int = 0, kind: str | None = None, shares: Mapping[str, float] = KIND_SHARES
) -> dict[str, Any]:
    """Row `index` of a split: the image, one question about it and its answer.

    Returns:
        `dict[str, Any]`: `messages` (a user turn with the image and the question, an assistant turn with the
        answer), `images` (one `PIL.Image.Image`, none for `"add"`), `structure_prior` (a [`StructurePrior`] for the
        kinds of `UNDER_PRIOR`, else `None`), and for scoring `kind`, `question`, `answer`, `fields` (JSON: label to
        number, in the order of the answer).
    """
    rng = form_rng(split, index, seed)
    (question_rng,) = rng.spawn(1)  # its own, so that a question needs no image to be drawn
    form = draw_form(split, rng)
    kind, question, answer, asked = draw_question(form, question_rng, kind, shares)
    num_fillers = int(question_rng.integers(MAX_SUM_FILLERS + 1))
    num_open = question_rng.integers(MAX_OPEN_DIGITS + 1)
    open_digits = question_rng.choice(OPEN_DIGITS, num_open, replace=False).tolist()
    images = [] if kind == "add" else [render_form(form, split, rng)]
    fields = {label: form.fields[label] for label in asked} if kind == "shuffled" else form.fields
    user = {"role": "user", "content": [*[{"type": "image"}] * len(images), {"type": "text", "text": question}]}
    assistant = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return {
        "messages": [user, assistant],
        "images": images,
        "structure_prior": answer_prior(kind, form.fields, asked, num_fillers, open_digits),
        "kind": kind,
        "question": question,
        "answer": answer,
        "fields": json.dumps(fields),
    }


def forms_dataset(
    split: str, num_rows: int, seed: int = 0, kind: str | None = None, shares: Mapping[str, float] = KIND_SHARES
) -> Dataset:
    """A data set of `num_rows` questions about as many images, composed when they are read.

    Train with `remove_unused_columns=False`: the only stored column is the row's index.

    Args:
        split (`str`): `"train"` or `"test"`; no digit image is in both.
        num_rows (`int`): Number of rows.
        seed (`int`, defaults to 0): Another seed gives other forms from the same digits.
        kind (`str`, *optional*): One kind of question for all rows; mixed by `shares` when not given.
        shares (`Mapping[str, float]`, defaults to `KIND_SHARES`): Kinds of question and how often each is drawn.

    Raises:
        ValueError: If `split` or a kind is unknown, or the shares are not shares of 1.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {', '.join(SPLITS)} (got {split!r})")
    for name in (*shares, *([] if kind is None else [kind])):
        if name not in QUESTIONS:
            raise ValueError(f"`kind` must be one of {', '.join(QUESTIONS)} (got {name!r})")
    if not math.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
        raise ValueError(f"`shares` must be shares of 1 (got {dict(shares)})")

    def compose(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        rows = [forms_row(split, index, seed, kind, shares) for index in batch["index"]]
        return {name: [row[name] for row in rows] for name in rows[0]}

    return Dataset.from_dict({"index": range(num_rows)}).with_transform(compose)


def write_sample(directory: Path) -> None:
    """Writes `sample.png`, a held-out form, and `sample.json`: its fields and a question of each kind about it."""
    rows = [row for kind in QUESTIONS if (row := forms_row("test", SAMPLE_INDEX, kind=kind))["images"]]
    rows[0]["images"][0].save(directory / "sample.png")
    asked = [{name: row[name] for name in ("kind", "question", "answer")} for row in rows]
    truth = {"fields": json.loads(rows[0]["fields"]), "questions": asked}
    (directory / "sample.json").write_text(json.dumps(truth, indent=2) + "\n")


if __name__ == "__main__":
    write_sample(Path(__file__).parent)

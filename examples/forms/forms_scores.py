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
"""Scores of answers about forms: pure functions of the answer's text and the truth.

A field counts when its label is there with exactly its number; a whole form when all its fields, and no others, stand
in their order. Used by the benchmarks and by the evaluation in the training recipe.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping


def parse_text(answer: str) -> dict[str, int]:
    """The fields of an answer in text form, one `label number` a line; lines of another form are left out."""
    lines = (re.fullmatch(r"(\S+) (0|[1-9][0-9]*)", line) for line in answer.split("\n"))
    return {match[1]: int(match[2]) for match in lines if match}


def parse_json(answer: str) -> dict[str, int] | None:
    """The fields of an answer in JSON form, or `None` where it is no JSON object of whole numbers."""
    try:
        parsed = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(parsed, dict) or any(type(number) is not int for number in parsed.values()):
        return None
    return parsed


def parse_result(answer: str) -> int | None:
    """The number after the last `=` of an answer with its working, or `None` where there is none."""
    _, sign, result = answer.rpartition("=")
    return int(result) if sign and re.fullmatch("[0-9]+", result.strip()) else None


def score_answer(kind: str, answer: str, expected: str, fields: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Scores one answer.

    Args:
        kind (`str`): Kind of question: `"text"`, `"json"`, `"schema"`, `"shuffled"`, `"field"`, `"fields"`, `"rows"`,
            `"sum"`, `"worked"` or `"add"`.
        answer (`str`): What the model said, without special tokens. White space around it does not count.
        expected (`str`): The row's `answer`.
        fields (`Mapping[str, int]`): Label to number, from top to bottom.

    Returns:
        `dict[str, tuple[int, int]]`: Name of a score to (points, possible points): `"fields"` and `"whole"` for a
        whole form, also `"parses"` for JSON and under a schema, `"exact"` for the other kinds.

    Raises:
        ValueError: If `kind` is unknown.
    """
    answer = answer.strip()
    if kind in ("field", "fields"):
        return {"exact": (int(answer == expected), 1)}
    if kind in ("rows", "sum", "worked", "add"):
        return {"exact": (int(parse_result(answer) == parse_result(expected)), 1)}
    if kind not in ("text", "json", "schema", "shuffled"):
        raise ValueError(
            f"`kind` must be text, json, schema, shuffled, field, fields, rows, sum, worked or add (got {kind!r})"
        )
    parsed = parse_text(answer) if kind == "text" else parse_json(answer)
    found = parsed or {}
    right = sum(found.get(label) == number for label, number in fields.items())
    scores = {"fields": (right, len(fields)), "whole": (int(list(found.items()) == list(fields.items())), 1)}
    return scores | ({} if kind == "text" else {"parses": (int(parsed is not None), 1)})


def summarize(rows: Iterable[tuple[str, str, str, Mapping[str, int]]]) -> dict[str, float]:
    """Mean scores of many answers, as shares of 1.

    Args:
        rows (`Iterable[tuple[str, str, str, Mapping[str, int]]]`): The arguments of [`score_answer`], row by row.

    Returns:
        `dict[str, float]`: `"KIND/SCORE"` to its share, for example `{"json/fields": 0.97, "json/whole": 0.92, ...}`;
        only for the kinds that occur.
    """
    points: dict[str, int] = defaultdict(int)
    possible: dict[str, int] = defaultdict(int)
    for kind, answer, expected, fields in rows:
        for name, (scored, out_of) in score_answer(kind, answer, expected, fields).items():
            points[f"{kind}/{name}"] += scored
            possible[f"{kind}/{name}"] += out_of
    return {name: points[name] / possible[name] for name in sorted(points)}

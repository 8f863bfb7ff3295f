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
"""Scores of answers about forms: pure functions of the answer's text and the truth, and how certain a score is.

A field counts when its label is there with exactly its value; a whole form when all its fields, and no others, stand
in their order.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Any

WHOLE_FORMS = ("text", "json", "schema", "shuffled", "nullable")
WITH_WORKING = ("rows", "sum", "worked", "add")
EXACT = (
    "field",
    "fields",
    "all_fields",
    "repeat",
    "absent",
    "unrelated",
    "no_form",
    "copy",
    "reverse",
    "freely",
    "openly",
)
DECISIONS = ("decide_one", "decide_two", "decide", "choose", "letters", "options")
KINDS = (*WHOLE_FORMS, *WITH_WORKING, *EXACT, *DECISIONS, "shuffle")

Points = dict[str, tuple[int, int]]
"""Name of a score to points and possible points."""


def parse_value(text: str) -> int | float | str | bool | None:
    """A value as text: a whole number, an amount, a date, or yes and no; `None` where it is none of them."""
    if text in ("yes", "no"):
        return text == "yes"
    if re.fullmatch(r"0|[1-9][0-9]*", text):
        return int(text)
    if re.fullmatch(r"[0-9]+\.[0-9]{2}", text):
        return float(text)
    return text if re.fullmatch(r"[0-9]{2}-[0-9]{2}", text) else None


def parse_text(answer: str) -> dict[str, int | float | str | bool]:
    """The fields of an answer in text form, one `label value` a line; lines of another form are left out."""
    pairs = (line.split(" ") for line in answer.split("\n"))
    fields = {pair[0]: parse_value(pair[1]) for pair in pairs if len(pair) == 2}
    return {label: value for label, value in fields.items() if value is not None}


def parse_json(answer: str) -> dict[str, Any] | None:
    """The fields of an answer in JSON form, or `None` where it is no JSON object of plain values."""
    try:
        parsed = json.loads(answer)
    except ValueError:
        return None
    if not isinstance(parsed, dict) or any(isinstance(value, list | dict) for value in parsed.values()):
        return None
    return parsed


def parse_result(answer: str) -> int | None:
    """The number after the last `=` of an answer with its working, or `None` where there is none."""
    _, sign, result = answer.rpartition("=")
    return int(result) if sign and re.fullmatch("[0-9]+", result.strip()) else None


def _same(first: Any, second: Any) -> bool:
    """Equal, and of one type: `true` is not 1."""
    return type(first) is type(second) and first == second


def score_answer(kind: str, answer: str, expected: str, fields: Mapping[str, Any]) -> Points:
    """Scores one answer.

    Args:
        kind (`str`): Kind of question, one of `KINDS`.
        answer (`str`): The model's answer, without special tokens. White space around it does not count.
        expected (`str`): The example's `answer`.
        fields (`Mapping[str, Any]`): Label to value, in the order of the answer.

    Returns:
        `dict[str, tuple[int, int]]`: Name of a score to (points, possible points): `"fields"` and `"whole"` for a
        whole form, also `"parses"` for JSON and under a schema, `"questions"` for decisions and letters of options,
        `"exact"` for the other kinds.

    Raises:
        ValueError: If `kind` is unknown.
    """
    answer = answer.strip()
    if kind in EXACT:
        return {"exact": (int(answer == expected), 1)}
    if kind in WITH_WORKING:
        return {"exact": (int(parse_result(answer) == parse_result(expected)), 1)}
    if kind == "shuffle":
        return {"exact": (int(sorted(answer.split(",")) == sorted(fields)), 1)}
    if kind in DECISIONS:
        given, right = answer.split("\n"), expected.split("\n")
        return {"questions": (sum(line in given for line in right), len(right))}
    if kind not in WHOLE_FORMS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)} (got {kind!r})")
    parsed = parse_text(answer) if kind == "text" else parse_json(answer)
    found = parsed or {}
    num_right = sum(label in found and _same(found[label], value) for label, value in fields.items())
    is_whole = num_right == len(fields) and list(found) == list(fields)
    scores = {"fields": (num_right, len(fields)), "whole": (int(is_whole), 1)}
    return scores | ({} if kind == "text" else {"parses": (int(parsed is not None), 1)})


def add_points(rows: Iterable[tuple[str, str, str, Mapping[str, Any]]]) -> Points:
    """Points of many answers.

    Args:
        rows (`Iterable[tuple[str, str, str, Mapping[str, Any]]]`): The arguments of [`score_answer`], one by one.

    Returns:
        `dict[str, tuple[int, int]]`: `"KIND/SCORE"` to (points, possible points), for the kinds that occur.
    """
    points: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, answer, expected, fields in rows:
        for name, (scored, out_of) in score_answer(kind, answer, expected, fields).items():
            points[f"{kind}/{name}"][0] += scored
            points[f"{kind}/{name}"][1] += out_of
    return {name: (points[name][0], points[name][1]) for name in sorted(points)}


def summarize(rows: Iterable[tuple[str, str, str, Mapping[str, Any]]]) -> dict[str, float]:
    """Mean scores of many answers as shares of 1, for example `{"json/fields": 0.97, ...}`; see [`add_points`]."""
    return {name: scored / out_of for name, (scored, out_of) in add_points(rows).items()}


def wilson_interval(points: int, possible: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share (Wilson, 1927).

    Args:
        points (`int`): Successes.
        possible (`int`): Cases, >= 1.
        level (`float`, defaults to 0.95): Coverage, in (0, 1).

    Returns:
        `tuple[float, float]`: Lower and upper bound, in [0, 1].
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = points / possible
    scale = 1 + z**2 / possible
    center = (share + z**2 / (2 * possible)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / possible + z**2 / (4 * possible**2))
    return max(0.0, center - half), min(1.0, center + half)

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
"""The regular expressions of schemas measured: how many are accepted, and whether each text of theirs matches.

- `patterns`: different ones in `pattern` and `patternProperties` of all schemas.
- `accepted`: share of them that are built.
- `texts`: random texts that the automata accept.
- `unsound_in_python`, `unsound_in_ecmascript`: those that `re.search`, or `RegExp.test` of node with its `u` flag or
  else without, does not find a match in. Patterns that a dialect does not know are left out there and counted.
- `refused`: reasons.

Command:
    python benchmarks/patterns.py maskbench.jsonl.gz --output benchmarks/results/patterns.json

Hardware: any.
"""

import argparse
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from decode import write_json
from schemas import read_rows

from dimple_hf.processing.char_dfa_dimple import CharDFA
from dimple_hf.processing.patterns_dimple import pattern_dfa

#: Characters after which a random text takes the shortest way to its end.
MANY_CHARS = 24

_NODE = """
const matches = ([pattern, texts]) => {
  let expression;
  try { expression = new RegExp(pattern, "u"); }
  catch { try { expression = new RegExp(pattern); } catch { return null; } }
  return texts.map((text) => expression.test(text));
};
const rows = JSON.parse(require("fs").readFileSync(0, "utf8"));
console.log(JSON.stringify(rows.map(matches)));
"""


def patterns_of(value: Any) -> set[str]:
    """The patterns anywhere in a schema."""
    if isinstance(value, list):
        return set().union(*map(patterns_of, value))
    if not isinstance(value, dict):
        return set()
    found = set().union(*map(patterns_of, value.values()))
    if isinstance(value.get("pattern"), str):
        found.add(value["pattern"])
    if isinstance(value.get("patternProperties"), dict):
        found.update(value["patternProperties"])
    return found


def random_texts(dfa: CharDFA, max_chars: int | None, count: int, rng: random.Random) -> list[str]:
    """Different texts that an automaton accepts, at most `count`."""
    distance = np.where(dfa.accepting, 0, len(dfa.table))  # to an end
    for _ in dfa.table:
        distance = np.minimum(distance, np.where(dfa.table < 0, len(dfa.table), distance[dfa.table] + 1).min(axis=1))
    sets = dfa.column_sets()
    most = MANY_CHARS if max_chars is None else min(max_chars, MANY_CHARS)
    texts = set()
    for _ in range(2 * count):
        state, text = 0, ""
        while not dfa.accepting[state] or (len(text) < most and rng.random() < 0.8):
            left = most - len(text) - 1
            columns = [c for c, target in enumerate(dfa.table[state]) if target >= 0 and distance[target] <= left]
            nearer = [
                c for c, target in enumerate(dfa.table[state]) if target >= 0 and distance[target] < distance[state]
            ]
            if not columns and dfa.accepting[state]:
                break
            column = rng.choice(columns or nearer)
            text += chr(rng.randint(*rng.choice(sets[column])))
            state = int(dfa.table[state, column])
        texts.add(text)
    return sorted(texts)[:count]


def python_matches(pattern: str, texts: list[str]) -> list[bool] | None:
    """Whether Python finds the pattern in each text; `None` where it does not know the pattern."""
    try:
        expression = re.compile(pattern)
    except re.error:
        return None
    return [expression.search(text) is not None for text in texts]


def node_matches(rows: list[tuple[str, list[str]]]) -> list[list[bool] | None]:
    """Whether node finds the pattern in each text; `None` where it does not know the pattern."""
    done = subprocess.run(["node", "-e", _NODE], input=json.dumps(rows), capture_output=True, text=True, check=True)
    found: list[list[bool] | None] = json.loads(done.stdout)
    return found


def measure(patterns: list[str], num_texts: int) -> dict[str, Any]:
    """All patterns against both dialects."""
    rng = random.Random(0)
    rows: list[tuple[str, list[str]]] = []
    reasons: Counter[str] = Counter()
    for pattern in patterns:
        try:
            dfa, max_chars = pattern_dfa(pattern, search=True)
        except ValueError as error:
            reasons[str(error).split(" (")[0][:80]] += 1
            continue
        rows.append((pattern, random_texts(dfa, max_chars, num_texts, rng)))
    result: dict[str, Any] = {
        "patterns": len(patterns),
        "accepted": len(rows) / max(1, len(patterns)),
        "texts": sum(len(texts) for _, texts in rows),
        "refused": dict(reasons.most_common()),
    }
    found = {"python": [python_matches(pattern, texts) for pattern, texts in rows]}
    if shutil.which("node"):
        found["ecmascript"] = node_matches(rows)
    for dialect, matches in found.items():
        result[f"unsound_in_{dialect}"] = sum(not match for one in matches for match in one or ())
        result[f"unknown_to_{dialect}"] = matches.count(None)
    return result


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures the patterns of a file of schemas; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemas", type=Path, help="as for benchmarks/schemas.py")
    parser.add_argument("--texts", type=int, default=40, help="random texts of each pattern (default: %(default)s)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    warnings.simplefilter("ignore", FutureWarning)  # of `re`, about brackets
    patterns = sorted(set().union(*(patterns_of(row["schema"]) for row in read_rows(args.schemas, 1))))
    report = {
        "benchmark": "patterns",
        "command": shlex.join(["python", "benchmarks/patterns.py", args.schemas.name, *arguments[1:]]),
        "results": measure(patterns, args.texts),
    }
    print(json.dumps(report["results"], indent=2))
    if args.output is not None:
        write_json(args.output, report)
    return report


if __name__ == "__main__":
    main()

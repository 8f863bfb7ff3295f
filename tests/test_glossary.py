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
"""One word for one thing, and the field's: the words that the package does not use, with what it says instead."""

import re
from pathlib import Path

import pytest

#: A pattern that must not match, and the word to use. Patterns are matched without regard to case.
REPLACED = {
    r"(?<!in )(?<!one )(?<!take )(?<!takes )(?<!took )\bplaces?\b|(?<!in)_places?\b|\bplaces?_": "position",
    r"\bpictures?\b|_pictures?\b|\bpictures?_": "image",
    r"(?<!look-)\bbehind\b": "after",
    r"\breveal(?:s|ed|ing)?\b": "unmask, commit",
    r"\bundecided\b": "masked",
    r"\bsettled\b": "final",
    r"\b(?:un)?sound(?:ness)?\b": "finite, valid",
    r"\btakes? (?:it |them |that |what [a-z ]+ )?back\b|\btakes_back\b": "remask",
    r"\bdrafted\b|\bsuspicious\b": "provisional, rejected",
    r"\bopen_positions\b": "unresolved positions",
    r"\badmit(?:s|ted)?\b|\.restrict\(": "accept, mask_logits",
    r"\bfillers?\b": "padding",
    r"\bat_least\b|\bat_most\b": "min_..., max_...",
    r"\bFirstOf\b|\bByteNetwork\b|\bByteAutomaton\b": "Alternation, byte NFA, byte DFA",
    r"\brenew(?:s|ed|al)?\b|\banew\b": "refresh, recompute",
    r"\brecorded[ _]pass\b|\brecorded_pass": "CUDA graph",
    r"\bupstream(?:'s)?\b": "the original implementation",
    r"\bDenoisingPlan\b|\bPassMemory\b": "sampler, decoding state",
    r"\bparallel[_ ]rules?\b": "sampler",
    r"\bin_parts\b|\bmost_probable\b": "chunked, argmax",
}

#: What the words stand for where they must stay: a name of the model's own or of another library.
KEPT = [
    "Picture {{",  # the released chat template
    "text/event-stream",
    "upstream dimple {",  # a keyword of nginx
    '"Picture ',
    "parallel_rule",  # an option of earlier generation configurations, which are still read
    "this picture",  # a user's words in training data
]


def words_to_replace(text: str) -> list[str]:
    """The lines that use one of the words, with the word to use."""
    lines = text.splitlines()
    for kept in KEPT:
        text = text.replace(kept, "")
    found = []
    for pattern, instead in REPLACED.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            number = text.count("\n", 0, match.start()) + 1
            found.append(f"{number}: {match.group(0)!r} -> {instead}: {lines[number - 1].strip()}")
    return found


def documents(root: Path) -> list[Path]:
    pages = [*root.glob("docs/**/*.md"), *root.glob("*.md"), *root.glob("benchmarks/*.md")]
    code = [path for folder in ("src", "examples", "benchmarks") for path in root.glob(f"{folder}/**/*.py")]
    return sorted(path for path in [*pages, *code] if path.name != "CHANGELOG.md")


def test_words_are_those_of_the_field(repo_root: Path) -> None:
    """In code, comments, messages and pages."""
    found = {
        str(path.relative_to(repo_root)): lines
        for path in documents(repo_root)
        for lines in [words_to_replace(path.read_text(encoding="utf-8"))]
        if lines
    }
    assert not found, "\n".join(f"{path}:{line}" for path, lines in found.items() for line in lines)


@pytest.mark.parametrize(
    ("line", "is_found"),
    [
        ("masked places are revealed", True),
        ("num_places = 3", True),
        ("sort in place, which takes place once", False),
        ("masked_fill_ with in_place=True", False),
        ("a placeholder for each image", False),
        ("the picture", True),
        ('"{% if add_vision_id %}Picture {{ image_count.value }}: "', False),
        ("the answer is unmasked after the end token", False),
    ],
)
def test_words_are_found_where_they_are_used(line: str, is_found: bool) -> None:
    """Control: the patterns find the words, and leave their neighbours alone."""
    assert bool(words_to_replace(line)) == is_found

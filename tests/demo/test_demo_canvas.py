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
"""The canvas of the page: which step unmasked a position, and the HTML and text made of that."""

import math
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dimple_hf.demo.canvas import (
    HUE_OF_FIRST_STEP,
    HUE_STEP,
    Run,
    canvas_html,
    canvas_runs,
    canvas_text,
    replay_html,
    update_unmasks,
)

MASK = 99


@pytest.fixture(scope="module")
def tokenizer(parity_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(parity_dir / "tokenizer")


def test_unmasks_remember_the_first_step_of_each_position() -> None:
    """A position keeps its step; one that is masked again forgets it; a canvas that has grown has open positions."""
    first = update_unmasks([], [7, MASK, MASK], 0, MASK)
    assert first == [0, None, None]
    second = update_unmasks(first, [7, MASK, 5], 1, MASK)
    assert second == [0, None, 1]
    assert update_unmasks(second, [7, 6, MASK], 2, MASK) == [0, 2, None]
    assert update_unmasks(second, [7, 6, 5, 8, MASK], 3, MASK) == [0, 3, 1, 3, None]
    assert second == [0, None, 1]  # the caller's list is not changed


def test_runs_join_neighbours_that_look_alike(tokenizer: PreTrainedTokenizerBase) -> None:
    """One run for each change of kind or step; a character of several tokens is whole within a step."""
    mask, pad = tokenizer.mask_token_id, tokenizer.pad_token_id
    letters = tokenizer.encode("ab")
    euro = tokenizer.encode("€")
    assert len(letters) == 2
    assert len(euro) > 1  # control: it is several tokens here
    tokens = [*letters, mask, mask, *euro, pad, pad, tokenizer.eos_token_id]
    steps = [1, 2, None, None, *[2] * len(euro), 1, 1, 1]
    runs = canvas_runs(tokens, steps, tokenizer)
    assert runs == [
        Run("a", 1, "text", 1),
        Run("b", 1, "text", 2),
        Run("░░", 2, "mask", None),
        Run("€", len(euro), "text", 2),
        Run("···", 3, "padding", 1),
    ]
    assert sum(run.num_positions for run in runs) == len(tokens)
    assert canvas_text(runs) == "ab░░€"


def test_html_shows_masks_steps_and_fillers() -> None:
    """A box for each masked position, a hue and a number for each step, neither for what was given."""
    runs = [
        Run("given", 1, "text", 0),
        Run("one", 1, "text", 1),
        Run("░░░", 3, "mask", None),
        Run("two", 2, "text", 2),
        Run("·", 1, "padding", 2),
    ]
    drawn = canvas_html(runs, 2)
    assert 'role="img" aria-label="Canvas after step 2: 5 of 8 positions are unmasked"' in drawn
    assert drawn.count('<i class="mask">') == 3
    assert drawn.count('class="later" data-step="1" hidden><i></i></span>') == 1
    assert re.findall(r"--hue:(\d+)", drawn) == [str(HUE_OF_FIRST_STEP), *[str(HUE_OF_FIRST_STEP + HUE_STEP)] * 2]
    assert re.findall(r"<sub>(\d+)</sub>", drawn) == ["1", "2"]
    assert '<span class="run fixed" title="given">given</span>' in drawn
    assert '<span class="padding unmasked"' in drawn


def test_html_of_any_text_is_text() -> None:
    """An answer cannot bring markup into the page; line breaks are seen and kept."""
    drawn = canvas_html([Run("<script>alert('1')</script>\n&", 1, "text", 1)], 1)
    assert "<script>" not in drawn
    assert "&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;↵\n&amp;" in drawn
    assert "x↵<sub>1</sub>\n</span>" in canvas_html([Run("x\n", 1, "text", 1)], 1)


def test_hues_of_ten_steps_differ_and_the_eleventh_begins_again() -> None:
    """Neighbouring steps are far apart on the circle."""
    drawn = canvas_html([Run("x", 1, "text", step) for step in range(1, 12)], 11)
    hues = re.findall(r"--hue:(\d+)", drawn)
    assert len(set(hues[:10])) == 10
    assert hues[10] == hues[0]


def test_confidence_of_a_run_is_its_lowest_and_is_drawn(tokenizer: PreTrainedTokenizerBase) -> None:
    """Given positions have none, and without log-probabilities no run has."""
    tokens = tokenizer.encode("ab")
    runs = canvas_runs([*tokens, *tokens], [0, 0, 1, 1], tokenizer, [0.0, 0.0, math.log(0.5), math.log(0.9)])
    assert [run.confidence for run in runs] == [None, pytest.approx(0.5)]
    drawn = canvas_html(runs, 1)
    assert drawn.count("--confidence:0.50") == 1
    assert "unmasked in step 1 with a probability of 50.0 %" in drawn
    assert "--confidence" not in canvas_html(canvas_runs(tokens, [1, 2], tokenizer), 2)


def test_replay_has_a_slider_over_all_steps() -> None:
    """What it shows is tested in a browser."""
    drawn = replay_html([Run("one", 1, "text", 1), Run("two", 1, "text", 3)], 3)
    assert '<input type="range" min="0" max="3" value="3"' in drawn
    assert "▶ Replay</button>" in drawn
    assert canvas_html([Run("one", 1, "text", 1), Run("two", 1, "text", 3)], 3) in drawn

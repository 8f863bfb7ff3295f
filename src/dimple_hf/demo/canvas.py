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
"""An answer's canvas as the page draws it: which step unmasked each position, and HTML and text made of that.

Pure functions of tokens. The colours go round the circle of hues; the number of the step stands after each run, so
that nothing is told by colour alone. Imported by `demo_answers` and `demo`.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

#: Stand for a position that is not decided, and for a filler, in plain text and in the drawing.
MASK_SIGN, FILLER_SIGN = "░", "·"

#: Degrees from the hue of one step to that of the next; ten steps go round the circle.
HUE_OF_FIRST_STEP, HUE_STEP = 205, 36

#: What [`canvas_html`] needs. Its own light background stays in dark mode, so that the hues do.
CANVAS_CSS = """
.dimple-canvas { padding: 12px 14px; border-radius: 8px; background: #fff; color: #17202a; min-height: 5.5em;
  border: 1px solid var(--border-color-primary); font: 15px/2 ui-monospace, Menlo, Consolas, monospace;
  white-space: break-spaces; word-break: break-all; }
.dimple-canvas .run { padding: 3px 2px 3px 4px; border-radius: 4px; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; margin-right: 2px; }
.dimple-canvas .fixed { background: #e9ecef; }
.dimple-canvas .run.unmasked { background: hsl(var(--hue) 85% 87%); border-bottom: 2px solid hsl(var(--hue) 60% 45%); }
.dimple-canvas sub { font-size: 10px; line-height: 1; margin-left: 2px; color: #414b57; }
.dimple-canvas .mask { display: inline-block; width: 9px; height: 17px; margin-right: 3px; vertical-align: -3px;
  border-radius: 3px; border: 1px dashed #7b8794; background: #eef1f4; }
.dimple-canvas .filler { color: hsl(var(--hue) 50% 40%); letter-spacing: 2px; }
.dimple-canvas .filler.fixed { color: #6c7682; background: none; }
.dimple-canvas .hint { color: #5a6572; font-family: var(--font); }
"""


@dataclass(frozen=True)
class Run:
    """
    Neighbouring positions that look alike.

    Args:
        text (`str`):
            What their tokens say; a sign for each position where they are masked or fillers.
        num_positions (`int`):
            How many they are.
        kind (`str`):
            `"mask"`, `"filler"` (padding and other special tokens) or `"text"`.
        unmasked_in (`int`, *optional*):
            The step that unmasked them, 0 for what stood there before the first; `None` while masked.
    """

    text: str
    num_positions: int
    kind: str
    unmasked_in: int | None


def update_unmasks(
    unmasked_in: Sequence[int | None], tokens: Sequence[int], step: int, mask_token_id: int
) -> list[int | None]:
    """
    Args:
        unmasked_in (`Sequence[int | None]`):
            For each position the step that unmasked it, as of the step before; empty before the first.
        tokens (`Sequence[int]`):
            The answer as it stands now; longer than before where the canvas has grown.
        step (`int`):
            Steps done.
        mask_token_id (`int`):
            The token of masked positions.

    Returns:
        `list[int | None]`: The same as of now. A position that was masked again is `None` again.
    """
    before = [*unmasked_in, *[None] * (len(tokens) - len(unmasked_in))]
    return [
        None if token == mask_token_id else step if known is None else known
        for token, known in zip(tokens, before, strict=True)
    ]


def canvas_runs(
    tokens: Sequence[int], unmasked_in: Sequence[int | None], tokenizer: PreTrainedTokenizerBase
) -> list[Run]:
    """
    Args:
        tokens (`Sequence[int]`):
            The answer.
        unmasked_in (`Sequence[int | None]`):
            What [`update_unmasks`] returned for it.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes it; a character of several tokens is whole where one step unmasked them.

    Returns:
        `list[Run]`: All positions, from left to right.
    """
    special = set(tokenizer.all_special_ids)
    groups: list[tuple[str, int | None, list[int]]] = []
    for token, step in zip(tokens, unmasked_in, strict=True):
        kind = "mask" if step is None else "filler" if token in special else "text"
        if not groups or groups[-1][:2] != (kind, step):
            groups.append((kind, step, []))
        groups[-1][2].append(token)
    signs = {"mask": MASK_SIGN, "filler": FILLER_SIGN}
    return [
        Run(signs[kind] * len(run) if kind in signs else tokenizer.decode(run), len(run), kind, step)
        for kind, step, run in groups
    ]


def canvas_html(runs: Sequence[Run], step: int) -> str:
    """
    Args:
        runs (`Sequence[Run]`):
            What [`canvas_runs`] returned.
        step (`int`):
            Steps done.

    Returns:
        `str`: The drawing, one image to a screen reader, whose name says how far the answer is.
    """
    num_positions = sum(run.num_positions for run in runs)
    num_masked = sum(run.num_positions for run in runs if run.kind == "mask")
    name = f"Canvas after step {step}: {num_positions - num_masked} of {num_positions} positions are decided"
    drawn = "".join(_run_html(run) for run in runs)
    return f'<div class="dimple-canvas" role="img" aria-label="{name}">{drawn}</div>'


def canvas_text(runs: Sequence[Run]) -> str:
    """
    Args:
        runs (`Sequence[Run]`):
            What [`canvas_runs`] returned.

    Returns:
        `str`: The answer so far, with a sign for each masked position and without fillers.
    """
    return "".join(run.text for run in runs if run.kind != "filler")


def _run_html(run: Run) -> str:
    if run.kind == "mask":
        return '<i class="mask"></i>' * run.num_positions
    text = html.escape(run.text).replace("\n", "↵\n")
    line_end = "\n" if text.endswith("\n") else ""  # after the number, not before it
    text = text.removesuffix("\n")
    shape = "filler" if run.kind == "filler" else "run"
    if not run.unmasked_in:
        return f'<span class="{shape} fixed" title="given">{text}</span>{line_end}'
    hue = (HUE_OF_FIRST_STEP + HUE_STEP * (run.unmasked_in - 1)) % 360
    number = "" if run.kind == "filler" else f"<sub>{run.unmasked_in}</sub>"
    title = f"unmasked in step {run.unmasked_in}"
    return f'<span class="{shape} unmasked" style="--hue:{hue}" title="{title}">{text}{number}</span>{line_end}'

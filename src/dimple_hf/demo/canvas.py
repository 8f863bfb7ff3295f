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
"""The canvas of an answer as HTML and text, with the step that unmasked each position.

Pure functions of tokens. The colours go round the circle of hues; the number of the step stands after each run, so
that nothing is told by colour alone.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

#: Stand for a masked position, and for padding, in plain text and in the drawing.
MASK_SIGN, PADDING_SIGN = "░", "·"

#: Degrees from the hue of one step to that of the next; ten steps go round the circle.
HUE_OF_FIRST_STEP, HUE_STEP = 205, 36

#: What [`canvas_html`] needs. `!important`, because the page's own style colours every element in dark mode.
CANVAS_CSS = """
.dimple-canvas { --paper: #fff; --ink: #17202a; --faint: #5a6572; --given: #e9ecef; --box: #eef1f4; --edge: #7b8794;
  --run: 85% 87%; --line: 60% 45%; --dots: 50% 36%;
  padding: 12px 14px; border-radius: 8px; background: var(--paper); min-height: 5.5em;
  border: 1px solid var(--border-color-primary); font: 15px/2 ui-monospace, Menlo, Consolas, monospace;
  white-space: break-spaces; overflow-wrap: anywhere; }
.dark .dimple-canvas { --paper: #0f1620; --ink: #eef3f8; --faint: #b3bfcc; --given: #2b3542; --box: #1a2330;
  --edge: #8b99a8; --run: 45% 27%; --line: 60% 60%; --dots: 55% 70%; }
.dimple-canvas, .dimple-canvas * { color: var(--ink) !important; }
.dimple-canvas .run { padding: 3px 2px 3px 4px; border-radius: 4px; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; margin-right: 2px; }
.dimple-canvas .fixed { background: var(--given); }
.dimple-canvas .run.unmasked { background: hsl(var(--hue) var(--run) / calc(0.2 + 0.8 * var(--confidence, 1)));
  border-bottom: 2px solid hsl(var(--hue) var(--line)); }
.dimple-canvas sub { font-size: 10px; line-height: 1; margin-left: 2px; color: var(--faint) !important; }
.dimple-canvas .mask, .dimple-canvas .later i { display: inline-block; width: 9px; height: 17px; margin-right: 3px;
  vertical-align: -3px; border-radius: 3px; border: 1px dashed var(--edge); background: var(--box); }
.dimple-canvas .padding { color: hsl(var(--hue) var(--dots)) !important; letter-spacing: 2px; }
.dimple-canvas .padding.fixed { color: var(--faint) !important; background: none; }
.dimple-canvas .hint { color: var(--faint) !important; font-family: var(--font); overflow-wrap: normal; }
.dimple-canvas [hidden] { display: none; }
.dimple-replay { display: flex; gap: 10px; align-items: center; padding: 6px 2px; flex-wrap: wrap; }
.dimple-replay button { padding: 3px 12px; border-radius: 6px; border: 1px solid var(--border-color-primary);
  background: var(--button-secondary-background-fill); color: var(--body-text-color); cursor: pointer; }
.dimple-replay input { flex: 1 1 120px; min-width: 80px; accent-color: var(--color-accent); }
.dimple-replay .step-shown { color: var(--body-text-color); min-width: 7.5em; }
"""

#: What the controls of [`replay_html`] call: a step is shown by hiding what later ones have unmasked.
CANVAS_JS = """
window.dimpleShow = (root, step) => {
  step = Number(step);
  for (const part of root.querySelectorAll('[data-step]'))
    part.hidden = (Number(part.dataset.step) > step) !== part.classList.contains('later');
  root.querySelector('input').value = step;
  root.querySelector('.step-shown').textContent = `step ${step} of ${root.querySelector('input').max}`;
};
window.dimplePlay = (root) => {
  clearInterval(window.dimplePlaying);
  const last = Number(root.querySelector('input').max);
  let step = 0;
  window.dimpleShow(root, step);
  window.dimplePlaying = setInterval(() => {
    step += 1;
    if (!root.isConnected || step >= last) clearInterval(window.dimplePlaying);
    window.dimpleShow(root, Math.min(step, last));
  }, 450);
};
"""


@dataclass(frozen=True)
class Run:
    """
    Neighbouring positions that look alike.

    Args:
        text (`str`):
            The text of their tokens; a sign for each position where they are masked or padding.
        num_positions (`int`):
            How many they are.
        kind (`str`):
            `"mask"`, `"padding"` (and other special tokens) or `"text"`.
        unmasked_in (`int`, *optional*):
            The step that unmasked them, 0 for what stood there before the first; `None` while masked.
        confidence (`float`, *optional*):
            The lowest probability of their tokens, in (0, 1], when they were unmasked.
    """

    text: str
    num_positions: int
    kind: str
    unmasked_in: int | None
    confidence: float | None = None


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
    tokens: Sequence[int],
    unmasked_in: Sequence[int | None],
    tokenizer: PreTrainedTokenizerBase,
    logprobs: Sequence[float] | None = None,
) -> list[Run]:
    """
    Args:
        tokens (`Sequence[int]`):
            The answer.
        unmasked_in (`Sequence[int | None]`):
            What [`update_unmasks`] returned for it.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes it; a character of several tokens is whole where one step unmasked them.
        logprobs (`Sequence[float]`, *optional*):
            The log-probability of each token when it was unmasked.

    Returns:
        `list[Run]`: All positions, from left to right.
    """
    special = set(tokenizer.all_special_ids)
    groups: list[tuple[str, int | None, list[int]]] = []
    for position, (token, step) in enumerate(zip(tokens, unmasked_in, strict=True)):
        kind = "mask" if step is None else "padding" if token in special else "text"
        if not groups or groups[-1][:2] != (kind, step):
            groups.append((kind, step, []))
        groups[-1][2].append(position)
    signs = {"mask": MASK_SIGN, "padding": PADDING_SIGN}
    return [
        Run(
            signs[kind] * len(run) if kind in signs else tokenizer.decode([tokens[position] for position in run]),
            len(run),
            kind,
            step,
            _lowest_probability([logprobs[position] for position in run]) if logprobs is not None and step else None,
        )
        for kind, step, run in groups
    ]


def _lowest_probability(logprobs: Sequence[float]) -> float | None:
    """`None` where none is known: padding after the end of an answer is not scored."""
    known = [value for value in logprobs if not math.isnan(value)]
    return math.exp(min(known)) if known else None


def canvas_html(runs: Sequence[Run], step: int) -> str:
    """
    Args:
        runs (`Sequence[Run]`):
            What [`canvas_runs`] returned.
        step (`int`):
            Steps done.

    Returns:
        `str`: The drawing, one image to a screen reader, whose name tells how far the answer is.
    """
    num_positions = sum(run.num_positions for run in runs)
    num_masked = sum(run.num_positions for run in runs if run.kind == "mask")
    name = f"Canvas after step {step}: {num_positions - num_masked} of {num_positions} positions are unmasked"
    drawn = "".join(_run_html(run) for run in runs)
    return f'<div class="dimple-canvas" role="img" aria-label="{name}">{drawn}</div>'


def replay_html(runs: Sequence[Run], step: int) -> str:
    """
    Args:
        runs (`Sequence[Run]`), step (`int`):
            As for [`canvas_html`], of an answer that is finished or stopped.

    Returns:
        `str`: The drawing, a button that replays all steps at a readable speed, and a slider that shows any of them.
    """
    show, play = "dimpleShow(this.closest('.dimple-answer'), this.value)", "dimplePlay(this.closest('.dimple-answer'))"
    return (
        f'<div class="dimple-answer">{canvas_html(runs, step)}<div class="dimple-replay">'
        f'<button type="button" onclick="{play}">▶ Replay</button>'
        f'<input type="range" min="0" max="{step}" value="{step}" oninput="{show}" aria-label="Step that is shown">'
        f'<span class="step-shown">step {step} of {step}</span></div></div>'
    )


def canvas_text(runs: Sequence[Run]) -> str:
    """
    Args:
        runs (`Sequence[Run]`):
            What [`canvas_runs`] returned.

    Returns:
        `str`: The answer so far, with a sign for each masked position and without padding.
    """
    return "".join(run.text for run in runs if run.kind != "padding")


def _run_html(run: Run) -> str:
    if run.kind == "mask":
        return '<i class="mask"></i>' * run.num_positions
    text = html.escape(run.text).replace("\n", "↵\n")
    line_end = "\n" if text.endswith("\n") else ""  # after the number, not before it
    text = text.removesuffix("\n")
    shape = "padding" if run.kind == "padding" else "run"
    if not run.unmasked_in:
        return f'<span class="{shape} fixed" title="given">{text}</span>{line_end}'
    style = f"--hue:{(HUE_OF_FIRST_STEP + HUE_STEP * (run.unmasked_in - 1)) % 360}"
    title = f"unmasked in step {run.unmasked_in}"
    if run.confidence is not None:
        style += f";--confidence:{run.confidence:.2f}"
        title += f" with a probability of {100 * run.confidence:.1f} %"
    number = "" if run.kind == "padding" else f"<sub>{run.unmasked_in}</sub>"
    step = f'data-step="{run.unmasked_in}"'
    shown = f'<span class="{shape} unmasked" {step} style="{style}" title="{title}">{text}{number}{line_end}</span>'
    masks = f'<span class="later" {step} hidden>{"<i></i>" * run.num_positions}</span>'
    return shown + masks

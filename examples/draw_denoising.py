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
# /// script
# dependencies = ["dimple_hf"]
# ///
"""Draw how an answer is denoised, as an animated SVG that needs no script and follows light and dark mode.

What it shows: (1) ask for one state after each step with `generate_steps`, (2) note the step that unmasked each
position, (3) draw every position twice, as a mask until that step and as its token from then on.

Command:
    python examples/draw_denoising.py docs/figures/denoising.svg

Hardware: any. The run is real: the package's small model reads the sample form, one position in each step.
"""

import argparse
import base64
import html
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT, FORMS_SAMPLE
from dimple_hf.demo.canvas import HUE_OF_FIRST_STEP, HUE_STEP, update_unmasks

SECONDS_PER_STEP, PAUSE_STEPS = 0.35, 8
CHARACTER, LINE, LEFT, TOP = 11, 36, 250, 46

STYLE = """
text { font: 18px ui-monospace, Menlo, Consolas, monospace; fill: #17202a; }
.title { font: 15px system-ui, sans-serif; fill: #5a6572; }
.mask { fill: #eef1f4; stroke: #7b8794; stroke-dasharray: 3 2; }
.token rect { stroke: none; }
@media (prefers-color-scheme: dark) {
  text { fill: #eef3f8; } .title { fill: #b3bfcc; } .mask { fill: #1a2330; } .token rect { fill-opacity: 0.45; }
}
"""


def unmasked_tokens(question: str, threshold: float) -> tuple[list[str], list[int], int]:
    """The texts of an answer's tokens without padding, the step that unmasked each, and the number of steps."""
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype="auto").eval()
    content = [{"type": "image", "path": str(FORMS_SAMPLE)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    steps: list[int | None] = []
    for state in model.generate_steps(**inputs, confidence_threshold=threshold, max_new_tokens=32):
        tokens = state.answer_ids[0].tolist()
        steps = update_unmasks(steps, tokens, state.step, model.config.mask_token_id)
    special = set(processor.tokenizer.all_special_ids)
    kept = [
        (processor.decode([token]), step) for token, step in zip(tokens, steps, strict=True) if token not in special
    ]
    return [text for text, _ in kept], [step or 0 for _, step in kept], state.step


def draw(texts: list[str], steps: list[int]) -> str:
    """The SVG; the animation repeats after a pause. Steps that unmask only padding are left out."""
    order = {step: index for index, step in enumerate(sorted(set(steps)), start=1)}
    length = SECONDS_PER_STEP * (len(order) + PAUSE_STEPS)
    parts, column, row = [], 0, 0
    for text, step in zip(texts, steps, strict=True):
        shown = html.escape(text.replace("\n", "↵"))
        width = CHARACTER * len(text)
        x, y = LEFT + CHARACTER * column, TOP + LINE * row
        share = order[step] / (len(order) + PAUSE_STEPS)
        hue = (HUE_OF_FIRST_STEP + HUE_STEP * (order[step] - 1)) % 360
        timing = f'dur="{length:.2f}s" repeatCount="indefinite" calcMode="discrete" keyTimes="0;{share:.4f}"'
        box = f'x="{x + 1}" y="{y - 20}" width="{width - 2}" height="28" rx="4"'
        parts.append(
            f'<rect class="mask" {box}><animate attributeName="opacity" values="1;0" {timing}/></rect>'
            f'<g class="token"><rect {box} fill="hsl({hue} 75% 72%)" fill-opacity="0.6"/>'
            f'<text x="{x + 1}" y="{y}" xml:space="preserve" textLength="{width - 2}">{shown}</text>'
            f'<animate attributeName="opacity" values="0;1" {timing}/></g>'
        )
        column, row = (0, row + 1) if text.endswith("\n") else (column + len(text), row)
    height = max(TOP + LINE * row + 30, 205)
    image = base64.b64encode(FORMS_SAMPLE.read_bytes()).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 520 {height}" width="520" height="{height}" role="img" '
        f'aria-label="An answer is denoised in {len(order)} steps"><style>{STYLE}</style>'
        f'<image href="data:image/png;base64,{image}" x="10" y="20" width="210" height="175"/>'
        f'<text class="title" x="{LEFT}" y="14">Read the form.</text>{"".join(parts)}</svg>\n'
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="SVG file to write")
    parser.add_argument("--question", default="Read the form.")
    parser.add_argument("--confidence-threshold", type=float, default=1.0, help="1: one position in each step")
    args = parser.parse_args(arguments)
    texts, steps, num_steps = unmasked_tokens(args.question, args.confidence_threshold)
    args.output.write_text(draw(texts, steps), encoding="utf-8")
    print(f"{len(texts)} tokens in {num_steps} steps: {args.output}")


if __name__ == "__main__":
    main()

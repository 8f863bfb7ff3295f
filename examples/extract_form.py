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
# dependencies = ["dimple_hf", "pydantic"]
# ///
"""Read an image of a form into an object of a pydantic class, whose form the answer is sure to have.

What it shows: (1) describe the form as a class, (2) make a structure prior of it, (3) generate: the JSON text around
the values stands from the beginning, the values are decided all at once, (4) read the object. `--svg` draws the
canvas after each pass.

Command:
    python examples/extract_form.py --svg canvas.svg

Hardware: any; with the package's small checkpoint a second on a CPU, with the 7B model a GPU of 24 GB. With random
weights the numbers are noise, and the object is valid all the same.
"""

import argparse
from pathlib import Path

import torch
from pydantic import BaseModel, Field
from rich.console import Console
from rich.text import Text
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase

from dimple_hf import StructurePrior
from dimple_hf.checkpoints import FORMS_CHECKPOINT

SAMPLE = Path(__file__).resolve().parent / "forms" / "sample.png"
MASK_SIGN, FILLER_SIGN = "░", "·"
STEP_STYLES = ("green", "cyan", "blue", "magenta", "yellow")


class Form(BaseModel):
    """The rows of the sample form, from top to bottom."""

    price: int = Field(ge=0, le=9999)
    floor: int = Field(ge=0, le=9999)
    table: int = Field(ge=0, le=9999)
    qty: int = Field(ge=0, le=9999)


def draw_canvas(console: Console, tokenizer: PreTrainedTokenizerBase, canvases: list[list[int]]) -> None:
    """Draws a line for each state of the canvas: decided tokens in the colour of the pass that decided them."""
    for line, canvas in enumerate(canvases):
        text = Text(f"{line}  ", style="dim")
        for position, token in enumerate(canvas):
            decided_in = next(
                step for step, earlier in enumerate(canvases) if earlier[position] == canvases[-1][position]
            )
            style = "bold" if decided_in == 0 else STEP_STYLES[(decided_in - 1) % len(STEP_STYLES)]
            if token == tokenizer.mask_token_id:
                text.append(MASK_SIGN, style="dim")
            elif token == tokenizer.pad_token_id:
                text.append(FILLER_SIGN, style="dim")
            else:
                text.append(tokenizer.decode([token]).replace("\n", "\\n"), style=style)
        console.print(text)


def main(arguments: list[str] | None = None) -> Form:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(FORMS_CHECKPOINT), help="directory or Hub id of a checkpoint (default: the package's)"
    )
    parser.add_argument("--image", type=Path, default=SAMPLE, help="image of a form with the rows of `Form`")
    parser.add_argument("--layout", choices=("compact", "padded"), default="compact", help="where padding stands")
    parser.add_argument("--svg", type=Path, help="SVG file to draw the canvas to")
    args = parser.parse_args(arguments)
    if not args.image.is_file():
        parser.error(f"--image must be a file (got {args.image})")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(device).eval()

    prior = StructurePrior.from_json_schema(Form, layout=args.layout)
    content = [{"type": "image", "path": str(args.image)}, {"type": "text", "text": "Read the form as JSON."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        structure_prior=prior,
    ).to(device)
    output = model.generate(**inputs, return_dict_in_generate=True, output_history=True)
    form = processor.parse(output, prior)

    start = inputs["input_ids"].shape[1]
    states = [inputs["answer_ids"], *(sequences[:, start:] for sequences in output.history)]
    console = Console(record=args.svg is not None, width=min(120, 4 + 8 * inputs["answer_ids"].shape[1]))
    draw_canvas(console, processor.tokenizer, [state[0].tolist() for state in states])
    if args.svg is not None:
        console.save_svg(str(args.svg), title=f"{args.image.name}, {len(states) - 1} passes")
    print(repr(form))
    return form


if __name__ == "__main__":
    main()

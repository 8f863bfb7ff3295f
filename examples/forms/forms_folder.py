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
# dependencies = ["pillow", "scikit-learn"]
# ///
"""Write a folder of images and two files of answers, as you may have them of your own: the material of docs/walk.md.

What it shows: the plainest form of training data, one JSON object a line with an image's name, a question and its
answer. The images are forms as the small model of the package reads them; the question and the way to write the
answer are new to it.

Command:
    python examples/forms/forms_folder.py my-forms

Hardware: any. Prints what it wrote.
"""

import argparse
import json
from pathlib import Path

from forms_data import draw_form, form_rng, render_form

QUESTION = "Read the form as settings."
TRAINING_FILE, HELD_OUT_FILE = "answers.jsonl", "held_out.jsonl"


def write_folder(directory: Path, num_rows: int, num_held_out: int) -> None:
    """Writes images and answers.

    Args:
        directory (`Path`): Folder to write; made when it is missing.
        num_rows (`int`): Images to train on, with their lines in `answers.jsonl`.
        num_held_out (`int`): Images of digits that are in none of them, with their lines in `held_out.jsonl`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for split, file, number in (("train", TRAINING_FILE, num_rows), ("test", HELD_OUT_FILE, num_held_out)):
        lines = []
        for index in range(number):
            rng = form_rng(split, index)
            form = draw_form(split, rng)
            name = f"{split}-{index:03d}.png"
            render_form(form, split, rng).save(directory / name)
            answer = "\n".join(f"{label}={value}" for label, value in form.fields.items())
            lines.append(json.dumps({"image": name, "question": QUESTION, "answer": answer}) + "\n")
        (directory / file).write_text("".join(lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=40, help="images to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=8, help="images to test with (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.rows < 1 or args.held_out < 1:
        parser.error(f"--rows and --held-out must be >= 1 (got {args.rows} and {args.held_out})")
    write_folder(args.directory, args.rows, args.held_out)
    print(f"{args.directory}: {args.rows} images in {TRAINING_FILE}, {args.held_out} in {HELD_OUT_FILE}")


if __name__ == "__main__":
    main()

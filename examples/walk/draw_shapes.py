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
# dependencies = ["pillow"]
# ///
"""Draw a folder of images and two files of questions and answers: the material of docs/walk.md.

What it shows: the plainest form of training data, one JSON object a line with the messages of a chat, in which an
image is a path relative to the folder. The images show shapes, filled or empty; the small model of the package has
been trained neither on them nor on the words of the answers. Replace the folder by your own with the same files.

Command:
    python examples/walk/draw_shapes.py my-shapes

Hardware: any, some seconds. Prints what it wrote.
"""

import argparse
import json
import math
import random
from pathlib import Path

from PIL import Image, ImageDraw

QUESTION = "What is it?"
TRAINING_FILE, HELD_OUT_FILE = "train.jsonl", "held_out.jsonl"
SIZE = 28
"""Width and height in pixels: one merged patch of the vision tower."""

ENLARGED = 4
"""Images are drawn at this multiple of their size and reduced, for smooth edges."""

FILLS = ("filled", "empty")
SHAPES = ("circle", "square", "triangle", "cross")


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a shape around a center; those of a circle are many."""
    corners = {"circle": 48, "square": 4, "triangle": 3, "cross": 12}[shape]
    start = -math.pi / (4 if shape in ("square", "cross") else 2)
    points = []
    for corner in range(corners):
        distance, angle = radius, start + 2 * math.pi * corner / corners
        if shape == "cross":  # two corners at each end of its arms, one between two arms
            arm, part = divmod(corner, 3)
            distance = 0.45 * radius if part == 0 else radius
            angle = start + math.pi / 2 * arm + (0, math.pi / 4 - 0.32, math.pi / 4 + 0.32)[part]
        points.append((x + distance * math.cos(angle), y + distance * math.sin(angle)))
    return points


def draw_shape(rng: random.Random) -> tuple[Image.Image, str]:
    """
    Args:
        rng (`random.Random`): Draws the shape, its position and size, and the tones of shape and background.

    Returns:
        `tuple[Image.Image, str]`: An image of `SIZE` x `SIZE`, and what it shows, such as `"filled circle"`.
    """
    fill, shape = rng.choice(FILLS), rng.choice(SHAPES)
    side = SIZE * ENLARGED
    image = Image.new("L", (side, side), rng.randint(225, 255))
    radius = rng.uniform(0.3, 0.46) * side
    x, y = (rng.uniform(radius + ENLARGED, side - radius - ENLARGED) for _ in range(2))
    tone = rng.randint(0, 90)
    ImageDraw.Draw(image).polygon(
        outline(shape, x, y, radius), fill=tone if fill == "filled" else None, outline=tone, width=2 * ENLARGED
    )
    return image.resize((SIZE, SIZE), Image.Resampling.BOX), f"{fill} {shape}"


def write_folder(directory: Path, num_rows: int, num_held_out: int, seed: int) -> None:
    """
    Writes images and answers.

    Args:
        directory (`Path`): Folder to write; made when it is missing.
        num_rows (`int`): Images to train on, with their lines in `train.jsonl`.
        num_held_out (`int`): Other images, with their lines in `held_out.jsonl`.
        seed (`int`): Other images for another seed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for file, number in ((TRAINING_FILE, num_rows), (HELD_OUT_FILE, num_held_out)):
        lines = []
        for index in range(number):
            image, answer = draw_shape(random.Random(f"{file}, {index}, {seed}"))
            name = f"{Path(file).stem}-{index:04d}.png"
            image.save(directory / name)
            question = [{"type": "image", "path": name}, {"type": "text", "text": QUESTION}]
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            lines.append(json.dumps({"messages": messages}) + "\n")
        (directory / file).write_text("".join(lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=4000, help="images to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=200, help="images to test with (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what the images show (default: %(default)s)")
    args = parser.parse_args(arguments)
    if args.rows < 1 or args.held_out < 1:
        parser.error(f"--rows and --held-out must be >= 1 (got {args.rows} and {args.held_out})")
    write_folder(args.directory, args.rows, args.held_out, args.seed)
    print(f"{args.directory}: {args.rows} images in {TRAINING_FILE}, {args.held_out} in {HELD_OUT_FILE}")


if __name__ == "__main__":
    main()

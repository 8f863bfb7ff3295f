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
"""Read images into JSON of a given form: one line for each image, valid for the schema by construction."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..batch.answers import Answerer, answer_batches
from ..batch.prompts import make_prompt
from ..batch.results import encode_line, whole_lines
from ..processing import StructurePrior
from .arguments import add_model_argument

HELP = "read images into JSON that is valid for a schema"

#: Files of a folder that are images.
IMAGE_SUFFIXES = frozenset(PIL.Image.registered_extensions())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    add_model_argument(parser)
    parser.add_argument("--schema", type=Path, required=True, help="file with a JSON schema")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=Path, nargs="+", help="images, or folders of images")
    source.add_argument("--dataset", help="data set: directory or Hub id")
    parser.add_argument("--split", default="train", help="split of the data set (default: %(default)s)")
    parser.add_argument("--image-column", default="image", help="its column of images (default: %(default)s)")
    parser.add_argument("--question", default="Read the image as JSON.", help="what to ask (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="file to add lines to; images that have one are left out")
    parser.add_argument("--batch-size", type=int, default=1, help="images at a time (default: %(default)s)")
    parser.add_argument(
        "--max-string-tokens", type=int, default=16, help="tokens for a string without a length (default: %(default)s)"
    )
    parser.add_argument("--layout", choices=("compact", "padded"), default="compact", help="where padding stands")
    parser.add_argument("--confidence-threshold", type=float, help="unmask every position surer than this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")


def run(args: argparse.Namespace) -> int:
    """Runs the command: a line for each image, then the counts on stderr."""
    if args.batch_size < 1:
        raise ValueError(f"`--batch-size` must be at least 1 (got {args.batch_size})")
    prior = StructurePrior.from_json_schema(
        read_schema(args.schema), max_string_tokens=args.max_string_tokens, layout=args.layout
    )
    images = dataset_images(args) if args.dataset is not None else file_images(args.image)
    done = set() if args.output is None else finished_sources(args.output)
    processor = AutoProcessor.from_pretrained(args.model)
    prior.canvas(processor.tokenizer)  # refuses what has no room, before the model is loaded
    model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto").to(args.device).eval()

    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": args.question}]}]
    answerer = Answerer(model, processor, prior, {"confidence_threshold": args.confidence_threshold})

    counts = {"read": 0, "failed": 0}
    prompts = (
        make_prompt({"source": source}, {"messages": messages, "images": [image]}, processor)
        for source, image in images
        if source not in done
    )
    batches = iter(lambda: list(islice(prompts, args.batch_size)), [])
    with nullcontext(sys.stdout.buffer) if args.output is None else args.output.open("ab") as file:
        for lines in answer_batches(answerer, batches):
            for line in lines:
                counts["failed" if "error" in line else "read"] += 1
                file.write(encode_line(line))
            file.flush()
    print(f"{counts['read']} read, {counts['failed']} failed, {len(done)} done before", file=sys.stderr)
    return 0


def read_schema(path: Path) -> dict[str, Any]:
    """
    Args:
        path (`Path`):
            File with a JSON schema.

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: If it holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`--schema` must be a file with a JSON schema ({path}: {error})") from error


def file_images(paths: list[Path]) -> Iterator[tuple[str, Any]]:
    """
    Args:
        paths (`list[Path]`):
            Files, and folders, whose images come in the order of their names, those of inner folders too.

    Returns:
        `Iterator[tuple[str, Any]]`: The path of each image, twice: what names it and what is opened.
    """
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if not path.is_dir() or file.suffix.lower() in IMAGE_SUFFIXES:
                yield str(file), file


def dataset_images(args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """
    Args:
        args (`argparse.Namespace`):
            With `dataset`, `split` and `image_column`.

    Returns:
        `Iterator[tuple[str, Any]]`: `DATASET/SPLIT/INDEX` and the image as the data set holds it, undecoded.

    Raises:
        ValueError: If the data set has no such column.
    """
    from datasets import Image, load_dataset

    dataset = load_dataset(args.dataset, split=args.split)
    if args.image_column not in dataset.column_names:
        raise ValueError(
            f"`--image-column` must be one of {', '.join(dataset.column_names)} (got {args.image_column!r})"
        )
    # Undecoded, so that a broken image fails alone.
    dataset = dataset.cast_column(args.image_column, Image(decode=False))
    return ((f"{args.dataset}/{args.split}/{index}", row[args.image_column]) for index, row in enumerate(dataset))


def finished_sources(output: Path) -> set[str]:
    """
    What an earlier run has already read. A last line that was cut off is removed.

    Args:
        output (`Path`):
            The file of lines, which need not exist.

    Returns:
        `set[str]`: The sources of lines without an error.
    """
    if not output.exists():
        return set()
    try:
        done = {line["source"] for _, line in whole_lines(output) if "error" not in line}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"`--output` must be a file that this command has written ({output}: {error!r})") from error
    data = output.read_bytes()
    if not data.endswith(b"\n"):
        os.truncate(output, data.rfind(b"\n") + 1)
    return done

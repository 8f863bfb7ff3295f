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
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answering import (
    FORM_OPTIONS,
    add_answering_arguments,
    add_confidence_arguments,
    add_form_arguments,
    answer_into,
    check_batch_size,
    check_threshold,
    model_settings,
    read_json,
)
from .arguments import IMAGE_SUFFIXES, default_question

if TYPE_CHECKING:
    from ..processing import StructurePrior

HELP = "read images into JSON that is valid for a schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("--schema", type=Path, required=True, help="file with a JSON schema")
    add_image_arguments(parser)
    parser.add_argument("--question", help='what to ask (default: "Read the form as JSON.", or the image)')
    parser.add_argument(
        "--output", type=Path, help="file for the lines, gone on with where it is there (default: standard output)"
    )
    add_form_arguments(parser)
    parser.add_argument("--verbose", action="store_true", help="list ignored keywords and bounds of the schema")
    add_answering_arguments(parser, batch_size=1)
    add_confidence_arguments(parser)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the images that a command is about: files, folders or a data set."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", type=_path, nargs="+", action="extend", help="images, or folders of images")
    source.add_argument("--dataset", help="data set: directory or Hub id")
    parser.add_argument("--split", default="train", help="split of the data set (default: %(default)s)")
    parser.add_argument("--image-column", default="image", help="its column of images (default: %(default)s)")


def _path(text: str) -> Path:
    if not text:  # would be the current folder
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def run(args: argparse.Namespace) -> int:
    """Runs the command: a line for each image, then the counts on stderr."""
    from ..batch.answers import Answerer
    from ..batch.results import open_results
    from ..processing import StructurePrior
    from .loading import load_processor

    check_batch_size(args.batch_size)
    check_threshold(args.confidence_threshold)
    schema = read_json(args.schema, "--schema")
    form = {name: getattr(args, name) for name in FORM_OPTIONS}
    prior = StructurePrior.from_json_schema(schema, **form)
    question = args.question or default_question(args.model, "Read the form as JSON.", "Read the image as JSON.")
    if args.verbose:
        prior.canvas(load_processor(args.model).tokenizer)  # bounds the length of the answer
        print("\n".join(describe_prior(prior)), file=sys.stderr)
    sources, images = dataset_images(args) if args.dataset is not None else file_images(args.image)
    options = {"confidence_threshold": args.confidence_threshold}
    settings = {"command": "extract", "question": question, "schema": schema, "confidence": args.confidence}
    settings |= form | options
    results = open_results(args.output, sources, settings | model_settings(args.model), key_name="source")
    make_answerer = partial(Answerer, options=options, return_confidence=args.confidence)
    rows = ImageRows(images, question)
    return answer_into(results, rows, args, make_answerer, prior, sources=sources)


def describe_prior(prior: "StructurePrior") -> list[str]:
    """
    Args:
        prior ([`StructurePrior`]):
            A prior that has a canvas.

    Returns:
        `list[str]`: A line for each keyword of its schema that is ignored, and for each bound that it adds.
    """
    ignored = [f"ignored: {path}" for path in prior.ignored]
    return ignored + [f"bounded: {path}: {bound}" for path, bound in prior.bounds.items()]


class ImageRows(Sequence[Mapping[str, Any]]):
    """
    One question about each of many images, as rows of chats.

    Args:
        images (`Sequence[Any]`):
            Images as [`~dimple_hf.data.examples.read_prompt`] takes them.
        question (`str`):
            What to ask.
    """

    def __init__(self, images: Sequence[Any], question: str) -> None:
        self.images = images
        self.messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return {"messages": self.messages, "images": [self.images[index]]}


def file_images(paths: list[Path]) -> tuple[list[str], list[str]]:
    """
    Args:
        paths (`list[Path]`):
            Files, and folders, whose images come in the order of their names, those of inner folders too. What else
            is in a folder, such as hidden files and links to folders, is named on stderr.

    Returns:
        `tuple[list[str], list[str]]`: The path of each image, once, as what names it and as what is opened.

    Raises:
        ValueError: If the folders hold no image, or all files are archives or PDF documents.
    """
    import PIL.Image

    from ..data.images import FORMATS

    suffixes = {suffix for suffix, name in PIL.Image.registered_extensions().items() if name in FORMATS}
    files: list[str] = []
    skipped: list[Path] = []
    for path in paths:
        if not path.exists() and path.suffix.lower() not in suffixes:  # a folder, most likely
            raise ValueError(f"`--image` must name images, or folders of images (got {path}, where there is nothing)")
        for file in _files_in(path) if path.is_dir() else [path]:
            is_image = file.suffix.lower() in suffixes and file.is_file() and not _is_hidden(file.relative_to(path))
            if is_image or not path.is_dir():
                files.append(str(file))
            else:
                skipped.append(file)
    if skipped:
        print(f"skipped {describe_skipped(skipped)}; images are {', '.join(FORMATS)} files", file=sys.stderr)
    files = list(dict.fromkeys(files))
    if not files:
        raise ValueError(
            f"`--image` must name images, or folders of images (got none in {', '.join(map(str, paths))})"
        )
    if all(map(describe_file, files)):
        raise ValueError(
            f"`--image` must name images, or folders of images (got {files[0]}, {describe_file(files[0])})"
        )
    return files, files


def describe_file(path: str) -> str | None:
    """What a file is that is no image, such as an archive, and what to do with it; `None` for any other."""
    from ..data.images import NUM_HEAD_BYTES, describe_other_file

    if not os.path.isfile(path):  # reported when it is opened as an image
        return None
    with open(path, "rb") as file:
        return describe_other_file(file.read(NUM_HEAD_BYTES), path)


def describe_skipped(skipped: Sequence[Path]) -> str:
    """
    Args:
        skipped (`Sequence[Path]`):
            At least one file.

    Returns:
        `str`: How many there are of each kind, the most frequent first, and the name of the first.
    """
    kinds = Counter(map(_kind, skipped))
    counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
    return f"{len(skipped)} other file{'' if len(skipped) == 1 else 's'} ({counts}), such as {skipped[0]}"


def _kind(path: Path) -> str:
    """What a file is that was skipped."""
    if not path.is_file():
        return "link to a folder" if path.is_dir() else "no file"
    return "hidden" if path.suffix.lower() in IMAGE_SUFFIXES else path.suffix.lower() or "no suffix"


def _is_hidden(path: Path) -> bool:
    """Whether a file or one of its folders has a name with a dot first, as macOS names what it adds to an archive."""
    return any(part.startswith(".") for part in path.parts)


def _files_in(folder: Path) -> Iterator[Path]:
    """What is in a folder and those inside it, but the folders themselves. Links to folders are not followed."""
    return (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())


def dataset_images(args: argparse.Namespace) -> tuple[list[str], Sequence[Any]]:
    """
    Args:
        args (`argparse.Namespace`):
            With `dataset`, `split` and `image_column`.

    Returns:
        `tuple[list[str], Sequence[Any]]`: `DATASET/SPLIT/INDEX` and the images as the data set holds them, undecoded,
        so that a broken one fails alone.

    Raises:
        ValueError: If the data set has no such column.
        OSError: If there is no such data set.
    """
    from datasets import Image

    from ..data.sources import load_named_dataset

    dataset = load_named_dataset(args.dataset, args.split)
    if args.image_column not in dataset.column_names:
        raise ValueError(
            f"`--image-column` must be one of {', '.join(dataset.column_names)} (got {args.image_column!r})"
        )
    column = dataset.cast_column(args.image_column, Image(decode=False))[args.image_column]
    return [f"{args.dataset}/{args.split}/{index}" for index in range(len(dataset))], column


def kept(args: argparse.Namespace) -> str | None:
    """What an unfinished run leaves."""
    from ..batch.results import describe_kept

    return describe_kept(args.output)

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
"""The part that `batch`, `extract` and `decide` share: answer rows, write and count them, set the exit status."""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import add_device_argument, add_model_argument

if TYPE_CHECKING:
    from ..batch.answers import Answerer
    from ..batch.results import Key, Position, Results
    from ..processing import StructurePrior

#: Options of `StructurePrior.from_json_schema` that have an argument of their name, and their defaults.
FORM_OPTIONS = {
    "max_string_tokens": 16,
    "max_items": 4,
    "max_digits": 18,
    "max_tokens": None,
    "any_order": False,
    "layout": "compact",
}


def add_form_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of [`StructurePrior.from_json_schema`]: bounds of what the schema leaves open, the layout."""
    parser.add_argument("--max-string-tokens", type=int, help="of a string without `maxLength` (%(default)s)")
    parser.add_argument("--max-items", type=int, help="items of an array without `maxItems` (%(default)s)")
    parser.add_argument("--max-digits", type=int, help="of a number, before the point and after it (%(default)s)")
    parser.add_argument("--max-tokens", type=int, help="of an answer (default: what its values usually need)")
    parser.add_argument("--any-order", action="store_true", help="take the properties of objects in any order")
    parser.add_argument("--layout", choices=("compact", "padded"), help="where padding stands (%(default)s)")
    parser.set_defaults(**FORM_OPTIONS)


def add_answering_arguments(parser: argparse.ArgumentParser, batch_size: int) -> None:
    """Adds what both commands take to `parser`; `batch_size` is the default of its option."""
    add_model_argument(parser)
    parser.add_argument("--batch-size", type=int, default=batch_size, help="rows at a time (default: %(default)s)")
    parser.add_argument("--retry", action="store_true", help="ask rows again whose line is an error")
    add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the final counts as a JSON object")


def add_confidence_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--confidence-threshold`, and `--confidence`, which [`Answerer`] takes as `return_confidence`."""
    parser.add_argument("--confidence-threshold", type=float, help="unmask every position above this confidence")
    parser.add_argument("--confidence", action="store_true", help="write how probable each answer or value is")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--independent` and `--reading` of [`decide`]."""
    parser.add_argument(
        "--independent",
        action="store_true",
        help="ask each question in a row of its own, in which the image sees it (slower)",
    )
    parser.add_argument(
        "--reading",
        choices=("label", "text"),
        default="label",
        help="read the label of each option, or score its text, a row for each token (default: %(default)s)",
    )


def check_batch_size(size: int) -> None:
    """
    Raises:
        ValueError: If `size` (`int`), the rows of a batch, is less than 1.
    """
    if size < 1:
        raise ValueError(f"`--batch-size` must be at least 1 (got {size})")


def check_threshold(threshold: float | None) -> None:
    """
    Raises:
        ValueError: If `threshold` (`float`, *optional*), the model's when `None`, is out of range.
    """
    from ..modeling.generation_config_dimple import DimpleGenerationConfig

    if threshold is not None:
        DimpleGenerationConfig(confidence_threshold=threshold)  # its message names the option and its range


def read_json(path: Path, option: str) -> Any:
    """
    Args:
        path (`Path`):
            File with JSON, in UTF-8 or UTF-16, with or without a byte order mark.
        option (`str`):
            The option that names it, such as `"--schema"`.

    Returns:
        `Any`: What it holds.

    Raises:
        ValueError: If it cannot be read, or holds no JSON.
    """
    try:
        return json.loads(path.read_bytes())  # of bytes, as Windows writes a byte order mark
    except OSError as error:
        raise ValueError(f"`{option}` must be a file with JSON ({path}: {error.strerror})") from error
    except (ValueError, RecursionError) as error:
        from ..data.images import describe_no_data

        raise ValueError(f"`{option}` must be a file with JSON ({path}: {describe_no_data(path) or error})") from error


def model_settings(model: str) -> dict[str, str]:
    """
    Args:
        model (`str`):
            Directory or Hub id of a checkpoint.

    Returns:
        `dict[str, str]`: Its name, and a digest of its files or the Hub's commit: other weights under the same name
        give other answers.
    """
    from ..batch.digests import checkpoint_digest
    from .loading import find_checkpoint

    found = find_checkpoint(model)
    return {"model": model, "model_version": checkpoint_digest(Path(model)) if found == model else found}


def this_process() -> tuple[int, int]:
    """
    Which process this is of how many: `RANK` and `WORLD_SIZE`, set by `accelerate launch` and its kin. No process
    group is made of them, as the processes share nothing but the folder of the output.

    Returns:
        `tuple[int, int]`: Its number from 0, and how many there are.

    Raises:
        ValueError: If the two do not go together.
    """
    values = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not all(value.isdecimal() for value in values) or int(values[0]) >= int(values[1]):
        raise ValueError(
            f"`RANK` must be a number below `WORLD_SIZE`, as launchers set them (got {' of '.join(values)})"
        )
    return int(values[0]), int(values[1])


def answer_into(
    results: "Results",
    rows: Sequence[Mapping[str, Any]],
    args: argparse.Namespace,
    make_answerer: "Callable[..., Answerer]",
    prior: "StructurePrior | None" = None,
    image_folder: Path | None = None,
    sources: Sequence[str] | None = None,
) -> int:
    """
    Answers the rows of this process that have no line yet, and prints the counts.

    Args:
        results ([`Results`]):
            Where the lines go.
        rows (`Sequence[Mapping[str, Any]]`), image_folder (`Path`, *optional*), sources (`Sequence[str]`, *optional*):
            As for [`~dimple_hf.batch.prompts.PromptReader`].
        args (`argparse.Namespace`):
            The command's arguments.
        make_answerer (`Callable`):
            Makes an [`Answerer`] of model, processor and prior.
        prior ([`StructurePrior`], *optional*):
            The form of all answers.

    Returns:
        `int`: The exit status: 1 if rows were asked and every one failed.
    """
    from ..batch.prompts import PromptReader
    from ..batch.run import answer_rows, find_done, rows_of_process
    from .loading import load_model, load_processor

    start = time.perf_counter()
    rank, num_processes = this_process()
    processor = load_processor(args.model)
    if prior is not None:
        prior.canvas(processor.tokenizer)  # refuses what does not fit, before the model is loaded
    reader = PromptReader(rows, processor, image_folder, sources)
    own_rows = rows_of_process(len(rows), rank, num_processes)
    done = find_done(reader, results, own_rows, args.retry)
    if len(done) < len(own_rows):
        answerer = make_answerer(load_model(args.model, args.device), processor, prior)
        answer_rows(reader, answerer, results, done, args.batch_size, rank, num_processes)
    lines = results.merge()

    counts = count_lines(lines, [reader.key(row) for row in range(len(rows))])
    if args.json:
        seconds = round(time.perf_counter() - start, 3)
        report = {"output": None if args.output is None else str(args.output)} | counts | {"seconds": seconds}
        print(json.dumps(report), file=sys.stderr if results.in_order else sys.stdout)
    else:
        print(", ".join(f"{count} {name}" for name, count in counts.items()), file=sys.stderr)
        if counts["left"]:
            print(f"{args.output} is written when the other processes are done", file=sys.stderr)
    return 1 if counts["failed"] and not counts["answered"] else 0


def count_lines(lines: "Mapping[Key, Position]", keys: "Sequence[Key]") -> dict[str, int]:
    """
    Args:
        lines (`Mapping[int | str, Position]`):
            Key -> its line.
        keys (`Sequence[int | str]`):
            The key of each row.

    Returns:
        `dict[str, int]`: How many rows are `answered`, `failed` and `left`, which add up to all of them.
    """
    found = [lines[key] for key in keys if key in lines]
    num_failed = sum(line.is_error for line in found)
    return {"answered": len(found) - num_failed, "failed": num_failed, "left": len(keys) - len(found)}

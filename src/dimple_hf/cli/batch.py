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
"""Ask a model every row of a data set, on any number of processes; go on where an earlier run was stopped.

On several devices, or machines that share the output's folder: `accelerate launch -m dimple_hf.cli.main batch ...`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..batch.answers import Answerer
from ..batch.prompts import PromptReader, open_rows
from ..batch.results import Position, ResultFiles
from ..batch.run import answer_rows, rows_of_process
from ..data.sources import Source
from ..modeling.generation_config_dimple import DimpleGenerationConfig
from ..processing import StructurePrior
from .arguments import add_model_argument
from .extract import read_schema

HELP = "ask a model every row of a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="chats: FILE.jsonl, a directory of `save_to_disk`, or a Hub id; see docs/batch.md",
    )
    parser.add_argument("--output", type=Path, required=True, help="file for the answers, one line for each row")
    parser.add_argument("--split", help="split of a data set (default: train)")
    add_model_argument(parser)
    parser.add_argument("--schema", type=Path, help="file with a JSON schema that all answers are to be valid for")
    parser.add_argument("--batch-size", type=int, default=8, help="rows at a time (default: %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, help="positions of an answer (default: the model's)")
    parser.add_argument("--confidence-threshold", type=float, help="unmask every position surer than this")
    parser.add_argument("--device", help="default: the GPU of this process, or the CPU")
    parser.add_argument("--json", action="store_true", help="print the final counts as a JSON object")


def run(args: argparse.Namespace) -> int:
    """Runs the command; prints the counts."""
    start = time.perf_counter()
    rank, num_processes = this_process()
    check_arguments(args)
    source = Source(args.dataset, args.split)
    source.check(Path.cwd())
    schema = None if args.schema is None else read_schema(args.schema)
    prior = None if schema is None else StructurePrior.from_json_schema(schema)
    rows, image_folder = open_rows(source)
    options = generation_options(args)
    settings = {"dataset": args.dataset, "split": args.split, "model": args.model, "schema": schema} | options
    results = ResultFiles(args.output, len(rows), settings)
    done = results.find_lines()
    if not all(row in done for row in rows_of_process(len(rows), rank, num_processes)):
        processor = AutoProcessor.from_pretrained(args.model)
        if prior is not None:
            prior.canvas(processor.tokenizer)  # refuses what has no room, before the model is loaded
        model = AutoModelForImageTextToText.from_pretrained(args.model, dtype="auto")
        answerer = Answerer(model.to(args.device or default_device()).eval(), processor, prior, options)
        reader = PromptReader(rows, processor, image_folder)
        answer_rows(reader, answerer, results, done, args.batch_size, rank, num_processes)
    lines = results.merge()

    counts = count_lines(lines, len(rows))
    if args.json:
        print(json.dumps({"output": str(args.output)} | counts | {"seconds": round(time.perf_counter() - start, 3)}))
    else:
        print(", ".join(f"{count} {name}" for name, count in counts.items()), file=sys.stderr)
        if counts["left"]:
            print(f"{args.output} is written when the other processes are done", file=sys.stderr)
    return 0


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


def check_arguments(args: argparse.Namespace) -> None:
    """
    Refuses what can be refused without reading anything.

    Raises:
        ValueError: If a number is out of range, options contradict each other, or there is no folder for the output.
    """
    if args.batch_size < 1:
        raise ValueError(f"`--batch-size` must be at least 1 (got {args.batch_size})")
    if args.schema is not None and args.max_new_tokens is not None:
        raise ValueError("`--max-new-tokens` must not be given with `--schema`, which says how long an answer can be")
    if args.output.is_dir() or not args.output.absolute().parent.is_dir():
        raise ValueError(f"`--output` must be a file in a folder that exists (got {args.output})")
    # Its message names the option and its range.
    DimpleGenerationConfig(**{name: value for name, value in generation_options(args).items() if value is not None})


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `generate` among the arguments; `None` where the model's holds."""
    return {name: getattr(args, name) for name in ("max_new_tokens", "confidence_threshold")}


def default_device() -> str:
    """The GPU that a launcher gives to this process, the first one without a launcher, or the CPU."""
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def count_lines(lines: Mapping[int, Position], num_rows: int) -> dict[str, int]:
    """
    Args:
        lines (`Mapping[int, Position]`):
            Row -> its line.
        num_rows (`int`):
            Rows of the data set.

    Returns:
        `dict[str, int]`: How many rows are `answered`, `failed` and `left`, which add up to all of them.
    """
    num_failed = sum(line.is_error for line in lines.values())
    return {"answered": len(lines) - num_failed, "failed": num_failed, "left": num_rows - len(lines)}

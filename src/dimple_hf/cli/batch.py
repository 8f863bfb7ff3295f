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
from functools import partial
from pathlib import Path
from typing import Any

from .answering import (
    FORM_OPTIONS,
    add_answering_arguments,
    add_confidence_arguments,
    add_form_arguments,
    answer_into,
    check_batch_size,
    model_settings,
    read_json,
    this_process,
)

HELP = "ask a model every row of a data set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="chats: FILE.jsonl, a directory of `save_to_disk`, or a Hub id; see docs/batch.md",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="file for the answers, one line for each row; - is standard output"
    )
    parser.add_argument("--split", help="split of a data set (default: train)")
    parser.add_argument("--schema", type=Path, help="file with a JSON schema that all answers are to be valid for")
    parser.add_argument("--max-new-tokens", type=int, help="positions of an answer (default: the model's)")
    add_form_arguments(parser)
    add_answering_arguments(parser, batch_size=8)
    add_confidence_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; prints the counts."""
    from ..batch.answers import Answerer
    from ..batch.prompts import open_rows
    from ..batch.results import open_results
    from ..data.sources import Source
    from ..processing import StructurePrior

    _, num_processes = this_process()
    check_arguments(args)
    source = Source(args.dataset, args.split)
    source.check(Path.cwd())
    schema = None if args.schema is None else read_json(args.schema, "--schema")
    form = {name: getattr(args, name) for name in FORM_OPTIONS}
    prior = None if schema is None else StructurePrior.from_json_schema(schema, **form)
    rows, image_folder = open_rows(source)
    options = generation_options(args)
    settings = {"dataset": args.dataset, "split": args.split, "rows": len(rows), "schema": schema}
    settings |= {"confidence": args.confidence} | form
    results = open_results(args.output, range(len(rows)), settings | model_settings(args.model) | options)
    if results.in_order and num_processes > 1:
        raise ValueError(f"`--output` must be a file with several processes (got {args.output})")
    make_answerer = partial(Answerer, options=options, return_confidence=args.confidence)
    return answer_into(results, rows, args, make_answerer, prior, image_folder)


def check_arguments(args: argparse.Namespace) -> None:
    """
    Refuses what can be refused without reading anything.

    Raises:
        ValueError: If a number is out of range, or options contradict each other.
    """
    from ..modeling.generation_config_dimple import DimpleGenerationConfig

    check_batch_size(args.batch_size)
    if args.schema is not None and args.max_new_tokens is not None:
        raise ValueError("`--max-new-tokens` must not be given with `--schema`, which says how long an answer can be")
    for name, default in FORM_OPTIONS.items():
        if args.schema is None and getattr(args, name) != default:
            raise ValueError(
                f"`--{name.replace('_', '-')}` must be given with `--schema` only, whose answers it bounds"
            )
    # Its message names the option and its range.
    DimpleGenerationConfig(**{name: value for name, value in generation_options(args).items() if value is not None})


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `generate` among the arguments; `None` where the model's holds."""
    return {name: getattr(args, name) for name in ("max_new_tokens", "confidence_threshold")}


def kept(args: argparse.Namespace) -> str | None:
    """What an unfinished run leaves."""
    from ..batch.results import describe_kept

    return describe_kept(args.output)

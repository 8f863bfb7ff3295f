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
"""Check a checkpoint and write a clean copy: safetensors shards, clean configurations, another type, or quantized. A
checkpoint of any size fits through a few hundred megabytes of memory."""

import argparse
from pathlib import Path

HELP = "check a checkpoint and write a clean copy"

DTYPES = ("bfloat16", "float16", "float32")

#: The names of `dimple_hf.quantization.QUANTIZATIONS`, which need torch.
QUANTIZATIONS = ("nf4", "int8", "torchao-int8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("source", metavar="SRC", help="directory or Hub id of a checkpoint")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="directory to write; must be new or empty")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the weights (default: the source's)")
    parser.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="pack the language model's layers: 4 or 8 bits by bitsandbytes, or 8 bits by torchao",
    )
    parser.add_argument(
        "--max-shard-size",
        default="4GiB",
        help="largest file of weights, such as 500MB or bytes (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and prints where the new checkpoint lies."""
    size = int(args.max_shard_size) if args.max_shard_size.isdecimal() else args.max_shard_size
    if size == 0:
        raise ValueError("`--max-shard-size` must be at least 1 (got 0)")
    import torch
    from accelerate.utils import convert_file_size_to_int

    from ..hub.convert import convert_checkpoint

    print(
        convert_checkpoint(
            args.source,
            args.output_dir,
            dtype=None if args.dtype is None else getattr(torch, args.dtype),
            quantization=args.quantize,
            max_shard_bytes=convert_file_size_to_int(size),
        )
    )
    return 0


def kept(args: argparse.Namespace) -> str | None:
    """What an unfinished run leaves."""
    return None if args.output_dir.exists() else f"{args.output_dir} was not written; run the same command again"

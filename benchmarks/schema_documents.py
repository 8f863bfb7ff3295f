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
"""Long documents as JSON: what their schemas cost to build, and that a canvas holds them.

An invoice of 40 lines, a receipt of up to 30 items and a form of 40 optional fields, as pydantic classes:

- `build_ms`: processor time to build the canvas for the tokenizer, the first time in this process.
- `positions`: of the canvas.
- `tokens`: of the generated answer, without padding.
- `passes`: forward passes for it.
- `valid`: whether the answer of random weights is an object of the class.

Command:
    python benchmarks/schema_documents.py --tokenizer PATH --output benchmarks/results/schema-documents.json

Hardware: any; processor time of one core.
"""

import argparse
import datetime
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from decode import SHAPES, build_model, write_json
from pydantic import BaseModel, Field, create_model

from dimple_hf import DimpleTokenizer, StructurePrior
from dimple_hf.processing.structure_prior_dimple import canvas_inputs, read_answers

#: Positions that are unmasked at a time: the probabilities of all of a canvas would take gigabytes.
BLOCK_LENGTH = 128


class Line(BaseModel):
    """One line of an invoice."""

    description: str = Field(max_length=60)
    quantity: int = Field(ge=0, le=9999)
    unit_price: float = Field(ge=0)
    total: float = Field(ge=0)


class Invoice(BaseModel):
    """An invoice of exactly 40 lines."""

    number: str = Field(pattern=r"^[A-Z]{2}-\d{4,8}$")
    date: datetime.date
    supplier: str = Field(max_length=80)
    customer: str = Field(max_length=80)
    lines: list[Line] = Field(min_length=40, max_length=40)
    net: float = Field(ge=0)
    tax: float = Field(ge=0)
    total: float = Field(ge=0)


class Item(BaseModel):
    """One item of a receipt."""

    what: str = Field(max_length=24)
    price: float = Field(ge=0)


class Receipt(BaseModel):
    """A receipt."""

    shop: str = Field(max_length=24)
    day: datetime.date
    total: float = Field(ge=0)
    items: list[Item] = Field(max_length=30)


_TYPES: tuple[Any, ...] = (str | None, int | None, float | None, bool | None)
_FIELDS: dict[str, Any] = {f"field_{number}": (_TYPES[number % 4], None) for number in range(40)}
Form = create_model("Form", **_FIELDS)

DOCUMENTS: dict[str, type[BaseModel]] = {"invoice": Invoice, "receipt": Receipt, "form": Form}


def measure(document: type[BaseModel], tokenizer: DimpleTokenizer, model: Any) -> dict[str, Any]:
    """Builds the canvas of one class, and has random weights fill it."""
    start = time.process_time()
    prior = StructurePrior.from_json_schema(document)
    canvas = prior.canvas(tokenizer)
    seconds = time.process_time() - start
    output = model.generate(
        torch.randint(tokenizer.vocab_size - 100, (1, 16)), **canvas_inputs(prior, 1, tokenizer),
        mask_token_id=tokenizer.mask_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False,
        block_length=BLOCK_LENGTH, max_denoising_steps=-(-len(canvas.ids) // BLOCK_LENGTH),
        confidence_threshold=None, return_dict_in_generate=True,
    )  # fmt: skip
    answer = output.sequences[0, -len(canvas.ids) :].tolist()
    return {
        "build_ms": 1000 * seconds,
        "positions": len(canvas.ids),
        "tokens": sum(token != tokenizer.pad_token_id for token in answer),
        "passes": int(output.num_forward_passes.max()),
        "valid": isinstance(read_answers(output, prior, tokenizer), document),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures the documents; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="directory or Hub id of a byte-level BPE tokenizer")
    parser.add_argument("--documents", nargs="+", choices=DOCUMENTS, default=list(DOCUMENTS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    tokenizer = DimpleTokenizer.from_pretrained(args.tokenizer)
    size = -(-len(tokenizer) // 128) * 128 + 128  # the last ids are the model's special ones
    model = build_model(replace(SHAPES["tiny"], vocab_size=size), "cpu", torch.float32, "sdpa")
    StructurePrior.from_json_schema({"type": "string"}).canvas(tokenizer)  # reads the vocabulary
    report: dict[str, Any] = {
        "benchmark": "schema_documents",
        "command": shlex.join(["python", "benchmarks/schema_documents.py", *arguments]),
        "results": {},
    }
    for name in args.documents:
        result = report["results"][name] = measure(DOCUMENTS[name], tokenizer, model)
        print(
            f"| {name} | {result['build_ms']:.0f} ms | {result['positions']} | {result['tokens']} "
            f"| {result['passes']} | {result['valid']} |",
            flush=True,
        )
    if args.output is not None:
        write_json(args.output, report)
    return report


if __name__ == "__main__":
    main()

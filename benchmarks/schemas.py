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
"""JSON schemas measured: how many an engine accepts, what its answers can be, and what building costs.

- `accepted`: share of the schemas that the engine takes.
- `valid`: of accepted schemas, share of the valid instances that an answer can be.
- `invalid`: of accepted schemas, number of the invalid instances that an answer can be.
- `build_ms`: processor time to build a schema for the tokenizer, the first time: median and 99th percentile.
- `memory_mb`: growth of the process's peak memory over all schemas.

The schemas are not part of the project: a file of JSON lines with `schema` and `tests` (a list of `data` and `valid`),
such as MaskBench's (guidance-ai/jsonschemabench), gzipped or not. llguidance and xgrammar are measured where they are
installed.

Command:
    python benchmarks/schemas.py maskbench.jsonl.gz --tokenizer PATH --output benchmarks/results/schemas.json

Hardware: any; processor time of one core.
"""

import argparse
import gzip
import importlib.util
import json
import resource
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dimple_hf import DimpleTokenizer, StructurePrior

#: Whether an answer can be a text.
Accepts = Callable[[str], bool]


def dimple_engine(tokenizer: PreTrainedTokenizerBase, **options: Any) -> Callable[[Any], Accepts]:
    """This package, with options of `from_json_schema`; here it is given whole answers."""

    def build(schema: Any) -> Accepts:
        canvas = StructurePrior.from_json_schema(schema, **options).canvas(tokenizer)

        def accepts(text: str) -> bool:
            try:
                return bool(canvas.fill(text))
            except ValueError:
                return False

        return accepts

    build({"type": "string"})  # reads the vocabulary
    return build


def llguidance_engine(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Accepts]:
    """llguidance, from left to right."""
    import llguidance.hf

    own = llguidance.hf.from_tokenizer(tokenizer)

    def build(schema: Any) -> Accepts:
        options = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=options)
        error = llguidance.LLMatcher.validate_grammar(grammar, own)
        if error:
            raise ValueError(error)

        def accepts(text: str) -> bool:
            matcher = llguidance.LLMatcher(own, grammar)
            return all(matcher.consume_token(token) for token in own.tokenize_str(text)) and matcher.is_accepting()

        return accepts

    return build


def xgrammar_engine(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Accepts]:
    """xgrammar, from left to right."""
    import xgrammar

    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer), max_threads=1)

    def build(schema: Any) -> Accepts:
        compiled = compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(",", ":"), strict_mode=False
        )

        def accepts(text: str) -> bool:
            matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
            return matcher.accept_string(text) and matcher.is_terminated()

        return accepts

    return build


ENGINES: dict[str, Callable[[PreTrainedTokenizerBase], Callable[[Any], Accepts]]] = {
    "dimple_hf": dimple_engine,
    "dimple_hf, any order": partial(dimple_engine, any_order=True, max_tokens=2048),
    "llguidance": llguidance_engine,
    "xgrammar": xgrammar_engine,
}


def measure(build: Callable[[Any], Accepts], rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One engine on all schemas."""
    times, counts, reasons = [], Counter[str](), Counter[str]()
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in rows:
        counts["schemas"] += 1
        start = time.process_time()
        try:
            accepts = build(row["schema"])
        except (ValueError, RuntimeError) as error:
            times.append(time.process_time() - start)
            reasons[str(error).split(" at $")[0].split(" (")[0][:80]] += 1
            continue
        times.append(time.process_time() - start)
        counts["accepted"] += 1
        for test in row["tests"]:
            kind = "valid" if test["valid"] else "invalid"
            counts[kind] += 1
            counts[f"{kind} accepted"] += accepts(json.dumps(test["data"], ensure_ascii=False, separators=(",", ":")))
    ordered = sorted(times)
    return {
        "schemas": counts["schemas"],
        "accepted": counts["accepted"] / max(1, counts["schemas"]),
        "valid": counts["valid accepted"] / max(1, counts["valid"]),
        "invalid": f"{counts['invalid accepted']} of {counts['invalid']}",
        "build_ms": 1000 * statistics.median(ordered),
        "build_ms_p99": 1000 * ordered[int(0.99 * len(ordered))],
        "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before) / 1024,
        "refused": dict(reasons.most_common(12)),
    }


def read_rows(path: Path, stride: int) -> list[dict[str, Any]]:
    """Every `stride`-th line of the file."""
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for index, line in enumerate(file) if index % stride == 0]


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the engines; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schemas", type=Path, help="JSON lines with `schema` and `tests`")
    parser.add_argument("--tokenizer", required=True, help="directory or Hub id of a byte-level BPE tokenizer")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--stride", type=int, default=1, help="take every n-th schema (default: %(default)s)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    rows = read_rows(args.schemas, args.stride)
    report: dict[str, Any] = {
        "benchmark": "schemas",
        "command": shlex.join(["python", "benchmarks/schemas.py", args.schemas.name, *arguments[1:]]),
        "engines": {},
    }
    for name in args.engines:
        module = name.split(",")[0]
        if importlib.util.find_spec(module) is None:
            print(f"{name}: not installed")
            continue
        ours = module == "dimple_hf"
        tokenizer = (DimpleTokenizer if ours else AutoTokenizer).from_pretrained(args.tokenizer)
        result = report["engines"][name] = measure(ENGINES[name](tokenizer), rows)
        print(
            f"| {name} | {result['accepted']:.1%} | {result['valid']:.1%} | {result['invalid']} "
            f"| {result['build_ms']:.1f} | {result['build_ms_p99']:.0f} | {result['memory_mb']:.0f} |",
            flush=True,
        )
        if args.output is not None:
            args.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()

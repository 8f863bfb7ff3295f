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
- `valid`: of accepted schemas, share of the valid instances that an answer can be, with the properties of objects in
  some order: objects with the same properties are equal. Ours only.
- `valid_as_written`: the same with the properties in the order of the instance.
- `invalid`: of accepted schemas, number of the invalid instances that an answer can be, in some order.
- `build_ms`: processor time to build a schema for the tokenizer, the first time: median and 99th percentile.
- `rebuild_ms`: to build it once more: median.
- `memory_mb`: growth of a process's peak memory while it builds all schemas but the first; `memory_with_answers_mb`:
  while it builds all, and asks for the instances.
- An engine of `APART` builds each schema in a process of its own, from the state before the first one, within 30 s;
  its memory is not measured.
- `refused`: the commonest reasons; `refused_without_path` counts those that do not say where.

The schemas are not part of the project: a file of JSON lines with `schema` and `tests` (a list of `data` and `valid`),
such as MaskBench's (guidance-ai/jsonschemabench), gzipped or not, or one JSON object of such lists: the files of the
official JSON-Schema-Test-Suite by name. llguidance and xgrammar are measured where they are installed.

Commands:
    python benchmarks/schemas.py maskbench.jsonl.gz --tokenizer PATH --output benchmarks/results/schemas.json
    python benchmarks/schemas.py draft2020-12.json.gz --tokenizer PATH --engines dimple_hf \
        --output benchmarks/results/schemas-official.json

Hardware: any; processor time of one core.
"""

import argparse
import gc
import gzip
import importlib.util
import json
import multiprocessing
import resource
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from decode import write_json
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dimple_hf import DimpleTokenizer, StructurePrior

#: Whether an answer can be a text as it is written, and with its properties in some order (`None`: not measured).
Accepts = Callable[[str], tuple[bool, bool | None]]


def can(write: Callable[[str], Any], text: str) -> bool:
    """Whether `write` takes the text."""
    try:
        return bool(write(text))
    except ValueError:
        return False


def dimple_engine(tokenizer: PreTrainedTokenizerBase, **options: Any) -> Callable[[Any], Accepts]:
    """This package, with options of `from_json_schema`; here it is given whole answers."""

    def build(schema: Any) -> Accepts:
        prior = StructurePrior.from_json_schema(schema, **options)
        canvas = prior.canvas(tokenizer)

        def accepts(text: str) -> tuple[bool, bool | None]:
            return can(canvas.fill, text), can(partial(prior.write, tokenizer), text)

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

        def accepts(text: str) -> tuple[bool, bool | None]:
            matcher = llguidance.LLMatcher(own, grammar)
            return all(map(matcher.consume_token, own.tokenize_str(text))) and matcher.is_accepting(), None

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

        def accepts(text: str) -> tuple[bool, bool | None]:
            matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
            return matcher.accept_string(text) and matcher.is_terminated(), None

        return accepts

    return build


ENGINES: dict[str, Callable[[PreTrainedTokenizerBase], Callable[[Any], Accepts]]] = {
    "dimple_hf": dimple_engine,
    "dimple_hf, any order": partial(dimple_engine, any_order=True, max_tokens=2048),
    "llguidance": llguidance_engine,
    "xgrammar": xgrammar_engine,
}
APART = ("xgrammar",)
"""Engines with a process for each schema."""
TIME_LIMIT = 30
"""Seconds of processor time in such a process."""


@dataclass
class Trial:
    """What one engine did with one schema; see [`try_schema`]. Times are in seconds of processor time."""

    build_time: float
    rebuild_time: float = 0.0
    reason: str | None = None
    counts: dict[str, int] = field(default_factory=dict)


def try_schema(build: Callable[[Any], Accepts], row: dict[str, Any]) -> Trial:
    """Builds the schema of a row twice, and asks about its instances."""
    start = time.process_time()
    try:
        accepts = build(row["schema"])
    except (ValueError, RuntimeError) as error:
        return Trial(time.process_time() - start, reason=str(error))
    built = time.process_time()
    build(row["schema"])
    rebuilt = time.process_time()
    counts = Counter[str]()
    for test in row["tests"]:
        kind = "valid" if test["valid"] else "invalid"
        counts[kind] += 1
        as_written, in_order = accepts(json.dumps(test["data"], ensure_ascii=False, separators=(",", ":")))
        counts[f"{kind} as written"] += as_written
        counts[f"{kind} in some order"] += as_written or bool(in_order)
        counts["measured orders"] += in_order is not None
    return Trial(built - start, rebuilt - built, counts=counts)


def try_apart(build: Callable[[Any], Accepts], row: dict[str, Any]) -> Trial:
    """The same in a process of its own, which ends after `TIME_LIMIT`: for engines that cannot be interrupted."""
    try:
        return _in_child(_try_in_time, build, row)
    except EOFError:
        return Trial(TIME_LIMIT, reason=f"not done within {TIME_LIMIT} s")


def _try_in_time(build: Callable[[Any], Accepts], row: dict[str, Any]) -> Trial:
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + TIME_LIMIT, used + TIME_LIMIT))
    return try_schema(build, row)


def build_memory(build: Callable[[Any], Accepts], rows: Sequence[dict[str, Any]]) -> float:
    """Growth of the peak memory, in MB, of a process of its own that builds all schemas but the first."""
    return _in_child(_growth_of_builds, build, rows)


def _growth_of_builds(build: Callable[[Any], Accepts], rows: Sequence[dict[str, Any]]) -> float:
    before = 0
    for row in rows:
        with suppress(ValueError, RuntimeError):
            build(row["schema"])
        before = before or _peak_memory()  # at the first, a forked process reads the code of the libraries
    return (_peak_memory() - before) / 1024


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a forked process; `EOFError` if that ends before."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(trials: Iterable[Trial]) -> dict[str, Any]:
    """One engine on all schemas, from its trials, which are made while they are read."""
    # What stands in memory already, the schemas themselves among it, must not be searched for garbage at each build.
    gc.collect()
    gc.freeze()
    memory_before = _peak_memory()
    counts, reasons = Counter[str](), Counter[str]()
    times, again = [], []
    for trial in trials:
        counts["schemas"] += 1
        times.append(trial.build_time)
        if trial.reason is None:
            counts["accepted"] += 1
            counts.update(trial.counts)
            again.append(trial.rebuild_time)
        else:
            reasons[trial.reason.split(" at $")[0].split(" (")[0][:80]] += 1
            counts["no path"] += "$" not in trial.reason
    ordered = sorted(times)
    num_valid = max(1, counts["valid"])
    return {
        "schemas": counts["schemas"],
        "accepted": counts["accepted"] / max(1, counts["schemas"]),
        "valid": counts["valid in some order"] / num_valid if counts["measured orders"] else None,
        "valid_as_written": counts["valid as written"] / num_valid,
        "invalid": f"{counts['invalid in some order']} of {counts['invalid']}",
        "build_ms": 1000 * statistics.median(ordered),
        "build_ms_p99": 1000 * ordered[int(0.99 * len(ordered))],
        "rebuild_ms": 1000 * statistics.median(again or [0.0]),
        "memory_with_answers_mb": (_peak_memory() - memory_before) / 1024,
        "refused": dict(reasons.most_common(12)),
        "refused_without_path": counts["no path"],
    }


def read_rows(path: Path, stride: int) -> list[dict[str, Any]]:
    """Every `stride`-th schema of the file."""
    open_file = gzip.open if path.suffix == ".gz" else open
    with open_file(path, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    is_suite = len(lines) == 1 and "schema" not in lines[0]
    rows = [group for groups in lines[0].values() for group in groups] if is_suite else lines
    return rows[::stride]


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
        build = ENGINES[name](tokenizer)
        memory_mb = None if name in APART else build_memory(build, rows)
        attempt = partial(try_apart if name in APART else try_schema, build)
        result = report["engines"][name] = {"memory_mb": memory_mb, **measure(map(attempt, rows))}
        if name in APART:
            result["memory_with_answers_mb"] = None
        memory = "-" if memory_mb is None else f"{memory_mb:.0f}"
        valid = "-" if result["valid"] is None else f"{result['valid']:.1%}"
        print(
            f"| {name} | {result['accepted']:.1%} | {valid} | {result['valid_as_written']:.1%} "
            f"| {result['invalid']} | {result['build_ms']:.1f} | {result['build_ms_p99']:.0f} "
            f"| {result['rebuild_ms']:.2f} | {memory} |",
            flush=True,
        )
        if args.output is not None:
            write_json(args.output, report)
    return report


if __name__ == "__main__":
    main()

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
"""Times the denoising steps of `generate` under every cache policy, next to plain loops and to the bare layers.

A model of seeded random weights answers greedily by the adaptive schedule alone, without threshold and end tokens. The
arms take turns, step by step, in one process, so that a busy machine slows all of them alike:

- "none", "prompt", "refresh", "prefix", "dual": `generate` under this cache policy; "static": under "prompt" with
  static shapes and compiled layers. Blocks are half an answer long.
- "plain", "plain_prompt": the same decoding with all exact savings off, as the original's loop does it without and
  with its cache (see `PlainLoop`). After every step their tokens must equal those of "none", or of "prompt" and
  "static"; the run fails where they do not.
- "bare", "bare_prompt": the text layers, the last norm and the head over the same tokens and nothing else (see
  `BareLayers`).

A second table divides each step by its floor (see `decode_floor`). The first pass, which fills the cache and encodes
the image, is reported apart from the steps that follow it. On a machine that others use too, `--clock cpu --threads 1`
counts processor time: what the process waits for its turn is left out. Finished cases are kept in the output file, so
that the same command goes on after an interruption.

Command:
    python benchmarks/decode.py --shape small --batch-size 1 8 --answer-length 8 32 64 256 --steps 8 --threads 1 \
        --clock cpu --output benchmarks/results/decode-small-cpu.json --figure docs/figures/decode-small-cpu.svg

Hardware: "tiny" and "small" run anywhere. "7b" has the released model's shape: 16 GB in bfloat16, on a GPU.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from decode_arms import SEED, Arm, BareArm, BareLayers, Case, GenerateArm, PlainLoop
from decode_floor import PassRecorder, Rates
from decode_report import draw_figure, format_floor_table, format_step_table
from tqdm import tqdm
from transformers import CompileConfig

import dimple_hf
from dimple_hf import DimpleConfig, DimpleForConditionalGeneration

# Wider than usual, so that answers are not one token repeated, which would hide a difference between two loops.
INITIALIZER_RANGE = 0.05
DEFINITIONS = {
    "step_ms": "mean over the steps of an answer of the median over rounds, the first pass left out",
    "median_step_ms": "the same steps, their median: of 'static' on a GPU the first two compile and record",
    "first_pass_ms": "median over rounds of the time from the call to the end of the first step, images included",
    "warm_up_ms": "the first two steps of the arm in this process, compiling included",
    "tokens_per_second": "answer tokens of the batch over the median time of a whole answer, first pass included; "
    "there is no end token, so that all of them are before the end",
    "peak_memory_mib": "highest memory during the first pass and one step more, weights included: allocated on the "
    "device on a GPU, resident in the process on a CPU",
    "bare": "text layers, last norm and head alone, from ready hidden states and rotary tables: the positions that "
    "the step runs (with the cache: last prompt token and answer) against keys and values of prompt and answer that "
    "lie ready, no mask, head at as many positions as the step has masked ones",
    "plain": "the same tokens with all exact savings off: dense mask, repeated heads, with the cache keys and values "
    "concatenated in each layer, without it the image encoded in each step, head over all positions of the pass, two "
    "softmaxes",
    "speed_up": "time of the plain loop over that of the arm, summed over the steps that both take, the first pass "
    "left out: 'plain' for 'none', 'plain_prompt' for all others",
    "over_bare": "median and quartiles over pairs of neighbouring steps, the first pass left out",
    "floor_ms": "mean over steps of the time that weights, keys and values take at the measured memory bandwidth, or "
    "the operations at the measured matrix rate, whichever is longer, pass by pass; for a plain loop that of its arm",
}


@dataclass(frozen=True)
class Shape:
    """What a model and its prompt look like; sizes in tokens, positions or channels."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_key_value_heads: int
    mrope_section: tuple[int, int, int]
    vocab_size: int
    vision_depth: int
    vision_hidden_size: int
    vision_intermediate_size: int
    vision_num_heads: int
    vision_out_hidden_size: int
    vision_full_attention_layers: tuple[int, ...]
    image_side: int  # merged image tokens along one side
    num_text_tokens: int
    answer_length: int


SHAPES = {
    "tiny": Shape(2, 64, 128, 4, 2, (2, 3, 3), 512, 2, 32, 64, 2, 64, (1,), 2, 9, 8),
    "small": Shape(14, 512, 2560, 8, 2, (8, 12, 12), 16384, 8, 256, 1024, 4, 512, (3, 7), 16, 43, 32),
    "7b": Shape(28, 3584, 18944, 28, 4, (16, 24, 24), 152064, 32, 1280, 3420, 16, 3584, (7, 15, 23, 31), 16, 43, 32),
}


def build_model(
    shape: Shape, device: str, dtype: torch.dtype, attn_implementation: str
) -> DimpleForConditionalGeneration:
    """Returns a model of random weights, made on its device and in its dtype, without a copy elsewhere."""
    # The last ids of the vocabulary are the special ones.
    mask, image, pad, start, end, vision, video = (shape.vocab_size - n for n in range(1, 8))
    config = DimpleConfig(
        num_hidden_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_value_heads,
        mrope_section=shape.mrope_section,
        vocab_size=shape.vocab_size,
        mask_token_id=mask,
        image_token_id=image,
        pad_token_id=pad,
        vision_start_token_id=start,
        vision_end_token_id=end,
        vision_token_id=vision,
        video_token_id=video,
        initializer_range=INITIALIZER_RANGE,
        vision_config={
            "depth": shape.vision_depth,
            "hidden_size": shape.vision_hidden_size,
            "intermediate_size": shape.vision_intermediate_size,
            "num_heads": shape.vision_num_heads,
            "out_hidden_size": shape.vision_out_hidden_size,
            "fullatt_block_indexes": list(shape.vision_full_attention_layers),
        },
    )
    torch.manual_seed(SEED)
    with torch.device(device):
        model = DimpleForConditionalGeneration._from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    return model.eval()


def make_prompt(model: DimpleForConditionalGeneration, shape: Shape, batch_size: int) -> dict[str, torch.Tensor]:
    """Returns `generate`'s inputs: in each row an image between random words, which differ from row to row."""
    generator = torch.Generator().manual_seed(SEED)
    num_words = shape.num_text_tokens // 2
    words = torch.randint(shape.vocab_size - 7, (batch_size, shape.num_text_tokens), generator=generator)
    image = torch.full((batch_size, shape.image_side**2), model.config.image_token_id)
    input_ids = torch.cat([words[:, :num_words], image, words[:, num_words:]], dim=1)
    vision = model.config.vision_config
    patches_per_side = shape.image_side * vision.spatial_merge_size
    patch_elements = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixel_values = torch.randn(batch_size * patches_per_side**2, patch_elements, generator=generator)
    return {
        "input_ids": input_ids.to(model.device),
        "attention_mask": torch.ones_like(input_ids).to(model.device),
        "pixel_values": pixel_values.to(model.device, model.dtype),
        "image_grid_thw": torch.tensor([[1, patches_per_side, patches_per_side]] * batch_size).to(model.device),
    }


def make_clock(name: str, device: torch.device) -> Callable[[], float]:
    """Returns a function that says the time in seconds, "wall" or "cpu", after all work given to `device` is done."""
    read = {"wall": time.perf_counter, "cpu": time.process_time}[name]

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return read()

    return clock


class PeakMemory:
    """A context that measures the highest memory, in MiB, while it is open; see `DEFINITIONS`."""

    def __init__(self, device: torch.device):
        self.device = device
        self.mib: float | None = None

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text("5")  # sets the peak of the resident size to its present value
        return self

    def __exit__(self, *exception: object) -> None:
        if self.device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self.device) / 2**20
        elif sys.platform == "linux":
            status = Path("/proc/self/status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in status)
            self.mib = int(fields["VmHWM"].removesuffix("kB")) / 2**10


#: Arms of `generate`, each with its plain loop and the arm of [`BareLayers`] that does its work.
COUNTERPARTS = {
    "none": ("plain", "bare"),
    "prompt": ("plain_prompt", "bare_prompt"),
    "static": ("plain_prompt", "bare_prompt"),
    "refresh": ("plain_prompt", None),
    "prefix": ("plain_prompt", None),
    "dual": ("plain_prompt", None),
}

#: Those that must have the tokens of their plain loop.
EXACT_ARMS = ("none", "prompt", "static")


def options_of(arm: str, answer_length: int) -> dict[str, Any]:
    """The options of `generate` that make an arm of `COUNTERPARTS` what it is."""
    if arm == "static":
        compile_config = CompileConfig()
        compile_config._compile_all_devices = True  # also on a CPU
        return {"cache_implementation": "static", "compile_config": compile_config}
    options: dict[str, Any] = {"cache_policy": arm}
    if arm == "refresh":
        options["cache_refresh_interval"] = 4
    if arm in ("prefix", "dual"):
        options["block_length"] = -(-answer_length // 2)
    return options


class Bench:
    """
    The arms of one case, each made again for each round.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        shape (`Shape`):
            What it and its prompt look like.
        case (`Case`):
            What to run.
        arms (`list[str]`):
            Arms of `COUNTERPARTS`; plain loops and bare layers come along.
        clock (`Callable`):
            Returns the time in seconds.
    """

    def __init__(
        self,
        model: DimpleForConditionalGeneration,
        shape: Shape,
        case: Case,
        arms: list[str],
        clock: Callable[[], float],
    ):
        self.model, self.case, self.arms, self.clock = model, case, arms, clock
        self.prompt = make_prompt(model, shape, case.batch_size)
        self.running: dict[str, Arm] = {}
        # Bare layers come before the arm whose masked positions they count.
        others = {name for arm in arms for name in COUNTERPARTS[arm] if name is not None}
        self.names = [*sorted(others), *arms]

    def make(self, name: str) -> Arm:
        """Starts an arm: encodes the image, takes no step."""
        case, model = self.case, self.model
        if name in COUNTERPARTS:
            return GenerateArm(model, self.prompt, case, options_of(name, case.answer_length))
        use_cache = name.endswith("prompt")
        if name.startswith("plain"):
            return PlainLoop(model, self.prompt, case.answer_length, case.num_steps, use_cache)
        num_keys = self.prompt["input_ids"].shape[1] + case.answer_length
        num_queries = case.answer_length + 1 if use_cache else num_keys
        followed = next(arm for arm in self.arms if COUNTERPARTS[arm][1] == name)
        return BareArm(BareLayers(model, case.batch_size, num_queries, num_keys), lambda: self._num_masked(followed))

    def run_round(self) -> dict[str, list[float]]:
        """
        Takes all arms through an answer, each a step in its turn.

        Returns:
            `dict[str, list[float]]`: Seconds of each step of each arm, the first with the making of the arm.

        Raises:
            RuntimeError: If a plain loop has other tokens than its exact arm in float32. In narrower dtypes sums in
                another order round to other tokens.
        """
        self.running.clear()
        seconds: dict[str, list[float]] = {}
        for name in self.names:
            started = self.clock()
            arm = self.make(name)
            if name.startswith("bare"):  # its inputs lie ready
                started = self.clock()
            arm.step()
            seconds[name] = [self.clock() - started]
            self.running[name] = arm
        self._check_tokens()
        while any(self._num_masked(name) for name in self.arms):
            for name in self.names:
                followed = next(arm for arm in self.arms if name in (arm, *COUNTERPARTS[arm]))
                if self._num_masked(followed if name.startswith("bare") else name):
                    started = self.clock()
                    self.running[name].step()
                    seconds[name].append(self.clock() - started)
            self._check_tokens()
        return seconds

    def tokens_equal(self) -> bool:
        """Whether the exact arms have the tokens of their plain loops."""
        return all(
            torch.equal(self.running[arm].answer, self.running[COUNTERPARTS[arm][0]].answer)
            for arm in self.arms
            if arm in EXACT_ARMS
        )

    def _check_tokens(self) -> None:
        if self.model.dtype == torch.float32 and not self.tokens_equal():
            raise RuntimeError(
                f"the plain loop must have the tokens of `generate` after each step (got others: {self.case})"
            )

    def _num_masked(self, name: str) -> int:
        if name not in self.running:  # it takes its first step later
            return self.case.batch_size * self.case.answer_length
        return int((self.running[name].answer == self.model.config.mask_token_id).sum())


def measure(
    model: DimpleForConditionalGeneration,
    shape: Shape,
    case: Case,
    arms: list[str],
    repeats: int,
    clock: Callable[[], float],
    rates: Rates,
) -> dict[str, Any]:
    """
    Measures one case.

    Args:
        model, shape, case, arms, clock:
            See [`Bench`].
        repeats (`int`):
            Rounds, in each of which the arms go through a whole answer.
        rates (`Rates`):
            What the machine does at its best; measured again here.

    Returns:
        `dict[str, Any]`: A case of the results; see `DEFINITIONS`.
    """
    bench = Bench(model, shape, case, arms, clock)
    rates.measure(model.device, model.dtype, clock)
    lines: dict[str, dict[str, Any]] = {name: {} for name in bench.names}

    # 1. Two steps of each arm, to warm it up and for its memory
    for name, line in lines.items():
        with PeakMemory(model.device) as memory:
            started = clock()
            arm = bench.make(name)
            arm.step()
            arm.step()
            line["warm_up_ms"] = 1e3 * (clock() - started)
            del arm
        line["peak_memory_mib"] = memory.mib

    # 2. What each step has to do
    floors = {name: step_floors(bench, "prompt" if name == "static" else name, rates) for name in arms}

    # 3. Rounds
    rounds = [bench.run_round() for _ in range(repeats)]

    # 4. Figures
    steps = {
        name: [statistics.median(times) for times in zip(*(r[name] for r in rounds), strict=True)] for name in lines
    }
    num_tokens = case.batch_size * case.answer_length
    for name, line in lines.items():
        line["num_passes"] = len(steps[name])
        line["step_ms"] = 1e3 * statistics.mean(steps[name][1:])
        line["median_step_ms"] = 1e3 * statistics.median(steps[name][1:])
        line["first_pass_ms"] = 1e3 * steps[name][0]
        line["tokens_per_second"] = num_tokens / statistics.median(sum(r[name]) for r in rounds)
    for arm in arms:
        plain, bare = COUNTERPARTS[arm]
        num_common = min(len(steps[arm]), len(steps[plain]))
        lines[arm]["speed_up"] = sum(steps[plain][1:num_common]) / sum(steps[arm][1:num_common])
        lines[arm]["floor_ms"] = 1e3 * statistics.mean(floors[arm][1:])
        if arm in EXACT_ARMS:
            lines[plain]["floor_ms"] = lines[arm]["floor_ms"]
        if bare is not None:
            lines[arm]["over_bare"] = paired_ratio([r[arm] for r in rounds], [r[bare] for r in rounds])
    return {
        **asdict(case),
        "tokens_equal": bench.tokens_equal(),
        "num_distinct_tokens": len(bench.running[arms[0]].answer.unique()),
        "arms": lines,
    }


def step_floors(bench: Bench, name: str, rates: Rates) -> list[float]:
    """The floor of each step of an arm, in seconds, from an answer of which nothing is timed."""
    arm, floors = bench.make(name), []
    while (arm.answer == bench.model.config.mask_token_id).any():
        with PassRecorder(bench.model) as recorder:
            arm.step()
        floors.append(sum(one.seconds(bench.model, rates) for one in recorder.passes))
    return floors


def paired_ratio(above: list[list[float]], below: list[list[float]]) -> dict[str, float]:
    """Compares two arms step by step; both as rounds of steps, in seconds."""
    ratios = [a / b for rounds in zip(above, below, strict=True) for a, b in list(zip(*rounds, strict=True))[1:]]
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median": median, "low": low, "high": high, "num_pairs": len(ratios)}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Says what the figures were measured on."""
    cpu_model = platform.processor()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu_model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": cpu_model,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.system(),
    }


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--vocab-size", type=int, help="instead of the shape's")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--answer-length", type=int, nargs="+", help="in tokens; the shape's when missing")
    parser.add_argument("--steps", type=int, help="denoising steps; as many as answer tokens when missing")
    parser.add_argument(
        "--arms", choices=COUNTERPARTS, nargs="+", default=[name for name in COUNTERPARTS if name != "static"],
        help="of `generate` (default: all but static)",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, help="rounds over each case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its default when missing")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, all threads")
    parser.add_argument("--attn-implementation", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--output", type=Path, help="JSON file; finished cases in it are kept")
    parser.add_argument("--figure", type=Path, help="image file to draw")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(arguments)
    for name in ("vocab_size", "batch_size", "answer_length", "steps", "repeats", "threads"):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            least = {"answer_length": 4, "steps": 3}.get(name, 1)  # two steps for each of two blocks
            if value is not None and value < least:
                parser.error(f"--{name.replace('_', '-')} must be at least {least} (got {value})")
    if args.vocab_size is not None and args.vocab_size < 64:
        parser.error(f"--vocab-size must be at least 64, for words and special tokens (got {args.vocab_size})")
    if args.clock == "cpu" and args.device != "cpu":
        parser.error(f"--clock cpu must be used on the CPU, whose time it counts (got --device {args.device})")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device must be cpu on a machine without a GPU (got {args.device})")
    return args


def describe_run(args: argparse.Namespace, shape: Shape, model: DimpleForConditionalGeneration) -> dict[str, Any]:
    """What makes figures comparable: only cases of the same settings go into one file."""
    return {
        "shape": {"name": args.shape, **asdict(shape)},
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "weights_mib": sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20,
        "num_prompt_tokens": shape.image_side**2 + shape.num_text_tokens,
        "seed": SEED,
        "device": args.device,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "clock": args.clock,
        "attn_implementation": args.attn_implementation,
        "arms": args.arms,
        "repeats": args.repeats,
    }


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes the report; what was there stays whole until the new one is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(unfinished, path)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measures the cases that are not yet in `--output`; returns what it then holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    shape = SHAPES[args.shape]
    if args.vocab_size is not None:
        shape = replace(shape, vocab_size=args.vocab_size)
    model = build_model(shape, args.device, getattr(torch, args.dtype), args.attn_implementation)
    report: dict[str, Any] = {
        "benchmark": "decode",
        "command": shlex.join(["python", "benchmarks/decode.py", *arguments]),
        "machine": describe_machine(model.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dimple_hf": dimple_hf.__version__,
        },
        "settings": describe_run(args, shape, model),
        "definitions": DEFINITIONS,
        "rates": {},
        "results": [],
    }
    rates = Rates()
    if args.output is not None and args.output.exists():
        earlier = json.loads(args.output.read_text())
        if earlier["settings"] != json.loads(json.dumps(report["settings"])):
            raise SystemExit(f"--output must be a new file: {args.output} holds cases of other settings")
        report["results"], rates = earlier["results"], Rates(**earlier["rates"])
    cases = [
        Case(batch_size, answer_length, args.steps or answer_length)
        for batch_size, answer_length in product(args.batch_size, args.answer_length or [shape.answer_length])
    ]
    done = [Case(*(line[name] for name in asdict(cases[0]))) for line in report["results"]]
    clock = make_clock(args.clock, model.device)
    for case in tqdm([case for case in cases if case not in done], unit="case", desc="decode", file=sys.stderr):
        report["results"].append(measure(model, shape, case, args.arms, args.repeats, clock, rates))
        report["rates"] = asdict(rates)
        if args.output is not None:
            write_json(args.output, report)
    if args.figure is not None:
        draw_figure(report, args.figure)
    tables = f"{format_step_table(report)}\n\n{format_floor_table(report)}"
    print(json.dumps(report, indent=2) if args.json else tables)
    return json.loads(json.dumps(report))


if __name__ == "__main__":
    main()

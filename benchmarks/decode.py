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
"""Times the denoising steps of `generate` next to a plain loop and to the bare layers, on seeded random weights.

Three arms take turns, step by step, in one process, so that a busy machine slows all of them alike:

- "generate": `model.generate`, greedy, by the adaptive schedule alone, without threshold, end tokens or streamer. With
  as many steps as answer tokens, each pass reveals one and the last one two.
- "plain": the same decoding with all exact savings off, as the original's loop does it (see `PlainLoop`). Its tokens
  must equal those of `generate` after every step; the run fails where they do not.
- "bare": the text layers, the last norm and the head over the same tokens and nothing else (see `BareLayers`).

The first pass, which fills the cache and encodes the image, is reported apart from the steps that follow it. On a
machine that others use too, `--clock cpu --threads 1` counts processor time: what the process waits for its turn is
left out.

Command:
    python benchmarks/decode.py --shape small --batch-size 1 4 --output benchmarks/results/decode-small-cpu.json

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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import DynamicCache, StoppingCriteria

import dimple_hf
from dimple_hf import DimpleConfig, DimpleForConditionalGeneration

SEED = 0
# Wider than usual, so that answers are not one token repeated, which would hide a difference between two loops.
INITIALIZER_RANGE = 0.05
DEFINITIONS = {
    "step_ms": "median over rounds and steps of one denoising step, the first pass left out",
    "first_pass_ms": "median over rounds of the time from the call to the end of the first step, images included",
    "tokens_per_second": "answer tokens of the batch over the median time of a whole call, first pass included",
    "peak_memory_mib": "highest memory during the first pass and one step more, weights included: allocated on the "
    "device on a GPU, resident in the process on a CPU",
    "bare": "text layers, last norm and head alone, from ready hidden states and rotary tables: the places that the "
    "step runs (with the cache: last prompt token and answer) against keys and values of prompt and answer that lie "
    "ready, no mask, head at as many places as the step has masked ones",
    "plain": "the same tokens with all exact savings off: dense mask, repeated heads, with the cache keys and values "
    "concatenated in each layer, without it the image encoded in each step, head over all places of the pass, two "
    "softmaxes",
    "ratios": "median and quartiles over pairs of neighbouring steps of one round, the first pass left out",
}


@dataclass(frozen=True)
class Shape:
    """What a model and its prompt look like; sizes in tokens, places or channels."""

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


class PlainLoop:
    """
    Greedy decoding by the adaptive schedule with all exact savings off, which is how the original does it.

    Each pass makes a dense mask, so that sdpa gets repeated key and value heads; scores all its places, shifts the
    scores by a copy, and takes two softmaxes at the masked ones, one of them of a copy. With the cache, each layer
    concatenates the prompt's keys and values with the answer's. Without, each pass encodes the images again. The mask
    token is never chosen, as in `generate`.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        prompt (`dict[str, torch.Tensor]`):
            `input_ids`, `attention_mask`, `pixel_values` and `image_grid_thw`, without padding.
        answer_length, num_steps (`int`):
            Places of the answer; steps of the schedule.
        use_cache (`bool`):
            Whether to keep the prompt's keys and values of the first pass.
    """

    def __init__(
        self,
        model: DimpleForConditionalGeneration,
        prompt: dict[str, torch.Tensor],
        answer_length: int,
        num_steps: int,
        use_cache: bool,
    ):
        self.model = model
        self.prompt_ids = prompt["input_ids"]
        self.images = {"pixel_values": prompt["pixel_values"], "image_grid_thw": prompt["image_grid_thw"]}
        self.mask_token_id = model.config.mask_token_id
        self.answer = self.prompt_ids.new_full((len(self.prompt_ids), answer_length), self.mask_token_id)
        canvas = torch.cat([self.prompt_ids, self.answer], dim=1)
        self.position_ids = model.get_rope_index(canvas, prompt["image_grid_thw"])
        self.times = torch.linspace(1, 1e-3, num_steps + 1)
        self.cache = DynamicCache() if use_cache else None
        self.num_steps_done = 0

    @torch.no_grad()
    def step(self) -> None:
        """Runs the model once and reveals what the schedule says."""
        scores = self._scores()
        masked = self.answer == self.mask_token_id
        scores = scores[:, -self.answer.shape[1] :][masked]
        scores[:, self.mask_token_id] = -torch.inf
        original = scores.clone().softmax(dim=-1)
        tokens = scores.softmax(dim=-1).argmax(dim=-1)
        confidences = original.gather(1, tokens[:, None]).squeeze(1)
        rows, places = masked.nonzero(as_tuple=True)
        for row in range(len(self.answer)):
            in_row = rows == row
            count = self._num_to_reveal(int(in_row.sum()))
            best = confidences[in_row].topk(count).indices
            self.answer[row, places[in_row][best]] = tokens[in_row][best]
        self.num_steps_done += 1

    def _scores(self) -> torch.Tensor:
        """Scores of all places of the pass in float32, shifted to the places that they are for."""
        canvas = torch.cat([self.prompt_ids, self.answer], dim=1)
        start = 0 if self.cache is None else self.cache.get_seq_length()
        is_token = torch.ones_like(canvas, dtype=torch.bool)
        dense_mask = (is_token[:, None, None, :] & is_token[:, None, :, None])[:, :, start:]
        if self.model.config._attn_implementation == "eager":  # which adds its mask
            dense_mask = torch.zeros_like(dense_mask, dtype=self.model.dtype)
        scores = self.model(
            input_ids=canvas[:, start:],
            attention_mask={"full_attention": dense_mask},
            position_ids=self.position_ids[:, :, start:],
            past_key_values=self.cache,
            is_causal=False,
            **(self.images if start == 0 else {}),
        ).logits.float()
        if self.cache is not None:
            self.cache.crop(
                -self.answer.shape[1] - 1
            )  # the last prompt token is run again, for the first answer token
        return torch.cat([scores[:, :1], scores[:, :-1]], dim=1)

    def _num_to_reveal(self, num_masked: int) -> int:
        """Counts the places that bring a row to the first time of the grid at which at least one is revealed."""
        row_time = torch.tensor(num_masked) / self.answer.shape[1]
        first_below = int((self.times < row_time).int().argmax())
        for index in range(max(first_below, self.num_steps_done + 1), len(self.times) - 1):
            count = int(num_masked * (1 - self.times[index] / row_time))
            if count >= 1:
                return count
        return num_masked


class ReadyKeysAndValues:
    """Stands in for a cache whose keys and values are all there already: gives them back and stores nothing."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor):
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.keys, self.values


class BareLayers:
    """
    The part of a step that no loop can save: the text layers, the last norm and the head over the step's tokens.

    Hidden states, rotary tables, and with the cache keys and values of full length, lie ready: nothing is embedded,
    masked, stored, picked or chosen.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        batch_size, num_queries, num_keys (`int`):
            Rows; places of each row that run; places that these see.
    """

    def __init__(self, model: DimpleForConditionalGeneration, batch_size: int, num_queries: int, num_keys: int):
        self.model = model
        config = model.config
        generator = torch.Generator(model.device).manual_seed(SEED)
        options = {"generator": generator, "dtype": model.dtype, "device": model.device}
        self.hidden_states = torch.randn(batch_size, num_queries, config.hidden_size, **options)
        self.cache = None
        if num_keys > num_queries:
            head_dim = config.hidden_size // config.num_attention_heads
            keys = torch.randn(batch_size, config.num_key_value_heads, num_keys, head_dim, **options)
            self.cache = ReadyKeysAndValues(keys, torch.randn(keys.shape, **options))
        position_ids = torch.arange(num_keys - num_queries, num_keys, device=model.device).expand(3, batch_size, -1)
        self.position_embeddings = model.model.rotary_emb(self.hidden_states, position_ids)

    @torch.no_grad()
    def step(self, num_places: int) -> None:
        """Runs the layers, and the head over `num_places` of all rows' outputs."""
        hidden_states = self.hidden_states
        for layer in self.model.model.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=None,
                position_embeddings=self.position_embeddings,
                past_key_values=self.cache,
                is_causal=False,
            )
        hidden_states = self.model.model.norm(hidden_states)
        self.model.lm_head(hidden_states.flatten(0, 1)[:num_places])


class LockStep(StoppingCriteria):
    """
    Times the steps of a `generate` call and lets the other arms take theirs in between.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        clock (`Callable`):
            Returns the time in seconds.
        plain (`PlainLoop`, *optional*):
            Takes a step after each of `generate`'s, and must then have the same tokens.
        bare (`BareLayers`, *optional*):
            Takes a step after each of `generate`'s.
        num_places (`int`, *optional*, defaults to 0):
            Masked places of the batch at the start.
        last_step (`int`, *optional*):
            Ends the call after so many steps.
    """

    def __init__(
        self,
        model: DimpleForConditionalGeneration,
        clock: Callable[[], float],
        plain: PlainLoop | None = None,
        bare: BareLayers | None = None,
        num_places: int = 0,
        last_step: int | None = None,
    ):
        self.clock = clock
        self.mask_token_id = model.config.mask_token_id
        self.plain, self.bare, self.num_places, self.last_step = plain, bare, num_places, last_step
        self.seconds: dict[str, list[float]] = {"generate": [], "plain": [], "bare": []}
        self.tokens_equal = True
        self.started = clock()

    def __call__(self, input_ids: torch.LongTensor, scores: None, **kwargs: Any) -> torch.BoolTensor:
        self.seconds["generate"].append(self.clock() - self.started)
        if self.bare is not None:
            self._time("bare", lambda: self.bare.step(self.num_places))
        if self.plain is not None:
            self._time("plain", self.plain.step)
            answer = input_ids[:, -self.plain.answer.shape[1] :]
            self.tokens_equal &= torch.equal(answer, self.plain.answer)
        self.num_places = int((input_ids == self.mask_token_id).sum())
        is_over = len(self.seconds["generate"]) == self.last_step
        self.started = self.clock()
        return torch.full((len(input_ids),), is_over, device=input_ids.device)

    def _time(self, arm: str, step: Callable[[], None]) -> None:
        started = self.clock()
        step()
        self.seconds[arm].append(self.clock() - started)


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


@dataclass(frozen=True)
class Case:
    """One line of the results."""

    batch_size: int
    answer_length: int
    num_steps: int
    use_cache: bool


def run_generate(
    model: DimpleForConditionalGeneration, prompt: dict[str, torch.Tensor], case: Case, lock_step: LockStep
) -> None:
    """Calls `generate` as the benchmark defines it, timed by `lock_step`."""
    model.generate(
        **prompt,
        max_new_tokens=case.answer_length,
        max_denoising_steps=case.num_steps,
        confidence_threshold=None,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=None,
        use_cache=case.use_cache,
        stopping_criteria=[lock_step],
    )


def measure(
    model: DimpleForConditionalGeneration,
    shape: Shape,
    case: Case,
    repeats: int,
    clock: Callable[[], float],
    progress: tqdm,
) -> dict[str, Any]:
    """
    Measures one case.

    Args:
        model, shape, case:
            What to run.
        repeats (`int`):
            Rounds, in each of which the arms go through a whole answer.
        clock (`Callable`):
            Returns the time in seconds.
        progress (`tqdm`):
            Moves on by one after each round.

    Returns:
        `dict[str, Any]`: A line of the results; see `DEFINITIONS`.

    Raises:
        RuntimeError: If the plain loop has other tokens than `generate` in float32. In narrower dtypes, where sums in
            another order round to other tokens, the line only says so.
    """
    prompt = make_prompt(model, shape, case.batch_size)
    num_places = case.batch_size * case.answer_length
    num_keys = prompt["input_ids"].shape[1] + case.answer_length
    num_queries = case.answer_length + 1 if case.use_cache else num_keys
    bare = BareLayers(model, case.batch_size, num_queries, num_keys)

    # 1. Two steps of each arm, to warm it up and for its memory.
    memory = {"generate": PeakMemory(model.device), "plain": PeakMemory(model.device)}
    with memory["generate"]:
        run_generate(model, prompt, case, LockStep(model, clock, last_step=2))
    plain = PlainLoop(model, prompt, case.answer_length, case.num_steps, case.use_cache)
    with memory["plain"]:
        plain.step()
        plain.step()
    bare.step(num_places)

    # 2. Rounds
    seconds: dict[str, list[list[float]]] = {"generate": [], "plain": [], "bare": []}
    tokens_equal = True
    for _ in range(repeats):
        plain = PlainLoop(model, prompt, case.answer_length, case.num_steps, case.use_cache)
        lock_step = LockStep(model, clock, plain, bare, num_places)
        run_generate(model, prompt, case, lock_step)
        tokens_equal &= lock_step.tokens_equal
        if not tokens_equal and model.dtype == torch.float32:
            raise RuntimeError(
                f"the plain loop must have the tokens of `generate` after each step (got others: {case})"
            )
        for arm, of_arm in lock_step.seconds.items():
            seconds[arm].append(of_arm)
        progress.update()

    # 3. Figures
    line: dict[str, Any] = {
        **asdict(case),
        "num_passes": len(seconds["generate"][0]),
        "tokens_equal": tokens_equal,
        "num_distinct_tokens": len(plain.answer.unique()),
    }
    for arm, rounds in seconds.items():
        line[arm] = {"step_ms": 1e3 * statistics.median(s for steps in rounds for s in steps[1:])}
        if arm != "bare":
            line[arm]["first_pass_ms"] = 1e3 * statistics.median(steps[0] for steps in rounds)
            line[arm]["tokens_per_second"] = num_places / statistics.median(sum(steps) for steps in rounds)
            line[arm]["peak_memory_mib"] = memory[arm].mib
    for above, below in (("generate", "bare"), ("plain", "bare"), ("plain", "generate")):
        line[f"{above}_over_{below}"] = paired_ratio(seconds[above], seconds[below])
    return line


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
    parser.add_argument("--cache", choices=["on", "off"], nargs="+", default=["on", "off"])
    parser.add_argument("--repeats", type=int, default=3, help="rounds over each case")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its default when missing")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, all threads")
    parser.add_argument("--attn-implementation", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(arguments)
    for name in ("vocab_size", "batch_size", "answer_length", "steps", "repeats", "threads"):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            least = 2 if name in ("answer_length", "steps") else 1  # the first step is not counted
            if value is not None and value < least:
                parser.error(f"--{name.replace('_', '-')} must be at least {least} (got {value})")
    if args.vocab_size is not None and args.vocab_size < 64:
        parser.error(f"--vocab-size must be at least 64, for words and special tokens (got {args.vocab_size})")
    if args.clock == "cpu" and args.device != "cpu":
        parser.error(f"--clock cpu must be used on the CPU, whose time it counts (got --device {args.device})")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device must be cpu on a machine without a GPU (got {args.device})")
    return args


def format_table(results: list[dict[str, Any]]) -> str:
    """Returns one line of text for each case."""
    lines = [
        "batch answer cache | ms per step: generate  plain   bare | generate/bare plain/generate | tokens/s   MiB"
    ]
    for r in results:
        lines.append(
            f"{r['batch_size']:5} {r['answer_length']:6} {'on' if r['use_cache'] else 'off':>5} | "
            f"{r['generate']['step_ms']:21.1f} {r['plain']['step_ms']:6.1f} {r['bare']['step_ms']:6.1f} | "
            f"{r['generate_over_bare']['median']:13.3f} {r['plain_over_generate']['median']:14.2f} | "
            f"{r['generate']['tokens_per_second']:8.1f} {r['generate']['peak_memory_mib'] or float('nan'):5.0f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    shape = SHAPES[args.shape]
    if args.vocab_size is not None:
        shape = replace(shape, vocab_size=args.vocab_size)
    model = build_model(shape, args.device, getattr(torch, args.dtype), args.attn_implementation)
    cases = [
        Case(batch_size, answer_length, args.steps or answer_length, cache == "on")
        for batch_size, answer_length, cache in product(
            args.batch_size, args.answer_length or [shape.answer_length], args.cache
        )
    ]
    with tqdm(total=len(cases) * args.repeats, unit="round", desc="decode", file=sys.stderr) as progress:
        clock = make_clock(args.clock, model.device)
        results = [measure(model, shape, case, args.repeats, clock, progress) for case in cases]
    report = {
        "benchmark": "decode",
        "command": shlex.join(["python", "benchmarks/decode.py", *arguments]),
        "machine": describe_machine(model.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dimple_hf": dimple_hf.__version__,
        },
        "settings": {
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
            "repeats": args.repeats,
        },
        "definitions": DEFINITIONS,
        "results": results,
    }
    text = json.dumps(report, indent=2)
    if args.output is not None:
        args.output.write_text(text + "\n")
    print(text if args.json else format_table(results))
    return json.loads(text)


if __name__ == "__main__":
    main()

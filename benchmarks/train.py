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
"""What a step of training costs, in both phases, next to the same step as the original takes it.

Arms of one phase take turns, step by step, in one process, so that a busy machine slows all of them alike; a step is
forward, backward and AdamW with the vision tower frozen. The losses of a phase's arms must agree, or the run fails:

- "causal", "diffusion": the package's step, with logits at supervised positions only. Against "..._full_logits":
  logits of all positions, as the original has them.
- "complementary": each row with a mask and with its complement, images encoded once. Against "complementary_twice":
  the batch laid out twice, images too, as the original does.
- "turns": conversations of ten turns in the causal phase, each one row. Against "turns_apart": a row for each answer,
  with all that precedes it and its own image encoding, as the original does.

Peak memory is exact: what torch has allocated at most during a step, above what lies there before it (weights,
gradients, optimizer state), from the profiler's memory events on a CPU, from the allocator's counter on a GPU. That of
the loss alone is measured in the same way, at 1,024 tokens and a vocabulary of 152,064.

Command:
    python benchmarks/train.py --shape small --threads 1 --clock cpu --output benchmarks/results/train-cpu.json

Hardware: "tiny" and "small" run anywhere. "7b" has the released model's shape: with gradients and AdamW's state in
bfloat16 61 GB, on a GPU.
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from decode import SEED, SHAPES, Shape, build_model, describe_machine, make_clock, make_prompt
from torch import nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import dimple_hf
from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.diffusion_dimple import add_complements, token_cross_entropy
from dimple_hf.training.collator import IGNORED, TrainingSequence, join_turns
from dimple_hf.training.stages import freeze_other_parts

NOISE_LEVEL = 0.5
LEARNING_RATE = 1e-6
LOSS_TOKENS, LOSS_VOCAB_SIZE, LOSS_WIDTH = 1024, 152064, 512
NUM_TURNS, QUESTION_TOKENS, ANSWER_TOKENS, PADDING_TOKENS = 10, 8, 8, 4

DEFINITIONS = {
    "samples_per_second": "rows of the batch, or conversations, over the median time of a step: forward, backward, "
    "AdamW",
    "step_memory_mib": "most memory that torch has allocated during a step, above that before it (weights, gradients "
    "and optimizer state)",
    "ratio": "time of a step over that of the package's arm: median and quartiles over pairs of neighbouring steps",
    "loss": "forward and backward of a frozen head and cross-entropy alone, from ready hidden states; memory as above",
}

Batch = dict[str, torch.Tensor]
Loss = Callable[[DimpleForConditionalGeneration, Batch], torch.Tensor]


def make_batch(model: DimpleForConditionalGeneration, shape: Shape, batch_size: int) -> Batch:
    """A prompt with an image and an answer in each row, its labels, and a mask for half of the answer."""
    prompt = make_prompt(model, shape, batch_size)
    generator = torch.Generator().manual_seed(SEED)
    answer = torch.randint(shape.vocab_size - 7, (batch_size, shape.answer_length), generator=generator)
    input_ids = torch.cat([prompt["input_ids"], answer.to(model.device)], dim=1)
    labels = input_ids.clone()
    labels[:, : -shape.answer_length] = -100
    drawn = torch.rand(labels.shape, generator=generator).to(model.device)
    return prompt | {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": labels,
        "masked_positions": (labels != -100) & (drawn < NOISE_LEVEL),
    }


def make_turns(model: DimpleForConditionalGeneration, shape: Shape, batch_size: int) -> tuple[Batch, Batch]:
    """Conversations about an image: each in one row, and in a row for each answer."""
    prompt = make_prompt(model, shape, batch_size)
    patches = prompt["pixel_values"].chunk(batch_size)
    generator = torch.Generator().manual_seed(SEED)
    shape_of_turns = (batch_size, NUM_TURNS, QUESTION_TOKENS + ANSWER_TOKENS)
    words = torch.randint(shape.vocab_size - 7, shape_of_turns, generator=generator).tolist()
    padding = [model.config.pad_token_id] * PADDING_TOKENS
    joined, apart = [], []
    for row, turns in enumerate(words):
        sequences, trunk = [], prompt["input_ids"][row].tolist()
        for turn in turns:
            trunk = trunk + turn
            input_ids = trunk + padding
            num_given = len(trunk) - ANSWER_TOKENS
            labels = [IGNORED] * num_given + input_ids[num_given:]
            image = (patches[row], prompt["image_grid_thw"][row : row + 1])
            sequences.append(TrainingSequence(input_ids, labels, *image, num_padding=PADDING_TOKENS))
        apart += sequences
        joined += join_turns(sequences, max_length=None)
    return stack(joined, model), stack(apart, model)


def stack(sequences: list[TrainingSequence], model: DimpleForConditionalGeneration) -> Batch:
    """A batch of sequences, padded on the right."""

    def pad(rows: list[list[int]], value: int) -> torch.Tensor:
        tensors = [torch.tensor(row, device=model.device) for row in rows]
        return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    tokens = [sequence.input_ids for sequence in sequences]
    batch = {
        "input_ids": pad(tokens, model.config.pad_token_id),
        "attention_mask": pad([[1] * len(row) for row in tokens], 0),
        "labels": pad([sequence.labels for sequence in sequences], IGNORED),
        "pixel_values": torch.cat([sequence.pixel_values for sequence in sequences]),
        "image_grid_thw": torch.cat([sequence.image_grid_thw for sequence in sequences]),
    }
    if sequences[0].branch_ids is not None:
        batch["branch_ids"] = pad([sequence.branch_ids for sequence in sequences], 0)
    return batch


def causal(model: DimpleForConditionalGeneration, batch: Batch) -> torch.Tensor:
    return model(**{name: batch[name] for name in batch if name != "masked_positions"}, is_causal=True).loss


def causal_full_logits(model: DimpleForConditionalGeneration, batch: Batch) -> torch.Tensor:
    return full_logits_loss(model, batch, batch["input_ids"], batch["labels"], is_causal=True)


def diffusion(model: DimpleForConditionalGeneration, batch: Batch) -> torch.Tensor:
    return model(**batch, is_causal=False).loss


def diffusion_full_logits(model: DimpleForConditionalGeneration, batch: Batch) -> torch.Tensor:
    masked = batch["masked_positions"]
    input_ids = batch["input_ids"].masked_fill(masked, model.config.mask_token_id)
    labels = batch["labels"].masked_fill(~masked, -100)
    return full_logits_loss(model, batch, input_ids, labels, is_causal=False)


def complementary(model: DimpleForConditionalGeneration, batch: Batch) -> torch.Tensor:
    model.config.complementary_masks = True
    loss = diffusion(model, batch)
    model.config.complementary_masks = False
    return loss


def complementary_twice(model: DimpleForConditionalGeneration, batch: Batch) -> torch.Tensor:
    levels = torch.full((len(batch["labels"]),), NOISE_LEVEL)
    masks, _ = add_complements(batch["masked_positions"], batch["labels"] != -100, levels)
    twice = {name: torch.cat([tensor, tensor]) for name, tensor in batch.items()}
    return diffusion(model, twice | {"masked_positions": masks})


def full_logits_loss(
    model: DimpleForConditionalGeneration,
    batch: Batch,
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    is_causal: bool,
) -> torch.Tensor:
    """Mean cross-entropy from the logits of all positions, shifted."""
    images = {name: batch[name] for name in ("pixel_values", "image_grid_thw")}
    logits = model(input_ids, batch["attention_mask"], **images, is_causal=is_causal).logits.float()
    shifted = logits[:, :-1].flatten(0, 1)
    return nn.functional.cross_entropy(shifted, labels[:, 1:].flatten())


#: Arms of each phase, each a loss of a batch of [`Training`]; the first one is the package's.
PHASES: dict[str, dict[str, tuple[Loss, str]]] = {
    "causal": {"causal": (causal, "rows"), "causal_full_logits": (causal_full_logits, "rows")},
    "diffusion": {"diffusion": (diffusion, "rows"), "diffusion_full_logits": (diffusion_full_logits, "rows")},
    "complementary": {"complementary": (complementary, "rows"), "complementary_twice": (complementary_twice, "rows")},
    "turns": {"turns": (causal, "turns"), "turns_apart": (causal, "turns_apart")},
}
ARMS = {name: arm for arms in PHASES.values() for name, arm in arms.items()}


class Training:
    """
    A model of random weights, batches and an optimizer.

    Args:
        shape ([`Shape`]):
            What the model looks like.
        batch_size (`int`):
            Rows of a step, or conversations.
        device, dtype, attn_implementation (`str`):
            As for `decode.py`.
    """

    def __init__(self, shape: Shape, batch_size: int, device: str, dtype: str, attn_implementation: str) -> None:
        self.model = build_model(shape, device, getattr(torch, dtype), attn_implementation).train()
        freeze_other_parts(self.model, ("projector", "language_model", "head"))
        self.batch_size = batch_size
        turns, turns_apart = make_turns(self.model, shape, batch_size)
        self.batches = {"rows": make_batch(self.model, shape, batch_size), "turns": turns, "turns_apart": turns_apart}
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def loss(self, arm: str) -> torch.Tensor:
        """The loss of an arm."""
        loss, batch = ARMS[arm]
        return loss(self.model, self.batches[batch])

    def step(self, arm: str) -> torch.Tensor:
        """One step of an arm; returns its loss."""
        loss = self.loss(arm)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)  # what a step takes beyond them is to be measured
        return loss.detach()


def loss_memory(arm: str, device: str, dtype: str, num_tokens: int, vocab_size: int) -> float:
    """Memory of the loss alone in MiB: `"slices"` as the package computes it, `"full_logits"` at once."""
    torch.manual_seed(SEED)
    options = {"device": device, "dtype": getattr(torch, dtype)}
    head = nn.Linear(LOSS_WIDTH, vocab_size, bias=False, **options).requires_grad_(False)
    hidden_states = torch.randn(num_tokens, LOSS_WIDTH, **options, requires_grad=True)
    targets = torch.randint(vocab_size, (num_tokens,), device=device)

    def run() -> None:
        if arm == "slices":
            token_cross_entropy(hidden_states, head, targets, vocab_size)[0].mean().backward()
        else:
            nn.functional.cross_entropy(head(hidden_states).float(), targets).backward()

    return peak_memory(torch.device(device), run)


def peak_memory(device: torch.device, run: Callable[[], Any]) -> float:
    """Most memory in MiB that torch has allocated while `run` runs, above that before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0)) / 2**20


def measure_phase(
    phase: str, training: Training, repeats: int, clock: Callable[[], float], progress: tqdm
) -> dict[str, dict[str, Any]]:
    """
    Times the arms of a phase in turn.

    Returns:
        `dict[str, dict[str, Any]]`: For each arm `samples_per_second`, and for all but the first `ratio`.

    Raises:
        RuntimeError: If two arms have different losses for the same weights, in float32.
    """
    arms = PHASES[phase]
    losses = [float(training.loss(arm).detach()) for arm in arms]
    if training.model.dtype == torch.float32 and abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
        raise RuntimeError(f"the arms of {phase} must have the same loss (got {losses})")
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for arm in arms:
        training.step(arm)
    for _ in range(repeats):
        for arm in arms:
            started = clock()
            training.step(arm)
            seconds[arm].append(clock() - started)
            progress.update()
    own = seconds[next(iter(arms))]
    results: dict[str, dict[str, Any]] = {}
    for arm, of_arm in seconds.items():
        results[arm] = {"samples_per_second": training.batch_size / statistics.median(of_arm)}
        if of_arm is not own:
            ratios = [above / below for above, below in zip(of_arm, own, strict=True)]
            low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            results[arm]["ratio"] = {"median": median, "low": low, "high": high, "num_pairs": len(ratios)}
    return results


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), help="default: all")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="steps of each arm (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; its default when missing")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time, all threads")
    parser.add_argument("--attn-implementation", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--loss-tokens", type=int, default=LOSS_TOKENS, help="of the loss alone")
    parser.add_argument("--loss-vocab-size", type=int, default=LOSS_VOCAB_SIZE)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    for name in ("batch_size", "repeats", "threads", "loss_tokens", "loss_vocab_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1 (got {getattr(args, name)})")
    if args.clock == "cpu" and args.device != "cpu":
        parser.error(f"--clock cpu must be used on the CPU, whose time it counts (got --device {args.device})")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device must be cpu on a machine without a GPU (got {args.device})")
    return args


def format_table(report: dict[str, Any]) -> str:
    """Two Markdown tables: steps, and the loss alone."""
    lines = ["| arm | samples per second | time over the package's | memory of a step |", "|---|---:|---:|---:|"]
    for arm, line in report["results"].items():
        ratio = f"{line['ratio']['median']:.2f}" if "ratio" in line else "1"
        lines.append(f"| {arm} | {line['samples_per_second']:.3f} | {ratio} | {line['step_memory_mib']:.0f} MiB |")
    lines += ["", "| loss alone | memory |", "|---|---:|"]
    lines += [f"| {arm} | {memory:.0f} MiB |" for arm, memory in report["loss"]["memory_mib"].items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    shape = SHAPES[args.shape]

    training = Training(shape, args.batch_size, args.device, args.dtype, args.attn_implementation)
    clock = make_clock(args.clock, training.model.device)
    results: dict[str, dict[str, Any]] = {}
    num_arms = sum(len(PHASES[phase]) for phase in args.phases)
    with tqdm(total=num_arms * args.repeats, unit="step", desc="train", file=sys.stderr) as progress:
        for phase in args.phases:
            results |= measure_phase(phase, training, args.repeats, clock, progress)
    for arm in tqdm(results, unit="arm", desc="memory", file=sys.stderr):
        results[arm]["step_memory_mib"] = peak_memory(training.model.device, partial(training.step, arm))
    num_parameters = sum(parameter.numel() for parameter in training.model.parameters())
    del training  # a GPU has no room for both
    loss_settings = (args.device, args.dtype, args.loss_tokens, args.loss_vocab_size)
    loss_mib = {arm: loss_memory(arm, *loss_settings) for arm in ("slices", "full_logits")}

    report = {
        "benchmark": "train",
        "command": shlex.join(["python", "benchmarks/train.py", *arguments]),
        "machine": describe_machine(torch.device(args.device)),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dimple_hf": dimple_hf.__version__,
        },
        "settings": {
            "shape": {"name": args.shape, **asdict(shape)},
            "num_parameters": num_parameters,
            "batch_size": args.batch_size,
            "seed": SEED,
            "noise_level": NOISE_LEVEL,
            "device": args.device,
            "dtype": args.dtype,
            "threads": torch.get_num_threads(),
            "clock": args.clock,
            "attn_implementation": args.attn_implementation,
            "repeats": args.repeats,
        },
        "definitions": DEFINITIONS,
        "results": results,
        "loss": {
            "num_tokens": args.loss_tokens,
            "vocab_size": args.loss_vocab_size,
            "width": LOSS_WIDTH,
            "logits_mib": args.loss_tokens * args.loss_vocab_size * 4 / 2**20,
            "memory_mib": loss_mib,
        },
    }
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(format_table(report))
    return report


if __name__ == "__main__":
    main()

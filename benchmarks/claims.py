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
"""The paper's claims about training and decoding, at a size that anyone can repeat: three ways to train, one measure.

Trains a small model on the small forms of `claims_data.py` in three ways, with the same number of steps on the same
data: by diffusion only, autoregressively only, and autoregressively then by diffusion. Then asks each about held-out
forms: by the length of the canvas, by the confidence threshold, by fixed schedules, with and without prompt cache, and
token by token. Each run is kept in the output file and not repeated; one that was interrupted goes on from its last
checkpoint. Needs the vision tower of the forms example (`python examples/forms/train_vision.py`).

Command:
    python benchmarks/claims.py --seeds 0 1 2

Hardware: one CPU core, about 7 minutes for each way and seed. Writes `benchmarks/results/claims.json`, and from it the
tables of `docs/results.md` and its figures (`--report-only`: these alone).
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from claims_data import ANSWER_LENGTH, LANGUAGE_MODEL, PoolCollator, claims_row, pool_name, write_pool, write_untrained
from claims_report import write_report
from decode import describe_machine
from forms_evaluation import chat_turn
from forms_scores import summarize
from tqdm import tqdm
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

import dimple_hf
from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import load_recipe
from dimple_hf.training.run import is_finished, run_stage

ROOT = Path(__file__).resolve().parents[1]

REGIMES = ("diffusion", "autoregressive", "autoregressive_then_diffusion")
CAUSAL_SHARE = 0.25
"""Of the steps of the third way."""
LENGTHS = (8, 16, 32, 64)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
FIXED_STEPS = (1, 2, 4, 8, 16)
TIMED_ROWS = 40

DEFINITIONS = {
    "fields": "share of fields whose label stands with exactly its number",
    "whole": "share of forms with all fields right, in order, and no others",
    "passes": "passes of the model for one answer, mean; token by token, up to and with the first padding",
    "default": "generate's defaults: confidence threshold 0.95, prompt cache, end as soon as it is decided",
    "length": "default decoding, by positions of the canvas; forms of one row, whose answers fit the shortest",
    "threshold": "default decoding, by confidence threshold",
    "fixed": "no threshold: the adaptive schedule, by its number of steps; 16 unmask one position each",
    "left_to_right": "no threshold: one position a pass, from left to right",
    "other_mode": "the autoregressive model decoded by diffusion, with defaults: a control",
    "comparison": "of the seed's models, answers one at a time, in turn; median and quartiles of ratios of processor "
    "time over neighbouring calls of generate, image included",
}


@dataclass(frozen=True)
class Settings:
    """What the figures depend on, besides the seed.

    Args:
        steps (`int`): Optimizer steps of each way.
        batch_size (`int`): Rows of a step.
        learning_rate (`float`): Highest learning rate.
        pool (`int`): Training images.
        rows (`int`): Held-out images.
    """

    steps: int
    batch_size: int
    learning_rate: float
    pool: int
    rows: int


def stages(regime: str, settings: Settings) -> list[dict[str, Any]]:
    """The stages of a recipe. Learning rates stay until the last quarter of the last stage."""
    common = {
        "train": ["language_model", "head"],
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "max_grad_norm": 1.0,
    }
    first = round(CAUSAL_SHARE * settings.steps)
    num_steps = {
        "diffusion": {"diffusion": settings.steps},
        "autoregressive": {"instruct": settings.steps},
        "autoregressive_then_diffusion": {"instruct": first, "diffusion": settings.steps - first},
    }[regime]
    last = list(num_steps)[-1]
    return [
        {
            "name": name,
            **common,
            "max_steps": steps,
            # The warm-up is for a fresh optimizer: as many steps in each.
            "warmup_ratio": min(1.0, 100 / steps),
            "decay_ratio": 0.25 if name == last else 0,
        }
        for name, steps in num_steps.items()
    ]


def train(run_dir: Path, regime: str, seed: int, settings: Settings, visual: Path) -> Path:
    """Trains one way, or goes on with it.

    Args:
        run_dir (`Path`): Directory of the seed's runs. The encoded images lie beside it, for all seeds.
        regime (`str`): One of `REGIMES`.
        seed (`int`): Of weights, order of data and masks.
        settings ([`Settings`]): How long.
        visual (`Path`): Weights of the vision tower.

    Returns:
        `Path`: Directory of the trained model.
    """
    untrained = run_dir / "untrained"
    if not (untrained / "config.json").is_file():  # written before the weights, but so quickly
        write_untrained(untrained, visual, seed)
    pool = run_dir.parent / pool_name(untrained, settings.pool)
    if not pool.is_file():
        write_pool(pool, untrained, settings.pool)
    recipe_file = run_dir / f"{regime}.yaml"
    arguments = {"file": str(pool), "model_dir": str(untrained)}
    content = {
        "model": str(untrained),
        "output_dir": str(run_dir / regime),
        "seed": seed,
        "attn_implementation": "eager",
        "data": {"train": {"location": "claims_data:pool_rows", "arguments": arguments}},
        "stages": stages(regime, settings),
        "trainer": {
            "per_device_train_batch_size": settings.batch_size,
            "adam_beta2": 0.98,
            "weight_decay": 0.01,
            "bf16": True,
            "logging_steps": 100,
            "save_steps": 250,
            "save_total_limit": 1,
            "report_to": "none",
        },
    }
    recipe_file.write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = load_recipe(recipe_file)
    processor = DimpleProcessor.from_pretrained(untrained)
    for plan in recipe.plans:
        if not is_finished(recipe, plan):
            collator = PoolCollator(processor, **plan.collator)
            run_stage(recipe, plan, 1, collator, plan.train.load(run_dir.resolve()), None)
    return recipe.plans[-1].directory


@dataclass(frozen=True)
class Questions:
    """Held-out rows, ready for `generate`, batch by batch."""

    rows: list[dict[str, Any]]
    batches: list[BatchFeature]


def prepare(processor: ProcessorMixin, rows: Sequence[dict[str, Any]], batch_size: int) -> Questions:
    """Makes prompts of rows; all have the same length."""
    batches = []
    for start in range(0, len(rows), batch_size):
        chats = [[chat_turn(row)] for row in rows[start : start + batch_size]]
        batches.append(
            processor.apply_chat_template(
                chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        )
    return Questions(list(rows), batches)


def answer(
    model: PreTrainedModel, processor: ProcessorMixin, inputs: BatchFeature, **options: Any
) -> tuple[list[str], list[int]]:
    """Answers of a batch, and the passes that each took."""
    options = {"max_new_tokens": ANSWER_LENGTH, "return_dict_in_generate": True} | options
    output = model.generate(**inputs, **options)
    tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
    passes = output.get("num_forward_passes")
    if passes is None:  # token by token
        is_end = tokens == processor.tokenizer.pad_token_id
        passes = ((is_end.cumsum(dim=1) - is_end.long()) == 0).sum(dim=1)
    return processor.batch_decode(tokens, skip_special_tokens=True), passes.tolist()


def measure(model: PreTrainedModel, processor: ProcessorMixin, questions: Questions, **options: Any) -> dict[str, Any]:
    """Scores of one way to decode: `fields`, `whole` and `passes`; see `DEFINITIONS`."""
    texts, passes = [], []
    for inputs in questions.batches:
        of_batch = answer(model, processor, inputs, **options)
        texts += of_batch[0]
        passes += of_batch[1]
    scores = summarize(
        (row["kind"], text, row["answer"], json.loads(row["fields"]))
        for row, text in zip(questions.rows, texts, strict=True)
    )
    return {"fields": scores["text/fields"], "whole": scores["text/whole"], "passes": statistics.mean(passes)}


def evaluate(checkpoint: Path, regime: str, settings: Settings) -> dict[str, Any]:
    """All figures of one run; see `DEFINITIONS`."""
    processor = DimpleProcessor.from_pretrained(checkpoint)
    model = DimpleForConditionalGeneration.from_pretrained(checkpoint).eval()
    forms = prepare(processor, [claims_row("test", index) for index in range(settings.rows)], batch_size=100)
    short = [claims_row("test", index, num_rows=1) for index in range(settings.rows // 2)]
    short_forms = prepare(processor, short, batch_size=100)
    figures: dict[str, Any] = {"default": measure(model, processor, forms)}
    if regime == "autoregressive":
        figures["short"] = measure(model, processor, short_forms)
        model.config.full_attn_mask = True
        figures["other_mode"] = measure(model, processor, forms)
        return figures
    figures["length"] = {
        str(length): measure(model, processor, short_forms, max_new_tokens=length) for length in LENGTHS
    }
    figures["threshold"] = {
        str(threshold): measure(model, processor, forms, confidence_threshold=threshold) for threshold in THRESHOLDS
    }
    schedule = {"confidence_threshold": None}
    figures["fixed"] = {
        str(steps): measure(model, processor, forms, max_denoising_steps=steps, **schedule) for steps in FIXED_STEPS
    }
    figures["left_to_right"] = measure(model, processor, forms, unmasking="left_to_right", **schedule)
    figures["cache_off"] = measure(model, processor, forms, use_cache=False)
    return figures


def compare(autoregressive: Path, diffusion: Path) -> dict[str, Any]:
    """
    Times three decodings in turn: token by token by one model, and by diffusion by the other with and without cache.

    Returns:
        `dict[str, Any]`: Milliseconds of processor time for an answer, and ratios; see `DEFINITIONS`.
    """
    processor = DimpleProcessor.from_pretrained(diffusion)
    causal, denoiser = (
        DimpleForConditionalGeneration.from_pretrained(directory).eval() for directory in (autoregressive, diffusion)
    )
    arms: dict[str, Callable[[BatchFeature], Any]] = {
        "autoregressive": lambda inputs: answer(causal, processor, inputs),
        "diffusion": lambda inputs: answer(denoiser, processor, inputs),
        "diffusion_cache_off": lambda inputs: answer(denoiser, processor, inputs, use_cache=False),
        "one_by_one": lambda inputs: answer(denoiser, processor, inputs, confidence_threshold=None),
        "one_by_one_cache_off": lambda inputs: answer(
            denoiser, processor, inputs, confidence_threshold=None, use_cache=False
        ),
    }
    questions = prepare(processor, [claims_row("test", index) for index in range(TIMED_ROWS)], batch_size=1)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for inputs in [questions.batches[0], *questions.batches]:  # the first one twice, to warm up
        for name, run in arms.items():
            started = time.process_time()
            run(inputs)
            seconds[name].append(time.process_time() - started)
    times = {name: of_arm[1:] for name, of_arm in seconds.items()}
    return {
        "milliseconds": {name: 1e3 * statistics.median(of_arm) for name, of_arm in times.items()},
        "autoregressive_over_diffusion": ratio(times["autoregressive"], times["diffusion"]),
        "cache_off_over_on": ratio(times["diffusion_cache_off"], times["diffusion"]),
        "cache_off_over_on_one_by_one": ratio(times["one_by_one_cache_off"], times["one_by_one"]),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of neighbouring calls."""
    low, median, high = statistics.quantiles([a / b for a, b in zip(above, below, strict=True)], n=4)
    return {"median": median, "low": low, "high": high}


def run_all(
    seeds: Iterable[int], settings: Settings, work_dir: Path, visual: Path, report: dict[str, Any], output: Path
) -> None:
    """Does what is missing in the report, seed by seed, and writes it after each part."""
    tasks = [(str(seed), part) for seed in seeds for part in (*REGIMES, "comparison")]
    runs: dict[str, dict[str, Any]] = report["runs"]
    done = [task for task in tasks if task[1] in runs.get(task[0], {})]
    with tqdm(tasks, initial=len(done), total=len(tasks), desc="claims", unit="part") as progress:
        for seed, part in tasks:
            if (seed, part) in done:
                continue
            progress.set_postfix_str(f"seed {seed}, {part}")
            run_dir = work_dir / f"seed-{seed}"
            run_dir.mkdir(parents=True, exist_ok=True)
            if part == "comparison":
                autoregressive, diffusion = (
                    train(run_dir, regime, int(seed), settings, visual) for regime in REGIMES[1:]
                )
                figures = compare(autoregressive, diffusion)
            else:
                figures = evaluate(train(run_dir, part, int(seed), settings, visual), part, settings)
            runs.setdefault(seed, {})[part] = figures
            write_json(report, output)
            progress.update()


def write_json(report: Mapping[str, Any], output: Path) -> None:
    """Writes the report; a process that is killed meanwhile leaves the old one."""
    partial = output.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=2) + "\n")
    os.replace(partial, output)


def open_report(output: Path, settings: Settings, command: str) -> dict[str, Any]:
    """The report to go on with: a new one, or that of the file if its settings are the same.

    Raises:
        ValueError: If the file's figures were made with other settings.
    """
    described = asdict(settings) | {"causal_share": CAUSAL_SHARE, "language_model": LANGUAGE_MODEL}
    if output.is_file():
        report = json.loads(output.read_text())
        if report["settings"] != described:
            raise ValueError(
                f"{output} must hold figures of the same settings (got {report['settings']}, asked for {described}): "
                "use another --output"
            )
        return report
    return {
        "benchmark": "claims",
        "command": command,
        "machine": describe_machine(torch.device("cpu")),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dimple_hf": dimple_hf.__version__,
        },
        "settings": described,
        "definitions": DEFINITIONS,
        "runs": {},
    }


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of each way to train (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--pool", type=int, default=16384, help="training images (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=300, help="held-out images (default: %(default)s)")
    parser.add_argument("--visual", type=Path, default=Path("runs/forms/vision/visual.safetensors"))
    parser.add_argument("--work-dir", type=Path, default=Path("runs/claims"), help="for checkpoints")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "claims.json")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where results.md and figures/ are")
    parser.add_argument("--report-only", action="store_true", help="write the tables and figures, and run nothing")
    args = parser.parse_args(arguments)
    for name, least in (("steps", 4), ("batch_size", 1), ("pool", args.batch_size), ("rows", 2)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least} (got {getattr(args, name)})")
    if args.report_only and not args.output.is_file():
        parser.error(f"--output must be there for --report-only (got no {args.output})")
    if not args.report_only and not args.visual.is_file():
        parser.error(f"--visual must be a file: run `python examples/forms/train_vision.py` (got no {args.visual})")
    return args


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Runs what is missing; returns what `--output` holds."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    torch.set_num_threads(1)
    if args.report_only:
        report = json.loads(args.output.read_text())
    else:
        settings = Settings(args.steps, args.batch_size, args.learning_rate, args.pool, args.rows)
        command = shlex.join(["python", "benchmarks/claims.py", *arguments])
        report = open_report(args.output, settings, command)
        run_all(args.seeds, settings, args.work_dir, args.visual, report, args.output)
    write_report(report, args.docs)
    return report


if __name__ == "__main__":
    main()

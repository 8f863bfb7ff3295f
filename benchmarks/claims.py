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
"""The paper's claims about training and decoding, at a size that anyone can repeat: five ways to train, one measure.

Trains a small model on the forms of `claims_data.py` with the same number of forward passes on the same data: by
diffusion only, autoregressively only, autoregressively then by diffusion, in the other order, and by both losses in
one step. Then asks each about held-out forms: along its training, by the length of the canvas, by threshold and by
fixed schedule. Each run is kept in the output file and not repeated; one that was interrupted goes on from its last
checkpoint.

Commands:
    python benchmarks/claims.py --seeds 0 1 2
    python benchmarks/claims.py --seeds 0 --ways diffusion autoregressive --steps 1000 --output short.json

Hardware: one CPU core, an hour or two for each way and seed. Writes `benchmarks/results/claims.json`, and from it the
tables of `docs/results.md` and its figures (`--report-only`: these alone).
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from claims_data import (
    ANSWER_LENGTH,
    LANGUAGE_MODEL,
    PoolCollator,
    claims_row,
    pool_name,
    short_rows,
    write_pool,
    write_untrained,
)
from claims_report import write_report
from decode import describe_machine
from forms_evaluation import chat_turn
from forms_scores import summarize
from tqdm import tqdm
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin, Trainer

import dimple_hf
from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import load_recipe
from dimple_hf.training.checkpoints import last_complete_checkpoint
from dimple_hf.training.recipe import Recipe, StagePlan
from dimple_hf.training.run import build_training_arguments, is_finished, load_model, run_stage, write_stage_file

ROOT = Path(__file__).resolve().parents[1]

WAYS: dict[str, dict[str, float]] = {
    "diffusion": {"diffusion": 1.0},
    "autoregressive": {"instruct": 1.0},
    "autoregressive_then_diffusion": {"instruct": 0.25, "diffusion": 0.75},
    "diffusion_then_autoregressive": {"diffusion": 0.75, "instruct": 0.25},
    # A step has a causal and a bidirectional forward pass, so half as many steps have as many.
    "both_at_once": {"both": 0.5},
}
"""Way to train to its stages and their shares of the steps."""
LENGTHS = (16, 24, 32, 48, 64, 128)
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
FIXED_STEPS = (1, 2, 4, 8, 16, 48)
CURVE_POINTS = 8
"""Checkpoints of each way that are asked, by steps of the same number."""
CURVE_ROWS = 100

DEFINITIONS = {
    "fields": "share of fields whose label stands with exactly its number",
    "whole": "share of forms with all fields right, in order, and no others",
    "passes": "forward passes for one answer, mean; token by token, up to and with the first padding",
    "default": "the mode of the last stage: generate's defaults in 48 positions (confidence threshold 0.95, prompt "
    "cache), or token by token",
    "other_mode": "the same model in the other mode",
    "curve": "`default` of checkpoints along the training, each in its stage's mode, by optimizer steps",
    "length": "default decoding, by positions of the canvas; forms whose answers fit the shortest",
    "threshold": "default decoding, by confidence threshold",
    "fixed": "no threshold: the adaptive schedule, by its number of steps; 48 unmask one position each",
    "left_to_right": "no threshold: one position a pass, from left to right",
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


def stages(way: str, settings: Settings) -> list[dict[str, Any]]:
    """The stages of a recipe. Learning rates stay until the last quarter of the last stage."""
    shares = WAYS[way]
    last = list(shares)[-1]
    num_steps = {name: round(share * settings.steps) for name, share in shares.items()}
    return [
        {
            "name": name,
            "mode": "causal" if name == "instruct" else "bidirectional",
            "train": ["language_model", "head"],
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "max_grad_norm": 1.0,
            "max_steps": steps,
            # The warm-up is for a fresh optimizer: as many steps in each.
            "warmup_ratio": min(1.0, 100 / steps),
            "decay_ratio": 0.25 if name == last else 0,
        }
        for name, steps in num_steps.items()
    ]


def write_recipe(run_dir: Path, way: str, seed: int, settings: Settings) -> Recipe:
    """Writes a way's recipe, and what it needs: the untrained model of the seed, and the encoded images of all seeds.

    Args:
        run_dir (`Path`): Directory of the seed's runs. The encoded images lie beside it, for all seeds.
        way (`str`): A key of `WAYS`.
        seed (`int`): Of weights, order of data and masks.
        settings ([`Settings`]): How long.

    Returns:
        [`Recipe`]
    """
    untrained = run_dir / "untrained"
    if not (untrained / "config.json").is_file():  # written before the weights, but so quickly
        write_untrained(untrained, seed)
    pool = run_dir.parent / pool_name(untrained, settings.pool)
    if not pool.is_file():
        write_pool(pool, untrained, settings.pool)
    arguments = {"file": str(pool), "model_dir": str(untrained)}
    content = {
        "model": str(untrained),
        "output_dir": str(run_dir / way),
        "seed": seed,
        "attn_implementation": "eager",
        "data": {"train": {"location": "claims_data:pool_rows", "arguments": arguments}},
        "stages": stages(way, settings),
        "trainer": {
            "per_device_train_batch_size": settings.batch_size,
            "adam_beta2": 0.98,
            "weight_decay": 0.01,
            "logging_steps": 100,
            "save_steps": max(1, settings.steps // CURVE_POINTS),
            "save_total_limit": CURVE_POINTS,
            "report_to": "none",
        },
    }
    recipe_file = run_dir / f"{way}.yaml"
    recipe_file.write_text(yaml.safe_dump(content, sort_keys=False))
    return load_recipe(recipe_file)


def train(run_dir: Path, way: str, seed: int, settings: Settings) -> Recipe:
    """Trains one way, or goes on with it; see [`write_recipe`]."""
    recipe = write_recipe(run_dir, way, seed, settings)
    processor = DimpleProcessor.from_pretrained(recipe.model)
    for plan in recipe.plans:
        if not is_finished(recipe, plan):
            run = train_both if plan.stage.name == "both" else run_stage
            run(recipe, plan, 1, PoolCollator(processor, **plan.collator), plan.train.load(run_dir.resolve()), None)
    return recipe


class BothLossesTrainer(Trainer):
    """Trains on the mean of the causal and the masked-diffusion loss of each batch."""

    def compute_loss(self, model: PreTrainedModel, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        return (model(**inputs, is_causal=True).loss + model(**inputs, is_causal=False).loss) / 2


def train_both(
    recipe: Recipe, plan: StagePlan, num_processes: int, collator: PoolCollator, train_rows: Any, eval_rows: None
) -> None:
    """As `run_stage`, with a [`BothLossesTrainer`]."""
    args = build_training_arguments(recipe, plan, num_processes)
    write_stage_file(recipe, plan, finished=False)
    trainer = BothLossesTrainer(
        model=load_model(recipe, plan),
        args=args,
        data_collator=collator,
        train_dataset=train_rows,
        processing_class=collator.processor,
        callbacks=[plan.stage.phase_callback()],
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(plan.directory))
    trainer.save_model()
    write_stage_file(recipe, plan, finished=True)


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


def evaluate(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """All figures of one run; see `DEFINITIONS`."""
    processor = DimpleProcessor.from_pretrained(recipe.model)
    rows = [claims_row("test", index) for index in range(settings.rows)]
    forms = prepare(processor, rows, batch_size=50)
    model = load(recipe.plans[-1].directory)
    figures: dict[str, Any] = {"default": measure(model, processor, forms)}
    if model.config.full_attn_mask:
        figures |= evaluate_diffusion(model, processor, forms, settings.rows // 2)
    model.config.full_attn_mask = not model.config.full_attn_mask
    figures["other_mode"] = measure(model, processor, forms)
    figures["curve"] = evaluate_curve(recipe, processor, prepare(processor, rows[:CURVE_ROWS], batch_size=50))
    return figures


def load(directory: Path) -> DimpleForConditionalGeneration:
    return DimpleForConditionalGeneration.from_pretrained(directory).eval()


def evaluate_diffusion(
    model: PreTrainedModel, processor: ProcessorMixin, forms: Questions, num_short_rows: int
) -> dict[str, Any]:
    """Lengths, thresholds and schedules; see `DEFINITIONS`."""
    short = prepare(processor, short_rows("test", num_short_rows, processor.tokenizer), batch_size=50)
    schedule = {"confidence_threshold": None}
    return {
        "length": {str(length): measure(model, processor, short, max_new_tokens=length) for length in LENGTHS},
        "threshold": {
            str(threshold): measure(model, processor, forms, confidence_threshold=threshold)
            for threshold in THRESHOLDS
        },
        "fixed": {
            str(steps): measure(model, processor, forms, max_denoising_steps=steps, **schedule)
            for steps in FIXED_STEPS
        },
        "left_to_right": measure(model, processor, forms, unmasking="left_to_right", **schedule),
    }


def evaluate_curve(recipe: Recipe, processor: ProcessorMixin, forms: Questions) -> dict[str, dict[str, Any]]:
    """The scores of all checkpoints, by optimizer steps since the beginning of the first stage."""
    curve, steps_before = {}, 0
    for plan in recipe.plans:
        checkpoints = sorted(plan.directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        for checkpoint in checkpoints:
            step = steps_before + int(checkpoint.name.split("-")[1])
            curve[str(step)] = measure(load(checkpoint), processor, forms)
        steps_before += plan.stage.max_steps or 0
    return curve


def run_all(
    seeds: Iterable[int], ways: Iterable[str], settings: Settings, work_dir: Path, report: dict[str, Any], output: Path
) -> None:
    """Does what is missing in the report, seed by seed, and writes it after each part."""
    tasks = [(str(seed), way) for seed in seeds for way in ways]
    runs: dict[str, dict[str, Any]] = report["runs"]
    done = [task for task in tasks if task[1] in runs.get(task[0], {})]
    with tqdm(tasks, initial=len(done), total=len(tasks), desc="claims", unit="run") as progress:
        for seed, way in tasks:
            if (seed, way) in done:
                continue
            progress.set_postfix_str(f"seed {seed}, {way}")
            run_dir = work_dir / f"seed-{seed}"
            run_dir.mkdir(parents=True, exist_ok=True)
            runs.setdefault(seed, {})[way] = evaluate(train(run_dir, way, int(seed), settings), settings)
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
    described = asdict(settings) | {"language_model": LANGUAGE_MODEL}
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
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to train (default: all)")
    parser.add_argument("--steps", type=int, default=4000, help="of each way to train (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--pool", type=int, default=16384, help="training images (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=300, help="held-out images (default: %(default)s)")
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
        run_all(args.seeds, args.ways, settings, args.work_dir, report, args.output)
    write_report(report, args.docs)
    return report


if __name__ == "__main__":
    main()

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
"""Runs a recipe: each stage with a plain `Trainer`, starting from the result of the stage before.

What was done is read from the stages' directories, so the same command goes on wherever it was interrupted: finished
stages are skipped, the current one resumes from its last whole checkpoint.
"""

import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import IterableDataset
from peft import PeftModel
from torch.utils.data import Subset
from transformers import (
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ..data.whole_file import whole_file
from ..modeling import DimpleForConditionalGeneration
from ..quantization import quantization_config
from .adapters import freeze_other_modules, load_adapter, remember_mode
from .checkpoints import is_at_end, last_complete_checkpoint
from .collator import DimpleDataCollator
from .data_check import refuse_bad_data
from .finite import FiniteLossCallback
from .held_out import GenerationCallback
from .metrics import MetricsCallback, add_before_reporters
from .option_types import on_one_line
from .preflight import REFUSALS, add_adapter, check_adapter, check_trainer
from .recipe import Recipe, StagePlan
from .seeding import derive_seed
from .stages import PARTS, freeze_other_parts, set_mode
from .trainer import StageTrainer

logger = logging.get_logger(__name__)

#: In a stage's directory: what it was begun with, and whether it is finished.
STAGE_FILE = "stage.json"

MAX_DEFAULT_MICRO_BATCH = 8

#: Arguments of the Trainer that may change between two runs of the same stage, because no weight depends on them.
FREE_ARGUMENTS = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "disable_tqdm", "log_level", "log_level_replica",
    "logging_steps", "logging_strategy", "logging_first_step", "report_to", "run_name", "project", "save_steps",
    "save_strategy", "save_total_limit", "eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "push_to_hub",
    "hub_model_id", "hub_strategy", "hub_private_repo", "activation_checkpointing",
    "activation_checkpointing_kwargs",
)  # fmt: skip


def micro_batches(batch_size: int, per_device: int | None, num_processes: int) -> tuple[int, int]:
    """
    Divides the rows of an optimizer step.

    Args:
        batch_size (`int`):
            Rows of a step.
        per_device (`int`, *optional*):
            Rows that a process handles at once; as many as divide the batch, up to 8, when missing.
        num_processes (`int`):
            Processes that share the step.

    Returns:
        `tuple(int, int)`: Rows per micro-batch, and micro-batches per step.

    Raises:
        ValueError: If the batch cannot be divided so.
    """
    if per_device is None:
        fitting = [n for n in range(1, MAX_DEFAULT_MICRO_BATCH + 1) if batch_size % (n * num_processes) == 0]
        per_device = max(fitting, default=1)
    if per_device < 1 or batch_size % (per_device * num_processes):
        raise ValueError(
            "`batch_size` must be a multiple of `per_device_train_batch_size` times the number of processes "
            f"(got {batch_size}, {per_device} and {num_processes})"
        )
    return per_device, batch_size // (per_device * num_processes)


def trainer_settings(recipe: Recipe, plan: StagePlan, num_processes: int) -> dict[str, Any]:
    """
    Args:
        recipe ([`Recipe`]):
            The recipe.
        plan ([`StagePlan`]):
            One of its stages.
        num_processes (`int`):
            Processes that train together.

    Returns:
        `dict[str, Any]`: Keyword arguments of `TrainingArguments` for the stage.

    Raises:
        ValueError: If the batch cannot be divided among the processes.
    """
    per_device, num_micro_batches = micro_batches(
        plan.stage.batch_size, plan.trainer.get("per_device_train_batch_size"), num_processes
    )
    index = recipe.plans.index(plan)
    defaults = {"save_total_limit": 2, "logging_steps": 10, "eval_strategy": "no" if plan.eval is None else "epoch"}
    return (
        defaults
        | plan.trainer
        | plan.stage.training_arguments()
        | {
            "output_dir": str(plan.directory),
            "per_device_train_batch_size": per_device,
            "gradient_accumulation_steps": num_micro_batches,
            "remove_unused_columns": False,
            # A stream is read by each process; accelerate's other way cuts all tensors to the number of rows.
            "accelerator_config": {"dispatch_batches": False} | (plan.trainer.get("accelerator_config") or {}),
            # Other data order and other masks in each stage; numpy takes seeds below 2**32.
            "seed": derive_seed(recipe.seed, index) % 2**32,
        }
    )


def build_training_arguments(recipe: Recipe, plan: StagePlan, num_processes: int) -> TrainingArguments:
    """Builds the arguments of [`trainer_settings`]; what transformers refuses in them is a `ValueError`."""
    # Explicit, because without it the Trainer refuses bf16 on a machine that has nothing but a CPU.
    settings = {"use_cpu": not torch.accelerator.is_available()} | trainer_settings(recipe, plan, num_processes)
    try:
        args = TrainingArguments(**settings)
    except REFUSALS as error:
        raise ValueError(
            f"{recipe.path}: stage {plan.stage.name}: `trainer` is refused: {on_one_line(error)}"
        ) from error
    if args.n_gpu > 1:
        raise ValueError(
            f"one process must use one device (got {args.n_gpu}): run `accelerate launch -m dimple_hf.cli.main train "
            f"{recipe.path}`, or set CUDA_VISIBLE_DEVICES=0"
        )
    return args


def stage_settings(recipe: Recipe, plan: StagePlan) -> dict[str, Any]:
    """
    Returns:
        `dict[str, Any]`: All that the stage's weights depend on, as plain JSON values.
    """
    settings = {
        "stage": asdict(plan.stage),
        "base": plan.base,
        "adapter": None if plan.adapter is None else str(plan.adapter),
        "train": asdict(plan.train),
        "trainer": {name: value for name, value in plan.trainer.items() if name not in FREE_ARGUMENTS},
        "collator": plan.collator,
        "peft": recipe.peft if plan.uses_peft else None,
        "quantization": recipe.quantization,
        "dtype": recipe.dtype,
        "attn_implementation": recipe.attn_implementation,
        "seed": recipe.seed,
    }
    return json.loads(json.dumps(settings, default=str))


def is_finished(recipe: Recipe, plan: StagePlan) -> bool:
    """
    Looks at what a stage left in its directory.

    Args:
        recipe ([`Recipe`]):
            The recipe.
        plan ([`StagePlan`]):
            One of its stages.

    Returns:
        `bool`: Whether the stage is done.

    Raises:
        ValueError: If it was begun with other settings, or the directory holds something else.
    """
    file = plan.directory / STAGE_FILE
    if not file.is_file():
        if plan.directory.is_dir() and any(plan.directory.iterdir()):
            raise ValueError(f"{plan.directory} must be new, empty or a stage's (got files without {STAGE_FILE})")
        return False
    found = json.loads(file.read_text(encoding="utf-8"))
    settings = stage_settings(recipe, plan)
    changed = [name for name in settings if found["settings"].get(name) != settings[name]]
    if changed:
        differences = "; ".join(
            f"{name} was {json.dumps(found['settings'].get(name))} and is {json.dumps(settings[name])}"
            for name in changed
        )
        raise ValueError(
            f"stage {plan.stage.name} was begun with other settings ({differences}): put them back, or use another "
            f"`output_dir`, or delete {plan.directory}"
        )
    return bool(found["finished"])


def describe_plan(recipe: Recipe, num_processes: int) -> list[dict[str, Any]]:
    """
    What a run would do, for people to read.

    Args:
        recipe ([`Recipe`]):
            The recipe.
        num_processes (`int`):
            Processes that train together.

    Returns:
        `list[dict[str, Any]]`: For each stage its settings, and what is left to do.
    """
    described = []
    for plan in recipe.plans:
        checkpoint = last_complete_checkpoint(plan.directory)
        if is_finished(recipe, plan):
            todo = "nothing, it is finished"
        else:
            todo = "from its beginning" if checkpoint is None else f"from {checkpoint}"
        settings = stage_settings(recipe, plan)
        trainer = trainer_settings(recipe, plan, num_processes)
        described.append(
            {"name": plan.stage.name, "to do": todo, "processes": num_processes}
            | {name: value for name, value in settings.items() if value is not None}
            | {"trainer": {name: value for name, value in trainer.items() if value is not None}}
        )
    return described


def train_recipe(recipe: Recipe, num_processes: int = 1) -> Path:
    """
    Trains the stages that are not finished.

    Args:
        recipe ([`Recipe`]):
            The recipe.
        num_processes (`int`, defaults to 1):
            Processes that run this together (`accelerate launch` sets `WORLD_SIZE`).

    Returns:
        `Path`: Directory of the last stage: a model, or an adapter.

    Raises:
        ValueError: If a stage's directory holds another run, or its settings are refused; before any model is loaded.
    """
    result = recipe.plans[-1].directory
    todo = [plan for plan in recipe.plans if not is_finished(recipe, plan)]
    if not todo:
        return result
    for plan in todo:
        check_adapter(recipe, plan)  # first, because DeepSpeed changes how models are made
    for plan in todo:
        check_trainer(recipe, plan, build_training_arguments(recipe, plan, num_processes))
    processor = AutoProcessor.from_pretrained(recipe.model)
    recipe_dir = recipe.path.resolve().parent
    # All of them before the first model, so that nothing is refused after hours of training.
    joins = not (recipe.attn_implementation or "").startswith("flash")
    collators = [DimpleDataCollator(processor, **{"join_turns": joins} | plan.collator) for plan in todo]
    examples = [(plan.train.load(recipe_dir), plan.eval and plan.eval.load(recipe_dir)) for plan in todo]
    for plan, collator, (train_examples, _) in zip(todo, collators, examples, strict=True):
        refuse_bad_data(train_examples, collator, f"{recipe.path}: stage {plan.stage.name}: data.train")
    for plan, collator, (train_examples, eval_examples) in zip(todo, collators, examples, strict=True):
        run_stage(recipe, plan, num_processes, collator, train_examples, eval_examples)
    return result


def run_stage(
    recipe: Recipe,
    plan: StagePlan,
    num_processes: int,
    collator: DimpleDataCollator,
    train_examples: Any,
    eval_examples: Any,
) -> None:
    """
    Trains one stage, from its last whole checkpoint if there is one, in five steps:

    1. The arguments, first because DeepSpeed changes how models are loaded.
    2. The model in the stage's mode, with everything frozen that the stage does not train.
    3. The Trainer and its callbacks.
    4. Training.
    5. The model's files, and the note that the stage is finished.

    Args:
        recipe ([`Recipe`]):
            The recipe.
        plan ([`StagePlan`]):
            The stage.
        num_processes (`int`):
            Processes that train together.
        collator ([`DimpleDataCollator`]):
            Makes the batches; its processor is saved with the model.
        train_examples, eval_examples:
            Examples with `len` and integer indices; `eval_examples` may be `None`.
    """
    # 1. Arguments
    args = build_training_arguments(recipe, plan, num_processes)
    checkpoint = last_complete_checkpoint(plan.directory)
    if args.should_save:
        write_stage_file(recipe, plan, finished=False)
    logger.info("stage %s: %s", plan.stage.name, "from its beginning" if checkpoint is None else f"from {checkpoint}")

    # 2. Model
    set_seed(args.seed)
    model = load_model(recipe, plan)

    # 3. Trainer. One that resumes after the last of `max_steps` would take another step, because it looks for the end
    # after each step and epoch only. With a single row, as many epochs are over as steps, and there is nothing to do.
    if checkpoint is not None and is_at_end(checkpoint):
        train_examples = (
            train_examples.take(1) if isinstance(train_examples, IterableDataset) else Subset(train_examples, [0])
        )
    trainer = StageTrainer(
        plan.stage.learning_rate_multipliers or {},
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=train_examples,
        eval_dataset=eval_examples,
        processing_class=collator.processor,
        callbacks=[plan.stage.phase_callback(), FiniteLossCallback()],
    )
    add_before_reporters(
        trainer, MetricsCallback(), *_held_out_callbacks(recipe, plan, collator.processor, eval_examples)
    )

    # 4. Training
    trainer.train(resume_from_checkpoint=checkpoint)

    # 5. Files
    save_whole_model(trainer)
    trainer.save_state()
    trainer.accelerator.wait_for_everyone()
    if args.should_save:
        write_stage_file(recipe, plan, finished=True)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.free_memory()
    del trainer, model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def save_whole_model(trainer: Trainer) -> None:
    """
    Writes the model into the Trainer's directory as one model, even where FSDP writes checkpoints in shards.

    Args:
        trainer (`Trainer`):
            A Trainer that has trained.
    """
    if not trainer.is_fsdp_enabled:
        trainer.save_model()
        return
    plugin = trainer.accelerator.state.fsdp_plugin
    kind = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    plugin.set_state_dict_type(kind)  # the next stage shares the plugin, and resumes from shards


def load_model(recipe: Recipe, plan: StagePlan) -> PreTrainedModel | PeftModel:
    """
    Loads what a stage starts from and prepares it for training.

    Args:
        recipe ([`Recipe`]):
            The recipe.
        plan ([`StagePlan`]):
            The stage.

    Returns:
        `PreTrainedModel` or `PeftModel`: In the stage's mode; what the stage does not train is frozen.
    """
    options: dict[str, Any] = {"dtype": recipe.dtype, "attn_implementation": recipe.attn_implementation}
    if recipe.quantization is not None:
        options["quantization_config"] = quantization_config(recipe.quantization)
    model = DimpleForConditionalGeneration.from_pretrained(plan.base, **options)
    set_mode(model, plan.stage)
    if not plan.uses_peft:
        freeze_other_parts(model, plan.stage.train)
        return model
    if plan.adapter is None:
        return add_adapter(model, recipe, plan)
    model = load_adapter(model, str(plan.adapter), is_trainable=True)
    set_mode(model, plan.stage)
    remember_mode(model)
    freeze_other_modules(model, {PARTS[part] for part in plan.stage.train if part != "language_model"})
    return model


def _held_out_callbacks(
    recipe: Recipe, plan: StagePlan, processor: ProcessorMixin, eval_examples: Any
) -> list[GenerationCallback]:
    if eval_examples is None or recipe.held_out is None or recipe.held_out.num_examples == 0:
        return []
    examples = [eval_examples[index] for index in range(min(recipe.held_out.num_examples, len(eval_examples)))]
    folder = plan.collator.get("image_folder")
    return [GenerationCallback(processor, examples, recipe.held_out.max_new_tokens, image_folder=folder)]


def write_stage_file(recipe: Recipe, plan: StagePlan, finished: bool) -> None:
    """Notes how a stage was begun, and that it is finished. A process that is killed meanwhile leaves the old note."""
    plan.directory.mkdir(parents=True, exist_ok=True)
    content = {"finished": finished, "settings": stage_settings(recipe, plan)}
    with whole_file(plan.directory / STAGE_FILE) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")

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
# /// script
# dependencies = ["dimple_hf"]
# ///
"""Train a LoRA adapter that says which shape an image shows, filled or empty: the program of docs/walk.md.

What it shows: (1) adapt every linear layer by LoRA, and train the projector, the embeddings and the head in full,
because image and words are new to the model, (2) learn to answer causally, then by masked diffusion, (3) answer
held-out questions at each evaluation, (4) save adapter, processor and logs.

Command:
    python examples/walk/draw_shapes.py my-shapes
    python examples/walk/train_shapes.py my-shapes runs/shapes

Hardware: two CPU cores, some minutes (docs/walk.md). Prints loss and answers as it learns, and at last the share of
held-out images that are answered exactly.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, set_seed
from transformers.integrations import is_tensorboard_available

from dimple_hf import DimpleProcessor
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.training import (
    DimpleDataCollator,
    GenerationCallback,
    Phase,
    PhaseCallback,
    add_before_reporters,
    lora_config,
)
from dimple_hf.training.adapters import ALL_LINEAR_LAYERS

PIXELS = 28 * 28
"""Of an image, as drawn. By itself the processor of the small model would enlarge it, which costs time only."""

NUM_SHOWN = 24
"""Held-out images that are asked about at each evaluation."""


def load_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_adapter(model_id: str) -> PeftModel:
    """LoRA in all linear layers; what LoRA cannot reach is trained in full."""
    base = AutoModelForImageTextToText.from_pretrained(model_id, dtype=torch.float32)
    config = lora_config(
        base.config.full_attn_mask,
        r=32,
        lora_alpha=64,
        lora_dropout=0.0,
        target_modules=ALL_LINEAR_LAYERS,
        modules_to_save=["img_projector", "embed_tokens", "lm_head"],
    )
    return get_peft_model(base, config)


def make_trainer(
    model: PeftModel, processor: DimpleProcessor, folder: Path, output: Path, max_steps: int, seed: int
) -> Trainer:
    """A plain Trainer with held-out answers in its log."""
    arguments = TrainingArguments(
        str(output),
        max_steps=max_steps,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        adam_beta2=0.98,
        eval_strategy="steps",
        eval_steps=max(1, max_steps // 8),
        logging_steps=max(1, max_steps // 16),
        save_strategy="no",
        report_to="tensorboard" if is_tensorboard_available() else "none",
        remove_unused_columns=False,
        seed=seed,
    )
    phases = PhaseCallback(0.3, "fraction", causal=Phase(warmup_ratio=0.1, decay_ratio=0), diffusion=Phase())
    held_out = load_rows(folder / "held_out.jsonl")[:NUM_SHOWN]
    trainer = Trainer(
        model,
        arguments,
        train_dataset=load_rows(folder / "train.jsonl"),
        eval_dataset=held_out,
        data_collator=DimpleDataCollator(processor, image_folder=folder),
        callbacks=[phases],
    )
    add_before_reporters(trainer, GenerationCallback(processor, held_out, max_new_tokens=16, image_folder=str(folder)))
    return trainer


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Trains and evaluates; returns what it prints last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images with `train.jsonl` and `held_out.jsonl`")
    parser.add_argument("output", type=Path, help="directory for the adapter, its processor and the logs")
    parser.add_argument("--model", default=str(FORMS_CHECKPOINT), help="base (default: the small one of the package)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of new weights, order and masks (default: %(default)s)")
    args = parser.parse_args(arguments)

    logging.basicConfig(format="%(message)s")
    logging.getLogger("dimple_hf").setLevel(logging.INFO)  # held-out answers
    start = time.perf_counter(), time.process_time()
    set_seed(args.seed)
    processor = AutoProcessor.from_pretrained(args.model, min_pixels=PIXELS, max_pixels=PIXELS)
    model = make_adapter(args.model)
    trainer = make_trainer(model, processor, args.folder, args.output, args.steps, args.seed)
    trainer.train()
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    model.save_pretrained(args.output)
    processor.save_pretrained(args.output)

    rows = load_rows(args.folder / "held_out.jsonl")
    answers = GenerationCallback(processor, rows, max_new_tokens=16, image_folder=str(args.folder)).answer(model)
    for row, answer in zip(rows, answers, strict=True):
        if not answer.is_exact:
            print(f"{row['messages'][0]['content'][0]['path']}: {answer.answer!r} for {answer.expected!r}")
    result = {
        "held_out": len(answers),
        "exact": sum(answer.is_exact for answer in answers) / len(answers),
        "seconds": round(seconds[0], 1),
        "processor_seconds": round(seconds[1], 1),
    }
    trainer.state.log_history.append(result)
    trainer.save_state()
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()

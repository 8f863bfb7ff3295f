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
# dependencies = ["dimple-hf", "trl"]
# ///
"""Fine-tune a Dimple with TRL's SFTTrainer, in both phases.

What it shows: the collator and the phase callback of this package in a trainer of another one; its losses are those of
`transformers.Trainer`.

Command:
    python examples/train_with_trl.py --model rp-yu/Dimple-7B --data train.jsonl --output runs/trl

Hardware: as `recipes/dimple-7b-lora.yaml`; with the package's small model, a CPU. Prints the loss of each step.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import AutoModel, AutoProcessor
from trl import SFTConfig, SFTTrainer

import dimple_hf  # noqa: F401  (registers the Auto classes)
from dimple_hf.training import DimpleDataCollator, PhaseCallback, lora_config


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rp-yu/Dimple-7B", help="directory or Hub id (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="a .jsonl file of chats")
    parser.add_argument("--image-folder", type=Path, help="what relative image paths are relative to")
    parser.add_argument("--output", type=Path, required=True, help="where the adapter is written")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--switch-at", type=float, default=0.0, help="share of the steps that is causal (default: 0)")
    args = parser.parse_args(arguments)

    processor = AutoProcessor.from_pretrained(args.model)
    model = AutoModel.from_pretrained(args.model, dtype="auto")
    trainer = SFTTrainer(
        model,
        SFTConfig(
            str(args.output),
            max_steps=args.steps,
            per_device_train_batch_size=4,
            learning_rate=1e-4,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            max_length=None,  # the collator's own says it
            dataset_kwargs={"skip_prepare_dataset": True},
            remove_unused_columns=False,
            activation_checkpointing=False,
        ),
        train_dataset=Dataset.from_json(str(args.data)),
        processing_class=processor,
        data_collator=DimpleDataCollator(processor, image_folder=args.image_folder),
        peft_config=lora_config(model.config.full_attn_mask),
        callbacks=[PhaseCallback(args.switch_at, switch_unit="fraction")],
    )
    trainer.train()
    trainer.save_model()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(*losses, sep="\n")
    return losses


if __name__ == "__main__":
    main()

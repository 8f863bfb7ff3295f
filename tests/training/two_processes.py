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
"""One of two processes that train together, for the tests. `python two_processes.py OUT MODE` under the variables of
`torch.distributed` (rank, world size, address, port); also run alone, with the same global batch.

Every other row has no image. MODE `plain`; `checkpointing`: with activation checkpointing, as the shipped recipes;
`adapter`: LoRA in the vision tower, the projector and the language model, embeddings and head in full; `zero2`,
`zero3`: DeepSpeed's ZeRO, where there are two processes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import training_run
from peft import PeftModel, get_peft_model
from transformers import EvalPrediction, Trainer

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.training import MetricsCallback, Phase, add_before_reporters, lora_config
from dimple_hf.training.adapters import ALL_LINEAR_LAYERS

#: For plain gradient descent: Adam would blow up the rounding of gradients that are 0, such as those of key biases.
PHASES = {
    "causal": Phase(learning_rate=0.05, warmup_ratio=0, decay_ratio=0, max_grad_norm=1.0),
    "diffusion": Phase(learning_rate=0.02, warmup_ratio=0, decay_ratio=0, max_grad_norm=0.5),
}


def deepspeed_config(stage: int) -> dict[str, Any]:
    """As `recipes/accelerate/zero3.yaml` has it, but float32, and the optimizer of this test. On CPUs, where there are
    no streams, DeepSpeed 0.19.8 loses gradients when ZeRO-2 reduces them during the backward pass."""
    return {
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
    }


def mixed_rows(num_rows: int = 16) -> list[dict[str, Any]]:
    """Rows with and without an image by turns."""
    rows = training_run.make_rows(num_rows)
    for row in rows[::2]:
        row["messages"][0]["content"] = row["messages"][0]["content"][1:]
        del row["images"]
    return rows


def make_adapter() -> PeftModel:
    """LoRA everywhere; embeddings and head in full."""
    torch.manual_seed(0)
    base = DimpleForConditionalGeneration.from_pretrained(training_run.CHECKPOINT)
    options = {"lora_dropout": 0.0, "modules_to_save": ["embed_tokens", "lm_head"]}
    return get_peft_model(base, lora_config(False, r=2, target_modules=ALL_LINEAR_LAYERS, **options))


def without_noise_levels(outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A `preprocess_logits_for_metrics`: leaves out the noise levels."""
    token_predictions, token_losses, _ = outputs
    assert token_predictions.shape == token_losses.shape == labels.shape
    return token_predictions, token_losses


def count_hits(prediction: EvalPrediction) -> dict[str, float]:
    """A `compute_metrics`."""
    token_predictions, token_losses = prediction.predictions
    counted = token_predictions != -100
    hits = token_predictions[counted] == prediction.label_ids[counted]
    return {"tokens": int(counted.sum()), "hits": int(hits.sum()), "mean_loss": float(token_losses[counted].mean())}


def predict(trainer: Trainer) -> dict[str, Any]:
    """Metrics and, for each row, the counted tokens; 5 rows of unequal length, which two processes cannot share."""
    trainer.compute_metrics, trainer.preprocess_logits_for_metrics = count_hits, without_noise_levels
    found = trainer.predict(mixed_rows(5))
    rows = [[int(token) for token in row if token != -100] for row in found.predictions[0]]
    return {"metrics": {name: found.metrics[f"test_{name}"] for name in ("tokens", "hits", "mean_loss")}, "rows": rows}


def main(output_dir: Path, mode: str) -> None:
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    zero = {"deepspeed": deepspeed_config(int(mode[-1]))} if mode.startswith("zero") and world_size > 1 else {}
    trainer = training_run.make_trainer(
        output_dir,
        rows=mixed_rows(),
        model=make_adapter() if mode == "adapter" else None,
        phases=PHASES,
        optim="sgd",
        max_steps=4,
        switch_at=2,
        per_device_train_batch_size=2 // world_size,
        activation_checkpointing=mode == "checkpointing",
        ddp_backend="gloo" if world_size > 1 else None,
        **zero,
    )
    add_before_reporters(trainer, MetricsCallback(num_noise_bins=1))
    levels: list[float] = []
    images: list[bool] = []
    trainer.model.register_forward_hook(
        lambda module, args, kwargs, output: (
            images.append("pixel_values" in kwargs)
            or levels.extend(
                [] if output.token_noise_levels is None else output.token_noise_levels.amax(dim=1).tolist()
            )
        ),
        with_kwargs=True,
    )
    trainer.train()
    trainer.save_model(output_dir)
    result = {"history": trainer.state.log_history, "levels": list(levels), "images": list(images)}
    result["prediction"] = predict(trainer)
    (output_dir / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
    # A process of gloo may abort while the interpreter ends, after all its work is done.
    os._exit(0)

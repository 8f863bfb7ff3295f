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

Every other row has no image. MODE `plain`, or `checkpointing`: with activation checkpointing, as the shipped recipes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import training_run

from dimple_hf.training import MetricsCallback, Phase, add_before_reporters

#: For plain gradient descent: Adam would blow up the rounding of gradients that are 0, such as those of key biases.
PHASES = {
    "causal": Phase(learning_rate=0.05, warmup_ratio=0, decay_ratio=0, max_grad_norm=1.0),
    "diffusion": Phase(learning_rate=0.02, warmup_ratio=0, decay_ratio=0, max_grad_norm=0.5),
}


def mixed_rows(num_rows: int = 16) -> list[dict[str, Any]]:
    """Rows with and without an image by turns."""
    rows = training_run.make_rows(num_rows)
    for row in rows[::2]:
        row["messages"][0]["content"] = row["messages"][0]["content"][1:]
        del row["images"]
    return rows


def main(output_dir: Path, mode: str) -> None:
    world_size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    trainer = training_run.make_trainer(
        output_dir,
        rows=mixed_rows(),
        phases=PHASES,
        optim="sgd",
        max_steps=4,
        switch_at=2,
        per_device_train_batch_size=2 // world_size,
        activation_checkpointing=mode == "checkpointing",
        ddp_backend="gloo" if world_size > 1 else None,
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
    if rank == 0:
        trainer.model.save_pretrained(output_dir)
    result = {"history": trainer.state.log_history, "levels": levels, "images": images}
    (output_dir / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2])
    # A process of gloo may abort while the interpreter ends, after all its work is done.
    os._exit(0)

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
"""Vision stage of the small forms model: teach the tower to read single cells in their context, then keep the tower.

Objective, in two parts: (1) cross-entropy of a linear head over what each merged image token shows: nothing, a digit
or a label; (2) the same, and as much for the label of the token's row, the number of that row, and the digit's
position counted from either end of its number. The heads are thrown away. The stage stands for the pretrained tower
that the 7B model starts from, whose tokens know their surroundings too; after part (1) alone they do not. The phases
that follow keep the tower frozen.
Command: `python examples/forms/train_vision.py` (the same command again resumes after an interruption).
Hardware: one CPU core, about half an hour. Writes `visual.safetensors`, whose names are those of `model.visual`.
"""

import argparse
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from forms_data import (
    CELL,
    CELL_TARGETS,
    GRID_COLUMNS,
    GRID_ROWS,
    cell_targets,
    draw_form,
    form_rng,
    render_form,
)
from forms_model import vision_config
from forms_training import TrainingRun
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from dimple_hf import DimpleImageProcessor
from dimple_hf.modeling.vision_dimple import DimpleVisionModel

FIRST_DIGIT, LAST_DIGIT = 1, 10
WARMUP_STEPS = 200
MEAN = torch.tensor(DimpleImageProcessor.image_mean)
STD = torch.tensor(DimpleImageProcessor.image_std)


class CellReader(nn.Module):
    """The tower of the small model and one linear head over its merged tokens for each target."""

    def __init__(self) -> None:
        super().__init__()
        config = vision_config()
        self.visual = DimpleVisionModel._from_config(config)
        heads = {name: nn.Linear(config.out_hidden_size, size) for name, size in CELL_TARGETS.items()}
        self.heads = nn.ModuleDict(heads)

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits `(batch * 30, classes)` of each target for all tokens, image by image in reading order."""
        num_patches = 4 * GRID_ROWS * GRID_COLUMNS
        grid = torch.tensor([[1, 2 * GRID_ROWS, 2 * GRID_COLUMNS]] * (len(pixel_values) // num_patches))
        features = self.visual(pixel_values, grid_thw=grid).pooler_output
        return {name: head(features) for name, head in self.heads.items()}


def patchify(images: np.ndarray) -> torch.Tensor:
    """What the image processor makes of images of this size, for a whole batch at once.

    Args:
        images (`np.ndarray`): `uint8 (batch, 140, 168, 3)`.

    Returns:
        `torch.Tensor`: `float32 (batch * 120, 1176)`: patches of 14x14 pixels, the 2x2 patches of one merged token
        side by side, each with its channels first and repeated for the two frames of a temporal patch.
    """
    patch = CELL // 2
    cells = torch.from_numpy(images).view(-1, GRID_ROWS, 2, patch, GRID_COLUMNS, 2, patch, 3)
    # Rearranged as bytes, normalized afterwards: moving floats around costs four times as much.
    patches = cells.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, 3, 1, patch, patch)
    patches = patches.float().div_(255).sub_(MEAN.view(3, 1, 1, 1)).div_(STD.view(3, 1, 1, 1))
    frames = patches.expand(-1, 3, 2, patch, patch)
    return frames.reshape(-1, 3 * 2 * patch * patch)


def batch_of(split: str, indices: range, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Patches `(batch * 120, 1176)` and targets `(batch * 30,)` of the forms with these indices."""
    images, targets = [], []
    for index in indices:
        rng = form_rng(split, index, seed)
        form = draw_form(split, rng)
        images.append(np.asarray(render_form(form, split, rng)))
        targets.append(cell_targets(form))
    stacked = {name: np.stack([target[name] for target in targets]) for name in CELL_TARGETS}
    return patchify(np.stack(images)), {name: torch.from_numpy(classes).flatten() for name, classes in stacked.items()}


@torch.inference_mode()
def evaluate(model: CellReader, num_images: int, batch_size: int = 50) -> dict[str, float]:
    """Share of right tokens on held-out images: of those that show a digit (`"digits"`), and of all by target."""
    model.eval()
    right: dict[str, list[torch.Tensor]] = {name: [] for name in ("digits", *CELL_TARGETS)}
    for start in range(0, num_images, batch_size):
        pixel_values, targets = batch_of("test", range(start, min(start + batch_size, num_images)), seed=0)
        for name, logits in model(pixel_values).items():
            right[name].append(logits.argmax(-1) == targets[name])
        is_digit = (targets["shows"] >= FIRST_DIGIT) & (targets["shows"] <= LAST_DIGIT)
        right["digits"].append(right["shows"][-1][is_digit])
    model.train()
    return {name: round(torch.cat(parts).float().mean().item(), 5) for name, parts in right.items()}


def rate_at(step: int, cell_steps: int, context_steps: int) -> float:
    """Factor of the learning rate: in each part a warm-up and a cosine to 0; the second part starts at half."""
    peak, steps = (1.0, cell_steps) if step < cell_steps else (0.5, context_steps)
    step = step if step < cell_steps else step - cell_steps
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


class Run(TrainingRun):
    """The training of the tower: part 1, then part 2."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        model = CellReader()
        super().__init__(
            model, torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
        )
        self.args = args

    def train_step(self, pixel_values: torch.Tensor, targets: dict[str, torch.Tensor]) -> float:
        """One update; returns the sum of the targets' mean cross-entropies over all tokens."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * rate_at(self.step, self.args.cell_steps, self.args.context_steps)
        # On CPUs the fused attention kernel is slow backwards at 120 positions; the plain one saves a quarter of a
        # step.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            logits = self.model(pixel_values)
        learned = ("shows",) if self.step < self.args.cell_steps else CELL_TARGETS
        loss = sum(nn.functional.cross_entropy(logits[name].float(), targets[name]) for name in learned)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return loss.item()


def train(args: argparse.Namespace) -> None:
    """Trains from the last checkpoint in `args.output`, or from nothing, and writes tower and held-out scores."""
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "state.pt"
    run = Run(args)
    if checkpoint.exists():
        run.load(checkpoint)

    # Form `i` is a pure function of `i`, so the step number alone says which images come next after a resume. They
    # are drawn in a second process, which costs a fifth of a step otherwise.
    steps = args.cell_steps + args.context_steps
    loader = DataLoader(
        [range(step * args.batch_size, (step + 1) * args.batch_size) for step in range(run.step, steps)],
        batch_size=None,
        collate_fn=partial(batch_of, "train", seed=args.seed),
        num_workers=1,
    )
    bar = tqdm(loader, initial=run.step, total=steps, desc="vision stage")
    for pixel_values, targets in bar:
        loss = run.train_step(pixel_values, targets)
        if run.step % args.save_steps == 0 or run.step == steps:
            run.save(checkpoint)
            scores = evaluate(run.model, args.eval_images // 10)
            bar.write(json.dumps({"step": run.step, "loss": round(loss, 4), **scores}))

    report = {"steps": steps, "seed": args.seed, "images": args.eval_images}
    report |= evaluate(run.model, args.eval_images)
    (args.output / "scores.json").write_text(json.dumps(report) + "\n")
    save_file(run.model.visual.state_dict(), args.output / "visual.safetensors")
    bar.write(json.dumps(report))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/forms/vision"))
    parser.add_argument("--cell-steps", type=int, default=4000, help="steps of part 1")
    parser.add_argument("--context-steps", type=int, default=1500, help="steps of part 2")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-steps", type=int, default=250)
    parser.add_argument("--eval-images", type=int, default=2000)
    parser.add_argument("--no-bf16", dest="bf16", action="store_false", help="stay in float32; slower")
    return parser.parse_args()


if __name__ == "__main__":
    train(parse_args())

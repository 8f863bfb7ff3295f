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
"""Second vision stage: teach a trained tower checkboxes, amounts, dates and what is no form, and nothing else.

Objective, in two parts added up: (1) cross-entropy of linear heads over what each merged token shows and belongs to,
as in `train_vision.py`, on plain forms, rich ones and images without a form, where it is nothing; (2) on plain forms,
the squared distance of the tower's features from those that it began with, so that what was trained on them still
reads them.
Command: `python examples/forms/extend_vision.py --model CHECKPOINT` (the same command resumes).
Hardware: one CPU core, about half an hour. Writes `visual.safetensors`, whose names are those of `model.visual`.
"""

import argparse
import copy
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from forms_data import CELL_TARGETS, GRID_COLUMNS, GRID_ROWS, cell_targets, draw_form, form_rng, render_form
from forms_other import draw_other
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm
from train_vision import CellReader, Run, patchify

from dimple_hf import DimpleForConditionalGeneration

WARMUP_STEPS = 100
DISTANCE_WEIGHT = 10.0
"""Of part 2, in which a distance of 1 is the standard deviation of the features."""
CONTENTS = ("plain", "rich", "plain", "rich", "other")
"""What the images of a batch show, in turn."""


def batch_of(split: str, indices: range, seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Patches `(batch * 120, 1176)` and targets `(batch * 30,)` of the images with these indices."""
    images, targets = [], []
    for index in indices:
        rng = form_rng(split, index, seed)
        content = CONTENTS[index % len(CONTENTS)]
        if content == "other":
            images.append(np.asarray(draw_other(split, rng)))
            targets.append({name: np.zeros((GRID_ROWS, GRID_COLUMNS), dtype=np.int64) for name in CELL_TARGETS})
        else:
            form = draw_form(split, rng, is_rich=content == "rich")
            images.append(np.asarray(render_form(form, split, rng)))
            targets.append(cell_targets(form))
    stacked = {name: np.stack([target[name] for target in targets]) for name in CELL_TARGETS}
    return patchify(np.stack(images)), {name: torch.from_numpy(classes).flatten() for name, classes in stacked.items()}


def is_plain(indices: range) -> torch.Tensor:
    """Which images show plain forms: bool `(batch,)`."""
    return torch.tensor([CONTENTS[index % len(CONTENTS)] == "plain" for index in indices])


def image_grid(num_images: int) -> torch.Tensor:
    """Patches of each image along time, height and width: int64 `(num_images, 3)`."""
    return torch.tensor([[1, 2 * GRID_ROWS, 2 * GRID_COLUMNS]] * num_images)


class ExtensionRun(Run):
    """The tower, the one that it began as, and the step it has reached."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args)
        trained = DimpleForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).visual
        self.model.visual.load_state_dict(trained.state_dict())
        self.first = copy.deepcopy(self.model.visual).requires_grad_(False)

    def train_step(self, pixel_values: torch.Tensor, targets: dict[str, torch.Tensor]) -> float:
        """One update; returns the distance of the features on plain forms."""
        progress = self.step / self.args.steps
        rate = min(1.0, (self.step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * rate
        batch = range(self.step * self.args.batch_size, (self.step + 1) * self.args.batch_size)
        plain = is_plain(batch)
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.bf16):
            features = self.model.visual(pixel_values, grid_thw=image_grid(len(batch))).pooler_output
            logits = {name: head(features) for name, head in self.model.heads.items()}
            with torch.no_grad():
                patches = pixel_values.view(len(batch), -1, pixel_values.shape[-1])[plain].flatten(0, 1)
                wanted = self.first(patches, grid_thw=image_grid(int(plain.sum()))).pooler_output.float()
        kept = features.float().view(len(batch), -1, features.shape[-1])[plain].flatten(0, 1)
        distance = (kept - wanted).square().mean() / wanted.var()
        # While the new heads know nothing, their gradients would only disturb the tower.
        loss = sum(nn.functional.cross_entropy(logits[name].float(), targets[name]) for name in CELL_TARGETS)
        self.optimizer.zero_grad()
        (DISTANCE_WEIGHT * distance + loss).backward()
        if self.step < WARMUP_STEPS:
            for weight in self.model.visual.parameters():
                weight.grad = None
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return distance.item()


@torch.inference_mode()
def evaluate(model: CellReader, num_images: int, batch_size: int = 50) -> dict[str, float]:
    """Share of held-out tokens whose content is read right, by what the image shows, and of digits and checkboxes."""
    model.eval()
    right: dict[str, list[torch.Tensor]] = {}
    for start in range(0, num_images, batch_size):
        batch = range(start, min(start + batch_size, num_images))
        pixel_values, targets = batch_of("test", batch, seed=0)
        shows = targets["shows"]
        is_right = model(pixel_values)["shows"].argmax(-1) == shows
        content = np.repeat([CONTENTS[index % len(CONTENTS)] for index in batch], GRID_ROWS * GRID_COLUMNS)
        parts = {name: torch.from_numpy(content == name) for name in set(CONTENTS)}
        parts["digits"] = (shows >= 1) & (shows <= 10)
        parts["checkboxes"] = shows >= CELL_TARGETS["shows"] - 2
        for name, part in parts.items():
            right.setdefault(name, []).append(is_right[part])
    model.train()
    return {name: round(torch.cat(parts).float().mean().item(), 5) for name, parts in sorted(right.items())}


def train(args: argparse.Namespace) -> None:
    """Trains from the last checkpoint in `args.output`, or from the model's tower, and writes tower and scores."""
    args.output.mkdir(parents=True, exist_ok=True)
    checkpoint = args.output / "state.pt"
    run = ExtensionRun(args)
    if checkpoint.exists():
        run.load(checkpoint)
    batches = [range(step * args.batch_size, (step + 1) * args.batch_size) for step in range(run.step, args.steps)]
    draw = partial(batch_of, "train", seed=args.seed)
    loader = DataLoader(batches, batch_size=None, collate_fn=draw, num_workers=1)
    bar = tqdm(loader, initial=run.step, total=args.steps, desc="second vision stage")
    for pixel_values, targets in bar:
        distance = run.train_step(pixel_values, targets)
        if run.step % args.save_steps == 0 or run.step == args.steps:
            run.save(checkpoint)
            bar.write(json.dumps({"step": run.step, "distance": round(distance, 5), **evaluate(run.model, 100)}))
    report = {"steps": args.steps, "seed": args.seed, "images": args.eval_images}
    report |= evaluate(run.model, args.eval_images)
    (args.output / "scores.json").write_text(json.dumps(report) + "\n")
    save_file(run.model.visual.state_dict(), args.output / "visual.safetensors")
    bar.write(json.dumps(report))


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint whose tower is taught")
    parser.add_argument("--output", type=Path, default=Path("runs/forms/vision_extended"))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-steps", type=int, default=100)
    parser.add_argument("--eval-images", type=int, default=1000)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16: faster where the CPU has it")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse_args())

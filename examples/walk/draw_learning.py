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
# dependencies = ["matplotlib"]
# ///
"""Draw how runs of `train_shapes.py` learn: loss, and share of held-out images that are answered exactly, over steps.

What it shows: `trainer_state.json`, which `Trainer.save_state` writes, holds all that was logged.

Command:
    python examples/walk/draw_learning.py runs/shapes-0 runs/shapes-1 runs/shapes-2 \
        --figure docs/figures/walk.svg --output benchmarks/results/walk.json

Hardware: any. Prints the last line of each run: exact answers, and seconds.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def read_run(directory: Path) -> dict[str, Any]:
    """
    Args:
        directory (`Path`): What a run of `train_shapes.py` wrote.

    Returns:
        `dict[str, Any]`: `loss` and `exact` as lists of `[step, value]`, the `switch` to diffusion in steps, and the
        run's `result`.
    """
    *entries, result = json.loads((directory / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {
        "loss": [[entry["step"], entry["loss"]] for entry in entries if "loss" in entry],
        "exact": [[entry["step"], entry["eval_exact_match"]] for entry in entries if "eval_exact_match" in entry],
        "result": result,
    }


def draw(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """Writes an SVG with a curve for each run in both panels."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (loss, exact) = pyplot.subplots(1, 2, figsize=(8, 2.8))
    for name, run in runs.items():
        loss.plot(*zip(*run["loss"], strict=True), linewidth=1.2, label=name)
        exact.plot(*zip(*run["exact"], strict=True), linewidth=1.2, label=name)
    loss.set(xlabel="step", ylabel="loss", yscale="log")
    exact.set(xlabel="step", ylabel="held-out answers exact", ylim=(-0.02, 1.02))
    exact.legend(frameon=False)
    for axes in (loss, exact):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Reads, draws and prints; returns the runs by the names of their directories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="outputs of train_shapes.py")
    parser.add_argument("--figure", type=Path, help="SVG file to write")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    runs = {directory.name: read_run(directory) for directory in args.runs}
    for name, run in runs.items():
        print(name, json.dumps(run["result"]))
    if args.figure is not None:
        draw(runs, args.figure)
    if args.output is not None:
        report = {"runs": runs}
        args.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return runs


if __name__ == "__main__":
    main()

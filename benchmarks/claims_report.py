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
"""Tables and figures of `claims.py`: its part of `docs/results.md`, and `docs/figures/claims-*.svg`.

The part stands between two comments, so that what people write around it stays.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt

BEGIN, END = "<!-- claims: written by benchmarks/claims.py -->", "<!-- claims: end -->"

TITLES = {
    "diffusion": "diffusion only",
    "autoregressive": "autoregressive only",
    "autoregressive_then_diffusion": "autoregressive, then diffusion",
    "diffusion_then_autoregressive": "diffusion, then autoregressive",
    "both_at_once": "both losses at once",
}
CAUSAL = ("autoregressive", "diffusion_then_autoregressive")
"""Ways that end in causal mode, and are decoded token by token by default."""
BY_DIFFUSION = tuple(way for way in TITLES if way not in CAUSAL)
COLORS = {
    "diffusion": "#c44e52",
    "autoregressive": "#8c8c8c",
    "autoregressive_then_diffusion": "#4c72b0",
    "diffusion_then_autoregressive": "#dd8452",
    "both_at_once": "#55a868",
}

PASSES_PER_STEP = {"both_at_once": 2}
"""Forward passes of a training step, where they are not one."""

Runs = Mapping[str, Mapping[str, Any]]


def values(runs: Runs, *path: str) -> list[float]:
    """The figure at this path of each seed, for the seeds that have it."""
    found: list[Any] = []
    for run in runs.values():
        figure: Any = run
        for key in path:
            figure = figure.get(key) if figure is not None else None
        if figure is not None:
            found.append(figure)
    return found


def mean(numbers: Iterable[float]) -> float:
    """Mean; not a number where there is none."""
    numbers = list(numbers)
    return sum(numbers) / len(numbers) if numbers else float("nan")


def spread(numbers: Iterable[float], write: Callable[[float], str]) -> str:
    """Mean and range of a figure over seeds, for example `"93.1 % (92.0 % to 94.5 %)"`."""
    numbers = list(numbers)
    if not numbers:
        return ""
    if min(numbers) == max(numbers):
        return write(numbers[0])
    return f"{write(mean(numbers))} ({write(min(numbers))} to {write(max(numbers))})"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def decimal(number: float) -> str:
    return f"{number:.2f}"


def table(head: list[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    title, *body = ("| " + " | ".join(row) + " |" for row in (head, *lines))
    return "\n".join([title, "|---|" + "---:|" * (len(head) - 1), *body])


def scores(runs: Runs, *path: str) -> list[str]:
    """Columns `fields`, `whole` and `passes` of what was measured at this path."""
    return [
        spread(values(runs, *path, name), write)
        for name, write in (("fields", percent), ("whole", percent), ("passes", decimal))
    ]


def ways_table(runs: Runs) -> str:
    """Both modes of each way that has been run, and by how many seeds."""
    lines = []
    for way, title in TITLES.items():
        num_seeds = sum(way in run for run in runs.values())
        decodings = ("token by token", "diffusion") if way in CAUSAL else ("diffusion", "token by token")
        for decoding, path in zip(decodings, ("default", "other_mode"), strict=True) if num_seeds else ():
            lines.append([title, decoding, str(num_seeds), *scores(runs, way, path)])
    return table(["training", "decoding", "seeds", "fields", "whole form", "passes per answer"], lines)


def keys_of(runs: Runs, *path: str) -> list[str]:
    """The keys at this path, over all seeds, in the order in which they come."""
    return list(dict.fromkeys(key for of_seed in values(runs, *path) for key in of_seed))


def length_table(runs: Runs) -> str:
    lengths = list(dict.fromkeys(key for way in BY_DIFFUSION for key in keys_of(runs, way, "length")))
    lines = [
        [TITLES[way], *(spread(values(runs, way, "length", key, "whole"), percent) for key in lengths)]
        for way in BY_DIFFUSION
        if any(way in run for run in runs.values())
    ]
    return table(["training", *(f"{key} positions" for key in lengths)], lines)


def decoding_table(runs: Runs, way: str) -> str:
    lines = []
    for name, title in (("threshold", "threshold {}"), ("fixed", "schedule, passes: {}")):
        lines += [[title.format(key), *scores(runs, way, name, key)] for key in keys_of(runs, way, name)]
    lines.append(["left to right", *scores(runs, way, "left_to_right")])
    return table(["decoding", "fields", "whole form", "passes per answer"], lines)


def draw_by_way(runs: Runs, file: Path, figure_name: str, score: str, labels: tuple[str, str]) -> None:
    """
    A curve for each way: the mean over seeds, and their range as a band, with its name at its end. Training is in
    forward passes.

    Args:
        runs (`Mapping`): Seed to way to figures.
        file (`Path`): Where to write.
        figure_name (`str`): `"curve"` or `"length"`.
        score (`str`): `"fields"` or `"whole"`.
        labels (`tuple[str, str]`): Names of the axes.
    """
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    ends, ticks = [], set[int]()
    for way, title in TITLES.items():
        keys = sorted(keys_of(runs, way, figure_name), key=int)
        if not keys:
            continue
        scale = PASSES_PER_STEP.get(way, 1) if figure_name == "curve" else 1
        x = [scale * int(key) for key in keys]
        ticks.update(x)
        shares = [[100 * share for share in values(runs, way, figure_name, key, score)] for key in keys]
        means = [mean(of_key) for of_key in shares]
        axes.plot(x, means, "o-", color=COLORS[way], markersize=3)
        axes.fill_between(
            x, list(map(min, shares)), list(map(max, shares)), color=COLORS[way], alpha=0.15, linewidth=0
        )
        ends.append((x[-1], means[-1], title, COLORS[way]))
    axes.set_xticks(sorted(ticks))
    finish(axes, *labels)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.5)
    name_ends(axes, ends)
    save(figure, file)


def draw_decodings(runs: Runs, file: Path) -> None:
    """Whole forms read right against passes, for two ways: a curve of thresholds and one of schedules."""
    figure, axes = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
    ends = []
    for way in ("diffusion", "autoregressive_then_diffusion"):
        for name, style, title in (("threshold", "o-", "thresholds"), ("fixed", "s--", "schedules")):
            keys = keys_of(runs, way, name)
            if not keys:
                continue
            x = [mean(values(runs, way, name, key, "passes")) for key in keys]
            y = [100 * mean(values(runs, way, name, key, "whole")) for key in keys]
            axes.plot(x, y, style, color=COLORS[way], markersize=4)
            ends.append((x[-1], y[-1], f"{TITLES[way]}: {title}", COLORS[way]))
    axes.set_xscale("log")
    finish(axes, "forward passes for an answer", "whole forms, %")
    axes.set_xlim(right=axes.get_xlim()[1] * 8)
    name_ends(axes, ends)
    save(figure, file)


def name_ends(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """
    Writes names beside the ends of curves, from the highest on, each low enough below the one before.

    Args:
        axes (`Axes`):
            Where the curves are.
        ends (`list[tuple[float, float, str, str]]`):
            x, y, name and color of each.
    """
    low, high = axes.get_ylim()
    gap = 0.06 * (high - low)
    last: dict[float, float] = {}  # of the names that begin at the same x
    for x, y, name, color in sorted(ends, key=lambda end: -end[1]):
        height = min(y, last.get(x, float("inf")) - gap)
        last[x] = height
        axes.annotate(f"  {name}", (x, height), color=color, fontsize="small", va="center")


def finish(axes: Any, x_label: str, y_label: str) -> None:
    """Names of the axes, a light grid, and no frame."""
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, file: Path) -> None:
    """Writes an SVG whose bytes depend on the drawing alone."""
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):
        figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def section(report: Mapping[str, Any]) -> str:
    """The generated part of the page."""
    runs, settings = report["runs"], report["settings"]
    parts = (
        BEGIN,
        f"`{report['command']}`. Each way takes {settings['steps']} steps of {settings['batch_size']} examples on "
        f"{settings['pool']} images, or half as many with both losses; {settings['rows']} held-out ones are asked "
        f"about. Seeds {', '.join(runs)}: mean, and the range in parentheses.",
        "### Ways to train",
        ways_table(runs),
        "![Fields read right along the training](figures/claims-curve.svg)",
        "### The length of the canvas",
        "Exact answers to forms whose answers fit 16 positions.",
        length_table(runs),
        "![Exact answers by length of the canvas](figures/claims-length.svg)",
        "### Thresholds and schedules",
        "Trained autoregressively, then by diffusion:",
        decoding_table(runs, "autoregressive_then_diffusion"),
        "Trained by diffusion only:",
        decoding_table(runs, "diffusion"),
        "![Whole forms read right, by forward passes](figures/claims-decoding.svg)",
        END,
    )
    return "\n\n".join(parts)


def write_report(report: Mapping[str, Any], docs: Path) -> None:
    """Puts tables into `results.md` and writes the figures.

    Args:
        report (`Mapping[str, Any]`): What `claims.py` wrote.
        docs (`Path`): Directory of `results.md`. What stands there outside of the two comments is kept.

    Raises:
        ValueError: If `results.md` has one of the two comments only.
    """
    page = docs / "results.md"
    text = page.read_text(encoding="utf-8") if page.is_file() else f"# Results\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text or END not in text:
        raise ValueError(f"{page} must hold the lines {BEGIN} and {END} (got a page without)")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    (docs / "figures").mkdir(parents=True, exist_ok=True)
    figures, runs = docs / "figures", report["runs"]
    draw_by_way(runs, figures / "claims-curve.svg", "curve", "fields", ("forward passes of training", "fields, %"))
    draw_by_way(
        runs, figures / "claims-length.svg", "length", "whole", ("positions of the canvas", "exact answers, %")
    )
    draw_decodings(runs, figures / "claims-decoding.svg")
    partial = page.with_suffix(".partial")
    partial.write_text(before + section(report) + after, encoding="utf-8")
    os.replace(partial, page)

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

The part stands between two comments, so that what people write around it stays. Imported by `claims.py`.
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
}
BY_DIFFUSION = ("diffusion", "autoregressive_then_diffusion")
COLORS = {"diffusion": "#c44e52", "autoregressive": "#8c8c8c", "autoregressive_then_diffusion": "#4c72b0"}

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


def milliseconds(number: float) -> str:
    return f"{number:.0f} ms"


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


def regimes_table(runs: Runs) -> str:
    lines = [
        [TITLES["diffusion"], "diffusion", *scores(runs, "diffusion", "default")],
        [TITLES["autoregressive"], "token by token", *scores(runs, "autoregressive", "default")],
        [TITLES["autoregressive"], "diffusion", *scores(runs, "autoregressive", "other_mode")],
        [
            TITLES["autoregressive_then_diffusion"],
            "diffusion",
            *scores(runs, "autoregressive_then_diffusion", "default"),
        ],
    ]
    return table(["training", "decoding", "fields", "whole form", "passes per answer"], lines)


def length_table(runs: Runs) -> str:
    lengths = list(dict.fromkeys(key for of_seed in values(runs, "diffusion", "length") for key in of_seed))
    lines = [
        [TITLES[regime], *(spread(values(runs, regime, "length", key, "whole"), percent) for key in lengths)]
        for regime in BY_DIFFUSION
    ]
    return table(["training", *(f"{key} positions" for key in lengths)], lines)


def decoding_table(runs: Runs, regime: str) -> str:
    lines = []
    for name, title in (("threshold", "threshold {}"), ("fixed", "schedule, passes: {}")):
        keys = list(dict.fromkeys(key for of_seed in values(runs, regime, name) for key in of_seed))
        lines += [[title.format(key), *scores(runs, regime, name, key)] for key in keys]
    lines.append(["left to right", *scores(runs, regime, "left_to_right")])
    return table(["decoding", "fields", "whole form", "passes per answer"], lines)


def cache_table(runs: Runs) -> str:
    regime = "autoregressive_then_diffusion"
    medians = {
        name: spread(values(runs, "comparison", name, "median"), decimal)
        for name in ("cache_off_over_on", "cache_off_over_on_one_by_one")
    }
    lines = [
        ["whole form, cache on", spread(values(runs, regime, "default", "whole"), percent)],
        ["whole form, cache off", spread(values(runs, regime, "cache_off", "whole"), percent)],
        ["time without cache over time with it, threshold 0.95", medians["cache_off_over_on"]],
        ["the same, one position a pass", medians["cache_off_over_on_one_by_one"]],
    ]
    return table(["", TITLES[regime]], lines)


def speed_table(runs: Runs) -> str:
    lines = [
        [
            title,
            *scores(runs, regime, *path)[1:],
            spread(values(runs, "comparison", "milliseconds", arm), milliseconds),
        ]
        for title, regime, path, arm in (
            ("token by token (autoregressive only)", "autoregressive", ("default",), "autoregressive"),
            ("diffusion, threshold 0.95", "autoregressive_then_diffusion", ("default",), "diffusion"),
            ("diffusion, one position a pass", "autoregressive_then_diffusion", ("fixed", "16"), "one_by_one"),
        )
    ]
    return table(["decoding", "whole form", "passes per answer", "time of an answer"], lines)


def draw_lengths(runs: Runs, file: Path) -> None:
    """Exact answers by the canvas's length: mean over seeds, and their range as a band."""
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for regime in BY_DIFFUSION:
        lengths = list(dict.fromkeys(key for of_seed in values(runs, regime, "length") for key in of_seed))
        shares = [[100 * share for share in values(runs, regime, "length", key, "whole")] for key in lengths]
        axes.plot(lengths, [mean(of_length) for of_length in shares], "o-", color=COLORS[regime], label=TITLES[regime])
        low, high = [min(s) for s in shares], [max(s) for s in shares]
        axes.fill_between(lengths, low, high, color=COLORS[regime], alpha=0.2, linewidth=0)
    reference = [100 * share for share in values(runs, "autoregressive", "short", "whole")]
    if reference:
        style = {"color": COLORS["autoregressive"], "linestyle": "--"}
        axes.axhline(mean(reference), label=f"{TITLES['autoregressive']}, token by token", **style)
    axes.set(xlabel="positions of the canvas", ylabel="exact answers, %", ylim=(0, 102))
    axes.legend()
    save(figure, file)


def draw_decodings(runs: Runs, file: Path) -> None:
    """Whole forms read right against passes: a curve of thresholds and one of schedules for each training."""
    figure, axes = plt.subplots(figsize=(5.5, 3.6), layout="constrained")
    kinds = (("threshold", "o-", "threshold"), ("fixed", "s--", "schedule"))
    for regime in BY_DIFFUSION:
        for name, style, title in kinds:
            keys = list(dict.fromkeys(key for of_seed in values(runs, regime, name) for key in of_seed))
            x = [mean(values(runs, regime, name, key, "passes")) for key in keys]
            y = [100 * mean(values(runs, regime, name, key, "whole")) for key in keys]
            label = f"{TITLES[regime]}: {title}"
            axes.plot(x, y, style, color=COLORS[regime], label=label, markersize=4)
        point = [mean(values(runs, regime, "left_to_right", name)) for name in ("passes", "whole")]
        label = f"{TITLES[regime]}: left to right"
        axes.plot(point[0], 100 * point[1], "^", color=COLORS[regime], label=label)
    point = [mean(values(runs, "autoregressive", "default", name)) for name in ("passes", "whole")]
    label = f"{TITLES['autoregressive']}: token by token"
    axes.plot(point[0], 100 * point[1], "*", color=COLORS["autoregressive"], label=label, markersize=9)
    axes.set(xlabel="passes of the model for an answer", ylabel="whole forms, %", ylim=(0, 102))
    axes.legend(fontsize="x-small")
    save(figure, file)


def save(figure: Any, file: Path) -> None:
    """Writes an SVG whose bytes depend on the drawing alone."""
    with matplotlib.rc_context({"svg.hashsalt": file.stem}):
        figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def section(report: Mapping[str, Any]) -> str:
    """The generated part of the page."""
    runs, settings = report["runs"], report["settings"]
    time_ratio = spread(values(runs, "comparison", "autoregressive_over_diffusion", "median"), decimal)
    parts = (
        BEGIN,
        f"`{report['command']}`. Each way takes {settings['steps']} steps of {settings['batch_size']} rows on "
        f"{settings['pool']} images; {settings['rows']} held-out ones are asked about. Seeds {', '.join(runs)}: "
        "mean, and the range in parentheses.",
        "### Three ways to train",
        regimes_table(runs),
        "### The length of the canvas",
        "Exact answers to forms of one row, whose answers fit 8 positions.",
        length_table(runs),
        "![Exact answers by length of the canvas](figures/claims-length.svg)",
        "### Thresholds and schedules",
        "Trained autoregressively, then by diffusion:",
        decoding_table(runs, "autoregressive_then_diffusion"),
        "Trained by diffusion only:",
        decoding_table(runs, "diffusion"),
        "![Whole forms read right, by passes of the model](figures/claims-decoding.svg)",
        "### The prompt cache",
        cache_table(runs),
        "### Token by token against diffusion",
        "Processor time of one thread, one form at a time, image included.",
        speed_table(runs),
        f"Time token by token over time by diffusion with threshold 0.95: {time_ratio}.",
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
    draw_lengths(report["runs"], docs / "figures" / "claims-length.svg")
    draw_decodings(report["runs"], docs / "figures" / "claims-decoding.svg")
    partial = page.with_suffix(".partial")
    partial.write_text(before + section(report) + after, encoding="utf-8")
    os.replace(partial, page)

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
"""The results of the decoding benchmark as two Markdown tables and a figure.

Pure functions of the report that `decode` writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def format_step_table(report: Mapping[str, Any]) -> str:
    """What a step of each arm costs, a line for each arm of each case."""
    lines = [
        "| batch | answer | arm | passes | ms per step | plain / arm | arm / bare | first pass, ms | tokens/s | MiB |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in report["results"]:
        for name, arm in case["arms"].items():
            speed_up = f"{arm['speed_up']:.2f}" if "speed_up" in arm else ""
            over_bare = f"{arm['over_bare']['median']:.2f}" if "over_bare" in arm else ""
            cells = [
                case["batch_size"],
                case["answer_length"],
                f"`{name}`",
                arm["num_passes"],
                f"{arm['step_ms']:.1f}",
            ]
            cells += [speed_up, over_bare]
            if name.startswith("bare"):  # no decoding: it has a step and nothing else
                cells += ["", "", ""]
            else:
                memory = "" if arm["peak_memory_mib"] is None else f"{arm['peak_memory_mib']:.0f}"
                cells += [f"{arm['first_pass_ms']:.0f}", f"{arm['tokens_per_second']:.1f}", memory]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def format_floor_table(report: Mapping[str, Any]) -> str:
    """Each step over its floor: a line for each case, a column for each arm that has one."""
    names = [name for name, arm in report["results"][0]["arms"].items() if "floor_ms" in arm]
    lines = [
        f"| batch | answer | {' | '.join(f'`{name}`' for name in names)} |",
        f"|---:|---:|{'---:|' * len(names)}",
    ]
    for case in report["results"]:
        ratios = [case["arms"][name]["step_ms"] / case["arms"][name]["floor_ms"] for name in names]
        cells = [str(case["batch_size"]), str(case["answer_length"]), *(f"{ratio:.2f}" for ratio in ratios)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_figure(report: Mapping[str, Any], path: Path) -> None:
    """Milliseconds of a step, and the same over its floor, against the length of the answer; a column a batch size."""
    import matplotlib  # only this function needs it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    batch_sizes = sorted({case["batch_size"] for case in report["results"]})
    figure, rows = pyplot.subplots(
        2, len(batch_sizes), figsize=(4 * len(batch_sizes) + 1, 7), layout="constrained", sharex=True, squeeze=False
    )
    for column, batch_size in enumerate(batch_sizes):
        cases = [case for case in report["results"] if case["batch_size"] == batch_size]
        cases.sort(key=lambda case: case["answer_length"])
        lengths = [case["answer_length"] for case in cases]
        for name in cases[0]["arms"]:
            arms = [case["arms"][name] for case in cases]
            if "floor_ms" not in arms[0]:
                continue
            style = {"marker": "o", "linestyle": "--" if name.startswith("plain") else "-", "label": name}
            rows[0][column].plot(lengths, [arm["step_ms"] for arm in arms], **style)
            rows[1][column].plot(lengths, [arm["step_ms"] / arm["floor_ms"] for arm in arms], **style)
        rows[0][column].set_title(f"batch {batch_size}")
        rows[0][column].set_yscale("log")
        rows[1][column].set_xlabel("answer tokens")
        for axes in (rows[0][column], rows[1][column]):
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [str(length) for length in lengths])
            axes.grid(alpha=0.3)
    rows[0][0].set_ylabel("ms per step")
    rows[1][0].set_ylabel("step over its floor")
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)

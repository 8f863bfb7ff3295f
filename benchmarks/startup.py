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
"""What it costs to start `dimple-hf`: processor seconds of whole processes, next to importing the libraries alone.

Arms take turns, round by round: the parser (`--help`), one answer of the small model (`generate`), and the import of
torch and transformers' Auto classes, which nobody who asks a model can do without.

Command:
    python benchmarks/startup.py --output benchmarks/results/startup-cpu.json

Hardware: any CPU. Processor time, so that a busy machine changes little.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

SCRIPT = "import sys; from dimple_hf_cli import main; sys.exit(main())"
LIBRARIES = "import torch; from transformers import AutoModelForImageTextToText, AutoProcessor"
ARMS = {
    "help": ["-c", SCRIPT, "--help"],
    "generate": ["-c", SCRIPT, "generate"],
    "libraries": ["-c", LIBRARIES],
}


def processor_seconds(arguments: list[str]) -> float:
    """User and system time of one process and its children."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main(arguments: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: %(default)s)")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(arguments)
    rounds = [{name: processor_seconds(command) for name, command in ARMS.items()} for _ in range(args.repeats)]
    report = {
        "benchmark": "startup",
        "repeats": args.repeats,
        "processor_seconds": {name: statistics.median(entry[name] for entry in rounds) for name in ARMS},
        "generate_over_libraries": statistics.median(entry["generate"] / entry["libraries"] for entry in rounds),
    }
    print(json.dumps(report, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    main()

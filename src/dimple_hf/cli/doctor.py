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
"""Check this machine (versions, devices, what will be fast) and, with --model, a checkpoint, without loading its
weights. Exit status 1 if something will not work."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from ..hub.findings import Finding

HELP = "check this machine, and a checkpoint"

STATUS_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments to `parser`."""
    parser.add_argument("--model", help="directory or Hub id of a checkpoint to check, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Runs the command and prints what it found."""
    from rich.console import Console
    from rich.text import Text

    from ..hub.doctor import check_checkpoint
    from ..hub.environment import check_environment, describe_environment

    environment = describe_environment()
    findings = {"environment": check_environment()}
    if args.model is not None:
        findings["model"] = check_checkpoint(args.model)
    healthy = all(finding.status != "problem" for group in findings.values() for finding in group)
    if args.json:
        report = {name: [dataclasses.asdict(finding) for finding in group] for name, group in findings.items()}
        print(json.dumps({"healthy": healthy, **environment, "findings": report}, ensure_ascii=False))
    else:
        console = Console()
        versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
        console.print(Text(versions), soft_wrap=True)
        for device in environment["devices"]:
            memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
            console.print(Text(f"{device['device']}: {device['name']}{memory}"), soft_wrap=True)
        console.print(findings_table("this machine", findings["environment"]))
        if args.model is not None:
            console.print(findings_table(args.model, findings["model"]))
    return 0 if healthy else 1


def findings_table(title: str, findings: "list[Finding]") -> "Table":
    """
    Args:
        title (`str`):
            What was checked.
        findings (`list[Finding]`):
            What was found.

    Returns:
        `rich.table.Table`: A row for each.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=None, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(
            Text(finding.status, style=STATUS_STYLES[finding.status]), Text(finding.subject), Text(finding.message)
        )
    return table

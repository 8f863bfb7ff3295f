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
"""Tests of the extras of pyproject.toml: each installs with constraints.txt, and all together break nothing.

Everything is pinned, so what resolves for all extras at once resolves for each of them: CI asks pip for that, which
installs nothing (`packaging`). The real installations, one for each extra and one for all, take many minutes (`slow`).
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from environments import CONSTRAINTS, make_environment, pip_install, site_packages
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_packaging import GPU_LIBRARIES, build_wheel, pinned_versions

from dimple_hf.cli.main import COMMANDS

EXTRAS = sorted(importlib.metadata.metadata("dimple_hf").get_all("Provides-Extra") or [])

#: Imported where an extra is installed: libraries that have to fit torch or transformers.
IMPORTS = {"eval": "lmms_eval.evaluator", "quantize": "bitsandbytes, torchao.quantization"}

COMMAND_HELP = """
import sys
from dimple_hf.cli.main import main
try:
    main([*sys.argv[1:], "--help"])
except SystemExit as end:
    sys.exit(end.code)
"""


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    return build_wheel(repo_root, tmp_path_factory.mktemp("wheel"))


@pytest.mark.packaging
@pytest.mark.timeout(900)
def test_all_extras_resolve_together_to_what_is_pinned(wheel: Path, repo_root: Path, tmp_path: Path) -> None:
    """An extra that contradicts another, or a pin, cannot be installed; one without a pin is another one tomorrow."""
    report = tmp_path / "report.json"
    options = ["--quiet", "--dry-run", "--ignore-installed", "--report", report, "--constraint", CONSTRAINTS]
    requirement = f"{wheel}[{','.join(EXTRAS)}]"
    subprocess.run([sys.executable, "-m", "pip", "install", *options, requirement], check=True, cwd=tmp_path)
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    resolved = {canonicalize_name(each["name"]): each["version"].split("+")[0] for each in found}
    resolved.pop("dimple-hf")
    pins = pinned_versions(repo_root)
    assert {name: pins.get(name) for name in resolved if not name.startswith(GPU_LIBRARIES)} == {
        name: version for name, version in resolved.items() if not name.startswith(GPU_LIBRARIES)
    }
    # control: what every extra asks for is among it
    direct = {canonicalize_name(Requirement(line).name) for line in importlib.metadata.requires("dimple_hf") or []}
    assert direct - {"dimple-hf"} <= set(resolved)
    assert len(EXTRAS) >= 6


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that has the package without extras."""
    python = make_environment(tmp_path_factory.mktemp("core") / "venv")
    pip_install(python, wheel)
    return python


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("extras", [*([extra] for extra in EXTRAS), EXTRAS], ids=[*EXTRAS, "all"])
def test_extras_install_and_break_nothing(extras: list[str], core: Path, tmp_path: Path) -> None:
    """After a real installation nothing contradicts, the package is imported, and every command says what it does."""
    python = make_environment(tmp_path / "venv", below=site_packages(core))
    pip_install(python, f"dimple_hf[{','.join(extras)}]")
    subprocess.run([python, "-m", "pip", "check"], check=True)
    if "eval" in extras and torch.version.cuda is None:
        # As docs/evaluation.md says: PyPI's torchvision for Linux needs a torch with CUDA.
        subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], check=True)
    modules = ", ".join(["dimple_hf", *(IMPORTS[extra] for extra in extras if extra in IMPORTS)])
    subprocess.run([python, "-I", "-c", f"import {modules}"], check=True, cwd=tmp_path)
    for command in ["", *COMMANDS]:
        subprocess.run([python, "-I", "-c", COMMAND_HELP, *command.split()], check=True, cwd=tmp_path)
    # control: what no extra brings is not there
    assert subprocess.run([python, "-I", "-c", "import tensorflow"], cwd=tmp_path, capture_output=True).returncode != 0

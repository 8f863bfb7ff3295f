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
"""Virtual environments for the tests that install something."""

import os
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def site_packages(python: Path) -> Path:
    """The folder that an environment's interpreter imports installed packages from."""
    (folder,) = python.parents[1].glob("lib/python*/site-packages")
    return folder


def make_environment(directory: Path, below: Path | None = None) -> Path:
    """
    Args:
        directory (`Path`):
            Where to make it.
        below (`Path`, *optional*):
            `site-packages` of another environment, all of whose packages this one has, too. What is installed here is
            written here alone.

    Returns:
        `Path`: Its interpreter.
    """
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    python = directory / "bin" / "python"
    if below is not None:
        line = f"import site; site.addsitedir({str(below)!r})\n"  # unlike a plain path, it reads the .pth files there
        (site_packages(python) / "below.pth").write_text(line)
    return python


def pip_install(python: Path, *arguments: str | Path) -> None:
    """Installs into an environment, under the constraints."""
    command = [python, "-m", "pip", "install", "--quiet", "--constraint", CONSTRAINTS, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, cwd=python.parent, env=environment)

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
"""`docs/architecture.md` against the imports of the package: folders, their order, and the files of each."""

import ast
import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def page(repo_root: Path) -> str:
    return (repo_root / "docs" / "architecture.md").read_text(encoding="utf-8")


def levels(page: str) -> dict[str, int]:
    """Folder -> its line in the page's first block, counted from the bottom."""
    (block,) = re.findall(r"^```text levels\n(.*?)^```", page, re.S | re.M)
    lines = [line.split() for line in block.splitlines()]
    return {folder: len(lines) - number for number, line in enumerate(lines) for folder in line}


def folder_imports(package: Path) -> set[tuple[str, str]]:
    """Pairs of folders of the package of which the first imports the second, also inside functions."""
    found = set()
    for path in package.glob("*/**/*.py"):
        parts = path.relative_to(package).parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level > 0:
                base = parts[: len(parts) - node.level]
                target = [*base, *(node.module or "").split(".")] if node.module else list(base)
                names = [target[0]] if target else [alias.name for alias in node.names]
                found |= {(parts[0], name) for name in names if (package / name).is_dir()}
    return {(source, target) for source, target in found if source != target}


def test_folders_import_only_what_stands_below_them(page: str, repo_root: Path) -> None:
    package = repo_root / "src" / "dimple_hf"
    order, imports = levels(page), folder_imports(package)
    upward = sorted(f"{source} -> {target}" for source, target in imports if order[source] <= order[target])
    assert not upward
    assert {("cli", "batch"), ("training", "data"), ("data", "processing")} <= imports  # control: imports are found


def test_page_names_every_folder_and_file(page: str, repo_root: Path) -> None:
    """Each folder has a table of its files; nothing else is in it."""
    package = repo_root / "src" / "dimple_hf"
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert set(levels(page)) == folders
    for folder in folders - {"checkpoints"}:
        files = {path.stem for path in (package / folder).glob("*.py")} - {"__init__"}
        (section,) = re.findall(rf"^### `{folder}/`.*?\n(.*?)(?=^##|\Z)", page, re.S | re.M)
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == files, folder

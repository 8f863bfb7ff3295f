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
"""The documentation stays true: what it names exists, what it links to is there, its commands are real."""

import importlib
import re
from pathlib import Path

import pytest


def documents(root: Path) -> list[Path]:
    return [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("benchmarks/*.md")]


def resolve(dotted: str) -> object:
    """The object behind a dotted name: a module, then attributes."""
    module_name, _, attribute = dotted.rpartition(".")
    return getattr(importlib.import_module(module_name), attribute)


def test_paper_map_names_functions_and_tests_that_exist(repo_root: Path) -> None:
    """Each row ends in a function that can be imported and a test that pytest would find."""
    rows = re.findall(
        r"^\|.*\| `(dimple_hf[\w.]+)` \| `([\w/.:]+)` \|$", (repo_root / "docs/paper_map.md").read_text(), re.M
    )
    assert len(rows) > 15
    for function, test in rows:
        assert resolve(function) is not None
        path, _, name = test.partition("::")
        source = (repo_root / path).read_text()
        assert not name or f"def {name}(" in source, test


def test_paper_map_check_notices_a_name_that_is_gone() -> None:
    """Control: a renamed function fails the check above."""
    with pytest.raises(AttributeError):
        resolve("dimple_hf.modeling.unmasking_dimple.no_such_function")


def test_links_between_documents_lead_to_files(repo_root: Path) -> None:
    """A relative link that leads nowhere is found here, not by a reader."""
    for document in documents(repo_root):
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if not target.startswith(("http", "mailto:")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_make_targets_in_documents_exist(repo_root: Path) -> None:
    """Every `make TARGET` that a document names is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z]+):", (repo_root / "Makefile").read_text(), re.M))
    for document in documents(repo_root):
        named = set(re.findall(r"`make ([a-z]+)", document.read_text())) | set(
            re.findall(r"^make ([a-z]+)", document.read_text(), re.M)
        )
        assert named <= targets, f"{document.name}: {named - targets}"
    assert "demo" in targets


def test_architecture_names_every_module_of_modeling_and_processing(repo_root: Path) -> None:
    """A new file has its place in the picture, or the picture is no longer true."""
    text = (repo_root / "docs/architecture.md").read_text()
    folders = [repo_root / "src/dimple_hf" / name for name in ("modeling", "processing")]
    modules = [path.stem for folder in folders for path in folder.glob("*_dimple.py")]
    assert len(modules) > 10
    assert [name for name in modules if name not in text] == []
    assert "no_such_dimple" not in text  # control

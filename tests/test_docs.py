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
    """The object after a dotted name: a module, then attributes."""
    module_name, _, attribute = dotted.rpartition(".")
    return getattr(importlib.import_module(module_name), attribute)


def paper_map_rows(root: Path) -> list[list[str]]:
    """Cells of all rows of all tables but their heads."""
    lines = [line for line in (root / "docs/paper_map.md").read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in rows if row[0] != "statement"]


def test_paper_map_names_functions_and_tests_that_exist(repo_root: Path) -> None:
    """Each row ends in a function that can be imported and a test that pytest would find; what the paper found, in a
    benchmark and its figures."""
    rows = paper_map_rows(repo_root)
    assert len(rows) > 40
    for statement, function, evidence in rows:
        path, _, name = evidence.strip("`").partition("::")
        assert (repo_root / path).is_file(), statement
        if path.startswith("benchmarks/"):
            assert (repo_root / function.strip("`")).is_file(), statement
            continue
        assert path.startswith("tests/"), statement
        assert resolve(function.strip("`")) is not None
        assert not name or f"def {name}(" in (repo_root / path).read_text(), evidence


def test_paper_map_check_notices_a_name_that_is_gone() -> None:
    """Control: a renamed function fails the check above."""
    with pytest.raises(AttributeError):
        resolve("dimple_hf.modeling.sampling_dimple.no_such_function")


#: Page -> the test that runs what it shows.
RUN_BY = {
    "README.md": "tests/test_readme.py",
    "docs/batch.md": "tests/batch/test_batch_page.py",
    "docs/commands.md": "tests/cli/test_commands_page.py",
    "docs/custom_rules.md": "tests/modeling/test_custom_rules.py",
    "docs/decisions.md": "tests/decisions/test_decisions_page.py",
    "docs/decoding.md": "tests/test_readme.py",
    "docs/evaluation.md": "tests/integrations/test_lmms_eval.py",
    "docs/demo.md": "tests/demo/test_demo.py",
    "docs/fine_tuning.md": "tests/training/test_fine_tuning_page.py",
    "docs/hub.md": "tests/hub/test_push_and_pull.py",
    "docs/migration.md": "tests/test_migration.py",
    "docs/replicas.md": "tests/serve/test_serving_ray.py",
    "docs/serving.md": "tests/serve/test_serve.py",
    "docs/start.md": "tests/test_start.py",
    "docs/structured_extraction.md": "tests/test_readme.py",
    "docs/walk.md": "tests/hub/test_walk.py",
    # Its commands take hours; test_decode.py, test_train_benchmark.py, test_claims.py and test_structure.py run them
    # at toy size.
    "benchmarks/README.md": "tests/benchmarks/test_decode.py",
}


def test_every_page_with_snippets_is_run_by_a_test(repo_root: Path) -> None:
    """A page that nobody runs is wrong one day."""
    with_snippets = {
        path.relative_to(repo_root).as_posix()
        for path in documents(repo_root)
        if re.search(r"^```(python|bash)$", path.read_text(), re.M)
    }
    assert with_snippets == set(RUN_BY)
    for page, test in RUN_BY.items():
        assert page.startswith("benchmarks/") or Path(page).name in (repo_root / test).read_text(), page


def test_every_example_is_run_by_a_test(repo_root: Path) -> None:
    """Each script of `examples/` by its file name, in a test or in a page that a test runs."""
    texts = [path.read_text() for path in (repo_root / "tests").rglob("*.py")]
    texts += [(repo_root / page).read_text() for page in RUN_BY if page.startswith("docs/walk")]
    for example in (repo_root / "examples").rglob("*.py"):
        assert any(re.search(rf"\b{example.stem}\b", text) for text in texts), example
    assert not any("no_such_example" in text for text in texts if "def test_every_example" not in text)  # control


def test_index_of_the_documentation_names_every_page(repo_root: Path) -> None:
    """A page that is not in it is not found."""
    pages = {path.name for path in repo_root.glob("docs/*.md")} - {"README.md"}
    index = (repo_root / "docs" / "README.md").read_text()
    assert set(re.findall(r"^\| \[(\w+\.md)\]", index, re.M)) == pages


def test_links_between_documents_lead_to_files(repo_root: Path) -> None:
    """A relative link that leads nowhere is found here, not by a reader."""
    for document in documents(repo_root):
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text()):
            if not target.startswith(("http", "mailto:")):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_make_targets_in_documents_exist(repo_root: Path) -> None:
    """Every `make TARGET` that a document names is a target of the Makefile."""
    targets = set(re.findall(r"^([a-z-]+):", (repo_root / "Makefile").read_text(), re.M))
    for document in documents(repo_root):
        named = set(re.findall(r"`make ([a-z-]+)", document.read_text())) | set(
            re.findall(r"^make ([a-z-]+)", document.read_text(), re.M)
        )
        assert named <= targets, f"{document.name}: {named - targets}"
    assert "demo" in targets


def test_architecture_names_every_module_of_modeling_and_processing(repo_root: Path) -> None:
    """A new file has its position in the image, or the image is no longer true."""
    text = (repo_root / "docs/architecture.md").read_text()
    folders = [repo_root / "src/dimple_hf" / name for name in ("modeling", "processing")]
    modules = [path.stem for folder in folders for path in folder.glob("*_dimple.py")]
    assert len(modules) > 10
    assert [name for name in modules if name not in text] == []
    assert "no_such_dimple" not in text  # control

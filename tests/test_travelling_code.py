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
"""Files of `modeling/` and `processing/` can travel to the Hub: rules T1 to T7 of CONTRIBUTING.md, on their source.

`save_pretrained` finds the files to copy with a text search, not with Python, and says nothing when it misses one. So
each rule compares what that search sees (transformers' own `get_relative_imports` and `get_imports`) with what Python
will execute.
"""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_imports, get_relative_imports

FOLDERS = ("modeling", "processing")
ALWAYS_INSTALLED = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", "safetensors"}
CONFIG_CLASSES = {"DimpleConfig", "DimpleVisionConfig"}


def file_faults(path: Path) -> set[str]:
    """The rules that one travelling file breaks."""
    source = path.read_text(encoding="utf-8")
    siblings = {sibling.stem for sibling in path.parent.glob("*.py")} - {"__init__"}
    faults, seen_by_python = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            module = node.module or ""
            seen_by_python.add(module)
            if node.level > 1 or not module or "." in module:
                faults.add("T2 only siblings are imported, each by its own name")
            elif module not in siblings or "\\\n" in (ast.get_source_segment(source, node) or ""):
                faults.add("T1 siblings are imported as `from .name import ...`, without a backslash")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
            if any(name.split(".")[0] == "dimple_hf" for name in names):
                faults.add("T2 the package is not imported by its own name")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.endswith(("import_module", "__import__")):
                faults.add("T2 no dynamic imports")
            if called == "isinstance" and CONFIG_CLASSES & set(re.findall(r"\w+", ast.unparse(node.args[1]))):
                faults.add("T7 no isinstance on config classes")
    if set(get_relative_imports(path)) != seen_by_python:
        faults.add("T6 the copier sees the imports that Python sees")
    if set(get_imports(path)) - ALWAYS_INSTALLED - set(sys.stdlib_module_names) - {"dimple_hf"}:
        faults.add("T5 optional libraries are imported after `try` or `is_*_available()`")
    return faults


def package_faults(package: Path) -> dict[str, set[str]]:
    """The rules broken in a package with the two travelling folders, by path inside the package."""
    found: dict[str, set[str]] = {}
    paths = [path for folder in FOLDERS for path in (package / folder).rglob("*") if "__pycache__" not in path.parts]
    base_names = Counter(path.name for path in paths)
    for path in paths:
        if path.name == "__init__.py":
            continue
        if path.suffix != ".py":
            faults = {"T7 only .py files travel"}
        else:
            faults = file_faults(path)
            if base_names[path.name] > 1 or not path.stem.endswith("_dimple"):
                faults.add("T3 base names are unique and end in `_dimple.py`")
        if faults:
            found[path.relative_to(package).as_posix()] = faults
    return found


def write_package(package: Path, files: dict[str, str]) -> Path:
    """Writes files (path inside the package -> source) next to one good file in each travelling folder."""
    for name, source in ({"modeling/one_dimple.py": "", "processing/two_dimple.py": ""} | files).items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return package


def test_travelling_files_of_the_package_break_no_rule(repo_root: Path) -> None:
    """A broken rule would only show on a user's machine, after a push."""
    package = repo_root / "src" / "dimple_hf"
    checked = {path.name for folder in FOLDERS for path in (package / folder).glob("*.py")}
    # control: the files are where this test looks for them
    assert {"configuration_dimple.py", "modeling_dimple.py", "processing_dimple.py"} <= checked
    assert package_faults(package) == {}


def test_travelling_files_with_allowed_imports_break_no_rule(tmp_path: Path) -> None:
    """The rules leave room for everything that the Hub's loader can follow."""
    source = '''"""A docstring may say so:
    >>> from dimple_hf import DimpleConfig
    """
import math
import numpy as np
from transformers.utils import is_peft_available
from .one_dimple import first
from .one_dimple import (
    second,
    third,
)
if is_peft_available():
    import peft
try:
    import matplotlib
except ImportError:
    matplotlib = None
def lazily():
    from .one_dimple import fourth
'''
    package = write_package(tmp_path, {"modeling/good_dimple.py": source, "modeling/__init__.py": "from .x import y"})
    assert package_faults(package) == {}


@pytest.mark.parametrize(
    ("name", "source", "rules"),
    [
        ("modeling/bad_dimple.py", "from .ghost_dimple import x", {"T1"}),
        ("modeling/bad_dimple.py", "from .one_dimple \\\n    import x", {"T1", "T6"}),
        ("modeling/bad_dimple.py", "from ..processing.two_dimple import x", {"T2", "T6"}),
        ("modeling/bad_dimple.py", "from .. import processing", {"T2", "T6"}),
        ("modeling/bad_dimple.py", "from . import one_dimple", {"T2", "T6"}),
        ("modeling/bad_dimple.py", "from .sub.leaf import x", {"T2"}),
        ("modeling/bad_dimple.py", "from dimple_hf.modeling.one_dimple import x", {"T2"}),
        ("processing/bad_dimple.py", "def f():\n    import dimple_hf.modeling", {"T2"}),
        ("modeling/bad_dimple.py", "import importlib\nimportlib.import_module('.one_dimple', __package__)", {"T2"}),
        ("processing/bad.py", "", {"T3"}),
        ("processing/one_dimple.py", "", {"T3"}),
        ("processing/bad_dimple.py", "from .one_dimple import x", {"T1"}),  # and T4: it is in the other folder
        ("modeling/bad_dimple.py", "import peft", {"T5"}),
        ("modeling/bad_dimple.py", "def f():\n    import peft", {"T5"}),
        (
            "modeling/bad_dimple.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import peft",
            {"T5"},
        ),
        ("modeling/bad_dimple.py", '"""Use it so:\n    from .ghost import x\n"""', {"T6"}),
        ("modeling/bad_dimple.py", "isinstance(config, (dict, DimpleVisionConfig))", {"T7"}),
        ("processing/template.jinja", "", {"T7"}),
    ],
)
def test_travelling_file_that_breaks_a_rule_is_refused(
    name: str, source: str, rules: set[str], tmp_path: Path
) -> None:
    """Control: each rule refuses a file that breaks it, and names itself."""
    found = package_faults(write_package(tmp_path, {name: source}))
    assert {fault[:2] for fault in found[name]} == rules

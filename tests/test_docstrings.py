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
"""Every public name is documented: in a docstring, with all its arguments, and in `docs/api.md`.

A method that only overrides one of a library's may have that one's docstring.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dimple_hf

MODULES = sorted(module.name for module in pkgutil.walk_packages(dimple_hf.__path__, "dimple_hf."))

#: Where users import from.
PACKAGES = (
    "dimple_hf",
    "dimple_hf.modeling",
    "dimple_hf.processing",
    "dimple_hf.decisions",
    "dimple_hf.training",
    "dimple_hf.hub",
)


def exported() -> dict[str, Any]:
    """Dotted name -> object, of all that the packages' `__all__` name."""
    modules = [importlib.import_module(name) for name in PACKAGES]
    return {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}


def members(owner: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines itself; neither its parents' nor a dataclass's fields."""
    fields = getattr(owner, "__annotations__", {})
    for name, value in vars(owner).items():
        is_member = isinstance(value, (property, classmethod, staticmethod)) or callable(value)
        is_member = is_member and name not in fields
        if is_member and not name.startswith("_") and not any(hasattr(parent, name) for parent in owner.__mro__[1:]):
            yield name, getattr(owner, name)


def undocumented(module_name: str) -> list[str]:
    """Public names of a module that have no docstring."""
    module = importlib.import_module(module_name)
    found = [] if module.__doc__ else [module_name]
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module_name:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            # A dataclass without a docstring gets its signature for one.
            if not value.__doc__ or value.__doc__.startswith(f"{name}("):
                found.append(name)
        if inspect.isclass(value):
            found += [f"{name}.{member}" for member, function in members(value) if not function.__doc__]
    return found


def undocumented_in_source(module_name: str) -> list[str]:
    """As `undocumented`, of a module that cannot be imported: itself, its public functions and its classes."""
    spec = importlib.util.find_spec(module_name)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = [] if ast.get_docstring(tree) else [module_name]
    definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return found + [node.name for node in definitions if not node.name.startswith("_") and not ast.get_docstring(node)]


def unmentioned_arguments(function: Callable[..., Any], documentation: str) -> list[str]:
    """Arguments that a docstring does not name."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls", "args", "kwargs")]
    return [name for name in names if not re.search(rf"\b{name}\b", documentation)]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module: str) -> None:
    """Also those that only this package uses: the next one to read them needs to know what they are."""
    try:
        found = undocumented(module)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("dimple_hf"):
            raise
        found = undocumented_in_source(module)  # an extra that is not here brings what it needs
    assert found == []


def test_check_of_sources_notices_a_missing_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control for modules that need an extra."""
    (tmp_path / "undocumented_module.py").write_text('"""Here."""\nclass A: pass\ndef b(): "There."\ndef _c(): pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert undocumented_in_source("undocumented_module") == ["A"]


def test_check_of_docstrings_notices_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: of a function, a class and a method."""
    from dimple_hf.modeling import sampling_dimple
    from dimple_hf.training import metrics

    monkeypatch.setattr(sampling_dimple.top_probability, "__doc__", None)
    monkeypatch.setattr(metrics.MetricsCallback, "__doc__", None)
    assert undocumented("dimple_hf.modeling.sampling_dimple") == ["top_probability"]
    assert undocumented("dimple_hf.training.metrics") == ["MetricsCallback"]


@pytest.mark.parametrize("name", exported())
def test_every_argument_of_an_exported_name_is_documented(name: str) -> None:
    """Of functions and methods in their own docstring, of a class in the class's."""
    value = exported()[name]
    name = name.rpartition(".")[2]
    if inspect.isfunction(value):
        assert unmentioned_arguments(value, inspect.getdoc(value) or "") == []
    if inspect.isclass(value):
        documentation = inspect.getdoc(value) or ""
        # A configuration's are its parents', too; a prior is made by class methods.
        if "__init__" in vars(value) and not hasattr(value, "model_type") and name != "StructurePrior":
            assert unmentioned_arguments(value.__init__, documentation + (value.__init__.__doc__ or "")) == []
        for member, function in members(value):
            if inspect.isroutine(function) and function.__doc__ and "Args:" in function.__doc__:
                assert unmentioned_arguments(function, function.__doc__) == [], member


def test_api_page_has_every_exported_name_and_no_other(repo_root: Path) -> None:
    """A section for each package, a row for each name."""
    text = (repo_root / "docs" / "api.md").read_text(encoding="utf-8")
    found = {
        f"{package}.{name}"
        for package, section in re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        for name in re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    }
    names = set(exported())
    # What a package passes on to the one above it is listed there.
    passed_on = {name for name in names if f"dimple_hf.{name.rpartition('.')[2]}" in names - {name}}
    assert found == names - passed_on

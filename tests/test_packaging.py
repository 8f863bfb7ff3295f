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
"""What users install: one version, honest dependencies, a wheel with every file, an import that loads little.

The wheel is built from a copy of the sources, because setuptools would otherwise put files of earlier builds into it.
The test marked `packaging` installs that wheel into an empty environment; CI runs it, `make test` leaves it out.
"""

import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers.dynamic_module_utils import get_imports

import dimple_hf

# Nobody needs these to load a model and generate. (Not named: rich, which some versions of the Hub client load, and
# torchao, which transformers does where it is installed.)
NOT_AT_IMPORT = (
    "bitsandbytes", "datasets", "deepspeed", "fastapi", "gradio", "lmms_eval", "matplotlib", "pandas", "peft",
    "pyarrow", "pydantic", "sklearn", "torchvision", "uvicorn",
)  # fmt: skip

#: What every program that loads a model imports of torch and transformers.
TORCH_AND_TRANSFORMERS = """
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText, AutoProcessor
from transformers import AutoTokenizer, GenerationMixin, PreTrainedModel
"""
# torch's wheel names the GPU libraries it was built with; which ones is the user's choice of torch wheel.
GPU_LIBRARIES = ("cuda-", "nvidia-", "triton")

LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"
IMPORT_EVERY_MODULE = """
import importlib, json, pkgutil
import dimple_hf
names = [module.name for module in pkgutil.walk_packages(dimple_hf.__path__, "dimple_hf.")]
needs_extra = ("dimple_hf.integrations.", "dimple_hf.serve", "dimple_hf.demo")
names = [name for name in names if not name.startswith(needs_extra)]
files = [importlib.import_module(name).__file__ for name in ["dimple_hf_cli", "dimple_hf", *names]]
print(json.dumps(files))
"""


def run_python(python: Path | str, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs code isolated (`-I`): neither the current folder nor PYTHONPATH can lend it the repository's modules."""
    return subprocess.run([python, "-I", "-c", code], cwd=cwd, capture_output=True, text=True, check=True)


def package_files(source_root: Path) -> set[str]:
    """Every file below `src/` that belongs into the wheel, as posix paths."""
    source = source_root / "src"
    files = [source / "dimple_hf_cli.py", *(path for path in (source / "dimple_hf").rglob("*") if path.is_file())]
    return {path.relative_to(source_root / "src").as_posix() for path in files if "__pycache__" not in path.parts}


def build_wheel(source_root: Path, scratch: Path) -> Path:
    """Builds the wheel without network or isolation, from a copy of what setuptools reads."""
    copy = scratch / "copy"
    copy.mkdir(parents=True)
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(source_root / name, copy)
    shutil.copytree(source_root / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", scratch]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, copy], check=True, cwd=scratch)
    (wheel,) = scratch.glob("*.whl")
    return wheel


def wheel_files(wheel: Path) -> set[str]:
    """The files of a wheel, without its `.dist-info`."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def requirement_closure(name: str, extras: set[str]) -> dict[str, str]:
    """Distribution name -> installed version, for a distribution's dependencies and theirs in this environment."""
    closure: dict[str, str] = {}
    waiting = [(name, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            contexts = [{"extra": extra} for extra in wanted | {""}]
            if requirement.marker and not any(requirement.marker.evaluate(context) for context in contexts):
                continue
            needed = canonicalize_name(requirement.name)
            if needed not in closure or requirement.extras:
                closure[needed] = importlib.metadata.version(needed)
                waiting.append((needed, frozenset(requirement.extras)))
    return closure


def pinned_versions(repo_root: Path) -> dict[str, str]:
    """Distribution name -> version, from constraints.txt."""
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture(scope="module")
def wheel(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    return build_wheel(repo_root, tmp_path_factory.mktemp("wheel"))


def test_version_stands_in_one_file(repo_root: Path) -> None:
    """Two positions would drift; the installed metadata and the attribute must agree."""
    assert dimple_hf.__version__ == importlib.metadata.version("dimple_hf")
    sources = [*(repo_root / "src").rglob("*.py"), repo_root / "pyproject.toml", repo_root / "setup.cfg"]
    literal = re.compile(rf"""^(__)?version(__)? *= *['"]?{re.escape(dimple_hf.__version__)}\b""", re.MULTILINE)
    holding = [path.name for path in sources if literal.search(path.read_text(encoding="utf-8"))]
    assert holding == ["__init__.py"]


def test_wheel_holds_every_file_of_the_package(repo_root: Path, tmp_path: Path) -> None:
    """A sub-package without `__init__.py`, or a data file that no pattern names, is lost in silence."""
    tree = tmp_path / "tree"
    shutil.copytree(repo_root / "src", tree / "src")
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, tree)
    lost = {"dimple_hf/no_package/module.py", "dimple_hf/data.json"}  # control: both kinds of loss are seen
    for name in lost:
        (tree / "src" / name).parent.mkdir(exist_ok=True)
        (tree / "src" / name).touch()
    found = wheel_files(build_wheel(tree, tmp_path / "build"))
    assert {"dimple_hf/__init__.py", "dimple_hf/py.typed"} <= found
    assert package_files(tree) - found == lost
    assert found == package_files(repo_root)


def test_dependencies_are_ranges_without_torchvision() -> None:
    """An exact pin in a library blocks its users' other libraries; torchvision is not needed and not always there."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("dimple_hf") or []]
    names = {requirement.name for requirement in requirements}
    assert {"transformers", "torch", "pytest"} <= names  # control: core and extras are read
    assert "torchvision" not in names
    assert "==" not in {clause.operator for requirement in requirements for clause in requirement.specifier}


def test_dependencies_name_every_library_that_is_imported(repo_root: Path) -> None:
    """A library that only happens to come with another one is missing on the day that the other drops it."""
    requirements = [Requirement(line) for line in importlib.metadata.requires("dimple_hf") or []]
    declared = {canonicalize_name(requirement.name) for requirement in requirements if requirement.marker is None}
    in_extras = {canonicalize_name(requirement.name) for requirement in requirements} - declared
    distributions = importlib.metadata.packages_distributions()

    def needed(paths: Iterable[Path]) -> set[str]:
        imported = {name for path in paths for name in get_imports(path)} - set(sys.stdlib_module_names)
        return {canonicalize_name(distributions.get(name, [name])[0]) for name in imported - {"dimple_hf"}}

    package = repo_root / "src" / "dimple_hf"
    optional = {path for folder in ("integrations", "serve", "demo") for path in package.glob(f"{folder}/**/*.py")}
    # these ask for their extra
    optional |= {package / name for name in ("cli/serve.py", "decisions/calibration.py", "quantization.py")}
    core = needed(set(package.rglob("*.py")) - optional)
    assert {"torch", "pillow"} <= core  # control: imports are found, and PIL by the name it is installed under
    assert core - declared == set()
    other_halves = {"anyio", "pydantic-core"}  # of starlette and of pydantic, which name them in their documentation
    assert needed(optional) - declared - in_extras - other_halves == set()
    assert {"lmms-eval", "uvicorn"} <= needed(optional)  # control


def test_constraints_pin_what_the_tests_run_with(repo_root: Path) -> None:
    """Every direct and transitive dependency has its version here, so that CI today and CI next month agree."""
    pins = pinned_versions(repo_root)
    closure = requirement_closure("dimple_hf", {"dev"}).items()
    # a torch wheel for CPUs says so after a plus sign
    installed = {name: version.split("+")[0] for name, version in closure if not name.startswith(GPU_LIBRARIES)}
    installed.pop("dimple-hf")
    assert {"regex", "mpmath", "execnet", "mypy-extensions"} <= set(
        installed
    )  # control: it looks below the first level
    assert installed == {name: pins.get(name) for name in installed}


def libraries(modules: list[str]) -> set[str]:
    """The first part of each module's name."""
    return {name.partition(".")[0] for name in modules}


def messages(stderr: str) -> set[str]:
    """Lines of stderr without the time and the process that torch's logger puts in front."""
    return {re.sub(r"^W\d+ \S+ \d+ ", "", line) for line in stderr.splitlines()}


@pytest.mark.slow
def test_import_loads_no_optional_library_and_warns_of_nothing(tmp_path: Path) -> None:
    """
    Importing the package must be quick and quiet, and must not need what only training or plotting needs. That
    `dimple-hf generate` does not is a quick test of `tests/cli/test_entry.py`.
    """
    plain, base, loud = (
        run_python(sys.executable, code, tmp_path)
        for code in (
            f"import dimple_hf; {LOADED}",
            TORCH_AND_TRANSFORMERS + LOADED,
            f"import pyarrow; {LOADED}; sys.stderr.write('old')",
        )
    )
    modules, base_modules = json.loads(plain.stdout), set(json.loads(base.stdout))
    assert libraries(modules) & set(NOT_AT_IMPORT) == set()
    # transformers loads torchao where it is installed, which complains of missing GPU libraries.
    assert messages(plain.stderr) - messages(base.stderr) == set()
    # Hardly more than what loading any model takes: Qwen2.5-VL's files, which Dimple's model is made of.
    added = [name for name in modules if name not in base_modules and not name.startswith("dimple_hf")]
    assert len(added) < len(base_modules) / 20, added

    # control: the probe sees a library that is loaded, and what is said on stderr
    assert "pyarrow" in libraries(json.loads(loud.stdout))
    assert messages(loud.stderr) - messages(base.stderr) == {"old"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a process's own processor time is asked for by wait4")
def test_import_takes_at_most_a_fifth_more_than_torch_and_transformers(tmp_path: Path) -> None:
    """In processor time, which other programs disturb little; both in turns, so that they do so alike."""

    def seconds(code: str) -> float:
        process = subprocess.Popen([sys.executable, "-I", "-c", code], cwd=tmp_path)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    pairs = [(seconds(TORCH_AND_TRANSFORMERS), seconds("import dimple_hf")) for _ in range(3)]
    ratio = statistics.median(ours / base for base, ours in pairs)
    print(f"processor seconds, torch and transformers against dimple_hf: {pairs}; median ratio {ratio:.2f}")
    assert ratio <= 1.2


@pytest.mark.packaging
@pytest.mark.timeout(900)
def test_wheel_in_an_empty_environment_imports_every_module(wheel: Path, repo_root: Path, tmp_path: Path) -> None:
    """What the tests' environment has besides the declared dependencies, a user's has not."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", repo_root / "constraints.txt", wheel]
    subprocess.run(install, check=True, cwd=tmp_path, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})

    (tmp_path / "elsewhere").mkdir()
    imported = json.loads(run_python(python, IMPORT_EVERY_MODULE, tmp_path / "elsewhere").stdout)
    (site_packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    expected = {str(site_packages / name) for name in package_files(repo_root) if name.endswith(".py")}
    package = site_packages / "dimple_hf"
    needs_extra = {package / "integrations", package / "serve", package / "demo"}
    expected -= {name for name in expected if needs_extra & set(Path(name).parents)}
    expected.add(str(package / "integrations" / "__init__.py"))
    assert set(imported) == expected

    # control: this environment lacks what only the tests have
    with pytest.raises(subprocess.CalledProcessError):
        run_python(python, "import hypothesis", tmp_path / "elsewhere")

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
"""Where the peers' own suites come from: the source distributions of the pinned versions, never committed.

`python tests/peers/sources.py` downloads and unpacks them into `.cache/peers`, which git ignores. They hold the common
tests and not all that these import: the generation and export mixins are missing, and stand here as empty classes; so
are the files that tests open and the script that finds them. Pillow's holds its test images.

What is not distributed cannot run: transformers' tests of `generate` (`tests/generation`), and those that its pipeline
mixin calls (`tests/pipelines`). Ours are `tests/modeling/test_generation_dimple.py` and `tests/test_pipeline.py`.
"""

import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "peers"

#: Stands for every image that a common test names by its address.
IMAGE = ROOT / "tests" / "fixtures" / "parity" / "tiny" / "images" / "0.png"

#: What the common tests import and their distribution lacks: module -> its names.
MISSING: dict[str, dict[str, Any]] = {
    "exporters": {},
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation": {},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils": {},
    "utils.test_configuration_utils": {"config_common_kwargs": {"return_dict": False, "output_hidden_states": True}},
}


def source_folder(name: str) -> Path:
    """The unpacked source distribution of an installed library."""
    return CACHE / f"{name}-{importlib.metadata.version(name)}"


def download(name: str) -> None:
    """Downloads and unpacks the source distribution of the installed version, if it is not there."""
    if source_folder(name).is_dir():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name]
    requirement = f"{name}=={importlib.metadata.version(name)}"
    subprocess.run([*command, "--dest", str(CACHE), requirement], check=True)
    with tarfile.open(source_folder(name).with_suffix(source_folder(name).suffix + ".tar.gz")) as archive:
        archive.extractall(CACHE, filter="data")


def common_tests(module: str) -> ModuleType:
    """One of transformers' common test modules, by its name in `tests/`."""
    root = _tests_package("transformers")
    if f"{root}.utils" not in sys.modules:
        for name, values in MISSING.items():
            stand_in = ModuleType(f"{root}.{name}")
            stand_in.__path__ = []
            vars(stand_in).update(values)
            sys.modules[f"{root}.{name}"] = stand_in
        finder = ModuleType("fetch_hub_objects_for_ci")
        vars(finder)["url_to_local_path"] = lambda url: str(IMAGE)
        sys.modules[finder.__name__] = finder
    return importlib.import_module(f"{root}.{module}")


def peft_tests(module: str) -> ModuleType:
    """One of PEFT's test modules, by its name in `tests/`. Diffusers, which they import, is not needed here."""
    if importlib.util.find_spec("diffusers") is None:
        diffusers = ModuleType("diffusers")
        vars(diffusers)["StableDiffusionPipeline"] = type("StableDiffusionPipeline", (), {})
        sys.modules["diffusers"] = diffusers
    return importlib.import_module(f"{_tests_package('peft')}.{module}")


def _tests_package(name: str) -> str:
    """Makes the tests of a distribution a package, so that their relative imports work; returns what it is called."""
    package = ModuleType(f"{name}_tests")
    package.__path__ = [str(source_folder(name) / "tests")]
    sys.modules.setdefault(package.__name__, package)
    return package.__name__


if __name__ == "__main__":
    for name in ("transformers", "peft", "pillow"):
        download(name)
    tests = source_folder("transformers") / "tests"
    (tests / "__init__.py").touch()  # pytest looks for it beside the mixins
    (tests / "fixtures").mkdir(exist_ok=True)
    shutil.copy(ROOT / "README.md", tests / "fixtures" / "sample_text.txt")  # any text

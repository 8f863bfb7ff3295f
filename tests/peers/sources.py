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

`python tests/peers/sources.py` downloads and unpacks them into `.cache/peers`, which git ignores. That of transformers
holds the common tests and not all that these import: the generation and export mixins are missing, and stand here as
empty classes. That of Pillow holds its test images.
"""

import importlib.metadata
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "peers"

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
    root = "transformers_tests"
    if root not in sys.modules:
        package = ModuleType(root)
        package.__path__ = [str(source_folder("transformers") / "tests")]
        sys.modules[root] = package
        for name, values in MISSING.items():
            stand_in = ModuleType(f"{root}.{name}")
            stand_in.__path__ = []
            vars(stand_in).update(values)
            sys.modules[f"{root}.{name}"] = stand_in
    return importlib.import_module(f"{root}.{module}")


if __name__ == "__main__":
    download("transformers")
    (source_folder("transformers") / "tests" / "__init__.py").touch()  # pytest looks for it beside the mixins
    download("pillow")

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
"""Traps: files of code in a checkpoint's directory that leave a mark when they are run."""

from pathlib import Path

TRAPS = (
    "configuration_dimple.py",
    "modeling_dimple.py",
    "processing_dimple.py",
    "tokenization_dimple.py",
    "image_processing_dimple.py",
    "custom_generate/generate.py",
)


def set_traps(directory: Path) -> Path:
    """Puts a trap wherever code is looked for in a checkpoint; returns the mark, which is not there
    yet."""
    mark = directory.parent / "executed"
    for name in TRAPS:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
            f"raise RuntimeError('code of the checkpoint was run: {name}')\n",
            encoding="utf-8",
        )
    return mark

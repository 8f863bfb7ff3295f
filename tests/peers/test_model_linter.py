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
"""Transformers' own linter for model files, on the files that travel to the Hub. Run by `make peer-tests`."""

import re
import subprocess
import sys
from pathlib import Path

#: Rules that only a model inside transformers can satisfy, and why.
IN_TREE = {"TRF057": "`auto_docstring` takes its texts from transformers' own documentation"}


def test_model_files_pass_transformers_linter() -> None:
    source = Path(__file__).resolve().parents[2] / "src" / "dimple_hf"
    folders = [str(source / name) for name in ("modeling", "processing")]
    command = [sys.executable, "-m", "mlinter", "--no-cache", "--no-progress", *folders]
    report = subprocess.run(command, capture_output=True, text=True, check=False)
    found = set(re.findall(r"TRF\d+", report.stdout + report.stderr))
    assert found, "the linter must have run: it finds what only an in-tree model can satisfy"
    assert found <= set(IN_TREE), report.stdout

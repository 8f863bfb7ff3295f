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
"""The benchmark of long documents at toy size."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import schema_documents


def test_form_of_optional_fields_is_built_and_filled(parity_dir: Path) -> None:
    """Random weights fill the canvas with an object of the class."""
    report = schema_documents.main(["--tokenizer", str(parity_dir / "tokenizer"), "--documents", "form"])
    found = report["results"]["form"]
    assert found["valid"]
    assert 2 <= found["tokens"] <= found["positions"] <= 2048
    assert found["passes"] > 0

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
"""The small model of the package, and chats about its images, as files of every kind."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from dimple_hf.checkpoints import FORMS_CHECKPOINT

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_dataset import forms_row  # noqa: E402

#: Kinds of question about an image whose answers are free.
KINDS = ("text", "json", "field", "rows", "sum")


@pytest.fixture(scope="session")
def processor() -> ProcessorMixin:
    return AutoProcessor.from_pretrained(FORMS_CHECKPOINT)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    # In bfloat16 a position near the threshold is unmasked a pass earlier or later by the shape of its batch.
    return AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def write_forms() -> Callable[[Path, int], Path]:
    """Writes `forms.jsonl` with so many questions about as many images beside it; returns the file."""

    def write(folder: Path, num_rows: int) -> Path:
        rows = []
        for index in range(num_rows):
            row = forms_row("test", index, kind=KINDS[index % len(KINDS)])
            row["images"][0].save(folder / f"{index}.png")
            rows.append({"messages": row["messages"][:1], "images": [f"{index}.png"]})
        path = folder / "forms.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write

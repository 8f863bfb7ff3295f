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
"""Pillow's own test images, a thousand odd and damaged files. Run by `make peer-tests`."""

import time
from pathlib import Path

from sources import source_folder
from transformers import AutoImageProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.data.images import open_image


def test_each_image_is_read_or_refused_in_one_line_with_its_name() -> None:
    images = [path for path in (source_folder("pillow") / "Tests" / "images").rglob("*") if path.is_file()]
    processor = AutoImageProcessor.from_pretrained(FORMS_CHECKPOINT)
    refused: dict[Path, str] = {}
    for path in images:
        start = time.process_time()
        try:
            image = open_image(path)
        except ValueError as error:
            refused[path] = str(error)
        else:
            processor(images=image, return_tensors="pt")
        assert time.process_time() - start < 10, path
    assert all(path.name in message and "\n" not in message for path, message in refused.items())
    assert len(images) > 1000
    assert 0.2 < len(refused) / len(images) < 0.5  # formats that are not read, and damaged files

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
"""The image opener: bounds before decoding, EXIF orientation, few formats, errors that name the file.

It stands in `processing`, because it travels to the Hub with the processor.
"""

import os
from pathlib import Path

from ..processing.image_opening_dimple import (
    FORMATS,
    NUM_HEAD_BYTES,
    WEB_FORMATS,
    describe_other_file,
    open_image,
)

#: What images begin with.
IMAGE_MARKS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"RIFF")


def describe_no_data(path: str | os.PathLike[str]) -> str | None:
    """
    Args:
        path (`str` or `os.PathLike`):
            A file that text or a table is expected in.

    Returns:
        `str`, *optional*: What it is instead and what to do, if it is an archive, a PDF document or an image.
    """
    with open(path, "rb") as file:
        head = file.read(NUM_HEAD_BYTES)
    if head.startswith(IMAGE_MARKS):
        return "an image: name it in a file of examples, or with `--image`"
    return describe_other_file(head, Path(path).name)


__all__ = ["FORMATS", "WEB_FORMATS", "describe_no_data", "describe_other_file", "open_image"]

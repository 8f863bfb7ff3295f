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
"""Files that take their name when they are whole: a killed process or a full disk leaves the old file, or none."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """
    Opens a new file for writing, which replaces the one at `path` when it is complete and on disk.

    Args:
        path (`Path`):
            The file.
        temporary (`Path`, *optional*):
            Its name until then, in the same folder; `path` with ".partial" when missing. Processes that may write at
            the same time need one each.

    Yields:
        `BinaryIO`: The new file. It is removed if the block raises.

    Raises:
        OSError: If it cannot be written; the error names `path`.
    """
    temporary = temporary or path.with_name(f"{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            error.filename = str(path)
        temporary.unlink(missing_ok=True)
        raise

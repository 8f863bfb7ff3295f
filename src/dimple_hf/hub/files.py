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
"""Where the files of a checkpoint are: in a directory, or on the Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

#: What is downloaded of every model: all but weights and code.
SMALL_FILES = ("*.json", "*.txt", "*.jinja")


def find_files(source: str, weights: Sequence[str] = ()) -> Path:
    """
    Finds a checkpoint's directory; of one on the Hub, downloads all but code, and the weights that are named.

    Args:
        source (`str`):
            Directory, or Hub id.
        weights (`Sequence[str]`, defaults to `()`):
            Files with weights to download, too.

    Returns:
        `Path`: The directory.

    Raises:
        ValueError: If `source` is a path without a directory.
        OSError: If the Hub has no such model, or cannot be reached and the cache has none.
    """
    directory = Path(source)
    if directory.is_dir():
        return directory
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"a checkpoint must be a directory or a Hub id such as 'owner/name' (got {source!r})")
    try:
        return Path(snapshot_download(source, allow_patterns=[*SMALL_FILES, *weights]))
    except RepositoryNotFoundError as error:
        raise OSError(f"{source} must be a directory or a model on the Hub that you may read (got neither)") from error
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"{source} must be a directory, or a model in the cache while the Hub cannot be reached (got neither)"
        ) from error

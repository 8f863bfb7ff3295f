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
from contextlib import suppress
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

#: What is downloaded of every model: all but weights and code.
SMALL_FILES = ("*.json", "*.txt", "*.jinja")

#: Seconds that the Hub has to answer whether it has a checkpoint.
HUB_TIMEOUT = 5


def find_commit(name: str, file_name: str) -> str | None:
    """
    Asks the Hub for a model once, before libraries try in turn, each with retries of its own or without an end.

    Args:
        name (`str`):
            Hub id.
        file_name (`str`):
            A file of the model.

    Returns:
        `str`, *optional*: The commit of the Hub's model; `None` if the Hub does not answer.

    Raises:
        OSError: If the Hub has no such model.
        EntryNotFoundError: If the model has no such file.
    """
    try:
        return str(get_hf_file_metadata(hf_hub_url(name, file_name), timeout=HUB_TIMEOUT).commit_hash)
    except EntryNotFoundError:
        raise
    except HfHubHTTPError as error:
        if error.response.status_code >= 500 or error.response.status_code == 429:  # it is too busy
            return None
        raise OSError(f"{name} must be a directory or a model on the Hub that you may read (got neither)") from error
    except Exception:  # of the HTTP library, which is not the same in all versions of huggingface_hub
        return None


def no_model(name: str) -> OSError:
    """The error for a model `name` (`str`) that is in no cache while the Hub does not answer."""
    return OSError(
        f"{name} must be a directory, or a model in the cache while the Hub cannot be reached (got neither)"
    )


def find_files(source: str, weights: Sequence[str] = ()) -> tuple[Path, bool]:
    """
    Finds a checkpoint's directory; of one on the Hub, downloads all but code, and the weights that are named.

    Args:
        source (`str`):
            Directory, or Hub id.
        weights (`Sequence[str]`, defaults to `()`):
            Files with weights to download, too.

    Returns:
        `tuple[Path, bool]`: The directory, and whether it is the cache's because the Hub cannot be reached.

    Raises:
        ValueError: If `source` is a path without a directory.
        OSError: If the Hub has no such model, or cannot be reached and the cache has none.
    """
    directory = Path(source)
    if directory.is_dir():
        return directory, False
    if source.count("/") != 1 or source.startswith((".", "/", "~")):
        raise ValueError(f"a checkpoint must be a directory or a Hub id such as 'owner/name' (got {source!r})")
    is_cached = False
    with suppress(EntryNotFoundError):  # an adapter, say
        is_cached = find_commit(source, "config.json") is None
    try:
        patterns = [*SMALL_FILES, *weights]
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=is_cached)), is_cached
    except LocalEntryNotFoundError as error:
        raise no_model(source) from error

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
"""Weight files that came through a network: cut off, or changed on the way.

The Hub's client compares sizes at most, and the library that reads safetensors names no file. Imported by
`modeling_dimple` and, for adapters, by the package's `training.adapters`.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError


@contextmanager
def refuse_damaged_files(
    checkpoint: str | os.PathLike | None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    config_name: str = "config.json",
) -> Iterator[None]:
    """
    Surrounds the loading of weights, and names the files that are to blame when they are damaged.

    1. What is downloaded meanwhile must have the SHA-256 sum that the Hub announced, whether it could be read or not.
       A file that has another is removed from the cache, so that it is downloaded again the next time.
    2. When loading fails, safetensors files that are cut off or unreadable are named.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*):
            Directory or Hub id. With `None` nothing is looked at.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        cache_dir (`str` or `Path`, *optional*):
            Where the Hub's client keeps its downloads; its own default when missing.
        config_name (`str`, defaults to `"config.json"`):
            A file that lies beside the weights and is downloaded before them.

    Raises:
        ValueError: If a file is damaged.
    """
    present = _weight_files(checkpoint, revision, cache_dir, config_name)
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    files = _weight_files(checkpoint, revision, cache_dir, config_name)
    changed = [file for file in sorted(files - present) if not _is_as_announced(file)]
    for file in changed:
        (file.parent / os.readlink(file)).unlink()
        file.unlink()
    if changed:
        raise ValueError(
            "downloaded files must have the SHA-256 sums that the Hub announced "
            f"(got others for {', '.join(map(str, changed))}: removed, to be downloaded again)"
        ) from failure
    if failure is not None:
        damaged = [str(file) for file in sorted(files) if not is_whole_safetensors_file(file)]
        if damaged:
            raise ValueError(f"safetensors files must be whole (got {', '.join(damaged)}: {failure})") from failure
        raise failure


def is_whole_safetensors_file(path: Path) -> bool:
    """
    Whether a safetensors file has a readable header and as many bytes as it announces.

    Its layout: the header's length in 8 bytes, the header in JSON (name -> dtype, shape and position in what follows),
    and the tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = file.read(min(header_size, size))
    try:
        tensors = [entry for name, entry in json.loads(header).items() if name != "__metadata__"]
        data_size = max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return size == 8 + header_size + data_size


def _weight_files(
    checkpoint: str | os.PathLike | None,
    revision: str | None,
    cache_dir: str | Path | None,
    config_name: str,
) -> set[Path]:
    """The safetensors files of a checkpoint that are on this machine: in its directory, or in the Hub's cache."""
    if checkpoint is None:
        return set()
    folder = Path(checkpoint)
    if not folder.is_dir():
        try:
            config = try_to_load_from_cache(str(checkpoint), config_name, cache_dir, revision)
        except HFValidationError:  # a missing directory; what loads it says so
            return set()
        if not isinstance(config, str):
            return set()
        folder = Path(config).parent
    return set(folder.glob("*.safetensors"))


def _is_as_announced(file: Path) -> bool:
    """
    Whether a new file in the Hub's cache has its announced sum: the file is a link, its target is named by the sum.

    Small files have git's sums instead, and some file systems have no links; both are taken as they are.
    """
    announced = Path(os.readlink(file)).name if file.is_symlink() else ""
    if not re.fullmatch("[0-9a-f]{64}", announced):
        return True
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == announced

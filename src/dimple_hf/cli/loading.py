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
"""Loading for commands: the device, the checkpoint and an adapter, each refused in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin


def find_device(name: str | None) -> str:
    """
    Args:
        name (`str`, *optional*):
            A device as torch calls it.

    Returns:
        `str`: The same, or without one the GPU that a launcher gives to this process, the first GPU, or the CPU.

    Raises:
        ValueError: If this machine has no such device.
    """
    import torch

    if name is None:
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises all of them
        raise ValueError(f"`--device` must be a device of this machine, such as cpu (got {name!r})") from error
    return name


def find_checkpoint(name: str, config_name: str = "config.json") -> str:
    """
    Makes sure that a checkpoint can be loaded, before libraries try in turn, each with retries of its own.

    Args:
        name (`str`):
            Directory or Hub id.
        config_name (`str`, defaults to `"config.json"`):
            The file that makes it a checkpoint.

    Returns:
        `str`: The directory, or the commit of the Hub's checkpoint.

    Raises:
        OSError: If the Hub has no such checkpoint, or cannot be reached and the cache has none.
    """
    if Path(name).is_dir():
        return name
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    from ..hub.files import find_commit, no_model

    try:
        commit = find_commit(name, config_name)
    except EntryNotFoundError as error:
        raise OSError(f"{name} must be a checkpoint (its files on the Hub have no {config_name})") from error
    if commit is not None:
        return commit
    cached = try_to_load_from_cache(name, config_name)
    if not isinstance(cached, str):
        raise no_model(name)
    constants.HF_HUB_OFFLINE = True  # for each further file, libraries would try to reach the Hub for a minute
    return Path(cached).parent.name


@contextmanager
def explain_failure(name: str) -> Iterator[None]:
    """
    Surrounds the loading of a checkpoint: what goes wrong becomes one line that names the file, as `dimple-hf doctor`
    finds it.

    Args:
        name (`str`):
            Directory or Hub id of the checkpoint.

    Raises:
        ValueError: In place of what was raised, if the directory has a problem or the error is not made for users.
    """
    try:
        yield
    except Exception as error:  # libraries raise any of a dozen types, depending on the damage
        if type(error).__name__ == "OutOfMemoryError":  # not about the files
            raise
        is_bare = Path(name).is_dir() and not Path(name, "config.json").exists()
        if is_bare and Path(name, "adapter_config.json").exists():
            raise ValueError(f"{name} must be a checkpoint (got an adapter, for `--adapter` of `generate`)") from error
        if isinstance(error, ValueError) and str(name) in str(error) and not is_bare:  # names the file already
            raise
        from ..hub.doctor import check_checkpoint

        findings = check_checkpoint(name) if Path(name).is_dir() else []
        reason = next((finding.message for finding in findings if finding.status == "problem"), None)
        if reason is None and isinstance(error, (ValueError, OSError)):
            raise
        reason = " ".join((reason or f"{type(error).__name__}: {error}").split())
        raise ValueError(f"{name} must be a checkpoint that loads (got {reason})") from error


def load_processor(name: str) -> "ProcessorMixin":
    """
    Args:
        name (`str`):
            Directory or Hub id of a checkpoint.

    Returns:
        [`DimpleProcessor`]
    """
    from transformers import AutoProcessor

    find_checkpoint(name)
    with explain_failure(name):
        return AutoProcessor.from_pretrained(name)


def load_model(name: str, device: str | None = None, adapter: str | None = None) -> "PreTrainedModel":
    """
    Args:
        name (`str`):
            Directory or Hub id of a checkpoint.
        device (`str`, *optional*):
            Where it runs; see [`find_device`].
        adapter (`str`, *optional*):
            Directory or Hub id of a PEFT adapter.

    Returns:
        [`DimpleForConditionalGeneration`]: In the dtype of its file, ready to generate.

    Raises:
        ValueError: If this machine has no such device, or the checkpoint does not load.
        OSError: If there is no such checkpoint or adapter.
    """
    from transformers import AutoModelForImageTextToText

    device = find_device(device)
    if adapter is not None:
        find_checkpoint(adapter, "adapter_config.json")
    with explain_failure(name):
        model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto")
    if adapter is not None:
        from ..training.adapters import load_adapter

        model = load_adapter(model, adapter)
    return model.to(device).eval()

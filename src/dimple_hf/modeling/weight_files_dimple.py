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
"""Checks of weight files: damaged, incomplete or hostile ones are refused in one line that names them.

The Hub's client compares sizes at most; the libraries that read JSON and safetensors name no file, and what is missing
is drawn at random with a warning. Nothing here reads a weight, and nothing is unpickled.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import GenerationConfig, PreTrainedModel

#: A checkpoint's JSON files are smaller: the tokenizer's is the largest, about 11 MB.
MAX_JSON_BYTES = 32 * 2**20

#: Options of generation that are numbers, and those that are tokens, or lists of them.
NUMBERS = ("max_length", "max_new_tokens", "max_denoising_steps", "steps", "temperature", "top_k", "top_p")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "mask_token_id", "pad_token_id")

INDEX = "model.safetensors.index.json"

#: Types of weights, by their names in safetensors files. Others are a quantization's, or no weights.
WEIGHT_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_json(path: Path) -> dict[str, Any]:
    """
    Args:
        path (`Path`):
            A JSON file that holds an object.

    Returns:
        `dict[str, Any]`: The object.

    Raises:
        ValueError: If the file is missing, too large, nested too deeply, or holds something else.
    """
    try:
        if not path.is_file():
            raise ValueError("a directory" if path.is_dir() else "no such file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(type(content).__name__)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} must hold a JSON object (got {error})") from error
    return content


def read_index(path: Path) -> dict[str, str]:
    """
    Args:
        path (`Path`):
            The index of a checkpoint in several files.

    Returns:
        `dict[str, str]`: The file name of each weight.

    Raises:
        ValueError: If it has no such map, or names something else than a file beside it.
    """
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} must have a `weight_map` of names to files (got {str(weight_map)[:100]})")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", file):
            raise ValueError(f"{path} must name safetensors files of its own folder (got {file!r} for {name})")
    return weight_map


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """
    Args:
        path (`Path`):
            A safetensors file.

    Returns:
        `dict[str, tuple[str, tuple[int, ...]]]`: Type and shape of each weight.

    Raises:
        ValueError: If the file is missing, cut off, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as weights:
            slices = {name: weights.get_slice(name) for name in weights.keys()}
            return {name: (entry.get_dtype(), tuple(entry.get_shape())) for name, entry in slices.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} must be a whole safetensors file (got {_one_line(error)})") from error


def check_generation_config(path: Path) -> None:
    """
    Args:
        path (`Path`):
            A `generation_config.json`. It need not exist.

    Raises:
        ValueError: If it is no JSON object, or has text or an object where a number belongs.
    """
    options = read_json(path) if path.is_file() else {}
    for name in (*NUMBERS, *TOKEN_IDS):
        value = options.get(name)
        values = value if name in TOKEN_IDS and isinstance(value, list) else [value]
        if not all(entry is None or isinstance(entry, (int, float)) for entry in values):
            raise ValueError(f"`{name}` in {path} must be a number (got {value!r})")


@contextmanager
def refuse_damaged_files(
    checkpoint: str | os.PathLike | None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str = "",
    config_name: str = "config.json",
) -> Iterator[None]:
    """
    Surrounds the loading of a checkpoint, and names the file that is to blame when it fails.

    1. An index must name files of its own folder.
    2. What is downloaded meanwhile must have the SHA-256 sum that the Hub announced, whether it could be read or not.
       A file that has another is removed from the cache, so that it is downloaded again the next time.
    3. When loading fails, the first file that is damaged is named.

    Args:
        checkpoint (`str` or `os.PathLike`, *optional*):
            Directory or Hub id. With `None` nothing is looked at.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        cache_dir (`str` or `Path`, *optional*):
            Where the Hub's client keeps its downloads; its own default when missing.
        subfolder (`str`, defaults to `""`):
            Folder within the checkpoint.
        config_name (`str`, defaults to `"config.json"`):
            A file that lies beside the weights and is downloaded before them.

    Raises:
        ValueError: If a file is damaged.
    """
    folder = find_folder(checkpoint, revision, cache_dir, subfolder, config_name)
    present = _weight_files(folder)
    if folder is not None and (folder / INDEX).is_file():
        read_index(folder / INDEX)
    if folder is not None:
        check_generation_config(folder / "generation_config.json")
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled and not present:
            raise ValueError(
                f"{folder} must hold safetensors files (got {', '.join(pickled)}, which can run code when it is read: "
                "on a machine without secrets, load the weights with torch and save them with `safetensors`)"
            )
    if folder is not None and present and not (folder / "adapter_config.json").is_file():
        read_json(folder / config_name)  # without it, the class would build its default of 7B
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    folder = find_folder(checkpoint, revision, cache_dir, subfolder, config_name)
    changed = [file for file in sorted(_weight_files(folder) - present) if not _is_as_announced(file)]
    for file in changed:
        (file.parent / os.readlink(file)).unlink()
        file.unlink()
    if changed:
        raise ValueError(
            "downloaded files must have the SHA-256 sums that the Hub announced "
            f"(got others for {', '.join(map(str, changed))}: removed, to be downloaded again)"
        ) from failure
    if failure is not None:
        if folder is not None:
            try:
                check_files(folder, config_name)
            except ValueError as error:
                raise error from failure
        raise failure


def find_folder(
    checkpoint: str | os.PathLike | None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    subfolder: str = "",
    config_name: str = "config.json",
) -> Path | None:
    """The folder of a checkpoint on this machine, a directory or in the Hub's cache; the arguments are those above."""
    if checkpoint is None:
        return None
    if Path(checkpoint).is_dir():
        return Path(checkpoint) / subfolder
    try:
        name = f"{subfolder}/{config_name}" if subfolder else config_name
        config = try_to_load_from_cache(str(checkpoint), name, cache_dir, revision)
    except HFValidationError:  # a missing directory, which loading reports
        return None
    return Path(config).parent if isinstance(config, str) else None


def check_files(folder: Path, config_name: str = "config.json") -> None:
    """
    Reads the JSON files and the headers of the weights that a model is loaded from.

    Args:
        folder (`Path`):
            A checkpoint.
        config_name (`str`, defaults to `"config.json"`):
            Its configuration.

    Raises:
        ValueError: If one is damaged; the first one is named. Missing files are not looked for.
    """
    for name in (config_name, "generation_config.json"):
        if (folder / name).is_file():
            read_json(folder / name)
    for path in sorted({*model_files(folder), *_weight_files(folder)}):
        if path.is_file():
            read_header(path)


def check_weights(folder: Path, model: PreTrainedModel, quantizes: bool = False) -> None:
    """
    Compares what a checkpoint's files hold with a model, by their headers.

    Args:
        folder (`Path`):
            The checkpoint.
        model (`PreTrainedModel`):
            Built from its configuration, on the meta device.
        quantizes (`bool`, defaults to `False`):
            Whether a library packs the weights while they are loaded.

    Raises:
        ValueError: If a weight is missing, has another shape, or is no floating-point number; its file is named. What
            is packed already is left to the library that packed it.
    """
    if getattr(model.config, "quantization_config", None) is not None:
        return
    found: dict[str, tuple[Path, str, tuple[int, ...]]] = {}
    for path in model_files(folder):
        found |= {name: (path, *entry) for name, entry in read_header(path).items()}
    tied = set(model._tied_weights_keys or {}) if model.config.tie_word_embeddings else set()
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in tied}
    missing = [name for name in shapes if name not in found]
    if missing:
        listed = folder / INDEX if (folder / INDEX).is_file() else folder / "model.safetensors"
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ValueError(
            f"{listed} must have the weights that config.json describes (got none of {', '.join(missing[:5])}{more})"
        )
    for name, shape in shapes.items():
        path, dtype, stored = found[name]
        if stored != shape:
            raise ValueError(f"{path} must hold {name} of shape {shape}, as config.json has it (got {stored})")
        if dtype not in WEIGHT_DTYPES and not quantizes:
            raise ValueError(f"{path} must hold floating-point numbers (got {dtype} for {name})")


def end_token_id(folder: Path) -> int | None:
    """
    Args:
        folder (`Path`):
            A checkpoint.

    Returns:
        `int`, *optional*: The token that its tokenizer calls the end, if there is a tokenizer and it has one.
    """
    if not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        settings = read_json(folder / "tokenizer_config.json")
        added = settings.get("added_tokens_decoder")
        if added is None:  # transformers 5 keeps the added tokens here
            added = {entry["id"]: entry for entry in read_json(folder / "tokenizer.json")["added_tokens"]}
        end = settings.get("eos_token")
        end = end["content"] if isinstance(end, dict) else end
        return next((int(token) for token, entry in added.items() if entry["content"] == end), None)
    except (ValueError, KeyError, TypeError, AttributeError):  # reported when the tokenizer is loaded
        return None


def add_end_token(generation_config: GenerationConfig, token_id: int | None) -> None:
    """Adds a token (`int`, *optional*) to those that end an answer: a chat model may end its turn with its own."""
    ends = generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if token_id is not None and token_id not in ends:
        generation_config.eos_token_id = [*ends, token_id] if ends else token_id


def model_files(folder: Path) -> list[Path]:
    """The safetensors files that a model is loaded from: those of its index, also if missing, or the only one."""
    if (folder / INDEX).exists():
        return [folder / name for name in sorted(set(read_index(folder / INDEX).values()))]
    return [path for path in [folder / "model.safetensors"] if path.exists()]


def _weight_files(folder: Path | None) -> set[Path]:
    return set() if folder is None else set(folder.glob("*.safetensors"))


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


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

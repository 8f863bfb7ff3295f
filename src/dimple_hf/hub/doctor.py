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
"""Checks that a checkpoint is complete and consistent, without loading its weights.

Configurations, tokenizer and processor are loaded by this package's own classes; of the weights only the headers are
read, in a directory or through the network, and compared with the model on the meta device. Nothing of a checkpoint is
run or unpickled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_local_safetensors_metadata
from huggingface_hub.utils import SafetensorsRepoMetadata

from ..modeling import DimpleConfig, DimpleGenerationConfig
from ..modeling.weight_files_dimple import INDEX, read_header, read_index, read_json
from ..processing import DimpleProcessor
from .files import find_files
from .findings import Finding
from .init import SPECIAL_TOKENS
from .weights import DTYPES, StoredTensor, check_tensors, expected_shapes

WEIGHTS = "model.safetensors"

#: Files that run code when they are read.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

#: Groups of files of which one must be there whole.
NEEDED_FILES = {
    "configuration": (("config.json",),),
    "weights": ((WEIGHTS,), (INDEX,)),
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "image processor": (("preprocessor_config.json",), ("processor_config.json",)),
}

#: Tokens without which answers are wrong; the others of `SPECIAL_TOKENS` matter to causal decoding alone.
VITAL_TOKENS = ("pad_token_id", "mask_token_id", "vision_start_token_id", "vision_end_token_id", "image_token_id")

Part = TypeVar("Part")


@dataclass(frozen=True)
class Checkpoint:
    """
    A checkpoint whose small files are on this machine.

    Args:
        source (`str`):
            Directory or Hub id, as it was given.
        directory (`Path`):
            Where the small files lie, and for a directory all others, too.
        files (`frozenset[str]`):
            Names of all its files, also of those that were not downloaded.
        is_cached (`bool`, defaults to `False`):
            Whether `files` are only those in the cache, because the Hub cannot be reached.
    """

    source: str
    directory: Path
    files: frozenset[str]
    is_cached: bool = False


def open_checkpoint(source: str) -> Checkpoint:
    """
    Finds a checkpoint; of one on the Hub, downloads all but weights and code.

    Args:
        source (`str`):
            Directory, or Hub id.

    Returns:
        `Checkpoint`

    Raises:
        ValueError: If `source` is neither.
        OSError: If there is no such checkpoint.
    """
    directory, is_cached = find_files(source)
    is_here = is_cached or Path(source).is_dir()
    files = _names(directory) if is_here else frozenset(HfApi().list_repo_files(source))
    return Checkpoint(source, directory, files, is_cached)


def check_checkpoint(source: str) -> list[Finding]:
    """
    Checks whether a checkpoint is complete and of one piece.

    1. Files: all that is needed is there; what is pickled and what is code is named.
    2. Configuration: `config.json` and `generation_config.json` are read by this package's classes.
    3. Weights: every file is whole; names, shapes and types are those of the model that the configuration describes.
    4. Processor: tokenizer and image processor load and have a chat template.
    5. Agreement: special tokens, vocabulary and patches are the same for the model and the processor.

    Args:
        source (`str`):
            Directory, or Hub id.

    Returns:
        `list[Finding]`: In that order. Without a problem among them, the model loads.

    Raises:
        ValueError: If `source` is neither.
    """
    checkpoint = open_checkpoint(source)
    if "adapter_config.json" in checkpoint.files and "config.json" not in checkpoint.files:
        return [Finding("files", "problem", "this is an adapter; check the base model that it was trained on")]
    # 1.
    findings = check_files(checkpoint)
    if checkpoint.is_cached:
        message = "the Hub cannot be reached: only what is in the cache is checked, and what is not counts as missing"
        findings.insert(0, Finding("files", "warning", message))
    # 2.
    config, finding = _load(
        "configuration", "config.json", lambda: load_config(checkpoint.directory), _describe_config
    )
    findings.append(finding)
    generation_config = None
    if "generation_config.json" in checkpoint.files:
        generation_config, finding = _load(
            "generation options",
            "generation_config.json",
            lambda: load_generation_config(checkpoint.directory),
            _describe_generation_config,
        )
        findings.append(finding)
    # 3.
    if config is not None:
        findings += check_weights(checkpoint, config)
    # 4.
    processor, finding = _load(
        "processor",
        "the processor's files",
        lambda: DimpleProcessor.from_pretrained(checkpoint.directory),
        _describe_processor,
    )
    findings.append(finding)
    # 5.
    if config is not None and processor is not None:
        findings += check_agreement(config, generation_config, processor)
    return findings


def check_files(checkpoint: Checkpoint) -> list[Finding]:
    """
    Looks at the names of the files.

    Args:
        checkpoint (`Checkpoint`):
            What to check.

    Returns:
        `list[Finding]`
    """
    findings = []
    for subject, groups in NEEDED_FILES.items():
        if not any(checkpoint.files.issuperset(group) for group in groups):
            wanted = " or ".join(" and ".join(group) for group in groups)
            findings.append(Finding("files", "problem", f"no {subject}: {wanted} must be there"))
    if "generation_config.json" not in checkpoint.files:
        findings.append(Finding("files", "warning", "no generation_config.json: the default options apply"))
    if not findings:
        findings.append(Finding("files", "ok", f"{len(checkpoint.files)} files, all that is needed among them"))

    pickled = sorted(name for name in checkpoint.files if name.endswith(PICKLE_SUFFIXES))
    if pickled:
        advice = "they can run code when they are read; this package never reads them"
        if not {WEIGHTS, INDEX} & checkpoint.files:
            advice += ". Load them on a machine without secrets and save them with `model.save_pretrained(...)`"
        findings.append(Finding("pickled files", "warning", f"{', '.join(pickled)}: {advice}"))
    code = sorted(name for name in checkpoint.files if name.endswith(".py"))
    if code:
        findings.append(Finding("code", "ok", f"{len(code)} Python files, not run: this package brings its own"))
    dangling = sorted(_pointers(checkpoint) - {name.removesuffix(".py") for name in code})
    if dangling:
        findings.append(
            Finding("code", "warning", f"`auto_map` names missing files, not needed here: {', '.join(dangling)}")
        )
    return findings


def load_config(directory: Path) -> DimpleConfig:
    """
    Args:
        directory (`Path`):
            Holds `config.json`.

    Returns:
        `DimpleConfig`

    Raises:
        ValueError: If the file is missing, or of another model.
    """
    model_type = read_json(directory / "config.json").get("model_type")
    if model_type != DimpleConfig.model_type:
        raise ValueError(f"`model_type` must be {DimpleConfig.model_type!r} (got {model_type!r})")
    return DimpleConfig.from_pretrained(directory)


def load_generation_config(directory: Path) -> DimpleGenerationConfig:
    """
    Args:
        directory (`Path`):
            Holds `generation_config.json`.

    Returns:
        `DimpleGenerationConfig`

    Raises:
        ValueError: If the file is damaged, or holds options that are out of range.
    """
    read_json(directory / "generation_config.json")
    return DimpleGenerationConfig.from_pretrained(directory)


def check_weights(checkpoint: Checkpoint, config: DimpleConfig) -> list[Finding]:
    """
    Compares the headers of the weights with the model that the configuration describes.

    Args:
        checkpoint (`Checkpoint`):
            What to check.
        config (`DimpleConfig`):
            Its configuration.

    Returns:
        `list[Finding]`: Whether they match, and whether `config.json` names another type than theirs.
    """
    if not {WEIGHTS, INDEX} & checkpoint.files:
        return []  # reported already
    headers, finding = _load("weights", "safetensors", lambda: matching_headers(checkpoint, config), _describe_weights)
    findings = [finding]
    if headers is not None and not _is_quantized(config):
        most = max(headers.parameter_count, key=lambda name: headers.parameter_count[name])
        if config.dtype not in (None, DTYPES[most]):
            message = f'config.json has {config.dtype}, which `dtype="auto"` loads them as'
            findings.append(Finding("weights", "warning", message))
    return findings


def matching_headers(checkpoint: Checkpoint, config: DimpleConfig) -> SafetensorsRepoMetadata:
    """
    Reads the headers of the weights, if they are those of the model.

    Args:
        checkpoint (`Checkpoint`):
            With one file of weights, or shards and their index.
        config (`DimpleConfig`):
            Its configuration.

    Returns:
        `SafetensorsRepoMetadata`: Names, types and shapes.

    Raises:
        ValueError: If a file is missing or damaged, the index is wrong, or the weights are not the model's.
    """
    missing = [name for name in weight_files(checkpoint) if name not in checkpoint.files]
    if missing:
        raise ValueError(f"{', '.join(missing)} must be there (got no such file)")
    for name in weight_files(checkpoint):
        if (checkpoint.directory / name).is_file():  # what stays on the Hub is not looked into
            read_header(checkpoint.directory / name)
    headers = read_headers(checkpoint)
    elsewhere = [name for name, file in headers.weight_map.items() if name not in headers.files_metadata[file].tensors]
    if elsewhere:
        raise ValueError(f"{INDEX} names a wrong file for {', '.join(elsewhere)}")
    stored = {
        name: StoredTensor(Path(file), name, tuple(tensor.shape), tensor.dtype)
        for file, header in headers.files_metadata.items()
        for name, tensor in header.tensors.items()
    }
    compare_weights(config, stored, _is_quantized(config))
    return headers


def compare_weights(config: DimpleConfig, stored: dict[str, StoredTensor], quantized: bool = False) -> None:
    """
    Args:
        config (`DimpleConfig`):
            Describes the model.
        stored (`dict[str, StoredTensor]`):
            What the files hold.
        quantized (`bool`, defaults to `False`):
            Whether a library has packed some weights. Of a packed weight only the module's name is compared: number
            and shape of its parts are the library's own.

    Raises:
        ValueError: If a weight is missing, unexpected, or of another shape or type; all of them are named.
    """
    expected = expected_shapes(config)
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
    if quantized:
        packed = {_module(name) for name, tensor in stored.items() if tensor.dtype not in DTYPES}
        modules = {_module(name) for name in expected}
        missing = packed - modules
        if missing:
            raise ValueError(f"packed weights must belong to the model's modules (got {', '.join(sorted(missing))})")
        expected = {name: shape for name, shape in expected.items() if _module(name) not in packed}
        stored = {name: tensor for name, tensor in stored.items() if _module(name) not in packed}
    check_tensors(expected, stored)
    packed_names = [f"{name} ({tensor.file.name})" for name, tensor in stored.items() if tensor.dtype not in DTYPES]
    if packed_names:
        raise ValueError(
            f"weights must be stored as {', '.join(DTYPES)} unless `quantization_config` describes how they are "
            f"packed (got others for {', '.join(packed_names[:5])}{' and more' if len(packed_names) > 5 else ''})"
        )


def weight_files(checkpoint: Checkpoint) -> list[str]:
    """
    Args:
        checkpoint (`Checkpoint`):
            With one file of weights, or shards and their index.

    Returns:
        `list[str]`: Names of the safetensors files, those that are missing included.
    """
    if WEIGHTS in checkpoint.files:
        return [WEIGHTS]
    return sorted(set(read_index(checkpoint.directory / INDEX).values()))


def read_headers(checkpoint: Checkpoint) -> SafetensorsRepoMetadata:
    """
    Args:
        checkpoint (`Checkpoint`):
            With whole files of weights.

    Returns:
        `SafetensorsRepoMetadata`: Names, types and shapes; from the Hub, if the weights are not on this machine.
    """
    if all((checkpoint.directory / name).is_file() for name in weight_files(checkpoint)):
        return get_local_safetensors_metadata(checkpoint.directory)
    return HfApi().get_safetensors_metadata(checkpoint.source)


def check_agreement(
    config: DimpleConfig, generation_config: DimpleGenerationConfig | None, processor: DimpleProcessor
) -> list[Finding]:
    """
    Compares the values that the model, its generation options and its processor have in common.

    Args:
        config (`DimpleConfig`):
            The model's configuration.
        generation_config (`DimpleGenerationConfig`, *optional*):
            Its generation options.
        processor (`DimpleProcessor`):
            Its processor.

    Returns:
        `list[Finding]`: One finding if all is well, else the differences.
    """
    findings = []
    vocab = processor.tokenizer.get_vocab()
    if len(vocab) > config.vocab_size:
        findings.append(
            Finding("vocabulary", "problem", f"the tokenizer has {len(vocab)} tokens, the model {config.vocab_size}")
        )
    for field, token in SPECIAL_TOKENS.items():
        of_model, of_tokenizer = getattr(config, field), vocab.get(token)
        if of_model is not None and of_model != of_tokenizer:
            found = "has none" if of_tokenizer is None else f"has {of_tokenizer}"
            findings.append(
                Finding(
                    "special tokens",
                    "problem" if field in VITAL_TOKENS else "warning",
                    f"`{field}` is {of_model} in config.json; for {token} the tokenizer {found}",
                )
            )
    for field in ("mask_token_id", "pad_token_id"):
        of_options = getattr(generation_config, field, None)
        if of_options is not None and of_options != getattr(config, field):
            message = f"`{field}` is {getattr(config, field)} in config.json, {of_options} in generation_config.json"
            findings.append(Finding("special tokens", "problem", message))
    vision: Any = config.vision_config
    images = processor.image_processor
    for name, of_tower in (
        ("patch_size", vision.patch_size),
        ("temporal_patch_size", vision.temporal_patch_size),
        ("merge_size", vision.spatial_merge_size),
    ):
        if getattr(images, name) != of_tower:
            message = f"`{name}` is {getattr(images, name)} in the image processor, {of_tower} in the vision tower"
            findings.append(Finding("images", "problem", message))
    return findings or [Finding("agreement", "ok", "model, tokenizer and image processor agree")]


def _load(
    subject: str, file: str, load: Callable[[], Part], describe: Callable[[Any], str]
) -> tuple[Part | None, Finding]:
    """Loads a part of a file, and makes a finding of whatever that raises: any file may be broken in any way."""
    try:
        part = load()
        return part, Finding(subject, "ok", describe(part))
    except Exception as error:
        name = "" if type(error) is ValueError else f"{type(error).__name__}: "  # ours are clear by themselves
        message = f"{name}{' '.join(str(error).split())}"
        return None, Finding(subject, "problem", message if file in message else f"{file}: {message}")


def _describe_config(config: DimpleConfig) -> str:
    mode = "bidirectional (diffusion)" if config.full_attn_mask else "causal (autoregressive)"
    parameters = sum(math.prod(shape) for shape in expected_shapes(config).values())
    return f"{parameters:,} parameters, {mode}"


def _describe_generation_config(options: DimpleGenerationConfig) -> str:
    return f"unmasking by {options.unmasking}, threshold {options.confidence_threshold}"


def _describe_processor(processor: DimpleProcessor) -> str:
    if processor.chat_template is None and processor.tokenizer.chat_template is None:
        raise ValueError("there must be a chat template (got none in chat_template.jinja and tokenizer_config.json)")
    return f"{len(processor.tokenizer)} tokens, a chat template, images"


def _describe_weights(headers: SafetensorsRepoMetadata) -> str:
    counts = sorted(headers.parameter_count.items(), key=lambda item: -item[1])
    described = ", ".join(f"{count:,} numbers in {dtype}" for dtype, count in counts)
    return f"{len(headers.weight_map)} tensors as config.json describes them: {described}"


def _is_quantized(config: DimpleConfig) -> bool:
    return getattr(config, "quantization_config", None) is not None


def _module(name: str) -> str:
    """
    The module of a weight, also of a part that a library has split it into: `x.weight`, `x.weight.absmax`, `x.SCB` and
    `x._weight_qdata` belong to `x`.
    """
    parts = name.split(".")
    if "weight" in parts:
        return ".".join(parts[: parts.index("weight")])
    return ".".join(parts[:-1])


def _names(directory: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(directory).as_posix()) for path in directory.rglob("*") if path.is_file())


def _pointers(checkpoint: Checkpoint) -> set[str]:
    """Modules that the configurations' `auto_map` entries name."""
    modules: set[str] = set()
    for path in checkpoint.directory.glob("*.json"):
        try:
            entries: Any = read_json(path).get("auto_map")
        except ValueError:  # reported where the file is needed
            continue
        for value in entries.values() if isinstance(entries, dict) else []:
            items = value if isinstance(value, list) else [value]
            modules |= {item.partition(".")[0] for item in items if isinstance(item, str)}
    return modules

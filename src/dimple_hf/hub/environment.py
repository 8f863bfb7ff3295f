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
"""A report on this machine: versions, devices, attention kernels, performance hints, known problems.

Nothing is timed; the answers come from the libraries themselves.
"""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Any

import torch
from packaging.requirements import Requirement
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

from .findings import Finding

#: Distributions whose versions are reported; those after torch, transformers and their kin are optional.
DISTRIBUTIONS = (
    "dimple_hf", "torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "accelerate", "peft",
    "datasets", "numpy", "pillow", "torchvision", "bitsandbytes", "torchao", "flash_attn", "kernels", "triton",
)  # fmt: skip

#: Memory for the released model: 8.3 billion numbers in bfloat16 are 15.5 GiB, and an image's cache fits beside them.
RELEASED_MODEL_GIB = 16

#: What a processor calls its bfloat16 instructions.
BFLOAT16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def describe_environment() -> dict[str, Any]:
    """
    Returns:
        `dict[str, Any]`: Plain values: `versions`, `devices`, `threads`, `attention`, `compile`.
    """
    return {
        "versions": {"python": platform.python_version()} | {name: installed_version(name) for name in DISTRIBUTIONS},
        "devices": describe_devices(),
        "threads": {"torch": torch.get_num_threads(), "cores": num_cores()},
        "attention": describe_attention(),
        "compile": describe_compile(),
    }


def check_environment() -> list[Finding]:
    """
    Returns:
        `list[Finding]`: What does not work with this package, then what will be fast here and what will not.
    """
    return [
        *check_requirements(),
        *check_torchvision(),
        *check_device(),
        *check_bfloat16(),
        *check_attention(),
        *check_compile(),
        *check_threads(),
    ]


def installed_version(name: str) -> str | None:
    """
    Args:
        name (`str`):
            A distribution.

    Returns:
        `str`, *optional*: Its version; `None` if it is not installed.
    """
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def describe_devices() -> list[dict[str, Any]]:
    """
    Returns:
        `list[dict[str, Any]]`: The processor, then each accelerator: `device`, `name`, the types that are fast on it
        (`dtypes`), and for accelerators `memory_gib`.
    """
    cpu_types = ["float32", "bfloat16"] if cpu_bfloat16() else ["float32"]
    devices: list[dict[str, Any]] = [{"device": "cpu", "name": platform.processor() or platform.machine()}]
    devices[0]["dtypes"] = cpu_types
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        # Emulation would make every GPU pass.
        types = ["float32", "float16"] + ["bfloat16"] * torch.cuda.is_bf16_supported(including_emulation=False)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "dtypes": types,
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU", "dtypes": ["float32", "float16", "bfloat16"]})
    return devices


def cpu_bfloat16() -> str | None:
    """
    Returns:
        `str`, *optional*: The processor's instructions for bfloat16; `None` without any, or if torch cannot tell.
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # older versions of torch cannot tell
        return None
    capabilities = torch.cpu.get_capabilities()
    return next((name for name in BFLOAT16_INSTRUCTIONS if capabilities.get(name)), None)


def describe_attention() -> dict[str, bool]:
    """
    Returns:
        `dict[str, bool]`: Attention implementations by the name that `attn_implementation` takes, and whether they run
        here.
    """
    return {
        "eager": True,
        "sdpa": True,
        "flash_attention_2": torch.cuda.is_available() and is_flash_attn_2_available(),
        "flex_attention": is_torch_flex_attn_available(),
    }


def describe_compile() -> dict[str, Any]:
    """
    Returns:
        `dict[str, Any]`: `available`: whether `torch.compile` can make code for the best device here; `reason`: with
        what, or why not.
    """
    if torch.cuda.is_available():
        version = installed_version("triton")
        return {"available": version is not None, "reason": f"triton {version}" if version else "triton is missing"}
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))), None)
    return {"available": compiler is not None, "reason": compiler or "no C++ compiler (g++ or clang++) is on the path"}


def check_requirements() -> list[Finding]:
    """
    Returns:
        `list[Finding]`: The libraries whose versions this package does not work with, or that they are all right.
    """
    findings = []
    for line in importlib.metadata.requires("dimple_hf") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        # Builds from source count as what they are before.
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            findings.append(
                Finding(
                    "versions",
                    "problem",
                    f"{requirement.name} must be {requirement.specifier} (got {version or 'none'}): "
                    f"`pip install '{requirement.name}{requirement.specifier}'`",
                )
            )
    return findings or [Finding("versions", "ok", "all libraries are of versions that this package works with")]


def check_torchvision() -> list[Finding]:
    """
    Returns:
        `list[Finding]`: A problem if a torchvision is installed that cannot be imported. This package needs none, but
        transformers takes any that is installed for one that works.
    """
    version = installed_version("torchvision")
    if version is None:
        return []
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a mismatch with torch shows as an error of any kind
        message = (
            f"torchvision {version} cannot be imported with torch {torch.__version__} ({error}): `pip uninstall "
            "torchvision`, which this package does not need, or install the version that belongs to this torch"
        )
        return [Finding("torchvision", "problem", message)]
    return [Finding("torchvision", "ok", f"{version} can be imported; this package does not need it")]


def check_device() -> list[Finding]:
    """Returns whether the released model fits into the largest accelerator."""
    accelerators = [device for device in describe_devices() if device["device"] != "cpu"]
    if not accelerators:
        message = "none: models of billions of parameters run on the processor, slowly; small ones do well"
        return [Finding("accelerator", "warning", message)]
    largest = max(accelerators, key=lambda device: device.get("memory_gib", 0.0))
    memory = largest.get("memory_gib")
    if memory is not None and memory < RELEASED_MODEL_GIB:
        message = (
            f"{largest['name']} has {memory} GiB; the released model needs {RELEASED_MODEL_GIB} in bfloat16: quantize "
            "it with `dimple-hf convert --quantize nf4`"
        )
        return [Finding("accelerator", "warning", message)]
    return [Finding("accelerator", "ok", f"{largest['name']}" + (f", {memory} GiB" if memory is not None else ""))]


def check_bfloat16() -> list[Finding]:
    """Returns whether bfloat16, the type of released weights, is fast on the best device."""
    devices = describe_devices()
    device = devices[-1]
    if "bfloat16" in device["dtypes"]:
        how = f" ({cpu_bfloat16()})" if device["device"] == "cpu" else ""
        return [Finding("bfloat16", "ok", f"fast on {device['device']}{how}")]
    better = "float32" if device["device"] == "cpu" else "float16"
    message = f"no instructions for it on {device['device']}: load with `dtype=torch.{better}`"
    return [Finding("bfloat16", "warning", message)]


def check_attention() -> list[Finding]:
    """Returns which attention implementation to take."""
    message = 'sdpa, the default; `attn_implementation="flash_attention_2"`: '
    if describe_attention()["flash_attention_2"]:
        message += "can be had, too"
    elif torch.cuda.is_available():
        message += "not here, flash_attn is not installed"
    else:
        message += "not here, it needs an NVIDIA GPU"
    return [Finding("attention", "ok", message)]


def check_compile() -> list[Finding]:
    """Returns whether `torch.compile` works."""
    found = describe_compile()
    if found["available"]:
        return [Finding("torch.compile", "ok", f"available ({found['reason']})")]
    return [Finding("torch.compile", "warning", f"not available: {found['reason']}")]


def check_threads() -> list[Finding]:
    """Returns whether torch has as many threads as there are cores."""
    threads, cores = torch.get_num_threads(), num_cores()
    if threads > cores:
        message = f"{threads} threads for {cores} cores get in each other's way: set OMP_NUM_THREADS={cores}"
        return [Finding("threads", "warning", message)]
    return [Finding("threads", "ok", f"{threads} of {cores} cores; OMP_NUM_THREADS changes that")]

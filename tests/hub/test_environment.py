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
"""The report on a machine: what it says on each kind, on machines that we only pretend to have."""

import importlib.metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dimple_hf.hub import check_environment, describe_environment, environment
from dimple_hf.hub.findings import Finding


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, gib: float, bfloat16: bool = True) -> None:
    """One NVIDIA GPU with so much memory."""
    properties = SimpleNamespace(name="Test GPU", total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bfloat16)


def pretend_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def pretend_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Other versions of some distributions; `None`: not installed."""
    true_version = environment.installed_version
    monkeypatch.setattr(environment, "installed_version", lambda name: versions.get(name, true_version(name)))


def only(findings: list[Finding]) -> tuple[str, str]:
    (finding,) = findings
    return finding.status, finding.message


def test_report_on_this_machine_is_whole() -> None:
    """Every part is there, and what is installed has the version that pip says."""
    report = describe_environment()
    assert set(report) == {"versions", "devices", "threads", "attention", "compile"}
    assert report["versions"]["transformers"] == importlib.metadata.version("transformers")
    assert report["devices"][0]["device"] == "cpu"
    assert report["attention"]["sdpa"] is True
    assert report["threads"]["torch"] == torch.get_num_threads()
    subjects = [finding.subject for finding in check_environment()]
    assert {"versions", "accelerator", "bfloat16", "attention", "torch.compile", "threads"} <= set(subjects)


def test_library_out_of_range_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too old, too new, or missing; libraries of extras are left alone."""
    assert only(environment.check_requirements())[0] == "ok"
    pretend_versions(monkeypatch, transformers="5.10.0", peft="1.0.0", jsonschema="0.1")
    findings = environment.check_requirements()
    assert [finding.status for finding in findings] == ["problem", "problem"]
    assert any("transformers must be <6,>=5.23 (got 5.10.0)" in finding.message for finding in findings)
    assert any("peft must be <1,>=0.20 (got 1.0.0)" in finding.message for finding in findings)
    pretend_versions(monkeypatch, transformers=None, peft="0.20.0")
    monkeypatch.setattr(environment, "installed_version", lambda name: None if name == "accelerate" else "999")
    assert any("accelerate must be" in finding.message for finding in environment.check_requirements())


def test_torchvision_that_cannot_be_imported_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual fault: built for another torch. None at all is fine, a sound one, too."""
    monkeypatch.delitem(__import__("sys").modules, "torchvision", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    pretend_versions(monkeypatch, torchvision=None)
    assert environment.check_torchvision() == []
    pretend_versions(monkeypatch, torchvision="0.1")
    package = tmp_path / "torchvision.py"
    package.write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    status, message = only(environment.check_torchvision())
    assert status == "problem"
    assert "nms does not exist" in message
    assert "`pip uninstall torchvision`" in message
    package.write_text("\n")
    assert only(environment.check_torchvision())[0] == "ok"
    monkeypatch.delitem(__import__("sys").modules, "torchvision")


@pytest.mark.parametrize(
    ("gib", "status", "message"), [(139.0, "ok", "Test GPU, 139.0 GiB"), (8.0, "warning", "--quantize nf4")]
)
def test_gpu_is_measured_against_the_released_model(
    monkeypatch: pytest.MonkeyPatch, gib: float, status: str, message: str
) -> None:
    """8,317,863,936 numbers of 2 bytes are 15.5 GiB."""
    assert 8_317_863_936 * 2 / 2**30 < environment.RELEASED_MODEL_GIB
    pretend_gpu(monkeypatch, gib)
    found = only(environment.check_device())
    assert found[0] == status
    assert message in found[1]


def test_machine_without_gpu_is_told_what_to_expect(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, no problem: it works."""
    pretend_no_gpu(monkeypatch)
    assert only(environment.check_device())[0] == "warning"
    assert environment.describe_attention()["flash_attention_2"] is False
    assert "it needs an NVIDIA GPU" in only(environment.check_attention())[1]


@pytest.mark.parametrize(
    ("capabilities", "name"), [({"avx512_bf16": True, "amx_bf16": False}, "avx512_bf16"), ({}, None)]
)
def test_bfloat16_on_a_processor_depends_on_its_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], name: str | None
) -> None:
    """Released weights are bfloat16; without instructions float32 is faster."""
    pretend_no_gpu(monkeypatch)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert environment.cpu_bfloat16() == name
    status, message = only(environment.check_bfloat16())
    assert (status, "avx512_bf16" in message) == (("ok", True) if name else ("warning", False))
    assert ("`dtype=torch.float32`" in message) == (name is None)


def test_older_torch_cannot_tell_the_processors_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then nothing is claimed."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert environment.cpu_bfloat16() is None


def test_bfloat16_on_an_old_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bfloat16 works, slowly."""
    pretend_gpu(monkeypatch, 16.0, bfloat16=False)
    assert only(environment.check_bfloat16()) == (
        "warning",
        "no instructions for it on cuda:0: load with `dtype=torch.float16`",
    )


def test_flash_attention_is_offered_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs the GPU and the library."""
    pretend_gpu(monkeypatch, 80.0)
    monkeypatch.setattr(environment, "is_flash_attn_2_available", lambda: True)
    assert "can be had, too" in only(environment.check_attention())[1]
    monkeypatch.setattr(environment, "is_flash_attn_2_available", lambda: False)
    assert "flash_attn is not installed" in only(environment.check_attention())[1]


def test_compile_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton on a GPU, a C++ compiler elsewhere."""
    pretend_no_gpu(monkeypatch)
    monkeypatch.setattr(environment.shutil, "which", lambda name: "/bin/clang++" if name == "clang++" else None)
    assert only(environment.check_compile()) == ("ok", "available (/bin/clang++)")
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert only(environment.check_compile())[0] == "warning"
    pretend_gpu(monkeypatch, 80.0)
    pretend_versions(monkeypatch, triton="3.5.0")
    assert only(environment.check_compile()) == ("ok", "available (triton 3.5.0)")
    pretend_versions(monkeypatch, triton=None)
    assert only(environment.check_compile()) == ("warning", "not available: triton is missing")


@pytest.mark.parametrize(("threads", "status"), [(2, "ok"), (4, "ok"), (8, "warning")])
def test_more_threads_than_cores_is_a_warning(monkeypatch: pytest.MonkeyPatch, threads: int, status: str) -> None:
    """As in a container that sees all cores of its host and may use a few."""
    monkeypatch.setattr(environment, "num_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert only(environment.check_threads())[0] == status

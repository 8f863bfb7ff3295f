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
"""What commands load: a device of this machine, and a checkpoint that is there, or one line that says which is not."""

import time
from pathlib import Path

import pytest
import torch

from dimple_hf.cli.loading import find_checkpoint, find_device
from dimple_hf.cli.main import main


def test_find_device_takes_that_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher sets which GPU is whose."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find_device(None) == "cuda:3"
    monkeypatch.delenv("LOCAL_RANK")
    assert find_device(None) == "cuda:0"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device(None) == "cpu"
    assert find_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["banana", "meta", "", "cpu:x"])
def test_find_device_refuses_what_this_machine_does_not_have(name: str) -> None:
    """With the option's name, whatever torch raises for it."""
    with pytest.raises(ValueError, match="`--device` must be a device of this machine") as refused:
        find_device(name)
    assert "\n" not in str(refused.value)


def test_device_that_is_none_is_one_line(capsys: pytest.CaptureFixture) -> None:
    assert main(["generate", "--device", "banana", "What?"]) == 1
    assert capsys.readouterr().err == (
        "dimple-hf generate: `--device` must be a device of this machine, such as cpu (got 'banana')\n"
    )


@pytest.mark.parametrize("command", [["generate", "What?", "--model"], ["serve"], ["doctor", "--model"]])
def test_checkpoint_of_the_hub_without_a_network_is_one_line(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """At once, also where nobody has said that the Hub is to be left alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    start = time.monotonic()
    assert main([*command, "rp-yu/Dimple-7B"]) == 1
    assert time.monotonic() - start < 10
    assert capsys.readouterr().err == (
        f"dimple-hf {command[0]}: rp-yu/Dimple-7B must be a directory, or a model in the cache while the Hub cannot "
        "be reached (got neither)\n"
    )


def test_find_checkpoint_of_a_directory_is_itself(tmp_path: Path) -> None:
    assert find_checkpoint(str(tmp_path)) == str(tmp_path)


def test_adapter_of_the_hub_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a checkpoint, and before that is loaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr("transformers.AutoModelForImageTextToText", None)
    assert main(["generate", "--adapter", "somebody/adapter", "What?"]) == 1
    assert capsys.readouterr().err == (
        "dimple-hf generate: somebody/adapter must be a directory, or a model in the cache while the Hub cannot be "
        "reached (got neither)\n"
    )


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("form.png", " that loads (got no configuration: config.json must be there)"),
        ("adapter_config.json", " (got an adapter, for `--adapter` of `generate`)"),
    ],
)
def test_folder_that_is_no_checkpoint_is_named_for_what_it_lacks(
    tmp_path: Path, file: str, reason: str, capsys: pytest.CaptureFixture
) -> None:
    """A folder of images, or of an adapter."""
    (tmp_path / file).write_text("{}")
    assert main(["generate", "--model", str(tmp_path), "What?"]) == 1
    assert capsys.readouterr().err == f"dimple-hf generate: {tmp_path} must be a checkpoint{reason}\n"


def test_data_check_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The processor of a model on the Hub; with that of the package, no network is needed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hi", "completion": "you"}\n')
    assert main(["data", "check", str(tmp_path / "rows.jsonl")]) == 0
    found = capsys.readouterr()
    assert "tokens are counted as for the small model of the package; `--model` names another" in found.err
    assert "1 example" in found.out
    assert main(["data", "check", str(tmp_path / "rows.jsonl"), "--model", "rp-yu/Dimple-7B"]) == 1
    assert capsys.readouterr().err == (
        "dimple-hf data: rp-yu/Dimple-7B must be a directory, or a model in the cache while the Hub cannot be "
        "reached (got neither)\n"
    )

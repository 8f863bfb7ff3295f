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
"""Every Auto class finds our classes, whatever `trust_remote_code` says, and runs nothing from a checkpoint directory.

The directory is one as users find it on the Hub, with `auto_map` entries; the files that these point to are traps. A
trap that is run leaves a mark and raises.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from helpers import tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from traps import set_traps

import dimple_hf
from dimple_hf import DimpleForConditionalGeneration

AUTO_CLASSES = {
    "AutoConfig": "DimpleConfig",
    "AutoModel": "DimpleForConditionalGeneration",
    "AutoModelForCausalLM": "DimpleForConditionalGeneration",
    "AutoModelForImageTextToText": "DimpleForConditionalGeneration",
    "AutoModelForMultimodalLM": "DimpleForConditionalGeneration",
    "AutoProcessor": "DimpleProcessor",
    "AutoImageProcessor": "DimpleImageProcessor",
    "AutoTokenizer": "DimpleTokenizer",
}
TRUST = pytest.mark.parametrize("trust_remote_code", [None, False, True])


@pytest.fixture(scope="module")
def trapped_checkpoint(parity_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkpoint with a trap at every position that code is looked for."""
    directory = tmp_path_factory.mktemp("trapped") / "checkpoint"
    shutil.copytree(parity_dir / "checkpoint", directory)
    set_traps(directory)
    return directory


@pytest.fixture(autouse=True)
def questions(trapped_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """What was asked on stdin: in the end nothing, and no trap was run. (Some callers swallow what a trap raises.)"""
    asked: list[str] = []

    def ask(question: str = "") -> str:
        asked.append(question)
        return "n"

    monkeypatch.setattr("builtins.input", ask)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    mark = trapped_checkpoint.parent / "executed"
    mark.unlink(missing_ok=True)
    yield asked
    assert asked == []
    assert not mark.exists()


def pointers(directory: Path) -> set[str]:
    """All `auto_map` entries in a directory's files."""
    found: set[str] = set()
    for path in directory.glob("*.json"):
        fields = json.loads(path.read_text(encoding="utf-8"))
        found |= set(fields.get("auto_map", {})) if isinstance(fields, dict) else set()
    return found


def dangling(directory: Path) -> set[str]:
    """The `auto_map` entries whose class is not in a file of the directory."""
    found: set[str] = set()
    for path in directory.glob("*.json"):
        fields = json.loads(path.read_text(encoding="utf-8"))
        for auto_class, reference in (fields.get("auto_map", {}) if isinstance(fields, dict) else {}).items():
            module, name = (reference[0] if isinstance(reference, list) else reference).split(".")
            code = directory / f"{module}.py"
            if not code.exists() or f"class {name}(" not in code.read_text(encoding="utf-8"):
                found.add(auto_class)
    return found


def test_traps_work(trapped_checkpoint: Path, questions: list[str]) -> None:
    """The control of all tests here: the pointers are there, they lead to traps, and traps leave a mark."""
    assert {"AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer"} <= pointers(
        trapped_checkpoint
    )
    mark = trapped_checkpoint.parent / "executed"
    with pytest.raises(RuntimeError, match="code of the checkpoint was run: modeling_dimple"):
        get_class_from_dynamic_module("modeling_dimple.DimpleModel", trapped_checkpoint)
    assert mark.exists()
    mark.unlink()
    input("?")
    assert questions.pop() == "?"


@TRUST
@pytest.mark.parametrize("name", AUTO_CLASSES)
def test_auto_class_loads_our_class(name: str, trust_remote_code: bool | None, trapped_checkpoint: Path) -> None:
    """`None` must not ask, `True` must not prefer the checkpoint's code, `False` must not refuse."""
    loaded = getattr(transformers, name).from_pretrained(trapped_checkpoint, trust_remote_code=trust_remote_code)
    assert type(loaded) is getattr(dimple_hf, AUTO_CLASSES[name])


@TRUST
@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor"])
def test_auto_class_loads_our_class_from_what_we_saved(
    name: str, trust_remote_code: bool | None, trapped_checkpoint: Path, tmp_path: Path
) -> None:
    """Model and processor saved to one directory load from there, and its pointers lead to the code in it."""
    for auto_class in (AutoModel, AutoProcessor):
        auto_class.from_pretrained(trapped_checkpoint).save_pretrained(tmp_path / "saved")
    assert pointers(tmp_path / "saved") == set(AUTO_CLASSES)
    assert dangling(tmp_path / "saved") == set()
    assert dangling(trapped_checkpoint) == pointers(trapped_checkpoint)  # control
    loaded = getattr(transformers, name).from_pretrained(tmp_path / "saved", trust_remote_code=trust_remote_code)
    assert type(loaded) is getattr(dimple_hf, AUTO_CLASSES[name])


@TRUST
def test_pipeline_loads_our_classes(trust_remote_code: bool | None, trapped_checkpoint: Path) -> None:
    """It also looks for a video processor, for which transformers would ask on stdin."""
    chat = pipeline("image-text-to-text", model=str(trapped_checkpoint), trust_remote_code=trust_remote_code)
    assert type(chat.model) is DimpleForConditionalGeneration
    assert type(chat.processor) is dimple_hf.DimpleProcessor
    messages = [{"role": "user", "content": [{"type": "text", "text": "Count to three."}]}]
    (result,) = chat(text=[messages], max_new_tokens=4, return_full_text=False)
    assert isinstance(result[0]["generated_text"], str)


@TRUST
def test_auto_model_from_config_builds_our_class(trust_remote_code: bool | None, trapped_checkpoint: Path) -> None:
    """Training from scratch starts like this."""
    config = AutoConfig.from_pretrained(trapped_checkpoint, trust_remote_code=trust_remote_code)
    model = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    assert type(model) is DimpleForConditionalGeneration


@TRUST
def test_tokenizer_of_a_directory_without_config_is_ours(
    trust_remote_code: bool | None, trapped_checkpoint: Path, tmp_path: Path
) -> None:
    """A tokenizer directory alone, as upstream saves it: the class is found by its name."""
    directory = tmp_path / "tokenizer"
    shutil.copytree(trapped_checkpoint, directory, ignore=shutil.ignore_patterns("config.json", "*.safetensors*"))
    assert not (directory / "config.json").exists()
    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    assert type(tokenizer) is dimple_hf.DimpleTokenizer


@pytest.mark.parametrize("auto_class", [DimpleForConditionalGeneration, AutoModel, AutoModelForImageTextToText])
def test_from_pretrained_takes_fields_of_the_configuration(auto_class: Any, tmp_path: Path) -> None:
    """As for any transformers model, and whichever class loads."""
    tiny_model().save_pretrained(tmp_path)
    fields = {"full_attn_mask": False, "loss_weighting": "elbo", "attention_dropout": 0.25, "use_cache": True}
    model = auto_class.from_pretrained(tmp_path, **fields)
    assert {name: getattr(model.config, name) for name in fields} == fields
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    plain = auto_class.from_pretrained(tmp_path)
    assert plain.generation_config.to_dict() == model.generation_config.to_dict()
    assert not any(getattr(plain.config, name) == value for name, value in fields.items())  # control

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
"""Pulls what `push` pushed, in a process where the package cannot be imported. Run by `test_push_and_pull`.

Usage: pull.py IMAGE PAGE RESULT. The result (JSON) has what each function below returned, or what it raised.
"""

import json
import shutil
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any


class Refuser(MetaPathFinder):
    """Says of the package that it is not there, as on a machine without it."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "dimple_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Refuser())

import huggingface_hub
import torch
import transformers
from huggingface_hub import get_session, snapshot_download
from peft import PeftModel
from session import answers, run_snippets
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor, dynamic_module_utils

if not sys.stdin.readline():  # copies of what was pushed, and faults of the server, come first
    sys.exit("the test has ended")

image, page, result_file = sys.argv[1:]
trusted = {"trust_remote_code": True}
# The files are small: read them in pieces that are smaller still, so that some are kept when a connection ends; and do
# not wait a second before each new attempt.
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 1 << 14
huggingface_hub.file_download.time.sleep = lambda seconds: None
# Which libraries a file of code needs is read once, not for each class of each copy.
read_imports = dynamic_module_utils.get_imports
imports_of: dict[bytes, list[str]] = {}


def get_imports(filename: str) -> list[str]:
    with open(filename, "rb") as file:
        content = file.read()
    if content not in imports_of:
        imports_of[content] = read_imports(filename)
    return imports_of[content]


dynamic_module_utils.get_imports = get_imports


def mark(name: str) -> None:
    """Leaves a mark in the server's record of requests."""
    get_session().get(f"{huggingface_hub.constants.ENDPOINT}/mark/{name}")


def raised(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """What a call that should fail raises, with its type."""
    try:
        return f"returned {function(*arguments, **options)!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def answers_of(repo: str, **options: Any) -> dict[str, Any]:
    """Pulls model and processor through the Auto classes, and asks them."""
    model = AutoModelForImageTextToText.from_pretrained(repo, **trusted, **options)
    return answers(model, AutoProcessor.from_pretrained(repo, **trusted, **options), image)


def answers_of_weights(repo: str) -> dict[str, Any]:
    """Pulls only configuration and weights; the code is `team/dimple`'s."""
    base = AutoModel.from_pretrained("team/dimple", **trusted)
    model = type(base).from_pretrained(repo)
    return answers(model, AutoProcessor.from_pretrained("team/dimple", **trusted), image)


def package() -> str:
    return raised(__import__, "dimple_hf")


def untrusted() -> str:
    return raised(AutoModel.from_pretrained, "team/dimple", trust_remote_code=False)


def classes() -> dict[str, str]:
    names = ("Config", "Model", "ModelForImageTextToText", "Processor", "Tokenizer", "ImageProcessor")
    loaded = {name: getattr(transformers, f"Auto{name}").from_pretrained("team/dimple", **trusted) for name in names}
    return {name: f"{type(part).__module__}.{type(part).__name__}" for name, part in loaded.items()}


def pulled() -> dict[str, Any]:
    return answers_of("team/dimple")


def pulled_again() -> dict[str, Any]:
    mark("again")
    result = answers_of("team/dimple")
    mark("end")
    return result


def tag() -> dict[str, Any]:
    return answers_of("team/dimple", revision="v0")


def directory() -> dict[str, Any]:
    return answers_of(snapshot_download("team/dimple", local_dir="directory"))


def config_alone() -> str:
    config = AutoConfig.from_pretrained("team/config", **trusted)
    with torch.device("meta"):
        return type(AutoModel.from_config(config, **trusted)).__name__


def private() -> dict[str, Any]:
    return answers_of("team/private-copy", token="right")


def private_to_others() -> list[str]:
    return [
        raised(auto_class.from_pretrained, repo, token=token, **trusted)
        for token in ("wrong", None)
        for auto_class, repo in ((AutoModel, "team/secret"), (AutoProcessor, "team/private"))
    ]


def adapter() -> dict[str, Any]:
    model = AutoModelForImageTextToText.from_pretrained("team/adapter", dtype=torch.float32, **trusted)
    return answers(model, AutoProcessor.from_pretrained("team/dimple", **trusted), image)


def adapter_with_peft() -> dict[str, Any]:
    base = AutoModel.from_pretrained("team/dimple", dtype=torch.float32, **trusted)
    model = PeftModel.from_pretrained(base, "team/adapter")
    model.config.full_attn_mask = model.active_peft_config.auto_mapping["full_attn_mask"]
    return answers(model, AutoProcessor.from_pretrained("team/dimple", **trusted), image)


def cut_once() -> dict[str, Any]:
    return answers_of_weights("team/cut-once")


def cut_again_and_again() -> list[Any]:
    return [raised(answers_of_weights, "team/cut-off"), answers_of_weights("team/cut-off")]


def changed_on_the_way() -> list[Any]:
    return [raised(answers_of_weights, "team/changed"), answers_of_weights("team/changed")]


def changed_adapter() -> str:
    return raised(AutoModel.from_pretrained, "team/changed-adapter", **trusted)


def pushed_from_here() -> None:
    model = AutoModelForImageTextToText.from_pretrained("team/dimple", **trusted)
    model.push_to_hub("team/again", token="right", max_shard_size=model.get_memory_footprint() // 3)
    AutoProcessor.from_pretrained("team/dimple", **trusted).push_to_hub("team/again", token="right")


def snippets() -> list[str]:
    shutil.copy(image, "photo.png")
    namespace: dict[str, Any] = {}
    run_snippets(page, "Pull without the package", namespace)
    run_snippets(page, "Adapters", namespace, slice(2, 3))
    return [sorted(namespace["answer"]), type(namespace["adapted"]).__module__.split(".")[0]]


results = {}
for check in (
    package, untrusted, classes, pulled, pulled_again, tag, directory, config_alone, private, private_to_others,
    adapter, adapter_with_peft, cut_once, cut_again_and_again, changed_on_the_way, changed_adapter, pushed_from_here,
    snippets,
):  # fmt: skip
    try:
        results[check.__name__] = check()
    except Exception as error:
        results[check.__name__] = f"{type(error).__name__}: {error}"
with open(result_file, "w") as file:
    json.dump(results, file)

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
"""Model, processor and adapter go to the Hub and come back: without the package, and with it.

The real client talks to `hub_server`. Two processes do everything, once: `push`, with the package, and `pull`,
without it (see `round_trip`). Each test here looks at one part of what they found.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, change, cut

SCRIPTS = Path(__file__).resolve().parent

#: The adapter's only file of weights.
ADAPTER = "adapter_model.safetensors"

CONFIG_FILES = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass
class RoundTrip:
    """The server afterwards; the shard whose transfer had faults; and what `push` and `pull` wrote."""

    hub: HubServer
    shard: str
    pushed: dict[str, Any]
    pulled: dict[str, Any]


def start(script: str, *arguments: str | Path, home: Path, hub: HubServer, token: str) -> subprocess.Popen[str]:
    """Starts a script whose Hub is ours, with a cache of its own and nobody who answers questions."""
    home.mkdir()
    changes = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home / "cache"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # a faster protocol of the real Hub, which the client would take for granted
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_TOKEN": token,
    }
    pipe = subprocess.PIPE
    command = [sys.executable, SCRIPTS / script, *arguments]
    return subprocess.Popen(
        command, cwd=home, env=os.environ | changes, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Lets a script go on and waits for its end."""
    output, _ = process.communicate("go on\n")
    assert process.returncode == 0, output


def read_until(line: str, process: subprocess.Popen[str]) -> None:
    """Waits for a line of its output, which may come after others, and fails with all of them if it never does."""
    output = ""
    for found in process.stdout:
        output += found
        if found == line:
            return
    pytest.fail(output)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("src/dimple_hf/checkpoints/forms", id="forms"),
        pytest.param("tests/fixtures/parity/checkpoint", id="original", marks=pytest.mark.slow),
    ],
)
def round_trip(
    request: pytest.FixtureRequest, repo_root: Path, parity_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RoundTrip]:
    """
    A checkpoint, pushed, and pulled where the package cannot be imported: the small model of the package, in bfloat16;
    or a directory as the original writes it.
    """
    folder = tmp_path_factory.mktemp("hub")
    image = parity_dir / "tiny" / "images" / "3.png"
    page = repo_root / "docs" / "hub.md"
    results = [folder / name for name in ("pushed.json", "pulled.json")]
    arguments = ("round_trip.py", repo_root / request.param, image, page, *results, "right")
    with (
        HubServer(tokens={"right": "user"}) as hub,
        start(*arguments, home=folder / "home", hub=hub, token="") as process,
    ):
        read_until("pushed\n", process)
        for name in ("private-copy", "secret", "cut-once", "cut-off", "changed"):
            hub.copy("team/dimple", f"team/{name}", private=name in ("private-copy", "secret"))
        hub.copy("team/adapter", "team/changed-adapter")
        files, adapter = hub.repositories["team/dimple"].files(), hub.repositories["team/adapter"].files()
        shard = sorted(name for name in files if name.endswith(".safetensors"))[1]
        hub.faults = {
            ("team/cut-once", shard): [cut(after=len(files[shard]) // 2)],
            ("team/cut-off", shard): [cut(after=0)] * 6,  # as often as the client tries
            ("team/changed", shard): [change(position=len(files[shard]) // 2)],
            ("team/changed-adapter", ADAPTER): [change(position=len(adapter[ADAPTER]) // 2)],
        }
        finish(process)
        pushed, pulled = (json.loads(path.read_text()) for path in results)
        yield RoundTrip(hub, shard, pushed, pulled)


def pointers(files: dict[str, bytes]) -> dict[str, str]:
    """Auto class -> `module.Class`, from all files of a repository."""
    found: dict[str, str] = {}
    for name in CONFIG_FILES:
        for auto_class, reference in json.loads(files.get(name, b"{}")).get("auto_map", {}).items():
            found[auto_class] = reference[0] if isinstance(reference, list) else reference
    return found


def is_whole(files: dict[str, bytes]) -> bool:
    """Whether every pointer to code leads to a class in one of the files."""
    return all(
        f"class {reference.split('.')[1]}(".encode() in files.get(f"{reference.split('.')[0]}.py", b"")
        for reference in pointers(files).values()
    )


def test_repository_is_complete_and_flat(round_trip: RoundTrip, repo_root: Path) -> None:
    """Weights in shards, all configurations, the tokenizer in both formats, the template, and every file of code."""
    files = round_trip.hub.repositories["team/dimple"].files()
    shards = {name for name in files if name.endswith(".safetensors")}
    assert len(shards) > 1
    assert shards == set(json.loads(files["model.safetensors.index.json"])["weight_map"].values())
    package = repo_root / "src" / "dimple_hf"
    code = {path.name for folder in ("modeling", "processing") for path in (package / folder).glob("*_dimple.py")}
    assert {name for name in files if name.endswith(".py")} == code
    assert set(files) - shards - code == {
        "README.md", "config.json", "generation_config.json", "model.safetensors.index.json", "processor_config.json",
        "preprocessor_config.json", "chat_template.jinja", "chat_template.json", "tokenizer.json",
        "tokenizer_config.json", "vocab.json", "merges.txt",
    }  # fmt: skip
    assert set(pointers(files)) == {
        "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM",
        "AutoProcessor", "AutoImageProcessor", "AutoTokenizer",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("repo", "auto_classes"),
    [
        ("team/dimple", 8),
        ("team/again", 8),
        ("team/config", 5),
        ("team/image-processor", 1),
        ("team/tokenizer", 1),
        ("team/private", 3),
    ],
)
def test_repository_has_no_pointer_that_leads_nowhere(repo: str, auto_classes: int, round_trip: RoundTrip) -> None:
    """Whatever is pushed alone brings the code that its file points to; a configuration, that of the model."""
    files = round_trip.hub.repositories[repo].files()
    assert len(pointers(files)) == auto_classes
    assert is_whole(files)
    # control: it would be seen
    (reference, *_) = pointers(files).values()
    assert not is_whole({name: data for name, data in files.items() if name != f"{reference.split('.')[0]}.py"})


def test_package_is_hidden_where_the_repository_is_pulled(round_trip: RoundTrip) -> None:
    """The control of all tests here."""
    assert round_trip.pulled["package"] == "ModuleNotFoundError: No module named 'dimple_hf'"
    assert round_trip.pulled["untrusted"].startswith("ValueError: The repository team/dimple contains custom code")


def test_auto_classes_without_the_package_find_the_code_of_the_repository(round_trip: RoundTrip) -> None:
    """All five, and both names of the model."""
    repository = round_trip.hub.repositories["team/dimple"]
    folder = f"transformers_modules.team.dimple.{repository.branches['main']}"
    assert round_trip.pulled["classes"] == {
        "Config": f"{folder}.configuration_dimple.DimpleConfig",
        "Model": f"{folder}.modeling_dimple.DimpleForConditionalGeneration",
        "ModelForImageTextToText": f"{folder}.modeling_dimple.DimpleForConditionalGeneration",
        "Processor": f"{folder}.processing_dimple.DimpleProcessor",
        "Tokenizer": f"{folder}.tokenization_dimple.DimpleTokenizer",
        "ImageProcessor": f"{folder}.image_processing_dimple.DimpleImageProcessor",
    }


@pytest.mark.parametrize("way", ["pulled", "directory", "private"])
def test_pulled_model_answers_as_the_local_one(way: str, round_trip: RoundTrip) -> None:
    """A batch with an image, and an answer under a prior: token for token, from the Hub and from a directory."""
    assert round_trip.pulled[way] == round_trip.pushed["model"]
    assert round_trip.pushed["model"]["formed"] != round_trip.pushed["first version"]["formed"]  # control


def test_tag_gives_the_model_as_it_was(round_trip: RoundTrip) -> None:
    """The branch was tagged before the present model was pushed."""
    assert round_trip.pulled["tag"] == round_trip.pushed["first version"]
    assert round_trip.pushed["first version"] != round_trip.pushed["model"]  # control


def test_pulling_again_transfers_no_file(round_trip: RoundTrip) -> None:
    """Only which commit is meant is asked for, and what it lists."""
    assert round_trip.pulled["pulled_again"] == round_trip.pulled["pulled"]
    requests = round_trip.hub.requests_after("again")
    assert {request.path for request in requests if request.status == 200} == {
        "/api/models/team/dimple",
        "/api/models/team/dimple/tree/main?recursive=true&expand=false",
    }
    assert any("/resolve/" in request.path and request.sent for request in round_trip.hub.requests)  # control


def test_package_loads_its_own_classes_and_asks_nothing(round_trip: RoundTrip) -> None:
    """Whatever `trust_remote_code` says, no file of code is even requested."""
    assert round_trip.pushed["modules"] == [
        "dimple_hf.modeling.modeling_dimple",
        "dimple_hf.processing.processing_dimple",
        "dimple_hf.processing.tokenization_dimple",
    ]
    paths = [request.path for request in round_trip.hub.requests_after("package")]
    assert any(path.endswith("config.json") for path in paths)  # control
    assert not any(path.endswith(".py") for path in paths)


def test_configuration_pushed_alone_finds_the_model(round_trip: RoundTrip) -> None:
    """Who corrects a configuration on the Hub must not break the repository."""
    assert round_trip.pulled["config_alone"] == "DimpleForConditionalGeneration"


def test_private_repository_is_refused_without_the_right_token(round_trip: RoundTrip) -> None:
    """With a wrong token the Hub says so; without one it does not even say that the repository exists."""
    wrong_model, wrong_processor, no_model, no_processor = round_trip.pulled["private_to_others"]
    for message in (wrong_model, wrong_processor):
        assert message.startswith("OSError")
        assert "401" in message
        assert "Invalid credentials" in message
    for message, repo in ((no_model, "team/secret"), (no_processor, "team/private")):
        assert message.startswith(f"OSError: {repo} is not a local folder")
        assert "If this is a private repository, make sure to pass a token" in message


@pytest.mark.parametrize("way", ["adapter", "adapter_with_peft"])
def test_pulled_adapter_answers_as_the_local_one_in_its_own_mode(way: str, round_trip: RoundTrip) -> None:
    """The Auto classes pull the base that the adapter names and switch it; with PEFT the mode is set by hand."""
    assert set(round_trip.hub.repositories["team/adapter"].files()) == {"README.md", "adapter_config.json", ADAPTER}
    assert round_trip.pulled[way] == round_trip.pushed["adapter"]
    for other in ("model", "adapter in the other mode"):  # control
        assert round_trip.pushed[other]["batch"] != round_trip.pushed["adapter"]["batch"]


def test_connection_that_is_cut_goes_on_where_it_ended(round_trip: RoundTrip) -> None:
    """The second request asks for the rest only."""
    assert round_trip.pulled["cut_once"] == round_trip.pushed["model"]
    size = len(round_trip.hub.repositories["team/cut-once"].files()[round_trip.shard])
    transfers = [
        (request.status, request.sent)
        for request in round_trip.hub.requests
        if request.path.startswith("/content/team/cut-once/") and request.path.endswith(round_trip.shard)
    ]
    (first_status, first_sent), (second_status, second_sent) = transfers
    assert (first_status, second_status) == (200, 206)
    assert first_sent == size // 2
    assert size - first_sent <= second_sent < size  # what was still on its way is sent twice


def test_connection_that_stays_cut_fails_and_the_next_pull_succeeds(round_trip: RoundTrip) -> None:
    """Nothing half-written is taken for the file, and the other shards are not transferred again."""
    error, answers = round_trip.pulled["cut_again_and_again"]
    assert "peer closed connection without sending complete message body" in error
    assert answers == round_trip.pushed["model"]
    sent = [request for request in round_trip.hub.requests if request.path.startswith("/content/team/cut-off/")]
    times = {request.path: sum(other.path == request.path for other in sent) for request in sent}
    assert sorted(times.values()) == [1] * (len(times) - 1) + [7]  # six failures and a success
    assert len(times) > 1


def test_file_that_changed_on_the_way_is_refused_by_name_and_pulled_anew(round_trip: RoundTrip) -> None:
    """One bit of one weight: the size is right, the file can be read, and the client does not notice."""
    error, answers = round_trip.pulled["changed_on_the_way"]
    assert error.startswith(
        "ValueError: downloaded files must have the SHA-256 sums that the Hub announced (got others"
    )
    assert f"{round_trip.shard}: removed, to be downloaded again)" in error
    assert answers == round_trip.pushed["model"]
    assert ADAPTER in round_trip.pulled["changed_adapter"]
    assert "downloaded files must have the SHA-256 sums" in round_trip.pulled["changed_adapter"]


def test_repository_pushed_without_the_package_equals_the_first_one(round_trip: RoundTrip) -> None:
    """Who has only pulled the model can fine-tune and push it, and the code goes on travelling."""
    files, again = (round_trip.hub.repositories[repo].files() for repo in ("team/dimple", "team/again"))
    assert round_trip.pulled["pushed_from_here"] is None
    assert set(again) == set(files)
    lines = {name: set(files[name].splitlines()) ^ set(again[name].splitlines()) for name in files}
    assert {name: different for name, different in lines.items() if different} == {}


def test_snippets_of_the_page_run_with_and_without_the_package(round_trip: RoundTrip) -> None:
    """`docs/hub.md`, typed in from top to bottom on two machines."""
    assert round_trip.pulled["snippets"] == [["currency", "note", "total"], "transformers_modules"]
    assert round_trip.hub.repositories["me/my-dimple"].tags.keys() == {"v1"}
    assert set(round_trip.hub.repositories["me/my-adapter"].files()) == {"README.md", "adapter_config.json", ADAPTER}

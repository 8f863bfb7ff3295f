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
"""`docs/walk.md`, typed in from top to bottom: a folder of images becomes an adapter on a Hub, and another process
pulls it.

The Hub is `hub_server`; the small model of the package lies on it in the position of the released one.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import LARGE_FILE_SUFFIXES, File, HubServer, Repository
from huggingface_hub import ModelCard
from session import read_sections
from test_push_and_pull import finish, start

from dimple_hf.checkpoints import FORMS_CHECKPOINT

pytest.importorskip("sklearn")  # the digits of the images

#: Half a minute; its parts are tested where they belong.
pytestmark = pytest.mark.slow

RELEASED, ADAPTER = "rp-yu/Dimple-7B", "me/my-forms"


@dataclass
class Walk:
    """The Hub afterwards, and what was printed and answered where the model was trained, and elsewhere."""

    hub: HubServer
    here: dict[str, Any]
    elsewhere: dict[str, Any]


@pytest.fixture(scope="module")
def walk(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Both processes, one after the other; of the first one's folder the second gets an image to ask about."""
    folder = tmp_path_factory.mktemp("walk")
    page = repo_root / "docs" / "walk.md"
    with HubServer(tokens={"right": "user"}) as hub:
        hub.repositories[RELEASED] = Repository()
        files = {path.name: path.read_bytes() for path in FORMS_CHECKPOINT.iterdir() if path.is_file()}
        hub.repositories[RELEASED].commit(
            "main", {name: File(data, name.endswith(LARGE_FILE_SUFFIXES)) for name, data in files.items()}
        )
        *here, elsewhere = read_sections(page)
        reports = {}
        for name, headings, token in (("here", here, "right"), ("elsewhere", [elsewhere], "")):
            desk = folder / f"{name}-desk"
            (desk / "my-forms").mkdir(parents=True)
            if name == "elsewhere":
                shutil.copy(folder / "here-desk" / "my-forms" / "test-000.png", desk / "my-forms")
            result = folder / f"{name}.json"
            arguments = ("walk.py", desk, page, result, *headings)
            finish(start(*arguments, home=folder / name, hub=hub, token=token))
            reports[name] = json.loads(result.read_text())
        yield Walk(hub, **reports)


def test_training_lowers_the_loss_of_held_out_images(walk: Walk) -> None:
    """With the same masks before and after. What it says then is printed for each of the eight images."""
    before, after = walk.here["losses"]
    assert after < before / 2
    assert walk.here["adapted"] != walk.here["base"]
    printed = walk.here["printed"]["What it learned"].splitlines()
    assert len([line for line in printed if line.startswith(("True\t", "False\t"))]) == 8


def test_adapter_that_is_pulled_answers_as_where_it_was_trained(walk: Walk) -> None:
    """Token for token, in Python and on the command line."""
    assert walk.elsewhere["adapted"] == walk.here["adapted"]
    assert walk.elsewhere["base"] == walk.here["base"]
    assert walk.elsewhere["adapted"] != walk.elsewhere["base"]  # control
    printed = walk.elsewhere["printed"]["Somewhere else"]
    half = len(printed) // 2
    assert printed[:half] == printed[half:]
    assert printed.strip()


def test_repository_of_the_adapter_says_what_it_is(walk: Walk) -> None:
    """The base by its id, the mode, and a card with the score."""
    files = walk.hub.repositories[ADAPTER].files()
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == RELEASED
    assert config["auto_mapping"]["full_attn_mask"] is True
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == [RELEASED]
    (score,) = card.data.eval_results
    assert score.metric_name == "exact"
    assert 0 <= score.metric_value <= 1

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

The Hub is `hub_server`. What the page shows of its program is in the program.
"""

import json
import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from huggingface_hub import ModelCard
from session import read_sections
from test_push_and_pull import finish, start

pytest.importorskip("matplotlib")  # the figure

#: Half a minute; its parts are tested where they belong.
pytestmark = pytest.mark.slow

BASE, ADAPTER = "me/dimple-forms", "me/my-shapes"


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
        sections = list(read_sections(page))
        here = sections[: sections.index("Somewhere else")]
        elsewhere = "Somewhere else"
        reports = {}
        for name, headings, token in (("here", here, "right"), ("elsewhere", [elsewhere], "")):
            desk = folder / f"{name}-desk"
            (desk / "my-shapes").mkdir(parents=True)
            if name == "elsewhere":
                shutil.copy(folder / "here-desk" / "my-shapes" / "held_out-0000.png", desk / "my-shapes")
            result = folder / f"{name}.json"
            arguments = ("walk.py", desk, page, result, *headings)
            finish(start(*arguments, home=folder / name, hub=hub, token=token))
            reports[name] = json.loads(result.read_text())
        yield Walk(hub, **reports)


def test_training_lowers_the_loss_of_held_out_images(walk: Walk) -> None:
    """With the same masks at each evaluation. The answers and the last figures are printed."""
    first, *_, last = walk.here["losses"]
    assert last < first
    assert walk.here["adapted"] != walk.here["base"]
    printed = walk.here["printed"]["Watching it learn"].splitlines()
    assert any(line.startswith("What is it?") for line in printed)
    assert "'held_out': 8" in printed[-1]


def test_page_shows_lines_of_its_program(repo_root: Path) -> None:
    """The excerpts stand in the script as on the page, but for their indentation."""
    script = (repo_root / "examples" / "walk" / "train_shapes.py").read_text()
    page = (repo_root / "docs" / "walk.md").read_text()
    excerpts = re.findall(r"^```py\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(excerpts) == 3
    program = re.sub(r"^ +", "", script, flags=re.MULTILINE)
    for excerpt in excerpts:
        assert re.sub(r"^ +", "", textwrap.dedent(excerpt), flags=re.MULTILINE) in program, excerpt
    assert "no such line" not in program  # control


def test_adapter_that_is_pulled_answers_as_where_it_was_trained(walk: Walk) -> None:
    """Token for token."""
    assert walk.elsewhere["adapted"] == walk.here["adapted"]
    assert walk.elsewhere["base"] == walk.here["base"]
    assert walk.elsewhere["adapted"] != walk.elsewhere["base"]  # control


def test_repository_of_the_adapter_says_what_it_is(walk: Walk) -> None:
    """The base by its id, the mode, and a card with the score."""
    files = walk.hub.repositories[ADAPTER].files()
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"} <= set(files)
    assert "trainer_state.json" not in files
    config = json.loads(files["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE
    assert config["auto_mapping"]["full_attn_mask"] is True
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == [BASE]
    (score,) = card.data.eval_results
    assert score.metric_name == "exact"
    assert 0 <= score.metric_value <= 1

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
"""Where the files of a checkpoint are found, and what is said where they are not."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError

from dimple_hf.cli.loading import find_checkpoint
from dimple_hf.cli.main import main
from dimple_hf.hub import files
from dimple_hf.hub.files import find_commit, find_files

UNREACHABLE = "owner/name must be a directory, or a model in the cache while the Hub cannot be reached"


@pytest.fixture(params=["closed", "silent"])
def dead_hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, and a Hub where nobody listens, or one that takes the connection and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listener.listen(8)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        yield


def write_cached(cache: Path, **contents: str) -> Path:
    """The cache of a model, as the Hub's client writes it. Returns the folder of its files."""
    commit = "0" * 40
    folder = cache / "models--owner--name" / "snapshots" / commit
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(content)
    (cache / "models--owner--name" / "refs").mkdir()
    (cache / "models--owner--name" / "refs" / "main").write_text(commit)
    return folder


def refuse_with(monkeypatch: pytest.MonkeyPatch, error: type[HfHubHTTPError], status: int) -> None:
    """Lets the Hub answer with a status."""

    def refuse(*_: Any, **__: Any) -> None:
        raise error(str(status), response=SimpleNamespace(headers={}, request=None, status_code=status))

    monkeypatch.setattr(files, "get_hf_file_metadata", refuse)


def test_directory_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "snapshot_download", None)
    assert find_files(str(tmp_path), ["model.safetensors"]) == (tmp_path, False)


@pytest.mark.usefixtures("dead_hub")
def test_unreachable_hub_is_named_with_the_model_in_time() -> None:
    """The client's own download would wait for the silent one without an end."""
    start = time.monotonic()
    with pytest.raises(OSError, match=UNREACHABLE):
        find_files("owner/name")
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("dead_hub")
def test_doctor_examines_the_cache_of_an_unreachable_hub_in_time(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What is there is checked, what is not is said to be missing from the cache; the next call asks the Hub again."""
    folder = write_cached(tmp_path, config='{"model_type": "other"}')
    assert find_files("owner/name") == (folder, True)
    start = time.monotonic()
    assert main(["doctor", "--model", "owner/name"]) == 1
    assert time.monotonic() - start < 10
    printed = " ".join(capsys.readouterr().out.split())
    assert "the Hub cannot be reached: only what is in the cache is checked" in printed
    assert "`model_type` must be 'dimple' (got 'other')" in printed
    assert "no weights" in printed
    assert constants.HF_HUB_OFFLINE is False


def test_model_that_the_hub_has_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(monkeypatch, RepositoryNotFoundError, 404)
    with pytest.raises(OSError, match=r"owner/name must be a directory or a model on the Hub that you may read"):
        find_files("owner/name")


def test_busy_hub_counts_as_unreachable_and_a_missing_file_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may be in the cache while the Hub answers 503; one without a configuration is no checkpoint."""
    for status in (503, 429):
        refuse_with(monkeypatch, HfHubHTTPError, status)
        assert find_commit("owner/name", "config.json") is None
    refuse_with(monkeypatch, RemoteEntryNotFoundError, 404)
    with pytest.raises(OSError, match=r"owner/name must be a checkpoint \(its files on the Hub have no config.json\)"):
        find_checkpoint("owner/name")

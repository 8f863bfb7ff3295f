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
"""Damaged weight files are named, and one that changed on its way from the Hub does not stay in the cache.

The Hub's cache is written by hand here, in the layout of the client; `tests/hub` has the client write it.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoProcessor

from dimple_hf import DimpleForConditionalGeneration
from dimple_hf.modeling.weight_files_dimple import end_token_id, read_header, read_json, refuse_damaged_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache_file(cache: Path, name: str, data: bytes, stored: bytes | None = None) -> Path:
    """Puts a file of `me/model` into a cache, as if downloaded; `stored` is what arrived, if not `data`."""
    folder = cache / "models--me--model"
    snapshot, blobs = folder / "snapshots" / COMMIT, folder / "blobs"
    for path in (snapshot, blobs, folder / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    content = blobs / hashlib.sha256(data).hexdigest()
    content.write_bytes(data if stored is None else stored)
    (snapshot / name).symlink_to(Path("../../blobs") / content.name)
    return snapshot / name


@pytest.fixture
def weights(parity_dir: Path) -> bytes:
    """A whole safetensors file."""
    return (parity_dir / "checkpoint" / "model-00003-of-00003.safetensors").read_bytes()


def test_download_with_its_sum_is_accepted(tmp_path: Path, weights: bytes) -> None:
    """The usual case; and without any file, nothing is looked at."""
    with refuse_damaged_files("me/model", cache_dir=tmp_path):
        cache_file(tmp_path, "config.json", b"{}")
        file = cache_file(tmp_path, "model.safetensors", weights)
    assert file.exists()
    with refuse_damaged_files("me/other", cache_dir=tmp_path), refuse_damaged_files(None):
        pass


@pytest.mark.parametrize("failure", [None, RuntimeError("unreadable")])
def test_download_with_another_sum_is_refused_and_removed(
    failure: Exception | None, tmp_path: Path, weights: bytes
) -> None:
    """Whether loading failed or not: else the next attempt would find the file in the cache and believe it."""
    cache_file(tmp_path, "config.json", b"{}")
    good = cache_file(tmp_path, "good.safetensors", b"good")
    bad = weights[:-1] + bytes([weights[-1] ^ 1])

    def load() -> None:
        with refuse_damaged_files("me/model", cache_dir=tmp_path):
            cache_file(tmp_path, "model.safetensors", weights, stored=bad)
            if failure is not None:
                raise failure

    with pytest.raises(ValueError, match=r"SHA-256 sums .* \(got others for \S+/model\.safetensors: rem") as refused:
        load()
    assert refused.value.__cause__ is failure
    folder = tmp_path / "models--me--model"
    assert {path.name for path in (folder / "snapshots" / COMMIT).iterdir()} == {"config.json", "good.safetensors"}
    assert {path.read_bytes() for path in (folder / "blobs").iterdir()} == {b"{}", b"good"}
    assert good.exists()


def test_file_that_was_in_the_cache_before_is_not_summed_again(tmp_path: Path, weights: bytes) -> None:
    """Gigabytes would be read twice at each load; and what others put into the cache is not ours to remove."""
    cache_file(tmp_path, "config.json", b"{}")
    file = cache_file(tmp_path, "model.safetensors", weights, stored=weights[:-1] + b"?")
    with refuse_damaged_files("me/model", cache_dir=tmp_path):
        pass
    assert file.exists()


def test_files_that_are_not_named_by_a_sum_are_accepted(tmp_path: Path, weights: bytes) -> None:
    """A cache on a file system without links, and small files, whose sums are git's."""
    config = cache_file(tmp_path, "config.json", b"{}")
    with refuse_damaged_files("me/model", cache_dir=tmp_path):
        (config.parent / "plain.safetensors").write_bytes(weights)
        file = cache_file(tmp_path, "linked.safetensors", weights)
        shutil.copy(file, file.parent.parent.parent / "blobs" / ("a" * 40))
        (config.parent / "small.safetensors").symlink_to(Path("../../blobs") / ("a" * 40))


def test_loading_that_fails_names_the_file_that_is_cut_off(tmp_path: Path, weights: bytes) -> None:
    """In the cache, too: of several shards, and with the reader's own words."""
    cache_file(tmp_path, "config.json", b"{}")
    cache_file(tmp_path, "good.safetensors", weights)
    bad = cache_file(tmp_path, "bad.safetensors", weights + b"!", stored=weights[:-9])
    with pytest.raises(ValueError, match="must be a whole safetensors file"):
        read_header(bad)
    with (
        pytest.raises(
            ValueError, match=r"\S+/bad\.safetensors must be a whole safetensors file \(got SafetensorError"
        ),
        refuse_damaged_files("me/model", revision="main", cache_dir=tmp_path),
    ):
        raise RuntimeError("too short")


def test_file_with_bytes_after_its_weights_is_refused(tmp_path: Path, weights: bytes) -> None:
    """What stands there is nobody's weight: the file is not the one that was written."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights)
    assert len(read_header(path)) > 0  # control
    path.write_bytes(weights + b"\0")
    with pytest.raises(ValueError, match=r"model\.safetensors must be a whole safetensors file"):
        read_header(path)


def test_json_file_beyond_32_mib_is_not_read(tmp_path: Path) -> None:
    """A file of gigabytes would be parsed in memory."""
    path = tmp_path / "config.json"
    for size, reason in ((33_554_433, "more than 33554432 bytes"), (33_554_432, "Expecting value")):
        with path.open("wb") as file:
            file.truncate(size)
        with pytest.raises(ValueError, match=rf"config\.json must hold a JSON object \(got {reason}"):
            read_json(path)
    path.write_text("{}")
    assert read_json(path) == {}


@pytest.mark.parametrize("checkpoint", [None, "me/other", "/no/such/directory", "directory"])
def test_loading_that_fails_without_damage_raises_what_it_raised(checkpoint: str | None, tmp_path: Path) -> None:
    """Missing files, wrong shapes and the like have their own messages."""
    (tmp_path / "directory").mkdir()
    position = tmp_path / checkpoint if checkpoint == "directory" else checkpoint
    with pytest.raises(KeyError, match="shape"), refuse_damaged_files(position, cache_dir=tmp_path):
        raise KeyError("shape")


def test_end_token_of_the_tokenizer_ends_answers(parity_dir: Path, tmp_path: Path) -> None:
    """A chat model may end its turn with the tokenizer's token, whatever its generation options have."""
    folder = Path(shutil.copytree(parity_dir / "checkpoint", tmp_path / "checkpoint"))
    for options, expected in (({}, 422), ({"eos_token_id": 420}, [420, 422]), ({"eos_token_id": [422, 7]}, [422, 7])):
        (folder / "generation_config.json").write_text(json.dumps(options))
        model = DimpleForConditionalGeneration.from_pretrained(folder)
        assert model.generation_config.eos_token_id == expected
    AutoProcessor.from_pretrained(folder).save_pretrained(folder)  # in the form of transformers 5
    assert end_token_id(folder) == 422
    (folder / "tokenizer_config.json").unlink()
    assert end_token_id(folder) is None
    (folder / "tokenizer_config.json").write_text("[")
    assert end_token_id(folder) is None


def test_checkpoint_in_a_subfolder_is_looked_at_there(parity_dir: Path, tmp_path: Path) -> None:
    """A damaged file below the folder is named like one in it."""
    shutil.copytree(parity_dir / "checkpoint", tmp_path / "sub")
    DimpleForConditionalGeneration.from_pretrained(tmp_path, subfolder="sub")  # control
    path = tmp_path / "sub" / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"sub/model-00002-of-00003\.safetensors must be a whole safetensors file"):
        DimpleForConditionalGeneration.from_pretrained(tmp_path, subfolder="sub")


def test_pickled_weights_are_refused_with_the_way_to_convert_them(parity_dir: Path, tmp_path: Path) -> None:
    """Also for those who trust their own files."""
    shutil.copy(parity_dir / "checkpoint" / "config.json", tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(ValueError, match=r"\(got pytorch_model\.bin, .* without secrets, .* save them with `safetens"):
        DimpleForConditionalGeneration.from_pretrained(tmp_path)

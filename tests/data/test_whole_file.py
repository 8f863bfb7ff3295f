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
"""`whole_file`: a file that is complete, or the one before it."""

import errno
from pathlib import Path

import pytest

from dimple_hf.data.whole_file import whole_file


def test_file_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
        assert (tmp_path / "settings.json.partial").read_text() == "new"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_unfinished_file_is_removed(tmp_path: Path, error: BaseException) -> None:
    """Under any name; the error is the caller's, and an error of the system without a file gets one."""
    path = tmp_path / "settings.json"
    path.write_text("old")
    with pytest.raises(type(error)) as raised, whole_file(path, tmp_path / "another") as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert raised.value is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert error.filename == str(path)

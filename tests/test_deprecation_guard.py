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
"""The guard against deprecations (tests/conftest.py and pyproject.toml) fails what it must and passes the rest.

A sample test file is run by a pytest of its own with the project's conftest and configuration, because its failures
are what is asked for.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

SAMPLE = """
import warnings
import pytest
from transformers.utils import logging

logger = logging.get_logger("transformers.sample")

def test_usual_warning_passes():
    logger.warning("nothing old here")
    warnings.warn("nor here", UserWarning)

@pytest.mark.parametrize("turn", [0, 1])
def test_logged_once_fails_every_time(turn):
    logger.warning_once("`old` is deprecated")

@pytest.fixture
def old():
    logger.warning("`old` will be removed in v6")

def test_logged_in_fixture_is_an_error(old):
    pass

@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_warned_fails(category):
    warnings.warn("old", category)
"""


def test_deprecation_guard_refuses_logged_and_warned_deprecations(tmp_path: Path, repo_root: Path) -> None:
    """Control of the whole suite: a deprecation fails a test however it is announced, a usual warning does not."""
    sample = tmp_path / "test_sample.py"
    sample.write_text(SAMPLE, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-c", repo_root / "pyproject.toml", sample],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repo_root / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    outcomes = dict(re.findall(r"^(PASSED|FAILED|ERROR) .*::(\S+)", run.stdout, flags=re.MULTILINE))
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (passed|failed|error)", run.stdout)}
    # 1 usual warning; 2 turns of the logged one and 3 categories; the fixture's
    assert counts == {"passed": 1, "failed": 5, "error": 1}, run.stdout + run.stderr
    assert outcomes["ERROR"] == "test_logged_in_fixture_is_an_error"

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

A sample test file is run by a pytest of its own, in this process, with the project's conftest and configuration,
because its failures are what is asked for.
"""

import importlib.util
import logging
from pathlib import Path

import pytest

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


class Outcomes:
    """A plugin that notes how each phase of each test ended, where it did not pass, and each call."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.failed:
            self.found[report.nodeid.partition("::")[2]] = f"{report.when} {report.outcome}"


def test_deprecation_guard_refuses_logged_and_warned_deprecations(
    tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control of the whole suite: a deprecation fails a test however it is announced, a usual warning does not."""
    sample = tmp_path / "test_sample.py"
    sample.write_text(SAMPLE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("guard", repo_root / "tests" / "conftest.py")
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    outcomes = Outcomes()
    options = ["-c", str(repo_root / "pyproject.toml"), "--rootdir", str(tmp_path), "-n", "0", "-p", "no:faulthandler"]
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger("transformers"), "handlers", [])  # the guard of this very test is one
        pytest.main([*options, str(sample)], plugins=[guard, outcomes])
    assert outcomes.found == {
        "test_usual_warning_passes": "call passed",
        **{f"test_logged_once_fails_every_time[{turn}]": "call failed" for turn in (0, 1)},
        "test_logged_in_fixture_is_an_error": "setup failed",
        **{
            f"test_warned_fails[{category}]": "call failed"
            for category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning")
        },
    }

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
"""What every test runs under: offline, one thread, seeded, and no deprecation goes unseen.

Deprecations reach the tests in two ways. Python warnings are turned into errors by `filterwarnings` in pyproject.toml.
The Hugging Face libraries also announce some through their loggers; the hooks at the end of this file fail the test
that caused such a record. Used by pytest itself; tests take the fixtures by name.

The process that only hands out tests to others (`-n 2`) loads this file too, and starts them when it has. So the
libraries, which take seconds, are imported by the functions that need them, in the processes that run tests.
"""

import gc
import logging
import os
import random
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# While libraries and tests are imported nothing becomes garbage, and collections take a tenth of the time.
gc.disable()

# Read by the libraries when they are imported, and inherited by the processes that tests start.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A loaded machine may be slow, so no example has a deadline. CI draws the same examples every time.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_finish() -> None:
    """
    Runs torch on one thread. Leaves what the imports made to no later garbage collection: with the libraries of all
    tests imported, each full one takes a second, and accelerate's `free_memory` alone asks for two in every training
    run.
    """
    import torch

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Figures of the original implementation at toy size; its README says what each file holds."""
    return Path(__file__).resolve().parent / "fixtures" / "parity"


@pytest.fixture(scope="session")
def forms_model() -> Any:
    """The small model of the package in float32; tests leave it as it was."""
    import torch
    from transformers import AutoModelForImageTextToText

    from dimple_hf.checkpoints import FORMS_CHECKPOINT

    return AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def forms_processor() -> Any:
    """Its processor."""
    from transformers import AutoProcessor

    from dimple_hf.checkpoints import FORMS_CHECKPOINT

    return AutoProcessor.from_pretrained(FORMS_CHECKPOINT)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """
    Seeds `random`, numpy and torch, so that a test gives the same numbers alone and among others. Of torch only the
    CPU's generator: `torch.manual_seed` keeps a stack trace of each call for devices that are not there.
    """
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.default_generator.manual_seed(0)


class _DeprecationRecords(logging.Handler):
    """Keeps the log records that announce a deprecation."""

    announcement = re.compile(r"deprecat|will be removed in", re.IGNORECASE)

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if self.announcement.search(record.getMessage()):
            self.messages.append(f"{record.name}: {record.getMessage()}")


@contextmanager
def _refuse_logged_deprecations() -> Iterator[None]:
    """Fails the running phase of a test when a library's logger announces a deprecation during it."""
    from transformers.utils.logging import warning_once

    records = _DeprecationRecords()
    # Handlers go on the libraries' own top loggers, because those do not pass their records on to the root logger.
    loggers = [logging.getLogger(name) for name in ("accelerate", "huggingface_hub", "peft", "torch", "transformers")]
    warning_once.cache_clear()  # else only the first of all tests that cause a message would see it
    for logger in loggers:
        logger.addHandler(records)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(records)
    if records.messages:
        pytest.fail("deprecation announced by a logger:\n" + "\n".join(records.messages), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    with _refuse_logged_deprecations():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    with _refuse_logged_deprecations():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Generator[None, object, object]:
    with _refuse_logged_deprecations():
        return (yield)

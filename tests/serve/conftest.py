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
"""The small model in single precision, in which a batch decides exactly as single rows do, and its processor."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

for folder in (Path(__file__).parent, Path(__file__).resolve().parents[2] / "benchmarks"):
    sys.path.insert(0, str(folder))

from server_process import ServerProcess  # noqa: E402

from dimple_hf.checkpoints import FORMS_CHECKPOINT  # noqa: E402


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """One for all tests that leave it as it was."""
    server = ServerProcess("--dtype", "float32", "--allow-remote-images")
    yield server
    server.stop()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def forms_model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def forms_processor() -> Any:
    return AutoProcessor.from_pretrained(FORMS_CHECKPOINT)

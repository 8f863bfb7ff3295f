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
"""Functions that the tests run in processes of their own, which import this file."""

import os
import time
from typing import Any

from dimple_hf.serve.limits import RefusedRequest


def double(processor: Any, number: int) -> int:
    return 2 * number


def spin(processor: Any, seconds: float) -> str:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
    return "done"


def spin_and_wait(processor: Any, seconds: float, file: str) -> str:
    """Spins, then waits until a file is there."""
    spin(processor, seconds)
    while not os.path.exists(file):
        time.sleep(0.01)
    return "done"


def allocate(processor: Any, num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def write(processor: Any, num_bytes: int) -> bytes:
    return bytes(num_bytes)


def fail(processor: Any) -> None:
    raise KeyError("a defect")


def refuse(processor: Any) -> None:
    raise RefusedRequest("no", "messages", 413, "code")


def die(processor: Any) -> None:
    os._exit(1)

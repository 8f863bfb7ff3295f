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
"""How much memory a part of a test takes, whatever ran before it in the same process."""

from pathlib import Path
from typing import Any


class PeakMemory:
    """Measures what runs inside `with PeakMemory() as peak:`; afterwards `peak.growth` is the growth in bytes of the
    largest resident size. Linux only."""

    growth: int

    def __enter__(self) -> "PeakMemory":
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak to the present size
        self._before = _peak()
        return self

    def __exit__(self, *error: Any) -> None:
        self.growth = _peak() - self._before


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])

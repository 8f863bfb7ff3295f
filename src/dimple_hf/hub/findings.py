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
"""Findings of a check, for people and for programs."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """
    One result of a check.

    Args:
        subject (`str`):
            What was looked at, in a word or two.
        status (`str`):
            `"ok"`; `"warning"`: works, but knowing it helps; `"problem"`: does not work.
        message (`str`):
            What was found, and for a problem what to do.
    """

    subject: str
    status: Status
    message: str

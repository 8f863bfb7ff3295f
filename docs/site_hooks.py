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
"""Hooks of mkdocs: on the site, links to files outside `docs/` lead to the repository."""

import os
import re
from typing import Any

#: Where files that are not pages are read.
REPOSITORY = os.environ.get("DIMPLE_HF_REPOSITORY", "https://github.com/dimple-hf/dimple_hf/blob/main")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrites `](../FILE)` and leaves links between pages to mkdocs, which checks them."""
    return re.sub(r"\]\(\.\./([^)\s]+)\)", rf"]({REPOSITORY}/\1)", markdown)

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
"""A server for OpenAI's clients (`pip install 'dimple_hf[serve]'`).

Why not transformers' own server: Dimple can be put into it (a name in two of its tables), but what this one promises
cannot. There, `response_format` is ignored, a canvas has at least 1024 positions, images are fetched from any address
and decoded before anything is checked, bodies and the queue have no bounds, a client who leaves an answer that is not
streamed goes unnoticed, requests run one at a time, and anybody may unload the model or load another (`/reset`,
`/load_model`). All of that would have to be overridden, so this is a small Starlette app around `generate_steps`.
"""

from .app import build_app, load_app
from .limits import Limits
from .worker import Worker

__all__ = ["Limits", "Worker", "build_app", "load_app"]

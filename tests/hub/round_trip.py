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
"""Runs `push` in a process of its own, and then `pull`, without importing twice what both need.

Usage: round_trip.py CHECKPOINT IMAGE PAGE PUSHED PULLED TOKEN. `push` has the token and is forked from this process,
which never imports the package. When it has ended, its cache is removed, and `pull` waits for a line from stdin.
"""

import gc
import os
import runpy
import shutil
import sys
import traceback
from pathlib import Path

gc.disable()  # while the libraries are imported nothing becomes garbage

import peft  # noqa: F401
import session  # noqa: F401
from huggingface_hub import constants
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, pipeline  # noqa: F401

gc.freeze()
gc.enable()

FOLDER = Path(__file__).parent

checkpoint, image, page, pushed, pulled, token = sys.argv[1:]
process = os.fork()
if process == 0:
    code = 1
    try:
        os.environ["HF_TOKEN"] = token
        sys.argv = ["push.py", checkpoint, image, page, pushed]
        runpy.run_path(str(FOLDER / "push.py"), run_name="__main__")
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(code)
if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0:
    sys.exit("`push` has failed")
shutil.rmtree(constants.HF_HOME)
print("pushed", flush=True)
sys.argv = ["pull.py", image, page, pulled]
runpy.run_path(str(FOLDER / "pull.py"), run_name="__main__")

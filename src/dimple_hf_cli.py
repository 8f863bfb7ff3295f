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
"""The `dimple-hf` script: reads the command line first, and imports torch and transformers only for what needs them.

Importing `dimple_hf` registers the model with transformers, which takes seconds. So the package is put into
`sys.modules` without running its `__init__`, which is enough for the parsers; it runs when a command does.
"""

import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, ModuleType


def main() -> int:
    """Runs `dimple-hf` with the arguments of this process; returns the exit status."""
    signal.signal(signal.SIGINT, _leave)
    package, run_init = _package_without_init("dimple_hf")
    from dimple_hf.cli.main import build_parser, run_command

    args = build_parser().parse_args()
    gc.disable()  # while the libraries are imported nothing becomes garbage: looking for it takes a tenth of the time
    run_init(package)
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminate)
    status = run_command(args)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is done but for the interpreter's own end
    return status


def _package_without_init(name: str) -> tuple[ModuleType, Callable[[ModuleType], None]]:
    """Makes a package known to the import system; returns it and what runs its `__init__`."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"{name} is not installed")
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    return package, spec.loader.exec_module


def _leave(number: int, frame: FrameType | None) -> None:
    """Ends at once: an exception in the middle of an import would come out as another one, with its traceback."""
    os.write(2, b"dimple-hf: interrupted\n")
    os._exit(128 + number)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Ends as Ctrl-C does, so that SIGTERM leaves the same files and the same last line."""
    raise KeyboardInterrupt

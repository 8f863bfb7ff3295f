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
"""`dimple-hf serve` in a forked process, whose process for tasks is a fork of it: without the seconds of two imports.

Run by a `Launcher`; see `ForkedServer`. That the process for tasks can be started anew, as users' servers start it, is
a test of `test_serving_processes`.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

from dimple_hf.cli.main import main
from dimple_hf.serve import processes


class ForkedTasks:
    """Stands for the `subprocess.Popen` of [`TaskProcesses`]."""

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int], env: Mapping[str, str]):
        self.pid = os.fork()
        if self.pid:
            return
        try:
            os.environ.update(env)
            (control,) = pass_fds
            os.closerange(3, control)
            os.closerange(control + 1, os.sysconf("SC_OPEN_MAX"))
            processes.main(control)
        finally:
            os._exit(0)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        return os.waitpid(self.pid, 0)[1]


processes.subprocess = SimpleNamespace(Popen=ForkedTasks)
if main(sys.argv[1:]) != 0:
    sys.exit("`serve` has failed")

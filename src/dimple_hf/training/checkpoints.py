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
"""Finding the position where an interrupted run goes on.

The Trainer writes a checkpoint file by file, so a process that is killed meanwhile leaves half of one, which its own
search would take for the last. Imported by recipes and users.
"""

import json
import os
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """
    Finds the last checkpoint that was written to its end.

    Args:
        output_dir (`str` or `os.PathLike`):
            `output_dir` of the run's `TrainingArguments`. It need not exist yet.

    Returns:
        `str` or `None`: For `Trainer.train(resume_from_checkpoint=...)`: the checkpoint's folder, or `None` where a
        run has to begin from the start.
    """
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {
        int(folder.name.rpartition("-")[2]): folder for folder in folders if folder.name.rpartition("-")[2].isdigit()
    }
    for _, folder in sorted(steps.items(), reverse=True):
        if _is_complete(folder):
            return str(folder)
    return None


def is_at_end(checkpoint: str | os.PathLike[str]) -> bool:
    """
    Args:
        checkpoint (`str` or `os.PathLike`):
            What [`last_complete_checkpoint`] found.

    Returns:
        `bool`: Whether it was written after the last step of its run.
    """
    state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    return state.global_step >= state.max_steps


def _is_complete(folder: Path) -> bool:
    """Whether the file that the Trainer writes last is there, up to its last character."""
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True

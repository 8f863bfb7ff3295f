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
"""The checkpoint from which an interrupted run resumes.

The Trainer writes a checkpoint file by file, so a process that is killed meanwhile leaves half of one, which its own
search would take for the last.
"""

import json
import os
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
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

    Raises:
        ValueError: If the last complete checkpoint lost a file since, or has a damaged one: a run that goes on from it
            would end elsewhere, or fail.
    """
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    steps = {
        int(folder.name.rpartition("-")[2]): folder for folder in folders if folder.name.rpartition("-")[2].isdigit()
    }
    for _, folder in sorted(steps.items(), reverse=True):
        if _is_complete(folder):
            _check_files(folder)
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


#: What the optimizer's state lies in: plain, under FSDP and under DeepSpeed.
_OPTIMIZER_FILES = ("optimizer.pt", "optimizer.bin", "optimizer_*", "pytorch_model_fsdp*", "global_step*")


def _check_files(folder: Path) -> None:
    remedy = f"delete {folder} to go on from the checkpoint before it, or from the start if there is none"
    if not any(any(folder.glob(pattern)) for pattern in _OPTIMIZER_FILES):
        raise ValueError(
            f"{folder} must hold optimizer.pt for the run to go on as if uninterrupted (got none; `save_only_model` "
            f"leaves it out): {remedy}"
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in (".pt", ".pth", ".bin") and not zipfile.is_zipfile(path):
            raise ValueError(f"{path} must be whole (got a file that ends too early): {remedy}")
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{path} must be whole (got an error: {error}): {remedy}") from error

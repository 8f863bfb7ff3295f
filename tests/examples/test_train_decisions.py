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
"""The curriculum of decisions: what it draws, and that a resumed run ends with the same weights."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

import train_decisions
from train_decisions import LETTERS, MAX_NEW_TASKS, TASKS, CurriculumRows, draw_tasks, parse_args, train

from dimple_hf.checkpoints import FORMS_CHECKPOINT

LEARNED = {task.name: 0.99 for task in TASKS}


def drawn(accuracies, number=2000):
    return Counter(task.name for task in draw_tasks(accuracies, number, np.random.default_rng(0)))


def test_only_the_first_tasks_are_drawn_while_nothing_is_learned():
    """Letters are beside the count: nothing waits for them."""
    first = [task.name for task in TASKS if not task.after and task.kind != LETTERS][:MAX_NEW_TASKS]
    assert set(drawn(dict.fromkeys(LEARNED, 0.0))) == {LETTERS, *first}
    assert set(drawn(LEARNED)) == set(LEARNED)  # control


def test_a_task_opens_when_what_comes_before_it_is_learned():
    accuracies = LEARNED | {"compare/freely": 0.0, "compare/decide_one": 0.0}
    counts = drawn(accuracies)
    assert "compare/decide_one" not in counts
    assert counts["compare/freely"] > 5 * counts["compare_lengths/freely"]  # drawn more often than what is only kept
    assert "compare/decide_one" in drawn(accuracies | {"compare/freely": 0.85})
    assert "compare/freely" not in drawn(accuracies | {"compare_lengths/freely": 0.5})


def test_every_task_can_be_asked_and_names_its_decision():
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names)
    for index, task in enumerate(TASKS):
        assert set(task.after) <= set(names[:index])
        row = CurriculumRows(0)[index, task]
        assert row["kind"] == task.kind
        assert row["task"] == task.name
    assert CurriculumRows(0)[3, None]["task"] is None


@pytest.fixture
def arguments(monkeypatch):
    monkeypatch.setattr(train_decisions, "MICRO_BATCH", 2)

    def of(output, *more):
        return parse_args(["--model", str(FORMS_CHECKPOINT), "--output", str(output), "--batch-size", "4",
                           "--reading-share", "0.5", "--save-steps", "1", *more])  # fmt: skip

    return of


def test_a_resumed_run_ends_with_the_same_weights(arguments, tmp_path, monkeypatch):
    train(arguments(tmp_path / "whole", "--steps", "2"))
    run_step = train_decisions.Run.train_step

    def interrupted(run, batches):
        if run.step == 1:
            raise KeyboardInterrupt
        return run_step(run, batches)

    with monkeypatch.context() as patch:
        patch.setattr(train_decisions.Run, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(arguments(tmp_path / "resumed", "--steps", "2"))
    assert not (tmp_path / "resumed" / "model.safetensors").exists()
    train(arguments(tmp_path / "resumed", "--steps", "2"))
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert all((weight == resumed[name]).all() for name, weight in whole.items())
    start = load_file(FORMS_CHECKPOINT / "model.safetensors")
    changed = {name.split(".")[0] for name, weight in whole.items() if (weight != start[name].float()).any()}
    assert "visual" not in changed  # the tower stays as it is
    assert changed  # control
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert config["loss_normalization"] == "token"


def test_a_run_starts_from_what_an_earlier_one_learned(arguments, tmp_path):
    train(arguments(tmp_path / "first", "--steps", "1"))
    known = json.loads((tmp_path / "first" / "accuracies.json").read_text())
    (tmp_path / "first" / "accuracies.json").write_text(json.dumps(known | {"compare/freely": 0.5}))
    args = arguments(tmp_path / "second", "--steps", "1")
    assert train_decisions.Run(args).accuracies[-1]["compare/freely"] == 0.0
    args.model = [tmp_path / "first", FORMS_CHECKPOINT]
    assert train_decisions.Run(args).accuracies[-1]["compare/freely"] == 0.5

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
"""Two processes are one with the same global batch, and draw different masks; so are two that share one model."""

import json
import socket
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import two_processes
import two_processes_fsdp
from launcher import Launcher
from safetensors.torch import load_file
from training_run import CHECKPOINT

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import DimpleDataCollator


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run_two(script: ModuleType, output_dir: Path, *arguments: str) -> list[dict[str, Any]]:
    """Runs a script as two processes side by side; returns what each of them wrote."""
    output_dir.mkdir()
    launcher = Launcher(output_dir / "errors.txt")
    processes = launcher.start(
        [str(output_dir), *arguments],
        num_processes=2,
        script=script.__file__,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(free_port()),
        LOCAL_SIZE="2",
        DS_ACCELERATOR="cpu",  # of DeepSpeed, also where there is a GPU
    )
    for process in processes:
        assert launcher.wait(process) == 0, launcher.errors.read_text()[-3000:]
    return [json.loads((output_dir / f"{rank}.json").read_text()) for rank in range(2)]


def run_alone(script: ModuleType, output_dir: Path, *arguments: str) -> dict[str, Any]:
    """Runs a script's `main` right here, as the only process."""
    output_dir.mkdir()
    script.main(output_dir, *arguments)
    return json.loads((output_dir / "0.json").read_text())


def assert_same_prediction(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """What `compute_metrics` and `predict` get of 5 rows: each row once, in the order of the data set, whatever its
    length and process."""
    assert found["rows"] == expected["rows"]
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    # Controls: the rows differ in length, and in what is predicted.
    assert len({len(row) for row in expected["rows"]}) > 1
    assert len(expected["rows"]) == 5


#: DeepSpeed is no dependency: `DS_BUILD_OPS=0 pip install deepspeed`.
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs DeepSpeed")


@pytest.mark.parametrize(
    "mode",
    [
        "plain",
        *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("checkpointing", "adapter")),
        *(pytest.param(mode, marks=(pytest.mark.slow, needs_deepspeed)) for mode in ("zero2", "zero3")),
    ],
)
def test_training_on_two_processes_equals_one_whatever_a_micro_batch_holds(tmp_path: Path, mode: str) -> None:
    """Rows with and without images, in both phases: gradients reach all parameters on each process, losses are
    normalized by the tokens of the whole step, and masks follow from the rows."""
    alone = run_alone(two_processes, tmp_path / "one", mode)
    first, second = run_two(two_processes, tmp_path / "two", mode)
    names = ("loss", "grad_norm", "learning_rate", "phase", "token_accuracy", "masked_token_accuracy")
    for step, expected in enumerate(alone["history"][:4]):
        for process in (first, second):  # also the numbers that a callback adds are those of all processes
            entry = process["history"][step]
            for name in names:
                assert (name in entry) == (name in expected)
                if name in entry:
                    assert entry[name] == pytest.approx(expected[name], rel=1e-6), (step, name)
    file = "adapter_model.safetensors" if mode == "adapter" else "model.safetensors"
    weights = [load_file(tmp_path / folder / file) for folder in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-6, atol=1e-6, msg=name)
    for process in (first, second):
        assert_same_prediction(process["prediction"], alone["prediction"])
    # The two processes have divided the rows' masks among them.
    assert sorted(first["levels"] + second["levels"]) == pytest.approx(sorted(alone["levels"]))
    assert len(set(alone["levels"])) == 8
    # Controls: training has moved the weights further than that; a process had an image while the other had none.
    head = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT).lm_head.weight.detach()
    (trained,) = (tensor for name, tensor in weights[0].items() if name.endswith("lm_head.weight"))
    assert (trained - head).abs().max() > 2e-4
    assert any(left != right for left, right in zip(first["images"], second["images"], strict=True))


def test_training_under_fsdp2_equals_one_process_and_saves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A step of each phase with the model in shards. `generate` works there once FSDP knows that it is a forward pass,
    which the Trainer tells it; without, embedding the prompt meets a shard."""
    alone = run_alone(two_processes_fsdp, tmp_path / "one")
    processes = run_two(two_processes_fsdp, tmp_path / "two")
    for process in processes:
        assert process["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert process["answers"] == alone["answers"]
        assert "mixed torch.Tensor and DTensor" in process["unregistered"]  # control: it is in shards
    models = [DimpleForConditionalGeneration.from_pretrained(tmp_path / folder) for folder in ("one", "two")]
    assert models[1].config.full_attn_mask
    whole, gathered = (model.state_dict() for model in models)
    for name, tensor in whole.items():
        torch.testing.assert_close(gathered[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    # Controls: training has moved the weights further than that, and the modes answer differently.
    start = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT).state_dict()
    assert (whole["lm_head.weight"] - start["lm_head.weight"]).abs().max() > 1e-2
    causal, bidirectional = alone["answers"]
    assert causal != bidirectional


def test_training_runs_the_same_modules_in_the_same_order_with_and_without_images() -> None:
    """Processes that share weights gather them in the order of use; any difference is a deadlock or a crash."""
    model = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT).train()
    collator = DimpleDataCollator(DimpleProcessor.from_pretrained(CHECKPOINT))
    used: list[str] = []
    for name, module in model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda module, args, name=name: used.append(name))
    orders = []
    for row in two_processes.mixed_rows(2):  # without an image, with one
        model(**collator([row]))
        orders.append(tuple(used))
        used.clear()
    assert orders[0] == orders[1]
    # Control: in evaluation, a batch without images leaves out the vision tower.
    model.eval()(**collator(two_processes.mixed_rows(1)))
    assert not any(name.startswith("visual") for name in used)
    assert set(orders[0]) > set(used)

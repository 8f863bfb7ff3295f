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
"""A run stops at a loss that is not finite, data is checked before it, and parts have rates of their own."""

from pathlib import Path

import pytest
import torch
from training_run import make_rows, make_trainer

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.cli.main import main
from dimple_hf.training import DimpleDataCollator
from dimple_hf.training.data_check import check_examples, refuse_bad_data
from dimple_hf.training.finite import FiniteLossCallback, NonFiniteLossError
from dimple_hf.training.trainer import example_length, part_of, split_groups


def test_run_with_a_loss_that_is_not_finite_stops_and_keeps_its_good_checkpoint(tmp_path: Path) -> None:
    """The Trainer would log 0, go on, and rotate the good checkpoint away."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "switch_at": 0}
    trainer = make_trainer(tmp_path, callbacks=(FiniteLossCallback(),), learning_rate=1e30, **options)
    with pytest.raises(NonFiniteLossError, match=r"must be finite \(got infinity or NaN\): lower the learning"):
        trainer.train()
    assert trainer.state.global_step < 6
    make_trainer(tmp_path / "good", callbacks=(FiniteLossCallback(),), **options | {"max_steps": 1}).train()  # control


def test_check_examples_reports_lengths_bad_examples_and_a_sample(processor: DimpleProcessor) -> None:
    """Nothing is skipped in silence: the report names what is bad."""
    rows = [*make_rows(3), {"id": "empty", "messages": []}]
    collator = DimpleDataCollator(processor)
    report = check_examples(rows, collator)
    assert (report.num_examples, len(report.tokens), report.turns) == (4, 3, [1, 1, 1])
    assert report.image_tokens == [2, 4, 2]
    assert report.bad == ["example 'empty' is bad: it must have an assistant turn (got none)"]
    text = str(report)
    assert text.startswith("4 examples, 1 of them bad")
    assert "<|image_pad|> x 2" in text
    assert "[red" in text
    assert check_examples(rows, collator, limit=3).bad == []
    refuse_bad_data(rows[:3], collator, "data.train")  # control
    with pytest.raises(ValueError, match=r"(?s)data.train must hold good examples \(got 1 bad ones among.*'empty'"):
        refuse_bad_data(rows, collator, "data.train")
    refuse_bad_data(rows, DimpleDataCollator(processor, on_bad_example="skip", max_bad_share=0.25), "data.train")


def test_data_check_command_ends_with_1_for_a_bad_example(
    tmp_path: Path, capsys: pytest.CaptureFixture, parity_dir: Path
) -> None:
    """For scripts; a broken line is named by file and line."""
    good = '{"prompt": "What?", "completion": "red"}\n'
    (tmp_path / "rows.jsonl").write_text(good)
    arguments = ["data", "check", str(tmp_path / "rows.jsonl"), "--model", str(parity_dir / "checkpoint")]
    assert main(arguments) == 0
    (tmp_path / "rows.jsonl").write_text(good + "{\n")
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "rows.jsonl:2 must be a JSON object" in out
    assert "the first good one" in out
    (tmp_path / "rows.jsonl").write_text("{\n")
    assert main(arguments) == 1
    assert "the first good one" not in capsys.readouterr().out  # there is none


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--limit", "0"], 1, "`--limit` must be at least 1 (got 0)"),
        (["--image-folder", "nowhere"], 1, "`--image-folder` must be a folder (got nowhere)"),
        (["--columns", "{"], 2, "must be a mapping such as '{prompt: question}' (got '{')"),
        (["--columns", "{prompt: 5}"], 2, "must be a mapping such as '{prompt: question}' (got '{prompt: 5}')"),
    ],
)
def test_data_check_command_refuses_bad_options(
    options: list[str], status: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture, parity_dir: Path
) -> None:
    """In one line, before data are read."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What?", "completion": "red"}\n')
    arguments = ["data", "check", str(tmp_path / "rows.jsonl"), "--model", str(parity_dir / "checkpoint"), *options]
    if status == 2:  # argparse's
        with pytest.raises(SystemExit):
            main(arguments)
    else:
        assert main(arguments) == status
    assert message in capsys.readouterr().err


def test_split_groups_gives_each_part_its_rate(model: DimpleForConditionalGeneration) -> None:
    """A tower that was trained elsewhere takes smaller steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    split_groups(optimizer, model, {"vision": 0.1, "head": 2.0})
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        expected = {"visual": 0.1, "lm_head": 2.0}.get(name.split(".")[0], 1.0)
        assert rates[id(parameter)] == expected, name
    assert part_of("base_model.model.img_projector.linear_1.lora_A.default.weight") == "projector"
    assert part_of("base_model.model.model.layers.0.mlp.up_proj.weight") == "language_model"


def test_example_length_counts_text_and_images() -> None:
    """For grouping: no image is opened."""
    row = make_rows(1)[0]
    assert example_length(row) == 1000 + len("What 0?") + len("red") + len("user") + len("text") + len("assistant")

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
"""TRL's SFTTrainer trains as the Trainer does, in both phases; trainers of preferences are refused in the second."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Image, Value
from training_run import CHECKPOINT, losses, make_rows
from transformers import Trainer, TrainingArguments

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.training import DimpleDataCollator, PhaseCallback, lora_config

trl = pytest.importorskip("trl")

ARGUMENTS: dict[str, Any] = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "remove_unused_columns": False,
    "disable_tqdm": True,
    "use_cpu": True,
    "activation_checkpointing": False,
}


def data_set() -> Dataset:
    """The rows as TRL wants them, in a `Dataset`."""
    part = {"type": Value("string"), "text": Value("string")}
    features = {"messages": [{"role": Value("string"), "content": [part]}], "images": [Image()]}
    rows = []
    for row in make_rows(8):
        question, answer = row["messages"]
        answer = answer | {"content": [{"type": "text", "text": answer["content"]}]}
        rows.append({"messages": [question, answer], "images": row["images"]})
    return Dataset.from_list(rows, features=Features(features))


@pytest.mark.parametrize("switch_at", [0, 2], ids=["diffusion", "causal"])
@pytest.mark.parametrize("uses_peft", [False, True])
def test_sft_trainer_has_the_trainers_losses(tmp_path: Path, switch_at: int, uses_peft: bool) -> None:
    """TRL would run the language model alone, on text without images and without masks."""
    processor = DimpleProcessor.from_pretrained(CHECKPOINT)
    shared = {"data_collator": DimpleDataCollator(processor), "train_dataset": data_set()}
    found = []
    for uses_trl in (False, True):
        model: Any = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
        config = lora_config(model.config.full_attn_mask, init_lora_weights=True, lora_dropout=0.0)
        callbacks = [PhaseCallback(switch_at)]
        if uses_trl:
            arguments = trl.SFTConfig(
                str(tmp_path), bf16=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **ARGUMENTS
            )
            trainer = trl.SFTTrainer(
                model, arguments, processing_class=processor, callbacks=callbacks,
                peft_config=config if uses_peft else None, **shared,
            )  # fmt: skip
        else:
            from peft import get_peft_model
            from transformers import set_seed

            set_seed(42)  # as TRL does before it makes an adapter
            model = get_peft_model(model, config) if uses_peft else model
            trainer = Trainer(model, TrainingArguments(str(tmp_path), **ARGUMENTS), callbacks=callbacks, **shared)
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0][0] != found[0][1]  # control


def test_sft_trainer_takes_the_path_of_a_checkpoint(tmp_path: Path) -> None:
    """TRL finds the class by the configuration, and trains the whole model."""
    processor = DimpleProcessor.from_pretrained(CHECKPOINT)
    arguments = trl.SFTConfig(
        str(tmp_path), bf16=False, max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **ARGUMENTS
    )
    trainer = trl.SFTTrainer(
        str(CHECKPOINT), arguments, processing_class=processor, callbacks=[PhaseCallback(0)],
        data_collator=DimpleDataCollator(processor), train_dataset=data_set(),
    )  # fmt: skip
    assert type(trainer.model) is DimpleForConditionalGeneration
    trainer.train()
    assert len(losses(trainer)) == ARGUMENTS["max_steps"]
    assert "auto_map" not in trainer.model.config.to_dict()


def test_head_of_other_trainers_is_refused_in_bidirectional_mode() -> None:
    """DPO and GRPO need the probability of a whole answer; a causal model has it."""
    from trl.trainer.utils import add_fused_lm_head

    model = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
    for outputs in (("log_probs",), ("log_probs", "entropy"), ("log_probs", "entropy", "mean_logits", "is_top1")):
        with pytest.raises(ValueError, match="this trainer needs log-probabilities of whole answers.*`SFTTrainer`"):
            add_fused_lm_head(model, outputs=outputs)
    assert "forward" not in vars(model)
    model.config.full_attn_mask = False
    add_fused_lm_head(model)
    assert "forward" in vars(model)  # control


@pytest.mark.parametrize(("name", "value"), [("loss_normalization", "sequence"), ("causal_loss_weight", 0.5)])
def test_loss_that_trl_cannot_divide_is_refused(name: str, value: Any) -> None:
    """It divides by the tokens of the step, and by nothing else."""
    processor = DimpleProcessor.from_pretrained(CHECKPOINT)
    model = DimpleForConditionalGeneration.from_pretrained(CHECKPOINT)
    batch = DimpleDataCollator(processor)(make_rows(2))
    assert model(**batch, fused_lm_head=True).log_probs.shape[0] == 2  # control
    setattr(model.config, name, value)
    with pytest.raises(ValueError, match='`loss_normalization` must be "token" and `causal_loss_weight` 0 with TRL'):
        model(**batch, fused_lm_head=True)


def test_example_trains_an_adapter(tmp_path: Path) -> None:
    """The file that docs/fine_tuning.md names."""
    examples = Path(__file__).resolve().parents[2] / "examples" / "train_with_trl.py"
    chat = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "red"}]}
    (tmp_path / "rows.jsonl").write_text((json.dumps(chat) + "\n") * 4)
    main = runpy.run_path(str(examples))["main"]
    options = ["--model", str(CHECKPOINT), "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    assert len(main([*options, "--steps", "2", "--switch-at", "0.5"])) == 2
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()

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
"""`docs/migration.md` is complete and true: every option, class and flag of the original is in it, what it
names exists, and its snippets run.

The original's names are facts about its released code (github.com/yu-rp/Dimple), which is not here; they are pinned
below.
"""

import dataclasses
import inspect
import re
import shutil
from pathlib import Path

import pytest
import torch
from test_docs import resolve
from test_readme import PUBLISHED_MODEL, python_snippets

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration, DimpleGenerationConfig
from dimple_hf.modeling.original_dimple import PIPELINES, RANKINGS, REPLACEMENTS, OriginalOptions
from dimple_hf.training.recipe import TRAINER_KEYS
from dimple_hf.training.stages import STAGES, Stage

PAGE = Path(__file__).resolve().parent.parent / "docs" / "migration.md"

#: What the original's `forward` takes.
FORWARD_ARGUMENTS = {
    "input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels", "use_cache",
    "output_attentions", "output_hidden_states", "return_dict", "pixel_values", "pixel_values_videos",
    "image_grid_thw", "video_grid_thw", "rope_deltas", "cache_position", "num_logits_to_keep",
}  # fmt: skip

#: Its classes, by file, but for those that are imported.
CLASSES = {
    "configuration_dimple.py": "DimpleConfig DimpleVisionConfig",
    "modeling_dimple.py": (
        "DimpleModelOutput DimpleRotaryEmbedding DimpleRMSNorm DimpleVisionRotaryEmbedding DimpleVisionPatchEmbed "
        "DimplePatchMerger DimpleVisionMLP DimpleVisionAttention DimpleVisionFlashAttention2 DimpleVisionBlock "
        "DimpleVisionSdpaAttention DimpleMLP DimpleAttention DimpleFlashAttention2 DimpleSdpaAttention "
        "DimpleDecoderLayer "
        "DimplePreTrainedModel DimpleVisionTransformerPretrainedModel DimpleMultiModalProjector DimpleBaseModel "
        "DimpleModel"
    ),
    "generation_utils.py": "DimpleModelOutput DimpleGenerationConfig DimpleGenerationMixin",
    "processing_dimple.py": "DimpleProcessor",
    "tokenization_dimple.py": "DimpleTokenizer",
    "image_processing_dimple.py": "DimpleImageProcessor",
    "init.py": "",
    "training.py": "",
    "run.sh": "",
    "DLM_trainer.py": "DLMTrainer AutoRegressiveTrainer",
    "utils/dlm_args.py": "DLMTrainingArguments",
    "utils/dataset.py": "CustomizedDataProcessor CustomizedDataCollator",
    "utils/logger_utils.py": "",
    "utils/utils.py": "",
}

#: The flags of its `training.py`.
FLAGS = {
    "--seed", "--resume-wandb", "--wandb-run-id", "--model", "--ckpt", "--causal_attention", "--max-pixel-scale",
    "--dataset", "--shuffle-training-data", "--ans-seq-length", "--answer-padding-strategy", "--only-text",
    "--use-shard", "--learning-rate", "--batch-size", "--wd", "--warm_up", "--max-seq-length", "--epoch",
    "--max-steps", "--gradient-accumulation-steps", "--per-device-train-batch-size", "--per-device-eval-batch-size",
    "--transition_mode", "--mask_strategy", "--rescale_loss", "--max-grad-norm", "--debug", "--trainer-type",
    "--output-dir", "--save-steps", "--eval-steps", "--stage", "--mark", "--save-ckpt", "--not-save-final",
    "--close-report",
}  # fmt: skip


def section(heading: str) -> str:
    return re.split(r"^## ", PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1], flags=re.M)[0]


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables of a section, without their heads."""
    lines = [line for line in section(heading).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] not in ("original", "option", "argument of the original") and row]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def test_every_option_of_the_original_is_in_the_page_and_no_other() -> None:
    """With the default that ours has, which is the original's."""
    table = rows("Options of `diffusion_generate`")
    options = {name: row for row in table if len(row) == 4 for name in code(row[0])}
    fields = {field.name: field.default for field in dataclasses.fields(OriginalOptions)}
    known = fields.keys() | inspect.signature(DimpleForConditionalGeneration.diffusion_generate).parameters.keys()
    refused = {"pixel_values_videos", "video_grid_thw", "attention_mask_4d", "generation_kwargs"}
    inputs = {"attention_mask", "pixel_values", "image_grid_thw"}
    assert options.keys() | {"self", "kwargs"} == known | refused | inputs
    for name, row in options.items():
        if row[1] not in ("", "required", "the checkpoint's"):
            written = row[1].strip("`")
            assert fields[name] == (None if written == "None" else type(fields[name])(eval(written))), name
        if name in refused:
            with pytest.raises(ValueError, match=f"`{name}` must be"):
                OriginalOptions.collect(None, {name: 1})


def test_every_ranking_and_schedule_is_in_the_page() -> None:
    """Original value -> ours, as the code translates it."""
    pairs = {code(row[0])[0]: code(row[1])[0] for row in rows("Options of `diffusion_generate`") if len(row) == 2}
    expected = {f'alg="{theirs}"': f'unmasking="{ours}"' for theirs, ours in RANKINGS.items()}
    expected |= {f'decoding_pipeline="{theirs}"': f'unmasking_schedule="{ours}"' for theirs, ours in PIPELINES.items()}
    expected['alg="origin-ratio"'] = "diffusion_generate"
    assert pairs == expected


def test_replacements_in_the_page_are_those_of_the_errors() -> None:
    """Who passes an original's option to `generate` reads the same name in the error as in the page."""
    options = {
        name: row[3] for row in rows("Options of `diffusion_generate`") if len(row) == 4 for name in code(row[0])
    }
    config = DimpleGenerationConfig()
    for name, replacement in REPLACEMENTS.items():
        named = code(replacement)
        assert all(f"`{new}`" in options[name] for new in named), name
        assert all(hasattr(config, new) or new in ("answer_ids", "logits_processor") for new in named)
    assert code(options["alg_p_threshold"])[0] == "confidence_threshold"  # control


def test_every_argument_of_forward_is_in_the_page() -> None:
    """What the page calls the same is an argument of ours."""
    table = {name: row[1] for row in rows("Forward") for name in code(row[0])}
    assert table.keys() >= FORWARD_ARGUMENTS
    ours = inspect.signature(DimpleForConditionalGeneration.forward).parameters.keys() | {
        # of transformers, as keywords
        "output_attentions", "output_hidden_states", "return_dict",
    }  # fmt: skip
    for name in FORWARD_ARGUMENTS:
        if table[name].startswith("the same"):
            assert name in ours
    assert {"logits_to_keep", "is_causal"} <= ours
    assert not {"rope_deltas", "cache_position", "num_logits_to_keep"} & ours  # control


def test_every_class_and_file_of_the_original_is_in_the_page() -> None:
    """In bold, the file; after it, or in the next rows, its classes."""
    table = rows("Classes and files")
    files, found = [], {}
    for row in table:
        files += re.findall(r"\*\*`([^`]+)`\*\*", row[0])
        found.setdefault(files[-1], set()).update(code(row[0]))
    for file, names in CLASSES.items():
        assert file in files
        assert set(names.split()) <= found.get(file, set()), file


def test_what_the_page_says_is_here_is_here(repo_root: Path) -> None:
    """Dotted names, commands' files and recipe keys."""
    text = PAGE.read_text(encoding="utf-8")
    dotted = set(re.findall(r"`(dimple_hf(?:\.\w+)+)`", text))
    assert len(dotted) > 15
    for name in dotted:
        assert resolve(name) is not None
    for pattern in re.findall(r"`(recipes/[^`]+)`", text):
        assert list(repo_root.glob(pattern))
    for name in ("mask_token_id", "complementary_masks", "loss_weighting"):
        assert hasattr(DimpleConfig(), name)
    with pytest.raises(AttributeError):
        resolve("dimple_hf.DimpleModel")  # control


def test_every_flag_of_training_is_in_the_page() -> None:
    """And the keys of stages that stand for them exist."""
    table = {name: row[1] for row in rows("Training") for name in code(row[0])}
    assert {name for name in table if name.startswith("--")} == FLAGS
    stage_keys = {field.name for field in dataclasses.fields(Stage)}
    assert set(code(table["--learning-rate"])) <= stage_keys
    assert set(code(table["--mask_strategy"])) | set(code(table["--batch-size"])) <= stage_keys
    assert set(code(table["--stage"])) <= {"stages", *STAGES}
    assert "weight_decay" in TRAINER_KEYS


def test_snippets_run_and_the_new_call_gives_the_old_ones_answer(
    parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who replaces one call by the other reads the same, up to the answer's end."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(parity_dir / "checkpoint", tmp_path / PUBLISHED_MODEL)
    shutil.copy(parity_dir / "tiny" / "images" / "0.png", tmp_path / "photo.png")
    before, after = python_snippets(PAGE.read_text(encoding="utf-8"))
    namespace: dict[str, object] = {}
    for snippet in (before, after):
        assert PUBLISHED_MODEL in before
        exec(compile(snippet, PAGE.name, "exec"), namespace)
    output, answer = namespace["output"], namespace["answer"]
    assert isinstance(answer, torch.Tensor)
    start = namespace["input_ids"].shape[1]  # type: ignore[attr-defined]
    old, new = output.sequences[0, start:], answer[0, start:]  # type: ignore[attr-defined]
    config = DimpleConfig.from_pretrained(parity_dir / "checkpoint")
    ends = torch.isin(new, torch.tensor([config.pad_token_id, config.eos_token_id])).nonzero()
    length = int(ends[0]) if len(ends) else len(new)
    assert length > 1
    assert torch.equal(old[:length], new[:length])

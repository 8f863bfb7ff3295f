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
"""`DimpleConfig`: reads the original's files, writes files that the original reads, refuses contradictions."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import TINY_VISION, tiny_config, tiny_model
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from dimple_hf import DimpleConfig, DimpleVisionConfig


def saved(config: DimpleConfig, directory: Path) -> dict[str, Any]:
    """The fields that `save_pretrained` writes."""
    config.save_pretrained(directory)
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))


def test_config_from_the_7b_file_has_the_originals_meaning(parity_dir: Path) -> None:
    """The released `config.json` loads as it is, with its rotary base and its vision tower."""
    config = DimpleConfig.from_json_file(parity_dir / "config_7b.json")
    written = json.loads((parity_dir / "config_7b.json").read_text(encoding="utf-8"))
    assert written["vision_config"]["model_type"] == "dimple"  # control: the original's file, not one of ours
    assert config.rope_parameters == {
        "rope_type": "default",
        "rope_theta": written["rope_theta"],
        "mrope_section": written["mrope_section"],
    }
    assert config.full_attn_mask is written["full_attn_mask"]
    assert type(config.vision_config) is DimpleVisionConfig
    assert config.vision_config.model_type == "dimple_vision"
    names = ("depth", "hidden_size", "hidden_act", "intermediate_size", "num_heads", "in_channels", "out_hidden_size",
             "patch_size", "spatial_merge_size", "temporal_patch_size", "window_size", "fullatt_block_indexes",
             "tokens_per_second")  # fmt: skip
    for name in names:
        assert getattr(config.vision_config, name) == written["vision_config"][name], name


def test_config_defaults_are_the_7b_models(parity_dir: Path) -> None:
    """Our defaults describe the released model, but for what its file alone says: the rotary base and eos, bos."""
    written = json.loads((parity_dir / "config_7b.json").read_text(encoding="utf-8"))
    config = DimpleConfig()
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "vocab_size", "mrope_section", "full_attn_mask", "mask_token_id", "pad_token_id", "image_token_id",
             "video_token_id", "vision_start_token_id", "vision_end_token_id", "vision_token_id")  # fmt: skip
    assert {name: getattr(config, name) for name in names} == {name: written[name] for name in names}
    assert config.bos_token_id is None
    assert config.eos_token_id is None


def test_config_without_rope_theta_takes_the_originals_default() -> None:
    """Qwen2.5-VL's own default would be 1e6; the original code falls back to 1e4."""
    assert DimpleConfig().rope_parameters["rope_theta"] == 10000.0
    assert DimpleConfig(rope_theta=5e5).rope_parameters["rope_theta"] == 5e5  # control


def test_config_saved_keeps_the_names_that_the_original_reads(tmp_path: Path) -> None:
    """Without them the original would load our files with a rotary base of 10000, in silence."""
    fields = saved(tiny_config(rope_theta=5e5, full_attn_mask=False, dtype="bfloat16"), tmp_path)
    assert fields["rope_theta"] == 5e5
    assert fields["rope_scaling"] is None
    assert fields["mrope_section"] == [2, 1, 1]
    assert fields["torch_dtype"] == "bfloat16"
    assert fields["full_attn_mask"] is False
    assert fields["model_type"] == "dimple"


def test_config_saved_with_scaled_rope_keeps_the_scaling_under_the_old_name(tmp_path: Path) -> None:
    """The original reads `rope_scaling`, transformers 5 reads `rope_parameters`."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = tiny_config(rope_parameters=scaling | {"rope_theta": 5e5})
    fields = saved(config, tmp_path)
    assert fields["rope_scaling"] == scaling
    assert fields["rope_parameters"] == scaling | {"rope_theta": 5e5, "mrope_section": [2, 1, 1]}


def test_config_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    """Nothing is lost or added on the way, whatever class loads it."""
    config = tiny_config(full_attn_mask=False, loss_weighting="elbo", rope_theta=5e5)
    fields = saved(config, tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": str(tmp_path)}
    assert saved(loaded, tmp_path / "again") == fields
    assert loaded.to_dict() != tiny_config().to_dict()  # control


def test_config_with_auto_map_drops_it_and_saves_its_own_beside_the_code(tmp_path: Path, parity_dir: Path) -> None:
    """Upstream's points to classes that are not in our files; ours is only written where these files are."""
    written = json.loads((parity_dir / "checkpoint" / "config.json").read_text(encoding="utf-8"))
    assert written["auto_map"]["AutoModel"] == "modeling_dimple.DimpleModel"  # control
    config = DimpleConfig.from_pretrained(parity_dir / "checkpoint")
    assert config.auto_map == {}
    model = "modeling_dimple.DimpleForConditionalGeneration"
    assert saved(config, tmp_path / "saved")["auto_map"] == {
        "AutoConfig": "configuration_dimple.DimpleConfig",
        "AutoModel": model,
        "AutoModelForCausalLM": model,
        "AutoModelForImageTextToText": model,
        "AutoModelForMultimodalLM": model,
    }
    package = Path(inspect.getfile(DimpleConfig)).parent
    copied = {path.name: path.read_bytes() for path in (tmp_path / "saved").glob("*.py")}
    assert copied == {path.name: path.read_bytes() for path in package.glob("*_dimple.py")}
    config.to_json_file(tmp_path / "alone.json")
    assert "auto_map" not in json.loads((tmp_path / "alone.json").read_text(encoding="utf-8"))


def test_config_mrope_section_reaches_the_rotary_embedding() -> None:
    """It is a field of its own in the files, but the rotary embedding looks for it elsewhere."""
    assert tiny_model().model.rotary_emb.mrope_section == [2, 1, 1]
    assert tiny_model(mrope_section=[1, 1, 2]).model.rotary_emb.mrope_section == [1, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_weighting": "mean"}, "`loss_weighting` must be .* \\(got 'mean'\\)"),
        ({"use_sliding_window": True}, "`use_sliding_window` must be False"),
        ({"noise_schedule": "full", "loss_weighting": "elbo"}, '`noise_schedule` must be "linear" or "cosine" with'),
        ({"hidden_size": 34}, "`hidden_size` must be a multiple of `num_attention_heads` \\(got 34 and 4\\)"),
        ({"num_key_value_heads": 3}, "`num_attention_heads` must be a multiple of .* \\(got 4 and 3\\)"),
        ({"mrope_section": [2, 2, 2]}, "`mrope_section` must be .* half the head size, 4 \\(got \\[2, 2, 2\\]\\)"),
        ({"mrope_section": [2, 2]}, "`mrope_section` must be three numbers .* \\(got \\[2, 2\\]\\)"),
        ({"mask_token_id": 99}, "`mask_token_id` must lie in \\[0, vocab_size=99\\) \\(got 99\\)"),
        ({"image_token_id": -1}, "`image_token_id` must lie in .* \\(got -1\\)"),
        ({"pad_token_id": 151643}, "`pad_token_id` must lie in .* \\(got 151643\\)"),
        ({"mask_token_id": 90}, "`mask_token_id` must differ from .* \\(got 90 for two of them\\)"),
        ({"mask_token_id": 93}, "`mask_token_id` must differ from .* \\(got 93 for two of them\\)"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be >= 1 \\(got 0\\)"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be >= 1 \\(got 0\\)"),
        ({"vision_config": TINY_VISION | {"num_heads": 3}}, "`hidden_size` of the vision tower .* \\(got 16 and 3\\)"),
        ({"vision_config": TINY_VISION | {"hidden_size": 30}}, "`hidden_size` of the vision tower .*got 30 and 2\\)"),
        ({"vision_config": TINY_VISION | {"window_size": 4}}, "`window_size` must hold .* of 8 pixels.* \\(got 4\\)"),
        ({"vision_config": TINY_VISION | {"depth": 0}}, "`depth` must be >= 1 \\(got 0\\)"),
    ],
)
def test_config_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    """Each would fail much later, inside the model, with a message about shapes; or never."""
    tiny_config()  # control: nothing else is wrong
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


def test_config_with_a_value_of_the_wrong_type_is_refused() -> None:
    """`"yes"` is not `True`; the message names the field."""
    with pytest.raises(StrictDataclassFieldValidationError, match="full_attn_mask"):
        tiny_config(full_attn_mask="yes")


def test_config_without_pad_token_is_accepted() -> None:
    """Padding is only needed by `generate`, which says so."""
    assert tiny_config(pad_token_id=None).pad_token_id is None

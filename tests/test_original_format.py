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
"""What we save loads in the original's code (transformers 4.46.2), with the same meaning.

That code is not part of this repository, so three things stand for it: the fields that it reads (pinned below), the
files that it wrote itself (`fixtures/parity`), and our own reading of such files, which `test_parity` compares with
the original's figures. `docs/hub.md` has the figures of one run of the original's classes over what is saved here.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import MIXED_PROMPTS, model_inputs, tiny_model
from safetensors import safe_open
from transformers import AutoModel, AutoProcessor

from dimple_hf import DimpleConfig

#: Fields of `config.json` that the original's model and its configuration class read.
ORIGINAL_FIELDS = {
    "attention_dropout", "full_attn_mask", "hidden_act", "hidden_size", "image_token_id", "initializer_range",
    "intermediate_size", "mask_token_id", "max_position_embeddings", "max_window_layers", "mrope_section",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id", "rms_norm_eps", "rope_scaling",
    "rope_theta", "sliding_window", "tie_word_embeddings", "torch_dtype", "use_cache", "use_sliding_window",
    "video_token_id", "vision_config", "vision_end_token_id", "vision_start_token_id", "vision_token_id", "vocab_size",
}  # fmt: skip
ORIGINAL_VISION_FIELDS = {
    "depth", "fullatt_block_indexes", "hidden_act", "hidden_size", "in_channels", "intermediate_size", "num_heads",
    "out_hidden_size", "patch_size", "spatial_merge_size", "temporal_patch_size", "tokens_per_second", "window_size",
}  # fmt: skip

#: Fields of every configuration of transformers 4.46.2. Its files spell them out; missing, they get the same values.
BASE_FIELDS = {
    "_name_or_path", "architectures", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id", "id2label",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_scores", "problem_type", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "suppress_tokens", "temperature", "top_k", "top_p", "torch_dtype", "typical_p",
}  # fmt: skip

#: Fields that say who wrote a file, and with which classes.
WRITER_FIELDS = {"architectures", "auto_map", "model_type", "transformers_version"}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def saved(parity_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original's checkpoint, loaded and saved by us, in several shards."""
    directory = tmp_path_factory.mktemp("saved")
    AutoModel.from_pretrained(parity_dir / "checkpoint").save_pretrained(directory, max_shard_size="400KB")
    AutoProcessor.from_pretrained(parity_dir / "checkpoint").save_pretrained(directory)
    return directory


@pytest.mark.parametrize("source", ["config_7b.json", "checkpoint/config.json", "tiny/config.json"])
def test_saved_config_has_every_field_of_the_originals_own_file(source: str, parity_dir: Path, tmp_path: Path) -> None:
    """With equal values; only what the base class fills in by itself is left out."""
    theirs = read_json(parity_dir / source)
    DimpleConfig.from_json_file(parity_dir / source).save_pretrained(tmp_path)
    ours = read_json(tmp_path / "config.json")
    full = read_json(parity_dir / "config_7b.json")
    for written, original in ((ours, theirs), (ours["vision_config"], theirs["vision_config"])):
        names = original.keys() - WRITER_FIELDS - {"vision_config"}
        for name in names & written.keys():
            assert written[name] == original[name], name
        for name in names - written.keys():
            assert name in BASE_FIELDS
            assert original[name] == full["vision_config"][name], (
                name
            )  # a default: the tower's class sets none of them


@pytest.mark.parametrize("source", ["config_7b.json", "checkpoint/config.json"])
def test_saved_config_has_every_field_that_the_original_reads(source: str, parity_dir: Path, tmp_path: Path) -> None:
    """Also those that its own file left out because they had its defaults, which are not always ours."""
    DimpleConfig.from_json_file(parity_dir / source).save_pretrained(tmp_path)
    ours = read_json(tmp_path / "config.json")
    assert ours.keys() >= ORIGINAL_FIELDS
    assert ours["vision_config"].keys() >= ORIGINAL_VISION_FIELDS
    assert not ours.keys() >= ORIGINAL_FIELDS | {"rope"}  # control


def test_saved_config_of_a_new_model_leaves_the_originals_cache_off(tmp_path: Path) -> None:
    """The original decodes with an inexact cache where its configuration says so; its own default does not."""
    for use_cache in (False, True):  # the second is a control: what a user says stays
        tiny_model(**({"use_cache": True} if use_cache else {})).save_pretrained(tmp_path)
        assert read_json(tmp_path / "config.json")["use_cache"] is use_cache


@pytest.mark.parametrize("changes", [{"rope_theta": 5e5}, {"full_attn_mask": False}])
def test_fields_that_the_original_reads_say_all_about_the_model(changes: dict[str, Any], tmp_path: Path) -> None:
    """Without transformers 5's own spellings the saved model still gives the same logits."""
    model = tiny_model(**changes)
    model.save_pretrained(tmp_path)
    fields = read_json(tmp_path / "config.json")
    kept = {name: fields[name] for name in ORIGINAL_FIELDS | {"model_type"}}
    kept["vision_config"] = {name: fields["vision_config"][name] for name in ORIGINAL_VISION_FIELDS}
    assert {"rope_parameters", "dtype"} <= fields.keys() - kept.keys()
    inputs = model_inputs(*MIXED_PROMPTS)

    def logits(fields: dict[str, Any]) -> torch.Tensor:
        (tmp_path / "config.json").write_text(json.dumps(fields))
        with torch.no_grad():
            return AutoModel.from_pretrained(tmp_path)(**inputs).logits

    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(logits(kept), expected, rtol=0, atol=0)
    # control: each of them matters
    (name,) = changes
    assert not torch.equal(logits({key: value for key, value in kept.items() if key != name}), expected)


def test_saved_weights_have_the_originals_names_shapes_and_values(saved: Path, parity_dir: Path) -> None:
    """In shards with an index, and in the format that transformers 4.46.2 insists on."""

    def tensors(directory: Path) -> dict[str, torch.Tensor]:
        found = {}
        index = read_json(directory / "model.safetensors.index.json")["weight_map"]
        for name in sorted(set(index.values())):
            with safe_open(directory / name, framework="pt") as file:
                assert file.metadata() == {"format": "pt"}
                assert {key for key in index if index[key] == name} == set(file.keys())
                found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return found

    ours, theirs = tensors(saved), tensors(parity_dir / "checkpoint")
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_saved_directory_has_every_file_that_the_original_opens(saved: Path, parity_dir: Path) -> None:
    """But two whose content its tokenizer first looks for in `tokenizer_config.json`, where we write it."""
    theirs = {path.name for path in (parity_dir / "checkpoint").iterdir() if path.suffix != ".safetensors"}
    assert theirs - {path.name for path in saved.iterdir()} == {
        "added_tokens.json", "special_tokens_map.json", "end_to_end_goldens.json"
    }  # fmt: skip
    assert read_json(saved / "vocab.json") == read_json(parity_dir / "checkpoint" / "vocab.json")
    assert read_json(saved / "chat_template.json") == read_json(parity_dir / "checkpoint" / "chat_template.json")
    assert (saved / "merges.txt").read_text("utf-8") == (parity_dir / "checkpoint" / "merges.txt").read_text("utf-8")
    tokens = read_json(saved / "tokenizer_config.json")
    added = {token["content"]: int(number) for number, token in tokens["added_tokens_decoder"].items()}
    assert added == read_json(parity_dir / "checkpoint" / "added_tokens.json")
    special = read_json(parity_dir / "checkpoint" / "special_tokens_map.json")
    extra = [entry["content"] for entry in special.pop("additional_special_tokens")]
    assert tokens["additional_special_tokens"] == extra
    assert {name: tokens[name] for name in special} == {name: entry["content"] for name, entry in special.items()}


def test_saved_generation_config_has_the_originals_special_tokens(saved: Path, parity_dir: Path) -> None:
    """All that the original takes from this file."""
    ours, theirs = (read_json(folder / "generation_config.json") for folder in (saved, parity_dir / "checkpoint"))
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}

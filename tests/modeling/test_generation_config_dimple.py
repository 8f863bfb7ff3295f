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
"""`DimpleGenerationConfig`: its options, its file, the original's file, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import EOS, MASK, PAD, model_inputs, tiny_config, tiny_model
from helpers import MIXED_PROMPTS as PROMPTS
from transformers import AutoModel, GenerationConfig

from dimple_hf import DimpleGenerationConfig
from dimple_hf.modeling.cache_dimple import WindowPolicy
from dimple_hf.modeling.generation_config_dimple import (
    DIFFUSION_OPTIONS,
    SHARED_OPTIONS,
    nearest_name,
    translated_options,
)
from dimple_hf.modeling.rules_dimple import (
    EntropyBoundConfig,
    FactorConfig,
    KlassConfig,
    ProphetConfig,
    SamplerConfig,
    ThresholdConfig,
    WinoConfig,
)


def test_generation_config_defaults_are_confident_decoding() -> None:
    """Nothing is set; in a call: threshold 0.95, as many steps as positions, cache on unless switched off."""
    config = DimpleGenerationConfig()
    assert all(getattr(config, name) is None for name in (*DIFFUSION_OPTIONS, *SHARED_OPTIONS))
    resolved = config.with_defaults()
    assert resolved.unmasking == "confidence"
    assert resolved.unmasking_schedule == "adaptive"
    assert resolved.sampler == "threshold"
    assert resolved.block_length is None
    assert resolved.confidence_threshold == 0.95
    assert resolved.max_denoising_steps is None
    assert resolved.max_new_tokens == 64
    assert resolved.cache_policy == "prompt"
    assert resolved.output_history is False
    assert DimpleGenerationConfig(use_cache=False).with_defaults().cache_policy == "none"
    assert config.unmasking is None  # a copy


def test_generation_config_of_the_caller_keeps_what_it_does_not_set() -> None:
    """The checkpoint's options win over the defaults, the caller's over both, however they are passed."""
    model = tiny_model()
    model.generation_config.update(confidence_threshold=0.99, max_new_tokens=5, cache_policy="refresh",
                                   cache_refresh_interval=3)  # fmt: skip
    for given in (
        {"max_new_tokens": 48},
        {"generation_config": GenerationConfig(max_new_tokens=48)},
        {"generation_config": DimpleGenerationConfig(max_new_tokens=48)},
        {"generation_config": DimpleGenerationConfig(max_new_tokens=7), "max_new_tokens": 48},
    ):
        config, rest = model._prepare_generation_config(given.pop("generation_config", None), **given)
        assert (config.max_new_tokens, config.confidence_threshold, config.unmasking) == (48, 0.99, "confidence")
        assert config.cache_refresh_interval == 3
        assert rest == {}
    assert model.generation_config.max_new_tokens == 5  # a copy
    # Nor does another option touch a threshold that nobody has set.
    config = DimpleGenerationConfig()
    config.overlay({"max_new_tokens": 48})
    assert config.sampler_config is None
    assert config.with_defaults().confidence_threshold == 0.95
    config.overlay({"confidence_threshold": None})
    assert config.with_defaults().confidence_threshold is None  # control: `None` does, given by name
    # What contradicts the caller's options goes with them.
    for given, expected in (
        ({"cache_policy": "prompt"}, ("prompt", None)),
        ({"use_cache": False}, ("none", None)),
        ({"use_cache": True}, ("refresh", 3)),
    ):
        config, _ = model._prepare_generation_config(None, **given)
        assert (config.cache_policy, config.cache_refresh_interval) == expected
    config, _ = model._prepare_generation_config(GenerationConfig(max_length=30))
    assert (config.max_length, config.max_new_tokens) == (30, None)


def test_generation_config_file_of_an_earlier_version_is_translated(tmp_path: Path) -> None:
    """It had a flat option for every rule's, and a threshold of `null` for none."""
    before = {"confidence_factor": None, "confidence_threshold": 0.99, "crop_after_end": False, "gap_thresholds": None,
              "kl_threshold": None, "max_new_tokens": 48, "parallel_rule": "threshold",
              "unmasking": "confidence"}  # fmt: skip
    cases = (
        ({}, ThresholdConfig(0.99), None),
        ({"confidence_threshold": None}, ThresholdConfig(None), None),
        ({"parallel_rule": "klass", "kl_threshold": 0.5}, KlassConfig(0.99, 0.5), None),
        ({"parallel_rule": "factor", "confidence_factor": 2.0, "confidence_threshold": 0.95}, FactorConfig(2.0), None),
        ({"cache_policy": "block", "block_length": 4}, ThresholdConfig(0.99), "prefix"),
    )
    for changes, rule, policy in cases:
        (tmp_path / "generation_config.json").write_text(json.dumps(before | changes), encoding="utf-8")
        loaded = DimpleGenerationConfig.from_pretrained(tmp_path)
        assert loaded.rule() == rule
        assert loaded.max_new_tokens == 48
        assert loaded.cache_policy == policy
        assert not hasattr(loaded, "parallel_rule")
        assert not hasattr(loaded, "crop_after_end")


def test_generation_config_of_a_new_model_has_the_models_tokens() -> None:
    """Also of a model that was never saved."""
    config = tiny_model().generation_config
    assert type(config) is DimpleGenerationConfig
    assert (config.mask_token_id, config.pad_token_id, config.eos_token_id) == (MASK, PAD, EOS)
    assert DimpleGenerationConfig.from_model_config(tiny_config(pad_token_id=None)).pad_token_id is None


def test_generation_config_saved_with_the_model_is_loaded_with_it(tmp_path: Path) -> None:
    """All own fields, `None` among them, and the inherited ones."""
    model = tiny_model()
    model.generation_config = DimpleGenerationConfig(
        max_denoising_steps=3, unmasking="margin", unmasking_schedule="fixed",
        output_history=True, max_new_tokens=7, eos_token_id=[EOS, 5], pad_token_id=PAD, mask_token_id=MASK,
        sampler_config=KlassConfig(None, kl_threshold=0.5, kl_history_length=1), block_length=4,
    )  # fmt: skip
    assert json.loads(json.dumps(model.generation_config.to_dict()))["sampler_config"]["kl_threshold"] == 0.5
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).generation_config
    assert type(loaded) is DimpleGenerationConfig
    names = ("max_denoising_steps", "unmasking", "unmasking_schedule", "confidence_threshold", "output_history",
             "max_new_tokens", "eos_token_id", "pad_token_id", "mask_token_id", "sampler_config",
             "block_length")  # fmt: skip
    for name in names:
        assert getattr(loaded, name) == getattr(model.generation_config, name), name
    assert loaded.to_dict() != tiny_model().generation_config.to_dict()  # control
    output = AutoModel.from_pretrained(tmp_path).generate(**model_inputs(PROMPTS[0]))
    assert output.shape[1] == len(PROMPTS[0].tokens) + 7


@pytest.mark.parametrize(
    "rule", [FactorConfig(2.0), EntropyBoundConfig(0.3), ProphetConfig(None, (6.0, 4.0, 2.0)), WinoConfig(0.7, 0.8)]
)
def test_generation_config_file_keeps_the_options_of_every_rule(tmp_path: Path, rule: SamplerConfig) -> None:
    """And nothing that is not set."""
    DimpleGenerationConfig(sampler_config=rule).save_pretrained(tmp_path)
    assert DimpleGenerationConfig.from_pretrained(tmp_path).rule() == rule
    written = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert written.pop("sampler_config")["_cls_name"] == type(rule).__name__
    assert list(written) == ["transformers_version"]


def test_generation_config_with_a_rule_of_ones_own_is_not_written(tmp_path: Path) -> None:
    """No file can hold it; it can be shown and passed."""
    config = DimpleGenerationConfig(sampler=lambda *args: args[2])
    assert "lambda" in repr(config)
    with pytest.raises(ValueError, match="`sampler` must be a name to be saved"):
        config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`cache_policy` must be a name to be saved"):
        DimpleGenerationConfig(cache_policy=WindowPolicy()).save_pretrained(tmp_path)
    DimpleGenerationConfig(sampler="klass").save_pretrained(tmp_path)  # control


def test_generation_config_from_the_originals_file_drops_its_decoding_options(parity_dir: Path) -> None:
    """The original never reads them back (`alg="origin"`, 512 steps, no cache); special tokens stay."""
    written = json.loads((parity_dir / "checkpoint" / "generation_config.json").read_text(encoding="utf-8"))
    assert {"alg", "steps", "eps", "temperature", "use_cache"} <= set(written)  # control: they are there
    config = AutoModel.from_pretrained(parity_dir / "checkpoint").generation_config
    assert config.confidence_threshold is None
    assert config.use_cache is not False
    assert config.temperature is None
    for name in ("mask_token_id", "pad_token_id", "eos_token_id", "bos_token_id"):
        assert getattr(config, name) == written[name]
    assert not hasattr(config, "alg")


def test_generation_config_of_the_originals_training_code_loads(tmp_path: Path) -> None:
    """Its copy of the class writes one option more than the released one, `block_attention`."""
    tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    written = {"block_attention": False, "alg": "origin", "steps": 512, "mask_token_id": 3}
    file.write_text(json.dumps(written))
    config = AutoModel.from_pretrained(tmp_path).generation_config
    assert config.mask_token_id == 3
    assert not hasattr(config, "block_attention")
    file.write_text(json.dumps(written | {"block_atention": False}))  # control: nobody's option
    with pytest.raises(ValueError, match="`block_atention` must be a generation option"):
        AutoModel.from_pretrained(tmp_path)


def test_generation_config_passed_to_from_pretrained_wins_over_the_file(tmp_path: Path) -> None:
    """As for every transformers model; a plain one takes the defaults for what it does not know."""
    tiny_model().save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, generation_config=GenerationConfig(max_new_tokens=3))
    assert type(model.generation_config) is DimpleGenerationConfig
    assert model.generation_config.max_new_tokens == 3


def test_generation_config_file_that_is_missing_leaves_the_models_tokens(tmp_path: Path) -> None:
    """A checkpoint need not have one."""
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert AutoModel.from_pretrained(tmp_path).generation_config.mask_token_id == MASK


@pytest.mark.parametrize("mark", ["alg", "decoding_pipeline"])
def test_options_for_sampling_are_dropped_from_the_originals_files_alone(mark: str) -> None:
    """In a file of this package they mean what they say."""
    options = {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "use_cache": False}
    assert translated_options(options) == options
    assert translated_options(options | {mark: "origin", "eos_token_id": 5}) == {"eos_token_id": 5}


def test_generation_config_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    """It must not pass for a missing one."""
    tiny_model().save_pretrained(tmp_path)
    AutoModel.from_pretrained(tmp_path)  # control
    (tmp_path / "generation_config.json").write_text("{nope", encoding="utf-8")
    with pytest.raises(ValueError, match=r"generation_config.json must hold a JSON object"):
        AutoModel.from_pretrained(tmp_path)


def test_generation_config_never_runs_code_from_the_checkpoint(tmp_path: Path) -> None:
    """Transformers' own loading step runs `custom_generate/generate.py` when remote code is trusted."""
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "custom_generate").mkdir()
    (tmp_path / "custom_generate" / "generate.py").write_text("raise SystemExit('executed')", encoding="utf-8")
    for trust_remote_code in (None, False, True):
        model = AutoModel.from_pretrained(tmp_path, trust_remote_code=trust_remote_code)
        assert model.generate(**model_inputs(PROMPTS[0]), max_new_tokens=2).shape == (1, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence_treshold": 0.5}, "`confidence_treshold` must be .*; did you mean `confidence_threshold`\\?"),
        ({"xyzzy": 1}, "`xyzzy` must be a generation option$"),
        ({"unmasking": "confidense"}, "`unmasking` must be one of .*'confidense'\\); did you mean `confidence`\\?"),
        ({"unmasking_schedule": "adaptve"}, "`unmasking_schedule` must be one of adaptive, fixed .* `adaptive`\\?"),
        ({"confidence_threshold": 0}, "`confidence_threshold` must lie in \\(0, 1\\] \\(got 0\\)"),
        ({"confidence_threshold": 1.01}, "`confidence_threshold` must lie in \\(0, 1\\] \\(got 1.01\\)"),
        ({"confidence_threshold": float("nan")}, "`confidence_threshold` must lie in .*nan"),
        ({"confidence_threshold": "high"}, "`confidence_threshold` must lie in .*'high'"),
        ({"top_p": 0.0}, "`top_p` must"),
        ({"top_p": 2.0}, "`top_p` must"),
        ({"top_k": -1}, "`top_k` must be an integer >= 0 \\(got -1\\)"),
        ({"temperature": 0.0}, "`temperature`.* use do_sample=False|`temperature` .*positive"),
        ({"temperature": -1.0}, "`temperature`"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be .*0"),
        ({"max_new_tokens": -3}, "`max_new_tokens` must be .*-3"),
        ({"max_new_tokens": 2.5}, "`max_new_tokens` must be an integer >= 1 \\(got 2.5\\)"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be an integer >= 1 \\(got True\\)"),
        ({"max_new_tokens": "3"}, "`max_new_tokens` must be an integer >= 1 \\(got '3'\\)"),
        ({"max_denoising_steps": 10**9}, "`max_denoising_steps` must be at most 65536 \\(got 1000000000\\)"),
        ({"mask_token_id": -1}, "`mask_token_id` must be an integer >= 0 \\(got -1\\)"),
        ({"max_time": "3"}, "`max_time` must be a number of seconds \\(got '3'\\)"),
        ({"unmasking": ["margin"]}, "`unmasking` must be one of .* \\(got \\['margin'\\]\\)"),
        ({"max_length": 0}, "`max_length` must be an integer >= 1 \\(got 0\\)"),
        ({"max_denoising_steps": 0}, "`max_denoising_steps` must be an integer >= 1 \\(got 0\\)"),
        ({"num_return_sequences": 0}, "`num_return_sequences` must be an integer >= 1 \\(got 0\\)"),
    ],
)
def test_generation_config_with_a_bad_option_is_refused(options: dict[str, Any], message: str) -> None:
    """By its constructor, and on its way into `generate` before any pass of the model."""
    with pytest.raises(ValueError, match=message):
        DimpleGenerationConfig(**options)
    model = tiny_model()
    model.model.layers[0].register_forward_pre_hook(lambda module, args: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=f"`{next(iter(options))}`"):
        model.generate(**model_inputs(PROMPTS[0]), **options)


def test_generation_config_takes_and_saves_numbers_of_numpy(tmp_path: Path) -> None:
    """They come out of arrays and data frames, and JSON has no such types."""
    options = {"max_new_tokens": np.int64(3), "top_p": np.float32(0.5), "confidence_threshold": np.float64(0.25)}
    DimpleGenerationConfig(do_sample=True, **options).save_pretrained(tmp_path)
    loaded = DimpleGenerationConfig.from_pretrained(tmp_path)
    assert (loaded.max_new_tokens, loaded.top_p, loaded.confidence_threshold) == (3, 0.5, 0.25)
    assert type(loaded.max_new_tokens) is int


def test_generation_config_limits_are_accepted() -> None:
    """The control of the refusals: what lies just inside."""
    DimpleGenerationConfig(
        confidence_threshold=1, top_p=1.0, top_k=1, temperature=1e-3, max_new_tokens=1, max_denoising_steps=1,
        do_sample=True,
    )  # fmt: skip
    DimpleGenerationConfig(top_k=0)  # transformers' way to switch it off
    assert DimpleGenerationConfig(confidence_threshold=None).confidence_threshold is None


def test_nearest_name_is_proposed_only_when_it_is_near() -> None:
    """A far-fetched proposal would mislead."""
    assert nearest_name("unmaskin", ["unmasking", "top_p"]) == "; did you mean `unmasking`?"
    assert nearest_name("zzz", ["unmasking", "top_p"]) == ""

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
"""Tests of the settings of an evaluation. They need no evaluation library; `test_lmms_eval.py` runs a real one."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dimple_hf.integrations.evaluation_settings import PRESETS, end_at, model_options, task_options
from dimple_hf.modeling.generation_config_dimple import DimpleGenerationConfig


@pytest.mark.parametrize("length", [4, 8, 16])
def test_presets_paper_and_confident_differ_in_the_threshold_alone(length: int) -> None:
    """The paper's figures are of one token per step; what confident decoding changes must be the only change."""
    paper, confident = model_options(f"paper-{length}", {}), model_options(f"confident-{length}", {})
    assert paper["max_new_tokens"] == confident["max_new_tokens"] == length
    assert (paper.pop("confidence_threshold"), confident.pop("confidence_threshold")) == (None, 0.95)
    assert paper == confident
    assert paper["unmasking"] == "confidence"


def test_presets_are_handed_out_as_copies() -> None:
    """Two models of one process must not change each other's settings."""
    model_options("paper-8", {})["max_new_tokens"] = 99
    assert model_options("paper-8", {})["max_new_tokens"] == 8


def test_model_options_named_ones_win_over_the_preset() -> None:
    """The cache is on by default, and off where an evaluation asks for it; a command line writes None as a word."""
    options = model_options("confident-8", {"use_cache": False, "confidence_threshold": "None"})
    assert options == PRESETS["paper-8"] | {"use_cache": False}
    assert model_options(None, {}) == {}


@pytest.mark.parametrize(
    ("preset", "given", "message"),
    [
        ("paper8", {}, r"`preset` must be one of paper-4, .*\(got 'paper8'\); did you mean `paper-8`\?"),
        (8, {}, r"`preset` must be one of .*\(got 8\)$"),
        (None, {"confidence_treshold": 0.9}, "did you mean `confidence_threshold`"),
        (None, {"pretraned": "a"}, "did you mean `pretrained`"),
        (None, {"output_history": True}, "`output_history` must be"),
        (None, {"confidence_threshold": 1.5}, r"`confidence_threshold` must lie in \(0, 1\] \(got 1.5\)"),
        (None, {"max_new_tokens": 8.5}, r"`max_new_tokens` must be an integer >= 1 \(got 8.5\)"),
        ("paper-8", {"unmasking": "confidnce"}, "did you mean `confidence`"),
    ],
)
def test_model_options_that_are_wrong_are_refused(preset: Any, given: dict[str, Any], message: str) -> None:
    """A misspelt option would give the figures of other settings, hours later."""
    with pytest.raises(ValueError, match=message):
        model_options(preset, given, other_arguments=["pretrained", "preset"])


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"max_new_tokens": 16, "temperature": 0, "do_sample": False, "top_p": 1.0}, {"max_new_tokens": 16}),
        ({"temperature": 0.7, "do_sample": False}, {}),
        ({"temperature": None, "top_p": None, "do_sample": True, "num_beams": 1}, {"num_beams": 1}),
        ({"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.7, "top_p": 0.9, "do_sample": True}),
        ({"temperature": 0.7, "do_sample": True}, {"temperature": 0.7, "do_sample": True}),
    ],
)
def test_task_options_sample_only_where_the_task_says_so(given: dict[str, Any], options: dict[str, Any]) -> None:
    """Tasks carry temperatures of 0 and nuclei of 0, which mean greedy decoding, not a value to refuse."""
    assert task_options(given) == (options, [], [])
    DimpleGenerationConfig(**options)


def test_task_options_split_off_stop_strings_and_what_is_for_other_models() -> None:
    """`until` is where an answer ends; settings of other models' image processors are none of ours, and are named."""
    options, stop_strings, foreign = task_options({"until": "\n", "image_aspect_ratio": "pad", "block_length": 4})
    assert (options, stop_strings, foreign) == ({"block_length": 4}, ["\n"], ["image_aspect_ratio"])
    assert task_options({"until": ["a", "b"]}) == ({}, ["a", "b"], [])
    assert task_options({"until": None}) == ({}, [], [])


@pytest.mark.parametrize(
    ("stop_strings", "expected"),
    [([], "one\n\ntwo"), (["\n\n"], "one"), (["two", "n"], "o"), (["", "x"], "one\n\ntwo")],
)
def test_end_at_cuts_at_the_first_stop_string(stop_strings: list[str], expected: str) -> None:
    assert end_at("one\n\ntwo", stop_strings) == expected


def test_model_args_of_the_documents_are_accepted(repo_root: Path) -> None:
    """A reader copies these commands, also those whose checkpoint is not here to run them with."""
    found = re.findall(r"--model_args (\S+)", (repo_root / "docs" / "evaluation.md").read_text())
    assert len(found) >= 3
    for model_args in found:
        given = dict(argument.split("=") for argument in model_args.split(","))
        values = {name: yaml.safe_load(value) for name, value in given.items() if name not in ("pretrained", "dtype")}
        model_options(values.pop("preset", None), values)

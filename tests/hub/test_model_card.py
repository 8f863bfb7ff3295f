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
"""Model cards say what the files say and what the author says, and their snippets run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image

from dimple_hf import DimpleForConditionalGeneration, DimpleProcessor
from dimple_hf.hub import build_model_card, write_model_card
from dimple_hf.hub.card import is_blank_card
from dimple_hf.training import lora_config

SCORES = {"text/fields": 0.97, "json/whole": 0.9125, "passes_per_token": 0.3}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parity_dir: Path) -> Path:
    """The working directory, with an image, and a model at `team/tiny`, which is also what a Hub id looks like."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (56, 56), "white").save("photo.png")
    shutil.copytree(parity_dir / "checkpoint", tmp_path / "team" / "tiny")
    return tmp_path


@pytest.fixture
def adapter(here: Path) -> Path:
    """A causal adapter whose answers differ from the base's."""
    model = DimpleForConditionalGeneration.from_pretrained("team/tiny")
    get_peft_model(model, lora_config(False, r=2, init_lora_weights=False)).save_pretrained("team/adapter")
    return here / "team" / "adapter"


def snippet(card: ModelCard) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", card.text, flags=re.DOTALL | re.MULTILINE)
    return code


def run_snippet(card: ModelCard, capsys: pytest.CaptureFixture) -> tuple[dict[str, Any], str]:
    """The snippet's variables, and what it printed."""
    variables: dict[str, Any] = {}
    capsys.readouterr()
    exec(compile(snippet(card), "README.md", "exec"), variables)
    return variables, capsys.readouterr().out


def metadata(card: ModelCard) -> dict[str, Any]:
    """The front matter as any YAML reader finds it."""
    return yaml.safe_load(str(card).split("---\n")[1])


def test_card_of_a_model_has_the_hubs_metadata(here: Path) -> None:
    """All of what the Hub sorts models by; what nobody stated is not there."""
    card = build_model_card(
        "team/tiny", license="mit", base_models=["a/b", "c/d"], datasets=["e/f"], scores=SCORES, scores_data="e/forms"
    )
    found = metadata(card)
    assert found.pop("tags")[0] == "dimple"
    (index,) = found.pop("model-index")
    assert found == {
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers",
        "license": "mit",
        "base_model": ["a/b", "c/d"],
        "datasets": ["e/f"],
    }
    assert index["name"] == "tiny"
    (result,) = index["results"]
    assert result["task"] == {"type": "image-text-to-text"}
    assert result["dataset"] == {"name": "e/forms", "type": "e/forms"}
    assert {metric["name"]: metric["value"] for metric in result["metrics"]} == SCORES
    assert [metric["type"] for metric in result["metrics"]] == ["fields", "whole", "passes_per_token"]
    bare = metadata(build_model_card("team/tiny"))
    assert set(bare) == {"pipeline_tag", "library_name", "tags"}


def test_card_of_a_model_states_what_its_files_say(here: Path) -> None:
    """Counted by hand from the fixture's headers: 73 weights of float32."""
    text = build_model_card("team/tiny", description="Reads *forms*.", scores=SCORES).text
    assert text.startswith("\n# tiny\n\nReads *forms*.\n\nThis is a [Dimple]")
    model = DimpleForConditionalGeneration.from_pretrained("team/tiny")
    assert f"| parameters | {model.num_parameters():,} in F32 |" in text
    assert "| phase | diffusion:" in text
    assert "| language model | 3 layers, width 64, 432 tokens, sequences of up to 4,096 |" in text
    assert "| vision tower | 4 layers, width 32, patches of 14 pixels |" in text
    assert "| images | scaled to 784 pixels at least and 50,176 at most |" in text
    assert "| decoding |" not in text
    assert "| `json/whole` | 0.9125 |" in text
    assert "On evaluation data." in text
    assert "eprint = {2505.16990}" in text
    assert "## Scores" not in build_model_card("team/tiny").text


def test_card_of_a_causal_model_with_settings_of_its_own_says_so(here: Path) -> None:
    """The other phase, decoding options, loss options, and a quantization."""
    changes: dict[str, dict[str, Any]] = {
        "config.json": {
            "full_attn_mask": False,
            "complementary_masks": True,
            "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
        },
        "generation_config.json": {"max_new_tokens": 48, "unmasking": "margin", "confidence_threshold": 0.8},
    }
    for name, fields in changes.items():
        path = here / "team/tiny" / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    card = build_model_card("team/tiny", base_models=["a/b"])
    assert "| phase | autoregressive:" in card.text
    assert "first, autoregressive phase" in card.text
    assert "| decoding | `max_new_tokens` 48, `unmasking` margin, `confidence_threshold` 0.8 |" in card.text
    assert "| diffusion loss | `loss_weighting` uniform, `complementary_masks` True |" in card.text
    assert "| quantization | `bitsandbytes` |" in card.text
    assert "max_new_tokens=48)" in snippet(card)
    assert metadata(card)["base_model_relation"] == "quantized"


def test_snippet_of_a_model_runs(here: Path, capsys: pytest.CaptureFixture) -> None:
    """From the card to an answer, with the package, for a question that needs quoting."""
    question = 'Say "a\\b"\nin ö.'
    card = build_model_card("team/tiny", repo_id="team/tiny", question=question)
    variables, printed = run_snippet(card, capsys)
    assert type(variables["model"]) is DimpleForConditionalGeneration
    assert variables["content"][1]["text"] == question
    answer = variables["output"][0, variables["inputs"]["input_ids"].shape[1] :]
    assert len(answer) == 64
    assert printed == variables["processor"].decode(answer, skip_special_tokens=True) + "\n"


def test_card_says_how_to_load_without_the_package_only_where_that_works(here: Path) -> None:
    """What we save brings its code; the fixture does not, and the original's code is of no use."""
    assert "trust_remote_code" not in build_model_card("team/tiny").text
    (here / "team/tiny/modeling_dimple.py").write_text("raise RuntimeError('run')")
    assert "trust_remote_code" not in build_model_card("team/tiny").text
    DimpleForConditionalGeneration.from_pretrained("team/tiny").save_pretrained("team/saved")
    DimpleProcessor.from_pretrained("team/tiny").save_pretrained("team/saved")
    assert (here / "team/saved/modeling_dimple.py").is_file()
    assert "`trust_remote_code=True` to both" in build_model_card("team/saved").text


def test_card_of_an_adapter_says_what_it_adapts(adapter: Path) -> None:
    """Phase, sizes and layers stand in PEFT's own file; the base must be named where it was a directory."""
    card = build_model_card(adapter, base_models=["team/tiny"])
    found = metadata(card)
    assert found["library_name"] == "peft"
    assert found["base_model"] == ["team/tiny"]
    assert found["base_model_relation"] == "adapter"
    assert found["tags"][-1] == "lora"
    assert "This is a LoRA adapter for [team/tiny](https://huggingface.co/team/tiny)" in card.text
    assert "| phase | autoregressive:" in card.text
    # 3 layers; of two ranks each: q 64+64, k and v 64+32, o 64+64, gate, up and down 64+160.
    assert f"| parameters | {3 * 2 * (128 + 96 + 96 + 128 + 3 * 224):,} in F32 |" in card.text
    assert "| sizes | `r` 2, `lora_alpha` 32, `lora_dropout` 0.05 |" in card.text
    assert r"| adapts | `model\.layers\.\d+\.(self_attn\|mlp)\.\w+_proj` |" in card.text


def test_card_of_an_adapter_without_mode_claims_none(here: Path) -> None:
    """An adapter that was made without our `lora_config`; with a module that is trained whole, and as DoRA."""
    model = DimpleForConditionalGeneration.from_pretrained("team/tiny")
    config = LoraConfig(r=2, target_modules=["v_proj", "q_proj"], modules_to_save=["img_projector"], use_dora=True)
    get_peft_model(model, config).save_pretrained("team/adapter")
    text = build_model_card("team/adapter", base_models=["team/tiny"]).text
    assert "| phase | not recorded in the adapter" in text
    assert "This is a DoRA adapter" in text
    assert "| adapts | `q_proj, v_proj` |" in text
    assert "| trained whole | `img_projector` |" in text


def test_snippet_of_an_adapter_runs(adapter: Path, capsys: pytest.CaptureFixture) -> None:
    """It wraps the base and takes its mode, which the base does not have."""
    card = build_model_card(adapter, repo_id="team/adapter", base_models=["team/tiny"])
    variables, printed = run_snippet(card, capsys)
    assert variables["model"].config.full_attn_mask is False
    assert any("lora" in name for name, _ in variables["model"].named_parameters())
    base = build_model_card("team/tiny", repo_id="team/tiny")
    assert run_snippet(base, capsys)[1] != printed  # control: the adapter changes the answer


def test_adapters_base_is_taken_from_its_file_only_when_it_is_an_id(adapter: Path, here: Path) -> None:
    """A path of the author's machine says nothing to anybody else, even one that looks like an id."""
    message = "`base_models` must name the adapter's base model by its Hub id"
    with pytest.raises(ValueError, match=message):
        build_model_card(adapter)  # "team/tiny" is a directory here
    path = adapter / "adapter_config.json"
    fields = json.loads(path.read_text())
    for base in (None, "/data/dimple", "a/b--c"):
        path.write_text(json.dumps(fields | {"base_model_name_or_path": base}))
        with pytest.raises(ValueError, match=message):
            build_model_card(adapter)
    path.write_text(json.dumps(fields | {"base_model_name_or_path": "rp-yu/Dimple-7B"}))
    assert metadata(build_model_card(adapter))["base_model"] == ["rp-yu/Dimple-7B"]


def test_write_model_card_keeps_what_somebody_wrote(here: Path) -> None:
    """Refused by default, replaced on request, and nothing half is left beside it."""
    path = here / "team/tiny/README.md"
    assert write_model_card("team/tiny") == Path("team/tiny/README.md")
    first = path.read_text()
    path.write_text("# My own card")
    with pytest.raises(ValueError, match="`overwrite` must be True to replace a card"):
        write_model_card("team/tiny")
    assert path.read_text() == "# My own card"
    write_model_card("team/tiny", overwrite=True)
    assert path.read_text() == first
    with pytest.raises(ValueError, match="`scores` must be finite numbers"):
        write_model_card("team/tiny", overwrite=True, scores={"a": float("nan")})
    assert path.read_text() == first
    assert not list(path.parent.glob("*.partial"))


def test_write_model_card_replaces_pefts_empty_form(adapter: Path) -> None:
    """PEFT writes it beside every adapter; one that somebody filled in is kept."""
    path = adapter / "README.md"
    form = path.read_text()
    assert is_blank_card(form)
    filled_in = form.replace("[More Information Needed]", "Receipts.", 1)
    added_to = form + "\n\nTrained on receipts."
    for text in (filled_in, added_to, "# Mine"):
        assert not is_blank_card(text)
    path.write_text(filled_in)
    with pytest.raises(ValueError, match="`overwrite` must be True"):
        write_model_card(adapter, base_models=["team/tiny"])
    path.write_text(form)
    write_model_card(adapter, base_models=["team/tiny"])
    assert "LoRA adapter" in path.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_models": ["/data/x"]}, "`base_models` must have the form of a Hub id, such as 'owner/name'"),
        ({"base_models": "a/b"}, "`base_models` must be a list of Hub ids"),
        ({"datasets": ["a b"]}, "`datasets` must have the form of a Hub id"),
        ({"repo_id": "a/b/c"}, "`repo_id` must have the form of a Hub id"),
        ({"scores": {"a": "good"}}, "`scores` must be finite numbers by name (got 'good' for 'a')"),
        ({"scores": {"a": True}}, "`scores` must be finite numbers by name (got True for 'a')"),
        ({"scores": {"a": {"b": 1}}}, "`scores` must be finite numbers by name"),
    ],
)
def test_card_refuses_what_it_cannot_say(here: Path, options: dict[str, Any], message: str) -> None:
    """By the argument's name."""
    with pytest.raises(ValueError, match=re.escape(message)):
        build_model_card("team/tiny", **options)


def test_card_refuses_a_directory_that_is_no_dimple(here: Path) -> None:
    """Another model, and no model at all."""
    path = here / "team/tiny/config.json"
    path.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValueError, match="is written for a Dimple or an adapter \\(got a model of type 'llama'"):
        build_model_card("team/tiny")
    with pytest.raises(ValueError, match="config.json must hold a JSON object .got no such file"):
        build_model_card(here)

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
"""A checkpoint is checked without its weights: what is missing, broken or at odds is named, nothing of it is run."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import File, HubHandler, HubServer, Repository
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from traps import set_traps

from dimple_hf import DimpleConfig
from dimple_hf.hub import Finding, check_checkpoint
from dimple_hf.hub.doctor import compare_weights
from dimple_hf.hub.weights import StoredTensor, expected_shapes

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def checkpoint(parity_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_dir / "checkpoint", tmp_path / "checkpoint"))


def with_status(status: str, findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.subject, finding.message) for finding in findings if finding.status == status]


def change(path: Path, **fields: Any) -> None:
    """Sets fields of a JSON file; `None` removes one."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def rewrite(path: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Changes the weights in a file."""
    weights = load_file(path)
    edit(weights)
    save_file(weights, path)


def test_released_layout_has_no_problem(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Traps in every position for code are not run, and nobody is asked."""
    mark = set_traps(checkpoint)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    findings = check_checkpoint(str(checkpoint))
    assert with_status("problem", findings) == []
    assert with_status("warning", findings) == []
    assert ("code", "6 Python files, not run: this package brings its own") in with_status("ok", findings)
    # 303,024 was counted by the original's code, 97 by the index.
    assert ("weights", "97 tensors as config.json describes them: 303,024 numbers in F32") in with_status(
        "ok", findings
    )
    assert not mark.exists()
    with pytest.raises(RuntimeError):  # control: the traps work
        get_class_from_dynamic_module("modeling_dimple.DimpleModel", checkpoint)
    assert mark.exists()


@pytest.mark.parametrize(
    ("removed", "problem"),
    [
        (["config.json"], "no configuration: config.json must be there"),
        (["model.safetensors.index.json"], "no weights: model.safetensors or model.safetensors.index.json must be"),
        (["merges.txt"], "no tokenizer: tokenizer.json or vocab.json and merges.txt must be there"),
        (["preprocessor_config.json", "processor_config.json"], "no image processor: preprocessor_config.json or"),
        ([SHARD], f"{SHARD} must be there (got no such file)"),
    ],
)
def test_missing_file_is_a_problem(checkpoint: Path, removed: list[str], problem: str) -> None:
    """Each is named; one word of the two tokenizer files is not enough."""
    for name in removed:
        (checkpoint / name).unlink()
    assert any(problem in message for _, message in with_status("problem", check_checkpoint(str(checkpoint))))


def test_missing_options_and_dangling_pointers_are_warnings(checkpoint: Path) -> None:
    """The model loads without both."""
    (checkpoint / "generation_config.json").unlink()
    findings = check_checkpoint(str(checkpoint))
    assert with_status("problem", findings) == []
    files, code = with_status("warning", findings)
    assert files == ("files", "no generation_config.json: the default options apply")
    assert "`auto_map` names missing files, not needed here: configuration_dimple, image_processing_dimple" in code[1]


def test_cut_off_shard_is_a_problem(checkpoint: Path) -> None:
    """A download that stopped; only what is damaged is named."""
    path = checkpoint / SHARD
    path.write_bytes(path.read_bytes()[:-1])
    problems = with_status("problem", check_checkpoint(str(checkpoint)))
    assert [subject for subject, _ in problems] == ["weights"]
    assert f"{SHARD} must be a whole safetensors file" in problems[0][1]


def test_pickled_weights_are_named_and_never_read(checkpoint: Path) -> None:
    """Beside safetensors they are of no use; alone, the advice says what to do."""
    (checkpoint / "pytorch_model.bin").write_bytes(b"not even a pickle")
    findings = check_checkpoint(str(checkpoint))
    assert with_status("problem", findings) == []
    ((subject, message),) = [found for found in with_status("warning", findings) if found[0] != "code"]
    assert subject == "pickled files"
    assert message == "pytorch_model.bin: they can run code when they are read; this package never reads them"
    for file in checkpoint.glob("*.safetensors*"):
        file.unlink()
    findings = check_checkpoint(str(checkpoint))
    assert with_status("problem", findings) == [
        ("files", "no weights: model.safetensors or model.safetensors.index.json must be there")
    ]
    assert "save them with `model.save_pretrained(...)`" in with_status("warning", findings)[0][1]


@pytest.mark.parametrize(
    ("file", "fields", "subject", "message"),
    [
        ("config.json", {"model_type": "llama"}, "configuration", "`model_type` must be 'dimple' (got 'llama')"),
        ("config.json", {"hidden_size": "64"}, "configuration", "hidden_size"),
        ("config.json", {"mrope_section": [1, 1, 1]}, "configuration", "`mrope_section` must be three numbers"),
        ("config.json", {"hidden_size": 128, "mrope_section": [4, 6, 6]}, "weights", "(432, 64), not (432, 128)"),
        ("config.json", {"vocab_size": 433}, "weights", "lm_head.weight"),
        ("config.json", {"num_hidden_layers": 2}, "weights", "unexpected: model.layers.2."),
        ("config.json", {"num_hidden_layers": 4}, "weights", "missing: model.layers.3."),
        (
            "config.json",
            {"mask_token_id": 421},
            "special tokens",
            "`mask_token_id` is 421 in config.json; for <|mask|>",
        ),
        (
            "generation_config.json",
            {"mask_token_id": 9},
            "special tokens",
            "423 in config.json, 9 in generation_config",
        ),
        ("generation_config.json", {"unmaskin": "x"}, "generation options", "did you mean `unmasking`"),
        ("preprocessor_config.json", {"patch_size": 16}, "images", "`patch_size` is 16 in the image processor, 14"),
    ],
)
def test_file_at_odds_with_the_others_is_a_problem(
    checkpoint: Path, file: str, fields: dict[str, Any], subject: str, message: str
) -> None:
    """Each with its subject and what differs."""
    change(checkpoint / file, **fields)
    problems = with_status("problem", check_checkpoint(str(checkpoint)))
    assert any(found == subject and message in text for found, text in problems), problems


@pytest.mark.parametrize(
    ("file", "subject"),
    [
        ("config.json", "configuration"),
        ("generation_config.json", "generation options"),
        ("tokenizer_config.json", "processor"),
        ("preprocessor_config.json", "processor"),
    ],
)
def test_file_that_is_no_json_is_a_problem(checkpoint: Path, file: str, subject: str) -> None:
    """Whatever a part raises becomes a finding, and the other parts are still looked at."""
    (checkpoint / file).write_text("{")
    findings = check_checkpoint(str(checkpoint))
    assert [found for found, _ in with_status("problem", findings)] == [subject]
    assert len(with_status("ok", findings)) >= 3


def test_tokenizer_with_more_tokens_than_the_model_is_a_problem(checkpoint: Path) -> None:
    """Their embeddings would be read out of bounds."""
    path = checkpoint / "tokenizer_config.json"
    tokens = json.loads(path.read_text())["added_tokens_decoder"]
    extra = {str(429 + n): tokens["420"] | {"content": f"<|extra_{n}|>"} for n in range(4)}
    change(path, added_tokens_decoder=tokens | extra)
    problems = with_status("problem", check_checkpoint(str(checkpoint)))
    assert problems == [("vocabulary", "the tokenizer has 433 tokens, the model 432")]


def test_end_token_at_odds_is_a_warning(checkpoint: Path) -> None:
    """Diffusion answers end with padding; and one of the released configurations disagrees with its tokenizer."""
    change(checkpoint / "config.json", eos_token_id=420)
    findings = check_checkpoint(str(checkpoint))
    assert with_status("problem", findings) == []
    assert ("special tokens", "`eos_token_id` is 420 in config.json; for <|im_end|> the tokenizer has 422") in (
        with_status("warning", findings)
    )


def test_checkpoint_without_chat_template_is_a_problem(checkpoint: Path) -> None:
    """Without one, no question can be asked."""
    (checkpoint / "chat_template.json").unlink()
    change(checkpoint / "tokenizer_config.json", chat_template=None)
    problems = with_status("problem", check_checkpoint(str(checkpoint)))
    assert len(problems) == 1
    assert "there must be a chat template" in problems[0][1]


def test_index_that_names_a_wrong_file_is_a_problem(checkpoint: Path) -> None:
    """The weight is there, but not where it is looked for."""
    path = checkpoint / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    assert weight_map["lm_head.weight"] != "model-00001-of-00003.safetensors"
    change(path, weight_map=weight_map | {"lm_head.weight": "model-00001-of-00003.safetensors"})
    problems = with_status("problem", check_checkpoint(str(checkpoint)))
    assert problems == [("weights", "model.safetensors.index.json names a wrong file for lm_head.weight")]


def test_index_that_is_no_json_is_a_problem(checkpoint: Path) -> None:
    """Like any other file."""
    (checkpoint / "model.safetensors.index.json").write_text("{")
    ((subject, problem),) = with_status("problem", check_checkpoint(str(checkpoint)))
    assert subject == "weights"
    assert "model.safetensors.index.json must hold a JSON object" in problem


def test_other_type_than_declared_is_a_warning_and_integers_are_a_problem(checkpoint: Path) -> None:
    """Types that `dtype="auto"` would widen again in silence, and weights that some library has packed."""
    for path in checkpoint.glob("*.safetensors"):
        rewrite(path, lambda weights: weights.update({name: w.bfloat16() for name, w in weights.items()}))
    findings = check_checkpoint(str(checkpoint))
    assert with_status("problem", findings) == []
    assert ("weights", 'config.json has torch.float32, which `dtype="auto"` loads them as') in with_status(
        "warning", findings
    )
    for path in checkpoint.glob("*.safetensors"):
        rewrite(path, lambda weights: weights.update({name: w.char() for name, w in weights.items()}))
    ((_, problem),) = with_status("problem", check_checkpoint(str(checkpoint)))
    assert "weights must be stored as F32, F16, BF16 unless `quantization_config` describes how they are" in problem


def test_adapter_is_told_apart(tmp_path: Path) -> None:
    """It has no model of its own to check."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (finding,) = check_checkpoint(str(tmp_path))
    assert finding.status == "problem"
    assert "this is an adapter" in finding.message


def test_packed_weights_are_compared_by_module(parity_dir: Path) -> None:
    """Names as bitsandbytes (both formats) and torchao write them; a part of no module and a lost weight are seen."""
    config = DimpleConfig.from_pretrained(parity_dir / "checkpoint")
    stored = {name: StoredTensor(Path("f"), name, shape, "F32") for name, shape in expected_shapes(config).items()}
    module = "model.layers.0.self_attn.q_proj"
    for weight, parts in {
        f"{module}.weight": [f"{module}.weight", f"{module}.weight.absmax", f"{module}.weight.quant_map"],
        "model.layers.1.mlp.up_proj.weight": ["model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.SCB"],
        "model.layers.2.mlp.up_proj.weight": ["model.layers.2.mlp.up_proj._weight_qdata"],
    }.items():
        del stored[weight]
        stored |= {name: StoredTensor(Path("f"), name, (1,), "U8" if name == parts[0] else "F32") for name in parts}
    compare_weights(config, stored, quantized=True)
    with pytest.raises(ValueError, match="unexpected"):  # control
        compare_weights(config, stored)
    lost = {name: tensor for name, tensor in stored.items() if name != "lm_head.weight"}
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight"):
        compare_weights(config, lost, quantized=True)
    alien = stored | {"model.other._weight_qdata": StoredTensor(Path("f"), "x", (1,), "I8")}
    with pytest.raises(ValueError, match=r"packed weights must belong to the model's modules \(got model\.other\)"):
        compare_weights(config, alien, quantized=True)


def test_tied_head_and_old_buffers_may_be_stored(parity_dir: Path) -> None:
    """Both are in files of older versions, and are not weights."""
    config = DimpleConfig.from_pretrained(parity_dir / "checkpoint", tie_word_embeddings=True)
    stored = {name: StoredTensor(Path("f"), name, shape, "F32") for name, shape in expected_shapes(config).items()}
    assert "lm_head.weight" not in stored
    for name in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        stored[name] = StoredTensor(Path("f"), name, (1,), "F32")
    compare_weights(config, stored)


@pytest.mark.parametrize("source", ["/no/such/folder", "name-alone", "./a/b"])
def test_source_that_is_nothing_is_refused(source: str) -> None:
    """Before anybody is asked over the network."""
    with pytest.raises(ValueError, match="a checkpoint must be a directory or a Hub id"):
        check_checkpoint(source)


class PartsHandler(HubHandler):
    """Also answers requests for the first bytes of a file, which is how the client reads headers."""

    def send_file(self, repo: str, path: str, data: bytes, headers: dict[str, str]) -> None:
        wanted = re.fullmatch(r"bytes=0-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            return super().send_file(repo, path, data, headers)
        part = data[: int(wanted[1]) + 1]
        return self.reply(206, part, headers | {"Content-Range": f"bytes 0-{len(part) - 1}/{len(data)}"})


@pytest.fixture
def hub(parity_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with the checkpoint at `team/tiny`, for this process's client."""
    server = HubServer(tokens={})
    server.RequestHandlerClass = PartsHandler
    files = {
        path.name: File(path.read_bytes(), is_large=path.suffix == ".safetensors")
        for path in (parity_dir / "checkpoint").iterdir()
    }
    server.repositories["team/tiny"] = Repository()
    server.repositories["team/tiny"].commit("main", files)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with server:
        yield server


def test_checkpoint_on_the_hub_is_checked_by_its_headers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are downloaded, of the weights only the first 100 KB of each file."""
    findings = check_checkpoint("team/tiny")
    assert with_status("problem", findings) == []
    assert any("303,024 numbers in F32" in finding.message for finding in findings)
    parts = [request for request in hub.requests if request.path.endswith(".safetensors") and request.sent]
    assert [request.sent for request in parts] == [100_001] * 3
    assert 3 * 100_001 < 1_200_000  # control: what the files hold

    # Offline the small files are there, and the weights are not.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    findings = check_checkpoint("team/tiny")
    assert (
        "weights",
        "model-00001-of-00003.safetensors, model-00002-of-00003.safetensors, "
        "model-00003-of-00003.safetensors must be there (got no such file)",
    ) in with_status("problem", findings)


def test_problem_of_a_checkpoint_on_the_hub_is_found_before_it_is_downloaded(hub: HubServer) -> None:
    """A shard that was forgotten."""
    files = dict(hub.repositories["team/tiny"].commits[hub.repositories["team/tiny"].branches["main"]])
    del files[SHARD]
    hub.repositories["team/tiny"].commit("main", files)
    problems = with_status("problem", check_checkpoint("team/tiny"))
    assert problems == [("weights", f"{SHARD} must be there (got no such file)")]
    files[SHARD] = File(b"no header" * 9, is_large=True)
    hub.repositories["team/tiny"].commit("main", files)
    ((subject, problem),) = with_status("problem", check_checkpoint("team/tiny"))
    assert subject == "weights"
    assert SHARD in problem
    with pytest.raises(OSError, match="team/none must be a directory or a model on the Hub"):
        check_checkpoint("team/none")

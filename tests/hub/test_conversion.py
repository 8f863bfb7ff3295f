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
"""A converted checkpoint is the same model in a clean form; nothing half is left, and memory stays small."""

import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import get_local_safetensors_metadata
from launcher import Launcher
from memory import PeakMemory
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor
from traps import set_traps

from dimple_hf import DimpleConfig, DimpleForConditionalGeneration, DimpleGenerationConfig
from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.hub import check_checkpoint, convert_checkpoint
from dimple_hf.hub import convert as conversion
from dimple_hf.hub.convert import SourceTensor, copy_tensor
from dimple_hf.quantization import QUANTIZATIONS

SHARDS = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]


@pytest.fixture
def checkpoint(parity_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parity_dir / "checkpoint", tmp_path / "checkpoint"))


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def is_healthy(directory: Path) -> bool:
    return all(finding.status == "ok" for finding in check_checkpoint(str(directory)))


def test_convert_writes_the_same_model_with_nothing_of_the_source_run(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights bit for bit, both spellings in the configuration, both formats of the tokenizer, and our code."""
    mark = set_traps(checkpoint)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    (checkpoint / "README.md").write_text("# Mine")
    (checkpoint / "LICENSE.txt").write_text("All mine.")
    out = convert_checkpoint(str(checkpoint), tmp_path / "out")
    assert not mark.exists()
    assert not any("of the checkpoint was run" in path.read_text() for path in out.glob("*.py"))
    assert not (out / "custom_generate").exists()

    source, result = weights_of(checkpoint), weights_of(out)
    assert source.keys() == result.keys()
    assert all(torch.equal(source[name], result[name]) for name in source)
    config = json.loads((out / "config.json").read_text())
    expected = {"rope_theta": 1e6, "mrope_section": [2, 3, 3], "torch_dtype": "float32", "full_attn_mask": True}
    expected |= {"dtype": "float32", "architectures": ["DimpleForConditionalGeneration"]}
    assert {name: config[name] for name in expected} == expected
    assert config["rope_parameters"]["rope_theta"] == 1e6
    assert "_name_or_path" not in config
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.json"))
    names = {path.name for path in out.iterdir()}
    assert names >= {"vocab.json", "merges.txt", "tokenizer.json", "chat_template.jinja", "modeling_dimple.py"}
    assert (out / "README.md").read_text() == "# Mine"
    assert (out / "LICENSE.txt").read_text() == "All mine."
    assert "alg" not in json.loads((out / "generation_config.json").read_text())
    assert DimpleGenerationConfig.from_pretrained(out).mask_token_id in (None, 423)
    assert is_healthy(out)


def test_converted_model_answers_as_before(checkpoint: Path, tmp_path: Path) -> None:
    """In shards of another size; the control is another dtype, which is not the same model."""
    out = convert_checkpoint(str(checkpoint), tmp_path / "out", max_shard_bytes=300_000)
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) == 5
    assert max(path.stat().st_size for path in shards) < 310_000
    processor = AutoProcessor.from_pretrained(out)
    inputs = processor(text="Hello", return_tensors="pt")
    logits = [AutoModel.from_pretrained(path)(**inputs).logits for path in (checkpoint, out)]
    assert torch.equal(*logits)
    half = convert_checkpoint(str(checkpoint), tmp_path / "half", dtype=torch.bfloat16)
    assert not torch.equal(AutoModel.from_pretrained(half, dtype=torch.float32)(**inputs).logits, logits[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_convert_rounds_as_torch_does(checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    """From one file without an index; the pieces are so small that every weight is cut."""
    single = tmp_path / "single"
    shutil.copytree(checkpoint, single, ignore=shutil.ignore_patterns("*.safetensors*"))
    source = weights_of(checkpoint)
    save_file(source, single / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion, "PIECE_BYTES", 1024)
        out = convert_checkpoint(str(single), tmp_path / "out", dtype=dtype)
    result = weights_of(out)
    assert all(torch.equal(result[name], source[name].to(dtype)) for name in source)
    assert AutoModel.from_pretrained(out, dtype="auto").dtype == dtype
    assert is_healthy(out)


def test_convert_leaves_out_what_is_no_weight(checkpoint: Path, tmp_path: Path) -> None:
    """Old files hold the rotary frequencies."""
    weights = load_file(checkpoint / SHARDS[0])
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(weights | {extra: torch.ones(8)}, checkpoint / SHARDS[0])
    out = convert_checkpoint(str(checkpoint), tmp_path / "out")
    assert extra not in weights_of(out)
    assert len(weights_of(out)) == 97


def test_convert_without_generation_config_writes_the_models_tokens(checkpoint: Path, tmp_path: Path) -> None:
    """So that the output is complete."""
    (checkpoint / "generation_config.json").unlink()
    out = convert_checkpoint(str(checkpoint), tmp_path / "out")
    assert DimpleGenerationConfig.from_pretrained(out).mask_token_id == 423


def test_convert_refuses_numbers_that_the_new_type_cannot_hold(checkpoint: Path, tmp_path: Path) -> None:
    """65504 is the largest of float16. Refused after the start, so what was written is gone."""
    path = checkpoint / SHARDS[2]
    weights = load_file(path)
    name = next(iter(weights))
    weights[name].view(-1)[0] = 70000.0
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"{name} must be finite in torch.float16"):
        convert_checkpoint(str(checkpoint), tmp_path / "out", dtype=torch.float16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    convert_checkpoint(str(checkpoint), tmp_path / "out", dtype=torch.bfloat16)  # control


def test_interrupted_convert_leaves_nothing_and_the_next_one_clears_up(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the middle of the weights; and a run that was killed and could not clear up."""
    copied: list[str] = []

    def interrupted(source: SourceTensor, *args: Any) -> None:
        copied.append(source.name)
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "out.partial" / "config.json").exists()
        if len(copied) == 50:
            raise KeyboardInterrupt
        copy_tensor(source, *args)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "copy_tensor", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert_checkpoint(str(checkpoint), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "old.safetensors").write_text("half")
    out = convert_checkpoint(str(checkpoint), tmp_path / "out")
    assert not (out / "old.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "out"]


def test_source_that_shrinks_meanwhile_is_noticed(tmp_path: Path) -> None:
    """Else the missing bytes would be zeros."""
    path = tmp_path / "weights"
    path.write_bytes(bytes(100))
    source = SourceTensor("x", path, begin=20, end=120, dtype=torch.float32, shape=(25,))
    with (tmp_path / "out").open("wb") as output, pytest.raises(ValueError, match="must not change while it is read"):
        copy_tensor(source, output, torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.int8}, r"`dtype` must be torch.float32, .* or torch.bfloat16 \(got torch.int8\)"),
        ({"dtype": "float16"}, r"`dtype` must be torch.float32, .* \(got 'float16'\)"),
        ({"max_shard_bytes": 0}, r"`max_shard_bytes` must be at least 1 \(got 0\)"),
        ({"quantization": "int3"}, r"`quantization` must be one of nf4, int8, torchao-int8 \(got 'int3'\)"),
    ],
)
def test_convert_refuses_bad_options(checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """By name, before anything is read."""
    with pytest.raises(ValueError, match=message):
        convert_checkpoint("/no/such/folder", tmp_path / "out", **options)


def test_convert_refuses_an_output_directory_in_use(checkpoint: Path, tmp_path: Path) -> None:
    """Also the source itself. An empty one is taken."""
    for out in (checkpoint, tmp_path / "file"):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(ValueError, match="the output directory must be new or empty"):
            convert_checkpoint(str(checkpoint), out)
    (tmp_path / "empty").mkdir()
    assert is_healthy(convert_checkpoint(str(checkpoint), tmp_path / "empty"))


def test_convert_refuses_a_checkpoint_with_problems(checkpoint: Path, tmp_path: Path) -> None:
    """All of them are named, and nothing is written."""
    fields = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(fields | {"mask_token_id": 421, "num_hidden_layers": 2}))
    with pytest.raises(ValueError, match="without problems") as error:
        convert_checkpoint(str(checkpoint), tmp_path / "out")
    assert "unexpected: model.layers.2." in str(error.value)
    assert "`mask_token_id` is 421" in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_convert_refuses_pickled_weights_with_advice(checkpoint: Path, tmp_path: Path) -> None:
    """They are not read, not even to look what is in them."""
    for path in checkpoint.glob("*.safetensors*"):
        path.unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(b"trap")
    with pytest.raises(ValueError, match=r"save them with `model\.save_pretrained\(\.\.\.\)`"):
        convert_checkpoint(str(checkpoint), tmp_path / "out")


def test_convert_refuses_a_quantized_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """What was packed cannot be rounded otherwise."""
    fields = json.loads((checkpoint / "config.json").read_text())
    packed = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (checkpoint / "config.json").write_text(json.dumps(fields | {"quantization_config": packed}))
    with pytest.raises(ValueError, match="must hold weights that are not quantized"):
        convert_checkpoint(str(checkpoint), tmp_path / "out")


def test_convert_refuses_a_full_disk(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """303,024 numbers of 4 bytes."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_212_095))
    with pytest.raises(ValueError, match=r"must have room for 1,212,096 bytes of weights \(got 1,212,095"):
        convert_checkpoint(str(checkpoint), tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_212_096))
    convert_checkpoint(str(checkpoint), tmp_path / "deep" / "out")


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_quantization_without_its_library_is_refused_kindly(
    checkpoint: Path, tmp_path: Path, quantization: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra that brings it is named."""
    library = QUANTIZATIONS[quantization][0]
    monkeypatch.setitem(QUANTIZATIONS, quantization, (library, lambda: False))
    with pytest.raises(ValueError, match=f"needs {library}: run `pip install 'dimple_hf\\[quantize\\]'`"):
        convert_checkpoint(str(checkpoint), tmp_path / "out", quantization=quantization)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the libraries themselves
@pytest.mark.parametrize(("quantization", "error"), [("torchao-int8", 0.1), ("int8", 0.1), ("nf4", 1.0)])
def test_quantized_model_loads_and_its_logits_are_near(
    checkpoint: Path, tmp_path: Path, quantization: str, error: float
) -> None:
    """Through transformers; the layers are packed, the tower and the head are not."""
    pytest.importorskip(QUANTIZATIONS[quantization][0])
    out = convert_checkpoint(str(checkpoint), tmp_path / "out", quantization=quantization, max_shard_bytes=300_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    assert is_healthy(out)
    stored = get_local_safetensors_metadata(out).parameter_count
    # 3 layers of 7 matrices, 43,008 numbers in each layer: a byte for each, or half of one.
    packed = max(stored.get("I8", 0), stored.get("U8", 0))
    assert packed >= 3 * 43_008 // (2 if quantization == "nf4" else 1)
    inputs = {"input_ids": torch.arange(3, 20)[None]}
    expected, found = (AutoModel.from_pretrained(path, dtype="auto")(**inputs).logits for path in (checkpoint, out))
    assert 0 < (found - expected).norm() / expected.norm() < error
    with pytest.raises(ValueError, match="must hold weights that are not quantized"):
        convert_checkpoint(str(out), tmp_path / "again")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("quantization", "least_equal"), [("torchao-int8", 0.9), ("int8", 0.9), ("nf4", 0.5)])
def test_quantized_small_model_generates_nearly_what_it_did(
    tmp_path: Path, repo_root: Path, quantization: str, least_equal: float
) -> None:
    """A trained model reads an image: most of its tokens stay, and with another head (control) hardly any would."""
    pytest.importorskip(QUANTIZATIONS[quantization][0])
    out = convert_checkpoint(str(FORMS_CHECKPOINT), tmp_path / "out", quantization=quantization)
    assert (out / "model.safetensors").stat().st_size < 0.8 * (FORMS_CHECKPOINT / "model.safetensors").stat().st_size
    processor = AutoProcessor.from_pretrained(out)
    image = {"type": "image", "path": str(repo_root / "examples" / "forms" / "sample.png")}
    content = [image, {"type": "text", "text": "Read the form."}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )

    def tokens(model: torch.nn.Module) -> torch.Tensor:
        return model.generate(**inputs, confidence_threshold=None)[0, inputs["input_ids"].shape[1] :]

    whole, packed = (AutoModel.from_pretrained(path, dtype="auto") for path in (FORMS_CHECKPOINT, out))
    expected = tokens(whole)
    length = int((expected != whole.config.pad_token_id).sum())
    assert length > 4
    assert (tokens(packed) == expected)[:length].float().mean() >= least_equal
    with torch.no_grad():
        whole.lm_head.weight[:] = whole.lm_head.weight.flip(0)
    assert (tokens(whole) == expected)[:length].float().mean() < 0.5


#: A run that is killed after its 50th weight, with no time to clear up.
KILLED = """
import os, signal, sys
from dimple_hf.hub import convert as conversion
copied, copy_tensor = [], conversion.copy_tensor
def killed(source, *arguments):
    copy_tensor(source, *arguments)
    copied.append(source.name)
    if len(copied) == 50:
        arguments[0].flush()
        os.kill(os.getpid(), signal.SIGKILL)
conversion.copy_tensor = killed
conversion.convert_checkpoint(sys.argv[1], sys.argv[2], max_shard_bytes=200_000)
"""


def test_killed_convert_leaves_nothing_that_looks_finished(checkpoint: Path, tmp_path: Path) -> None:
    """`kill -9`, in a process of its own. What is left is no model to anyone, and the next run clears it away."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    launcher = Launcher(tmp_path / "errors.txt")
    (process,) = launcher.start([str(checkpoint), str(out)], script=script)
    assert launcher.wait(process) == -signal.SIGKILL, launcher.errors.read_text()
    assert not out.exists()
    assert list(partial.glob("*.safetensors"))  # control: it was in the middle of its work
    assert not (partial / "config.json").exists()
    with pytest.raises(ValueError, match="Unrecognized model"):
        AutoModel.from_pretrained(partial)
    assert any(finding.status == "problem" for finding in check_checkpoint(str(partial)))
    convert_checkpoint(str(checkpoint), out)
    assert is_healthy(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "errors.txt", "killed.py", "out"]


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is reset through /proc")
def test_convert_needs_less_memory_than_a_shard(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """102 MB of weights, of which the two largest are half each: no more than some pieces of 1 MB are in memory."""
    monkeypatch.setattr(conversion, "PIECE_BYTES", 2**20)
    config = DimpleConfig.from_pretrained(checkpoint, vocab_size=200_000)
    for path in checkpoint.glob("*.safetensors*"):
        path.unlink()
    model = DimpleForConditionalGeneration(config)
    model.save_pretrained(checkpoint)
    del model
    num_bytes = (checkpoint / "model.safetensors").stat().st_size
    assert num_bytes > 100_000_000
    convert_checkpoint(str(checkpoint), tmp_path / "first")  # what is imported and cached on the way stays

    options: dict[str, Any] = {"dtype": torch.bfloat16, "max_shard_bytes": 30_000_000}
    with PeakMemory() as converting:
        convert_checkpoint(str(checkpoint), tmp_path / "out", **options)
    shards = sorted(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert shards[-1] < 30_000_000
    assert converting.growth < shards[-1]
    with PeakMemory() as reading:
        weights_of(checkpoint)["lm_head.weight"].clone()
    assert reading.growth > num_bytes // 3  # control

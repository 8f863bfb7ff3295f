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
"""Broken checkpoints: kinds of damage, each a function that does it to a copy of a good checkpoint.

A kind is listed under the file that it damages, which an error has to name.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Damage = Callable[[Path], None]

#: What is damaged: kind -> (the file that an error must name, the damage).
KINDS: dict[str, tuple[str, Damage]] = {}

SHARD = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def kind(name: str, file: str) -> Callable[[Damage], Damage]:
    """Lists a kind of damage."""

    def add(damage: Damage) -> Damage:
        KINDS[f"{file}: {name}"] = (file, damage)
        return damage

    return add


def edit(file: str, **fields: Any) -> Damage:
    """Replaces fields of a JSON file; a name with dots is within an object, `...` removes it."""

    def damage(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text("utf-8"))
        for name, value in fields.items():
            *parents, last = name.split("__")
            target = content
            for parent in parents:
                target = target[parent]
            if value is ...:
                target.pop(last, None)
            else:
                target[last] = value
        path.write_text(json.dumps(content), "utf-8")

    return damage


def write(file: str, content: bytes | str) -> Damage:
    """Replaces a file."""

    def damage(folder: Path) -> None:
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return damage


def remove(file: str) -> Damage:
    """Removes a file."""

    def damage(folder: Path) -> None:
        (folder / file).unlink()

    return damage


def cut(file: str, share: float) -> Damage:
    """Keeps only the beginning of a file."""

    def damage(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * share)])

    return damage


def as_directory(file: str) -> Damage:
    """Puts a directory where a file should be."""

    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return damage


def header(change: Callable[[dict[str, Any]], Any], raw: bool = False) -> Damage:
    """Changes the header of a shard."""

    def damage(folder: Path) -> None:
        content = (folder / SHARD).read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        fields = json.loads(content[8 : 8 + size])
        new = change(fields)
        encoded = new if raw else json.dumps(fields if new is None else new).encode()
        (folder / SHARD).write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    """Changes the weights of a shard."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / SHARD)
        change(weights)
        save_file(weights, folder / SHARD, metadata={"format": "pt"})

    return damage


NESTED = "[" * 100_000 + "]" * 100_000
NESTED_OBJECTS = '{"a":' * 50_000 + "1" + "}" * 50_000
JSON_FILES = (
    "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer_config.json", "vocab.json", INDEX,
)  # fmt: skip

for _file in JSON_FILES:
    kind("empty", _file)(write(_file, b""))
    kind("zero bytes", _file)(write(_file, bytes(4096)))
    kind("half", _file)(cut(_file, 0.5))
    kind("a list", _file)(write(_file, "[]"))
    kind("null", _file)(write(_file, "null"))
    kind("deep", _file)(write(_file, NESTED))
    kind("deep objects", _file)(write(_file, NESTED_OBJECTS))
    kind("not UTF-8", _file)(write(_file, b'{"a": "\xff\xfe"}'))
    kind("a directory", _file)(as_directory(_file))

for _name, _fields in {
    "no layers": {"num_hidden_layers": 0},
    "negative layers": {"num_hidden_layers": -2},
    "too many layers": {"num_hidden_layers": 10**9},
    "no heads": {"num_attention_heads": 0},
    "no key heads": {"num_key_value_heads": 0},
    "heads that do not divide": {"num_attention_heads": 3},
    "zero width": {"hidden_size": 0},
    "huge width": {"hidden_size": 10**12},
    "width as text": {"hidden_size": "32"},
    "layers as a fraction": {"num_hidden_layers": 2.5},
    "no vocabulary": {"vocab_size": 0},
    "huge vocabulary": {"vocab_size": 10**12},
    "another model": {"model_type": "llama"},
    "no model type": {"model_type": ...},
    "vision without layers": {"vision_config__depth": 0},
    "vision without heads": {"vision_config__num_heads": 0},
    "vision of zero patches": {"vision_config__patch_size": 0},
    "vision of zero merging": {"vision_config__spatial_merge_size": 0},
    "vision as a list": {"vision_config": [1]},
    "unknown activation": {"hidden_act": "banana"},
    "another pad token": {"pad_token_id": 10**9},
    "mask token as text": {"mask_token_id": "<mask>"},
    "not a mode": {"full_attn_mask": "yes"},
    "zero rotary base": {"rope_theta": 0.0},
    "unknown dtype": {"torch_dtype": "float3", "dtype": "float3"},
    "quantization unknown": {"quantization_config": {"quant_method": "magic"}},
    "rotary scaling as text": {"rope_scaling": "linear"},
}.items():
    kind(_name, "config.json")(edit("config.json", **_fields))
kind("missing", "config.json")(remove("config.json"))

for _name, _fields in {
    "steps as text": {"steps": "many"},
    "end token as a dict": {"eos_token_id": {"a": 1}},
    "temperature as text": {"temperature": "hot"},
    "a list for a length": {"max_new_tokens": [1]},
}.items():
    kind(_name, "generation_config.json")(edit("generation_config.json", **_fields))

for _name, _fields in {
    "zero patches": {"patch_size": 0},
    "negative pixels": {"min_pixels": -5, "max_pixels": -1},
    "pixels as text": {"max_pixels": "many"},
    "no mean": {"image_mean": []},
    "mean as text": {"image_mean": "grey"},
    "zero merging": {"merge_size": 0},
}.items():
    kind(_name, "preprocessor_config.json")(edit("preprocessor_config.json", **_fields))
kind("missing", "preprocessor_config.json")(remove("preprocessor_config.json"))

for _name, _fields in {
    "added tokens as a list": {"added_tokens_decoder": [1]},
    "added token without content": {"added_tokens_decoder": {"5": {}}},
    "pad token as a number": {"pad_token": 7},
    "length as text": {"model_max_length": "long"},
}.items():
    kind(_name, "tokenizer_config.json")(edit("tokenizer_config.json", **_fields))
kind("missing", "vocab.json")(remove("vocab.json"))
kind("numbers as text", "vocab.json")(write("vocab.json", '{"a": "b"}'))
kind("empty object", "vocab.json")(write("vocab.json", "{}"))
kind("not merges", "merges.txt")(write("merges.txt", "a\nb\nc d e f\n"))
kind("missing", "merges.txt")(remove("merges.txt"))

kind("outside", INDEX)(lambda folder: edit(INDEX, weight_map={"model.norm.weight": "../outside.safetensors"})(folder))
kind("absolute", INDEX)(lambda folder: edit(INDEX, weight_map={"model.norm.weight": "/etc/passwd"})(folder))
kind("numbers for files", INDEX)(lambda folder: edit(INDEX, weight_map={"model.norm.weight": 5})(folder))
kind("no map", INDEX)(edit(INDEX, weight_map=...))
kind("map as a list", INDEX)(edit(INDEX, weight_map=["a"]))
kind("empty map", INDEX)(edit(INDEX, weight_map={}))
kind("missing", "model-00009-of-00003.safetensors")(
    edit(INDEX, weight_map__lm_head="model-00009-of-00003.safetensors")
)

kind("missing", SHARD)(remove(SHARD))
kind("empty", SHARD)(write(SHARD, b""))
kind("half", SHARD)(cut(SHARD, 0.5))
kind("all but a byte", SHARD)(cut(SHARD, 0.99999))
kind("header cut", SHARD)(cut(SHARD, 0.001))
kind("a page", SHARD)(write(SHARD, b"<!DOCTYPE html><html>Not found</html>" * 50))
kind("pointer of git-lfs", SHARD)(write(SHARD, "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n"))
kind("huge header", SHARD)(write(SHARD, struct.pack("<Q", 2**62) + b"{}"))
kind("trailing bytes", SHARD)(lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes() + b"\0" * 8))
kind("deep header", SHARD)(header(lambda fields: NESTED.encode(), raw=True))
kind("header as a list", SHARD)(header(lambda fields: [1]))
kind("offsets beyond the end", SHARD)(
    header(
        lambda fields: fields[next(name for name in fields if name != "__metadata__")].update(data_offsets=[0, 10**15])
    )
)
kind("offsets backwards", SHARD)(
    header(lambda fields: fields[next(name for name in fields if name != "__metadata__")].update(data_offsets=[64, 0]))
)
kind("negative shape", SHARD)(
    header(lambda fields: fields[next(name for name in fields if name != "__metadata__")].update(shape=[-1, 4]))
)
kind("unknown dtype", SHARD)(
    header(lambda fields: fields[next(name for name in fields if name != "__metadata__")].update(dtype="F3"))
)
kind("a pickle", SHARD)(lambda folder: (folder / SHARD).write_bytes(pickle.dumps(Trap(folder.parent / "executed"))))


@kind("integer weights", SHARD)
def _integers(folder: Path) -> None:
    tensors(lambda weights: weights.update({name: tensor.to(torch.int32) for name, tensor in weights.items()}))(folder)


@kind("a missing weight", SHARD)
def _missing_weight(folder: Path) -> None:
    name = next(iter(load_file(folder / SHARD)))
    tensors(lambda weights: weights.pop(name))(folder)
    content = json.loads((folder / INDEX).read_text())
    content["weight_map"].pop(name)
    (folder / INDEX).write_text(json.dumps(content))


@kind("a weight of another shape", SHARD)
def _another_shape(folder: Path) -> None:
    name = next(iter(load_file(folder / SHARD)))
    tensors(lambda weights: weights.update({name: torch.zeros(3, 5)}))(folder)


@kind("a weight that is not a number", SHARD)
def _not_finite(folder: Path) -> None:
    tensors(lambda weights: weights[next(iter(weights))].fill_(float("nan")))(folder)


@kind("pickled weights only", "pytorch_model.bin")
def _pickled(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(folder.parent / "executed")))

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
"""Building an untrained Dimple from checkpoints in the formats of Dream and Qwen2.5-VL."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import tiny_parts
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from dimple_hf import DimpleForConditionalGeneration, DimpleGenerationConfig
from dimple_hf.hub import init as initialization
from dimple_hf.hub.init import (
    CHAT_TEMPLATE,
    MAX_PIXELS,
    build_config,
    build_tokenizer,
    initialize_dimple,
    language_name,
    locate_checkpoint,
    new_projector,
    split_rotary_frequencies,
    vision_name,
)
from dimple_hf.hub.weights import StoredTensor, check_tensors, expected_shapes


def load(directory: Path) -> DimpleForConditionalGeneration:
    """Loads a model and checks that every weight of the files has its position, and every position a weight."""
    model, info = AutoModel.from_pretrained(directory, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


@pytest.mark.parametrize("new_layout", [False, True])
def test_initialize_from_dream_and_qwen_takes_language_and_vision_weights_from_each(
    tmp_path: Path, new_layout: bool
) -> None:
    """The raw model is the two parts, bit for bit, whichever way the Qwen2.5-VL is laid out."""
    language = tiny_parts.write_dream(tmp_path / "dream")
    vision, other_language = tiny_parts.write_qwen(tmp_path / "qwen", new_layout)
    out = initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "dream"))
    state = load(out).state_dict()
    for name, tensor in (language | vision).items():
        assert torch.equal(state[name], tensor), name
    # Control: the Qwen2.5-VL's own language model is another one.
    assert not torch.equal(state["lm_head.weight"], other_language["lm_head.weight"])
    assert sorted(name for name in state if name not in language | vision) == [
        "img_projector.linear_1.bias",
        "img_projector.linear_1.weight",
        "img_projector.linear_2.bias",
        "img_projector.linear_2.weight",
    ]


@pytest.mark.parametrize("new_layout", [False, True])
def test_initialize_without_language_model_takes_everything_from_the_vision_model(
    tmp_path: Path, new_layout: bool
) -> None:
    """A Qwen2.5-VL alone is enough; its own rotary sections are kept."""
    vision, language = tiny_parts.write_qwen(tmp_path / "qwen", new_layout)
    out = initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"))
    model = load(out)
    state = model.state_dict()
    for name, tensor in (language | vision).items():
        assert torch.equal(state[name], tensor), name
    assert model.config.mrope_section == [2, 2, 4]


def test_initialize_writes_a_causal_config_with_the_tokenizers_ids(tmp_path: Path) -> None:
    """The first stages are causal, and the special tokens are where the tokenizer has them."""
    tiny_parts.write_dream(tmp_path / "dream")
    tiny_parts.write_qwen(tmp_path / "qwen")
    out = initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "dream"))
    config = load(out).config
    assert config.full_attn_mask is False
    assert config.mrope_section == [2, 3, 3]  # half of a head is 8, shared as 2 : 3 : 3
    assert config.rope_parameters["rope_theta"] == 1000000.0
    assert (config.pad_token_id, config.eos_token_id, config.mask_token_id) == (420, 422, 423)
    assert (config.vision_start_token_id, config.image_token_id) == (424, 427)
    assert config.dtype == torch.bfloat16
    assert config.vision_config.in_channels == 3
    # Answers end with padding, which stops the causal phase's `generate` too.
    assert DimpleGenerationConfig.from_pretrained(out).eos_token_id == [422, 420]


def test_initialize_writes_a_processor_that_prepares_images_for_the_model(tmp_path: Path) -> None:
    """What is written works as it is: an image and a question go through the model."""
    tiny_parts.write_dream(tmp_path / "dream")
    tiny_parts.write_qwen(tmp_path / "qwen")
    out = initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "dream"))
    processor, model = AutoProcessor.from_pretrained(out), load(out)
    assert processor.image_processor.size["longest_edge"] == MAX_PIXELS
    assert list(processor.image_processor.image_mean) == [0.5, 0.5, 0.5]  # the vision model's, not the default
    chat = [{"role": "user", "content": [{"type": "image", "image": torch.zeros(3, 56, 84)}]}]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    assert model(**inputs).logits.shape == (1, inputs["input_ids"].shape[1], tiny_parts.VOCAB_SIZE)


def test_initialize_in_small_shards_gives_the_same_weights(tmp_path: Path) -> None:
    """The size of the files bounds the memory and changes nothing else."""
    tiny_parts.write_dream(tmp_path / "dream")
    tiny_parts.write_qwen(tmp_path / "qwen")
    sources = (str(tmp_path / "qwen"), str(tmp_path / "dream"))
    whole = initialize_dimple(tmp_path / "whole", *sources)
    parts = initialize_dimple(tmp_path / "parts", *sources, max_shard_bytes=30_000)
    assert [file.name for file in sorted(whole.glob("*.safetensors"))] == ["model.safetensors"]
    files = sorted(parts.glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{n:05d}-of-00006.safetensors" for n in range(1, 7)]
    expected = load(whole).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load(parts).state_dict().items())


def test_initialize_with_other_dtype_in_vision_model_writes_the_language_models(tmp_path: Path) -> None:
    """One model, one type: what `dtype="auto"` loads must not depend on which weight it looks at."""
    tiny_parts.write_dream(tmp_path / "dream")
    vision, _ = tiny_parts.write_qwen(tmp_path / "qwen", dtype=torch.float32)
    out = initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "dream"))
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    name = "visual.merger.mlp.0.weight"
    assert torch.equal(weights[name], vision[name].to(torch.bfloat16))


def test_initialize_with_tied_language_model_stores_no_head(tmp_path: Path) -> None:
    """The smaller Qwen2.5-VL tie head and embeddings; so does the Dimple made from them."""
    _, language = tiny_parts.write_qwen(tmp_path / "qwen")
    config = tiny_parts.qwen_config(new_layout=False) | {"tie_word_embeddings": True}
    (tmp_path / "qwen" / "config.json").write_text(json.dumps(config))
    out = initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"))
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    model = load(out)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, language["model.embed_tokens.weight"])


def test_new_projector_is_drawn_as_the_model_draws_it(tmp_path: Path) -> None:
    """Normal matrices of the config's deviation and zero biases; the seed decides the draw."""
    tiny_parts.write_qwen(tmp_path / "qwen")
    config = load(initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"))).config
    config.initializer_range = 0.5
    first, same, other = (new_projector(config, seed) for seed in (0, 0, 1))
    assert set(first) == {f"img_projector.linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
    # 1024 draws: the standard error of the deviation is 0.5 / sqrt(2 * 1024) = 0.011.
    assert first["img_projector.linear_1.weight"].std() == pytest.approx(0.5, abs=0.05)
    assert not first["img_projector.linear_2.bias"].any()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["img_projector.linear_1.weight"], other["img_projector.linear_1.weight"])


@pytest.mark.parametrize(
    ("left_out", "mask_token_id"), [((), 423), (("<|image_pad|>", "<|video_pad|>"), 423), (("<|mask|>",), 428)]
)
def test_build_tokenizer_without_some_tokens_adds_them_once(
    tmp_path: Path, left_out: tuple[str, ...], mask_token_id: int
) -> None:
    """Tokens that are there keep their ids, the others come last; all are single tokens."""
    tiny_parts.write_dream(tmp_path / "dream", left_out)
    tokenizer = build_tokenizer(tmp_path / "dream")
    assert len(tokenizer) == 429
    for token in initialization.SPECIAL_TOKENS.values():
        assert len(tokenizer.encode(token)) == 1, token
    assert tokenizer.mask_token_id == mask_token_id
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.mask_token) == (
        "<|endoftext|>",
        "<|im_end|>",
        "<|mask|>",
    )


def test_chat_template_writes_what_the_released_one_writes(parity_dir: Path) -> None:
    """Prompts must be those that the released model was trained with, in every form that the processor takes."""
    processor = AutoProcessor.from_pretrained(parity_dir / "tokenizer")
    image, text = {"type": "image"}, {"type": "text", "text": "What is this?"}
    chats = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [image, text]}],
        [
            {"role": "user", "content": [image, text, {"type": "image_url", "image_url": "x.png"}]},
            {"role": "assistant", "content": [text]},
            {"role": "user", "content": "And?"},
        ],
    ]
    for chat in chats:
        for options in ({}, {"add_generation_prompt": True}, {"add_vision_id": True}):
            expected = processor.tokenizer.apply_chat_template(chat, tokenize=False, **options)
            written = processor.tokenizer.apply_chat_template(
                chat, chat_template=CHAT_TEMPLATE, tokenize=False, **options
            )
            assert written == expected
    assert "Picture 2: " in processor.tokenizer.apply_chat_template(
        chats[2], chat_template=CHAT_TEMPLATE, tokenize=False, add_vision_id=True
    )


@pytest.mark.parametrize(
    ("num_frequencies", "expected"), [(64, [16, 24, 24]), (32, [8, 12, 12]), (5, [1, 2, 2]), (3, [0, 1, 2])]
)
def test_split_rotary_frequencies_keeps_the_sum(num_frequencies: int, expected: list[int]) -> None:
    """64 is the 7B model's half head; other sizes get the same proportion."""
    assert split_rotary_frequencies(num_frequencies) == expected
    assert sum(expected) == num_frequencies


def test_initialize_interrupted_while_writing_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a model must not be loadable under its name; the next run clears it away and succeeds."""
    tiny_parts.write_qwen(tmp_path / "qwen")
    num_files = 0

    def stop_at_second(tensors: dict, file: Path, **kwargs: object) -> None:
        nonlocal num_files
        num_files += 1
        if num_files == 2:
            raise KeyboardInterrupt
        save_file(tensors, file, **kwargs)

    monkeypatch.setattr("safetensors.torch.save_file", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), max_shard_bytes=30_000)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial" / "config.json").exists()
    monkeypatch.undo()
    load(initialize_dimple(tmp_path / "out", str(tmp_path / "qwen")))
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, True])
def test_initialize_with_a_seed_out_of_range_writes_nothing(tmp_path: Path, seed: object) -> None:
    """torch refuses it too, but only when files are written."""
    tiny_parts.write_qwen(tmp_path / "qwen")
    with pytest.raises(ValueError, match=r"`seed` must be an integer from 0 to 2\*\*64 - 1"):
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), seed=seed)
    assert [path.name for path in tmp_path.iterdir()] == ["qwen"]


def test_initialize_into_a_directory_with_files_is_refused(tmp_path: Path) -> None:
    """Nothing of the user's is overwritten; an empty directory is welcome."""
    tiny_parts.write_qwen(tmp_path / "qwen")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="must be new or empty"):
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"))
    (tmp_path / "out" / "notes.txt").unlink()
    assert initialize_dimple(tmp_path / "out", str(tmp_path / "qwen")).joinpath("config.json").is_file()


def test_initialize_with_missing_unexpected_and_misshapen_weights_names_them_all(tmp_path: Path) -> None:
    """One run tells everything that is wrong, before anything is written."""
    language = tiny_parts.write_dream(tmp_path / "dream")
    tiny_parts.write_qwen(tmp_path / "qwen")
    del language["model.norm.weight"]
    language["model.layers.0.extra.weight"] = torch.zeros(2)
    language["model.layers.1.mlp.up_proj.weight"] = torch.zeros(48, 31)
    tiny_parts.write_sharded(tmp_path / "dream", language)
    with pytest.raises(ValueError, match="got 3 that differ") as caught:
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "dream"))
    message = str(caught.value)
    assert "missing: model.norm.weight" in message
    assert "unexpected: model.layers.0.extra.weight (model-0000" in message
    assert "model.layers.1.mlp.up_proj.weight (model-0000" in message
    assert "has (48, 31), not (48, 32)" in message
    assert not (tmp_path / "out.partial").exists()


def _pickle_instead(directory: Path) -> None:
    for file in [*directory.glob("*.safetensors"), directory / "model.safetensors.index.json"]:
        file.unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def _no_weights(directory: Path) -> None:
    _pickle_instead(directory)
    (directory / "pytorch_model.bin").unlink()


def _lose_shard(directory: Path) -> None:
    (directory / "model-00001-of-00002.safetensors").unlink()


def _break_shard(directory: Path) -> None:
    file = directory / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _lie_in_index(directory: Path) -> None:
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = content["weight_map"]["lm_head.weight"]
    content["weight_map"]["model.ghost.weight"] = content["weight_map"]["lm_head.weight"]
    index.write_text(json.dumps(content))


def _store_twice(directory: Path) -> None:
    weights = tiny_parts.random_weights(tiny_parts.language_shapes(), seed=0)
    weights["model.language_model.norm.weight"] = weights["model.norm.weight"].clone()
    tiny_parts.write_sharded(directory, weights)


def _quantize(directory: Path) -> None:
    weights = tiny_parts.random_weights(tiny_parts.language_shapes(), seed=0)
    weights["model.norm.weight"] = torch.zeros(32, dtype=torch.int8)
    tiny_parts.write_sharded(directory, weights)


def _drop_embeddings(directory: Path) -> None:
    weights = tiny_parts.random_weights(tiny_parts.language_shapes(), seed=0)
    del weights["model.embed_tokens.weight"]
    tiny_parts.write_sharded(directory, weights)


def _break_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def _list_config(directory: Path) -> None:
    (directory / "config.json").write_text("[]")


def _change_config(**changes: object):
    def change(directory: Path) -> None:
        (directory / "config.json").write_text(json.dumps(tiny_parts.DREAM_CONFIG | changes))

    return change


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_pickle_instead, "must hold its weights as safetensors .got pickled files"),
        (_no_weights, "must hold model.safetensors or model.safetensors.index.json"),
        (_lose_shard, "model-00001-of-00002.safetensors must be a whole safetensors file .*No such file"),
        (_break_shard, "must be a whole safetensors file"),
        (_lie_in_index, "as the index lists it .got a file without it"),
        (_store_twice, r"must hold model.norm.weight once \(got model"),
        (_quantize, r"must be stored as float32, float16 or bfloat16 \(got I8\)"),
        (_drop_embeddings, "got no model.embed_tokens.weight"),
        (
            lambda directory: (directory / "config.json").unlink(),
            r"config.json must hold a JSON object \(got no such file\)",
        ),
        (_break_config, "config.json must hold a JSON object"),
        (_list_config, r"must hold a JSON object \(got list\)"),
        (_change_config(model_type="llama"), r"must be of type Dream or qwen2 or qwen2_5_vl \(got 'llama'\)"),
        (_change_config(rope_scaling={"type": "yarn", "factor": 4.0}), r"plain rotary positions .* type 'yarn'"),
        (_change_config(rope_theta=None), "and base None"),
        (_change_config(vocab_size=428), r"each of the tokenizer's 429 tokens.*\(got 428\)"),
        (_change_config(hidden_act=7), "must have fields of the right type"),
    ],
)
def test_initialize_from_a_spoilt_language_model_is_refused(tmp_path: Path, spoil, message: str) -> None:
    """Each fault is named before anything is written. Control: without the fault the same call succeeds."""
    tiny_parts.write_qwen(tmp_path / "qwen")
    tiny_parts.write_dream(tmp_path / "dream")
    shutil.copytree(tmp_path / "dream", tmp_path / "spoilt")
    spoil(tmp_path / "spoilt")
    with pytest.raises(ValueError, match=message):
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "spoilt"))
    assert not (tmp_path / "out.partial").exists()
    initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "dream"))


def test_initialize_with_vision_model_of_another_type_is_refused(tmp_path: Path) -> None:
    """A language model has no tower, and a tower of another family has other weights."""
    tiny_parts.write_dream(tmp_path / "dream")
    with pytest.raises(ValueError, match=r"vision model must be of type qwen2_5_vl \(got 'Dream'\)"):
        initialize_dimple(tmp_path / "out", str(tmp_path / "dream"))


def test_initialize_with_other_patches_in_the_image_processor_is_refused(tmp_path: Path) -> None:
    """Patches of another size would not fit the tower; without the file their size is unknown."""
    tiny_parts.write_qwen(tmp_path / "qwen")
    file = tmp_path / "qwen" / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"patch_size": 16}))
    with pytest.raises(ValueError, match=r"`patch_size` in .* must be the vision tower's 14 \(got 16\)"):
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"))
    file.unlink()
    with pytest.raises(ValueError, match="must have a preprocessor_config.json"):
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"))


def test_locate_checkpoint_with_a_path_that_is_none_is_refused() -> None:
    """A mistyped path must not become a question to the Hub."""
    for source in ("./nowhere", "/nowhere/else", "a/b/c", "nowhere"):
        with pytest.raises(ValueError, match="must be a directory or a Hub id"):
            locate_checkpoint(source, vision_name)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_locate_checkpoint_from_the_hub_downloads_only_the_shards_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_shards: int
) -> None:
    """The tower is in one of a Qwen2.5-VL's shards; the others need not travel."""
    asked: list[list[str]] = []
    weight_map = {"visual.a": "model-00001.safetensors", "lm_head.weight": "model-00002.safetensors"}
    if num_shards > 1:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    def download(repo_id: str, allow_patterns: list[str], local_files_only: bool) -> str:
        assert repo_id == "owner/name"
        asked.append([pattern for pattern in allow_patterns if pattern.startswith("model")])
        return str(tmp_path)

    monkeypatch.setattr("dimple_hf.hub.files.find_commit", lambda *_: "0" * 40)
    monkeypatch.setattr("dimple_hf.hub.files.snapshot_download", download)
    assert locate_checkpoint("owner/name", vision_name) == tmp_path
    assert asked == [[], ["model.safetensors" if num_shards == 1 else "model-00001.safetensors"]]


def test_initialize_reads_headers_only_before_everything_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 15 GB model that does not fit is refused in seconds: no weight is read for it."""
    tiny_parts.write_qwen(tmp_path / "qwen")
    tiny_parts.write_dream(tmp_path / "dream")
    _change_config(num_hidden_layers=3)(tmp_path / "dream")
    monkeypatch.setattr(initialization, "read_weights", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(ValueError, match="missing: model.layers.2"):
        initialize_dimple(tmp_path / "out", str(tmp_path / "qwen"), str(tmp_path / "dream"))


#: Sizes of the public Qwen2.5-VL, from their `config.json`.
QWEN_SIZES = {
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
           "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "tower": 3420},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "tower": 3420},
    "72B": {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False, "tower": 3456},
}  # fmt: skip


@pytest.mark.parametrize("size", QWEN_SIZES)
def test_every_public_size_of_qwen_becomes_a_dimple(size: str, tmp_path: Path) -> None:
    """Name for name and shape for shape, as transformers' own class builds them; nothing of the size is in memory."""
    fields = dict(QWEN_SIZES[size])
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": fields.pop("tower"), "num_heads": 16,
              "in_chans": 3, "out_hidden_size": fields["hidden_size"], "patch_size": 14, "window_size": 112,
              "spatial_merge_size": 2, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu"}  # fmt: skip
    raw = fields | {
        "model_type": "qwen2_5_vl", "rope_theta": 1e6, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vision_config": vision,
    }  # fmt: skip
    with torch.device("meta"):
        qwen = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**json.loads(json.dumps(raw))))
    found = {}
    for name, tensor in qwen.state_dict().items():
        new_name = vision_name(name) or language_name(name)
        found[new_name] = StoredTensor(Path("model.safetensors"), name, tuple(tensor.shape), "BF16")
    if raw["tie_word_embeddings"]:
        del found["lm_head.weight"]
    tiny_parts.write_dream(tmp_path / "dream")
    config = build_config(raw, raw, build_tokenizer(tmp_path / "dream"), torch.bfloat16)
    shapes = expected_shapes(config)
    check_tensors({name: shape for name, shape in shapes.items() if "img_projector" not in name}, found)
    assert shapes["img_projector.linear_1.weight"] == (fields["hidden_size"], fields["hidden_size"])
    assert config.mrope_section == [16, 24, 24]
    with pytest.raises(ValueError, match="missing: model.norm.weight"):  # control
        check_tensors(shapes, {name: tensor for name, tensor in found.items() if name != "model.norm.weight"})

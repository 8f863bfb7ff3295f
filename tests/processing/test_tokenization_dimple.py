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
"""The tokenizer against upstream's ids, arbitrary Unicode, and upstream's file layout."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimple_hf.processing import DimpleTokenizer

# Text without special tokens. Characters that this Python's Unicode tables do not know are left out, because the
# tokenizer's newer tables may compose them.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn"))).filter(lambda text: "<|" not in text)


@pytest.fixture(scope="session")
def toy(parity_dir: Path) -> DimpleTokenizer:
    """The toy tokenizer, made once: hypothesis calls a test many times."""
    return DimpleTokenizer.from_pretrained(parity_dir / "tokenizer")


@pytest.fixture(scope="session")
def goldens(parity_dir: Path) -> dict[str, Any]:
    return json.loads((parity_dir / "tokenizer" / "tokenizer_goldens.json").read_text(encoding="utf-8"))


def test_tokenizer_on_upstream_texts_gives_upstream_ids(toy: DimpleTokenizer, goldens: dict[str, Any]) -> None:
    """A prompt that is cut into other tokens than in training is another prompt."""
    assert len(goldens["texts"]) == 15
    for case in goldens["texts"]:
        assert toy(case["text"])["input_ids"] == case["ids"], case["text"]


def test_tokenizer_decoding_upstream_ids_gives_upstream_text(toy: DimpleTokenizer, goldens: dict[str, Any]) -> None:
    """Both ways of decoding, with special tokens and without."""
    for case in goldens["texts"]:
        assert toy.decode(case["ids"]) == case["decoded"]
        assert toy.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]
    # control: the two ways differ where there are special tokens
    assert any(case["decoded"] != case["decoded_skip_special"] for case in goldens["texts"])


def test_tokenizer_decoding_broken_bytes_gives_upstream_text(toy: DimpleTokenizer, parity_dir: Path) -> None:
    """An untrained model emits bytes that are no Unicode; each gives as many replacement characters as upstream."""
    answers = json.loads((parity_dir / "checkpoint" / "end_to_end_goldens.json").read_text(encoding="utf-8"))
    assert any("\N{REPLACEMENT CHARACTER}" in answer["text"] for answer in answers)
    for answer in answers:
        assert toy.decode(answer["new_tokens"], skip_special_tokens=True) == answer["text"]


def test_tokenizer_sizes_and_special_ids_are_upstreams(toy: DimpleTokenizer, goldens: dict[str, Any]) -> None:
    """The model's config refers to special tokens by id."""
    assert (toy.vocab_size, len(toy)) == (goldens["vocab_size"], goldens["len"]) == (420, 429)
    special = {token: toy.convert_tokens_to_ids(token) for token in toy.all_special_tokens}
    assert special == goldens["special_ids"]
    assert (toy.mask_token_id, toy.pad_token_id, toy.eos_token_id) == (423, 420, 422)


@given(text=TEXT)
def test_tokenizer_round_trip_of_any_text_gives_its_composed_form(toy: DimpleTokenizer, text: str) -> None:
    """No character may get lost or change, except for composition (NFC), which the vocabulary is made for."""
    ids = toy(text)["input_ids"]
    assert all(0 <= token_id < toy.vocab_size for token_id in ids)
    assert toy.decode(ids) == unicodedata.normalize("NFC", text)


def test_tokenizer_round_trip_of_decomposed_text_changes_it(toy: DimpleTokenizer) -> None:
    """Control for the test above: composition is not the identity."""
    decomposed = unicodedata.normalize("NFD", "é")
    assert toy.decode(toy(decomposed)["input_ids"]) == "é" != decomposed


@given(parts=st.lists(TEXT, max_size=4), token=st.sampled_from(["<|mask|>", "<|endoftext|>", "<|im_end|>"]))
def test_tokenizer_special_tokens_between_texts_leave_the_texts_alone(
    toy: DimpleTokenizer, parts: list[str], token: str
) -> None:
    """What a model unmasks around masks and padding must come back whole when these are skipped."""
    ids = toy(token.join(parts))["input_ids"]
    assert ids.count(toy.convert_tokens_to_ids(token)) == max(len(parts) - 1, 0)
    assert toy.decode(ids, skip_special_tokens=True) == "".join(unicodedata.normalize("NFC", part) for part in parts)


def test_tokenizer_batch_decode_skips_padding_and_masks_when_asked(toy: DimpleTokenizer) -> None:
    """Rows of a batch end in padding, and an interrupted answer still holds masks."""
    (hi,) = toy(["hi"])["input_ids"]
    rows = [[*hi, toy.eos_token_id, toy.pad_token_id], [toy.mask_token_id, *hi, toy.pad_token_id]]
    assert toy.batch_decode(rows, skip_special_tokens=True) == ["hi", "hi"]
    assert toy.batch_decode(rows) == ["hi<|im_end|><|endoftext|>", "<|mask|>hi<|endoftext|>"]


def test_tokenizer_without_settings_pads_left_and_has_a_mask_token(tmp_path: Path) -> None:
    """The defaults that generation relies on hold for a directory that does not state them."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "<|endoftext|>": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = DimpleTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.mask_token, tokenizer.mask_token_id) == ("left", "<|mask|>", 3)
    batch = tokenizer(["aba", "b"], padding=True)
    assert batch["input_ids"] == [[0, 1, 0], [2, 2, 1]]
    assert batch["attention_mask"] == [[1, 1, 1], [0, 0, 1]]
    # control: the directory has the last word
    (tmp_path / "tokenizer_config.json").write_text('{"padding_side": "right", "mask_token": "b"}')
    tokenizer = DimpleTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.padding_side, tokenizer.mask_token_id) == ("right", 1)


def test_tokenizer_saved_points_to_its_own_code_only(tokenizer: DimpleTokenizer, tmp_path: Path) -> None:
    """Upstream's `auto_map` also names the processor, which a saved tokenizer does not bring."""
    source = json.loads(Path(tokenizer.name_or_path, "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "AutoProcessor" in source["auto_map"]  # control
    tokenizer.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["auto_map"] == {"AutoTokenizer": ["tokenization_dimple.DimpleTokenizer", None]}
    assert [path.name for path in tmp_path.glob("*.py")] == ["tokenization_dimple.py"]


def test_tokenizer_saved_after_use_writes_the_same_files(tokenizer: DimpleTokenizer, tmp_path: Path) -> None:
    """Padding and truncation of the last call would stay in tokenizer.json, for every other library to obey."""
    tokenizer.save_pretrained(tmp_path / "before")
    tokenizer(["a b c d", "e"], padding=True, truncation=True, max_length=2)
    assert tokenizer.backend_tokenizer.truncation is not None  # control
    tokenizer.save_pretrained(tmp_path / "after")
    DimpleTokenizer.from_pretrained(tmp_path / "after", local_files_only=True).save_pretrained(tmp_path / "again")
    for path in (tmp_path / "before").iterdir():
        for folder in ("after", "again"):
            assert (tmp_path / folder / path.name).read_bytes() == path.read_bytes(), path.name


def test_tokenizer_saved_writes_the_slow_files_as_upstream_does(
    tokenizer: DimpleTokenizer, parity_dir: Path, tmp_path: Path
) -> None:
    """Upstream's slow tokenizer needs vocabulary, merges, and the added tokens with their ids in the config."""
    paths = tokenizer.save_pretrained(tmp_path)
    upstream = parity_dir / "tokenizer"
    assert {Path(path).name for path in paths} >= {"vocab.json", "merges.txt", "tokenizer.json"}
    assert (tmp_path / "merges.txt").read_text("utf-8") == (upstream / "merges.txt").read_text("utf-8")
    assert json.loads((tmp_path / "vocab.json").read_text("utf-8")) == json.loads(
        (upstream / "vocab.json").read_text("utf-8")
    )
    ours = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    theirs = json.loads((upstream / "tokenizer_config.json").read_text("utf-8"))
    theirs.pop("auto_map")
    assert {key: ours[key] for key in theirs} == theirs
    assert "extra_special_tokens" not in ours


def test_tokenizer_saved_without_legacy_format_writes_no_slow_files(
    tokenizer: DimpleTokenizer, tmp_path: Path
) -> None:
    """Control for the test above, and the promise of `legacy_format=False`."""
    tokenizer.save_pretrained(tmp_path, legacy_format=False)
    assert (tmp_path / "tokenizer.json").exists()
    assert not (tmp_path / "vocab.json").exists()
    assert DimpleTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("removed", [(), ("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_tokenizer_saved_and_loaded_gives_the_same_ids(
    removed: tuple[str, ...], tokenizer: DimpleTokenizer, goldens: dict[str, Any], tmp_path: Path
) -> None:
    """Each of the two sets of files is complete by itself."""
    tokenizer.add_tokens(["<|new|>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    for name in removed:
        (tmp_path / name).unlink()
    loaded = DimpleTokenizer.from_pretrained(tmp_path)
    assert loaded("a<|new|>")["input_ids"][-1] == 429
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert (loaded.padding_side, loaded.chat_template) == (tokenizer.padding_side, tokenizer.chat_template)
    for case in goldens["texts"]:
        assert loaded(case["text"])["input_ids"] == case["ids"]


@given(
    st.lists(st.sampled_from(["<|im_end|>", "<|mask|>", " ", "a\u0301b", "\n", "12", "é", "<|image_pad|>"])).map(
        "".join
    )
)
def test_tokenizer_encodes_control_tokens_as_text_without_a_switch(toy: DimpleTokenizer, text: str) -> None:
    """The same ids as transformers' own way, which sets a switch that threads would share."""
    expected = toy.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert toy._encode_without_added_tokens(text) == expected
    toy.encode("x")  # sets the switch back
    switch = toy.backend_tokenizer.encode_special_tokens
    toy._encode_without_added_tokens(text)
    assert toy.backend_tokenizer.encode_special_tokens is switch is False

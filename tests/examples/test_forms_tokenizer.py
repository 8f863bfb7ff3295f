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
"""Tests of examples/forms/forms_tokenizer.py: words, digits and any other text, in the released checkpoint's form."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "forms"))

from forms_data import ALL_LABELS
from forms_questions import HELD_OUT_WORDINGS
from forms_tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, corpus, write_tokenizer

from dimple_hf import DimpleTokenizer
from dimple_hf.decisions.prompt import option_labels

VOCAB_SIZE = 732  # 256 bytes, 467 merges, 9 special tokens


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> DimpleTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory)
    return DimpleTokenizer.from_pretrained(directory)


def test_tokenizer_has_dimples_special_tokens_after_the_ordinary_ones(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    first = VOCAB_SIZE - len(SPECIAL_TOKENS)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(first, VOCAB_SIZE))
    names = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.mask_token)
    assert names == SPECIAL_TOKENS[:4]
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("text", ["", " ", "Read the form.", "naïve 日本語 🙂\t\r\n  x", '{"a":[1,2.5]}', "\x00\x7f"])
def test_tokenizer_gives_any_text_back(tokenizer, text):
    """Users ask anything: what the vocabulary lacks goes byte by byte, never to an unknown token."""
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert all(token_id < VOCAB_SIZE - len(SPECIAL_TOKENS) for token_id in ids)


def test_tokenizer_keeps_digits_apart_and_labels_whole(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer('{"qty":482,"age":5}').input_ids] == [
        '{"', "qty", '":', "4", "8", "2", ',"', "age", '":', "5", "}"
    ]  # fmt: skip
    for label in ALL_LABELS:
        assert len(tokenizer(label).input_ids) == 1
        assert len(tokenizer(" " + label).input_ids) == 1
    # Control: a word that the corpus lacks is several tokens.
    assert len(tokenizer("zebra").input_ids) > 1


def test_tokenizer_makes_every_word_of_its_corpus_one_token(tokenizer):
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    for line in corpus():
        assert len(tokenizer(line).input_ids) == len(pre_tokenizer.pre_tokenize_str(line))


def test_tokenizer_has_a_token_for_each_label_of_an_option(tokenizer):
    """A decision is one masked position. After a space, as a label stands in an answer."""
    assert option_labels(tokenizer, 26) == list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_held_out_wordings_are_not_in_the_corpus(tokenizer):
    """Their new words go in pieces, as any user's do."""
    assert len(tokenizer("Tell").input_ids) > 1
    assert not set(corpus()) & {wording for wordings in HELD_OUT_WORDINGS.values() for wording in wordings}


def test_chat_template_writes_what_the_released_one_writes(tokenizer, parity_dir):
    """The small model must behave as the released one does, down to the system turn that nobody wrote."""
    released = json.loads((parity_dir / "checkpoint" / "chat_template.json").read_text())["chat_template"]
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read the form."}]}
    turns = [user, {"role": "assistant", "content": "qty 1"}, {"role": "user", "content": "And?"}]
    for messages in (turns[:1], turns, [{"role": "system", "content": "Be brief."}, *turns]):
        for prompt in (True, False):
            written = [
                tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
                )
                for template in (CHAT_TEMPLATE, released)
            ]
            assert written[0] == written[1]
    assert "You are a helpful assistant." in tokenizer.apply_chat_template(turns, tokenize=False)


def test_write_tokenizer_gives_the_same_files_every_time(tmp_path):
    """Checkpoints carry the tokenizer; a vocabulary that moved would make old weights speak nonsense."""
    for name in ("a", "b"):
        write_tokenizer(tmp_path / name)
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    merges = (tmp_path / "a" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[:4] == ["#version: 0.2", "Ġ t", "Ġt h", "Ġth e"]

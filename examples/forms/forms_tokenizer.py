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
"""Tokenizer of the small forms model: byte-level BPE of Qwen2's kind with some hundreds of entries.

It knows the words of the chat template, the labels, the questions and JSON's punctuation as whole tokens, keeps each
digit a token of its own, and encodes any other text byte by byte. `write_tokenizer` writes the files that
`DimpleTokenizer.from_pretrained` reads (`vocab.json`, `merges.txt`, `tokenizer_config.json`).
"""

import json
from itertools import pairwise
from pathlib import Path

from forms_data import LABELS
from forms_dataset import QUESTIONS, write_answer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
"""Dimple's special tokens, in the order of the released checkpoint; their ids follow the ordinary tokens'."""

CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes chats as the released checkpoint's template does (images named by `{"type": "image"}` parts)."""


def corpus() -> list[str]:
    """All text whose words become single tokens: the chat template's, every question and whole forms."""
    lines = ["system\nYou are a helpful assistant.", "user\n", "assistant\n"]
    for first, second in pairwise((*LABELS, LABELS[0])):
        # All kinds but "fields", which asks with the words of the others.
        kinds = ("text", "json", "field", "rows", "sum")
        lines += [wording.format(first, second) for kind in kinds for wording in QUESTIONS[kind]]
        lines += [write_answer(kind, {first: 10, second: 23}) for kind in ("text", "json")]
    return lines


def learn_merges() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges: the 256 bytes, then as many merges as make every word of `corpus` one token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2000, min_frequency=1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def write_tokenizer(directory: Path) -> None:
    """Writes the tokenizer to `directory`, in the files of the released checkpoint.

    Args:
        directory (`Path`): Created where it is missing; files of the same names are replaced.
    """
    vocab, merges = learn_merges()
    directory.mkdir(parents=True, exist_ok=True)
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "added_tokens_decoder": {
            str(len(vocab) + position): {"content": token, **special} for position, token in enumerate(SPECIAL_TOKENS)
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[4:]),
        "bos_token": "<|im_start|>",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "mask_token": "<|mask|>",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "processor_class": "DimpleProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "DimpleTokenizer",
        "unk_token": "<|endoftext|>",
    }
    merge_lines = "".join(f"{first} {second}\n" for first, second in merges)
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n" + merge_lines, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

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

Whole tokens are the words of the chat template, of questions as training words them and of answers, and the labels of
options after a space. Each digit is a token of its own, any other text is encoded in pieces or bytes.
`write_tokenizer` writes the files that `DimpleTokenizer.from_pretrained` reads (`vocab.json`, `merges.txt`,
`tokenizer_config.json`).
"""

import json
from itertools import pairwise
from pathlib import Path

from forms_data import ALL_LABELS, SPLITS, draw_form, form_rng
from forms_dataset import NO_FORM, NOT_ON_FORM, write_json, write_text
from forms_decisions import DECISIONS, RICH_DECISIONS, draw_decisions
from forms_questions import COURTESIES_AFTER, COURTESIES_BEFORE, LATER_FIELD_WORDINGS, WORDINGS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from dimple_hf.decisions.prompt import LABELS as OPTION_LABELS
from dimple_hf.decisions.prompt import decision_answer, decision_prompt

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


NUM_DECISIONS = 40
"""Forms about which each decision is written down: enough for all its wordings."""


def corpus() -> list[str]:
    """All text whose words become single tokens. Held-out and later wordings, and words of unrelated questions, are
    not in it.
    """
    lines = ["system\nYou are a helpful assistant.", "user\n", "assistant\n", NOT_ON_FORM, NO_FORM]
    for first, second in pairwise((*ALL_LABELS, ALL_LABELS[0])):
        for kind, wordings in WORDINGS.items():
            named = f"{first}, {first} and {second}" if kind == "fields" else first
            for wording in wordings:
                if wording in LATER_FIELD_WORDINGS:
                    continue
                question = wording.format(named, second)
                lower = question[0].lower() + question[1:]
                lines += [question, f" {question}", lower, f" {lower}"]  # with a space: after a courtesy
        fields = {first: 10, second: None, "paid": True, "new": False, "due": "03-12", "cost": 4.5}
        lines += [write_text({first: True, second: False}), write_json(fields)]
    lines += [*COURTESIES_BEFORE, *(f" {courtesy}" for courtesy in COURTESIES_AFTER)]
    return lines + _decision_lines()


def _decision_lines() -> list[str]:
    """Questions and answers of decisions, as training has them, and all labels of options."""
    lines = [decision_answer(OPTION_LABELS)]
    for names, is_rich in ((DECISIONS, False), (RICH_DECISIONS, True)):
        for index in range(NUM_DECISIONS):
            rng = form_rng(SPLITS[0], index)
            form = draw_form(SPLITS[0], rng, is_rich)
            _, decisions = draw_decisions(form, SPLITS[0], rng, is_rich, list(names))
            lines.append(decision_prompt([question for question, _ in decisions]))
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

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
"""The tokenizer of Dimple: Qwen2's byte-level BPE with a mask token.

Source: the released tokenizer, a slow one of transformers 4.46.2 with the vocabulary of Dream-7B. This one is fast and
gives the same ids.
"""

import json
import os
from typing import Any

from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer


class DimpleTokenizer(Qwen2Tokenizer):
    r"""
    Qwen2's fast tokenizer, with these differences:

    - It has a mask token, the token that stands at every position of an answer that is still to be unmasked.
    - It pads on the left unless a checkpoint sets another side, because an answer follows its prompt without a gap.
    - A directory of the released model loads as it is. Its `auto_map` is dropped: it names code that is not needed.
    - [`~DimpleTokenizer.save_pretrained`] also writes what the released slow tokenizer reads (see
      [`~DimpleTokenizer.save_vocabulary`]).

    Text comes back as it went in, up to Unicode normalization form C: `decode(encode(text))` equals
    `unicodedata.normalize("NFC", text)` for every text without special tokens and lone surrogates. Special tokens are
    cut out before normalization, so that a combining character after one of them stays by itself.

    Args:
        vocab (`str` or `dict[str, int]`, *optional*):
            Token to id, or the path of a `vocab.json`.
        merges (`str` or `list[str]`, *optional*):
            The merges of the BPE in the order of their rank, or the path of a `merges.txt`.
        mask_token (`str`, *optional*, defaults to `"<|mask|>"`):
            The mask token. It is added to the vocabulary where it is missing.
        **kwargs:
            The other arguments of [`Qwen2Tokenizer`], such as `eos_token`, `pad_token` and `padding_side`.
    """

    padding_side = "left"

    def __init__(
        self,
        vocab: str | dict[str, int] | None = None,
        merges: str | list[str] | None = None,
        mask_token: str = "<|mask|>",
        **kwargs: Any,
    ) -> None:
        kwargs.pop("auto_map", None)
        super().__init__(vocab=vocab, merges=merges, mask_token=mask_token, **kwargs)

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        """As the parent's, which sets a switch of the tokenizer for that; several threads may share this one."""
        backend = self.backend_tokenizer
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = backend.pre_tokenizer.pre_tokenize_str(text)
        return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """
        Writes `vocab.json` and `merges.txt`: the vocabulary without added tokens, as a slow tokenizer reads it.

        Args:
            save_directory (`str`):
                An existing directory.
            filename_prefix (`str`, *optional*):
                Put before the file names, followed by a dash.

        Returns:
            `tuple[str, ...]`: The paths of the two files.
        """
        return tuple(self.backend_tokenizer.model.save(str(save_directory), filename_prefix))

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        """Also writes the slow format, unless `legacy_format=False`; `file_names[0]` is the config just written."""
        # How the last call padded and cut its texts would be written into tokenizer.json, which others obey.
        padding, truncation = self.backend_tokenizer.padding, self.backend_tokenizer.truncation
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        try:
            file_names = super()._save_pretrained(save_directory, file_names, legacy_format, filename_prefix)
        finally:
            if padding is not None:
                self.backend_tokenizer.enable_padding(**padding)
            if truncation is not None:
                self.backend_tokenizer.enable_truncation(**truncation)
        if legacy_format is False:
            return file_names

        # transformers 5 keeps added tokens in tokenizer.json only and has renamed the list of extra special tokens;
        # it still reads the older form, which is the one form that both versions understand.
        with open(file_names[0], encoding="utf-8") as file:
            config = json.load(file)
        config["added_tokens_decoder"] = {
            str(token_id): token.__getstate__() for token_id, token in self.added_tokens_decoder.items()
        }
        config["additional_special_tokens"] = config.pop("extra_special_tokens", [])
        for name in ("is_local", "local_files_only"):  # how this tokenizer was loaded, which is no property of it
            config.pop(name, None)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        with open(file_names[0], "w", encoding="utf-8") as file:
            file.write(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
        return file_names + self.save_vocabulary(str(save_directory), filename_prefix)


__all__ = ["DimpleTokenizer"]

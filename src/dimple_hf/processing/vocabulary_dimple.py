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
"""The tokens of a tokenizer as bytes, in a prefix tree.

It is made once for a tokenizer and kept in a cache folder, without pickle.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from huggingface_hub.constants import HF_HOME
from transformers import PreTrainedTokenizerBase

#: Tokens of more bytes are not used inside values and fixed text. (Qwen has 0.03 % of them, runs of one character.)
MAX_TOKEN_BYTES = 32

#: Changes when the files of the cache do.
_CACHE_VERSION = 5

#: The nodes of a tree that tokens and rests begin at.
TOKENS, RESTS = 1, 2


#: Longest text whose tokens are remembered, and how many of them.
MAX_SHORT, MAX_REMEMBERED_TEXTS = 4, 4096

#: Where a number of JSON can end inside a token.
_END_OF_NUMBER = re.compile(rb"[0-9](?=[^0-9.eE])", re.DOTALL)


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE writes a token's bytes as visible characters: printable ones as they are, the others from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


@dataclass(frozen=True, eq=False)
class TokenTree:
    """
    The prefix trees of the tokens, below node `TOKENS`, and of the rests of tokens, below node `RESTS`, as one, so
    that both are walked down at once. Node 0 is its root; nodes are numbered level by level, and the children of a
    node have consecutive numbers, in the order of their bytes.

    Args:
        first_child (`np.ndarray`):
            int32 of shape `(num_nodes + 1,)`: the children of `n` are `first_child[n]` to `first_child[n + 1] - 1`.
        byte (`np.ndarray`):
            uint8 of shape `(num_nodes,)`: the last byte of each node.
        token (`np.ndarray`):
            int32 of shape `(num_nodes,)`: the token that ends at each node, or -1; for rest number `n` it is `-2 - n`.
    """

    first_child: np.ndarray
    byte: np.ndarray
    token: np.ndarray

    @cached_property
    def parents(self) -> np.ndarray:
        """int32 of shape `(num_nodes,)`: the node above each; the root's is itself."""
        parents = np.repeat(np.arange(len(self.byte), dtype=np.int32), np.diff(self.first_child))
        return np.append(np.int32(0), parents)

    @cached_property
    def levels(self) -> list[tuple[int, int]]:
        """The first node of each level below the root, and the one after its last."""
        levels, first, last = [], 0, 1
        while first < last:
            first, last = int(self.first_child[first]), int(self.first_child[last])
            levels.append((first, last))
        return levels[:-1]

    @cached_property
    def _keys(self) -> np.ndarray:
        """Of each node but the root, its parent and byte in one number: they ascend."""
        return (self.parents[1:] << 8) + self.byte[1:]

    def children(self, nodes: np.ndarray, byte_of: np.ndarray) -> np.ndarray:
        """The child of each of `nodes` with the byte beside it; -1 where there is none."""
        if not len(self._keys):
            return np.full(len(nodes), -1, dtype=np.int32)
        keys = ((nodes << 8) + byte_of).astype(self._keys.dtype)  # of another type, all keys would be converted
        index = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1).astype(np.int32)
        return np.where(self._keys[index] == keys, index + 1, -1)

    def node_of(self, data: bytes) -> int:
        """The node at the end of `data`, which begins a token."""
        node = TOKENS
        for byte in data:
            low, high = self.first_child[node], self.first_child[node + 1]
            node = int(low + np.searchsorted(self.byte[low:high], byte))
        return node


class Vocabulary:
    """
    The tokens of a byte-level BPE tokenizer as bytes.

    A token that ends a JSON string is *split* at its quotation mark: the text before it is a node of the tree, and the
    text after it a *rest*. A token that goes on after a number is split after the last digit.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Needs a mask token and a padding token.
    """

    _known: "WeakKeyDictionary[PreTrainedTokenizerBase, Vocabulary]" = WeakKeyDictionary()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for name in ("pad_token_id", "mask_token_id"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"`tokenizer.{name}` must be set for structure priors (got None)")
        self.pad_id: int = tokenizer.pad_token_id
        self.mask_id: int = tokenizer.mask_token_id
        self.size = len(tokenizer)
        byte_of_char = _byte_of_char()
        added = tokenizer.added_tokens_decoder
        self.token_bytes: list[bytes | None] = [None] * self.size
        for token, token_id in tokenizer.get_vocab().items():
            if token_id not in added and token_id < self.size:
                self.token_bytes[token_id] = bytes(byte_of_char[char] for char in token)
        self._encode: Callable[[str], list[int]] = lambda text: (
            tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        )
        self._short_texts: dict[str, list[int]] = {}
        self.byte_ids = {data[0]: i for i, data in enumerate(self.token_bytes) if data is not None and len(data) == 1}
        arrays = self._arrays()
        self.tree = TokenTree(arrays["first_child"], arrays["byte"], arrays["token"])
        # The tokens in the tree, in order, and their nodes.
        nodes = np.flatnonzero(arrays["token"] >= 0).astype(np.int32)
        order = np.argsort(arrays["token"][nodes], kind="stable")
        self.tokens, self.token_nodes = arrays["token"][nodes][order], nodes[order]
        self.index_of_node = np.full(len(arrays["token"]), -1, dtype=np.int32)  # into `tokens`
        self.index_of_node[self.token_nodes] = np.arange(len(self.tokens))
        # Tokens, nodes and rests of the splits, in the order of nodes: at quotation marks (`True`), and after digits.
        self.splits: dict[bool, np.ndarray] = {True: arrays["splits"], False: arrays["digit_splits"]}
        # Of each node: whether a token ends there, or what stands before a split.
        self.ends_text = arrays["token"] >= 0
        self.ends_text[self.splits[True][1]] = True
        self.memory: dict[Any, Any] = {}  # what is derived from the vocabulary elsewhere

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        """The vocabulary of a tokenizer, which is read once."""
        known = cls._known.get(tokenizer)
        if known is None or known.size != len(tokenizer):
            known = cls._known[tokenizer] = cls(tokenizer)
        return known

    def encode(self, text: str) -> list[int]:
        """
        Tokens of `text` that decode to exactly `text`. Where the tokenizer would change it, because it is not in
        normal form C or spells a special token, a token per byte. Short texts are remembered, as brackets are.
        """
        ids = self._short_texts.get(text)
        if ids is None:
            ids = self._encoded(text)
            if len(text) <= MAX_SHORT and len(self._short_texts) < MAX_REMEMBERED_TEXTS:
                self._short_texts[text] = ids
        return ids.copy()

    def _encoded(self, text: str) -> list[int]:
        ids = self._encode(text)
        if all(self.token_bytes[i] is not None for i in ids) and self.to_bytes(ids) == text.encode():
            return ids
        return [self.byte_ids[byte] for byte in text.encode()]

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that tokens stand for; special tokens, as the padding token is one, stand for none."""
        return b"".join(self.token_bytes[i] or b"" for i in ids if i < self.size)

    def _arrays(self) -> dict[str, np.ndarray]:
        """What is derived from the tokens, from the cache folder if it is there."""
        tokens = [(data, i) for i, data in enumerate(self.token_bytes) if data and len(data) <= MAX_TOKEN_BYTES]
        digest = hashlib.sha256(repr(_CACHE_VERSION).encode())
        for data, token_id in tokens:
            digest.update(b"%d:%d:" % (token_id, len(data)) + data)
        path = Path(HF_HOME) / "dimple_hf" / f"vocabulary-{digest.hexdigest()[:32]}.npz"
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except (OSError, ValueError, KeyError):  # missing, or not written to its end
            arrays = _derive(tokens)
        if len(tokens) > 1 << 14:  # small ones are derived faster than they are read
            _write(path, arrays)
        return arrays


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes the file whole or not at all; a folder that cannot be written to is no error."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy's stubs take names for options
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _derive(tokens: list[tuple[bytes, int]]) -> dict[str, np.ndarray]:
    splits = {
        "splits": [
            (data[:index], token_id, data[index + 1 :])
            for data, token_id in tokens
            for index in range(len(data))
            if data[index] == 0x22
        ],
        "digit_splits": [
            (data[: match.end()], token_id, data[match.end() :])
            for data, token_id in tokens
            for match in _END_OF_NUMBER.finditer(data)
        ],
    }
    rests = sorted({b"", *(rest for found in splits.values() for _, _, rest in found)})
    number_of = {rest: number for number, rest in enumerate(rests)}
    tree = _tree_of(tokens, list(number_of.items()))
    found = TokenTree(*tree)
    rows = {
        name: sorted(
            ((token_id, found.node_of(before), number_of[rest]) for before, token_id, rest in one),
            key=lambda row: row[1],
        )
        for name, one in splits.items()
    }
    return {
        **{name: np.array(one, dtype=np.int32).reshape(-1, 3).T.copy() for name, one in rows.items()},
        **dict(zip(("first_child", "byte", "token"), tree, strict=True)),
    }


def _tree_of(tokens: list[tuple[bytes, int]], rests: list[tuple[bytes, int]]) -> tuple[np.ndarray, ...]:
    """The arrays of a [`TokenTree`]."""
    entries = [(b"\0" + data, token_id) for data, token_id in tokens]
    entries = sorted(entries + [(b"\1" + rest, -2 - number) for rest, number in rests])
    first_child, byte, token = [1], bytearray(b"\0"), [-1]
    level = [(0, entries)]  # node, and the texts below it
    depth = 0
    while level:
        following = []
        for node, below in level:
            first_child[node] = len(byte)
            start = 0
            while start < len(below):
                text = below[start][0]
                if len(text) == depth:
                    token[node] = below[start][1]
                    start += 1
                    continue
                stop = start
                while stop < len(below) and below[stop][0][depth] == text[depth]:
                    stop += 1
                following.append((len(byte), below[start:stop]))
                byte.append(text[depth])
                first_child.append(0)
                token.append(-1)
                start = stop
        level, depth = following, depth + 1
    first_child.append(len(byte))
    return (
        np.array(first_child, dtype=np.int32),
        np.frombuffer(bytes(byte), dtype=np.uint8),
        np.array(token, dtype=np.int32),
    )


def ranges(first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of all ranges one after the other, and of which range each is."""
    lengths = stop - first
    index = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    offset = (first - np.cumsum(lengths) + lengths).astype(np.int32)
    return index, np.arange(len(index), dtype=np.int32) + offset[index]

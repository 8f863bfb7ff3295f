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
"""Finite automata over tokens: which tokens may stand at a position whose neighbours may be decided or not.

A `Vocabulary` knows the bytes of each token. A `TokenAutomaton` reads tokens instead of bytes; tokens that it cannot
tell apart form a class, so that its table stays small for any vocabulary. Sets of states are Python integers, one bit
a state, and every step over them is remembered. Imported by `answer_layout_dimple` and `structure_prior_dimple`.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedTokenizerBase

from .byte_dfa_dimple import ByteAutomaton

#: Most pairs of a state and a kind of token that are tried for one automaton (two bytes each).
MAX_WALKS = 1 << 27

#: Most bytes of the remembered automata of one vocabulary, with all that they may come to remember themselves.
MAX_AUTOMATA_BYTES = 1 << 27

#: Most remembered steps of one automaton, and as many token sets; more are forgotten at once.
MAX_REMEMBERED = 1 << 12

#: Bytes of an entry of a memory, and of a class's list of tokens, beside what they hold.
ENTRY_BYTES, LIST_BYTES = 256, 112


def remember(memory: dict[Any, Any], key: Any, value: Any, limit: int) -> None:
    """Puts `value` into `memory`, and forgets all else when it holds `limit` entries."""
    if len(memory) >= limit:
        memory.clear()
    memory[key] = value


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE writes a token's bytes as visible characters: printable ones as they are, the others from 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + position): byte for position, byte in enumerate(hidden)
    }


class Vocabulary:
    """
    The tokens of a byte-level BPE tokenizer as bytes, and the automata that were made for them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Needs a mask token, and a padding token: the filler of positions that a slot does not need.
    """

    _known: "WeakKeyDictionary[PreTrainedTokenizerBase, Vocabulary]" = WeakKeyDictionary()

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        for name in ("pad_token_id", "mask_token_id"):
            if getattr(tokenizer, name) is None:
                raise ValueError(f"`tokenizer.{name}` must be set for structure priors (got None)")
        self.filler_id: int = tokenizer.pad_token_id
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
        self._byte_ids = {data[0]: i for i, data in enumerate(self.token_bytes) if data is not None and len(data) == 1}
        self._automata: dict[Any, TokenAutomaton] = {}

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
        normal form C or spells a special token, a token per byte.
        """
        ids = self._encode(text)
        if all(self.token_bytes[i] is not None for i in ids) and self.to_bytes(ids) == text.encode():
            return ids
        return [self._byte_ids[byte] for byte in text.encode()]

    def to_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes that tokens stand for; special tokens, as the filler is one, stand for none."""
        return b"".join(self.token_bytes[i] or b"" for i in ids if i < self.size)

    def automaton(self, key: Any, build: Callable[[], "TokenAutomaton"]) -> "TokenAutomaton":
        """
        The automaton that `build` makes, or made before for the same `key`. Those that were not asked for the longest
        are forgotten first: their sizes differ by five orders of magnitude, so what is bounded is their bytes.
        """
        automaton = self._automata.get(key)
        is_new = automaton is None
        if automaton is None:
            automaton = build()
        # A dict keeps the order in which keys come. Other threads may be here too, so no key is counted on.
        self._automata.pop(key, None)
        self._automata[key] = automaton
        if is_new:
            num_bytes = 0
            for other_key, other in reversed(self._automata.copy().items()):
                num_bytes += other.num_bytes
                if num_bytes > MAX_AUTOMATA_BYTES and other is not automaton:
                    self._automata.pop(other_key, None)
        return automaton


class TokenAutomaton:
    """
    A deterministic automaton over tokens that may be followed by any number of fillers. State 0 is the start.

    Args:
        table (`np.ndarray`):
            int of shape `(num_states, num_classes)`: the next state, -1 where there is none; without the filler.
        token_class (`np.ndarray`):
            int of shape `(vocabulary_size,)`: the class of each token, -1 for those that never occur.
        accepting (`np.ndarray`):
            bool of shape `(num_states,)`: `True` where the content may end.
        filler_id (`int`):
            The filler.
    """

    def __init__(self, table: np.ndarray, token_class: np.ndarray, accepting: np.ndarray, filler_id: int) -> None:
        num_states, num_classes = table.shape
        self.filled = 1 << num_states  # the set of the one state after a filler
        # One more state, after the content; one more class, the filler; one more column, so that -1 finds nothing.
        self._table = np.full((num_states + 1, num_classes + 1), -1, dtype=np.int32)
        self._table[:-1, :-1] = table
        self._table[:, -1] = np.where(np.append(accepting, True), num_states, -1)
        class_type: type = np.int16 if num_classes < 2**15 else np.int32
        self._class: np.ndarray = token_class.astype(class_type)
        self._class[filler_id] = num_classes
        self.vocabulary_size = len(token_class)
        self.num_states = num_states + 1
        self.start = 1
        self.accepting = self._to_set(np.append(accepting, True))
        used = np.flatnonzero(self._class >= 0)
        used = used[np.argsort(self._class[used], kind="stable")]
        borders = np.searchsorted(self._class[used], np.arange(num_classes + 2))
        self._members = [used[low:high] for low, high in zip(borders, borders[1:], strict=False)]  # of each class
        self._sizes = np.diff(borders)
        neighbours = np.zeros((num_states + 1, num_states + 2), dtype=bool)
        neighbours[np.arange(num_states + 1)[:, None], self._table] = True
        self._after = np.packbits(neighbours[:, :-1], axis=1, bitorder="little")
        self._before = np.packbits(neighbours[:, :-1].T, axis=1, bitorder="little")
        self._steps: dict[tuple[str, int, int], int] = {}
        self._allowed: dict[tuple[int, int], bytes] = {}

    @property
    def num_bytes(self) -> int:
        """Memory that it takes when its own memories are full, which it fills as it is used."""
        num_classes = self._table.shape[1]
        arrays = (self._table, self._class, self._sizes, self._after, self._before)
        own = sum(array.nbytes for array in (*arrays, *self._members)) + num_classes * LIST_BYTES
        # A step is a set of states and the one after it; a token set stands after two sets of states.
        entry = 2 * sys.getsizeof(1 << self.num_states) + ENTRY_BYTES
        return own + MAX_REMEMBERED * (2 * entry + num_classes // 8)

    @classmethod
    def from_bytes(cls, automaton: ByteAutomaton, vocabulary: Vocabulary) -> "TokenAutomaton":
        """
        All ways to write the strings of a byte automaton in tokens.

        1. Tokens whose bytes fall into the same columns of the byte table act alike; most are dropped already here,
           for a byte that never occurs.
        2. Walk the byte table from every state over every column sequence.
        3. Sequences that lead everywhere to the same states form a class.

        Raises:
            ValueError: If the automaton and the vocabulary are too large together.
        """
        # 1.
        num_states = len(automaton.table)
        never = np.flatnonzero((automaton.table < 0).all(axis=0)).astype(np.uint8).tobytes()
        unused = bytes(byte for byte in range(256) if automaton.byte_class[byte] in never)
        sequences: dict[bytes, int] = {}
        sequence_of = np.full(vocabulary.size, -1, dtype=np.int32)
        for token_id, data in enumerate(vocabulary.token_bytes):
            if data and len(data.translate(None, unused)) == len(data):
                sequence_of[token_id] = sequences.setdefault(data.translate(automaton.byte_class), len(sequences))
        if len(sequences) * num_states > MAX_WALKS:
            raise ValueError(
                f"the pattern must need fewer states for {vocabulary.size} tokens (it needs {num_states})"
            )
        # 2.
        ordered = sorted(sequences, key=len, reverse=True)
        lengths = np.array([len(sequence) for sequence in ordered])
        columns = np.zeros((len(ordered), int(lengths.max(initial=1))), dtype=np.int64)
        for position, sequence in enumerate(ordered):
            columns[position, : len(sequence)] = np.frombuffer(sequence, dtype=np.uint8)
        table = np.full((num_states + 1, automaton.table.shape[1]), num_states, dtype=np.int16)
        table[:-1] = np.where(automaton.table < 0, num_states, automaton.table)
        reached = np.repeat(np.arange(num_states, dtype=np.int16)[None], len(ordered), axis=0)
        for position in range(columns.shape[1]):
            longer = int((lengths > position).sum())
            reached[:longer] = table[reached[:longer], columns[:longer, position, None]]
        # 3.
        as_keys = np.ascontiguousarray(reached).view(np.dtype((np.void, reached.dtype.itemsize * num_states)))
        _, first, class_of = np.unique(as_keys.reshape(-1), return_index=True, return_inverse=True)
        rows = reached[first]
        possible = (rows < num_states).any(axis=1)
        renumbered = np.where(possible, np.cumsum(possible) - 1, -1)
        class_of_sequence = np.empty(len(ordered) + 1, dtype=np.int32)
        class_of_sequence[[sequences[sequence] for sequence in ordered]] = renumbered[class_of.reshape(-1)]
        class_of_sequence[-1] = -1  # tokens without a sequence
        transitions = np.where(rows < num_states, rows, -1)[possible].T
        return cls(transitions, class_of_sequence[sequence_of], automaton.accepting, vocabulary.filler_id)

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]], vocabulary: Vocabulary) -> "TokenAutomaton":
        """Exactly these token sequences, as a prefix tree."""
        tokens = sorted({token for sequence in sequences for token in sequence})
        token_class = np.full(vocabulary.size, -1, dtype=np.int32)
        token_class[tokens] = np.arange(len(tokens))
        children: list[dict[int, int]] = [{}]
        ends = set()
        for sequence in sequences:
            state = 0
            for token in sequence:
                if token not in children[state]:
                    children[state][token] = len(children)
                    children.append({})
                state = children[state][token]
            ends.add(state)
        table = np.full((len(children), len(tokens)), -1, dtype=np.int32)
        for state, following in enumerate(children):
            for token, target in following.items():
                table[state, token_class[token]] = target
        accepting = np.array([state in ends for state in range(len(children))])
        return cls(table, token_class, accepting, vocabulary.filler_id)

    def after(self, states: int, token: int | None) -> int:
        """The states after `states` when `token` stands between, or any token (`None`)."""
        key = ("after", states, -1 if token is None else self._class_of(token))
        found = self._steps.get(key)
        if found is not None:
            return found
        if token is None:
            found = self._join(self._after, states)
        else:
            targets = self._table[self._indices(states), key[2]] if key[2] >= 0 else np.zeros(0, dtype=np.int32)
            flags = np.zeros(len(self._table) + 1, dtype=bool)
            flags[targets] = True
            found = self._to_set(flags[:-1])
        remember(self._steps, key, found, MAX_REMEMBERED)
        return found

    def before(self, states: int, token: int | None) -> int:
        """The states from which `token`, or any token (`None`), leads to one of `states`."""
        key = ("before", states, -1 if token is None else self._class_of(token))
        found = self._steps.get(key)
        if found is not None:
            return found
        if token is None:
            found = self._join(self._before, states)
        elif key[2] < 0:
            found = 0
        else:
            found = self._to_set(self._flags(states)[self._table[:, key[2]]])
        remember(self._steps, key, found, MAX_REMEMBERED)
        return found

    def allowed(self, before: int, after: int) -> bytes:
        """The tokens that lead from one of `before` to one of `after`, as a key for the methods below."""
        key = (before, after)
        found = self._allowed.get(key)
        if found is None:
            possible = self._flags(after)[self._table[self._indices(before)]].any(axis=0)
            found = np.packbits(possible, bitorder="little").tobytes()
            remember(self._allowed, key, found, MAX_REMEMBERED)
        return found

    def size(self, key: bytes) -> int:
        """How many tokens a token set holds; `key` is what [`~TokenAutomaton.allowed`] returned."""
        return int(self._sizes[self._classes(key)].sum())

    def members(self, key: bytes) -> np.ndarray:
        """The tokens of a token set: int64 of shape `(size,)`."""
        return np.concatenate([self._members[index] for index in np.flatnonzero(self._classes(key))])

    def others(self, key: bytes) -> np.ndarray:
        """The tokens of the tokenizer that are not in a token set: int64 of shape `(vocabulary_size - size,)`."""
        others = [self._members[index] for index in np.flatnonzero(~self._classes(key))]
        return np.concatenate([np.flatnonzero(self._class < 0), *others])

    def holds(self, key: bytes, tokens: np.ndarray) -> np.ndarray:
        """Which of `tokens` are in a token set: bool of the same shape."""
        return np.append(self._classes(key), False)[self._class[tokens]]

    def _classes(self, key: bytes) -> np.ndarray:
        flags = np.unpackbits(np.frombuffer(key, dtype=np.uint8), count=len(self._sizes), bitorder="little")
        return flags.astype(bool)

    def _class_of(self, token: int) -> int:
        # -2 and not -1, which stands for any token.
        return int(self._class[token]) if token < len(self._class) and self._class[token] >= 0 else -2

    def _flags(self, states: int) -> np.ndarray:
        """One bool a state and a last `False`, which index -1 finds."""
        packed = np.frombuffer(states.to_bytes(self._after.shape[1], "little"), dtype=np.uint8)
        flags = np.zeros(len(self._table) + 1, dtype=bool)
        flags[:-1] = np.unpackbits(packed, count=len(self._table), bitorder="little")
        return flags

    def _indices(self, states: int) -> np.ndarray:
        return np.flatnonzero(self._flags(states))

    def _join(self, rows: np.ndarray, states: int) -> int:
        return int.from_bytes(np.bitwise_or.reduce(rows[self._indices(states)], axis=0).tobytes(), "little")

    @staticmethod
    def _to_set(flags: np.ndarray) -> int:
        return int.from_bytes(np.packbits(flags, bitorder="little").tobytes(), "little")

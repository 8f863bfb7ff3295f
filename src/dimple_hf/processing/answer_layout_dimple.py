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
"""Answer canvases: fixed tokens, gaps, and which tokens the gaps can still take, however much of them is decided.

A canvas is a lattice. Its *pieces* each cover a run of positions with one automaton and lead from one node to another;
a path from the first node to the last covers every position that is not fixed exactly once, so alternatives are pieces
side by side. `CanvasConstraint` answers the questions of the denoising loop for a batch of canvases (the contract is
`AnswerConstraint` in the modeling code). Imported by `structure_prior_dimple` and `processing_dimple`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .token_dfa_dimple import TokenAutomaton, Vocabulary, remember

#: Most remembered fillings of one piece; more are forgotten at once.
MAX_FILLINGS = 1 << 10


@dataclass
class Piece:
    """
    A run of positions whose content one automaton accepts.

    Args:
        automaton (`TokenAutomaton`):
            What may stand there, fillers last.
        start, end (`int`):
            First position, and the one after the last.
        entry, exit (`int`):
            Nodes that the piece leads between.
        min_tokens (`int`, *optional*, defaults to 0):
            Positions that must not be fillers.
        label (`tuple`, *optional*):
            Names the content when the answer is read.
    """

    automaton: TokenAutomaton
    start: int
    end: int
    entry: int
    exit: int
    min_tokens: int = 0
    label: tuple[Any, ...] | None = None
    _forward: dict[tuple[int | None, ...], list[int]] = field(default_factory=dict, repr=False)
    _options: dict[tuple[int | None, ...], list[bytes | None]] = field(default_factory=dict, repr=False)

    def _states(self, tokens: tuple[int | None, ...]) -> list[int]:
        """The sets of states before each position and after the last one, given what is decided."""
        states = self._forward.get(tokens)
        if states is None:
            states = [self.automaton.start]
            for position, token in enumerate(tokens):
                following = self.automaton.after(states[-1], token)
                states.append(following & ~self.automaton.filled if position < self.min_tokens else following)
            remember(self._forward, tokens, states, MAX_FILLINGS)
        return states

    def can_hold(self, tokens: tuple[int | None, ...]) -> bool:
        """Whether the positions can still be completed; `tokens` has one entry a position, `None` where masked."""
        return bool(self._states(tokens)[-1] & self.automaton.accepting)

    def options(self, tokens: tuple[int | None, ...]) -> list[bytes | None]:
        """For each position that is masked, a token set of the automaton; else `None`."""
        keys = self._options.get(tokens)
        if keys is None:
            forward, after = self._states(tokens), self.automaton.accepting
            keys = [None] * len(tokens)
            for position in reversed(range(len(tokens))):
                if position < self.min_tokens:
                    after &= ~self.automaton.filled
                if tokens[position] is None:
                    keys[position] = self.automaton.allowed(forward[position], after)
                after = self.automaton.before(after, tokens[position])
            remember(self._options, tokens, keys, MAX_FILLINGS)
        return keys


@dataclass
class Canvas:
    """
    One answer's positions.

    Args:
        vocabulary (`Vocabulary`):
            The tokens.
        ids (`list[int]`):
            Fixed tokens, and the mask token elsewhere.
        pieces (`list[Piece]`):
            Such that pieces that lead to a node stand before those that leave it.
        last_node (`int`):
            Where every path ends; it begins at node 0.
    """

    vocabulary: Vocabulary
    ids: list[int]
    pieces: list[Piece]
    last_node: int

    def live_pieces(self, tokens: Sequence[int | None]) -> list[Piece]:
        """
        The pieces on any path that what is decided leaves open.

        Args:
            tokens (`Sequence[int | None]`):
                One entry a position, `None` where masked.

        Returns:
            `list[Piece]`: In their order. Empty if the answer can no longer be completed, or never needed a piece.
        """
        reached, held = {0}, []
        for piece in self.pieces:
            if piece.entry in reached and piece.can_hold(tuple(tokens[piece.start : piece.end])):
                reached.add(piece.exit)
                held.append(piece)
        leads_on, live = {self.last_node}, []
        for piece in reversed(held):
            if piece.exit in leads_on:
                leads_on.add(piece.entry)
                live.append(piece)
        return live[::-1]

    def can_hold(self, tokens: Sequence[int | None]) -> bool:
        """Whether the gaps can still be completed; `tokens` as in [`~Canvas.live_pieces`]."""
        return not self.pieces or bool(self.live_pieces(tokens))

    def path(self, tokens: Sequence[int]) -> list[Piece]:
        """
        The pieces that a finished answer consists of; where several would do, the first.

        Raises:
            ValueError: If the answer is not one of this canvas.
        """
        fixed = len(tokens) == len(self.ids) and all(
            asked in (token, self.vocabulary.mask_id) for asked, token in zip(self.ids, tokens, strict=True)
        )
        if not fixed or not self.can_hold(tokens):
            raise ValueError("the answer must be a complete filling of the prior's canvas (it is not)")
        node, path = 0, []
        for piece in self.live_pieces(tokens):
            if piece.entry == node:
                path.append(piece)
                node = piece.exit
        return path

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer, or of a part of it, without fillers."""
        return self.vocabulary.to_bytes(tokens).decode()

    def fill(self, text: str) -> list[int]:
        """
        The answer that says `text`: each value in the tokenizer's own tokens, with fillers after it. The inverse of
        [`~Canvas.text`].

        Args:
            text (`str`):
                A text of the canvas's form.

        Returns:
            `list[int]`: One token a position.

        Raises:
            ValueError: If the text does not have the canvas's form, or a value does not fit its positions.
        """
        tokens = self._completion(text, node=0, position=0, offset=0, known={})
        if tokens is None:
            raise ValueError(f"`text` must have the prior's form and fit its positions (got {text!r})")
        return tokens

    def _completion(
        self, text: str, node: int, position: int, offset: int, known: dict[tuple[int, int], list[int] | None]
    ) -> list[int] | None:
        """The tokens from `position` on that say `text[offset:]` on some path from `node`; `None` if there are
        none."""
        if (node, offset) not in known:
            known[node, offset] = None
            leaving = [piece for piece in self.pieces if piece.entry == node]
            end = leaving[0].start if leaving else len(self.ids)
            fixed = self.text(self.ids[position:end])
            if text.startswith(fixed, offset):
                offset_after = offset + len(fixed)
                rest: list[int] | None
                if node == self.last_node:
                    rest = [] if offset_after == len(text) else None
                else:
                    rest = self._first_completion(text, leaving, offset_after, known)
                known[node, offset] = None if rest is None else self.ids[position:end] + rest
        return known[node, offset]

    def _first_completion(
        self, text: str, pieces: list[Piece], offset: int, known: dict[tuple[int, int], list[int] | None]
    ) -> list[int] | None:
        """The first of `pieces` that can say what comes next, as much of it as it can, with what comes after it."""
        for piece in pieces:
            room = piece.end - piece.start
            for stop in range(len(text), offset - 1, -1):
                # The rest first, because most of them fail at once, at the fixed text that they begin with.
                rest = self._completion(text, piece.exit, piece.end, stop, known)
                if rest is None:
                    continue
                value = self.vocabulary.encode(text[offset:stop])
                value += [self.vocabulary.filler_id] * (room - len(value))
                if len(value) == room and piece.can_hold(tuple(value)):
                    return value + rest
        return None


class CanvasConstraint:
    """
    What the denoising loop asks about a batch of canvases.

    It has no state but memory: what a piece allows is computed once for each way in which its positions are decided.

    Args:
        canvases (`Sequence[Canvas | None]`):
            One for each row; `None` for a row that is free.
    """

    def __init__(self, canvases: Sequence[Canvas | None]) -> None:
        self.canvases = list(canvases)
        self._ids: dict[Any, tuple[bool, torch.LongTensor]] = {}

    @property
    def constrained_rows(self) -> torch.BoolTensor:
        """`torch.BoolTensor` of shape `(batch_size,)`: `True` at rows with a canvas, which are filled to the end."""
        return torch.tensor([canvas is not None for canvas in self.canvases])

    def repeat_interleave(self, repeats: int) -> "CanvasConstraint":
        """The constraint of a batch in which each row comes `repeats` times in a row."""
        return CanvasConstraint([canvas for canvas in self.canvases for _ in range(repeats)])

    def mask_logits(
        self,
        rows: torch.LongTensor,
        answer: torch.LongTensor,
        masked: torch.BoolTensor,
        logits: torch.FloatTensor,
        positions: torch.BoolTensor | None = None,
    ) -> torch.FloatTensor:
        """
        Forbids at each position what its row's canvas cannot hold there, given what is decided. In place.

        Args:
            rows (`torch.LongTensor` of shape `(num_rows,)`):
                Which rows of the batch `answer` holds.
            answer (`torch.LongTensor` of shape `(num_rows, answer_length)`):
                Answer tokens.
            masked (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
                `True` where a position is not yet decided.
            logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
                Scores of `positions`, row by row.
            positions (`torch.BoolTensor` of shape `(num_rows, answer_length)`, *optional*):
                `True` at those of the masked positions that this pass can decide; all of them when missing.

        Returns:
            `torch.FloatTensor` of shape `(num_positions, vocab_size)`: `logits`, -inf at what is forbidden.

        Raises:
            ValueError: If an answer can no longer be completed: its tokens do not come from its canvas.
        """
        positions_of: dict[Any, list[int]] = {}  # token sets -> rows of `logits`
        index = 0
        scored = (masked if positions is None else positions).tolist()
        for row, tokens, flags in zip(rows.tolist(), _masked_as_none(answer, masked), scored, strict=True):
            canvas = self.canvases[row]
            present = [position for position, flag in enumerate(flags) if flag]
            if canvas is not None:
                options = self._options(canvas, tokens)
                if not all(options[position] for position, token in enumerate(tokens) if token is None):
                    raise ValueError(
                        "`answer_ids` must be what the processor made with `answer_constraint`, and hooks must keep "
                        f"to it (the answer of row {row} can no longer be completed)"
                    )
                for offset, position in enumerate(present):
                    positions_of.setdefault(tuple(options[position]), []).append(index + offset)
            index += len(present)
        for key, indices in positions_of.items():
            is_sparse, ids = self._written_ids(key, logits.shape[1], logits.device)
            where = torch.tensor(indices, device=logits.device)
            if is_sparse:
                kept = logits[where[:, None], ids]
                logits.index_fill_(0, where, -torch.inf)
                logits[where[:, None], ids] = kept
            else:
                logits[where[:, None], ids] = -torch.inf
        return logits

    def _options(self, canvas: Canvas, tokens: list[int | None]) -> list[list[tuple[TokenAutomaton, bytes]]]:
        """For each position, the token sets that it can choose from: one for each live piece that covers it."""
        options: list[list[tuple[TokenAutomaton, bytes]]] = [[] for _ in tokens]
        for piece in canvas.live_pieces(tokens):
            for offset, key in enumerate(piece.options(tuple(tokens[piece.start : piece.end]))):
                if key is not None:
                    options[piece.start + offset].append((piece.automaton, key))
        return options

    def _written_ids(
        self, key: tuple[tuple[TokenAutomaton, bytes], ...], vocab_size: int, device: torch.device
    ) -> tuple[bool, torch.LongTensor]:
        """
        The tokens of several token sets, or those outside of them, whichever are fewer: of a vocabulary of 152,064,
        writing some ten thousand scores costs a fifth of passing over all. For the same reason nothing here has the
        size of the vocabulary.

        Returns:
            `tuple(bool, torch.LongTensor)`: Whether the tokens are the allowed ones, and the tokens.
        """
        memory_key = (key, vocab_size, device)
        written = self._ids.get(memory_key)
        if written is None:
            (automaton, token_set), *rest = sorted(key, key=lambda item: item[0].size(item[1]), reverse=True)
            is_sparse = 2 * automaton.size(token_set) < vocab_size
            if is_sparse:
                ids = np.concatenate([each.members(other) for each, other in key])  # one may come twice
            else:
                ids = automaton.others(token_set)
                for each, other in rest:
                    ids = ids[~each.holds(other, ids)]
                ids = np.append(ids, np.arange(automaton.vocabulary_size, vocab_size))
            written = (is_sparse, torch.from_numpy(ids[ids < vocab_size]).to(device))
            remember(self._ids, memory_key, written, MAX_FILLINGS)
        return written

    def accept(
        self,
        rows: torch.LongTensor,
        answer: torch.LongTensor,
        masked: torch.BoolTensor,
        proposed: torch.LongTensor,
        chosen: torch.BoolTensor,
        confidence: torch.FloatTensor,
    ) -> torch.BoolTensor:
        """
        Which of the chosen positions can be unmasked together: in the order of confidence, each that still fits the
        ones before. The first always does.

        Args:
            rows, answer, masked:
                As in [`~CanvasConstraint.mask_logits`].
            proposed (`torch.LongTensor` of shape `(num_rows, answer_length)`):
                The token that each masked position would take.
            chosen (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
                `True` at the masked positions to unmask.
            confidence (`torch.FloatTensor` of shape `(num_rows, answer_length)`):
                How sure the model is of each masked position.

        Returns:
            `torch.BoolTensor` of shape `(num_rows, answer_length)`: `chosen` without the positions that must wait.
        """
        order = confidence.masked_fill(~chosen, -torch.inf).sort(dim=1, descending=True, stable=True).indices.tolist()
        wanted, flags = proposed.tolist(), chosen.tolist()
        for i, (row, tokens) in enumerate(zip(rows.tolist(), _masked_as_none(answer, masked), strict=True)):
            canvas = self.canvases[row]
            if canvas is None or not any(flags[i]):
                continue
            together = [wanted[i][position] if flags[i][position] else token for position, token in enumerate(tokens)]
            if canvas.can_hold(together):
                continue
            for position in order[i][: sum(flags[i])]:
                tokens[position] = wanted[i][position]
                if not canvas.can_hold(tokens):
                    tokens[position], flags[i][position] = None, False
        return torch.tensor(flags, device=chosen.device)


def _masked_as_none(answer: torch.LongTensor, masked: torch.BoolTensor) -> list[list[int | None]]:
    return [
        [None if flag else token for token, flag in zip(row, row_flags, strict=True)]
        for row, row_flags in zip(answer.tolist(), masked.tolist(), strict=True)
    ]

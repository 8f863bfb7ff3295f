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
"""Canvases: the positions of an answer, the tokens that each can take, and their consistency.

A canvas is a lattice. Its *segments* each cover a run of positions with one automaton and lead from one node to
another; a path from the first node to the last covers every position that is not fixed exactly once, so alternatives
are segments side by side. `CanvasConstraint` serves the denoising loop for a batch of canvases (the contract is
`AnswerConstraint` in the modeling code).
"""

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .token_automaton_dimple import StateSet, TokenAutomaton, TokenSet
from .vocabulary_dimple import Vocabulary

#: Most bytes of the token ids that a constraint keeps on the device.
MAX_WRITTEN_BYTES = 1 << 28

#: Most remembered states of canvases.
MAX_FILLINGS = 64

Tokens = Sequence[int | None]


@dataclass(eq=False)
class Segment:
    """
    A run of positions whose content one automaton accepts.

    Args:
        automaton (`TokenAutomaton`):
            What may stand there, padding last.
        start, end (`int`):
            First position, and the one after the last.
        entry, exit (`int`):
            Nodes that the segment leads between.
        min_tokens (`int`, *optional*, defaults to 0):
            Positions that must not be padding.
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

    def forward(self, states: StateSet, offset: int, token: int | None) -> StateSet:
        """The states after the position at `offset`."""
        following = self.automaton.after(states, token)
        return self.automaton.unpadded(following, from_left=True) if offset < self.min_tokens else following

    def backward(self, states: StateSet, offset: int, token: int | None) -> StateSet:
        """The states before the position at `offset`."""
        if offset < self.min_tokens:
            states = self.automaton.unpadded(states, from_left=False)
        return self.automaton.before(states, token)

    def can_hold(self, tokens: Tokens) -> bool:
        """Whether the positions can still be completed; `tokens` has one entry a position, `None` where masked."""
        states = self.automaton.start
        for offset, token in enumerate(tokens):
            states = self.forward(states, offset, token)
        is_possible = self.automaton.meet(states, self.automaton.accepting)
        self.automaton.trim()
        return is_possible

    def shortest(self, limit: int) -> int | None:
        """The fewest positions, counted from the canvas's first, that can be completed; `None` if over `limit`."""
        states = self.automaton.start
        for position in range(self.start, limit + 1):
            if self.automaton.meet(states, self.automaton.accepting):
                return position
            following = self.automaton.after(states, None)
            if following is states:
                return None
            states = following
        return None


class _Run:
    """
    One segment's positions: the sets of states before and after each.

    A committed token changes the sets on both of its sides, often up to the ends. They are computed when they are
    read: a denoising step commits many tokens, and reads two sets for each. Until then `stale_left` has, in order, the
    offsets whose set on the right may not follow from the one on the left, and `stale_right` those of the reverse.
    """

    def __init__(self, segment: Segment, tokens: Tokens) -> None:
        self.segment = segment
        self.tokens = list(tokens)
        size = len(self.tokens)
        self.from_left: list[StateSet] = [segment.automaton.start] * (size + 1)
        self.from_right: list[StateSet] = [segment.automaton.accepting] * (size + 1)
        for offset in range(size):
            self.from_left[offset + 1] = segment.forward(self.from_left[offset], offset, self.tokens[offset])
        for offset in reversed(range(size)):
            self.from_right[offset] = segment.backward(self.from_right[offset + 1], offset, self.tokens[offset])
        self.stale_left: list[int] = []
        self.stale_right: list[int] = []
        self.is_possible = segment.automaton.meet(self.from_left[size], segment.automaton.accepting)

    def copy(self) -> "_Run":
        other = object.__new__(_Run)
        other.segment, other.is_possible = self.segment, self.is_possible
        other.tokens = self.tokens.copy()
        other.from_left, other.from_right = self.from_left.copy(), self.from_right.copy()
        other.stale_left, other.stale_right = self.stale_left.copy(), self.stale_right.copy()
        return other

    def before(self, offset: int) -> StateSet:
        """The states, reached from the left, before the position at `offset`."""
        stale = self.stale_left
        while stale and stale[0] < offset:
            index = stale.pop(0)
            states = self.segment.forward(self.from_left[index], index, self.tokens[index])
            if states is not self.from_left[index + 1]:  # else nothing changes up to the next stale one
                self.from_left[index + 1] = states
                if stale[:1] != [index + 1]:
                    stale.insert(0, index + 1)
        return self.from_left[offset]

    def after(self, offset: int) -> StateSet:
        """The states, reached from the right, after the position at `offset`."""
        stale = self.stale_right
        while stale and stale[-1] > offset:
            index = stale.pop()
            states = self.segment.backward(self.from_right[index + 1], index, self.tokens[index])
            if states is not self.from_right[index]:
                self.from_right[index] = states
                if stale[-1:] != [index - 1]:
                    stale.append(index - 1)
        states = self.from_right[offset + 1]
        if offset < self.segment.min_tokens:
            return self.segment.automaton.unpadded(states, from_left=False)
        return states

    def can_take(self, offset: int, token: int) -> bool:
        """Whether the position at `offset` can take `token`."""
        if self.tokens[offset] is not None:
            return self.tokens[offset] == token
        return self.segment.automaton.holds(self.before(offset), self.after(offset), token)

    def commit(self, offset: int, token: int) -> None:
        """Commits `token`, which the position can take."""
        self.tokens[offset] = token
        for stale in (self.stale_left, self.stale_right):
            if offset not in stale:
                insort(stale, offset)


class Filling:
    """
    A canvas with some of its positions committed.

    Args:
        canvas (`Canvas`):
            The positions.
        tokens (`Sequence[int | None]`):
            One entry a position, `None` where masked.
    """

    def __init__(self, canvas: "Canvas", tokens: Tokens) -> None:
        self.canvas = canvas
        self.runs = [_Run(segment, tokens[segment.start : segment.end]) for segment in canvas.segments]
        self._find_live()

    def copy(self) -> "Filling":
        """A filling of its own in the same state."""
        other = object.__new__(Filling)
        other.canvas, other.live = self.canvas, self.live.copy()
        other.runs = [run.copy() for run in self.runs]
        return other

    def _find_live(self) -> None:
        """Which segments are on a path that is still open."""
        reached, leads_on = {0}, {self.canvas.last_node}
        open_runs = []
        for index, run in enumerate(self.runs):
            if run.is_possible and run.segment.entry in reached:
                reached.add(run.segment.exit)
                open_runs.append(index)
        self.live = []
        for index in reversed(open_runs):
            segment = self.runs[index].segment
            if segment.exit in leads_on:
                leads_on.add(segment.entry)
                self.live.append(index)
        self.live.reverse()

    @property
    def is_possible(self) -> bool:
        """Whether the answer can still be completed."""
        return not self.runs or bool(self.live)

    def options(self) -> list[list[TokenSet]]:
        """For each masked position, the token sets that it can choose from: one for each live segment there."""
        options: list[list[TokenSet]] = [[] for _ in self.canvas.ids]
        for index in self.live:
            run = self.runs[index]
            for offset, token in enumerate(run.tokens):
                if token is None:
                    found = run.segment.automaton.allowed(run.before(offset), run.after(offset))
                    options[run.segment.start + offset].append(found)
        return options

    def commit(self, position: int, token: int) -> bool:
        """Commits `token` at a masked position if it fits; returns whether it does."""
        covering = [
            index for index in self.live
            if self.runs[index].segment.start <= position < self.runs[index].segment.end
        ]  # fmt: skip
        taking = {
            index for index in covering
            if self.runs[index].can_take(position - self.runs[index].segment.start, token)
        }  # fmt: skip
        if not taking:
            return False
        for index in covering:
            run = self.runs[index]
            if index in taking:
                run.commit(position - run.segment.start, token)
            else:
                run.is_possible = False
        if len(taking) < len(covering):
            self._find_live()
        return True


@dataclass(eq=False)
class Canvas:
    """
    One answer's positions.

    Args:
        vocabulary (`Vocabulary`):
            The tokens.
        ids (`list[int]`):
            Fixed tokens, and the mask token elsewhere.
        segments (`list[Segment]`):
            Such that segments that lead to a node stand before those that leave it.
        last_node (`int`):
            Where every path ends; it begins at node 0.
    """

    vocabulary: Vocabulary
    ids: list[int]
    segments: list[Segment]
    last_node: int

    def can_hold(self, tokens: Tokens) -> bool:
        """Whether the canvas can still be completed; `tokens` as in [`Filling`]."""
        return Filling(self, tokens).is_possible

    def path(self, tokens: Sequence[int]) -> list[Segment]:
        """
        The segments that a finished answer consists of; where several would do, the first.

        Raises:
            ValueError: If the answer is not one of this canvas.
        """
        is_fixed = len(tokens) == len(self.ids) and all(
            given in (token, self.vocabulary.mask_id) for given, token in zip(self.ids, tokens, strict=True)
        )
        # Segments from the last to the first: which lead to the end with what stands there.
        leads_on, usable = {self.last_node}, []
        for segment in reversed(self.segments if is_fixed else []):
            if segment.exit in leads_on and segment.can_hold(tokens[segment.start : segment.end]):
                leads_on.add(segment.entry)
                usable.append(segment)
        if not is_fixed or 0 not in leads_on:
            raise ValueError("the answer must be a complete filling of the prior's canvas (it is not)")
        node, path = 0, []
        for segment in reversed(usable):
            if segment.entry == node:
                path.append(segment)
                node = segment.exit
        return path

    def text(self, tokens: Sequence[int]) -> str:
        """The text of an answer, or of a part of it, without padding."""
        return self.vocabulary.to_bytes(tokens).decode()

    def fill(self, text: str) -> list[int]:
        """
        The answer that says `text`: each value in the tokenizer's own tokens, with padding after it. The inverse of
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
            leaving = [segment for segment in self.segments if segment.entry == node]
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
        self, text: str, segments: list[Segment], offset: int, known: dict[tuple[int, int], list[int] | None]
    ) -> list[int] | None:
        """The first of `segments` that can say what comes next, as much of it as it can, with what comes after it."""
        for segment in segments:
            size = segment.end - segment.start
            for stop in range(len(text), offset - 1, -1):
                # The rest first, because most of them fail at once, at the fixed text that they begin with.
                rest = self._completion(text, segment.exit, segment.end, stop, known)
                if rest is None:
                    continue
                value = self.vocabulary.encode(text[offset:stop])
                value += [self.vocabulary.pad_id] * (size - len(value))
                if len(value) == size and segment.can_hold(value):
                    return value + rest
        return None


class CanvasConstraint:
    """
    What the denoising loop needs of a batch of canvases: an `AnswerConstraint` of the modeling code, where its methods
    are described. It has no state but memory.

    Args:
        canvases (`Sequence[Canvas | None]`):
            One for each row; `None` for a row that is free.
    """

    def __init__(self, canvases: Sequence[Canvas | None]) -> None:
        self.canvases = list(canvases)
        self._fillings: dict[tuple[Any, ...], Filling] = {}
        self._written: dict[tuple[Any, ...], tuple[bool, torch.LongTensor]] = {}
        self._written_bytes = 0

    @property
    def constrained_rows(self) -> torch.BoolTensor:
        """`AnswerConstraint.constrained_rows`: the rows with a canvas."""
        return torch.tensor([canvas is not None for canvas in self.canvases])

    def repeat_interleave(self, repeats: int) -> "CanvasConstraint":
        """`AnswerConstraint.repeat_interleave`."""
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
        `AnswerConstraint.mask_logits`, in place.

        Raises:
            ValueError: If an answer can no longer be completed: its tokens do not come from its canvas.
        """
        indices_of: dict[tuple[TokenSet, ...], list[int]] = {}  # token sets -> rows of `logits`
        index = 0
        scored = (masked if positions is None else positions).tolist()
        for row, tokens, flags in zip(rows.tolist(), _masked_as_none(answer, masked), scored, strict=True):
            canvas = self.canvases[row]
            present = [position for position, flag in enumerate(flags) if flag]
            if canvas is not None:
                options = self._filling(canvas, tokens).options()
                for position, token in enumerate(tokens):
                    if token is None and not (position < len(options) and options[position]):
                        raise ValueError(
                            "`answer_ids` must be what the processor made with `answer_constraint`, and hooks must "
                            f"keep to it (the answer of row {row} can no longer be completed)"
                        )
                for offset, position in enumerate(present):
                    indices_of.setdefault(tuple(dict.fromkeys(options[position])), []).append(index + offset)
            index += len(present)
        for key, indices in indices_of.items():
            is_allowed, ids = self._written_ids(key, logits.shape[1], logits.device)
            where = torch.tensor(indices, device=logits.device)
            if is_allowed:
                kept = logits[where[:, None], ids]
                logits.index_fill_(0, where, -torch.inf)
                logits[where[:, None], ids] = kept
            else:
                logits[where[:, None], ids] = -torch.inf
        return logits

    def _filling(self, canvas: Canvas, tokens: Tokens) -> Filling:
        """The filling of a row: the loop asks for it twice in a step."""
        key = (canvas, *tokens)
        filling = self._fillings.get(key)
        if filling is None:
            if len(self._fillings) >= MAX_FILLINGS:
                self._fillings.clear()
            for automaton in {segment.automaton for segment in canvas.segments}:
                automaton.trim()
            filling = self._fillings[key] = Filling(canvas, tokens)
        return filling

    def _written_ids(
        self, key: tuple[TokenSet, ...], vocab_size: int, device: torch.device
    ) -> tuple[bool, torch.LongTensor]:
        """
        The tokens of several token sets, or those outside of them, whichever are fewer: of a vocabulary of 152,064,
        writing some ten thousand scores costs a fifth of passing over all.

        Returns:
            `tuple(bool, torch.LongTensor)`: Whether the tokens are the allowed ones, and the tokens.
        """
        memory_key = (key, vocab_size, device)
        written = self._written.get(memory_key)
        if written is None:
            ids = key[0].ids if len(key) == 1 else np.unique(np.concatenate([each.ids for each in key]))
            is_allowed = 2 * len(ids) < vocab_size
            if not is_allowed:
                forbidden = np.ones(vocab_size, dtype=bool)
                forbidden[ids] = False
                ids = np.flatnonzero(forbidden)
            self._written_bytes += ids.nbytes
            if self._written_bytes > MAX_WRITTEN_BYTES:
                self._written.clear()
                self._written_bytes = ids.nbytes
            written = self._written[memory_key] = (is_allowed, torch.from_numpy(ids).to(device))
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
        """`AnswerConstraint.accept`: in the order of confidence, each position that still fits the ones before."""
        order = confidence.masked_fill(~chosen, -torch.inf).sort(dim=1, descending=True, stable=True).indices.tolist()
        wanted, flags = proposed.tolist(), chosen.tolist()
        for i, (row, tokens) in enumerate(zip(rows.tolist(), _masked_as_none(answer, masked), strict=True)):
            canvas, count = self.canvases[row], sum(flags[i])
            if canvas is None or not count:
                continue
            filling = self._filling(canvas, tokens).copy()
            for position in order[i][:count]:
                if canvas.ids[position] == canvas.vocabulary.mask_id:
                    flags[i][position] = filling.commit(position, wanted[i][position])
        return torch.tensor(flags, device=chosen.device)


def _masked_as_none(answer: torch.LongTensor, masked: torch.BoolTensor) -> list[list[int | None]]:
    return [
        [None if flag else token for token, flag in zip(row, row_flags, strict=True)]
        for row, row_flags in zip(answer.tolist(), masked.tolist(), strict=True)
    ]

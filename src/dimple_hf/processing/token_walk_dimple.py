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
"""The tokens that lead from state to state of a network, found for all states at once.

The network is put into arrays. A walk then goes down the prefix tree of the tokens a level at a time, with all states
from which tokens begin side by side, so that its cost is in numpy and not in a loop over states.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from .byte_dfa_dimple import ByteDFA
from .byte_nfa_dimple import ByteNFA, TooLargeError
from .vocabulary_dimple import RESTS, TOKENS, TokenTree, ranges

#: Most transitions of one automaton.
MAX_TRANSITIONS = 2_000_000

#: The states in which the answer is complete, and in which padding has begun.
END, PADDED = 0, 1


@dataclass(frozen=True, eq=False)
class Steps:
    """
    What tokens do.

    Args:
        origin, token, state, count (`np.ndarray`):
            int32 (`count`: int16) of shape `(num_steps,)`: where a token began, its number in the tree, the state that
            it leads to, and how many characters of that state's segment it has begun.
    """

    origin: np.ndarray
    token: np.ndarray
    state: np.ndarray
    count: np.ndarray

    def __getitem__(self, kept: np.ndarray) -> "Steps":
        """Some of them."""
        return Steps(self.origin[kept], self.token[kept], self.state[kept], self.count[kept])

    def sorted_by_origin(self, num_origins: int) -> tuple["Steps", np.ndarray]:
        """The same in the order of the origins, and where those of each origin begin, with the end of the last."""
        order = np.argsort(self.origin, kind="stable")
        borders = np.searchsorted(self.origin[order], np.arange(num_origins + 1))
        return self[order], borders


class _Begins(NamedTuple):
    """
    Where walks go on.

    Args:
        origins, states, tree_nodes (`np.ndarray`):
            int32 of shape `(num_begins,)`: where a token began, the present state, and the present node of the tree.
    """

    origins: np.ndarray
    states: np.ndarray
    tree_nodes: np.ndarray


class _Copy(NamedTuple):
    """Another network inside a network: its first state and exit there, and the states that replace its end."""

    other: "FlatNFA"
    first: int
    first_exit: int
    after: np.ndarray


class FlatNFA:
    """
    A network in arrays. A node with bytes is one state; a text has a state for each of its bytes, a segment one for
    each of its automaton, a copy of another network one for each of that network.

    Args:
        nfa (`ByteNFA`):
            The network.
        start (`int`):
            The node to begin in.

    Attributes:
        num_states (`int`): Number of states, with `END` and `PADDED`.
        starts (`tuple[int, ...]`): The states to begin in.
        nodes (`np.ndarray`): int32 of shape `(num_nodes,)`: the states with bytes of their own, outside segments.
        dfas (`list[ByteDFA]`): The automata of segments.
        dfa, base, limit, exit_number (`np.ndarray`):
            int32 (`limit`: int16) of shape `(num_segments,)`: the number of each segment's automaton, its first state,
            its most characters, and how it goes on: segments of one number go on alike.
        exit_first, exit_state (`np.ndarray`):
            int32 of shape `(num_exits + 1,)` and `(num_exit_states,)`: the states after segments of number `n` are
            `exit_state[exit_first[n] : exit_first[n + 1]]`.
    """

    def __init__(self, nfa: ByteNFA, start: int) -> None:
        self.nfa = nfa
        self.num_states = 2
        self._state_of: dict[int, int] = {nfa.end: END}  # of a text, segment or copy, its first
        self._states_at: dict[int, tuple[int, ...]] = {}
        self._queue: list[int] = []
        self.dfas: list[ByteDFA] = []
        self._dfa_number: dict[ByteDFA, int] = {}
        # Sources, bytes and targets of transitions; automata, first states, most characters and exits of segments;
        # numbers and states of exits.
        self._edges: list[tuple[np.ndarray, ...]] = []
        self._segments: list[tuple[np.ndarray, ...]] = []
        self._exits: list[tuple[np.ndarray, ...]] = []
        self.num_exits = 0
        self._copies: list[_Copy] = []
        self._walked: WeakKeyDictionary[TokenTree, tuple[Steps, _Begins]] = WeakKeyDictionary()
        self.starts = self.states_at(start)
        self._read()
        self._sort_edges()
        self._find_insides()

    def states_at(self, node: int) -> tuple[int, ...]:
        """The states that can be reached from a node without a byte."""
        found = self._states_at.get(node)
        if found is None:
            nfa = self.nfa
            states: list[int] = []
            for core in (node,) if nfa.edges[node] or node in nfa.text_of else nfa.cores(node):
                first = self._number(core)
                block = nfa.block_of.get(core)
                states += (
                    [first] if block is None else [first + start - 2 for start in flat(block.nfa, block.start).starts]
                )
            found = self._states_at[node] = tuple(states)
        return found

    def _number(self, core: int) -> int:
        """The state of a node with something to do; new ones are numbered and queued."""
        number = self._state_of.get(core)
        if number is None:
            number = self._state_of[core] = self.num_states
            if (text := self.nfa.text_of.get(core)) is not None:
                self.num_states += len(text.data)
            elif (segment := self.nfa.segment_of.get(core)) is not None:
                self.num_states += len(segment.dfa.table)
            elif (block := self.nfa.block_of.get(core)) is not None:
                self.num_states += flat(block.nfa, block.start).num_states - 2
            else:
                self.num_states += 1
            self._queue.append(core)
        return number

    def _read(self) -> None:
        """The transitions and segments of all nodes; finds the other nodes on the way."""
        sources: list[int] = []
        bytes_of: list[int] = []
        targets: list[int] = []
        segments: list[tuple[int, int, int, int]] = []
        exits: list[tuple[int, int]] = []
        number_of: dict[int, int] = {}
        for core in self._queue:  # grows meanwhile
            state = self._state_of[core]
            if (text := self.nfa.text_of.get(core)) is not None:
                after, num_inner = self.states_at(text.target), len(text.data) - 1
                sources += (*range(state, state + num_inner), *(state + num_inner,) * len(after))
                bytes_of += text.data[:-1] + text.data[-1:] * len(after)
                targets += (*range(state + 1, state + num_inner + 1), *after)
            elif (segment := self.nfa.segment_of.get(core)) is not None:
                if segment.target not in number_of:
                    number_of[segment.target] = self.num_exits
                    exits += [(self.num_exits, after) for after in self.states_at(segment.target)]
                    self.num_exits += 1
                dfa = self._number_of_dfa(segment.dfa)
                segments.append((dfa, state, segment.max_chars, number_of[segment.target]))
            elif (block := self.nfa.block_of.get(core)) is not None:
                self._copy(flat(block.nfa, block.start), state, np.array(self.states_at(block.target), dtype=np.int32))
            else:
                for byte, target in self.nfa.edges[core]:
                    after = self.states_at(target)
                    sources += (state,) * len(after)
                    bytes_of += (byte,) * len(after)
                    targets += after
        self._edges.append(tuple(np.array(column, dtype=np.int32) for column in (sources, bytes_of, targets)))
        self._segments.append(tuple(np.array(segments, dtype=np.int32).reshape(-1, 4).T))
        self._exits.append(tuple(np.array(exits, dtype=np.int32).reshape(-1, 2).T))

    def _number_of_dfa(self, dfa: ByteDFA) -> int:
        number = self._dfa_number.get(dfa)
        if number is None:
            number = self._dfa_number[dfa] = len(self.dfas)
            self.dfas.append(dfa)
        return number

    def _copy(self, other: "FlatNFA", first: int, after: np.ndarray) -> None:
        """All of another network, its states numbered from `first` on; `after`: the states that replace its end."""

        def renumbered(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """The states of the copy, and which of `states` each of them stands for."""
            is_end = states == END
            index = np.repeat(np.arange(len(states)), np.where(is_end, len(after), 1))
            new = states[index] + np.int32(first - 2)
            new[is_end[index]] = np.tile(after, is_end.sum())
            return new, index

        targets, index = renumbered(other._edge_target)
        self._edges.append((other._edge_source[index] + np.int32(first - 2), other._edge_byte[index], targets))
        numbers = np.array([self._number_of_dfa(dfa) for dfa in other.dfas], dtype=np.int32)
        exits = other.exit_number + np.int32(self.num_exits)
        self._segments.append((numbers[other.dfa], other.base + np.int32(first - 2), other.limit, exits))
        states, index = renumbered(other.exit_state)
        self._exits.append((other._exit_of[index] + np.int32(self.num_exits), states))
        self._copies.append(_Copy(other, first, self.num_exits, after))
        self.num_exits += other.num_exits

    def _sort_edges(self) -> None:
        """Puts what was found into the order of states, segments and exits."""
        source, byte, target = (np.concatenate(parts) for parts in zip(*self._edges, strict=True))
        order = np.argsort(source, kind="stable")
        self._edge_source, self._edge_byte, self._edge_target = source[order], byte[order], target[order]
        counts = np.bincount(source, minlength=self.num_states)
        self._edge_first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.nodes = np.flatnonzero(counts).astype(np.int32)
        columns = [np.concatenate(parts) for parts in zip(*self._segments, strict=True)]
        self.dfa, self.base, limit, self.exit_number = (column.astype(np.int32) for column in columns)
        self.limit = limit.astype(np.int16)
        number, state = (np.concatenate(parts) for parts in zip(*self._exits, strict=True))
        order = np.argsort(number, kind="stable")
        self._exit_of, self.exit_state = number[order], state[order]
        self.exit_first = np.searchsorted(self._exit_of, np.arange(self.num_exits + 1)).astype(np.int32)

    def _find_insides(self) -> None:
        """Of all states inside segments, the rows of their tables, one after the other."""
        dfas = self.dfas
        heights, widths = np.array([dfa.table.shape for dfa in dfas], dtype=np.int32).reshape(-1, 2).T
        self._tables = np.concatenate([dfa.table.reshape(-1) for dfa in dfas] or [np.zeros(0, dtype=np.int32)])
        self._columns = np.stack([dfa.column for dfa in dfas] or [np.zeros(256, dtype=np.uint8)]).astype(np.int32)
        is_char_start = np.concatenate([dfa.is_char_start for dfa in dfas] or [np.zeros(0, dtype=bool)])
        accepting = np.concatenate([dfa.accepting for dfa in dfas] or [np.zeros(0, dtype=bool)])
        is_quoted = np.array([dfa.is_quoted for dfa in dfas], dtype=bool)
        first_row, first_cell = np.cumsum(heights) - heights, np.cumsum(heights * widths) - heights * widths
        # Each state: its segment, and its number in the segment's automaton.
        first = np.zeros(len(self.dfa), dtype=np.int32)
        segment, inner = ranges(first, heights[self.dfa])
        states, dfa = self.base[segment] + inner, self.dfa[segment]
        self._segment_of = np.full(self.num_states, -1, dtype=np.int32)
        self._row = np.zeros(self.num_states, dtype=np.int32)
        self._begins_char = np.zeros(self.num_states, dtype=np.int16)
        self._may_end = np.zeros(self.num_states, dtype=bool)  # at a quotation mark
        self._may_go_on = np.zeros(self.num_states, dtype=bool)  # without any byte
        self._segment_of[states] = segment
        self._row[states] = first_cell[dfa] + widths[dfa] * inner
        self._begins_char[states] = is_char_start[first_row[dfa] + inner]
        may_end = accepting[first_row[dfa] + inner]
        self._may_end[states] = may_end & is_quoted[dfa]
        self._may_go_on[states] = may_end & ~is_quoted[dfa]

    @property
    def free_ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The states in which a segment may end without a byte, and those that are reached by that, pair by pair."""
        states = np.flatnonzero(self._may_go_on)
        index, out = self._exits_of(self._segment_of[states])
        return states[index], self.exit_state[out]

    def _exits_of(self, segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of which of `segments` each exit is, and its number in `exit_state`."""
        number = self.exit_number[segments]
        return ranges(self.exit_first[number], self.exit_first[number + 1])

    def walk(self, tree: TokenTree) -> tuple[Steps, _Begins]:
        """
        Goes down a tree of tokens and through the network at once, from all nodes and exits.

        Args:
            tree (`TokenTree`):
                Tokens, and rests of tokens.

        Returns:
            `tuple`: The steps of every token from every node, and of every rest from every exit: the origin of exit
            number `n` is `num_states + n`. And what reaches the end, where tokens go on if the network is copied.

        Raises:
            TooLargeError: If there are more than `MAX_TRANSITIONS`.
        """
        is_own_state, is_own_exit = np.ones(self.num_states, dtype=bool), np.ones(self.num_exits, dtype=bool)
        found: list[Steps] = []
        begins: list[_Begins] = []
        num_found = 0
        for copy in self._copies:
            is_own_state[copy.first : copy.first + copy.other.num_states - 2] = False
            is_own_exit[copy.first_exit : copy.first_exit + copy.other.num_exits] = False
            inside, leaving = copy.other._walk_inside(tree)
            num_found += len(inside.origin)
            if num_found > MAX_TRANSITIONS:
                raise TooLargeError(f"the answer must need at most {MAX_TRANSITIONS} transitions (it needs more)")
            state = inside.state + np.int32(copy.first - 2)
            found.append(Steps(self._origins_in(copy, inside.origin), inside.token, state, inside.count))
            origins = np.repeat(self._origins_in(copy, leaving.origins), len(copy.after))
            tree_nodes = np.repeat(leaving.tree_nodes, len(copy.after))
            begins.append(_Begins(origins, np.tile(copy.after, len(leaving.origins)), tree_nodes))
        nodes, exits = self.nodes[is_own_state[self.nodes]], np.flatnonzero(is_own_exit[self._exit_of])
        begins.append(_Begins(nodes, nodes, np.full_like(nodes, TOKENS)))
        origins = self._exit_of[exits] + np.int32(self.num_states)
        begins.append(_Begins(origins, self.exit_state[exits], np.full_like(origins, RESTS)))
        steps, ends = self._descend(tree, _Begins(*map(np.concatenate, zip(*begins, strict=True))), num_found)
        columns = [(one.origin, one.token, one.state, one.count) for one in (*found, steps)]
        return Steps(*map(np.concatenate, zip(*columns, strict=True))), ends

    def _origins_in(self, copy: _Copy, origins: np.ndarray) -> np.ndarray:
        """Origins in another network as those of its copy."""
        shift_of_exits = self.num_states + copy.first_exit - copy.other.num_states
        is_state = origins < copy.other.num_states
        return np.asarray(origins + np.where(is_state, copy.first - 2, shift_of_exits).astype(np.int32))

    def _walk_inside(self, tree: TokenTree) -> tuple[Steps, _Begins]:
        """The steps of [`~FlatNFA.walk`] that do not leave the network, and where tokens leave it; found once."""
        found = self._walked.get(tree)
        if found is None:
            steps, ends = self.walk(tree)
            found = self._walked[tree] = steps[steps.state != END], ends
        return found

    def _descend(self, tree: TokenTree, begins: _Begins, num_found: int) -> tuple[Steps, _Begins]:
        """
        Steps from some begins, and what reaches the end, where tokens go on if the network is copied. `num_found`:
        steps that count towards `MAX_TRANSITIONS` already.
        """
        origins, states, tree_nodes = begins
        counts = np.zeros(len(states), dtype=np.int16)
        found = [(origins[:0], states[:0], states[:0], counts[:0])]
        ended = []
        while True:
            is_end = states == END
            ended.append(_Begins(origins[is_end], states[is_end], tree_nodes[is_end]))
            is_final = tree.token[tree_nodes] != -1
            if is_final.any():
                found.append((origins[is_final], tree.token[tree_nodes[is_final]], states[is_final], counts[is_final]))
                num_found += len(found[-1][0])
            if num_found + len(states) > MAX_TRANSITIONS:
                raise TooLargeError(f"the answer must need at most {MAX_TRANSITIONS} transitions (it needs more)")
            if not len(states):
                ends = _Begins(*map(np.concatenate, zip(*ended, strict=True)))
                return Steps(*map(np.concatenate, zip(*found, strict=True))), ends
            ways = [*self._from_nodes(tree, tree_nodes, states), *self._inside(tree, tree_nodes, states, counts)]
            index, tree_nodes, states, counts = (np.concatenate(column) for column in zip(*ways, strict=True))
            origins = origins[index]

    def _from_nodes(
        self, tree: TokenTree, tree_nodes: np.ndarray, states: np.ndarray
    ) -> Iterable[tuple[np.ndarray, ...]]:
        """One more byte of states that are nodes: the index of each, where it is in the tree, state, characters."""
        index, edge = ranges(self._edge_first[states], self._edge_first[states + 1])
        child = tree.children(tree_nodes[index], self._edge_byte[edge])
        kept = np.flatnonzero(child >= 0)
        yield index[kept], child[kept], self._edge_target[edge[kept]], np.zeros(len(kept), dtype=np.int16)

    def _inside(
        self, tree: TokenTree, tree_nodes: np.ndarray, states: np.ndarray, counts: np.ndarray
    ) -> Iterable[tuple[np.ndarray, ...]]:
        """The same of states inside segments: where they stay there, and where their segment ends."""
        inside = np.flatnonzero(self._segment_of[states] >= 0)
        if not len(inside):
            return
        index, child = ranges(tree.first_child[tree_nodes[inside]], tree.first_child[tree_nodes[inside] + 1])
        index = inside[index]
        state, byte = states[index], tree.byte[child]
        segment = self._segment_of[state]
        following = self._tables[self._row[state] + self._columns[self.dfa[segment], byte]]
        count = counts[index] + self._begins_char[state]
        stays = (following >= 0) & (count <= self.limit[segment])
        reached = self.base[segment] + np.maximum(following, 0)
        yield index[stays], child[stays], reached[stays], count[stays]
        ends = np.flatnonzero((~stays & (byte == 0x22) & self._may_end[state]) | (stays & self._may_go_on[reached]))
        which, out = self._exits_of(segment[ends])
        ends = ends[which]
        yield index[ends], child[ends], self.exit_state[out], np.zeros(len(ends), dtype=np.int16)


@lru_cache(maxsize=64)
def flat(nfa: ByteNFA, start: int) -> FlatNFA:
    """A network in arrays, for copies of it; made once."""
    return FlatNFA(nfa, start)

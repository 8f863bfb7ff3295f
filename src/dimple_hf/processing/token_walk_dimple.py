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

import numpy as np

from .byte_nfa_dimple import ByteNFA, Segment, TooLargeError
from .vocabulary_dimple import TokenTree, ranges

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


class FlatNFA:
    """
    A network in arrays. A node with bytes is one state; a text has a state for each of its bytes, a segment one for
    each of its automaton.

    Args:
        nfa (`ByteNFA`):
            The network.
        start (`int`):
            The node to begin in.

    Attributes:
        num_states (`int`): Number of states, with `END` and `PADDED`.
        starts (`tuple[int, ...]`): The states to begin in.
        nodes (`np.ndarray`): int32 of shape `(num_nodes,)`: the states with bytes of their own, outside segments.
        segments (`list[Segment]`), bases (`list[int]`): The segments, and the first state of each.
    """

    def __init__(self, nfa: ByteNFA, start: int) -> None:
        self.nfa = nfa
        self.num_states = 2
        self.segments: list[Segment] = []
        self.bases: list[int] = []
        self._state_of: dict[int, int] = {nfa.end: END}  # of a segment, its first
        self._states_at: dict[int, tuple[int, ...]] = {}
        self._queue: list[int] = []
        self.starts = self.states_at(start)
        self._read_nodes()
        self._read_segments()

    def states_at(self, node: int) -> tuple[int, ...]:
        """The states that can be reached from a node without a byte."""
        found = self._states_at.get(node)
        if found is None:
            cores = (node,) if self.nfa.edges[node] or node in self.nfa.text_of else self.nfa.cores(node)
            found = self._states_at[node] = tuple(map(self._number, cores))
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
            else:
                self.num_states += 1
            self._queue.append(core)
        return number

    def _read_nodes(self) -> None:
        """The bytes of all states that are nodes; finds the other states on the way."""
        nodes: list[int] = []
        sizes: list[int] = []
        bytes_of: list[int] = []
        targets: list[int] = []
        exits: list[int] = []
        exit_counts: list[int] = []
        for core in self._queue:  # grows meanwhile
            state = self._state_of[core]
            if (text := self.nfa.text_of.get(core)) is not None:
                after, num_inner = self.states_at(text.target), len(text.data) - 1
                nodes += range(state, state + num_inner + 1)
                sizes += (1,) * num_inner + (len(after),)
                bytes_of += text.data[:-1] + text.data[-1:] * len(after)
                targets += range(state + 1, state + num_inner + 1)
                targets += after
                continue
            if (segment := self.nfa.segment_of.get(core)) is not None:
                after = self.states_at(segment.target)
                self.segments.append(segment)
                self.bases.append(state)
                exits += after
                exit_counts.append(len(after))
                continue
            num_before = len(targets)
            for byte, target in self.nfa.edges[core]:
                after = self.states_at(target)
                targets += after
                bytes_of += [byte] * len(after)
            nodes.append(state)
            sizes.append(len(targets) - num_before)
        self.nodes = np.array(nodes, dtype=np.int32)
        self._edge_first = np.zeros(self.num_states + 1, dtype=np.int32)
        self._edge_first[self.nodes + 1] = sizes
        np.cumsum(self._edge_first, out=self._edge_first)
        self._edge_byte = np.array(bytes_of, dtype=np.int32)
        self._edge_target = np.array(targets, dtype=np.int32)
        self._exit_state = np.array(exits, dtype=np.int32)
        self._exit_first = np.concatenate([[0], np.cumsum(exit_counts, dtype=np.int64)])

    def _read_segments(self) -> None:
        """Of all states inside segments, the rows of their tables, one after the other."""
        dfas = {segment.dfa: 0 for segment in self.segments}
        offset = 0
        for dfa in dfas:
            dfas[dfa] = offset
            offset += dfa.table.size
        self._tables = np.concatenate([dfa.table.reshape(-1) for dfa in dfas] or [np.zeros(0, dtype=np.int32)])
        self._columns = np.stack([dfa.column for dfa in dfas] or [np.zeros(256, dtype=np.uint8)]).astype(np.int32)
        index_of = {dfa: index for index, dfa in enumerate(dfas)}
        self._segment_of = np.full(self.num_states, -1, dtype=np.int32)
        self._row = np.zeros(self.num_states, dtype=np.int32)
        self._begins_char = np.zeros(self.num_states, dtype=np.int16)
        self._may_end = np.zeros(self.num_states, dtype=bool)  # at a quotation mark
        self._may_go_on = np.zeros(self.num_states, dtype=bool)  # without any byte
        for index, (segment, base) in enumerate(zip(self.segments, self.bases, strict=True)):
            dfa = segment.dfa
            height, width = dfa.table.shape
            inside = slice(base, base + height)
            self._segment_of[inside] = index
            self._row[inside] = dfas[dfa] + width * np.arange(height)
            self._begins_char[inside] = dfa.is_char_start
            (self._may_end if dfa.is_quoted else self._may_go_on)[inside] = dfa.accepting
        self._base = np.array(self.bases, dtype=np.int32)
        self._limit = np.array([segment.max_chars for segment in self.segments], dtype=np.int16)
        self._dfa = np.array([index_of[segment.dfa] for segment in self.segments], dtype=np.int32)

    @property
    def free_ends(self) -> tuple[np.ndarray, np.ndarray]:
        """The states in which a segment may end without a byte, and those that are reached by that, pair by pair."""
        states = np.flatnonzero(self._may_go_on)
        segment = self._segment_of[states]
        index, out = ranges(self._exit_first[segment], self._exit_first[segment + 1])
        return states[index], self._exit_state[out]

    def walk(self, tree: TokenTree, origins: np.ndarray, states: np.ndarray, tree_nodes: np.ndarray) -> Steps:
        """
        Goes down a tree of tokens and through the network at once.

        Args:
            tree (`TokenTree`):
                Tokens, and rests of tokens.
            origins, states, tree_nodes (`np.ndarray`):
                int32 of shape `(num_begins,)`: what each beginning is called, its state, and its node in the tree.

        Returns:
            [`Steps`]: Of every token or rest that can begin so.

        Raises:
            TooLargeError: If there are more than `MAX_TRANSITIONS`.
        """
        counts = np.zeros(len(states), dtype=np.int16)
        found = [(origins[:0], states[:0], states[:0], counts[:0])]
        num_found = 0
        while True:
            is_final = tree.token[tree_nodes] != -1
            if is_final.any():
                found.append((origins[is_final], tree.token[tree_nodes[is_final]], states[is_final], counts[is_final]))
                num_found += len(found[-1][0])
            if num_found + len(states) > MAX_TRANSITIONS:
                raise TooLargeError(f"the answer must need at most {MAX_TRANSITIONS} transitions (it needs more)")
            if not len(states):
                return Steps(*map(np.concatenate, zip(*found, strict=True)))
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
        following = self._tables[self._row[state] + self._columns[self._dfa[segment], byte]]
        count = counts[index] + self._begins_char[state]
        stays = (following >= 0) & (count <= self._limit[segment])
        reached = self._base[segment] + np.maximum(following, 0)
        yield index[stays], child[stays], reached[stays], count[stays]
        ends = np.flatnonzero((~stays & (byte == 0x22) & self._may_end[state]) | (stays & self._may_go_on[reached]))
        which, out = ranges(self._exit_first[segment[ends]], self._exit_first[segment[ends] + 1])
        ends = ends[which]
        yield index[ends], child[ends], self._exit_state[out], np.zeros(len(ends), dtype=np.int16)

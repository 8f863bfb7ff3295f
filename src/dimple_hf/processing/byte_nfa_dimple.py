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
"""The byte automaton of a whole answer: fixed text, strings and numbers, joined.

It is built from its end to its beginning, so that alternatives share what follows them, and equal parts with the same
continuation are one. Strings and numbers stand in it as *segments*: an automaton of their content, a most number of
characters, and where to go on after them. A network that comes often stands in it as *blocks*:
copies that are not written out.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from os.path import commonprefix

from .byte_dfa_dimple import ByteDFA

#: Most nodes of one answer, the states of its segments included.
MAX_NODES = 25_000

#: More characters than any segment is asked to count.
UNCOUNTED = 30_000


class TooLargeError(ValueError):
    """An answer that needs too many states or transitions."""


@dataclass(frozen=True, eq=False)
class Segment:
    """
    A text inside a network.

    Args:
        dfa (`ByteDFA`):
            What it may be. If it is not quoted, what follows begins where it may end.
        max_chars (`int`):
            Its most characters, where `dfa` does not count them; at most `UNCOUNTED`.
        target (`int`):
            The node after it.
    """

    dfa: ByteDFA
    max_chars: int
    target: int


@dataclass(frozen=True, eq=False)
class Text:
    """
    Fixed text inside a network.

    Args:
        data (`bytes`):
            The text; not empty.
        target (`int`):
            The node after it.
    """

    data: bytes
    target: int


@dataclass(frozen=True, eq=False)
class Block:
    """
    A copy of another network inside a network.

    Args:
        nfa (`ByteNFA`):
            The other network.
        start (`int`):
            Its node to begin in, from which its end cannot be reached without a byte.
        target (`int`):
            The node after the copy.
    """

    nfa: "ByteNFA"
    start: int
    target: int


class ByteNFA:
    """
    Nodes with byte transitions, free transitions (taken without a byte), fixed texts, segments and copies of other
    networks.

    Each method takes the node to end in and returns the node to begin in.

    Args:
        max_nodes (`int`, *optional*):
            Most nodes, those inside its texts, segments and copies included.

    Raises:
        TooLargeError: From its methods, if it gets more.
    """

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self.max_nodes = max_nodes
        self.edges: list[tuple[tuple[int, int], ...]] = []  # of each node: bytes, and the nodes after them
        self.free: dict[int, tuple[int, ...]] = {}
        self.text_of: dict[int, Text] = {}
        self.segment_of: dict[int, Segment] = {}
        self.block_of: dict[int, Block] = {}
        self._branches: dict[tuple[tuple[int, int], ...], int] = {}
        self._shared: dict[tuple[object, ...], int] = {}
        self._num_inner_states = 0
        self.end = self._node()

    @property
    def size(self) -> int:
        """Its nodes, and those inside its texts, segments and copies."""
        return len(self.edges) + self._num_inner_states

    def _node(self, edges: tuple[tuple[int, int], ...] = ()) -> int:
        if self.size > self.max_nodes:
            raise TooLargeError(f"the answer must need at most {self.max_nodes} states (it needs more)")
        self.edges.append(edges)
        return len(self.edges) - 1

    def placeholder(self) -> int:
        """A node whose free transitions are set later by `close`: for loops."""
        return self._node()

    def close(self, node: int, targets: Iterable[int]) -> None:
        """Sets the free transitions of a placeholder."""
        self.free[node] = tuple(targets)

    def branch(self, edges: tuple[tuple[int, int], ...]) -> int:
        """One byte of any of `(byte, target)`, sorted."""
        node = self._branches.get(edges)
        if node is None:
            node = self._branches[edges] = self._node(edges)
        return node

    def literal(self, data: bytes, target: int) -> int:
        """Exactly these bytes."""
        if not data:
            return target
        key = ("text", data, target)
        if key not in self._shared:
            self._num_inner_states += len(data) - 1
            self._shared[key] = node = self._node()
            self.text_of[node] = Text(data, target)
        return self._shared[key]

    def literals(self, texts: Iterable[bytes], target: int) -> int:
        """Any of these byte strings, as a prefix tree that shares its endings."""
        texts = sorted(set(texts))
        prefix = texts[0][: len(commonprefix(texts))]
        if len(texts) == 1:
            return self.literal(prefix, target)
        may_end, size = texts[0] == prefix, len(prefix)
        below: dict[int, list[bytes]] = {}
        for text in texts[may_end:]:
            below.setdefault(text[size], []).append(text[size + 1 :])
        node = self.branch(tuple((byte, self.literals(rests, target)) for byte, rests in below.items()))
        return self.literal(prefix, self.either((node, target)) if may_end else node)

    def either(self, nodes: Iterable[int]) -> int:
        """Any of `nodes`."""
        nodes = tuple(dict.fromkeys(nodes))
        if len(nodes) == 1:
            return nodes[0]
        key = ("either", nodes)
        if key not in self._shared:
            self._shared[key] = node = self._node()
            self.free[node] = nodes
        return self._shared[key]

    def segment(self, dfa: ByteDFA, max_chars: int | None, target: int) -> int:
        """A text, as a segment."""
        key = ("segment", dfa, max_chars, target)
        if key not in self._shared:
            self._num_inner_states += len(dfa.table)
            most = UNCOUNTED if max_chars is None else min(max_chars, UNCOUNTED)
            self._shared[key] = node = self._node()
            self.segment_of[node] = Segment(dfa, most, target)
        return self._shared[key]

    def block(self, nfa: "ByteNFA", start: int, target: int) -> int:
        """A copy of another network; see [`Block`]."""
        key = ("block", nfa, target)
        if key not in self._shared:
            self._num_inner_states += nfa.size
            self._shared[key] = node = self._node()
            self.block_of[node] = Block(nfa, start, target)
        return self._shared[key]

    def cores(self, node: int) -> list[int]:
        """The nodes that can be reached without a byte and have something to do: with content, or the end."""
        seen, stack, found = {node}, [node], []
        while stack:
            current = stack.pop()
            segment = self.segment_of.get(current)
            has_content = self.edges[current] or current in self.text_of or current in self.block_of
            if has_content or segment is not None or current == self.end:
                found.append(current)
            is_optional = segment is not None and not segment.dfa.is_quoted and segment.dfa.accepting[0]
            for target in (*self.free.get(current, ()), *((segment.target,) if segment and is_optional else ())):
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return found

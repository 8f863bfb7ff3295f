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
"""The network of an answer: its parts joined, from its end to its beginning."""

from collections.abc import Hashable

from .answer_parts_dimple import Alternation, Choices, Concat, FreeValue, Literal, Members, Part, Repeat, ValueSlot
from .byte_dfa_dimple import written
from .byte_nfa_dimple import ByteNFA, TooLargeError


def fits(part: Part, max_states: int) -> bool:
    """Whether the network of a part has at most so many states; it is made until it has more."""
    nfa = ByteNFA(max_states)
    try:
        NetworkBuilder(nfa).build(part, nfa.end)
    except TooLargeError:
        return False
    return True


#: Networks of free values, and the nodes that they begin in, by the keys of the parts.
_FREE_NETWORKS: dict[Hashable, tuple[ByteNFA, int]] = {}

#: Most of them that are remembered; then all are forgotten.
_MAX_FREE_NETWORKS = 64


def _network_of(part: FreeValue) -> tuple[ByteNFA, int]:
    """The network of a free value, made once, and the node to begin in."""
    found = _FREE_NETWORKS.get(part.key)
    if found is None:
        nfa = ByteNFA()
        start = nfa.either(NetworkBuilder(nfa).build(option, nfa.end) for option in part.options)
        if len(_FREE_NETWORKS) >= _MAX_FREE_NETWORKS:
            _FREE_NETWORKS.clear()
        found = _FREE_NETWORKS[part.key] = nfa, start
    return found


class NetworkBuilder:
    """Turns parts into a network, from its end to its beginning."""

    def __init__(self, nfa: ByteNFA) -> None:
        self.nfa = nfa
        self.built: dict[tuple[Part, int], int] = {}

    def build(self, part: Part, target: int) -> int:
        """The node before `part`; parts are told by identity, so that shared ones are built once for each target."""
        if (part, target) not in self.built:
            self.built[part, target] = self._build(part, target)
        return self.built[part, target]

    def _build(self, part: Part, target: int) -> int:
        nfa = self.nfa
        if isinstance(part, Literal):
            return nfa.literal(part.text.encode(), target)
        if isinstance(part, ValueSlot):
            return self._slot(part, target)
        if isinstance(part, FreeValue):
            return nfa.block(*_network_of(part), target)
        if isinstance(part, Alternation):
            return nfa.either(self.build(option, target) for option in part.options)
        if isinstance(part, Repeat):
            return self._repeat(part, target)
        if isinstance(part, Members):
            builder = _UnorderedMemberBuilder if part.any_order else _MemberBuilder
            return builder(self, part, target).run()
        for item in reversed(part.parts):
            target = self.build(item, target)
        return target

    def _slot(self, slot: ValueSlot, target: int) -> int:
        nfa, value = self.nfa, slot.value
        if isinstance(value, Choices):
            start = nfa.literals([text.encode() for text in value.texts], target)
        elif value.is_string:
            dfa = written(value.dfa, in_json=True, is_quoted=True, is_open=slot.is_open)
            start = nfa.segment(dfa, value.max_chars, target)
        else:
            start = nfa.segment(written(value.dfa), value.max_chars, target)
        return nfa.literal(slot.prefix.encode(), start)

    def _repeat(self, part: Repeat, target: int) -> int:
        nfa = self.nfa
        separator = part.separator.encode()
        if part.max_times is None:
            after = nfa.placeholder()
            following = nfa.literal(separator, self.build(part.item, after))
            nfa.close(after, (target, following))
            first = self.build(part.item, after)
            num_after = max(part.min_times, 1)
        else:
            after, first, num_after = target, target, part.max_times
        for count in range(num_after - 1, 0, -1):  # the node after `count` items
            following = nfa.literal(separator, self.build(part.item, after))
            after = nfa.either((target, following)) if count >= part.min_times else following
        if num_after > 0:
            first = self.build(part.item, after)
        return nfa.either((target, first)) if part.min_times == 0 else first


class _MemberBuilder:
    """
    The members of one object. A node stands before each named member, once for objects that are still empty and once
    for those that are not; with a number of members to keep, once for each number of members so far.
    """

    def __init__(self, builder: NetworkBuilder, members: Members, target: int) -> None:
        self.builder, self.nfa, self.members, self.target = builder, builder.nfa, members, target
        # After so many members, one more changes nothing, or is one too many.
        self.top = max(members.min_members, members.max_members or 0, 1)
        self.nodes: dict[tuple[int, int], int] = {}
        self.keys: dict[tuple[int, int], int] = {}

    def run(self) -> int:
        num_named = len(self.members.named)
        for count in range(self.top, -1, -1):
            for index in range(num_named, -1, -1):
                self.nodes[index, count] = self._before(index, count)
        return self.nodes[0, min(self.members.num_before, self.top)]

    def _before(self, start: int, count: int) -> int:
        """The node before the named members from `start` on, after `count` members."""
        members, nfa = self.members, self.nfa
        is_full = members.max_members is not None and count >= members.max_members
        following = min(count + 1, self.top)
        keys = []
        for index in range(start, len(members.named)):
            if not is_full:
                keys.append(self._key(index, following))
            if members.named[index][2]:
                return self._separated([nfa.literal(b'"', nfa.either(keys))], count) if keys else nfa.either(())
        # No named member has to come any more.
        ends = [self.target] if count >= members.min_members else []
        nexts = [nfa.literal(b'"', nfa.either(keys))] if keys else []
        if not members.generated or is_full:  # told by what follows, so that objects that end alike share their ends
            return nfa.either((*ends, *([self._separated(nexts, count)] if nexts else ())))
        node = nfa.placeholder()
        after = (
            node
            if count == self.top and start == len(members.named)
            else self.nodes.get((len(members.named), following), node)
        )
        nexts += [self.builder.build(Concat(pair), after) for pair in members.generated]
        nfa.close(node, (*ends, self._separated(nexts, count)))
        return node

    def _key(self, index: int, following: int) -> int:
        """The node before the name of one member, after its quotation mark; there are `following` members after it."""
        if (index, following) not in self.keys:
            key, value, _ = self.members.named[index]
            before_value = self.builder.build(value, self.nodes[index + 1, following])
            self.keys[index, following] = self.nfa.literal(key[1:].encode(), before_value)
        return self.keys[index, following]

    def _separated(self, nodes: list[int], count: int) -> int:
        """A comma before `nodes`, unless they are the first member."""
        node = self.nfa.either(nodes)
        return self.nfa.literal(self.members.separator.encode(), node) if count else node


class _UnorderedMemberBuilder:
    """The members of one object, the named ones in any order: a node for each set of those that have come."""

    def __init__(self, builder: NetworkBuilder, members: Members, target: int) -> None:
        self.builder, self.nfa, self.members, self.target = builder, builder.nfa, members, target
        self.nodes: dict[int, int] = {}

    def run(self) -> int:
        members, nfa = self.members, self.nfa
        after = nfa.placeholder()
        generated = [self.builder.build(Concat(pair), after) for pair in members.generated]
        comma = members.separator.encode()
        nfa.close(after, (self.target, nfa.literal(comma, nfa.either(generated))) if generated else (self.target,))
        required = sum(1 << index for index, (_, _, is_required) in enumerate(members.named) if is_required)
        for used in range((1 << len(members.named)) - 1, -1, -1):
            keys = [self._key(index, used) for index in range(len(members.named)) if not used >> index & 1]
            nexts = [nfa.literal(b'"', nfa.either(keys))] if keys else []
            nexts += generated if used & required == required else []
            ends = [self.target] if used & required == required else []
            if nexts:
                node = nfa.either(nexts)
                ends.append(nfa.literal(comma, node) if used else node)
            self.nodes[used] = nfa.either(ends)
        return self.nodes[0]

    def _key(self, index: int, used: int) -> int:
        """The node before the name of a member, after its quotation mark, when those of `used` have come."""
        key, value, _ = self.members.named[index]
        return self.nfa.literal(key[1:].encode(), self.builder.build(value, self.nodes[used | 1 << index]))

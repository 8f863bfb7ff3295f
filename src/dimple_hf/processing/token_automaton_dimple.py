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
"""Automata over tokens, and the sets of states that remain possible at masked positions.

A `TokenAutomaton` reads the network of an answer in tokens. It is not deterministic and is never unrolled over
positions: `after` and `before` give the states that one more token leads to or from, for sets of states, and every
step is remembered.

A set is a vector with one number a state. In a set that was reached from the left it is the fewest characters that the
segment can have so far: fewer characters never forbid what more allow. In one reached from the right it is the most
characters from which the answer can still be completed. So segments count their characters without a state for each.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .byte_nfa_dimple import MAX_NODES, ByteNFA, TooLargeError
from .segment_table_dimple import SegmentTable
from .token_walk_dimple import END, MAX_TRANSITIONS, PADDED, FlatNFA, Steps
from .vocabulary_dimple import Vocabulary, ranges

#: In sets from the left: not reached. More than any count, and with the characters of a token still an int16.
NEVER = 32_000

#: Most bytes of the sets and token sets that one automaton remembers; then all are forgotten.
MAX_REMEMBERED_BYTES = 1 << 24


class StateSet:
    """
    A set of states, as int16 of shape `(num_states,)`; see the module. Equal sets of one automaton are one object.
    """

    __slots__ = ("after_any", "before_any", "values")

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.after_any: StateSet | None = None
        self.before_any: StateSet | None = None


class TokenSet:
    """Tokens of one vocabulary: what a position can take."""

    __slots__ = ("ids",)

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids  # int64, sorted


@dataclass
class _Instances:
    """
    All segments of one table in an automaton.

    Args:
        table (`SegmentTable`):
            The table.
        base, limit, exit_number (`np.ndarray`):
            Of each segment, its first state, most characters, and how it goes on; see [`FlatNFA`].
    """

    table: SegmentTable
    base: np.ndarray
    limit: np.ndarray
    exit_number: np.ndarray

    def finish(self, rests: Steps, borders: np.ndarray) -> None:
        """`rests`: what rests of tokens do at each exit, those of exit number `n` from `borders[n]` on."""
        table = self.table
        instance, index = ranges(borders[self.exit_number], borders[self.exit_number + 1])
        is_met = np.isin(rests.token, table.split_rest)[index]
        self.exit_instance, index = instance[is_met], index[is_met]
        exit_rest, self.exit_target, self.exit_start = rests.token[index], rests.state[index], rests.count[index]
        self.rests, self.exit_rest_index = np.unique(exit_rest, return_inverse=True)
        # Of each rest: the splits, and from which states with how many characters they end the segment.
        index = np.searchsorted(self.rests, table.split_rest)
        index = np.minimum(index, max(0, len(self.rests) - 1))
        kept = np.flatnonzero(self.rests[index] == table.split_rest) if len(self.rests) else np.zeros(0, dtype=int)
        self.split_tokens, split_class, rest = table.split_tokens[kept], table.split_class[kept], index[kept]
        reached = table.targets[split_class]
        ends = (reached >= 0) & table.dfa.accepting[reached]
        self.end_split, self.end_source = (index.astype(np.int32) for index in np.nonzero(ends))
        self.end_rest = rest[self.end_split]
        self.end_count = table.counts[split_class][ends]
        # The fewest characters for each rest and state.
        width = table.targets.shape[1]
        self.end_fewest = np.full((len(self.rests), width), NEVER, dtype=np.int16)
        ends_at = self.end_rest * width + self.end_source
        np.minimum.at(self.end_fewest.reshape(-1), ends_at, self.end_count.astype(np.int16))


class TokenAutomaton:
    """
    All ways to write an answer in tokens, followed by any number of padding tokens.

    Args:
        nfa (`ByteNFA`):
            The answer.
        start (`int`):
            Its node to begin in.
        vocabulary (`Vocabulary`):
            The tokens.

    Raises:
        ValueError: If the answer needs too many states or transitions.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        # Use the class methods; here is only what they share.
        self.vocabulary = vocabulary
        self.num_states = 2
        self.instances: list[_Instances] = []
        self._free_ends = (np.zeros(0, dtype=np.int64),) * 2

    @classmethod
    def from_nfa(cls, nfa: ByteNFA, start: int, vocabulary: Vocabulary) -> "TokenAutomaton":
        """All ways to write the texts of a network in tokens."""
        automaton = cls(vocabulary)
        flat = FlatNFA(nfa, start)
        automaton.num_states = flat.num_states
        automaton._free_ends = flat.free_ends
        steps, _ = flat.walk(vocabulary.tree)
        is_rest = steps.origin >= flat.num_states
        rests = steps[is_rest]
        rests = Steps(rests.origin - flat.num_states, -2 - rests.token, rests.state, rests.count)
        automaton._add_instances(flat, *rests.sorted_by_origin(flat.num_exits))
        automaton._finish(flat.starts, steps[~is_rest])
        return automaton

    def _add_instances(self, flat: FlatNFA, rests: Steps, borders: np.ndarray) -> None:
        """The segments of a network, by their automata."""
        for number, dfa in enumerate(flat.dfas):
            kept = flat.dfa == number
            table = SegmentTable.of(dfa, self.vocabulary)
            self.instances.append(_Instances(table, flat.base[kept], flat.limit[kept], flat.exit_number[kept]))
            self.instances[-1].finish(rests, borders)

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int]], vocabulary: Vocabulary) -> "TokenAutomaton":
        """Exactly these token sequences, as a prefix tree."""
        automaton = cls(vocabulary)
        children: dict[tuple[int, int], int] = {}
        root = automaton._add_states(1)
        starts = [root]
        steps: list[tuple[int, int, int, int]] = []
        for sequence in sequences:
            state = root
            for index, token in enumerate(sequence):
                is_last = index + 1 == len(sequence)
                if is_last:
                    steps.append((state, token, END, 0))
                if (state, token) not in children:
                    children[state, token] = automaton._add_states(1)
                    steps.append((state, token, children[state, token], 0))
                state = children[state, token]
            if not sequence:
                starts.append(END)
        automaton._finish(starts, Steps(*np.array(steps, dtype=np.int32).reshape(-1, 4).T))
        return automaton

    def _add_states(self, count: int) -> int:
        self.num_states += count
        return self.num_states - count

    def _finish(self, starts: Iterable[int], steps: Steps) -> None:
        """Puts all transitions into arrays, once by the state they lead to and once by the one they come from."""
        final = np.array([END, PADDED], dtype=np.int32)
        self.source = np.concatenate([steps.origin, final])
        self.token = np.concatenate([steps.token, np.full_like(final, self.vocabulary.pad_id)])
        self.target = np.concatenate([steps.state, np.full_like(final, PADDED)])
        self.start_count = np.concatenate([steps.count, np.zeros_like(final)]).astype(np.int16)
        self.tokens, token_index = np.unique(self.token, return_inverse=True)
        self.token_index = token_index.astype(np.int32)
        self._by_token = np.argsort(self.token_index, kind="stable").astype(np.int32)
        self._token_borders = np.searchsorted(self.token_index[self._by_token], np.arange(len(self.tokens) + 1))
        self.limit = np.zeros(self.num_states, dtype=np.int16)
        for instances in self.instances:
            width = instances.table.targets.shape[1]
            self.limit[instances.base[:, None] + np.arange(width)] = instances.limit[:, None]
        source, target, count, is_reset, begin = (np.concatenate(parts) for parts in zip(*self._steps(), strict=True))
        if len(source) > MAX_TRANSITIONS:
            raise TooLargeError(f"the answer must need at most {MAX_TRANSITIONS} transitions (it needs {len(source)})")
        # Only the fewest characters matter to sets.
        self._forward = _Sorted(target, (source, count, is_reset, begin, self.limit[source]))
        self._backward = _Sorted(source, (target, count, is_reset, begin, self.limit[source]))
        start = np.full(self.num_states, NEVER, dtype=np.int16)
        start[list(starts)] = 0
        accepting = np.full(self.num_states, -1, dtype=np.int16)
        accepting[[END, PADDED]] = 0
        self._start, self._accepting = self._closed_from_left(start), self._closed_from_right(accepting)
        self._forget()

    def _steps(self) -> Iterable[tuple[np.ndarray, ...]]:
        """Source, target, fewest characters, whether counted from zero, and from how many: of all transitions."""
        keys = ((self.source.astype(np.int64) * self.num_states + self.target) << 16) + self.start_count
        plain = np.unique(keys)
        source, target = (states.astype(np.int32) for states in np.divmod(plain >> 16, self.num_states))
        zeros = np.zeros(len(plain), dtype=np.int16)
        yield source, target, zeros, np.ones(len(zeros), dtype=bool), (plain & 0xFFFF).astype(np.int16)
        for each in self.instances:
            table, num = each.table, len(each.base)
            size = num * len(table.pair_source)
            yield (
                (each.base[:, None] + table.pair_source).reshape(-1),
                (each.base[:, None] + table.pair_target).reshape(-1),
                np.tile(table.pair_count, num),
                np.zeros(size, dtype=bool),
                np.zeros(size, dtype=np.int16),
            )
            fewest = each.end_fewest[each.exit_rest_index]  # (exits, states)
            exit_index, state = np.nonzero(fewest < NEVER)
            yield (
                each.base[each.exit_instance[exit_index]] + state,
                each.exit_target[exit_index],
                fewest[exit_index, state],
                np.ones(len(state), dtype=bool),
                each.exit_start[exit_index],
            )

    def _forget(self) -> None:
        self._known: dict[bytes, StateSet] = {}
        self._by_token_memory: dict[tuple[StateSet, int, bool], StateSet] = {}
        self._allowed: dict[tuple[StateSet, StateSet], TokenSet] = {}
        self._token_sets: dict[bytes, TokenSet] = {}
        self._steps_of: dict[int, tuple[np.ndarray, ...]] = {}
        self._num_bytes = 0
        self.start, self.accepting = self._intern(self._start), self._intern(self._accepting)

    def trim(self) -> None:
        """Forgets everything if it has become much. Called between steps of the denoising loop."""
        if self._num_bytes > MAX_REMEMBERED_BYTES:
            self._forget()

    def _intern(self, values: np.ndarray) -> StateSet:
        key = values.tobytes()
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = StateSet(values)
            self._num_bytes += 2 * len(key) + 256
        return found

    def _closed_from_left(self, values: np.ndarray) -> np.ndarray:
        """Adds the states that are reached without a token, where a number may end; in place."""
        source, target = self._free_ends
        values[target[values[source] < NEVER]] = 0
        return values

    def _closed_from_right(self, values: np.ndarray) -> np.ndarray:
        """Adds the states from which others are reached without a token; in place."""
        source, target = self._free_ends
        source = source[values[target] >= 0]
        values[source] = self.limit[source]
        return values

    def after(self, states: StateSet, token: int | None) -> StateSet:
        """The states after `states` (reached from the left) when `token` stands between, or any token (`None`)."""
        if token is None:
            if states.after_any is None:
                values = self._forward.fewest(states.values, self.num_states)
                states.after_any = self._intern(self._closed_from_left(values))
            return states.after_any
        key = (states, token, True)
        found = self._by_token_memory.get(key)
        if found is None:
            source, target, count, is_reset, begin = self._transitions(token)
            counts = states.values[source] + count
            values = np.where(counts <= self.limit[source], np.where(is_reset, begin, counts), NEVER)
            result = np.full(self.num_states, NEVER, dtype=np.int16)
            np.minimum.at(result, target, values)
            found = self._by_token_memory[key] = self._intern(self._closed_from_left(result))
        return found

    def before(self, states: StateSet, token: int | None) -> StateSet:
        """The states from which `token`, or any token (`None`), leads to `states` (reached from the right)."""
        if token is None:
            if states.before_any is None:
                values = self._backward.most(states.values, self.num_states)
                states.before_any = self._intern(self._closed_from_right(values))
            return states.before_any
        key = (states, token, False)
        found = self._by_token_memory.get(key)
        if found is None:
            source, target, count, is_reset, begin = self._transitions(token)
            values = _most(states.values[target], count, is_reset, begin, self.limit[source])
            result = np.full(self.num_states, -1, dtype=np.int16)
            np.maximum.at(result, source, values)
            found = self._by_token_memory[key] = self._intern(self._closed_from_right(result))
        return found

    def is_extensible(self, size: int) -> bool:
        """Whether more than `size` tokens can make something that fewer cannot."""
        states = self.start
        for _ in range(size):
            states = self.after(states, None)
        values = self.after(states, None).values
        return bool((np.delete(values, [PADDED]) < NEVER).any())

    def unpadded(self, states: StateSet, from_left: bool) -> StateSet:
        """The set without the state in which padding has begun."""
        values = states.values.copy()
        values[PADDED] = NEVER if from_left else -1
        return self._intern(values)

    def meet(self, before: StateSet, after: StateSet) -> bool:
        """Whether a state is in both sets: `before` reached from the left, `after` from the right."""
        return bool((before.values <= after.values).any())

    def holds(self, before: StateSet, after: StateSet, token: int) -> bool:
        """Whether `token` leads from one of `before` to one of `after`."""
        source, target, count, is_reset, begin = self._transitions(token)
        counts = before.values[source] + count
        counts = np.where(counts <= self.limit[source], np.where(is_reset, begin, counts), NEVER)
        return bool((counts <= after.values[target]).any())

    def allowed(self, before: StateSet, after: StateSet) -> TokenSet:
        """The tokens that lead from one of `before` to one of `after`."""
        key = (before, after)
        found = self._allowed.get(key)
        if found is None:
            found = self._allowed[key] = self._find_allowed(before.values, after.values)
        return found

    def _find_allowed(self, before: np.ndarray, after: np.ndarray) -> TokenSet:
        flags = np.zeros(len(self.tokens), dtype=bool)
        is_possible = (before[self.source] <= self.limit[self.source]) & (after[self.target] >= self.start_count)
        flags[self.token_index[is_possible]] = True
        parts = [flags]
        for each in self.instances:
            parts += self._allowed_inside(each, before, after)
        key = b"".join(np.packbits(part).tobytes() for part in parts)
        found = self._token_sets.get(key)
        if found is None:
            tokens = [self.tokens[flags]]
            for index, each in enumerate(self.instances):
                inside, ending = parts[1 + 2 * index], parts[2 + 2 * index]
                tokens += [each.table.tokens[inside[each.table.token_class]], each.split_tokens[ending]]
            found = self._token_sets[key] = TokenSet(np.unique(np.concatenate(tokens)).astype(np.int64))
            self._num_bytes += len(key) + found.ids.nbytes + 256
        return found

    @staticmethod
    def _allowed_inside(each: _Instances, before: np.ndarray, after: np.ndarray) -> list[np.ndarray]:
        """Of the segments of one table: which classes stay inside, and which splits end one."""
        table = each.table
        width = table.targets.shape[1]
        here = before[each.base[:, None] + np.arange(width)]
        there = after[each.base[:, None] + np.arange(width)]
        # How many characters each pair of states may still take, in the segment that has most of them left.
        slack = (there[:, table.pair_target] - here[:, table.pair_source]).max(axis=0, initial=-1)
        inside = np.zeros(len(table.targets), dtype=bool)
        inside[table.entry_class[table.entry_count <= slack[table.entry_pair]]] = True
        ending = np.zeros(len(each.split_tokens), dtype=bool)
        is_open = after[each.exit_target] >= each.exit_start
        if is_open.any():
            left = np.full((len(each.rests), width), -1, dtype=np.int16)
            rows = each.exit_instance[is_open]
            np.maximum.at(left, each.exit_rest_index[is_open], each.limit[rows, None] - here[rows])
            ending[each.end_split[each.end_count <= left[each.end_rest, each.end_source]]] = True
        return [inside, ending]

    def _transitions(self, token: int) -> tuple[np.ndarray, ...]:
        """Source, target, characters, whether counted from zero, and from how many: of all uses of one token."""
        found = self._steps_of.get(token)
        if found is None:
            parts = list(self._uses(token))
            found = self._steps_of[token] = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
            self._num_bytes += sum(array.nbytes for array in found) + 256
        return found

    def _uses(self, token: int) -> Iterable[tuple[np.ndarray, ...]]:
        index = int(np.searchsorted(self.tokens, token))
        rows = np.zeros(0, dtype=np.int32)
        if index < len(self.tokens) and self.tokens[index] == token:
            rows = self._by_token[self._token_borders[index] : self._token_borders[index + 1]]
        ones, zeros = np.ones(len(rows), dtype=bool), np.zeros(len(rows), dtype=np.int16)
        yield self.source[rows], self.target[rows], zeros, ones, self.start_count[rows]
        for each in self.instances:
            table, num = each.table, len(each.base)
            number = table.class_of(token)
            if number:
                state = np.flatnonzero(table.targets[number] >= 0)
                size = num * len(state)
                yield (
                    (each.base[:, None] + state).reshape(-1),
                    (each.base[:, None] + table.targets[number, state]).reshape(-1),
                    np.tile(table.counts[number, state], num),
                    np.zeros(size, dtype=bool),
                    np.zeros(size, dtype=np.int16),
                )
            for split in np.flatnonzero(each.split_tokens == token).tolist():
                ends = np.flatnonzero(each.end_split == split)
                exits = np.flatnonzero(each.exit_rest_index == each.end_rest[ends[0]]) if len(ends) else ends
                exit_index, end_index = np.repeat(exits, len(ends)), np.tile(ends, len(exits))
                yield (
                    each.base[each.exit_instance[exit_index]] + each.end_source[end_index],
                    each.exit_target[exit_index],
                    each.end_count[end_index],
                    np.ones(len(exit_index), dtype=bool),
                    each.exit_start[exit_index],
                )


class _Sorted:
    """Transitions in the order of the states whose values they decide."""

    def __init__(self, key: np.ndarray, columns: tuple[np.ndarray, ...]) -> None:
        order = np.argsort(key, kind="stable")
        key = key[order]
        self.starts = np.flatnonzero(np.diff(key, prepend=-1))
        self.states = key[self.starts]
        self.other, self.count, self.is_reset, self.begin, self.limit = (column[order] for column in columns)

    def fewest(self, values: np.ndarray, num_states: int) -> np.ndarray:
        """The fewest characters after one more token."""
        result = np.full(num_states, NEVER, dtype=np.int16)
        if len(self.states):
            counts = values[self.other] + self.count
            counts = np.where(counts <= self.limit, np.where(self.is_reset, self.begin, counts), NEVER)
            result[self.states] = np.minimum.reduceat(counts, self.starts)
        return result

    def most(self, values: np.ndarray, num_states: int) -> np.ndarray:
        """The most characters before one more token."""
        result = np.full(num_states, -1, dtype=np.int16)
        if len(self.states):
            most = _most(values[self.other], self.count, self.is_reset, self.begin, self.limit)
            result[self.states] = np.maximum.reduceat(most, self.starts)
        return result


def _most(
    after: np.ndarray, count: np.ndarray, is_reset: np.ndarray, begin: np.ndarray, limit: np.ndarray
) -> np.ndarray:
    """The most characters before transitions, given the most after them; -1 where there is no way."""
    most = np.where(is_reset, np.where(after >= begin, limit, -1), after) - count
    return np.maximum(np.where(after < 0, -1, most), -1)


def build_automaton(
    build: Callable[[ByteNFA], int], vocabulary: Vocabulary, max_states: int = MAX_NODES
) -> TokenAutomaton:
    """The automaton of the network that `build` makes; it returns the node to begin in."""
    nfa = ByteNFA(max_states)
    return TokenAutomaton.from_nfa(nfa, build(nfa), vocabulary)


def size_of(automaton: TokenAutomaton) -> int:
    """Bytes that an automaton takes, its memory included when it is full."""
    arrays = (value for value in vars(automaton).values() if isinstance(value, np.ndarray))
    own = sum(array.nbytes for array in arrays) + sys.getsizeof(automaton)
    steps = sum(v.nbytes for s in (automaton._forward, automaton._backward) for v in vars(s).values())
    return own + steps + MAX_REMEMBERED_BYTES

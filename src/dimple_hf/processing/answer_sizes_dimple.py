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
"""How large an answer is: the tokens that it usually needs, and the states of its automaton."""

from functools import lru_cache

from .answer_parts_dimple import (
    Alternation,
    Choices,
    Concat,
    FreeValue,
    Literal,
    Members,
    Part,
    Repeat,
    ValueSlot,
    flattened,
    is_wide,
)
from .byte_dfa_dimple import written
from .vocabulary_dimple import Vocabulary

#: Most positions of a compact canvas whose length is not given; values share them.
MAX_SHARED_POSITIONS = 2048

#: Most parts that are looked at to find how long a compact canvas should be; parts of schemas share their own parts.
MAX_COUNTED_PARTS = 50_000

#: Positions for properties that a schema does not mention, but does not forbid either.
OPEN_TOKENS = 24


def usual_tokens(part: Part, vocabulary: Vocabulary) -> int:
    """The positions of the padded canvas, without making it; may stop when it is more than `MAX_SHARED_POSITIONS`."""
    sizes: dict[Part, int] = {}
    nums_open: dict[Part, int] = {}
    num_left = MAX_COUNTED_PARTS

    def size(part: Part) -> int:
        nonlocal num_left
        if part not in sizes:
            total = OPEN_TOKENS * _num_open(part, nums_open)
            for item in flattened(part, keep_wide=True):
                num_left -= 1
                if num_left < 0 or total > MAX_SHARED_POSITIONS:
                    return MAX_SHARED_POSITIONS
                total += size_of(item)
            sizes[part] = total
        return sizes[part]

    def size_of(item: Part) -> int:
        if isinstance(item, Literal):
            return len(vocabulary.encode(item.text))
        if isinstance(item, ValueSlot):
            return _slot_size(item, vocabulary)
        if isinstance(item, Alternation):
            return max(map(size, item.options))
        if isinstance(item, Members):
            return sum(len(key) // 4 + 2 + size(value) for key, value, _ in item.named)
        assert isinstance(item, Repeat)
        times = max(item.min_times, item.usual_times if item.max_times is None else item.max_times)
        return times * (size(item.item) + 1)

    return size(part)


def _num_open(part: Part, known: dict[Part, int]) -> int:
    """Objects of this part itself, and not inside its values, that may have properties which no one asked for."""
    if part not in known:
        if isinstance(part, Concat):
            known[part] = sum(_num_open(inner, known) for inner in part.parts)
        else:
            is_open = isinstance(part, Members) and bool(part.generated) and not part.usual_generated
            known[part] = int(is_open and not is_wide(part))
    return known[part]


def _slot_size(slot: ValueSlot, vocabulary: Vocabulary) -> int:
    if isinstance(slot.value, Choices):
        return max(len(vocabulary.encode(text)) for text in slot.value.texts)
    longest = slot.value.longest if slot.max_tokens is None else slot.max_tokens
    if longest is None:
        raise ValueError(f"{slot.where} must have a length in tokens, as its pattern matches text of any length")
    return longest


def num_states(part: Part, known: dict[Part, int]) -> int:
    """
    About how many states the network of a part has, without making it.

    Args:
        part (`Part`):
            The part.
        known (`dict[Part, int]`):
            The sizes that are known; those of its parts are added.
    """
    if part not in known:
        known[part] = _num_states(part, known)
    return known[part]


def _num_states(part: Part, known: dict[Part, int]) -> int:
    """What ends where the part ends is built once, however many alternatives lead to it."""
    total, ends, stack = 0, {part}, [part]
    while stack:
        item = stack.pop()
        following: tuple[Part, ...] = ()
        if isinstance(item, Concat) and item.parts:
            total += sum(num_states(inner, known) for inner in item.parts[:-1])
            following = item.parts[-1:]
        elif isinstance(item, FreeValue):
            total += _num_free_states(item)
        elif isinstance(item, Alternation):
            total, following = total + 1, item.options
        elif not isinstance(item, Concat):
            total += _num_own_states(item, known)
        stack += [inner for inner in following if inner not in ends]
        ends.update(following)
    return total


@lru_cache(maxsize=256)
def _num_free_states(part: FreeValue) -> int:
    return 1 + sum(num_states(option, {}) for option in part.options)


def _num_own_states(part: Literal | ValueSlot | Repeat | Members, known: dict[Part, int]) -> int:
    if isinstance(part, Literal):
        return len(part.text.encode())
    if isinstance(part, ValueSlot):
        if isinstance(part.value, Choices):
            return sum(len(text.encode()) for text in part.value.texts)
        is_string = part.value.is_string
        return len(written(part.value.dfa, in_json=is_string, is_quoted=is_string).table)
    if isinstance(part, Repeat):
        copies = max(part.min_times, 1) if part.max_times is None else part.max_times
        return copies * (num_states(part.item, known) + len(part.separator) + 1)
    pairs = [len(key.encode()) + num_states(value, known) for key, value, _ in part.named]
    generated = sum(num_states(item, known) for pair in part.generated for item in pair)
    count = len(part.named)
    if part.any_order:  # a node for each set of members that have come, and a value for each that has not
        return (sum(pairs) << count >> 1) + generated + (3 << count)
    copies = max(part.min_members, part.max_members or 0, 1)
    return copies * (sum(pairs) + generated) + 4 * (count + 1) * (copies + 1)

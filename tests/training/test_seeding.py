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
"""Draws depend on where a run is, and leave no trace after."""

import torch

from dimple_hf.training.seeding import SeededSpan, derive_seed


def test_derive_seed_every_number_of_the_key_matters() -> None:
    """Neighbouring steps, ranks and seeds, and the same numbers in another order, must not share masks."""
    keys = [(0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, 3), (0, 1), (0, 1, 2, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert derive_seed(0, 1, 2) == 1419556851746930036  # must not move, or resumed runs do


def test_seeded_span_draws_are_repeatable_and_invisible_outside() -> None:
    """The Trainer takes the order of the data from the generator that the masks are drawn from."""
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    span = SeededSpan()
    span.begin(1, 2)
    first = torch.rand(3)
    span.begin(1, 2)  # ends the span before it
    assert torch.equal(torch.rand(3), first)
    span.begin(1, 3)
    assert not torch.equal(torch.rand(3), first)
    span.end()
    assert torch.initial_seed() == 5
    assert torch.equal(torch.rand(3), expected)
    span.end()  # nothing happens

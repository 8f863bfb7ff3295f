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
"""Random draws that depend on the position in a training run only.

`forward` draws its masks from torch's global generator. Seeding it for the span of one optimizer step, from the step's
number, makes the masks of a resumed run those of the uninterrupted one, and lets processes that the Trainer seeds
alike draw different ones.
"""

from contextlib import ExitStack

import numpy as np
import torch


def derive_seed(*key: int) -> int:
    """
    Mixes numbers into a seed.

    Args:
        key (`int`):
            Numbers >= 0, such as a seed, a step and a rank. Every one matters, and so does their order.

    Returns:
        `int`: A seed in [0, 2**63).
    """
    # With its length, because numpy takes a shorter key for one that ends with zeros.
    return int(np.random.SeedSequence([len(key), *key]).generate_state(1, np.uint64)[0] >> 1)


class SeededSpan:
    """
    Seeds torch's global generators for a while, and then puts them back as they were, so that nothing outside of the
    span notices: the Trainer takes the order of the data and the seeds of its workers from them, too.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()

    def begin(self, *key: int) -> None:
        """Ends a running span and seeds the generators from `key`; see [`derive_seed`]."""
        self.end()
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        self._stack.enter_context(torch.random.fork_rng(devices=devices))
        torch.manual_seed(derive_seed(*key))

    def end(self) -> None:
        """Puts the generators back. Nothing happens without a running span."""
        self._stack.close()

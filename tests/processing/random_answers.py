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
"""Answers of a model that has no idea: random scores, positions unmasked in random order and in random numbers.

Much cheaper than a model of random weights.
"""

import random

import torch

from dimple_hf.processing import DimpleTokenizer, StructurePrior
from dimple_hf.processing.answer_layout_dimple import CanvasConstraint

VOCAB_SIZE = 448


def random_answer(prior: StructurePrior, tokenizer: DimpleTokenizer, rng: random.Random) -> list[int]:
    """The tokens of one answer. Padding is preferred now and then, so that short answers come too."""
    canvas = prior.canvas(tokenizer)
    mask = canvas.vocabulary.mask_id
    answer, rows = torch.tensor([canvas.ids]), torch.tensor([0])
    constraint = CanvasConstraint([canvas])
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    preference, share = rng.choice((0.0, 3.0, 6.0)), rng.choice((0.05, 0.3, 1.0))
    while (answer == mask).any():
        masked = answer == mask
        scores = torch.randn(int(masked.sum()), VOCAB_SIZE, generator=generator)
        scores[:, canvas.vocabulary.pad_id] += preference
        scores = constraint.mask_logits(rows, answer, masked, scores)
        assert scores.isfinite().any(dim=1).all()  # no dead ends
        proposed = answer.clone()
        proposed[masked] = scores.argmax(dim=1)
        chosen = masked & (torch.rand(masked.shape, generator=generator) < share)
        if not chosen.any():
            chosen = masked
        confidence = torch.rand(masked.shape, generator=generator)
        accepted = constraint.accept(rows, answer, masked, proposed, chosen, confidence)
        assert accepted.any()  # every step makes progress
        answer[accepted] = proposed[accepted]
    return answer[0].tolist()

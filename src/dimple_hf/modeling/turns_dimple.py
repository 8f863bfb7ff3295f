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
"""Several turns in one row of a batch: the conversation is the trunk, and what follows an answer in training only, its
run of padding, is a branch, which no later token sees.

A causal model reads such a row as it is, which is exact. Under full attention each answer needs a sequence of its own,
cut after it ([`turn_copies`]), because an answer must not see later turns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


def branch_offsets(branch_ids: torch.Tensor) -> torch.Tensor:
    """
    Args:
        branch_ids (`torch.LongTensor` of shape `(batch_size, length)`):
            0 at the trunk; one number for each branch of a row.

    Returns:
        `torch.LongTensor` of the same shape: How far a token stands from the beginning of its branch; 0 at the trunk.
    """
    index = torch.arange(branch_ids.shape[1], device=branch_ids.device).expand_as(branch_ids)
    is_start = branch_ids != branch_ids.roll(1, dims=1)
    starts = torch.where(is_start, index, 0).cummax(dim=1).values
    return (index - starts) * (branch_ids > 0)


def sees_branch(branch_ids: torch.Tensor) -> Callable[..., torch.Tensor]:
    """
    Returns:
        A mask function for `create_causal_mask` and `create_bidirectional_mask`: a query sees the trunk, and of the
        branches its own.
    """

    def mask(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (branch_ids[row, key] == 0) | (branch_ids[row, key] == branch_ids[row, query])

    return mask


@dataclass(frozen=True)
class TokenIndex:
    """
    Sequences that are made of the tokens of a batch.

    Args:
        rows, positions (`torch.LongTensor` of shape `(num_sequences, length)`):
            Where each token stands in the batch; anything at padding.
        is_token (`torch.BoolTensor` of the same shape):
            `False` at padding, which is on the right.
        is_supervised (`torch.BoolTensor` of the same shape):
            Whether this sequence is the one that learns the token.
        are_rows (`bool`):
            Whether each sequence is a row of the batch, padding included.
    """

    rows: torch.Tensor
    positions: torch.Tensor
    is_token: torch.Tensor
    is_supervised: torch.Tensor
    are_rows: bool

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """The tokens' own entries of a tensor of shape `(batch_size, length, ...)`."""
        return values[self.rows, self.positions]


def turn_copies(branch_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> TokenIndex:
    """
    One sequence for each answer: the trunk up to the answer, the answer, and its branch. Nothing of it is computed
    again: images are encoded once for all of them.

    ```text
    row         q q A A p p q q B B p        q: question, A B: answers, p: padding
    branch_ids  0 0 0 0 1 1 0 0 0 0 0        the last answer's padding needs no branch
    copy 0      q q A A p p                  learns A A p p
    copy 1      q q A A q q B B p            learns B B p
    ```

    Args:
        branch_ids (`torch.LongTensor` of shape `(batch_size, length)`):
            0 at the trunk, 1, 2, ... at the branches of a row, in order.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`):
            0 at padding of the batch.
        labels (`torch.LongTensor` of shape `(batch_size, length)`):
            -100 where nothing is learned.

    Returns:
        [`TokenIndex`]
    """
    index = torch.arange(branch_ids.shape[1], device=branch_ids.device)
    sequences = []
    for row, (branches, attended) in enumerate(zip(branch_ids, attention_mask != 0, strict=True)):
        num_branches = int(branches.max())
        begin = 0
        for branch in range(1, num_branches + 2):
            end = int((branches == branch).nonzero()[-1]) + 1 if branch <= num_branches else len(index)
            kept = attended & (index < end) & ((branches == 0) | (branches == branch))
            positions = index[kept]
            if branch == 1 or bool((labels[row, begin:end] != -100).any()):
                sequences.append((row, positions, positions >= begin))
            begin = end
    width = max(len(positions) for _, positions, _ in sequences)
    shape = (len(sequences), width)
    rows, gathered = (torch.zeros(shape, dtype=torch.long, device=labels.device) for _ in range(2))
    is_token, is_last = (torch.zeros(shape, dtype=torch.bool, device=labels.device) for _ in range(2))
    for number, (row, positions, in_turn) in enumerate(sequences):
        rows[number] = row
        gathered[number, : len(positions)] = positions
        is_token[number, : len(positions)] = True
        is_last[number, : len(positions)] = in_turn
    return TokenIndex(rows, gathered, is_token, is_last & (labels[rows, gathered] != -100), are_rows=False)

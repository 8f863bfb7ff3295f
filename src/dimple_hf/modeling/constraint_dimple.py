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
"""The protocol of a constraint on the answer.

The processor makes such objects from structure priors; any object with these methods is accepted.
"""

from typing import Protocol

import torch


class AnswerConstraint(Protocol):
    """
    The tokens that an answer's positions can still take, given those that are committed.

    It must have no dead ends: as long as the committed tokens were accepted, every masked position has a possible
    token. It must depend on its arguments alone, because some rules remask positions.
    """

    @property
    def constrained_rows(self) -> torch.BoolTensor:
        """
        `torch.BoolTensor` of shape `(batch_size,)`: `True` at rows that are under a constraint. They are filled up to
        their last position, and end tokens mean nothing in them.
        """
        ...

    def repeat_interleave(self, repeats: int) -> "AnswerConstraint":
        """The constraint of a batch in which each row is repeated `repeats` times, consecutively."""
        ...

    def mask_logits(
        self,
        rows: torch.LongTensor,
        answer: torch.LongTensor,
        masked: torch.BoolTensor,
        logits: torch.FloatTensor,
        positions: torch.BoolTensor | None = None,
    ) -> torch.FloatTensor:
        """
        Called before tokens and confidences are taken.

        Args:
            rows (`torch.LongTensor` of shape `(num_rows,)`):
                Which rows of the batch `answer` holds.
            answer (`torch.LongTensor` of shape `(num_rows, answer_length)`):
                Answer tokens.
            masked (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
                `True` at masked positions.
            logits (`torch.FloatTensor` of shape `(num_positions, vocab_size)`):
                Scores of `positions`, row by row; may be changed in place.
            positions (`torch.BoolTensor` of shape `(num_rows, answer_length)`, *optional*):
                `True` at the masked positions that this step scores; all of them when missing.

        Returns:
            `torch.FloatTensor` of shape `(num_positions, vocab_size)`: The scores, -inf at impossible tokens.
        """
        ...

    def accept(
        self,
        rows: torch.LongTensor,
        answer: torch.LongTensor,
        masked: torch.BoolTensor,
        proposed: torch.LongTensor,
        chosen: torch.BoolTensor,
        confidence: torch.FloatTensor,
    ) -> torch.BoolTensor:
        """
        Called before positions are committed, because tokens that are possible one by one may not be so together.

        Args:
            rows, answer, masked:
                As above.
            proposed (`torch.LongTensor` of shape `(num_rows, answer_length)`):
                The answer with a token at every position.
            chosen (`torch.BoolTensor` of shape `(num_rows, answer_length)`):
                `True` at the masked positions to commit.
            confidence (`torch.FloatTensor` of shape `(num_rows, answer_length)`):
                Confidence of each masked position.

        Returns:
            `torch.BoolTensor` of shape `(num_rows, answer_length)`: Those of `chosen` that are possible together, at
            least one in each row that has any.
        """
        ...

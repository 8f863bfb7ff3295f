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
"""Streaming: the items of `generate_steps`, and the tokens for transformers' streamers."""

from dataclasses import dataclass

import torch
from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class DimpleGenerationStep:
    """
    What `generate_steps` yields. Its tensors are the consumer's to keep.

    Args:
        step (`int`):
            Denoising steps done, 0 before the first.
        answer_ids (`torch.LongTensor` of shape `(batch_size * num_return_sequences, answer_length)`):
            Answer tokens, the mask token at masked positions; of finished rows what `generate` returns after the
            prompt.
        is_final (`torch.BoolTensor` of shape `(batch_size * num_return_sequences, answer_length)`):
            `True` where no later step changes the token. Tokens after a final end token may be final, too, and are
            replaced by padding when the row is finished.
        finished (`torch.BoolTensor` of shape `(batch_size * num_return_sequences,)`):
            `True` for rows whose answer is complete.
        num_forward_passes (`torch.LongTensor` of shape `(batch_size * num_return_sequences,)`):
            Forward passes of the model over each row so far.
        token_logprobs (`torch.FloatTensor` of shape `(batch_size * num_return_sequences, answer_length)`):
            As in [`DimpleGenerationOutput`]; NaN at masked positions.
        commit_steps (`torch.LongTensor` of shape `(batch_size * num_return_sequences, answer_length)`):
            As in [`DimpleGenerationOutput`]; -1 at masked positions.
    """

    step: int
    answer_ids: torch.LongTensor
    is_final: torch.BoolTensor
    finished: torch.BoolTensor
    num_forward_passes: torch.LongTensor
    token_logprobs: torch.FloatTensor
    commit_steps: torch.LongTensor


class DraftStreamer:
    """
    Feeds a transformers streamer from a denoising loop.

    A streamer with `put_draft` gets the whole answer after each step and the finished one at the end. Any other gets
    the tokens that are final up to the first that is not, as soon as they are; and an empty tensor when there are
    none, so that a server's streamer can notice that its client has gone.

    Args:
        streamer (`BaseStreamer`):
            Anything with `put` and `end`.
        mask_token_id (`int`):
            The token of masked positions.
        end_token_ids (`torch.LongTensor` of shape `(num_end_tokens,)`):
            Tokens that end an answer; nothing after one is sent.
    """

    def __init__(self, streamer: BaseStreamer, mask_token_id: int, end_token_ids: torch.LongTensor):
        self.streamer = streamer
        self.mask_token_id = mask_token_id
        self.end_token_ids = end_token_ids
        self.takes_drafts = hasattr(streamer, "put_draft")
        self.num_sent = 0

    def put_answer(self, answer: torch.LongTensor, is_final: torch.BoolTensor) -> None:
        """Shows `answer` (`torch.LongTensor` of shape `(batch_size, answer_length)`) as it stands after a step;
        `is_final`, of the same shape, is `True` where no later step changes it."""
        if self.takes_drafts:
            self.streamer.put_draft(value=answer.cpu())
        else:
            self._put_final(answer[0].masked_fill(~is_final[0], self.mask_token_id))

    def end(self, answer: torch.LongTensor) -> None:
        """Sends what is left of the finished `answer`, of the same shape, and ends the stream."""
        self._put_final(answer[0])
        self.streamer.end()

    def _put_final(self, row: torch.LongTensor) -> None:
        masked = (row == self.mask_token_id).nonzero()
        ends = torch.isin(row, self.end_token_ids).nonzero()
        stop = int(masked[0]) if len(masked) else len(row)
        if len(ends):
            stop = min(stop, int(ends[0]) + 1)
        self.streamer.put(row[self.num_sent : stop].cpu())
        self.num_sent = max(self.num_sent, stop)

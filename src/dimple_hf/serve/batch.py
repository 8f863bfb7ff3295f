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
"""The running batch: rows with options of their own, which join and leave between two denoising steps.

```text
  each row:  begin_step -> positions to score --+                      +-- its logits -> commit
                                                +-> one forward pass --+
```

Only the forward pass is shared. What a step scores, commits and remasks is each row's own sampler's matter, on a state
of one row, so that a row is decoded by the code that `generate` runs, whatever the length, sampling or structure prior
of its neighbours.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import pad

from ..data.image_features import ImageFeatures
from ..modeling.canvas_dimple import CanvasRunner
from ..modeling.denoising_dimple import DecodingState, Sampler
from ..processing.structure_prior_dimple import canvas_inputs
from .jobs import FAILED, Job, Progress, ServerFault, TokenLogprob, final_beginning

logger = logging.getLogger(__name__)


class Row:
    """
    One job while it is decoded.

    Args:
        job ([`Job`]):
            The job.
        features ([`ImageFeatures`]), tokenizer ([`DimpleTokenizer`]):
            What encodes its images, with the model that decodes it, and the model's tokenizer.
        end_token_ids (`frozenset[int]`):
            Tokens that end a free answer.

    Raises:
        Exception: If the job cannot be run: whatever `generate` raises for it.
    """

    def __init__(self, job: Job, features: ImageFeatures, tokenizer: Any, end_token_ids: frozenset[int]):
        model: Any = features.model
        self.job = job
        self.tokenizer = tokenizer
        self.end_token_ids = end_token_ids if job.prior is None else frozenset[int]()
        options: dict[str, Any] = job.options | features.encode(job.inputs) | {"max_new_tokens": job.answer_length}
        options |= (
            {"eos_token_id": sorted(end_token_ids)} if job.prior is None else canvas_inputs(job.prior, 1, tokenizer)
        )
        options = {name: _moved(value, model.device) for name, value in options.items()}
        call = model.prepare_generation(options.pop("input_ids"), **options)
        canvas, num_passes = call.start()
        self.runner: CanvasRunner = call.runner
        self.prompt = call.runner.input_ids
        num_top = min(job.num_top_logprobs or 0, model.config.vocab_size)
        self.sampler: Sampler = replace(call.sampler, num_top_logprobs=num_top)
        self.state = DecodingState.start(canvas, self.sampler.mask_token_id, num_passes)
        self.step = self.num_tokens = 0
        self.logprobs: list[TokenLogprob] = []
        self.random = None if job.seed is None else _random_state_of(job.seed, model.device)

    def begin_step(self) -> torch.Tensor:
        """`torch.LongTensor` of shape `(1,)`: how many positions the step scores; -1 when the row is finished."""
        if self.step == self.sampler.num_steps:
            self.state.result.finished[:], self.state.result.is_final[:] = True, True
            return torch.full_like(self.state.rows, -1)
        self.state.step = self.step
        return self.sampler.begin_step(self.state)

    def commit(self, logits: torch.Tensor) -> None:
        """Ends the step by the `logits` (`(num_positions, vocab_size)`) of the positions that it scores."""
        self.step += 1
        if self.random is None:
            self.sampler.commit(self.state, self.sampler.process(self.state, self.prompt, logits))
            return
        with torch.random.fork_rng(devices=[logits.device] if logits.is_cuda else []):
            _set_random_state(self.random, logits.device)
            self.sampler.commit(self.state, self.sampler.process(self.state, self.prompt, logits))
            self.random = _random_state(logits.device)

    def progress(self, tokens: list[int], is_last: bool, is_at_end: bool) -> Progress:
        """How far the answer has come with its final `tokens`; `is_at_end` where an end token follows them."""
        self.num_tokens = len(tokens)
        if self.job.num_top_logprobs is not None:
            self._read_logprobs(tokens)
        prior = self.job.prior
        if prior is not None and is_last:
            is_at_end = not prior.touched_bound(self.tokenizer, tokens)
        return Progress(tokens, is_last, is_at_end, list(self.logprobs))

    def _read_logprobs(self, tokens: list[int]) -> None:
        """Reads the log-probabilities of the tokens that are new; the device has finished their step already."""
        new, result = slice(len(self.logprobs), len(tokens)), self.state.result
        logprobs = result.token_logprobs[0, new].tolist()
        tops: list[list[tuple[int, float]]] = [[] for _ in logprobs]
        if result.top_ids is not None and result.top_logprobs is not None:
            pairs = zip(result.top_ids[0, new].tolist(), result.top_logprobs[0, new].tolist(), strict=True)
            tops = [[pair for pair in zip(*each, strict=True) if pair[1] > float("-inf")] for each in pairs]
        for token, logprob, top in zip(tokens[new], logprobs, tops, strict=True):
            is_given = self.sampler.num_top_logprobs > 0 and not top
            self.logprobs.append(TokenLogprob(token, logprob, [(token, 0.0)] if is_given else top))


class Batch:
    """
    Rows that share forward passes.

    Args:
        pad_token_id (`int`):
            Stands after answers that are shorter than the longest one.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id
        self.rows: list[Row] = []
        self.runner: CanvasRunner | None = None

    def add(self, row: Row) -> None:
        """Takes a row in; its prompt runs in the next step, in a pass of its own."""
        if self.runner is None:
            self.runner = row.runner
        else:
            self.runner.append_rows(row.runner)
        del row.runner
        self.rows.append(row)

    @torch.no_grad()
    def step(self) -> list[Row]:
        """
        Tells how far the answers have come, lets finished, failed and cancelled rows leave, and runs a denoising step
        of the others.

        Returns:
            `list[Row]`: The rows that have left, which have been told.
        """
        counts = self._begin_step()
        staying = [index for index, count in enumerate(counts) if count >= 0]
        leaving = [row for row, count in zip(self.rows, counts, strict=True) if count < 0]
        if not staying:
            self.rows, self.runner = [], None
        elif leaving:
            self.rows = [self.rows[index] for index in staying]
            assert self.runner is not None
            self.runner.select_rows(torch.tensor(staying, device=self.runner.input_ids.device))
        if self.rows:
            self._run([counts[index] for index in staying])
        return leaving

    def _begin_step(self) -> list[int]:
        """The number of positions that each row scores, -1 for rows that leave. Waits for the device once."""
        counts = torch.cat([row.begin_step() for row in self.rows])
        is_finite = torch.cat([row.state.is_finite for row in self.rows])
        answers = self._padded([row.state.result.answer_ids for row in self.rows], self.pad_token_id)
        finals = self._padded([row.state.result.is_final for row in self.rows], True)
        columns = [counts[:, None], is_finite[:, None], answers, finals]
        values = torch.cat([column.long() for column in columns], dim=1).tolist()
        return [self._tell(row, value) for row, value in zip(self.rows, values, strict=True)]

    def _tell(self, row: Row, values: list[int]) -> int:
        """Tells a row's client how far it has come; `values` are what `_begin_step` has read. Returns its count."""
        count, is_finite, *tokens_and_flags = values
        if row.job.is_cancelled:
            return -1
        if not is_finite:
            row.job.put(ServerFault(FAILED))
            return -1
        width, length = len(tokens_and_flags) // 2, row.state.answer.shape[1]
        tokens, flags = tokens_and_flags[:length], tokens_and_flags[width : width + length]
        beginning, has_ended = final_beginning(tokens, [flag == 1 for flag in flags], row.end_token_ids)
        row.job.put(row.progress(beginning, count < 0, has_ended))
        return count

    def _run(self, counts: list[int]) -> None:
        """One forward pass, and what each row makes of it."""
        assert self.runner is not None
        answers = self._padded([row.state.answer for row in self.rows], self.pad_token_id)
        positions = self._padded([row.state.scored for row in self.rows], False)
        logits = self.runner.logits(answers, positions, num_positions=sum(counts))
        for row, row_logits in zip(self.rows, logits.split(counts), strict=True):
            try:
                row.commit(row_logits)
            except Exception:  # of this row's sampler: the others go on
                logger.exception("a row failed")
                row.state.is_finite = torch.zeros_like(row.state.is_finite)

    def _padded(self, tensors: list[torch.Tensor], value: int | bool) -> torch.Tensor:
        """Rows of shape `(1, length)` in one tensor as wide as the longest of them."""
        width = max(tensor.shape[1] for tensor in tensors)
        return torch.cat([pad(tensor, (0, width - tensor.shape[1]), value=value) for tensor in tensors])


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _random_state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(state: torch.Tensor, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _random_state_of(seed: int, device: torch.device) -> torch.Tensor:
    """The state of the random numbers after setting a seed; those of others stay as they are."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        return _random_state(device)

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
"""Runs the model over a prompt and an answer canvas, computing only what a step needs.

Source: "prefilling" in Dimple, section 4.3 (arXiv 2505.16990). Holds the prompt, the cache, the attention mask and the
length of each row's canvas. Tokens are chosen in `denoising_dimple`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import CompileConfig, PreTrainedModel

from .adapter_dimple import RowAdapters
from .cache_dimple import CachePolicy, CanvasCache, WindowPolicy
from .cuda_graph_dimple import PassGraph, without_graphs


class CanvasRunner:
    """
    One batch of prompts and their answer canvases.

    The images are encoded before, once, and the prompt is embedded once: an image placeholder that the model writes
    into the answer is a token like any other. A full pass runs all positions of a row and fills its part of the cache;
    any other pass runs a window of each row: what the policy does not keep, and the position before it, whose output
    predicts the first of these. Each row is refreshed by itself, so that it does not depend on its neighbours: in a
    step in which only some rows are stale, a full pass of these comes before the window of all.

    Positions after the longest canvas of the batch are not run. The attention mask of each kind of pass is prepared
    once; without padding there is none, which lets sdpa take its fastest kernels.

    Args:
        model (`DimpleForConditionalGeneration`):
            The model.
        input_ids (`torch.LongTensor` of shape `(batch_size, prompt_length)`):
            Prompt tokens, padded on the left.
        attention_mask (`torch.LongTensor` of shape `(batch_size, prompt_length + answer_length)`):
            1 at tokens, 0 at padding: before a prompt, and after a canvas that is shorter than `answer_length`.
        position_ids (`torch.LongTensor` of shape `(3, batch_size, prompt_length + answer_length)`):
            Positions on the three axes.
        image_features (`torch.FloatTensor` of shape `(num_image_tokens, hidden_size)`, *optional*):
            Features of all images, in the order of their placeholders.
        cache_policy ([`CachePolicy`], *optional*):
            Which keys and values to keep, and for how long; none when missing.
        is_static (`bool`, defaults to `False`):
            Whether every window has the shape of the first: the rows stay until the end. Only under a policy without
            blocks.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        input_ids: torch.LongTensor,
        attention_mask: torch.LongTensor,
        position_ids: torch.LongTensor,
        image_features: torch.FloatTensor | None,
        cache_policy: CachePolicy | None,
        is_static: bool = False,
    ):
        self.model = model
        self._row_adapters = RowAdapters(model)
        self.is_static = is_static
        self._compiled_text_model: Callable[..., Any] | None = None
        self._graph: PassGraph | None = None
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.position_ids = position_ids
        self.prompt_length = input_ids.shape[1]
        self.prompt_embeds = model.embed(input_ids, image_features)
        self.policy = cache_policy
        self.cache: CanvasCache | None = None
        if cache_policy is not None:
            self.cache = CanvasCache(
                model.config.num_hidden_layers, len(input_ids), attention_mask.shape[1], is_static
            )
        self.canvas_lengths = _canvas_lengths(attention_mask[:, self.prompt_length :])
        # The block in which each row was last refreshed, and the passes that its keys and values have served since.
        self._refreshed_in: list[int | None] = [None] * len(input_ids)
        self._ages = [0] * len(input_ids)
        self._masks: dict[tuple[int, int], dict[str, torch.Tensor | None]] = {}
        self._last_window: tuple[list[int], list[int], torch.Tensor] | None = None
        self._probed: dict[int, torch.Tensor] = {}  # row -> logits of its canvas, until the first call of `logits`

    def compile(self, compile_config: CompileConfig | None) -> None:
        """Compiles the text layers for windows, with `compile_config`, or keeps what another call has compiled; and
        captures the pass over a window as a CUDA graph, where the mode has one. The full pass comes once in an answer;
        the head runs at another number of positions in each pass."""
        text_model = self.model.model
        without_graph = without_graphs(compile_config, text_model)
        self._graph = None if without_graph is None else PassGraph()
        self._compiled_text_model = text_model.get_compiled_call(without_graph or compile_config)

    def probe(self, answer: torch.LongTensor, rows: list[int]) -> tuple[torch.BoolTensor, torch.FloatTensor]:
        """
        Logits of the whole canvases of some rows, all of whose positions are masked. The first call of
        [`CanvasRunner.logits`] does not run a row again whose canvas has kept its length.

        Args:
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens, all masked.
            rows (`list[int]`):
                The rows to run, in ascending order.

        Returns:
            `tuple(torch.BoolTensor, torch.FloatTensor)` of shapes `(batch_size, answer_length)` and
            `(num_positions, vocab_size)`: The positions of these canvases, and their logits, row by row.
        """
        lengths = [length if row in rows else 0 for row, length in enumerate(self.canvas_lengths)]
        positions = (
            torch.arange(answer.shape[1], device=answer.device) < torch.tensor(lengths, device=answer.device)[:, None]
        )
        logits = self.full_logits(answer, positions, rows, [0] * len(answer), sum(lengths))
        self._probed.update(zip(rows, logits.split([lengths[row] for row in rows]), strict=True))
        return positions, logits

    def logits(
        self, answer: torch.LongTensor, positions: torch.BoolTensor, num_positions: int | None = None
    ) -> torch.FloatTensor:
        """
        Logits of some positions of the answer, from one pass over each row.

        Args:
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens, the mask token at masked positions.
            positions (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` where logits are wanted. The first of a row is in its present block.
            num_positions (`int`, *optional*):
                Their number, if it is known: then nothing waits for the device.

        Returns:
            `torch.FloatTensor` of shape `(num_positions, vocab_size)`: Logits in the model's dtype, row by row.
        """
        blocks, last_positions = self._blocks(positions)
        if self._probed:
            return self._logits_after_probes(answer, positions, blocks)
        stale = [row for row in range(len(answer)) if self._is_stale(row, blocks[row], last_positions[row])]
        are_all_stale = len(stale) == len(answer)
        full_logits = None
        if stale:
            full_logits = self.full_logits(answer, positions, stale, blocks, num_positions if are_all_stale else None)
        self._ages = [age + 1 for age in self._ages]
        if are_all_stale:
            return full_logits
        if full_logits is None:
            return self._run_window(answer, positions, blocks, num_positions)
        # The stale rows run again with the others, without effect; otherwise the others' cache would be copied.
        of_others = positions.clone()
        of_others[stale] = False
        window_logits = self._run_window(answer, of_others, blocks)
        is_window = of_others[positions]
        logits = window_logits.new_empty(len(is_window), window_logits.shape[1])
        logits[is_window], logits[~is_window] = window_logits, full_logits
        return logits

    def _logits_after_probes(
        self, answer: torch.LongTensor, positions: torch.BoolTensor, blocks: list[int]
    ) -> torch.FloatTensor:
        """As `logits`, for rows that have been probed and for others, whose canvases have grown since."""
        of_row = {row: logits[positions[row, : len(logits)]] for row, logits in self._probed.items()}
        stale = [row for row in range(len(answer)) if row not in of_row]
        if stale:
            full_logits = self.full_logits(answer, positions, stale, blocks)
            of_row.update(zip(stale, full_logits.split(positions[stale].sum(dim=1).tolist()), strict=True))
        self._probed.clear()
        self._ages = [age + 1 for age in self._ages]
        return torch.cat([of_row[row] for row in range(len(answer))])

    def full_logits(
        self,
        answer: torch.LongTensor,
        positions: torch.BoolTensor,
        rows: list[int],
        blocks: list[int],
        num_positions: int | None = None,
    ) -> torch.FloatTensor:
        """
        Logits of some positions of some rows' answers, from a pass that refreshes these rows' keys and values.

        Args:
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens, the mask token at masked positions.
            positions (`torch.BoolTensor` of shape `(batch_size, answer_length)`):
                `True` where logits are wanted; of other rows than `rows` nothing is returned.
            rows (`list[int]`):
                The rows to run, in ascending order.
            blocks (`list[int]`):
                The block that each row of the batch is in.
            num_positions (`int`, *optional*):
                See [`CanvasRunner.logits`].

        Returns:
            `torch.FloatTensor` of shape `(num_positions, vocab_size)`: Logits in the model's dtype, row by row.
        """
        for row in rows:
            self._refreshed_in[row], self._ages[row] = blocks[row], 0
        width = self._width()
        return self._run_full(answer, width, rows, self._predictors(positions, width), num_positions)

    def all_logits(self, answer: torch.LongTensor) -> tuple[torch.LongTensor, torch.FloatTensor]:
        """
        Logits of every position that this pass runs: the whole sequence, or with a filled cache its end. Only under
        policies without blocks.

        Args:
            answer (`torch.LongTensor` of shape `(batch_size, answer_length)`):
                Answer tokens, the mask token at masked positions.

        Returns:
            `tuple(torch.LongTensor, torch.FloatTensor)` of shapes `(batch_size, length)` and
            `(batch_size, length, vocab_size)`: Tokens, and float32 logits shifted so that those at position j are for
            the token at position j (the first position keeps its own).
        """
        rows, width = list(range(len(answer))), self.attention_mask.shape[1]
        if self._is_stale(0, 0, 0):  # then all are: they have run together since the first pass
            self._refreshed_in, self._ages = [0 for _ in rows], [1 for _ in rows]
            start, logits = 0, self._run_full(answer, width, rows, None)
        else:
            self._ages = [age + 1 for age in self._ages]
            start, logits = self.prompt_length - 1, self._run_window(answer, None, [0 for _ in rows])
        logits = torch.cat([logits[:, :1], logits[:, :-1]], dim=1).float()
        return torch.cat([self.input_ids[:, start:], answer], dim=1), logits

    def select_rows(self, rows: torch.LongTensor) -> None:
        """Makes `rows` (`torch.LongTensor` of shape `(num_rows,)`) the new batch; one may come twice."""
        self.input_ids, self.attention_mask = self.input_ids[rows], self.attention_mask[rows]
        self.prompt_embeds, self.position_ids = self.prompt_embeds[rows], self.position_ids[:, rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)
        kept = rows.tolist()
        self._row_adapters.select_rows(kept)
        self.canvas_lengths = [self.canvas_lengths[row] for row in kept]
        self._refreshed_in = [self._refreshed_in[row] for row in kept]
        self._ages = [self._ages[row] for row in kept]
        self._probed = {index: self._probed[row] for index, row in enumerate(kept) if row in self._probed}
        self._masks.clear()

    def append_rows(self, other: "CanvasRunner") -> None:
        """
        Takes in the rows of another runner, after its own. Those that have not run yet are stale, so the next call of
        [`CanvasRunner.logits`] runs them whole. Not where rows must stay.

        Args:
            other ([`CanvasRunner`]):
                Of the same model and cache policy; not used any more.
        """
        prompt_length = max(self._longest_prompt(), other._longest_prompt())
        answer_length = max(*self.canvas_lengths, *other.canvas_lengths)
        for runner in (self, other):
            runner._fit(prompt_length, answer_length)
        if self.cache is not None and other.cache is not None:
            self.cache.append_rows(other.cache)
        for name in ("input_ids", "attention_mask", "prompt_embeds"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))
        self.position_ids = torch.cat([self.position_ids, other.position_ids], dim=1)
        self._probed |= {len(self._ages) + row: logits for row, logits in other._probed.items()}
        self.canvas_lengths = self.canvas_lengths + other.canvas_lengths
        self._refreshed_in += other._refreshed_in
        self._ages += other._ages

    def _longest_prompt(self) -> int:
        """Tokens of the longest prompt, without the padding before it."""
        return int(self.attention_mask[:, : self.prompt_length].sum(dim=1).amax())

    def _fit(self, prompt_length: int, answer_length: int) -> None:
        """Pads or crops, where only padding is, prompts on the left and answers on the right to these lengths."""
        left = prompt_length - self.prompt_length
        right = answer_length - (self.attention_mask.shape[1] - self.prompt_length)
        if self.cache is not None:
            self.cache.pad_positions(left, right)
        self.input_ids = pad(self.input_ids, (left, 0))
        self.prompt_embeds = pad(self.prompt_embeds, (0, 0, left, 0))
        self.attention_mask = pad(self.attention_mask, (left, right))
        self.position_ids = pad(self.position_ids, (left, right))
        self.prompt_length = prompt_length
        self._masks.clear()
        self._last_window = None

    def resize_canvases(self, lengths: list[int]) -> None:
        """Gives each row a canvas of its length in `lengths`, in positions, before the first call of `logits`."""
        for row, (before, after) in enumerate(zip(self.canvas_lengths, lengths, strict=True)):
            if after != before:
                self._probed.pop(row, None)
                self._refreshed_in[row] = None
        self.canvas_lengths = lengths
        prompt_mask, answer_mask = self.attention_mask.tensor_split([self.prompt_length], dim=1)
        positions = torch.arange(answer_mask.shape[1], device=answer_mask.device)
        in_canvas = positions < torch.tensor(lengths, device=answer_mask.device)[:, None]
        self.attention_mask = torch.cat([prompt_mask, in_canvas.to(prompt_mask.dtype)], dim=1)
        self._masks.clear()

    def _blocks(self, positions: torch.BoolTensor) -> tuple[list[int], list[int]]:
        """Each row's block, that of its first position, and its last position; zeros without blocks."""
        if self.policy is None or self.policy.block_length is None:
            return [0] * len(positions), [0] * len(positions)
        first, last = positions.int().argmax(dim=1), positions.shape[1] - 1 - positions.flip(1).int().argmax(dim=1)
        blocks, last_positions = torch.stack([first // self.policy.block_length, last]).tolist()
        return blocks, last_positions

    def _is_stale(self, row: int, block: int, last_position: int) -> bool:
        if self.policy is None or self._refreshed_in[row] is None:
            return True
        _, stop = self.policy.window(block, self._width() - self.prompt_length)
        return last_position >= stop or self.policy.is_stale(self._ages[row], self._refreshed_in[row] != block)

    def _width(self) -> int:
        """Positions of the prompt and of the longest canvas; what comes after is neither run nor seen."""
        return self.prompt_length + max(self.canvas_lengths)

    def _predictors(self, positions: torch.BoolTensor, width: int) -> torch.BoolTensor:
        """From positions of the answer to those, of `width` in the sequence, whose outputs predict them: one
        before."""
        predictors = positions.new_zeros(len(positions), width)
        predictors[:, self.prompt_length - 1 : -1] = positions[:, : width - self.prompt_length]
        return predictors

    def _window(self, blocks: list[int], width: int) -> torch.LongTensor:
        """The positions of each row to run, `(batch_size, length)`; a row that has fewer repeats its last one."""
        policy = self.policy or WindowPolicy()
        bounds = [policy.window(block, width - self.prompt_length) for block in blocks]
        starts = [self.prompt_length - 1 + start for start, _ in bounds]
        stops = [self.prompt_length + stop for _, stop in bounds]
        if self._last_window is not None and self._last_window[:2] == (starts, stops):
            return self._last_window[2]  # without blocks it stays the same, and making it waits for the device
        length = max(stop - start for start, stop in zip(starts, stops, strict=True))
        ends = torch.tensor([starts, stops], device=self.input_ids.device)[..., None]
        window = (ends[0] + torch.arange(length, device=ends.device)).minimum(ends[1] - 1)
        self._last_window = starts, stops, window
        return window

    def _run_full(
        self,
        answer: torch.LongTensor,
        width: int,
        rows: list[int],
        predictors: torch.BoolTensor | None,
        num_positions: int | None = None,
    ) -> torch.FloatTensor:
        """Runs `width` positions of some rows; logits at `predictors`, which is for all rows, or everywhere."""
        is_whole_batch = len(rows) == len(answer)
        index = torch.arange(len(answer), device=answer.device)
        if not is_whole_batch:
            index = torch.tensor(rows, device=answer.device)
        self._set_positions(index, torch.arange(width, device=answer.device).expand(len(rows), -1), None)
        answer_embeds = self.model.embed(answer[index, : width - self.prompt_length])
        if is_whole_batch:
            mask = self._mask(width, width)
        else:
            mask = self._make_mask(self.attention_mask[index, :width], width)
        inputs = {
            "inputs_embeds": torch.cat([self.prompt_embeds[index], answer_embeds], dim=1),
            "attention_mask": mask,
            "position_ids": self.position_ids[:, index, :width],
            "past_key_values": self.cache,
            "is_causal": False,
        }
        return self._run(inputs, None if predictors is None else predictors[index], num_positions)

    def _run_window(
        self,
        answer: torch.LongTensor,
        positions: torch.BoolTensor | None,
        blocks: list[int],
        num_positions: int | None = None,
    ) -> torch.FloatTensor:
        """Runs a window of all rows; logits of some positions of the answer, or at each position of the window."""
        width = self._width()
        window = self._window(blocks, width)
        if positions is None:
            return self._run(self._window_inputs(answer, width, window), None, None)
        if self._compiled_text_model is None:
            keep = self._predictors(positions, width).gather(1, window)
            return self._run(self._window_inputs(answer, width, window), keep, num_positions)
        # The layers first, so that the device has work while the positions to score are prepared.
        run = partial(self._static_states, self._compiled_text_model)
        states = run(answer) if self._graph is None else self._graph(run, answer)
        kept = _kept(self._predictors(positions, width).gather(1, window), num_positions)
        return self.model.lm_head(states[kept]).to(self.input_ids.device)

    def _static_states(self, text_model: Callable[..., Any], answer: torch.LongTensor) -> torch.FloatTensor:
        """The last hidden states of the window that never changes, from its tokens alone."""
        width = self._width()
        window = self._window([0] * len(answer), width)
        return text_model(**self._window_inputs(answer, width, window)).last_hidden_state

    def _window_inputs(self, answer: torch.LongTensor, width: int, window: torch.LongTensor) -> dict[str, Any]:
        """What the text model is called with for the positions `window` of all rows, which see `width`."""
        index = torch.arange(len(answer), device=answer.device)
        self._set_positions(index, window, width)
        start = self.prompt_length - 1  # no window begins before
        answer_embeds = self.model.embed(answer[:, : width - self.prompt_length])
        embeds = torch.cat([self.prompt_embeds[:, start:], answer_embeds], dim=1)
        return {
            "inputs_embeds": embeds[index[:, None], window - start],
            "attention_mask": self._mask(window.shape[1], width),
            "position_ids": self.position_ids[:, index[:, None], window],
            "past_key_values": self.cache,
            "is_causal": False,
        }

    def _set_positions(self, rows: torch.LongTensor, positions: torch.LongTensor, width: int | None) -> None:
        self._row_adapters.run_rows(rows)
        if self.cache is not None:
            self.cache.set_positions(rows, positions, width)

    def _run(self, inputs: dict[str, Any], keep: torch.BoolTensor | None, num_kept: int | None) -> torch.FloatTensor:
        """Runs the model; logits where `keep`, of the shape of its tokens, is `True`, or everywhere."""
        kept = None if keep is None else _kept(keep, num_kept)
        return self.model(**inputs, logits_to_keep=kept).logits.to(self.input_ids.device)

    def _mask(self, num_queries: int, width: int) -> dict[str, torch.Tensor | None]:
        """What the attention backend wants for so many positions of all rows that see `width`; made once."""
        if (num_queries, width) not in self._masks:
            self._masks[num_queries, width] = self._make_mask(self.attention_mask[:, :width], num_queries)
        return self._masks[num_queries, width]

    def _make_mask(self, attention_mask: torch.LongTensor, num_queries: int) -> dict[str, torch.Tensor | None]:
        # Only shape, dtype and device of the embeddings matter to a mask.
        shape_only = torch.empty(
            len(attention_mask), num_queries, 0, dtype=self.model.dtype, device=attention_mask.device
        )
        padding = None if bool(attention_mask.all()) else attention_mask
        return self.model.model.prepare_attention_mask(shape_only, padding, self.cache, is_causal=False)


def _canvas_lengths(answer_mask: torch.LongTensor) -> list[int]:
    """Positions of each row up to the last that is no padding; `answer_mask` has shape `(batch_size,
    answer_length)`."""
    positions = torch.arange(1, answer_mask.shape[1] + 1, device=answer_mask.device)
    return ((answer_mask != 0) * positions).amax(dim=1).tolist()


def _kept(keep: torch.BoolTensor, num_kept: int | None) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """An index of the positions where `keep`, of two dimensions, is `True`."""
    return keep if num_kept is None else torch.nonzero_static(keep, size=num_kept).unbind(1)

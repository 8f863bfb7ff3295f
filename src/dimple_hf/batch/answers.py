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
"""Answers batches of rows with `generate`, while worker processes read and prepare the next batches.

Decoding is greedy, and each row of a batch is decoded as if it were alone, so that answers do not depend, but for
rounding, on which rows share a batch.
"""

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel, ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

from ..data.image_features import ImageFeatures
from ..processing import StructurePrior
from ..processing.structure_prior_dimple import canvas_inputs
from .prompts import Prompt, PromptReader

#: A batch on its way from a worker: its prompts without their images, and the model's inputs for those without an
#: error. Arrays, because tensors would travel through shared memory, of which containers have little.
PreparedBatch = tuple[list[Prompt], dict[str, np.ndarray] | None]


class Answerer:
    """
    Asks a model.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            What is asked.
        prior ([`StructurePrior`], *optional*):
            The form of all answers.
        options (`Mapping[str, Any]`, *optional*):
            Options of `generate`; those that are `None` are the model's.
        return_confidence (`bool`, *optional*, defaults to `False`):
            Whether lines have the probability of the answer, or under a prior of each value.

    Raises:
        ValueError: If `return_confidence` is set for a model in causal mode.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        prior: StructurePrior | None = None,
        options: Mapping[str, Any] | None = None,
        return_confidence: bool = False,
    ) -> None:
        if return_confidence and not model.config.full_attn_mask:
            raise ValueError("confidences must be read in bidirectional mode (got `full_attn_mask=False`)")
        self.model = model
        # Nothing is kept from batch to batch: a resumed run would encode images in other groups, with other rounding.
        self.features = ImageFeatures(model, max_bytes=0)
        self.processor = processor
        self.prior = prior
        self.options = {name: value for name, value in (options or {}).items() if value is not None}
        self.return_confidence = return_confidence

    def answer(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """
        Args:
            prompts (`Sequence[Prompt]`):
                Prompts without an error.

        Returns:
            `list[dict[str, Any]]`: For each prompt what [`~Answerer.generate`] returns, or `{"error": reason}` for
            one that processor or model refuse.
        """
        if not prompts:
            return []
        try:
            return self.generate(prepare(prompts, self.processor))
        except ValueError as error:
            if len(prompts) == 1:
                return [{"error": str(error)}]
        # One of them is to blame, and the others shall not suffer for it.
        middle = len(prompts) // 2
        return self.answer(prompts[:middle]) + self.answer(prompts[middle:])

    def generate(self, inputs: BatchFeature) -> list[dict[str, Any]]:
        """
        Args:
            inputs (`BatchFeature`):
                What [`prepare`] has made of prompts.

        Returns:
            `list[dict[str, Any]]`: For each row `{"answer": text}`, or under a prior `{"value": what it reads}`; with
            `return_confidence` also `confidence`, a probability in [0, 1] or under a prior a tree of them; with
            `truncated` where a longer canvas may have given a longer answer ([`~StructurePrior.touched_bound`]); and
            `passes` (forward passes) if the model is in bidirectional mode. `{"error": reason}`, with `passes`, where
            the prior's class refuses the answer's values.

        Raises:
            ValueError: If the model refuses one of them.
        """
        num_rows, prompt_length = inputs["input_ids"].shape
        encoded = self.features.encode(inputs)
        canvas = {} if self.prior is None else canvas_inputs(self.prior, num_rows, self.processor.tokenizer)
        output = self.model.generate(
            **encoded, **canvas, **self.options, do_sample=False, return_dict_in_generate=True
        )
        read = self._read_texts if self.prior is None else self._read_values
        lines = read(output, output.sequences[:, prompt_length:])
        passes = output.get("num_forward_passes")  # not counted in causal mode
        if passes is not None:
            lines = [line | {"passes": count} for line, count in zip(lines, passes.tolist(), strict=True)]
        return lines

    def _read_texts(self, output: Any, answers: torch.Tensor) -> list[dict[str, Any]]:
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        lines: list[dict[str, Any]] = [{"answer": text} for text in texts]
        if self.return_confidence:
            confidences = output.token_logprobs.nansum(dim=1).exp().tolist()
            lines = [line | {"confidence": value} for line, value in zip(lines, confidences, strict=True)]
        return lines

    def _read_values(self, output: Any, answers: torch.Tensor) -> list[dict[str, Any]]:
        prior = cast(StructurePrior, self.prior)
        priors = [prior] * len(answers)
        if self.return_confidence:
            values, confidences = self.processor.parse(output, priors, return_confidence=True)
            lines = [{"value": value, "confidence": tree} for value, tree in zip(values, confidences, strict=True)]
        else:
            lines = [{"value": value} for value in self.processor.parse(output, priors)]
        for line, answer in zip(lines, answers.tolist(), strict=True):
            if prior.touched_bound(self.processor.tokenizer, answer):
                line["truncated"] = True
        return [{"error": str(line["value"])} if isinstance(line["value"], Exception) else line for line in lines]


def prepare(prompts: Sequence[Prompt], processor: ProcessorMixin) -> BatchFeature:
    """
    Args:
        prompts (`Sequence[Prompt]`):
            At least one, none with an error.
        processor ([`DimpleProcessor`]):
            The model's.

    Returns:
        `BatchFeature`: The model's inputs but for the canvas.

    Raises:
        ValueError: If the processor refuses one of them.
    """
    images = [prompt.images for prompt in prompts]
    return processor(
        text=[prompt.text for prompt in prompts], images=images if any(images) else None, return_tensors="pt"
    )


class PreparedBatches(Dataset):
    """
    Batches by the rows that they hold, for a `DataLoader`.

    Args:
        reader ([`PromptReader`]):
            Reads and prepares the rows.
    """

    def __init__(self, reader: PromptReader) -> None:
        self.reader = reader

    def __getitem__(self, rows: Sequence[int]) -> PreparedBatch:
        """Reads and prepares `rows` (`Sequence[int]`); without inputs where the processor refuses one of them."""
        prompts = [self.reader.read(row) for row in rows]
        valid = [prompt for prompt in prompts if prompt.error is None]
        inputs = None
        with suppress(ValueError):  # `Answerer.answer` finds out which of them it is
            inputs = prepare(valid, self.reader.processor) if valid else None
        arrays = None if inputs is None else {name: value.numpy() for name, value in inputs.items()}
        return [replace(prompt, images=[]) for prompt in prompts], arrays


def answer_batches(
    answerer: Answerer, reader: PromptReader, batches: Iterable[Sequence[int]], num_workers: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """
    Answers batches. Workers read and prepare the next ones while the model works at the present one.

    Args:
        answerer ([`Answerer`]):
            Who answers.
        reader ([`PromptReader`]):
            Reads the rows.
        batches (`Iterable[Sequence[int]]`):
            The rows of each batch.
        num_workers (`int`, *optional*, defaults to 0):
            Processes that read ahead; without any, batches are prepared in between.

    Returns:
        `Iterator[list[dict[str, Any]]]`: For each batch a line for each prompt: its label, and its answer or error.
    """
    loader = DataLoader(
        PreparedBatches(reader),
        sampler=batches,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        worker_init_fn=partial(_end_with_parent, os.getpid()),
    )
    for prompts, arrays in loader:
        answers = iter(_answer_prepared(answerer, reader, prompts, arrays))
        yield [
            prompt.label | (next(answers) if prompt.error is None else {"error": prompt.error}) for prompt in prompts
        ]


def _end_with_parent(parent: int, worker: int) -> None:
    """Lets a worker end when its parent was killed: one with a batch to hand over would wait for it forever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(batch: PreparedBatch) -> PreparedBatch:
    return batch


def _answer_prepared(
    answerer: Answerer, reader: PromptReader, prompts: list[Prompt], arrays: dict[str, np.ndarray] | None
) -> list[dict[str, Any]]:
    """The answers of the prompts without an error; they are read again where they cannot be asked together."""
    rows = [prompt.row for prompt in prompts if prompt.error is None]
    if arrays is not None:
        with suppress(ValueError):
            return answerer.generate(BatchFeature({name: torch.from_numpy(value) for name, value in arrays.items()}))
    again = [reader.read(row) for row in rows]
    answers = iter(answerer.answer([prompt for prompt in again if prompt.error is None]))
    return [{"error": prompt.error} if prompt.error is not None else next(answers) for prompt in again]

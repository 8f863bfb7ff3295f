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
"""Batches of prompts in, a line for each out: `generate` after a thread that reads ahead.

Decoding is greedy, and each row of a batch is decoded as if it were alone, so that answers do not depend, but for
rounding, on which rows share a batch. Imported by `run`, the command `extract` and the benchmark.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from transformers import PreTrainedModel, ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

from ..processing import StructurePrior
from ..processing.structure_prior_dimple import canvas_inputs
from .prompts import Prompt

Item = TypeVar("Item")


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
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        prior: StructurePrior | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.processor = processor
        self.prior = prior
        self.options = {name: value for name, value in (options or {}).items() if value is not None}

    def prepare(self, prompts: Sequence[Prompt]) -> BatchFeature:
        """
        Args:
            prompts (`Sequence[Prompt]`):
                At least one, none with an error.

        Returns:
            `BatchFeature`: The model's inputs but for the canvas.

        Raises:
            ValueError: If the processor refuses one of them.
        """
        images = [prompt.images for prompt in prompts]
        return self.processor(
            text=[prompt.text for prompt in prompts], images=images if any(images) else None, return_tensors="pt"
        )

    def answer(self, prompts: Sequence[Prompt], inputs: BatchFeature | None = None) -> list[dict[str, Any]]:
        """
        Args:
            prompts (`Sequence[Prompt]`):
                Prompts without an error.
            inputs (`BatchFeature`, *optional*):
                What `prepare` has made of them.

        Returns:
            `list[dict[str, Any]]`: For each prompt `{"answer": text}`, or under a prior `{"value": what it reads}`,
            with `passes` if the model is in bidirectional mode; `{"error": reason}` for one that processor or model
            refuse.
        """
        if not prompts:
            return []
        try:
            return self._generate(self.prepare(prompts) if inputs is None else inputs)
        except ValueError as error:
            if len(prompts) == 1:
                return [{"error": str(error)}]
        # One of them is to blame, and the others shall not suffer for it.
        middle = len(prompts) // 2
        return self.answer(prompts[:middle]) + self.answer(prompts[middle:])

    def _generate(self, inputs: BatchFeature) -> list[dict[str, Any]]:
        num_rows, prompt_length = inputs["input_ids"].shape
        inputs = inputs.to(self.model.device)
        # Here, not where the inputs are made: what a prior remembers of earlier answers belongs to one thread.
        canvas = {} if self.prior is None else canvas_inputs(self.prior, num_rows, self.processor.tokenizer)
        output = self.model.generate(**inputs, **canvas, **self.options, do_sample=False, return_dict_in_generate=True)
        if self.prior is None:
            texts = self.processor.batch_decode(output.sequences[:, prompt_length:], skip_special_tokens=True)
            lines: list[dict[str, Any]] = [{"answer": text} for text in texts]
        else:
            values = self.processor.parse(output, [self.prior] * num_rows)
            lines = [{"value": value} for value in values]
        passes = output.get("num_forward_passes")  # not counted in causal mode
        if passes is not None:
            lines = [line | {"passes": count} for line, count in zip(lines, passes.tolist(), strict=True)]
        return lines


def answer_batches(answerer: Answerer, batches: Iterable[Sequence[Prompt]]) -> Iterator[list[dict[str, Any]]]:
    """
    Answers batches. The next one is read and prepared while the model works at the present one.

    Args:
        answerer ([`Answerer`]):
            Who answers.
        batches (`Iterable[Sequence[Prompt]]`):
            The prompts of each batch, also those with an error. Asked for in another thread.

    Returns:
        `Iterator[list[dict[str, Any]]]`: For each batch a line for each prompt: its label, and its answer or error.
    """

    def prepared() -> Iterator[tuple[Sequence[Prompt], list[Prompt], BatchFeature | None]]:
        for prompts in batches:
            sound = [prompt for prompt in prompts if prompt.error is None]
            inputs = None
            with suppress(ValueError):  # `answer` finds out which of them it is
                inputs = answerer.prepare(sound) if sound else None
            yield prompts, sound, inputs

    for prompts, sound, inputs in one_ahead(prepared()):
        answers = iter(answerer.answer(sound, inputs))
        yield [
            prompt.label | (next(answers) if prompt.error is None else {"error": prompt.error}) for prompt in prompts
        ]


def one_ahead(items: Iterable[Item]) -> Iterator[Item]:
    """
    Args:
        items (`Iterable[Item]`):
            Items other than `None`.

    Returns:
        `Iterator[Item]`: The same; each is made in another thread while the caller works with the one before it. What
        making one raises is raised here.
    """
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(next, iterator, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, iterator, None)
            yield item

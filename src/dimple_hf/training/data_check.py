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
"""Reads a data set as training would, without a model: counts, lengths, bad examples with their reasons, and one
example as the model gets it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from ..data.examples import BadExampleError, naming
from .collator import IGNORED, MAX_REASONS, DimpleDataCollator, TrainingSequence

#: Examples that are read before a run begins.
NUM_CHECKED = 64


@dataclass
class DataReport:
    """
    What was found in a data set.

    Args:
        num_examples (`int`):
            Examples that were read.
        tokens, image_tokens, turns (`list[int]`):
            Of each good example: tokens of its rows, how many of them are images', and its answers.
        bad (`list[str]`):
            Which examples are bad, and why.
        sample (`str`):
            The first good example as text, what is learned in brackets.
    """

    num_examples: int = 0
    tokens: list[int] = field(default_factory=list)
    image_tokens: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    sample: str = ""

    def __str__(self) -> str:
        lines = [f"{self.num_examples} examples, {len(self.bad)} of them bad"]
        for name in ("tokens", "image_tokens", "turns"):
            values = getattr(self, name)
            if values:
                lines += [
                    "",
                    f"{name.replace('_', ' ')} of an example: {min(values)} to {max(values)}",
                    *_bars(values),
                ]
        if self.bad:
            lines += ["", "bad examples:", *self.bad]
        if self.sample:
            lines += ["", "the first good one, what is learned in [brackets]:", self.sample]
        return "\n".join(lines)


def check_examples(
    examples: Sequence[Any] | Iterable[Any], collator: DimpleDataCollator, limit: int | None = None
) -> DataReport:
    """
    Args:
        examples (`Sequence` or `Iterable`):
            Examples as [`read_example`] takes them.
        collator ([`DimpleDataCollator`]):
            Reads them; its `on_bad_example` does not matter here.
        limit (`int`, *optional*):
            How many to read, from the first; all when missing.

    Returns:
        [`DataReport`]
    """
    report = DataReport()
    for position, example in enumerate(islice(_in_order(examples), limit)):
        report.num_examples += 1
        try:
            with naming(example, position):
                sequences = collator.read_sequences(example)
        except BadExampleError as error:
            report.bad.append(str(error))
            continue
        report.tokens.append(sum(len(sequence.input_ids) for sequence in sequences))
        image_token_id = collator.processor.image_token_id
        report.image_tokens.append(sum(sequence.input_ids.count(image_token_id) for sequence in sequences))
        report.turns.append(sum(1 + max(sequence.branch_ids or [0]) for sequence in sequences))
        report.sample = report.sample or _render(sequences, collator)
    return report


def refuse_bad_data(examples: Any, collator: DimpleDataCollator, name: str) -> None:
    """
    Reads the first examples of a data set before anything expensive begins.

    Args:
        examples:
            Examples.
        collator ([`DimpleDataCollator`]):
            Its `on_bad_example` and `max_bad_share` decide what is refused.
        name (`str`):
            What the error calls the data set.

    Raises:
        ValueError: If one is bad, or more than the collator lets be skipped. The message lists them.
    """
    report = check_examples(examples, collator, NUM_CHECKED)
    allowed = collator.max_bad_share * report.num_examples if collator.on_bad_example == "skip" else 0
    if len(report.bad) > allowed:
        raise ValueError(
            f"{name} must hold good examples (got {len(report.bad)} bad ones among the first {report.num_examples}):\n"
            + "\n".join(report.bad[:MAX_REASONS])
        )


def _in_order(examples: Any) -> Iterable[Any]:
    return (examples[index] for index in range(len(examples))) if hasattr(examples, "__getitem__") else examples


def _bars(values: list[int], num_bins: int = 8, width: int = 40) -> list[str]:
    """A histogram, a line for each bin that holds something."""
    low, step = min(values), max(1, -(-(max(values) - min(values) + 1) // num_bins))
    counts = Counter((value - low) // step for value in values)
    most = max(counts.values())
    return [
        f"{low + index * step:>7} - {low + (index + 1) * step - 1:<7} {'#' * max(1, width * counts[index] // most)} "
        f"{counts[index]}"
        for index in sorted(counts)
    ]


def _render(sequences: list[TrainingSequence], collator: DimpleDataCollator) -> str:
    """Text of an example's rows, what is learned in brackets, and runs of image tokens and padding by their length."""
    tokenizer = collator.processor.tokenizer
    long_runs = (collator.processor.image_token_id, tokenizer.pad_token_id)

    def text_of(tokens: Iterable[int]) -> str:
        runs = ((token, list(run)) for token, run in groupby(tokens, key=lambda token: token in long_runs and token))
        return "".join(
            f"{tokenizer.decode(run[:1])} x {len(run)}" if token and len(run) > 1 else tokenizer.decode(run)
            for token, run in runs
        )

    texts = []
    for sequence in sequences:
        pairs = zip(sequence.input_ids, sequence.labels, strict=True)
        pieces = [
            (learned, text_of(token for token, _ in part))
            for learned, part in groupby(pairs, key=lambda pair: pair[1] != IGNORED)
        ]
        texts.append("".join(f"[{text}]" if learned else text for learned, text in pieces))
    return "\n--\n".join(texts)

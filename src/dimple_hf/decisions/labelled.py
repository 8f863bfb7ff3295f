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
"""Labelled examples: questions with known answers about an image or a text, one example a line of JSON."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.images import describe_no_data
from ..modeling import DimpleForConditionalGeneration
from ..processing import DimpleProcessor
from .layout import LabelLayout, TextLayout, lay_out
from .parsing import questions_from_json
from .questions import Predicate, Question
from .reading import Conversation, read_canvases


@dataclass(frozen=True)
class LabelledExample:
    """
    An input, questions about it, and their right answers.

    Args:
        conversation (`list[dict]`):
            What the questions are about.
        questions (`Sequence[Predicate | Choice | Score]`):
            The questions.
        targets (`Sequence[int]`):
            Index of the right option of each question.
    """

    conversation: Conversation
    questions: Sequence[Question]
    targets: Sequence[int]


def read_labelled(path: Path) -> list[LabelledExample]:
    """
    Reads labelled examples from a file of JSON lines; blank lines are skipped.

    Args:
        path (`Path`):
            The file. Each line has either `image` (a path, relative to the file) or `text`; `questions`; and
            `answers`, one for each question: a boolean, the value of a choice, or the label of a level.

    Raises:
        ValueError: If there is no such file, or a line is not written so, or its image is no file. The message names
            the file and the line.
    """
    if not path.is_file():
        raise ValueError(f"`data` must be a file of JSON lines (got {path})")
    other = describe_no_data(path)
    if other is not None:
        raise ValueError(f"`data` must be a file of JSON lines (got {path}, {other})")
    examples = []
    with path.open("rb") as lines:  # text that is not UTF-8 is an error of its line
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                examples.append(_labelled_example(json.loads(line), path.parent))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return examples


def _labelled_example(example: Any, folder: Path) -> LabelledExample:
    if not isinstance(example, dict) or ("image" in example) == ("text" in example):
        raise ValueError("it must be an object with either `image` or `text`")
    (name,) = {"image", "text"} & set(example)
    if not isinstance(example[name], str):
        raise ValueError(f"`{name}` must be a string (got {example[name]!r})")
    part = {"type": "text", "text": example[name]}
    if name == "image":
        image = folder / example["image"]
        if not os.path.isfile(image):  # also of a name that is too long for a file
            raise ValueError(f"`image` must be a file (got {image})")
        part = {"type": "image", "path": str(image)}
    questions = questions_from_json(example.get("questions"))
    answers = example.get("answers")
    if not isinstance(answers, list) or len(answers) != len(questions):
        raise ValueError(f"`answers` must be a list of {len(questions)} answers (got {answers!r})")
    targets = [_target(*pair) for pair in zip(questions, answers, strict=True)]
    return LabelledExample([{"role": "user", "content": [part]}], questions, targets)


def _target(question: Question, answer: Any) -> int:
    if isinstance(question, Predicate):
        if not isinstance(answer, bool):
            raise ValueError(f"the answer to {question.instructions!r} must be true or false (got {answer!r})")
        return 0 if answer else 1
    values = [(type(option.value), option.value) for option in question.options]
    if (type(answer), answer) not in values:
        raise ValueError(f"the answer to {question.instructions!r} must be one of its options (got {answer!r})")
    return values.index((type(answer), answer))


def layout_of(
    model: DimpleForConditionalGeneration,
    processor: DimpleProcessor,
    example: LabelledExample,
    independent: bool = False,
    reading: str = "label",
) -> LabelLayout | TextLayout:
    """
    Lays the questions of an example out on its canvases.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            Who will read them.
        example ([`LabelledExample`]):
            The example.
        independent (`bool`, defaults to `False`), reading (`"label"` or `"text"`, defaults to `"label"`):
            See [`decide`].

    Raises:
        ValueError: If a text holds a special token, or a question has more options than the tokenizer has labels of
            one token.
    """
    mask_token_id = model.config.mask_token_id
    return lay_out(processor.tokenizer, mask_token_id, example.questions, 1, independent, reading)


def read_log_probs(
    model: DimpleForConditionalGeneration,
    processor: DimpleProcessor,
    examples: Sequence[LabelledExample],
    batch_size: int = 8,
    independent: bool = False,
    reading: str = "label",
) -> list[list[torch.Tensor]]:
    """
    Asks a model the questions of all examples, each example on canvases of its own as [`decide`] lays them out.

    Args:
        model ([`DimpleForConditionalGeneration`]), processor ([`DimpleProcessor`]):
            The model and its processor.
        examples (`Sequence[LabelledExample]`):
            The examples.
        batch_size (`int`, defaults to 8):
            Most rows of one forward pass; a row holds up to 16 questions of one example.
        independent (`bool`, defaults to `False`), reading (`"label"` or `"text"`, defaults to `"label"`):
            See [`decide`].

    Returns:
        `list[list[torch.FloatTensor]]`: For each example and question, the log-probabilities of its options,
        `(num_options,)`.

    Raises:
        ValueError: If a text holds a special token, a question has more options than the tokenizer has labels of one
            token, or an example has more tokens than the model has positions.
    """
    layouts = [layout_of(model, processor, example, independent, reading) for example in examples]
    canvases = [canvas for index, layout in enumerate(layouts) for canvas in layout.canvases(index)]
    conversations = [example.conversation for example in examples]
    rows = read_canvases(model, processor, conversations, canvases, batch_size)
    return [
        [log_probs[0] for log_probs in layout.log_probs([next(rows) for _ in range(layout.num_canvases)])]
        for layout in layouts
    ]

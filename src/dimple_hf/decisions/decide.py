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
"""Decisions: typed questions about an input, answered with a probability for each option in one forward pass.

Each question is followed by the fixed text of its answer and one masked position. The distribution at that position,
restricted to the labels of the question's options, is the answer. All questions about an input stand in one row; they
see the input, but not each other:

```text
input    [image]
row      1. Is the price above 500? A. yes B. no   1. [mask]   1. Which label ...? A. price B. qty C. age   1. [mask]
                                                      |                                                        |
read                                               A 0.97                                                   A 0.02
                                                   B 0.03                                                   B 0.95
                                                                                                            C 0.03
```
"""

import mimetypes
import os
from collections.abc import Sequence
from typing import Any

import PIL.Image
import torch

from ..modeling import DimpleForConditionalGeneration
from ..processing import DimpleProcessor
from ..processing.messages_dimple import check_conversation
from .answers import Answer, answer_of
from .calibration import Calibration
from .layout import lay_out
from .parsing import MAX_QUESTIONS
from .questions import Question
from .reading import Conversation, read_canvases


def decide(
    model: DimpleForConditionalGeneration,
    processor: DimpleProcessor,
    inputs: Any,
    questions: Sequence[Question],
    permutations: int = 1,
    independent: bool = False,
    reading: str = "label",
    calibration: Calibration | None = None,
    batch_size: int = 8,
) -> list[Answer] | list[list[Answer]]:
    """
    Answers typed questions about one input or many, with a probability for each option.

    1. Lay out rows: up to 16 questions of an input in each. They do not see each other, nor the input them.
    2. Run the model once over each batch of canvases. The images of an input are encoded once.
    3. Normalise the probabilities of each question's labels, average them over rotated option orders, and divide
       log-probabilities by the temperature of `calibration` before that.

    Args:
        model ([`DimpleForConditionalGeneration`]):
            The model, in either mode.
        processor ([`DimpleProcessor`]):
            Its processor.
        inputs (`str`, `os.PathLike`, `PIL.Image.Image`, `list[dict]`, or a list of these):
            An image (a Pillow image or a path as `os.PathLike`), a text, or a conversation; or a list of them. A
            string that is the path of a file is refused, so that no path is taken for a text.
        questions (`Sequence[Predicate | Choice | Score]`):
            1 to 400 questions.
        permutations (`int`, defaults to 1):
            Rotated orders of each question's options to average over, as rows of the same batch, 1 to 255. More than 1
            lessens the preference that models have for options by their position.
        independent (`bool`, defaults to `False`):
            Whether each question is a row of its own in which the input sees the question, as in a chat: slower, and
            no different in causal mode. FlashAttention, which takes no mask, needs it.
        reading (`"label"` or `"text"`, defaults to `"label"`):
            `"label"` lists the options in the prompt and reads their labels. `"text"` lists none and scores the text
            of each option, token by token from left to right: exact for options of one token; for longer ones the
            product of conditional probabilities in that order, which costs one row for each token.
        calibration ([`Calibration`], *optional*):
            Temperatures fitted on labelled examples, with the same `independent` and `reading`.
        batch_size (`int`, defaults to 8):
            Most rows of one forward pass.

    Returns:
        `list[Answer]` in the order of the questions for one input; a list of these for a list of inputs.

    Raises:
        ValueError: If there are no or too many questions, or a question or message is none; if a text holds a special
            token, a question has more options than the tokenizer has labels of one token, or the attention cannot keep
            questions apart; or if an input with its questions has more tokens than the model has
            positions.

    Example:

    ```python
    >>> from dimple_hf.decisions import Choice, Predicate, decide

    >>> questions = [Predicate("The price is above 500."), Choice("Which number is largest?", ["price", "qty"])]
    >>> price, largest = decide(model, processor, Path("form.png"), questions)
    >>> price.probability, largest.choice, largest.confidence
    ```
    """
    if not isinstance(questions, Sequence) or not all(isinstance(question, Question) for question in questions):
        raise ValueError(f"`questions` must be a list of Predicate, Choice and Score (got {questions!r})")
    if not 1 <= len(questions) <= MAX_QUESTIONS:
        raise ValueError(f"`questions` must hold 1 to {MAX_QUESTIONS} questions (got {len(questions)})")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer >= 1 (got {batch_size!r})")
    is_batch = isinstance(inputs, (list, tuple)) and not _is_conversation(inputs)
    conversations = [_as_conversation(item) for item in (inputs if is_batch else [inputs])]
    if calibration is not None:
        calibration.check_ways(independent=independent, reading=reading)
    # 1. Layout
    mask_token_id = model.config.mask_token_id
    layout = lay_out(processor.tokenizer, mask_token_id, questions, permutations, independent, reading)
    canvases = [canvas for index in range(len(conversations)) for canvas in layout.canvases(index)]

    # 2. Forward passes
    rows = read_canvases(model, processor, conversations, canvases, batch_size)

    # 3. Probabilities
    answers = []
    for _ in conversations:
        log_probs = layout.log_probs([next(rows) for _ in range(layout.num_canvases)])
        answers.append([answer_from(*pair, calibration) for pair in zip(questions, log_probs, strict=True)])
    return answers if is_batch else answers[0]


def _is_conversation(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(message, dict) for message in value)


def _is_image_name(text: str) -> bool:
    """Whether a text is the name or the URL of an image, which is never read, and no sentence."""
    kind, _ = mimetypes.guess_type(text)
    return kind is not None and kind.startswith("image/") and not any(map(str.isspace, text))


def _as_conversation(item: Any) -> Conversation:
    if _is_conversation(item):
        check_conversation(item)
        return list(item)
    if isinstance(item, str):
        if os.path.isfile(item) or _is_image_name(item):
            raise ValueError(f"`inputs` must give a file as `pathlib.Path`: a string is a text (got {item!r})")
        return [{"role": "user", "content": [{"type": "text", "text": item}]}]
    if isinstance(item, PIL.Image.Image):
        return [{"role": "user", "content": [{"type": "image", "image": item}]}]
    if isinstance(item, os.PathLike):
        return [{"role": "user", "content": [{"type": "image", "path": os.fspath(item)}]}]
    raise ValueError(f"`inputs` must be texts, images, paths or conversations (got {type(item).__name__})")


def answer_from(question: Question, log_probs: torch.Tensor, calibration: Calibration | None = None) -> Answer:
    """
    Builds the answer to a question from what was read.

    Args:
        question ([`Predicate`], [`Choice`] or [`Score`]):
            The question.
        log_probs (`torch.FloatTensor` of shape `(permutations, num_options)`):
            Log-probabilities of its options, in the question's order.
        calibration ([`Calibration`], *optional*):
            Temperatures.
    """
    temperature = 1.0 if calibration is None else calibration.temperature(question)
    log_probs = log_probs.double()
    probabilities = (log_probs / temperature).softmax(dim=1).mean(dim=0)
    label_mass = log_probs.exp().sum(dim=1).mean().clamp(max=1.0)
    return answer_of(question, probabilities.tolist(), label_mass.item())

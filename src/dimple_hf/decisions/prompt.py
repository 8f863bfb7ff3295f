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
"""The text of decisions: questions with labelled options, and answers of one label each. Pure functions.

```text
prompt   1. Is the price above 500?
         A. yes
         B. no
         2. Which label has the largest number?
         A. price
         B. qty
         C. age
         Answer with the option's letter from the given choices directly.
answer   1. A
         2. C
```

Options and the last sentence are written as in LLaVA's multiple-choice data (arXiv 2310.03744), which Dimple's
instruction tuning contains. A label with the space before it is one token, so an answer has one masked position for
each question and the rest of it is given.
"""

import string
from collections.abc import Iterator, Sequence
from itertools import product

from transformers import PreTrainedTokenizerBase

from .questions import Question

LABELS = tuple(string.ascii_uppercase)
"""Labels that every byte-level tokenizer of GPT-2's family has as one token, also after a space."""

LABEL_PREFIX = " "
"""Text between a question's number and its label. It is part of the label's token."""

INSTRUCTION = "Answer with the option's letter from the given choices directly."


def decision_question(question: Question, number: int, labels: Sequence[str] = LABELS) -> str:
    """
    Writes one question.

    Args:
        question ([`Predicate`], [`Choice`] or [`Score`]):
            The question. Each run of white space in its texts becomes one space, so that a text stays on its line.
        number (`int`):
            Number of the question, from 1.
        labels (`Sequence[str]`, defaults to A to Z):
            Label of each option, in order; at least as many as there are options.

    Returns:
        `str`: The question on one line, each option on a line of its own.

    Raises:
        ValueError: If there are more options than labels.
    """
    options = question.options
    if len(options) > len(labels):
        raise ValueError(f"a question must have at most {len(labels)} options (got {len(options)})")
    lines = [f"{number}. {question.instructions}"]
    lines += [f"{label}. {option.text}" for label, option in zip(labels, options, strict=False)]
    return "\n".join(" ".join(line.split()) for line in lines)


def decision_prompt(questions: Sequence[Question], labels: Sequence[str] = LABELS) -> str:
    """
    Writes the user's turn.

    Args:
        questions (`Sequence[Question]`):
            One question or more.
        labels (`Sequence[str]`, defaults to A to Z):
            See [`decision_question`].

    Returns:
        `str`: The questions, numbered from 1, and the instruction how to answer.

    Raises:
        ValueError: If there are no questions, or one has more options than there are labels.
    """
    if not questions:
        raise ValueError("`questions` must hold at least one question (got none)")
    lines = [decision_question(question, number, labels) for number, question in enumerate(questions, start=1)]
    return "\n".join([*lines, INSTRUCTION])


def label_prefixes(num_questions: int) -> list[str]:
    """
    The fixed text of an answer: what stands before each label, without [`LABEL_PREFIX`].

    Args:
        num_questions (`int`):
            Number of questions.

    Returns:
        `list[str]`: `["1.", "\\n2.", "\\n3.", ...]`. The tokens of these texts and of the labels, in turn, are the
        tokens of the whole answer.
    """
    return [f"{'' if number == 1 else chr(10)}{number}." for number in range(1, num_questions + 1)]


def decision_answer(labels: Sequence[str]) -> str:
    """
    Writes an answer.

    Args:
        labels (`Sequence[str]`):
            The label chosen for each question.

    Returns:
        `str`: For example `"1. A\\n2. C"`.
    """
    return "".join(
        f"{prefix}{LABEL_PREFIX}{label}" for prefix, label in zip(label_prefixes(len(labels)), labels, strict=True)
    )


def label_candidates() -> Iterator[str]:
    """Letters, then pairs of capital letters. Qwen2's vocabulary has 578 of them as one token after a space."""
    yield from string.ascii_uppercase + string.ascii_lowercase
    yield from map("".join, product(string.ascii_uppercase, repeat=2))


def label_token_ids(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[int]:
    """
    The token of each label at its position in an answer.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        labels (`Sequence[str]`):
            Labels.

    Returns:
        `list[int]`: One token id for each label.

    Raises:
        ValueError: If a label is not one token.
    """
    tokens = [tokenizer(LABEL_PREFIX + label, add_special_tokens=False)["input_ids"] for label in labels]
    for label, ids in zip(labels, tokens, strict=True):
        if len(ids) != 1:
            raise ValueError(f"`labels` must be single tokens of the tokenizer (got {label!r}, which is {len(ids)})")
    return [ids[0] for ids in tokens]


def option_labels(tokenizer: PreTrainedTokenizerBase, num_options: int) -> list[str]:
    """
    Labels for the options of a question.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        num_options (`int`):
            How many labels are needed.

    Returns:
        `list[str]`: The first `num_options` of [`label_candidates`] that are single tokens.

    Raises:
        ValueError: If the tokenizer has fewer.
    """
    labels: list[str] = []
    for label in label_candidates():
        if len(labels) == num_options:
            break
        if len(tokenizer(LABEL_PREFIX + label, add_special_tokens=False)["input_ids"]) == 1:
            labels.append(label)
    if len(labels) < num_options:
        raise ValueError(
            f"a question must have at most {len(labels)} options, one for each single-token label of the tokenizer "
            f"(got {num_options})"
        )
    return labels

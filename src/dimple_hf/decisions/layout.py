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
"""Layout of questions on canvases, and of the log-probabilities that are read back."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from transformers import PreTrainedTokenizerBase

from .parsing import MAX_OPTIONS
from .prompt import decision_prompt, label_prefixes, label_token_ids, option_labels
from .questions import Choice, Question
from .reading import Branch, Canvas

QUESTIONS_PER_CANVAS = 16
BYTES_PER_CANVAS = 8192
"""Of the text of several questions, which has no more tokens: attention costs the square of a row's length."""


def rotated(question: Question, rotation: int) -> Choice:
    """The question with its options moved `rotation` labels to the front: option `k + rotation` gets label `k`."""
    options = question.options
    start = rotation % len(options)
    return Choice(question.instructions, [*options[start:], *options[:start]])


def _chunks(questions: Sequence[Question], labels: Sequence[str]) -> list[list[Question]]:
    """Questions in order, as many in each row as it holds."""
    chunks: list[list[Question]] = []
    num_bytes = 0
    for question in questions:
        size = len(decision_prompt([question], labels).encode())
        num_bytes += size
        if not chunks or len(chunks[-1]) == QUESTIONS_PER_CANVAS or num_bytes > BYTES_PER_CANVAS:
            chunks.append([])
            num_bytes = size
        chunks[-1].append(question)
    return chunks


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


class LabelLayout:
    """
    Several questions on one canvas, each with one masked position, which holds the label of an option.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        mask_token_id (`int`):
            The mask token.
        questions (`Sequence[Predicate | Choice | Score]`):
            The questions.
        permutations (`int`):
            Rotations of the options' order. Each is a canvas of its own.
        independent (`bool`):
            Whether each question is a canvas of its own, and the input sees it.

    Raises:
        ValueError: If a question has more options than the tokenizer has labels of one token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask_token_id: int,
        questions: Sequence[Question],
        permutations: int,
        independent: bool,
    ):
        self.tokenizer = tokenizer
        self.mask_token_id = mask_token_id
        self.permutations = permutations
        self.independent = independent
        self.labels = option_labels(tokenizer, max(len(question.options) for question in questions))
        self.chunks = [[question] for question in questions] if independent else _chunks(questions, self.labels)
        self.label_ids = label_token_ids(tokenizer, self.labels)
        self.num_canvases = len(self.chunks) * permutations

    def canvases(self, input_index: int) -> list[Canvas]:
        """The canvases of one input: all rotations of the first questions, then those of the next."""
        return [Canvas(input_index, branches, is_isolated=not self.independent) for branches in self._rows]

    @cached_property
    def _rows(self) -> list[tuple[Branch, ...]]:
        """The branches of each canvas."""
        return [
            tuple(self._branch(rotated(question, rotation)) for question in chunk)
            for chunk in self.chunks
            for rotation in range(self.permutations)
        ]

    def _branch(self, question: Question) -> Branch:
        prompt = decision_prompt([question], self.labels)
        (prefix,) = label_prefixes(1)
        prefix_ids = _token_ids(self.tokenizer, prefix)
        answer_ids = (*prefix_ids, self.mask_token_id, self.tokenizer.pad_token_id)  # ends as in training
        candidates = tuple(self.label_ids[: len(question.options)])
        return Branch(prompt, _token_ids(self.tokenizer, prompt), answer_ids, len(prefix_ids), candidates)

    def log_probs(self, reads: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """
        Args:
            reads (`Sequence[Sequence[torch.FloatTensor]]`):
                What was read from the canvases of one input, in their order.

        Returns:
            `list[torch.FloatTensor]`: For each question, of shape `(permutations, num_options)`.
        """
        results = []
        for start, chunk in zip(range(0, len(reads), self.permutations), self.chunks, strict=True):
            rotations = reads[start : start + self.permutations]
            for number in range(len(chunk)):
                results.append(torch.stack([row[number].roll(shift) for shift, row in enumerate(rotations)]))
        return results


class TextLayout:
    """
    Each option's text on canvases of its own, scored token by token from left to right.

    Canvas `n` of a text gives its first `n` tokens and reads the next one. The end is read too: without it, a text
    would be at least as likely as any longer one that begins with it. The sum of the log-probabilities is exact for a
    text of one token and its end; a longer one has another sum in another order, because the conditionals of a
    masked-diffusion model need not agree with each other.

    Args:
        tokenizer, mask_token_id, questions:
            See [`LabelLayout`].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mask_token_id: int, questions: Sequence[Question]):
        self.mask_token_id = mask_token_id
        self.questions = questions
        self.texts = [
            [(*_token_ids(tokenizer, option.text), tokenizer.pad_token_id) for option in question.options]
            for question in questions
        ]
        self.num_canvases = sum(len(tokens) for texts in self.texts for tokens in texts)

    def canvases(self, input_index: int) -> list[Canvas]:
        """The canvases of one input: question by question, option by option, token by token."""
        return [
            Canvas(input_index, (self._branch(question, tokens, given),), is_isolated=False)
            for question, texts in zip(self.questions, self.texts, strict=True)
            for tokens in texts
            for given in range(len(tokens))
        ]

    def _branch(self, question: Question, tokens: Sequence[int], given: int) -> Branch:
        answer_ids = (*tokens[:given], *[self.mask_token_id] * (len(tokens) - given))
        return Branch(question.instructions, (), answer_ids, given, (tokens[given],))

    def log_probs(self, reads: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Log-likelihoods of each question's options, `(1, num_options)`; see [`LabelLayout.log_probs`]."""
        tokens = torch.cat([row[0] for row in reads])
        lengths = [len(text) for texts in self.texts for text in texts]
        ends = list(accumulate(lengths))
        totals = iter([tokens[end - length : end].sum() for end, length in zip(ends, lengths, strict=True)])
        return [torch.stack([next(totals) for _ in texts])[None] for texts in self.texts]


def lay_out(
    tokenizer: PreTrainedTokenizerBase,
    mask_token_id: int,
    questions: Sequence[Question],
    permutations: int = 1,
    independent: bool = False,
    reading: str = "label",
) -> LabelLayout | TextLayout:
    """
    Lays questions out as [`decide`] does.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        mask_token_id (`int`):
            The mask token.
        questions (`Sequence[Predicate | Choice | Score]`), permutations, independent, reading:
            See [`decide`].

    Raises:
        ValueError: If an argument is out of its range, `permutations` is more than 1 for `reading="text"`, a text
            holds a special token, or a question has more options than the tokenizer has labels of one token.
    """
    if not isinstance(permutations, int) or not 1 <= permutations <= MAX_OPTIONS:  # more orders repeat themselves
        raise ValueError(f"`permutations` must be an integer from 1 to {MAX_OPTIONS} (got {permutations!r})")
    if reading not in ("label", "text"):
        raise ValueError(f'`reading` must be "label" or "text" (got {reading!r})')
    refuse_special_tokens(tokenizer, questions)
    if reading == "text":
        if permutations > 1:
            raise ValueError(
                f'`permutations` must be 1 for `reading="text"`, which lists no options (got {permutations})'
            )
        return TextLayout(tokenizer, mask_token_id, questions)
    return LabelLayout(tokenizer, mask_token_id, questions, permutations, independent)


def refuse_special_tokens(tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> None:
    """
    Refuses questions whose texts hold special tokens, such as one that ends the turn.

    Args:
        tokenizer (`PreTrainedTokenizerBase`):
            Its special tokens are the ones that are looked for.
        questions (`Sequence[Question]`):
            Instructions and options of each are checked.

    Raises:
        ValueError: If a text holds one.
    """
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for question in questions:
        for text in (question.instructions, *(option.text for option in question.options)):
            for token in special:
                if token in text:
                    raise ValueError(f"texts of `questions` must not hold special tokens (got {token!r} in {text!r})")

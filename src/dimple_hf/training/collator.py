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
"""The data collator: chats with images to the batches of a `Trainer`.

Source of the answer padding: Dimple's released training code (see [`answer_length_bounds`]).
"""

import logging
import os
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import get_worker_info
from transformers import ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature

from ..data.examples import BadExampleError, Conversation, naming, read_example
from ..data.images import open_image
from ..processing import StructurePrior

logger = logging.getLogger(__name__)

#: Label of a token that is not learned.
IGNORED = -100

#: Positions that shortening leaves to an answer when its prompt is too long, and to a text that loses its middle.
MIN_KEPT_TOKENS = 16

#: Loading processes whose skipped examples are counted apart, so that they never write to one number at a time.
MAX_WORKERS = 256

#: Examples that a share of bad ones is at least a share of, so that one bad example among the first stops no run.
MIN_SEEN_ROWS = 20

#: Bad examples that an error lists.
MAX_REASONS = 20


#: Options of the collator that are numbers -> the smallest.
SMALLEST = {"max_length": 2, "canvas_length": 1, "seed": 0}


def check_options(options: Mapping[str, Any]) -> None:
    """
    Args:
        options (`Mapping[str, Any]`):
            Some of the options of [`DimpleDataCollator`].

    Raises:
        ValueError: If one of them is of another type or out of range.
    """
    for name, smallest in SMALLEST.items():
        value = options.get(name)
        is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if value is not None and not (is_integer and value >= smallest):
            raise ValueError(f"`{name}` must be an integer >= {smallest} (got {value!r})")
    for name in ("join_turns", "allow_urls"):
        if not isinstance(options.get(name, True), bool):
            raise ValueError(f"`{name}` must be true or false (got {options[name]!r})")
    if options.get("on_bad_example", "raise") not in ("raise", "skip"):
        raise ValueError(f"`on_bad_example` must be 'raise' or 'skip' (got {options['on_bad_example']!r})")
    share = options.get("max_bad_share", 0)
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share <= 1:
        raise ValueError(f"`max_bad_share` must be in [0, 1] (got {share!r})")
    folder = options.get("image_folder")
    if folder is not None and not isinstance(folder, (str, os.PathLike)):
        raise ValueError(f"`image_folder` must be a path (got {folder!r})")


def answer_length_bounds(num_tokens: int) -> tuple[int, int]:
    """
    The range from which an answer's padded length is drawn, so that the model learns to end answers of any length
    with a run of padding, and to leave the rest of a canvas empty.

    For l tokens: [l + 1, 2^ceil(log2(l + 1))] if l < 16, else [l + 1, 16 * (floor(l / 16) + 1)].

    Args:
        num_tokens (`int`):
            Tokens of the answer, >= 1.

    Returns:
        `tuple(int, int)`: Smallest and largest padded length.
    """
    if num_tokens < 16:
        return num_tokens + 1, 2 ** num_tokens.bit_length()
    return num_tokens + 1, 16 * (num_tokens // 16 + 1)


@dataclass(frozen=True)
class TrainingSequence:
    """
    One row of a batch: an answer with all that comes before it, or several answers of one conversation.

    Args:
        input_ids (`list[int]`):
            Prompt, answer and the padding that ends it.
        labels (`list[int]`):
            The same at what is learned, `IGNORED` elsewhere.
        pixel_values (`torch.FloatTensor`, *optional*):
            Patches of its images.
        image_grid_thw (`torch.LongTensor`, *optional*):
            Their grids.
        num_padding (`int`, defaults to 0):
            Length of the run of padding at its end.
        branch_ids (`list[int]`, *optional*):
            With several answers, 1, 2, ... at the runs of padding of all but the last, and 0 elsewhere.
    """

    input_ids: list[int]
    labels: list[int]
    pixel_values: torch.Tensor | None = None
    image_grid_thw: torch.Tensor | None = None
    num_padding: int = 0
    branch_ids: list[int] | None = None

    def joined(self, later: "TrainingSequence") -> "TrainingSequence | None":
        """This sequence and a later answer of its conversation in one, or `None` if that one does not go on here."""
        branches = self.branch_ids or [0] * len(self.input_ids)
        end = len(self.input_ids) - self.num_padding
        trunk = [token for token, branch in zip(self.input_ids[:end], branches, strict=False) if branch == 0]
        if self.num_padding == 0 or later.num_padding == 0 or later.input_ids[: len(trunk)] != trunk:
            return None
        rest = later.input_ids[len(trunk) :]
        return replace(
            later,
            input_ids=self.input_ids + rest,
            labels=self.labels + later.labels[len(trunk) :],
            branch_ids=branches[:end] + [max(branches) + 1] * self.num_padding + [0] * len(rest),
        )


def join_turns(sequences: Sequence[TrainingSequence], max_length: int | None) -> list[TrainingSequence]:
    """
    Args:
        sequences (`Sequence[TrainingSequence]`):
            One for each answer of a conversation, in order.
        max_length (`int`, *optional*):
            Most tokens of a sequence.

    Returns:
        `list[TrainingSequence]`: As few as hold the same answers: an answer is joined to the one before it if the chat
        template writes the conversation up to there as it was written for that one.
    """
    joined: list[TrainingSequence] = []
    for sequence in sequences:
        both = joined[-1].joined(sequence) if joined else None
        if both is None or (max_length is not None and len(both.input_ids) > max_length):
            joined.append(sequence)
        else:
            joined[-1] = both
    return joined


class DimpleDataCollator:
    r"""
    Makes batches of chat examples for both phases of training.

    **Labels** are on answers only. An answer is followed by a run of padding, at least one token, which is learned
    too and by which the model ends its answers; the run's length is drawn from [`answer_length_bounds`], or up to
    `canvas_length`, from `seed`, the example's tokens and its images. So an example gives the same tensors whenever,
    and in whichever process, it is read.

    **Several turns** are one row: the conversation, with a run of padding after each answer that the rest does not see
    (`branch_ids`, see [`~modeling.turns_dimple.turn_copies`]). A causal model reads it as it is. In bidirectional mode
    the model makes one sequence of each answer, in which earlier answers are given and later turns do not exist, as
    when it generates; images are encoded once. So a batch fits the phase that it meets, and batches may be made ahead.
    Turns that do not fit `max_length` together, or that the chat template rewrites later, are rows of their own.

    **Structure priors**: the answers of an example with a `structure_prior` ([`StructurePrior`]) lie on its canvas,
    as when they are generated under it. The fixed text is given, never masked and not learned; values and padding are.
    No padding follows, and nothing is shortened.

    **Long examples**: a sequence longer than `max_length` first loses padding, then the end of its answer (which then
    is not followed by padding, so that no false end is learned). If the prompt leaves the answer fewer than 16
    positions, the longest text of the prompt loses its middle. Image tokens and the chat's own markers stay; where the
    example still does not fit, it is bad.

    **Bad examples** are refused with an error that names the example (its `id`, else its position in the batch), or
    left out and counted. A batch without any good example holds one sequence without labels.

    Args:
        processor ([`DimpleProcessor`]):
            Its chat template writes the prompts, its image processor makes the patches.
        max_length (`int`, *optional*):
            Most tokens of a sequence. No limit when missing.
        canvas_length (`int`, *optional*):
            Draw an answer's padded length from all lengths up to this one, if it is above the original's bounds, so
            that the model answers on any canvas of up to so many positions. The original's bounds when missing, with
            which the length of a canvas tells that of the answer.
        seed (`int`, defaults to 0):
            Seed of the padded lengths, >= 0.
        on_bad_example (`str`, defaults to `"raise"`):
            `"raise"`, or `"skip"`: leave the example out, log why (level INFO), and warn with their number when the
            collator is disposed of or the process ends.
        max_bad_share (`float`, defaults to 0.1):
            With `on_bad_example="skip"`, the share of bad examples above which a [`BadExampleError`] lists them and
            stops the run (of the first 20 examples, their share of 20).
        image_folder (`str` or `os.PathLike`, *optional*):
            What relative image paths are relative to.
        join_turns (`bool`, defaults to `True`):
            Whether the turns of a conversation share a row of the batch. Not with flash attention, which takes no such
            mask.
        allow_urls (`bool`, defaults to `False`):
            Whether images may be fetched from `http` and `https` addresses.

    Raises:
        ValueError: If an argument is out of range; when called, [`BadExampleError`] for a bad example.

    Example, with a toy tokenizer and a chat template that writes `Q:`, the user's parts, and ` A:`:

    ```python
    >>> collator = DimpleDataCollator(processor)
    >>> content = [{"type": "image"}, {"type": "text", "text": "ab"}]
    >>> answer = {"role": "assistant", "content": "cdef"}
    >>> image = PIL.Image.new("RGB", (56, 28))  # two image tokens
    >>> examples = [
    ...     {"messages": [{"role": "user", "content": content}, answer], "images": [image]},
    ...     {"messages": [{"role": "user", "content": "ab"}, answer]},
    ... ]
    >>> batch = collator(examples)
    >>> batch["input_ids"]  # 424 427 427 425: the image; 420: padding
    tensor([[ 48,  25, 424, 427, 427, 425,  64,  65, 220,  32,  25,  66,  67,  68,
              69, 420],
            [ 48,  25,  64,  65, 220,  32,  25,  66,  67,  68,  69, 420, 420, 420,
             420, 420]])
    >>> batch["attention_mask"]  # the second answer's padding is learned, the last token is not even seen
    tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
    >>> batch["labels"]
    tensor([[-100, -100, -100, -100, -100, -100, -100, -100, -100, -100, -100,   66,
               67,   68,   69,  420],
            [-100, -100, -100, -100, -100, -100, -100,   66,   67,   68,   69,  420,
              420,  420,  420, -100]])
    >>> batch["pixel_values"].shape, batch["image_grid_thw"]
    (torch.Size([8, 1176]), tensor([[1, 2, 4]]))
    ```
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        max_length: int | None = None,
        canvas_length: int | None = None,
        seed: int = 0,
        on_bad_example: str = "raise",
        image_folder: str | os.PathLike[str] | None = None,
        join_turns: bool = True,
        max_bad_share: float = 0.1,
        allow_urls: bool = False,
    ) -> None:
        self.processor = processor
        self.max_length = max_length
        self.canvas_length = canvas_length
        self.seed = seed
        self.on_bad_example = on_bad_example
        self.image_folder = image_folder
        self.join_turns = join_turns
        self.max_bad_share = max_bad_share
        self.allow_urls = allow_urls
        check_options(vars(self))
        self._reasons: list[str] = []
        self._markers = frozenset(processor.tokenizer.added_tokens_decoder)
        # In shared memory, because examples are mostly read by other processes.
        self._num_skipped = torch.zeros(MAX_WORKERS, dtype=torch.long).share_memory_()
        self._num_seen = torch.zeros(MAX_WORKERS, dtype=torch.long).share_memory_()
        if on_bad_example == "skip":
            weakref.finalize(self, _warn_of_skipped_examples, self._num_skipped, os.getpid())

    @property
    def num_skipped_examples(self) -> int:
        """How often a bad example was left out so far, over all loading processes."""
        return int(self._num_skipped.sum())

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Args:
            examples (`Sequence[Mapping[str, Any]]`):
                Examples as [`read_example`] takes them.

        Returns:
            `dict[str, torch.Tensor]`:
            - **input_ids** (int64 of shape `(num_sequences, length)`): tokens, padded on the right.
            - **attention_mask** (int64, same shape): 1 at tokens, also at those of an answer's padding; 0 after.
            - **labels** (int64, same shape): the tokens of answers and their padding; -100 elsewhere.
            - **branch_ids** (int64, same shape), if an example holds several answers: 1, 2, ... at the padding of all
              but the last, 0 elsewhere.
            - **pixel_values**, **image_grid_thw**: the images of all sequences in order, if there are any.
        """
        sequences: list[TrainingSequence] = []
        for position, example in enumerate(examples):
            try:
                with naming(example, position):
                    sequences += self.read_sequences(example)
            except BadExampleError as error:
                if self.on_bad_example == "raise":
                    raise
                self._skip(error)
            self._num_seen[_worker_slot()] += 1
        return self._join(sequences or [self._empty_sequence()])

    def _skip(self, error: BadExampleError) -> None:
        logger.info("%s", str(error))
        self._num_skipped[_worker_slot()] += 1
        self._reasons = [*self._reasons[-MAX_REASONS + 1 :], str(error)]
        num_skipped, num_seen = int(self._num_skipped.sum()), int(self._num_seen.sum()) + 1
        if num_skipped > self.max_bad_share * max(num_seen, MIN_SEEN_ROWS):
            raise BadExampleError(
                f"{num_skipped} of {num_seen} examples are bad, more than `max_bad_share`={self.max_bad_share}:\n"
                + "\n".join(self._reasons)
            )

    def read_sequences(self, example: Mapping[str, Any]) -> list[TrainingSequence]:
        """
        Args:
            example (`Mapping[str, Any]`):
                An example as [`read_example`] takes it.

        Returns:
            `list[TrainingSequence]`: Rows of a batch, with one answer or several.

        Raises:
            BadExampleError: If the example is bad.
        """
        conversation = read_example(example, self.image_folder)
        features = self._process_images(conversation.images)
        sequences = [self._make_sequence(conversation, index, features) for index in conversation.answer_indices]
        return join_turns(sequences, self.max_length) if self.join_turns else sequences

    def _process_images(self, images: list[Any]) -> BatchFeature | None:
        if not images:
            return None
        for index, image in enumerate(images):
            if isinstance(image, str) and image.startswith(("http://", "https://")) and not self.allow_urls:
                raise BadExampleError(
                    f"image {index} must be a file, not {image!r}: `allow_urls=True` lets it be fetched"
                )
        try:
            opened = [open_image(image, index=index) for index, image in enumerate(images)]
            return self.processor.image_processor(opened, return_tensors="pt")
        except ValueError as error:  # names the image by its index
            raise BadExampleError(str(error)) from error

    def _make_sequence(
        self, conversation: Conversation, answer_index: int, features: BatchFeature | None
    ) -> TrainingSequence:
        messages = conversation.messages[:answer_index]
        num_images = sum(part["type"] == "image" for message in messages for part in message["content"])
        prompt = self._tokenize(self._write_prompt(messages, num_images, features), sanitize_control_tokens=True)
        answer = self._tokenize(conversation.answer(answer_index))
        if self.processor.tokenizer.mask_token_id in (*prompt, *answer):
            raise BadExampleError(f"its text must not hold the mask token {self.processor.tokenizer.mask_token}")
        if self.processor.image_token_id in answer:
            raise BadExampleError(f"answers must not hold the image placeholder {self.processor.image_token}")
        pixel_values = grid = None
        if features is not None and num_images:
            grid = features["image_grid_thw"][:num_images]
            pixel_values = features["pixel_values"][: int(grid.prod(dim=-1).sum())]
        num_padding = 0
        if conversation.structure_prior is None:
            padded = self._pad_answer(prompt, answer, pixel_values)
            prompt, fitted = self._fit(prompt, padded)
            num_padding = max(0, len(fitted) - len(answer))
            learned = fitted
        else:
            text = conversation.answer(answer_index)
            fitted, is_learned = self._fill_canvas(conversation.structure_prior, text, len(prompt))
            learned = [token if flag else IGNORED for token, flag in zip(fitted, is_learned, strict=True)]
        labels = [IGNORED] * len(prompt) + learned
        return TrainingSequence(prompt + fitted, labels, pixel_values, grid, num_padding)

    def _write_prompt(self, messages: list[dict[str, Any]], num_images: int, features: BatchFeature | None) -> str:
        """The chat before an answer as the model gets it when it generates, each placeholder grown to its image."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, sanitize_control_tokens=True)
        pieces = text.split(self.processor.image_token)
        if len(pieces) - 1 != num_images:
            raise BadExampleError(f"its text must not spell the image placeholder {self.processor.image_token}")
        runs = [self.processor.replace_image_token(features, index) for index in range(num_images)]
        return "".join(part for pair in zip(pieces, [*runs, ""], strict=True) for part in pair)

    def _tokenize(self, text: str, **options: Any) -> list[int]:
        return self.processor.tokenizer(text, add_special_tokens=False, **options)["input_ids"]

    def _pad_answer(self, prompt: list[int], answer: list[int], pixel_values: torch.Tensor | None) -> list[int]:
        """Adds the run of padding that ends the answer, of a length drawn from the seed, the tokens and the images.
        Without the images, all examples of one question and answer would have one length, which would give away the
        answer to a model that sees the whole canvas."""
        shortest, longest = answer_length_bounds(len(answer))
        longest = max(longest, self.canvas_length or 0)
        checksum = zlib.crc32(np.array([*prompt, *answer], dtype="<i8").tobytes())
        if pixel_values is not None:
            checksum = zlib.crc32(pixel_values.contiguous().numpy(), checksum)
        length = int(np.random.default_rng((self.seed, checksum)).integers(shortest, longest + 1))
        return answer + [self.processor.tokenizer.pad_token_id] * (length - len(answer))

    def _fill_canvas(self, prior: StructurePrior, text: str, num_prompt_tokens: int) -> tuple[list[int], list[bool]]:
        """An answer on the canvas of its example's prior, and which of its tokens are learned."""
        try:
            answer, is_learned = prior.write(self.processor.tokenizer, text)
        except ValueError as error:
            raise BadExampleError(f"its answers must be ones of its `structure_prior`: {error}") from error
        if self.max_length is not None and num_prompt_tokens + len(answer) > self.max_length:
            raise BadExampleError(
                f"it must fit `max_length`={self.max_length} (its prompt has {num_prompt_tokens} tokens, the canvas "
                f"of its `structure_prior` {len(answer)})"
            )
        return answer, is_learned

    def _fit(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
        """Shortens a sequence to `max_length`; see the class."""
        if self.max_length is None:
            return prompt, answer
        excess = len(prompt) + min(len(answer), MIN_KEPT_TOKENS) - self.max_length
        if excess > 0:
            start, length = self._longest_text(prompt)
            if length - excess < MIN_KEPT_TOKENS:
                num_image_tokens = prompt.count(self.processor.image_token_id)
                raise BadExampleError(
                    f"it must fit `max_length`={self.max_length} (its prompt has {len(prompt)} tokens, "
                    f"{num_image_tokens} of them for images, which are not cut)"
                )
            cut = start + (length - excess + 1) // 2
            prompt = prompt[:cut] + prompt[cut + excess :]
        return prompt, answer[: self.max_length - len(prompt)]

    def _longest_text(self, prompt: list[int]) -> tuple[int, int]:
        """Start and length of the longest run of tokens between the chat's markers."""
        start, longest = 0, (0, 0)
        for position, token in enumerate([*prompt, self.processor.image_token_id]):
            if token in self._markers:
                longest = max(longest, (start, position - start), key=lambda run: run[1])
                start = position + 1
        return longest

    def _empty_sequence(self) -> TrainingSequence:
        """Stands for a batch without good examples: two tokens, none learned, since batches cannot be empty."""
        return TrainingSequence([self.processor.tokenizer.pad_token_id] * 2, [IGNORED] * 2)

    def _join(self, sequences: list[TrainingSequence]) -> dict[str, torch.Tensor]:
        def stack(values: list[list[int]], padding: int) -> torch.Tensor:
            return pad_sequence([torch.tensor(row) for row in values], batch_first=True, padding_value=padding)

        tokens = [sequence.input_ids for sequence in sequences]
        # The Trainer takes the batch size from the first entry.
        batch = {
            "input_ids": stack(tokens, self.processor.tokenizer.pad_token_id),
            "attention_mask": stack([[1] * len(row) for row in tokens], 0),
            "labels": stack([sequence.labels for sequence in sequences], IGNORED),
        }
        if any(sequence.branch_ids for sequence in sequences):
            batch["branch_ids"] = stack([row.branch_ids or [0] * len(row.input_ids) for row in sequences], 0)
        with_images = [sequence for sequence in sequences if sequence.pixel_values is not None]
        if with_images:
            batch["pixel_values"] = torch.cat([sequence.pixel_values for sequence in with_images])
            batch["image_grid_thw"] = torch.cat([sequence.image_grid_thw for sequence in with_images])
        return batch


def _worker_slot() -> int:
    """Where this process counts its examples."""
    worker = get_worker_info()
    return 0 if worker is None else 1 + worker.id % (MAX_WORKERS - 1)


def _warn_of_skipped_examples(num_skipped: torch.Tensor, process_id: int) -> None:
    """Logs how many examples were left out, in the process that made the collator (`process_id`) only."""
    if os.getpid() == process_id and num_skipped.sum() > 0:
        logger.warning(
            "%d bad examples were left out of training batches; `on_bad_example='raise'` stops at the first, and the "
            "log at level INFO names each",
            int(num_skipped.sum()),
        )

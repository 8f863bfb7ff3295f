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
"""A row as the model is asked it, or the reason why it cannot be; and its length, from its text and image headers.

What is wrong with a row never leaves this file as an error: it becomes part of the [`Prompt`]. Imported by `answers`,
`run` and the commands `batch` and `extract`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from datasets import Dataset
from transformers import ProcessorMixin

from ..data.examples import Conversation, read_prompt
from ..data.sources import Source
from ..processing.image_processing_dimple import load_pil_image


@dataclass(frozen=True)
class Prompt:
    """
    What the model is asked.

    Args:
        label (`dict[str, Any]`):
            What names the row in its line of the results.
        text (`str`, defaults to `""`):
            The chat as the template writes it, with one placeholder for each image.
        images (`list[PIL.Image.Image]`, *optional*):
            The images, decoded, in the order of their placeholders.
        error (`str`, *optional*):
            Why the row cannot be asked; it has neither text nor images then.
    """

    label: dict[str, Any]
    text: str = ""
    images: list[PIL.Image.Image] = field(default_factory=list)
    error: str | None = None


def make_prompt(
    label: dict[str, Any], row: Mapping[str, Any], processor: ProcessorMixin, image_folder: Path | None = None
) -> Prompt:
    """
    Args:
        label (`dict[str, Any]`):
            What names the row.
        row (`Mapping[str, Any]`):
            A row as [`read_prompt`] takes it.
        processor ([`DimpleProcessor`]):
            Its template writes the chat.
        image_folder (`Path`, *optional*):
            What relative paths are relative to.

    Returns:
        [`Prompt`]: With an error if the row or one of its images is bad.
    """
    try:
        chat = read_prompt(row, image_folder)
        images = [load_pil_image(image, index) for index, image in enumerate(chat.images)]
        return Prompt(label, _write(chat, processor), images)
    except ValueError as error:
        return Prompt(label, error=str(error))


class PromptReader:
    """
    Reads the rows of a data set.

    Args:
        rows (`Sequence[Mapping[str, Any]]`):
            Rows as [`read_prompt`] takes them. Reading one may raise a `ValueError`, which is that row's.
        processor ([`DimpleProcessor`]):
            The model's.
        image_folder (`Path`, *optional*):
            What relative paths are relative to.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], processor: ProcessorMixin, image_folder: Path | None = None
    ) -> None:
        self.rows = rows
        self.processor = processor
        self.image_folder = image_folder

    def read(self, index: int) -> Prompt:
        """
        Args:
            index (`int`):
                Which row.

        Returns:
            [`Prompt`]: Labelled with `row` (its index) and, where it has one, its `id`.
        """
        label: dict[str, Any] = {"row": index}
        try:
            row = self.rows[index]
        except ValueError as error:
            return Prompt(label, error=str(error))
        if row.get("id") is not None:
            label["id"] = row["id"]
        return make_prompt(label, row, self.processor, self.image_folder)

    def count_tokens(self, index: int) -> int:
        """
        Args:
            index (`int`):
                Which row.

        Returns:
            `int`: Tokens of its prompt, those of its images included, of which only the headers are read; 0 for a
            row that cannot be asked. It decides which rows share a batch, and answers do not depend on that.
        """
        try:
            chat = read_prompt(self.rows[index], self.image_folder)
            num_tokens = len(self.processor.tokenizer(_write(chat, self.processor))["input_ids"])
            return num_tokens + sum(count_image_tokens(image, self.processor) - 1 for image in chat.images)
        except ValueError:
            return 0


def count_image_tokens(source: Any, processor: ProcessorMixin) -> int:
    """
    Args:
        source (`PIL.Image.Image`, `str` or `os.PathLike`):
            An image, or its path or URL.
        processor ([`DimpleProcessor`]):
            The model's.

    Returns:
        `int`: Tokens of the image; those of the largest where its size is not known, as of a URL or a broken file.

    Raises:
        ValueError: If it is too long and narrow for the model.
    """
    image_processor = processor.image_processor
    try:
        if isinstance(source, PIL.Image.Image):
            width, height = source.size
        else:
            with PIL.Image.open(source) as image:
                width, height = image.size
    except Exception:  # a broken file raises any of a dozen types; whoever decodes it says which
        num_patches = image_processor.size["longest_edge"] // image_processor.patch_size**2
    else:
        num_patches = image_processor.get_number_of_image_patches(height, width)
    return num_patches // image_processor.merge_size**2


class UndecodedRows:
    """
    Rows of a data set without its own decoding of images, so that a broken one is found as the fault of its row.

    Args:
        dataset (`datasets.Dataset`):
            Of files, not of a function's making.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._tables = dataset.with_format("arrow")

    def __len__(self) -> int:
        return len(self._tables)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._tables[index].to_pylist()[0]


def open_rows(source: Source) -> tuple[Sequence[Mapping[str, Any]], Path | None]:
    """
    Args:
        source ([`Source`]):
            Where rows come from; checked.

    Returns:
        `tuple[Sequence[Mapping[str, Any]], Path | None]`: Rows whose images are not decoded yet, and the folder that
        paths in them are relative to: that of a file.

    Raises:
        ValueError: As [`Source.load`].
    """
    rows = source.load(Path.cwd())
    if source.kind in ("directory", "hub"):
        rows = UndecodedRows(rows)
    return rows, Path(source.location).parent if source.kind == "file" else None


def _write(chat: Conversation, processor: ProcessorMixin) -> str:
    text = processor.apply_chat_template(chat.messages, add_generation_prompt=True, sanitize_control_tokens=True)
    text.encode()  # refuses half characters, which JSON can spell and no tokenizer takes
    return text

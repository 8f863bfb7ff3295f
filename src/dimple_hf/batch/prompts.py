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
"""The prompt of a row, or the reason why it has none; and its length, from its text and image headers.

What is wrong with a row never leaves this file as an error: it becomes part of the [`Prompt`].
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import PIL.Image
from transformers import ProcessorMixin

from ..data.examples import Conversation, read_prompt
from ..data.images import open_image
from ..data.sources import Source
from .digests import row_digest, text_digest

#: Of most languages. The template adds as many tokens to every row.
BYTES_PER_TOKEN = 4

#: Most characters of an `id` that is no number or text.
MAX_ID_LENGTH = 200


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
        row (`int`, defaults to 0):
            Its number in the data.
    """

    label: dict[str, Any]
    text: str = ""
    images: list[PIL.Image.Image] = field(default_factory=list)
    error: str | None = None
    row: int = 0


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
        _check_files(chat.images)
        images = [open_image(image, index=index) for index, image in enumerate(chat.images)]
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
        sources (`Sequence[str]`, *optional*):
            What names each row in its line; its number (and its `id`, where it has one) when missing.
    """

    def __init__(
        self,
        rows: Sequence[Mapping[str, Any]],
        processor: ProcessorMixin,
        image_folder: Path | None = None,
        sources: Sequence[str] | None = None,
    ) -> None:
        self.rows = rows
        self.processor = processor
        self.image_folder = image_folder
        self.sources = sources

    def key(self, index: int) -> int | str:
        """The key of row `index` in the results."""
        return index if self.sources is None else self.sources[index]

    def read(self, index: int) -> Prompt:
        """
        Args:
            index (`int`):
                Which row.

        Returns:
            [`Prompt`]: Labelled with its key (`row` or `source`), its `id` where it has one, and its `digest`.
        """
        label: dict[str, Any] = {"row" if self.sources is None else "source": self.key(index)}
        try:
            row = self.rows[index]
            label |= _label(row) | {"digest": row_digest(row, self.image_folder)}
            return replace(make_prompt(label, row, self.processor, self.image_folder), row=index)
        except RecursionError:
            error = "it must be nested less deeply"
        except ValueError as refused:
            error = str(refused)
        return Prompt(label | {"digest": text_digest(error)}, error=error, row=index)

    def digest(self, index: int) -> str:
        """
        Args:
            index (`int`):
                Which row.

        Returns:
            `str`: What [`~PromptReader.read`] labels the row with, without decoding its images.
        """
        try:
            return row_digest(self.rows[index], self.image_folder)
        except RecursionError:
            return text_digest("it must be nested less deeply")
        except ValueError as error:
            return text_digest(str(error))

    def count_tokens(self, index: int) -> int:
        """
        Args:
            index (`int`):
                Which row.

        Returns:
            `int`: About the tokens of its prompt, those of its images included, of which only the headers are read; 0
            for a row that cannot be asked. It decides which rows share a batch, and answers do not depend on that.
        """
        try:
            chat = read_prompt(self.rows[index], self.image_folder)
            _check_files(chat.images)
            texts = [part["text"] for turn in chat.messages for part in turn["content"] if part["type"] == "text"]
            num_tokens = 1 + sum(len(text.encode()) // BYTES_PER_TOKEN for text in texts)
            return num_tokens + sum(count_image_tokens(image, self.processor) for image in chat.images)
        except (ValueError, RecursionError):
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
    except Exception:  # a broken file raises any of a dozen types; reported when it is decoded
        num_patches = image_processor.size["longest_edge"] // image_processor.patch_size**2
    else:
        num_patches = image_processor.get_number_of_image_patches(height, width)
    return num_patches // image_processor.merge_size**2


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
    return source.load(Path.cwd()), Path(source.location).parent if source.kind == "file" else None


def _check_files(images: Sequence[Any]) -> None:
    """Refuses what has the name of a file but would never end, such as a named pipe."""
    for image in images:
        # `os.path` finds that a name which is too long for a file, such as base64, is none; `Path` raises.
        if isinstance(image, str) and os.path.exists(image) and not os.path.isfile(image):
            raise ValueError(f"the image {image!r} must be a file (got a folder, a named pipe or a device)")


def _label(row: Mapping[str, Any]) -> dict[str, Any]:
    """The `id` of a row, where it has one; one that is nested would make a line that cannot be read again."""
    name = row.get("id")
    if name is None:
        return {}
    return {"id": str(name)[:MAX_ID_LENGTH] if isinstance(name, (Mapping, list, tuple)) else name}


def _write(chat: Conversation, processor: ProcessorMixin) -> str:
    text = processor.apply_chat_template(chat.messages, add_generation_prompt=True, sanitize_control_tokens=True)
    text.encode()  # refuses half characters, which JSON can spell and no tokenizer takes
    return text

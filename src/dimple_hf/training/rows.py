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
"""Training rows as users have them, brought into one form: a chat, and its images in the order of their placeholders.

Two forms are read: the Hub's chat form (`messages`) and LLaVA's (`conversations`, `<image>` in the text). Everything
that can be wrong with a row is found here or in `collator`, and is a [`BadRowError`]. Imported by `collator` and
`held_out`.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import PIL.Image
import PIL.ImageOps

ROLES = ("system", "user", "assistant")

#: LLaVA's names of the roles.
LLAVA_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}

#: Stands for an image in LLaVA's texts.
LLAVA_PLACEHOLDER = "<image>"


class BadRowError(ValueError):
    """A row that cannot be trained on, through no fault of the code."""


@dataclass(frozen=True)
class Conversation:
    """
    A row in the one form that the rest of the package reads.

    Args:
        messages (`list[dict]`):
            `role` (one of `ROLES`) and `content`, a list of `{"type": "text", "text": str}` and `{"type": "image"}`.
        images (`list`):
            One for each image part, in their order: Pillow images, paths or URLs.
    """

    messages: list[dict[str, Any]]
    images: list[Any]

    def answer(self, index: int) -> str:
        """The text of message `index`, which must be the assistant's."""
        return "".join(part["text"] for part in self.messages[index]["content"])

    @property
    def answer_indices(self) -> list[int]:
        """Which messages are answers."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]


def row_name(row: Mapping[str, Any], position: int) -> str:
    """What an error calls a row: its `id` where it has one, and where it stands in its batch."""
    return f"row {row['id']!r}" if row.get("id") is not None else f"row {position} of its batch"


@contextmanager
def naming(row: Mapping[str, Any], position: int) -> Iterator[None]:
    """Lets a [`BadRowError`] that is raised inside say which row it is about; see [`row_name`]."""
    try:
        yield
    except BadRowError as error:
        raise BadRowError(f"{row_name(row, position)} is bad: {error}") from error


def read_row(row: Mapping[str, Any], image_folder: str | os.PathLike[str] | None = None) -> Conversation:
    """
    Reads a row of either form and checks all that can be checked without opening files.

    Args:
        row (`Mapping[str, Any]`):
            `messages` or `conversations`, and `images` or `image` (one image or a list; may be missing or `None`).
            An image is a Pillow image, a path, a URL, `bytes`, or the dict with `bytes` and `path` that `datasets`
            makes of an undecoded one. Other columns are ignored.
        image_folder (`str` or `os.PathLike`, *optional*):
            What relative paths are relative to.

    Returns:
        [`Conversation`]

    Raises:
        BadRowError: If the row has neither form; a role, a part or an image is of an unknown kind; an answer is
            empty or holds an image; there is no answer, or nothing before the first one; bytes hold no image; or there
            are more or fewer images than placeholders.
    """
    if row.get("messages") is not None:
        messages = [_read_message(message) for message in row["messages"]]
    elif row.get("conversations") is not None:
        messages = [_read_llava_turn(turn) for turn in row["conversations"]]
    else:
        raise BadRowError(f"it must have `messages` or `conversations` (got {', '.join(row) or 'nothing'})")
    conversation = Conversation(messages, _read_images(row, image_folder))
    _check(conversation)
    return conversation


def _read_message(message: Mapping[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise BadRowError(f"roles must be one of {', '.join(ROLES)} (got {role!r})")
    content = message.get("content")
    if isinstance(content, str):
        return {"role": role, "content": [{"type": "text", "text": content}]}
    if not isinstance(content, (list, tuple)):
        raise BadRowError(f"`content` must be a string or a list of parts (got {type(content).__name__})")
    return {"role": role, "content": [_read_part(part) for part in content]}


def _read_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part.get("type") == "image":
        return {"type": "image"}
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise BadRowError(f"parts must be {{'type': 'text', 'text': ...}} or {{'type': 'image'}} (got {dict(part)!r})")


def _read_llava_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    role, text = turn.get("from"), turn.get("value")
    if role not in LLAVA_ROLES:
        raise BadRowError(f"roles must be one of {', '.join(LLAVA_ROLES)} (got {role!r})")
    if not isinstance(text, str):
        raise BadRowError(f"`value` must be a string (got {text!r})")
    parts: list[dict[str, Any]] = []
    for number, piece in enumerate(text.split(LLAVA_PLACEHOLDER)):
        if number > 0:
            parts.append({"type": "image"})
        # LLaVA sets a placeholder apart by a line break, which the model's own chat format does not have.
        if number > 0:
            piece = piece.removeprefix("\n")
        if number < text.count(LLAVA_PLACEHOLDER):
            piece = piece.removesuffix("\n")
        if piece:
            parts.append({"type": "text", "text": piece})
    return {"role": LLAVA_ROLES[role], "content": parts}


def _read_images(row: Mapping[str, Any], image_folder: str | os.PathLike[str] | None) -> list[Any]:
    images = row.get("images") if row.get("images") is not None else row.get("image")
    if images is None:
        return []
    images = images if isinstance(images, (list, tuple)) else [images]
    return [_read_image(image, index, image_folder) for index, image in enumerate(images)]


def _read_image(image: Any, index: int, image_folder: str | os.PathLike[str] | None) -> Any:
    if isinstance(image, Mapping):
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, PIL.Image.Image):
        return image
    if isinstance(image, bytes):
        try:
            return PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(image)))
        except Exception as error:  # broken bytes raise any of a dozen types, depending on the format
            raise BadRowError(f"image {index} must be readable (got {len(image)} bytes: {error})") from error
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        return path if image_folder is None or "://" in path else os.path.join(image_folder, path)
    raise BadRowError(f"image {index} must be a Pillow image, a path or bytes (got {type(image).__name__})")


def _check(conversation: Conversation) -> None:
    answers = conversation.answer_indices
    if not answers:
        raise BadRowError("it must have an assistant turn (got none)")
    if answers[0] == 0:
        raise BadRowError("its first turn must not be the assistant's")
    for index in answers:
        if any(part["type"] == "image" for part in conversation.messages[index]["content"]):
            raise BadRowError(f"answers must be text (message {index} holds an image)")
        if not conversation.answer(index).strip():
            raise BadRowError(f"answers must not be empty (message {index} is)")
    placeholders = sum(part["type"] == "image" for message in conversation.messages for part in message["content"])
    if placeholders != len(conversation.images):
        raise BadRowError(
            f"it must have as many images as placeholders (got {len(conversation.images)} images and {placeholders} "
            "placeholders)"
        )

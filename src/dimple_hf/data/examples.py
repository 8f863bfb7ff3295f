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
"""Rows of chats as users have them, brought into one form: a chat, and its images in the order of their placeholders.

Two forms are read: the Hub's chat form (`messages`) and LLaVA's (`conversations`, `<image>` in the text). Everything
that can be wrong with a row is found here or in `collator`, and is a [`BadRowError`]. Imported by `collator`,
`held_out` and `batch`.
"""

import base64
import io
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import PIL.Image
import PIL.ImageOps

from ..processing import StructurePrior

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
        structure_prior ([`StructurePrior`], *optional*):
            The form of its answers.
    """

    messages: list[dict[str, Any]]
    images: list[Any]
    structure_prior: StructurePrior | None = None

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
            makes of an undecoded one; its `bytes` may be base64, as JSON has none. `structure_prior`
            ([`StructurePrior`], *optional*) is the form of the answers. Other columns are ignored.
        image_folder (`str` or `os.PathLike`, *optional*):
            What relative paths are relative to.

    Returns:
        [`Conversation`]

    Raises:
        BadRowError: If the row has neither form; a role, a part or an image is of an unknown kind; an answer is
            empty or holds an image; there is no answer, or nothing before the first one; bytes hold no image; there
            are more or fewer images than placeholders; or `structure_prior` is something else.
    """
    prior = row.get("structure_prior")
    if not isinstance(prior, StructurePrior | None):
        raise BadRowError(f"`structure_prior` must be a StructurePrior (got {type(prior).__name__})")
    conversation = Conversation(_read_messages(row), _read_images(row, image_folder), prior)
    _check_answers(conversation)
    _check_placeholders(conversation)
    return conversation


def read_prompt(row: Mapping[str, Any], image_folder: str | os.PathLike[str] | None = None) -> Conversation:
    """
    Reads what a row asks: the chat without the answer that it may end with.

    Args:
        row (`Mapping[str, Any]`):
            As for [`read_row`], with or without answers.
        image_folder (`str` or `os.PathLike`, *optional*):
            What relative paths are relative to.

    Returns:
        [`Conversation`]: Its last turn is the user's.

    Raises:
        BadRowError: If the row has neither form; a role, a part or an image is of an unknown kind; it does not end in
            a question; bytes hold no image; or there are more or fewer images than placeholders.
    """
    messages = _read_messages(row)
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise BadRowError("it must end with a user turn, or with one and its answer")
    conversation = Conversation(messages, _read_images(row, image_folder))
    _check_placeholders(conversation)
    return conversation


def _read_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    for name, read in (("messages", _read_message), ("conversations", _read_llava_turn)):
        turns = row.get(name)
        if turns is None:
            continue
        if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
            raise BadRowError(f"`{name}` must be a list of mappings (got {reprlib.repr(turns)})")
        return [read(turn) for turn in turns]
    raise BadRowError(f"it must have `messages` or `conversations` (got {', '.join(row) or 'nothing'})")


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


def _read_part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return {"type": "image"}
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise BadRowError(f"parts must be {{'type': 'text', 'text': ...}} or {{'type': 'image'}} (got {part!r})")


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
        data = image.get("bytes")
        image = image.get("path") if data is None else _decode_base64(data, index)
    if isinstance(image, PIL.Image.Image):
        return image
    if isinstance(image, bytes):
        return _open_bytes(image, index)
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        is_url = "://" in path or path.startswith("data:")
        return path if image_folder is None or is_url else os.path.join(image_folder, path)
    raise BadRowError(f"image {index} must be a Pillow image, a path or bytes (got {type(image).__name__})")


def _decode_base64(data: Any, index: int) -> Any:
    """The bytes that base64 stands for; anything but text as it is."""
    if not isinstance(data, str):
        return data
    try:
        return base64.b64decode(data, validate=True)
    except ValueError as error:
        raise BadRowError(f"image {index} must be readable (got text as `bytes`: {error})") from error


def _open_bytes(data: bytes, index: int) -> PIL.Image.Image:
    """An image that stands upright; decoded already only if its format or its turning asks for that."""
    try:
        image = PIL.Image.open(io.BytesIO(data))
        PIL.ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # broken bytes raise any of a dozen types, depending on the format
        raise BadRowError(f"image {index} must be readable (got {len(data)} bytes: {error})") from error
    return image


def _check_answers(conversation: Conversation) -> None:
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


def _check_placeholders(conversation: Conversation) -> None:
    placeholders = sum(part["type"] == "image" for message in conversation.messages for part in message["content"])
    if placeholders != len(conversation.images):
        raise BadRowError(
            f"it must have as many images as placeholders (got {len(conversation.images)} images and {placeholders} "
            "placeholders)"
        )

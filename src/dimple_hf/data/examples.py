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
"""Training examples in their common forms, converted into one: a chat, and its images in the order of placeholders.

Read are the Hub's chat form (`messages`), LLaVA's and ShareGPT's (`conversations`), LLaMA-Factory's (`<image>` in
plain text) and TRL's (`prompt` and `completion`). Everything that can be wrong with an example is found here or in the
collator, and is a [`BadExampleError`].
"""

import base64
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import PIL.Image

from ..processing import StructurePrior
from .images import open_image

#: What a turn may be called, and what it is.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}

#: Stands for an image in plain text.
IMAGE_PLACEHOLDER = "<image>"

#: Most characters of a value in an error message: an image as base64 has millions.
MAX_SHOWN = 200

#: Where the parts of a message have their image, in the order in which they are looked for.
IMAGE_KEYS = ("image", "path", "url", "base64", "bytes")

#: Column of an example that could not even be read; it holds the reason.
READ_ERROR = "__read_error__"


class BadExampleError(ValueError):
    """An example that cannot be trained on, through no fault of the code."""


@dataclass(frozen=True)
class Conversation:
    """
    An example in the one form that the rest of the package reads.

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


def example_name(example: Mapping[str, Any], position: int) -> str:
    """What an error calls an example: its `id` where it has one, and where it stands in its batch."""
    return f"example {example['id']!r}" if example.get("id") is not None else f"example {position} of its batch"


@contextmanager
def naming(example: Mapping[str, Any], position: int) -> Iterator[None]:
    """Lets a [`BadExampleError`] that is raised inside name its example; see [`example_name`]."""
    try:
        yield
    except BadExampleError as error:
        raise BadExampleError(f"{example_name(example, position)} is bad: {error}") from error


def read_example(example: Mapping[str, Any], image_folder: str | os.PathLike[str] | None = None) -> Conversation:
    """
    Reads an example of any form and checks all that can be checked without opening files.

    Args:
        example (`Mapping[str, Any]`):
            - `messages` or `conversations`: turns with `role` and `content` or `from` and `value`; or `prompt` and
              `completion`, as text or turns. `system` (*optional*) comes before the first turn.
            - Images in the turns' parts (`{"type": "image", "path": ...}` and its kin), or in `images` or `image`
              (one or a list), one for each part `{"type": "image"}` or `<image>` in plain text; before the first
              question if plain text has no `<image>` at all. An image is a Pillow image, a path, a URL, `bytes`, or
              the dict with `bytes` and `path` that `datasets` makes of an undecoded one; its `bytes` may be base64.
            - `structure_prior` ([`StructurePrior`], *optional*): the form of the answers.

            Other columns are ignored.
        image_folder (`str` or `os.PathLike`, *optional*):
            What relative paths are relative to.

    Returns:
        [`Conversation`]

    Raises:
        BadExampleError: If the example has no such form; a role, a part or an image is of an unknown kind; an answer
            is empty or holds an image; there is no answer, or nothing before the first one; bytes hold no image; there
            are more or fewer images than placeholders; or `structure_prior` is something else.
    """
    prior = example.get("structure_prior")
    if not isinstance(prior, StructurePrior | None):
        raise BadExampleError(f"`structure_prior` must be a StructurePrior (got {type(prior).__name__})")
    conversation = Conversation(*_read_chat(example, image_folder), prior)
    _check_answers(conversation)
    return conversation


def read_prompt(example: Mapping[str, Any], image_folder: str | os.PathLike[str] | None = None) -> Conversation:
    """
    Reads what an example asks: the chat without the answer that it may end with.

    Args:
        example (`Mapping[str, Any]`):
            As for [`read_example`], with or without answers.
        image_folder (`str` or `os.PathLike`, *optional*):
            What relative paths are relative to.

    Returns:
        [`Conversation`]: Its last turn is the user's.

    Raises:
        BadExampleError: If the example has no known form; a role, a part or an image is of an unknown kind; it does
            not end in a question; bytes hold no image; or there are more or fewer images than placeholders.
    """
    messages, images = _read_chat(example, image_folder)
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1]["role"] != "user":
        raise BadExampleError("it must end with a user turn, or with one and its answer")
    return Conversation(messages, images)


def _read_chat(
    example: Mapping[str, Any], image_folder: str | os.PathLike[str] | None
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages in the form of [`Conversation`], and their images."""
    turns = _read_turns(example)
    images = _read_column(example)
    is_plain = all(isinstance(content, str) for _, content in turns)
    # Without images, `<image>` in a chat is what somebody wrote; in LLaVA's form it always stands for one.
    has_placeholders = bool(images) or example.get("messages") is None
    messages: list[dict[str, Any]] = [
        {"role": role, "content": _read_content(content, has_placeholders)} for role, content in turns
    ]
    contents: list[dict[str, Any]] = [part for message in messages for part in message["content"]]
    _check_unicode(contents)
    parts = [part for part in contents if part["type"] == "image"]
    if images and not parts and is_plain:
        question = next((message for message in messages if message["role"] == "user"), None)
        if question is not None:
            parts = [{"type": "image"} for _ in images]
            question["content"] = [*parts, *question["content"]]
    sources = [part.pop("source") for part in parts if "source" in part]
    if sources and not images:
        images = sources
    if len(images) != len(parts):
        raise BadExampleError(
            f"it must have as many images as placeholders (got {len(images)} images and {len(parts)} placeholders)"
        )
    return messages, [_read_image(image, index, image_folder) for index, image in enumerate(images)]


def _read_turns(example: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Role and content of each turn."""
    if example.get(READ_ERROR) is not None:
        raise BadExampleError(example[READ_ERROR])
    column = next((name for name in ("messages", "conversations") if example.get(name) is not None), None)
    if column is not None:
        turns = [_read_turn(turn, column) for turn in _list_of_turns(example[column], column)]
        if column == "conversations" and turns and turns[0][0] == "assistant":
            turns = turns[1:]  # LLaVA's own reader leaves out an answer without a question
    elif example.get("prompt") is not None:
        turns = [
            turn
            for name, role in (("prompt", "user"), ("completion", "assistant"))
            for turn in _read_side(example.get(name), name, role)
        ]
    else:
        names = ", ".join(str(name) for name, value in example.items() if value is not None) or "nothing"
        raise BadExampleError(
            "it must have `messages`, `conversations` or `prompt` and `completion` "
            f"(got {names}; `Trainer` drops columns without `remove_unused_columns=False`)"
        )
    system = example.get("system")
    if system and not any(role == "system" for role, _ in turns):
        turns = [("system", system), *turns]
    return turns


def _list_of_turns(turns: Any, column: str) -> list[Mapping[str, Any]]:
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadExampleError(f"`{column}` must be a list of mappings (got {reprlib.repr(turns)})")
    return list(turns)


def _read_turn(turn: Mapping[str, Any], column: str) -> tuple[str, Any]:
    role, name, content = turn.get("role"), "content", turn.get("content")
    if role is None and turn.get("from") is not None:
        role, name, content = turn["from"], "value", turn.get("value")
    if not isinstance(role, str) or role not in ROLES:
        raise BadExampleError(f"roles must be one of {', '.join(ROLES)} (got {_shown(role)})")
    if name == "value" and not isinstance(content, str):
        raise BadExampleError(f"`value` must be a string (got {_shown(content)})")
    return ROLES[role], content


def _read_side(side: Any, column: str, role: str) -> list[tuple[str, Any]]:
    """TRL's `prompt` or `completion`: text, or turns."""
    if side is None:
        return []
    if isinstance(side, str):
        return [(role, side)]
    if not isinstance(side, (list, tuple)):
        raise BadExampleError(f"`{column}` must be text or a list of mappings (got {reprlib.repr(side)})")
    return [_read_turn(turn, column) for turn in _list_of_turns(side, column)]


def _read_content(content: Any, has_placeholders: bool) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return _split_text(content) if has_placeholders else [{"type": "text", "text": content}]
    if not isinstance(content, (list, tuple)):
        raise BadExampleError(f"`content` must be a string or a list of parts (got {type(content).__name__})")
    return [_read_part(part) for part in content]


def _read_part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        key = next((key for key in IMAGE_KEYS if part.get(key) is not None), None)
        if key is None:
            return {"type": "image"}
        return {"type": "image", "source": {"bytes": part[key]} if key in ("base64", "bytes") else part[key]}
    if kind == "image_url":
        address = part.get("image_url")
        address = address.get("url") if isinstance(address, Mapping) else address
        return {"type": "image", "source": address}
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise BadExampleError(f"parts must be {{'type': 'text', 'text': ...}} or {{'type': 'image'}} (got {_shown(part)})")


def _check_unicode(parts: list[dict[str, Any]]) -> None:
    """Refuses half characters, which JSON can spell and no tokenizer takes."""
    for part in parts:
        try:
            part.get("text", "").encode()
        except UnicodeEncodeError as error:
            raise BadExampleError(f"its text must be valid Unicode ({error})") from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _split_text(text: str) -> list[dict[str, Any]]:
    """Parts of plain text with `<image>` in it."""
    parts: list[dict[str, Any]] = []
    pieces = text.split(IMAGE_PLACEHOLDER)
    for number, piece in enumerate(pieces):
        if number > 0:
            parts.append({"type": "image"})
            # A placeholder is set apart by a line break, which the model's own chat format does not have.
            piece = piece.removeprefix("\n")
        if number < len(pieces) - 1:
            piece = piece.removesuffix("\n")
        if piece or len(pieces) == 1:
            parts.append({"type": "text", "text": piece})
    return parts


def _read_column(example: Mapping[str, Any]) -> list[Any]:
    images = example.get("images")
    if images is None or (isinstance(images, (list, tuple)) and not images):
        images = example.get("image")
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]


def _read_image(image: Any, index: int, image_folder: str | os.PathLike[str] | None) -> Any:
    if isinstance(image, Mapping):
        data = image.get("bytes")
        image = image.get("path") if data is None else _decode_base64(data, index)
    if isinstance(image, PIL.Image.Image):
        return image
    if isinstance(image, bytes):
        try:
            return open_image(image, index=index)
        except ValueError as error:
            raise BadExampleError(str(error)) from error
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        is_url = "://" in path or path.startswith("data:")
        return path if image_folder is None or is_url else os.path.join(image_folder, path)
    raise BadExampleError(f"image {index} must be a Pillow image, a path or bytes (got {type(image).__name__})")


def _decode_base64(data: Any, index: int) -> Any:
    """The bytes that base64 stands for; anything but text as it is."""
    if not isinstance(data, str):
        return data
    try:
        return base64.b64decode("".join(data.split()), validate=True)  # the `base64` command breaks lines
    except ValueError as error:
        raise BadExampleError(f"image {index} must be readable (got text as `bytes`: {error})") from error


def _check_answers(conversation: Conversation) -> None:
    answers = conversation.answer_indices
    if not answers:
        raise BadExampleError("it must have an assistant turn (got none)")
    if answers[0] == 0:
        raise BadExampleError("its first turn must not be the assistant's")
    for index in answers:
        if any(part["type"] == "image" for part in conversation.messages[index]["content"]):
            raise BadExampleError(f"answers must be text (message {index} holds an image)")
        if not conversation.answer(index).strip():
            raise BadExampleError(f"answers must not be empty (message {index} is)")

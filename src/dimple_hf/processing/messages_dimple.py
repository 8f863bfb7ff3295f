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
"""Checks the messages of a chat and converts them into the form that chat templates take.

Parts without meaning are dropped, image options are kept beside their image (as Qwen's `process_vision_info` reads
them), frames of a video become images on request, and control tokens spelled by a user are found.
"""

from collections.abc import Iterable
from typing import Any

from .image_processing_dimple import IMAGE_OPTIONS, refuse_unknown_names

#: What a part of a message may be; both image types mean the same.
CONTENT_TYPES = ("text", "image", "image_url")

#: Keys under which a part of type image holds its image.
IMAGE_SOURCES = ("image", "image_url", "url", "path", "base64")


def check_conversation(conversation: Any, frames_as_images: bool = False) -> list[Any]:
    """
    Checks every message of a chat, or of a batch of chats. The caller's lists stay as they are.

    Args:
        conversation (`Any`):
            What the caller gave.
        frames_as_images (`bool`, *optional*, defaults to `False`):
            Whether a list of frames, `{"type": "video", "video": [...]}`, becomes as many images.

    Returns:
        `list`: The messages, or one list of them per row.

    Raises:
        ValueError: Where something is not a message; the error names it by its position.
    """
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(
            "`conversation` must be a list of messages, or a list of such lists, with at least one message"
            f" (got {conversation!r})"
        )
    if not isinstance(conversation[0], (list, tuple)):
        return [
            _check_message(message, f"conversation[{index}]", frames_as_images)
            for index, message in enumerate(conversation)
        ]
    rows = []
    for row, messages in enumerate(conversation):
        if not isinstance(messages, (list, tuple)) or not messages:
            raise ValueError(f"`conversation[{row}]` must be a list with at least one message (got {messages!r})")
        rows.append(
            [
                _check_message(message, f"conversation[{row}][{index}]", frames_as_images)
                for index, message in enumerate(messages)
            ]
        )
    return rows


def _check_message(message: Any, name: str, frames_as_images: bool) -> dict[str, Any]:
    """A message whose parts are of the types that templates take; `name` is its position, for the errors."""
    if not isinstance(message, dict):
        raise ValueError(f"`{name}` must be a dict with 'role' and 'content' (got {type(message).__name__})")
    if not isinstance(message.get("role"), str):
        raise ValueError(f"`{name}['role']` must be a string such as 'user' (got {message.get('role')!r})")
    content = message.get("content")
    if isinstance(content, str):
        return message
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"`{name}['content']` must be a string or a list of parts (got {type(content).__name__})")
    parts: list[dict[str, Any]] = []
    for index, part in enumerate(content):
        parts += _check_part(part, f"{name}['content'][{index}]", frames_as_images)
    return message | {"content": parts}


def _check_part(part: Any, name: str, frames_as_images: bool) -> list[dict[str, Any]]:
    """The parts that a part stands for: itself, or one for each frame of a video."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "video":
        return _images_of_video(part, name, frames_as_images)
    if kind not in CONTENT_TYPES:
        got = repr(kind) if isinstance(part, dict) else type(part).__name__
        raise ValueError(
            f"`{name}` must be a dict with a 'type' of {', '.join(CONTENT_TYPES)}, as Dimple takes text and images"
            f" only (got {got})"
        )
    # Datasets fill what a part lacks with None, and the template takes the mere key 'image' for an image.
    part = {key: value for key, value in part.items() if value is not None}
    if kind != "text":
        return [_image_part(part, name)]
    if not isinstance(part.get("text"), str):
        raise ValueError(f"`{name}['text']` must be a string (got {part.get('text')!r})")
    return [part]


def _image_part(part: dict[str, Any], name: str) -> dict[str, Any]:
    """An image part; its options, if there are any, stand beside the image, where the image processor finds them."""
    refuse_unknown_names(part, ("type", *IMAGE_SOURCES, *IMAGE_OPTIONS), f"`{name}`")
    if isinstance(part.get("image_url"), dict):
        url = {key: value for key, value in part["image_url"].items() if value is not None}
        refuse_unknown_names(url, ("url", "detail"), f"`{name}['image_url']`")
        if url.get("detail", "auto") != "auto":
            raise ValueError(
                f"`{name}['image_url']['detail']` must be 'auto'; `max_pixels` of the part bounds the image's size"
                f" (got {url['detail']!r})"
            )
        part = part | {"image_url": url}
    options = {key: part[key] for key in IMAGE_OPTIONS if key in part}
    if not options:
        return part
    sources = [part[key] for key in IMAGE_SOURCES if key in part]
    if len(sources) != 1:
        raise ValueError(f"`{name}` must have one image to apply its options to (got {len(sources)})")
    source = sources[0]["url"] if isinstance(sources[0], dict) and "image_url" in part else sources[0]
    return {"type": "image", "image": {"image": source} | options}


def _images_of_video(part: dict[str, Any], name: str, frames_as_images: bool) -> list[dict[str, Any]]:
    """The frames of a video as image parts, if the caller wants that; the model was not trained on videos."""
    frames = part.get("video")
    if not frames_as_images or not isinstance(frames, (list, tuple)) or not frames:
        got = f"a list of {len(frames)}" if isinstance(frames, (list, tuple)) else repr(frames)[:100]
        raise ValueError(
            f"`{name}` must be text or an image, as Dimple takes no video: pass a list of its frames as 'video' with"
            f" `frames_as_images=True` to see them as images (got 'video': {got})"
        )
    options = {key: value for key, value in part.items() if key not in ("type", "video") and value is not None}
    return [_image_part({"type": "image", "image": frame} | options, name) for frame in frames]


def holds_any(value: Any, tokens: Iterable[str]) -> bool:
    """Whether a string of `value`, which may be nested lists and dicts, holds one of the tokens."""
    if isinstance(value, str):
        return any(token in value for token in tokens)
    if isinstance(value, dict):
        return any(holds_any(entry, tokens) for entry in value.values())
    return isinstance(value, (list, tuple)) and any(holds_any(entry, tokens) for entry in value)


def join_split_tokens(messages: list[dict[str, Any]], tokens: Iterable[str]) -> list[dict[str, Any]]:
    """
    Joins neighbouring text parts that spell a control token together, as in `"<|im_"` and `"end|>"`.

    Args:
        messages (`list[dict]`):
            A checked chat.
        tokens (`Iterable[str]`):
            The control tokens.

    Returns:
        `list[dict]`: The chat. Parts that spell no token stay apart.
    """
    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": _join_parts(message["content"], tokens)}
        for message in messages
    ]


def _join_parts(parts: list[dict[str, Any]], tokens: Iterable[str]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    start = 0
    while start < len(parts):
        end = start
        while end < len(parts) and parts[end]["type"] == "text":
            end += 1
        text = "".join(part["text"] for part in parts[start:end])
        if end - start > 1 and any(token in text for token in tokens):
            joined.append({"type": "text", "text": text})
        else:
            end = max(end, start + 1)
            joined += parts[start:end]
        start = end
    return joined

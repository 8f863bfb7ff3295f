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
"""Rows of both forms become one form, and each thing that can be wrong with one is said."""

import base64
import io
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from dimple_hf.data.examples import READ_ERROR, BadExampleError, example_name, read_example, read_prompt

ANSWER = {"role": "assistant", "content": "yes"}
PIL_IMAGE = PIL.Image.new("RGB", (28, 28))


def ask(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


IMAGE = {"type": "image"}


def test_read_example_chat_form_keeps_parts_and_drops_empty_entries() -> None:
    """`datasets` fills what a part lacks with None, which must not look like an image or a text."""
    row = {
        "messages": [ask({"type": "image", "text": None}, text("What?")), ANSWER],
        "images": [PIL_IMAGE],
        "conversations": None,
    }
    conversation = read_example(row)
    assert conversation.messages == [ask(IMAGE, text("What?")), {"role": "assistant", "content": [text("yes")]}]
    assert conversation.images == [PIL_IMAGE]
    assert conversation.answer_indices == [1]
    assert conversation.answer(1) == "yes"


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("<image>\nWhat?", [IMAGE, text("What?")]),
        ("What?\n<image>", [text("What?"), IMAGE]),
        ("Is <image> or\n<image>\n\nred?", [text("Is "), IMAGE, text(" or"), IMAGE, text("\nred?")]),
        ("What?\n", [text("What?\n")]),
    ],
)
def test_read_example_llava_form_splits_text_at_images(value: str, parts: list[dict[str, Any]]) -> None:
    """One line break at each side of a placeholder belongs to LLaVA's writing; all other text is the user's."""
    row = {
        "conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": "yes"}],
        "images": [PIL_IMAGE] * parts.count(IMAGE),
    }
    assert read_example(row).messages == [ask(*parts), {"role": "assistant", "content": [text("yes")]}]


def as_text(row: dict[str, Any]) -> str:
    """Roles and parts of an example in one line, `#` for an image."""
    found = read_example(row)
    parts = (
        f"{message['role'][0]}:" + "".join(part.get("text", "#") for part in message["content"])
        for message in found.messages
    )
    return " ".join(parts) + "".join(f" [{image}]" for image in found.images)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # images in the parts, as `apply_chat_template` takes them, in each of their spellings
        ({"messages": [ask({"type": "image", "path": "a.png"}, text("?")), ANSWER]}, "u:#? a:yes [a.png]"),
        ({"messages": [ask({"type": "image", "image": "a.png"}, text("?")), ANSWER]}, "u:#? a:yes [a.png]"),
        ({"messages": [ask({"type": "image", "url": "file:///a.png"}), ANSWER]}, "u:# a:yes [file:///a.png]"),
        ({"messages": [ask({"type": "image_url", "image_url": {"url": "data:a"}}), ANSWER]}, "u:# a:yes [data:a]"),
        ({"messages": [ask({"type": "image_url", "image_url": "data:a"}), ANSWER]}, "u:# a:yes [data:a]"),
        # LLaMA-Factory: `<image>` in plain text; without images it is text
        ({"messages": [{"role": "user", "content": "<image>?"}, ANSWER], "images": ["a"]}, "u:#? a:yes [a]"),
        ({"messages": [{"role": "user", "content": "<image>?"}, ANSWER]}, "u:<image>? a:yes"),
        # plain text without a placeholder: the images come first, as in TRL
        ({"messages": [{"role": "user", "content": "?"}, ANSWER], "images": ["a", "b"]}, "u:##? a:yes [a] [b]"),
        ({"prompt": "?", "completion": "yes", "image": "a"}, "u:#? a:yes [a]"),
        ({"prompt": [{"role": "user", "content": "?"}], "completion": [ANSWER]}, "u:? a:yes"),
        # ShareGPT: a column for the system's turn, other names of roles
        ({"conversations": [{"from": "user", "value": "?"}, {"from": "assistant", "value": "yes"}], "system": "be"},
         "s:be u:? a:yes"),
        ({"messages": [{"role": "system", "content": "is"}, ask(text("?")), ANSWER], "system": "be"},
         "s:is u:? a:yes"),
        ({"messages": [ask(text("?")), ANSWER], "system": ""}, "u:? a:yes"),
        # LLaVA: an answer before the first question is left out; text alone has no image
        ({"conversations": [{"from": "gpt", "value": "no"}, {"from": "human", "value": "?"},
                            {"from": "gpt", "value": "yes"}], "image": None}, "u:? a:yes"),
    ],
)  # fmt: skip
def test_read_example_takes_the_forms_that_data_sets_have(row: dict[str, Any], expected: str) -> None:
    """Each is one that a trainer of another family takes as it comes."""
    assert as_text(row) == expected


def test_read_example_image_of_each_kind_is_taken(tmp_path: Path) -> None:
    """Pillow images, paths, bytes and what `datasets` makes of either."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (5, 4), "red").save(buffer, "PNG")
    data = buffer.getvalue()

    def only_image(image: Any, **options: Any) -> Any:
        return read_example({"messages": [ask(IMAGE), ANSWER], "image": image}, **options).images[0]

    assert only_image(PIL_IMAGE) is PIL_IMAGE
    assert only_image("a.png") == "a.png"
    assert only_image(Path("a.png"), image_folder=tmp_path) == str(tmp_path / "a.png")
    assert only_image("/b/a.png", image_folder=tmp_path) == "/b/a.png"
    assert only_image("https://b/a.png", image_folder=tmp_path) == "https://b/a.png"
    assert only_image({"bytes": None, "path": "a.png"}) == "a.png"
    assert only_image(data).size == (5, 4)
    assert only_image({"bytes": data, "path": "a.png"}).size == (5, 4)
    assert only_image({"bytes": base64.b64encode(data).decode()}).size == (5, 4)
    assert only_image({"bytes": base64.encodebytes(data).decode()}).size == (5, 4)  # in lines
    assert only_image("data:image/png;base64,iVBO", image_folder=tmp_path) == "data:image/png;base64,iVBO"


BAD_ROWS = {
    "it must have `messages`, `conversations` or `prompt` and `completion` (got text;": {"text": "hello"},
    "(got text, None;": {"text": "hello", None: []},
    "(got nothing; `Trainer` drops columns without `remove_unused_columns=False`)": {},
    "a line that is no JSON": {READ_ERROR: "a line that is no JSON"},
    "roles must be one of system, user, human, assistant, gpt (got 'bot')": {
        "messages": [{"role": "bot", "content": "hi"}]
    },
    "roles must be one of system, user, human, assistant, gpt (got ['user'])": {
        "messages": [{"role": ["user"], "content": "a"}]
    },
    "its text must be valid Unicode ('utf-8' codec can't encode character '\\ud800' in position 0: surrogates not "
    "allowed)": {"messages": [{"role": "user", "content": "\ud800"}, ANSWER]},
    "roles must be one of system, user, human, assistant, gpt (got None)": {"conversations": [{"value": "hi"}]},
    "`value` must be a string (got None)": {"conversations": [{"from": "human", "value": None}]},
    "`messages` must be a list of mappings (got 'hi')": {"messages": "hi"},
    "`messages` must be a list of mappings (got [1])": {"messages": [1]},
    "`conversations` must be a list of mappings (got {})": {"conversations": {}},
    "or {'type': 'image'} (got 'What?')": {"messages": [ask("What?"), ANSWER]},
    "`content` must be a string or a list of parts (got NoneType)": {"messages": [{"role": "user", "content": None}]},
    "or {'type': 'image'} (got {'type': 'video'})": {"messages": [ask({"type": "video"}), ANSWER]},
    "(got {'type': 'text', 'text': None})": {"messages": [ask({"type": "text", "text": None}), ANSWER]},
    "it must have an assistant turn (got none)": {"messages": [ask(text("hi"))]},
    "its first turn must not be the assistant's": {"messages": [ANSWER]},
    "answers must be text (message 1 holds an image)": {
        "messages": [ask(text("hi")), {"role": "assistant", "content": [IMAGE]}],
        "images": [PIL_IMAGE],
    },
    "answers must not be empty (message 1 is)": {"messages": [ask(text("hi")), {"role": "assistant", "content": " "}]},
    "(got 0 images and 1 placeholders)": {"messages": [ask(IMAGE), ANSWER]},
    "(got 2 images and 1 placeholders)": {"messages": [ask(IMAGE), ANSWER], "images": [PIL_IMAGE, PIL_IMAGE]},
    "image 0 must be a Pillow image, a path or bytes (got int)": {"messages": [ask(IMAGE), ANSWER], "images": [3]},
    "image 0 must be a Pillow image, a path or bytes (got list)": {
        "messages": [ask(IMAGE), ANSWER],
        "images": [{"bytes": [1, 2]}],
    },
    "image 0 must be readable (got text as `bytes`:": {"messages": [ask(IMAGE), ANSWER], "images": [{"bytes": "?"}]},
    "`prompt` must be text or a list of mappings (got 5)": {"prompt": 5},
    "(got id, completion; `Trainer`": {"id": 1, "prompt": None, "completion": "a"},
    "image 0 (of 4 bytes) must be a PNG": {"messages": [ask(IMAGE), ANSWER], "images": [b"junk"]},
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_read_example_bad_example_is_refused_with_its_reason(message: str) -> None:
    """Every branch that refuses an example."""
    with pytest.raises(BadExampleError) as error:
        read_example(BAD_ROWS[message])
    assert message in str(error.value)


def test_read_example_error_about_a_long_value_is_short() -> None:
    """A part with an image as base64 under a wrong name would fill the terminal."""
    with pytest.raises(BadExampleError) as error:
        read_example({"messages": [ask({"type": "picture", "image": "A" * 100_000}), ANSWER]})
    assert "picture" in str(error.value)
    assert len(str(error.value)) < 400


def test_read_example_bytes_are_turned_upright() -> None:
    """As a camera held sideways stores them, and as any other image opened by path is."""
    data, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by a quarter
    PIL.Image.new("RGB", (5, 4)).save(data, "JPEG", exif=exif)
    image = read_example({"messages": [ask(IMAGE), ANSWER], "images": [data.getvalue()]}).images[0]
    assert image.size == (4, 5)
    assert PIL.Image.open(io.BytesIO(data.getvalue())).size == (5, 4)  # control


@pytest.mark.parametrize(
    ("messages", "num_asked"),
    [
        ([ask(text("hi"))], 1),
        ([ask(text("hi")), ANSWER], 1),
        ([{"role": "system", "content": "Be short."}, ask(text("hi")), ANSWER, ask(text("and?"))], 4),
        ([ask(text("hi")), ANSWER, ask(text("and?")), ANSWER], 3),
    ],
)
def test_read_prompt_leaves_out_the_answer_at_the_end(messages: list[dict[str, Any]], num_asked: int) -> None:
    """And that one alone."""
    found = read_prompt({"messages": messages}).messages
    assert [message["role"] for message in found] == [message["role"] for message in messages[:num_asked]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": []}, "it must end with a user turn, or with one and its answer"),
        ({"messages": [ANSWER]}, "it must end with a user turn, or with one and its answer"),
        ({"messages": [ask(text("hi")), ANSWER, ANSWER]}, "it must end with a user turn"),
        ({"messages": [{"role": "system", "content": "hi"}]}, "it must end with a user turn"),
        ({"messages": [ask(IMAGE)]}, "(got 0 images and 1 placeholders)"),
        ({"messages": [ask(text("hi"))], "image": PIL_IMAGE}, "(got 1 images and 0 placeholders)"),
    ],
)
def test_read_prompt_bad_example_is_refused_with_its_reason(row: dict[str, Any], message: str) -> None:
    """What cannot be asked; what is wrong with messages and images alike is tested above."""
    with pytest.raises(BadExampleError) as error:
        read_prompt(row)
    assert message in str(error.value)


def test_example_name_prefers_its_own_id() -> None:
    """A position in a batch is the least that an error can say; an id is found in the data set."""
    assert example_name({"id": "coco_7"}, 3) == "example 'coco_7'"
    assert example_name({"id": 0}, 3) == "example 0"
    assert example_name({"id": None}, 3) == "example 3 of its batch"

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
"""Rows as users have them become prompts, or say why not; their lengths are known before they are decoded."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import pytest
from transformers import ProcessorMixin

from dimple_hf.batch.prompts import PromptReader, count_image_tokens, make_prompt, open_rows
from dimple_hf.data.sources import Source

ASK = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read the form."}]}
ANSWER = {"role": "assistant", "content": "age 3"}


def png(width: int = 60, height: int = 40, colour: str = "red") -> bytes:
    data = io.BytesIO()
    PIL.Image.new("RGB", (width, height), colour).save(data, "PNG")
    return data.getvalue()


def test_make_prompt_takes_every_form_of_row_and_image(tmp_path: Path, processor: ProcessorMixin) -> None:
    """The same prompt from all of them, whether the answer is there or not."""
    data = png()
    (tmp_path / "a.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    rows: list[dict[str, Any]] = [
        {"messages": [ASK], "images": [image]}
        for image in (
            "a.png", str(tmp_path / "a.png"), data, {"bytes": data, "path": None}, {"bytes": None, "path": "a.png"},
            {"bytes": text}, f"data:image/png;base64,{text}", PIL.Image.open(io.BytesIO(data)),
        )
    ]  # fmt: skip
    rows.append({"messages": [ASK, ANSWER], "image": "a.png", "answer": "age 3"})
    rows.append({"conversations": [{"from": "human", "value": "<image>\nRead the form."}], "image": "a.png"})
    prompts = [make_prompt({"row": 0}, row, processor, tmp_path) for row in rows]
    assert [prompt.error for prompt in prompts] == [None] * len(rows)
    assert {prompt.text for prompt in prompts} == {prompts[0].text}
    assert prompts[0].text.count(processor.image_token) == 1
    assert "age 3" not in prompts[0].text
    assert {prompt.images[0].convert("RGB").tobytes() for prompt in prompts} == {bytes((255, 0, 0)) * 2400}


BAD_ROWS: dict[str, Any] = {
    "must be a readable image (there is no such file": {"messages": [ASK], "images": ["missing.png"]},
    "图') must be a readable image (there is no": {
        "messages": [ASK],
        "images": ["图" * 200],
    },  # too long for the name of a file
    "must be a PNG, JPEG, WEBP": {"messages": [ASK], "images": ["text.png"]},
    "image 0 (of 90 bytes) must be a readable image (image file is truncated": {
        "messages": [ASK],
        "images": [{"bytes": png()[:90]}],
    },
    "image 0 must be readable (got text as `bytes`": {"messages": [ASK], "images": [{"bytes": "no base64!"}]},
    "image 0 (of 4 bytes) must be a PNG, JPEG": {"messages": [ASK], "images": [b"junk"]},
    "roles must be one of system, user, human, assistant, gpt (got 'bot')": {
        "messages": [{"role": "bot", "content": "hi"}]
    },
    "it must end with a user turn, or with one and its answer": {"messages": [ANSWER]},
    "it must have `messages`, `conversations` or `prompt` and `completion` (got text, id": {"text": "hi"},
    "`messages` must be a list of mappings (got 'hi')": {"messages": "hi"},
    "surrogates not allowed": {"messages": [{"role": "user", "content": "\ud800"}]},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_row_becomes_a_prompt_with_its_reason(reason: str, tmp_path: Path, processor: ProcessorMixin) -> None:
    """No error leaves the reader, whatever the row; such a row has no length."""
    (tmp_path / "text.png").write_text("no image")
    reader = PromptReader([BAD_ROWS[reason] | {"id": "x"}], processor, tmp_path)
    prompt = reader.read(0)
    assert prompt.label == {"row": 0, "id": "x", "digest": reader.digest(0)}
    assert reason in str(prompt.error)
    assert (prompt.text, prompt.images) == ("", [])
    if "messages" in reason or "turn" in reason or "roles" in reason or "surrogates" in reason:
        assert reader.count_tokens(0) == 0


def test_bad_line_of_a_file_is_the_fault_of_its_row_alone(tmp_path: Path, processor: ProcessorMixin) -> None:
    """Rows are counted without empty lines, and a bad one is found in the file by the number of its line."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n\n{"messages": [\n[]\n')
    rows, folder = open_rows(Source(str(path)))
    assert folder == tmp_path
    reader = PromptReader(rows, processor, folder)
    prompts = [reader.read(index) for index in range(3)]
    labels = [{name: value for name, value in prompt.label.items() if name != "digest"} for prompt in prompts]
    assert labels == [
        {"row": 0, "id": "rows.jsonl:1"}, {"row": 1, "id": "rows.jsonl[1]"}, {"row": 2, "id": "rows.jsonl[2]"}
    ]  # fmt: skip
    assert [prompt.label["digest"] for prompt in prompts] == [reader.digest(index) for index in range(3)]
    assert prompts[0].error is None
    assert "rows.jsonl:3 must be a JSON object (got an error: " in str(prompts[1].error)
    assert "rows.jsonl:4 must be a JSON object (got list)" in str(prompts[2].error)
    assert [reader.count_tokens(index) > 0 for index in range(3)] == [True, False, False]


def test_count_tokens_orders_prompts_by_their_length(
    tmp_path: Path, processor: ProcessorMixin, write_forms: Callable[[Path, int], Path]
) -> None:
    """From characters and headers alone; for files and for decoded images, one and several."""
    write_forms(tmp_path, 3)
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]}]
    rows = [
        {"messages": [ASK], "images": ["0.png"]},
        {"messages": two, "images": ["1.png", PIL.Image.new("RGB", (90, 400))]},
        {"messages": [{"role": "user", "content": "How many?"}]},
    ]
    reader = PromptReader(rows, processor, tmp_path)
    expected = []
    for index in range(3):
        prompt = reader.read(index)
        inputs = processor(text=[prompt.text], images=[prompt.images] if prompt.images else None, return_tensors="pt")
        expected.append(inputs["input_ids"].shape[1])
    counts = [reader.count_tokens(index) for index in range(3)]
    assert sorted(range(3), key=counts.__getitem__) == sorted(range(3), key=expected.__getitem__)
    assert len(set(counts)) == 3


def test_count_image_tokens_unknown_size_is_the_largest(tmp_path: Path, processor: ProcessorMixin) -> None:
    """An address is not fetched twice; a file that is none is found later, by the one who decodes it."""
    settings = processor.image_processor
    largest = settings.size["longest_edge"] // settings.patch_size**2 // settings.merge_size**2
    assert count_image_tokens("http://192.0.2.1/a.png", processor) == largest
    assert count_image_tokens(tmp_path / "missing.png", processor) == largest
    with pytest.raises(ValueError, match="absolute aspect ratio"):
        count_image_tokens(PIL.Image.new("RGB", (9000, 2)), processor)


def test_rows_of_a_saved_data_set_are_not_decoded(tmp_path: Path, processor: ProcessorMixin) -> None:
    """A broken image is its row's fault; the library's own decoding would end the run."""
    features = datasets.Features(
        {"id": datasets.Value("int64"), "prompt": datasets.Value("string"), "image": datasets.Image()}
    )
    images = [{"bytes": png(), "path": None}, {"bytes": png()[:90], "path": None}]
    dataset = datasets.Dataset.from_dict({"id": [7, 8], "prompt": ["a", "b"], "image": images}, features=features)
    dataset = dataset.add_column("messages", [[ASK], [ASK]])
    dataset.save_to_disk(tmp_path / "saved")
    rows, folder = open_rows(Source(str(tmp_path / "saved")))
    assert (len(rows), folder) == (2, None)
    prompts = [PromptReader(rows, processor, folder).read(index) for index in range(2)]
    assert [(prompt.label["row"], prompt.label["id"]) for prompt in prompts] == [(0, 7), (1, 8)]
    assert prompts[0].error is None
    assert prompts[0].images[0].size == (60, 40)
    assert "image 0 (of 90 bytes) must be a readable image" in str(prompts[1].error)
    with pytest.raises(OSError, match="truncated"):  # control
        dataset[1]


def test_open_rows_of_a_function_stay_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be composed when they are read."""
    (tmp_path / "some_rows_module.py").write_text(f"def rows():\n    return [{json.dumps({'messages': [ASK]})}] * 2\n")
    monkeypatch.chdir(tmp_path)
    rows, folder = open_rows(Source("some_rows_module:rows"))
    assert [row["messages"] for row in (rows[0], rows[1])] == [[ASK]] * 2
    assert (len(rows), folder) == (2, None)

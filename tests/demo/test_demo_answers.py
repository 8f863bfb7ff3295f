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
"""Questions of the page and the states of their answers, on the package's small model; images and forms refused."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT, FORMS_SAMPLE
from dimple_hf.data.image_features import ImageFeatures
from dimple_hf.demo import answers as demo_answers
from dimple_hf.demo.answers import (
    FREE,
    SCHEMA,
    TEMPLATE,
    Question,
    answer_states,
    chat_messages,
    open_image,
    read_form,
)

#: An answer of exactly eight tokens: one a pass, at a threshold of 1.
EIGHT_POSITIONS = read_form(TEMPLATE, "{text:8-8}")


@pytest.fixture(scope="module")
def features() -> ImageFeatures:
    return ImageFeatures(AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype="auto").eval())


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FORMS_CHECKPOINT)


@pytest.fixture
def image() -> Iterator[PIL.Image.Image]:
    with PIL.Image.open(FORMS_SAMPLE) as image:
        yield image


def test_sample_of_the_package_is_that_of_the_examples(repo_root: Path) -> None:
    """One image in two positions, because users of the wheel have no examples. Made anew, it is copied."""
    assert FORMS_SAMPLE.read_bytes() == (repo_root / "examples" / "forms" / "sample.png").read_bytes()


def test_states_end_in_the_answer_of_generate(features: ImageFeatures, processor: Any, image: PIL.Image.Image) -> None:
    """The same answer in as many passes, one state for each and one before; every position is unmasked in some
    step."""
    asked = Question("Read the form.", image, confidence_threshold=0.99, max_new_tokens=40)
    states = list(answer_states(features, processor, asked))
    inputs = processor.apply_chat_template(
        chat_messages(asked), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = features.model.generate(
        **inputs, max_new_tokens=40, confidence_threshold=0.99, return_dict_in_generate=True
    )
    expected = processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert states[-1].text == expected
    assert states[-1].value is None
    assert [state.num_passes for state in states] == list(range(output.num_forward_passes.item() + 1))
    assert {state.num_positions for state in states} == {40}
    assert states[0].num_unmasked == 0
    assert states[-1].num_unmasked == 40
    assert all(before.num_unmasked < after.num_unmasked for before, after in itertools.pairwise(states))
    assert all(state.text is None for state in states[:-1])
    assert {run.unmasked_in for run in states[-1].runs} <= set(range(1, len(states)))


def test_seconds_leave_out_what_the_consumer_does(features: ImageFeatures, processor: Any) -> None:
    """A page that pauses after each step does not make the model look slow."""
    states = answer_states(features, processor, Question("Read.", prior=EIGHT_POSITIONS, confidence_threshold=1.0))
    start, slept = time.perf_counter(), 0.0
    for _ in range(4):
        seconds = next(states).seconds
        time.sleep(0.1)
        slept += 0.1
    assert 0 < seconds <= time.perf_counter() - start - slept


def test_leaving_the_states_ends_the_work(features: ImageFeatures, processor: Any) -> None:
    """The next pass runs when the next state is asked for."""
    passes: list[None] = []
    handle = features.model.model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(None))
    asked = Question("Read.", prior=EIGHT_POSITIONS, confidence_threshold=1.0)
    for state in answer_states(features, processor, asked):
        if state.step == 3:
            break
    assert len(passes) == 3
    list(answer_states(features, processor, asked))
    handle.remove()
    assert len(passes) > 3 + 4  # control: there was more to do


def test_form_gives_its_canvas_and_its_value(features: ImageFeatures, processor: Any, image: PIL.Image.Image) -> None:
    """What the form fixes stands there from the beginning, and the answer's length is the form's."""
    prior = read_form(TEMPLATE, "price {price:int}")
    states = list(answer_states(features, processor, Question("Read.", image, prior=prior, max_new_tokens=1)))
    assert states[0].runs[0].text == "price "
    assert states[0].runs[0].unmasked_in == 0
    assert isinstance(states[-1].value["price"], int)
    assert states[-1].text == f"price {states[-1].value['price']}"
    schema = read_form(SCHEMA, '{"type": "array", "items": {"type": "boolean"}, "minItems": 1}')
    values = [state.value for state in answer_states(features, processor, Question("Read.", image, prior=schema))]
    assert values[:-1] == [None] * (len(values) - 1)
    assert {type(item) for item in values[-1]} == {bool}


def test_chat_has_the_image_at_its_beginning_and_earlier_turns_in_order(image: PIL.Image.Image) -> None:
    """Roles alternate; without an image there is text only."""
    asked = Question("And now?", image, earlier=[("First?", "one"), ("Then?", "two")])
    messages = chat_messages(asked)
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2 + ["user"]
    assert [part["type"] for part in messages[0]["content"]] == ["image", "text"]
    assert [message["content"][-1]["text"] for message in messages] == ["First?", "one", "Then?", "two", "And now?"]
    assert chat_messages(Question("Hi")) == [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def test_earlier_turns_are_seen_by_the_model(features: ImageFeatures, processor: Any, image: PIL.Image.Image) -> None:
    """What is sent along changes what it computes, whatever it was taught."""

    def first_step(**options: Any) -> Any:
        steps = answer_states(features, processor, Question("Read the form.", image, max_new_tokens=8, **options))
        return list(steps)[1].runs

    assert first_step(earlier=[("Read the form as JSON.", '{"age":1}')] * 3) != first_step()
    assert first_step() == first_step()  # control


def test_images_that_cannot_be_read_are_refused_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's path is the server's and not said; each kind of fault has words of its own."""
    (tmp_path / "text.png").write_text("Dear reader")
    (tmp_path / "cut.png").write_bytes(FORMS_SAMPLE.read_bytes()[:3000])
    for name, message in (
        ("text.png", "not an image that can be read"),
        ("gone.png", "not an image that can be read"),
        ("cut.png", "is damaged"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            open_image(str(tmp_path / name))
        assert str(tmp_path) not in str(caught.value)
    monkeypatch.setattr(demo_answers, "MAX_IMAGE_PIXELS", 168 * 140 - 1)
    with pytest.raises(ValueError, match=r"at most 0 million pixels, and it has 168 x 140 pixels"):
        open_image(str(FORMS_SAMPLE))
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 168 * 140 // 2 - 1)
    with pytest.raises(ValueError, match="far more pixels"):
        open_image(str(FORMS_SAMPLE))
    monkeypatch.undo()
    assert open_image(str(FORMS_SAMPLE)).size == (168, 140)  # control


def test_image_is_turned_upright(tmp_path: Path) -> None:
    """Phones store images lying, with a note how to hold them."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # Orientation: turned by 90 degrees
    PIL.Image.new("RGB", (60, 40)).save(tmp_path / "lying.jpg", exif=exif)
    assert open_image(str(tmp_path / "lying.jpg")).size == (40, 60)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (TEMPLATE, "  ", "The template is empty"),
        (SCHEMA, "", "The JSON schema is empty"),
        (TEMPLATE, "{price}", "must have a length"),
        (SCHEMA, "{", "The schema is not JSON: .*line 1 column 2"),
        (SCHEMA, "[1]", r"must be a JSON object such as .* \(got '\[1\]'\)"),
        (SCHEMA, '{"type": "integr"}', "integr"),
    ],
)
def test_forms_that_are_none_are_refused(kind: str, text: str, message: str) -> None:
    """The message is what the visitor reads."""
    with pytest.raises(ValueError, match=message):
        read_form(kind, text)


def test_free_answer_has_no_form() -> None:
    """Whatever stands in the box that is not shown."""
    assert read_form(FREE, "{") is None
    assert read_form(TEMPLATE, "plain {gap:3}") is not None  # control

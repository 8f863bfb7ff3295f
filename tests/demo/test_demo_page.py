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
"""The page of `dimple-hf demo` as people use it: in a real headless Chromium, with the package's small model.

The model is trained anew from time to time, so nothing here pins what it answers: answers equal those of `generate`.
Not run by default: `make test ARGS="-n 0 -m browser"`.
"""

import json
import re
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import PIL.Image
import pytest
from demo_screenshots import write_screenshots
from page_browser import DESKTOP, PHONE, ask, choose, chromium, open_page, served_page, show_example, upload
from playwright.sync_api import Browser, Page, expect

from dimple_hf.checkpoints import FORMS_SAMPLE
from dimple_hf.demo.page import FORM_SCHEMA

pytestmark = [
    pytest.mark.browser,
    # Gradio 6.31 keeps statistics of its queue with pandas as it was before version 3.
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]

#: Keeps what the canvas has shown, however short: how many of its positions were masked.
RECORD_CANVAS = """() => {
  window.shown = [];
  const look = () => {
    const canvas = document.querySelector('.dimple-canvas[aria-label]');
    const state = canvas && [canvas.getAttribute('aria-label'), canvas.querySelectorAll('.mask').length];
    if (state && String(window.shown.at(-1)) !== String(state)) window.shown.push(state);
  };
  new MutationObserver(look).observe(document.getElementById('canvas'), {childList: true, subtree: true});
}"""


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Any, Any, str]]:
    with served_page() as parts:
        yield parts


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(served: tuple[Any, Any, str], browser: Browser) -> Iterator[Page]:
    """The page as a new visitor sees it; what it complains of on the console fails the test."""
    page = open_page(browser, served[2])
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    page.close()
    assert problems == []


@pytest.fixture
def num_passes(served: tuple[Any, Any, str]) -> Iterator[Callable[[], int]]:
    """A function that says how often the model has run since the test began."""
    passes: list[None] = []
    handle = served[0].model.layers[0].register_forward_pre_hook(lambda module, args: passes.append(None))
    yield lambda: len(passes)
    handle.remove()


def expected(served: tuple[Any, Any, str], question: str, **options: Any) -> tuple[str, int]:
    """What `generate` answers about the sample, and in how many passes."""
    model, processor, _ = served
    content = [{"type": "image", "path": str(FORMS_SAMPLE)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    output = model.generate(**inputs, **options, return_dict_in_generate=True)
    answer = processor.decode(output.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answer, output.num_forward_passes.item()


def status(page: Page) -> Any:
    return page.locator("#status p")


def form_box(page: Page, kind: str) -> Any:
    return page.get_by_role("textbox", name=kind)


def answers(page: Page) -> Any:
    return page.locator("#chat .bot.message")


def test_uploaded_image_is_asked_about_and_the_canvas_fills_up(
    served: tuple[Any, Any, str], browser: Browser, tmp_path: Path
) -> None:
    """The whole way of a first visit; the answer is that of `generate`, and no other machine is asked for anything."""
    page = browser.new_page()
    hosts: set[str | None] = set()
    page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
    page.goto(served[2])
    upload(page, FORMS_SAMPLE)
    expect(page.locator("#image img")).to_be_visible()
    page.evaluate(RECORD_CANVAS)
    choose(page, "Confidence threshold", 1)
    choose(page, "Answer length", 12)
    ask(page, "Read the form.")
    answer, passes = expected(served, "Read the form.", confidence_threshold=1.0, max_new_tokens=12)
    expect(status(page)).to_have_text(re.compile(rf"^Done: {passes} forward passes for 12 positions, [\d.]+ s$"))
    assert answers(page).inner_text().split() == answer.split()
    shown = page.evaluate("window.shown")
    assert [name for name, _ in shown][-1] == f"Canvas after step {passes}: 12 of 12 positions are unmasked"
    masks = [num_masks for _, num_masks in shown]
    assert masks[0] == 12
    assert masks[-1] == 0
    assert len(set(masks)) > 2  # control: it was seen on the way
    assert masks == sorted(masks, reverse=True)
    assert hosts == {"127.0.0.1"}
    page.close()


def test_stop_ends_the_work_within_a_step(page: Page, num_passes: Callable[[], int]) -> None:
    """What is decided stays to be seen, and the next question is answered."""
    show_example(page, "A form, freely", "Read the form.")
    choose(page, "Confidence threshold", 1)
    ask(page)
    expect(status(page)).to_have_text(re.compile(r"^([2-9]|\d\d) forward passes, "))
    before = num_passes()
    page.get_by_role("button", name="Stop").click()
    expect(status(page)).to_have_text(re.compile(r"^Stopped: "))
    after = num_passes()
    assert after - before <= 15  # those that ran while the click was on its way; 48 would have
    time.sleep(1)
    assert num_passes() == after
    assert f"Stopped: {after} forward passes, {after} of 48 positions unmasked" in status(page).inner_text()
    assert page.locator("#canvas .mask").count() == 48 - after
    assert "░" in answers(page).inner_text()
    assert answers(page).inner_text().strip().endswith("(stopped)")
    choose(page, "Pause after each step", 0)
    ask(page, "Read the form.")
    expect(status(page)).to_have_text(re.compile(r"^Done: "), timeout=60_000)
    assert num_passes() - after > 10  # control: there was more to do
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()


def test_leaving_the_page_ends_the_work(served: Any, browser: Browser, num_passes: Callable[[], int]) -> None:
    """A closed tab costs nothing more than the step that runs."""
    page = open_page(browser, served[2])
    show_example(page, "A form, freely", "Read the form.")
    choose(page, "Confidence threshold", 1)
    ask(page)
    expect(status(page)).to_have_text(re.compile(r"^\d+ forward pass"))
    page.close()
    time.sleep(1.5)
    after = num_passes()
    time.sleep(1)
    assert 0 < num_passes() == after < 40


def write_bomb(path: Path) -> None:
    """A PNG file of a hundred bytes that says that it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_bad_files_are_refused_in_plain_words(page: Page, tmp_path: Path) -> None:
    """No trace, no path of the server, no broken image left after; a good file then works."""
    files = {
        "text.png": "This file is not an image",
        "bomb.png": "This image is too large",
        "drawing.svg": "This file is not an image",
        "cut.png": "This image is damaged",
    }
    (tmp_path / "text.png").write_text("Dear reader")
    (tmp_path / "drawing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    write_bomb(tmp_path / "bomb.png")
    (tmp_path / "cut.png").write_bytes(FORMS_SAMPLE.read_bytes()[:3000])
    for name, message in files.items():
        upload(page, tmp_path / name)
        expect(status(page)).to_contain_text(message)
        expect(page.get_by_role("button", name="Drop an image file here to upload")).to_be_visible()
        assert str(tmp_path) not in page.inner_text("body")
        assert "Traceback" not in page.content()
    upload(page, FORMS_SAMPLE)  # control
    expect(page.locator("#image img")).to_be_visible()
    expect(status(page)).to_have_count(0)


def test_schema_gives_json_and_a_template_its_values(served: tuple[Any, Any, str], page: Page) -> None:
    """Rendered as JSON, valid for the schema that was asked for, and what the answer on the canvas says."""
    show_example(page, "A form, as JSON of a schema", "Read the form as JSON.")
    expect(form_box(page, "JSON schema")).to_have_value(FORM_SCHEMA)
    ask(page)
    expect(status(page)).to_have_text(re.compile(r"^Done: "))
    value = json.loads(answers(page).locator("code").inner_text())
    jsonschema.validate(value, json.loads(FORM_SCHEMA))
    assert list(value) == ["price", "floor", "table", "qty"]
    page.get_by_text("Template", exact=True).click()
    template = form_box(page, "Template")
    template.fill("price {price:int}\nfloor {floor:3}")
    ask(page, "Read the form.")
    expect(answers(page)).to_have_count(2)
    expect(status(page)).to_have_text(re.compile(r"^Done: "))
    values = json.loads(answers(page).last.locator("code").inner_text())
    assert list(values) == ["price", "floor"]
    assert isinstance(values["price"], int)
    for kind, text, message in (
        ("Template", "price {price}", "must have a length"),
        ("JSON schema", "{", "The schema is not JSON"),
        ("JSON schema", '{"type": "integr"}', "integr"),
        ("JSON schema", " ", "The JSON schema is empty"),
    ):
        page.get_by_text(kind, exact=True).first.click()
        form_box(page, kind).fill(text)
        ask(page, "Read the form.")
        expect(status(page)).to_contain_text(message)
    assert page.get_by_role("textbox", name="Question").input_value() == "Read the form."  # nothing typed is lost
    expect(answers(page)).to_have_count(2)


def test_visitors_wait_for_each_other_and_get_their_own_answers(
    served: tuple[Any, Any, str], browser: Browser
) -> None:
    """Nothing of one visitor's chat shows up in the other's."""
    questions = {"A form, freely": "Read the form.", "Its number of rows": "How many rows are there?"}
    pages = [open_page(browser, served[2]) for _ in questions]
    for page, (example, question) in zip(pages, questions.items(), strict=True):
        show_example(page, example, question)
    for page in pages:
        ask(page)
    for page, question in zip(pages, questions.values(), strict=True):
        expect(status(page)).to_have_text(re.compile(r"^Done: "))
        assert answers(page).inner_text().split() == expected(served, question)[0].split()
        assert page.locator("#chat .user.message").all_inner_texts() == [question]
        page.close()


def accessible_controls(page: Page) -> list[tuple[str, str]]:
    """Role and name of everything that can be operated, as a screen reader hears them."""
    session = page.context.new_cdp_session(page)
    session.send("Accessibility.enable")
    roles = {"button", "checkbox", "combobox", "link", "radio", "slider", "spinbutton", "textbox"}
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    named = [(node.get("role", {}).get("value"), node.get("name", {}).get("value", "").strip()) for node in nodes]
    return [(role, name) for role, name in named if role in roles]


def test_page_on_a_phone_fits_and_every_control_has_a_name(served: tuple[Any, Any, str], browser: Browser) -> None:
    """No sideways scrolling before, during and after an answer with a form; names and announcements are there."""
    page = open_page(browser, served[2], PHONE, has_touch=True, is_mobile=True)

    def sideways() -> int:
        return page.evaluate("document.documentElement.scrollWidth") - PHONE["width"]

    assert sideways() <= 0
    choose(page, "Answer length", 48)  # opens the settings
    show_example(page, "A form, as JSON of a schema", "Read the form as JSON.")
    expect(form_box(page, "JSON schema")).to_be_visible()
    controls = accessible_controls(page)
    assert [role for role, name in controls if not name] == []
    assert ("textbox", "Question") in controls
    assert ("button", "Stop") in controls
    assert sum(role in ("slider", "spinbutton") for role, _ in controls) == 6
    ask(page)
    expect(page.locator("#canvas .mask").first).to_be_visible()
    assert sideways() <= 0
    expect(page.get_by_role("status").first).to_contain_text("Done: ")
    assert page.get_by_role("img", name=re.compile(r"^Canvas after step \d+: \d+ of \d+ positions")).count() == 1
    assert sideways() <= 0
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p style=\"width: 900px\">wide</p>')")  # control
    assert sideways() > 0
    page.locator("#canvas").evaluate("element => element.innerHTML = '<button></button>'")
    assert ("button", "") in accessible_controls(page)
    page.close()


def test_screenshots_of_the_documentation_can_be_renewed(
    served: tuple[Any, Any, str], browser: Browser, repo_root: Path, tmp_path: Path
) -> None:
    """One command writes those that are committed, small enough for a repository."""
    names = sorted(write_screenshots(browser, served[2], tmp_path))
    assert [path.name for path in names] == ["demo-denoising.png", "demo-json.png", "demo-phone.png"]
    for path in names:
        assert path.stat().st_size < 150_000
        with PIL.Image.open(path) as image, PIL.Image.open(repo_root / "docs" / "figures" / path.name) as committed:
            assert image.size[0] == committed.size[0]
            assert len(set(image.convert("L").resize((40, 40)).get_flattened_data())) > 10  # not a blank page


#: The contrast of every text on the canvas with what it stands on (WCAG 2.1), the lowest first.
CONTRASTS = """() => {
  const rgb = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (element) => {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(rgb(getComputedStyle(e).backgroundColor));
    return chain.reduce(
      (below, [r, g, b, a = 1]) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a)), [255, 255, 255]);
  };
  return [...document.querySelectorAll('.dimple-canvas span:not([hidden])')].filter((e) => e.textContent.trim())
    .map((e) => [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => b - a))
    .map(([high, low]) => (high + 0.05) / (low + 0.05)).sort((a, b) => a - b);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_answer_can_be_read_and_replayed_in_light_and_dark(
    served: tuple[Any, Any, str], browser: Browser, scheme: str, size: dict[str, int]
) -> None:
    """Contrast of at least 4.5 on the canvas, the answer on the first screen, and the slider shows each step."""
    page = open_page(browser, served[2], size, color_scheme=scheme)
    assert page.evaluate(CONTRASTS)[0] > 4.5  # of the hint
    show_example(page, "A form, freely", "Read the form.")
    choose(page, "Answer length", 24)
    ask(page)
    expect(status(page)).to_have_text(re.compile("^Done"))
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 2
    assert contrasts[0] > 4.5
    assert page.locator("#canvas").bounding_box()["y"] < size["height"]
    slider = page.get_by_role("slider", name="Step that is shown")
    last = int(slider.get_attribute("max"))
    hidden = ".dimple-canvas .unmasked[hidden]"
    assert page.locator(hidden).count() == 0
    slider.fill("0")
    assert page.locator(".dimple-canvas .unmasked:not([hidden])").count() == 0
    assert page.locator(".dimple-answer .step-shown").inner_text() == f"step 0 of {last}"
    page.get_by_role("button", name="Replay").click()
    expect(page.locator(".dimple-answer .step-shown")).to_have_text(f"step {last} of {last}")
    assert page.locator(hidden).count() == 0
    page.close()


def test_file_that_is_no_image_is_refused_after_an_example(page: Page, tmp_path: Path) -> None:
    """The component was made anew by the example, and must still not open the file itself."""
    show_example(page, "A form, freely", "Read the form.")
    page.get_by_role("button", name="Remove Image").click()
    (tmp_path / "text.png").write_text("Dear reader")
    upload(page, tmp_path / "text.png")
    expect(status(page)).to_contain_text("This file is not an image")

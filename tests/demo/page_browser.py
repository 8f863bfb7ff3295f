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
"""The page of `dimple-hf demo` in a real Chromium: what its tests and its screenshots share.

The server runs in this process, so that tests can count the model's passes.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright
from transformers import AutoModelForImageTextToText, AutoProcessor

from dimple_hf.checkpoints import FORMS_CHECKPOINT
from dimple_hf.demo.page import build_page, launch_page

#: No sandbox, because CI runs as root; no talk with Google's servers.
CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

DESKTOP, PHONE = {"width": 1200, "height": 860}, {"width": 390, "height": 844}

expect.set_options(timeout=30_000)  # a loaded machine may be slow


@contextmanager
def served_page() -> Iterator[tuple[Any, Any, str]]:
    """The package's small model, its processor and the address of a page with it."""
    processor = AutoProcessor.from_pretrained(FORMS_CHECKPOINT)
    model = AutoModelForImageTextToText.from_pretrained(FORMS_CHECKPOINT, dtype="auto").eval()
    page = build_page(model, processor, "the small forms model", remembers=False)
    try:
        yield model, processor, launch_page(page, "127.0.0.1", None, block=False)
    finally:
        page.close(verbose=False)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of this machine, with a profile of its own that is thrown away."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        raise FileNotFoundError("there must be a Chromium for these tests: `apt-get install chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Browser, url: str, size: dict[str, int] = DESKTOP, **options: Any) -> Page:
    """The page as a new visitor sees it."""
    page = browser.new_page(viewport=size, **options)
    page.goto(url)
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()
    return page


def upload(page: Page, path: Path) -> None:
    """Hands a file in."""
    page.locator("#image input[type=file]").set_input_files(path)


def show_example(page: Page, name: str, question: str) -> None:
    """Clicks an example and waits until its question stands there."""
    page.get_by_role("button", name=name).click()
    expect(page.get_by_role("textbox", name="Question")).to_have_value(question)


def choose(page: Page, setting: str, value: float) -> None:
    """Types a value beside a slider."""
    box = page.get_by_label(f"number input for {setting}")
    if not box.is_visible():
        page.get_by_role("button", name="Settings").click()
    slider = page.get_by_label(f"range slider for {setting}")
    for _ in range(20):  # what is typed in the moment that the settings open is lost
        box.fill(str(value))
        box.press("Tab")
        if slider.input_value() == str(value):
            return
    expect(slider).to_have_value(str(value))


def ask(page: Page, question: str | None = None) -> None:
    """Asks, or asks what stands there."""
    if question is not None:
        page.get_by_role("textbox", name="Question").fill(question)
    page.get_by_role("button", name="Ask").click()

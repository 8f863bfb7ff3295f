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
"""Writes the screenshots of docs/demo.md: an answer on its way, an answer as JSON, the page on a phone.

Command:
    python tests/demo/demo_screenshots.py [FOLDER]    (default: docs/figures)

Needs Chromium and the extras `demo` and `test`. Run it again when the page or the small model has changed.
"""

import argparse
import io
import re
from pathlib import Path

import PIL.Image
from page_browser import PHONE, ask, choose, chromium, open_page, served_page, show_example
from playwright.sync_api import Browser, Page, expect

FIGURES = Path(__file__).resolve().parents[2] / "docs" / "figures"


def save(page: Page, path: Path) -> Path:
    """Writes what is to be seen as a PNG of 256 colours, which is smaller."""
    page.mouse.move(0, 0)
    image = PIL.Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    image.quantize(256, dither=PIL.Image.Dither.NONE).save(path, optimize=True)
    return path


def write_screenshots(browser: Browser, url: str, folder: Path) -> list[Path]:
    """Goes to the page at `url` three times and returns the files that it has written."""
    page = open_page(browser, url)
    show_example(page, "A form, freely", "Read the form.")
    choose(page, "Confidence threshold", 1)
    choose(page, "Answer length", 32)
    page.get_by_role("button", name="Settings").click()
    ask(page)
    expect(page.locator("#status p")).to_have_text(re.compile("^(1[89]|2[0-9]) forward passes"))  # most of it
    written = [save(page, folder / "demo-denoising.png")]
    page.close()

    page = open_page(browser, url)
    show_example(page, "A form, as JSON of a schema", "Read the form as JSON.")
    ask(page)
    expect(page.locator("#chat code")).to_be_visible()
    written.append(save(page, folder / "demo-json.png"))
    page.close()

    page = open_page(browser, url, PHONE)
    show_example(page, "A form, freely", "Read the form.")
    ask(page)
    expect(page.locator("#status p")).to_have_text(re.compile("^Done"))
    written.append(save(page, folder / "demo-phone.png"))
    page.close()
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FIGURES, help="where to write (default: docs/figures)")
    folder = parser.parse_args().folder
    with served_page() as (_, _, url), chromium() as browser:
        for path in write_screenshots(browser, url, folder):
            print(path)


if __name__ == "__main__":
    main()

"""The page in a browser: each tab used by clicks, at a desk's and at a phone's width, with nothing from outside.

Needs the extras ``demo`` and ``browser``, and Chromium: python -m pytest -n 0 -m browser.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import save_tiny_run, tiny_config

pytestmark = pytest.mark.browser
SECONDS = 1000  # milliseconds
SHOTS = os.environ.get("CDRL_SCREENSHOTS")  # a folder in which pictures of every tab are left


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from pipelines.demo.page import build_page, serve
    from pipelines.demo.runs import DemoRuns

    folder = tmp_path_factory.mktemp("attributes")
    data = {"name": "faces", "image_size": 8, "channels": 1, "labels": "attributes", "attributes": ["Smiling", "Bald"]}
    save_tiny_run(folder, config=tiny_config(data={**data, "cache": str(folder), "num_train": 8, "num_test": 4}))
    page = build_page(DemoRuns([Path("digits"), folder]))
    yield serve(page, None)
    page.close()


@pytest.fixture(params=[1100, 390], ids=["desk", "phone"])
def browser(request: pytest.FixtureRequest, address: str) -> Iterator[Any]:
    """The page, open; whatever it asks of another machine fails the test."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "no Chromium on PATH: install it, on Debian by apt-get install chromium"
    outside: list[str] = []

    def watch(asked: Any) -> None:
        if not asked.url.startswith((address, "data:", "blob:")):
            outside.append(asked.url)

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": request.param, "height": 900})
        page.set_default_timeout(60 * SECONDS)
        page.on("request", watch)
        page.goto(address)
        page.wait_for_selector("#generate")
        yield page
        assert page.evaluate("document.documentElement.scrollWidth") <= request.param
        if SHOTS:
            page.wait_for_timeout(SECONDS)
            name = f"{request.node.name}.png".replace("[", "_").replace("]", "")
            page.screenshot(path=str(Path(SHOTS) / name), full_page=True)
        chromium.close()
    assert not outside


def open_tab(page: Any, name: str) -> None:
    """Click on a tab; on a phone some lie behind a menu."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.count():
        page.locator(".overflow-menu button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.first.click()


def choose_run(page: Any, which: str) -> None:
    page.click("#run input")
    page.get_by_role("option", name=which).click()


def paint(page: Any) -> None:
    """A stroke over the middle of the picture."""
    place = page.locator("#editor canvas").first.bounding_box()
    x, y = place["x"] + 0.45 * place["width"], place["y"] + 0.45 * place["height"]
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(8):
        page.mouse.move(x + 6 * step, y + 10 * (step % 2))
    page.mouse.up()


def test_images_and_the_way_to_the_first_appear(browser: Any) -> None:
    choose_run(browser, "digits")
    browser.click("#generate")
    browser.wait_for_selector("#way img")
    assert browser.locator("#images img").count() == 4


def test_attributes_are_composed_and_a_mistake_is_told_in_words(browser: Any) -> None:
    choose_run(browser, "attributes")
    open_tab(browser, "Compose")
    browser.wait_for_selector("#compose")
    browser.click("#compose")
    browser.wait_for_selector("text=every attribute is ignored")
    browser.get_by_label("yes").first.check()
    browser.click("#compose")
    browser.wait_for_selector("#composed-way img")
    assert browser.locator("#composed img").count() == 4


def test_a_painted_hole_is_filled_in(browser: Any) -> None:
    choose_run(browser, "digits")
    open_tab(browser, "Fill in")
    browser.click("#take-to-fill")
    browser.wait_for_selector("#editor canvas")
    for _ in range(8):  # the picture lies on a canvas, which does not tell when it is ready for the brush
        browser.wait_for_timeout(2 * SECONDS)
        paint(browser)
        browser.click("#fill")
        told = browser.get_by_text(re.compile("there is no picture yet|nothing is hidden yet"))
        browser.locator("#filled img").or_(told).first.wait_for()
        if browser.locator("#filled img").count():
            break
    assert browser.locator("#filled img").count() == 4


def test_a_picture_is_placed_among_the_training_images(browser: Any) -> None:
    choose_run(browser, "digits")
    open_tab(browser, "How likely")
    browser.click("#score")
    browser.wait_for_selector("text=there is no picture yet")
    browser.click("#take-to-score")
    browser.wait_for_selector("#picture img")
    browser.click("#score")
    browser.wait_for_selector("#changes img")
    assert "training images" in browser.locator("#words").inner_text()


def test_a_slider_goes_from_one_sample_to_the_other(browser: Any) -> None:
    choose_run(browser, "digits")
    open_tab(browser, "Between")
    browser.click("#between")
    browser.wait_for_selector("#strip img")
    shown = browser.locator("#on-the-way img")
    before = shown.get_attribute("src")
    browser.locator("#place input[type=number]").fill("100")
    browser.locator("#place input[type=number]").press("Enter")
    browser.wait_for_function("before => document.querySelector('#on-the-way img').src !== before", arg=before)

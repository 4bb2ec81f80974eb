"""The page in a real browser: Debian's chromium, driven by playwright. `make test-web` runs these."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'cliploc[web]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-web")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(not os.environ.get("CLIPLOC_TEST_WEB"), reason="slow: make test-web runs it"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]

from tests.web.serving import serving  # noqa: E402

DEMO = Path(__file__).parents[2] / "src/cliploc/demo_photos"
SHOTS = os.environ.get("CLIPLOC_SCREENSHOTS")  # a folder; then the pictures of docs/ are taken
WAIT = 30_000  # ms; the machine may be busy


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1440, "height": 1000}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(WAIT)
    opened.asked = []
    opened.complaints = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.on("console", lambda said: opened.complaints.append(said.text) if said.type == "error" else None)
    yield opened
    context.close()


def open_page(page, address, query=""):
    page.goto(address + query, wait_until="domcontentloaded")
    page.locator("#find").wait_for()


def look(page, photo, names):
    page.locator("input[type=file]").first.set_input_files(str(photo))
    page.locator("button[aria-label='Clear'], .image-frame img, [data-testid=image] img").first.wait_for()
    page.get_by_label("Names").fill(names)
    page.locator("#find").click()


def boxes(page):
    return page.locator(".cliploc-table td.boxes").all_inner_texts()


def test_two_names_a_threshold_and_a_file(page, address):
    open_page(page, address)
    look(page, DEMO / "cat.jpg", "cat\ndog")
    page.locator("#results figure").nth(2).wait_for()
    assert page.locator("#results figure").count() == 3  # cat, dog, both
    assert "1 of 2 names found" in page.locator("#status").inner_text()
    rows = page.locator(".cliploc-table tbody tr").all_inner_texts()
    assert "✓ found" in rows[0]
    assert "✗ not found" in rows[1]
    alt = page.locator("#results img").first.get_attribute("alt")
    assert re.search(r"cat\.jpg with the heatmap for “cat”: box from \d+", alt)
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/web-1440.png", full_page=True)
    before = boxes(page)
    field = page.locator("#threshold input[type=number]")
    field.fill("0.8")
    field.press("Tab")
    page.wait_for_function(
        "before => document.querySelector('.cliploc-table td.boxes').innerText !== before", arg=before[0]
    )
    assert "threshold=0.8" in page.url  # the address opens the same
    page.get_by_role("button", name="Downloads").click()
    page.locator("#make").click()
    page.get_by_text("results.json", exact=False).last.wait_for()
    with page.expect_download() as waiting:
        page.locator("a[download*='results']").first.click()
    assert '"cat.jpg"' in Path(waiting.value.path()).read_text()
    assert [url for url in page.asked if not url.startswith((address, "data:", "blob:"))] == []
    assert not [text for text in page.complaints if "Content Security Policy" in text]


def test_a_bad_file_gets_a_sentence(page, address, tmp_path):
    bad = tmp_path / "notes.jpg"
    bad.write_text("this is no picture")
    open_page(page, address)
    look(page, bad, "cat")
    said = page.locator("#status .problem")
    said.wait_for()
    assert said.inner_text().startswith("notes.jpg: not a picture that can be read")
    assert "/" not in said.inner_text().split(":")[0]


def test_an_address_opens_its_settings_and_two_methods(page, address):
    open_page(page, address, "?names=cat&method=grad_cam&compare=layer_cam&min_score=0.1")
    playwright.expect(page.get_by_label("Names")).to_have_value("cat", timeout=WAIT)
    look(page, DEMO / "cat.jpg", "cat")
    page.locator("#results figure").nth(1).wait_for()
    text = page.locator("#results").inner_text()
    assert "Grad-CAM" in text
    assert "LayerCAM" in text


def test_a_long_method_stops(page, address):
    open_page(page, address, "?names=bird&method=score_cam&scales=1,1.43,2&flip=true")
    playwright.expect(page.get_by_label("Names")).to_have_value("bird", timeout=WAIT)
    look(page, DEMO / "osprey.jpg", "bird")
    page.get_by_text("masked photographs", exact=False).first.wait_for()
    page.locator("#stop").click()
    page.get_by_text("Stopped, as you asked").first.wait_for()
    open_page(page, address)
    look(page, DEMO / "cat.jpg", "cat")
    page.locator("#results figure").first.wait_for()  # the model is free again


def test_on_a_telephone_nothing_is_wider_than_the_screen(browser, address):
    context = browser.new_context(viewport={"width": 390, "height": 844}, device_scale_factor=1, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    open_page(page, address)
    look(page, DEMO / "cat.jpg", "cat, dog")
    page.locator("#results figure").nth(2).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/web-390.png", full_page=True)
    context.close()

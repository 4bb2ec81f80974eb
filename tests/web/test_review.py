"""An annotation's review page in a real browser, as a person uses it. `make test-web` runs this."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cliploc import backbones
from cliploc.jobs.annotate import annotate
from tests.commands import PHOTOS, create_once
from tests.web.browsing import SHOTS, in_a_browser

pytestmark = in_a_browser

LABELS = ['Kätzchen, "mein" & <b>|cat', "dog", "rocket", "bridge"]
WIDTHS = {"desk": (1440, 900), "phone": (390, 844)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Annotates six photographs, one of them sideways in a sub-folder, with what it is given."""
    monkeypatch.setattr(backbones, "create", create_once)
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for name in ("cat", "dogs", "rocket", "bridge", "drum"):
        shutil.copy(PHOTOS / f"{name}.jpg", root)
    shutil.copy(PHOTOS / "cat.jpg", root / "sub/<i>cat 猫.jpg")
    return lambda **more: annotate(root, LABELS, tmp_path / "out", device="cpu", formats=["coco"], **more)


@pytest.fixture(params=WIDTHS)
def page(request, browser, run) -> Iterator:
    out = run().out
    width, height = WIDTHS[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(10_000)
    opened.said, opened.asked = [], []
    opened.on("console", lambda message: opened.said.append(message.text))
    opened.on("pageerror", lambda error: opened.said.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto((out / "review.html").as_uri())
    if SHOTS:
        opened.screenshot(path=Path(SHOTS) / f"review-{request.param}.png")
    yield opened
    context.close()


def boxes_of(out: Path) -> dict[str, list[int]]:
    read = json.loads((out / "coco.json").read_text())
    return {
        one["file_name"]: [box["category_id"] for box in read["annotations"] if box["image_id"] == one["id"]]
        for one in read["images"]
    }


def test_boxes_are_clicked_filtered_saved_and_applied(page, run, tmp_path):
    out = tmp_path / "out"
    before = boxes_of(out)
    count = sum(map(len, before.values()))
    state = page.locator("#state")
    assert f"6 pictures, {count} boxes shown; 0 boxes dropped" in state.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is to the side"

    # Boxes lie on their picture: as large a share of it as in the file.
    figure = page.locator("figure", has_text="rocket.jpg")
    figure.scroll_into_view_if_needed()  # pictures far below are not loaded before
    shown, rect = figure.locator("img").bounding_box(), figure.locator("rect").last.bounding_box()
    assert shown["x"] - 4 <= rect["x"]
    assert rect["x"] + rect["width"] <= shown["x"] + shown["width"] + 4
    assert figure.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth > 0)")
    assert shown["height"] < 340

    # Dropped on the picture, under it, taken back.
    figure.locator("rect").last.click()
    assert "1 box dropped" in state.inner_text()
    odd = page.locator("figure", has_text="<i>cat 猫.jpg")
    chip = odd.get_by_role("button", name=re.compile('^Kätzchen, "mein" & <b> [01]'))
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert "2 boxes dropped" in state.inner_text()
    figure.locator("rect").last.press("Tab")  # the keyboard reaches the list
    chip.press("Enter")
    assert "1 box dropped" in state.inner_text()

    # Filters: only what is shown is dropped by the button.
    page.locator("#label").select_option(label="dog")
    dogs = sum(boxes.count(2) for boxes in before.values())
    assert dogs > 0
    assert f"{dogs} box" in state.inner_text()
    assert page.locator("figure:visible").count() == sum(2 in boxes for boxes in before.values())
    page.get_by_role("button", name="Drop shown").click()
    page.locator("#label").select_option(label="all")
    page.locator("#score").fill("1")
    assert page.locator("figure:visible").count() < 6
    page.locator("#score").fill("0")
    assert f"{dogs + 1} boxes dropped" in state.inner_text()

    # A page with decisions that are not saved asks before it goes.
    asked = []
    page.once("dialog", lambda dialog: (asked.append(dialog.type), dialog.dismiss()))
    page.evaluate("() => { setTimeout(() => location.reload(), 0) }")
    page.wait_for_timeout(300)
    assert asked == ["beforeunload"]

    with page.expect_download() as download:
        page.get_by_role("button", name="Save decisions").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "decisions.json"
    result = run(decisions=file)
    assert (result.dropped, result.reviewed) == (dogs + 1, 6)
    after = boxes_of(out)
    assert sum(map(len, after.values())) == count - dogs - 1
    assert not any(2 in boxes for boxes in after.values())
    assert len(after["rocket.jpg"]) == len(before["rocket.jpg"]) - 1
    assert after["sub/<i>cat 猫.jpg"] == before["sub/<i>cat 猫.jpg"]

    # The page written anew remembers.
    page.goto((out / "review.html").as_uri())
    assert f"{dogs + 1} boxes dropped" in page.locator("#state").inner_text()
    assert page.said == []
    assert {url.split(":")[0] for url in page.asked} <= {"file", "data", "blob"}

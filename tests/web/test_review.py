"""The review editor in a real browser, as a person uses it. `make test-web` runs this."""

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
from tests.web.review_server import served

pytestmark = in_a_browser

LABELS = ['Kätzchen, "mein" & <b>|cat', "dog", "rocket", "bridge"]
ODD = "sub/<i>cat 猫.jpg"
WIDTHS = {"desk": (1440, 900), "phone": (390, 844)}
OPTIONS = {"device": "cpu", "formats": ["coco"]}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Six photographs, one of them in a sub-folder under an odd name."""
    root = tmp_path_factory.mktemp("photos")
    (root / "sub").mkdir(parents=True)
    for name in ("cat", "dogs", "rocket", "bridge", "drum"):
        shutil.copy(PHOTOS / f"{name}.jpg", root)
    shutil.copy(PHOTOS / "cat.jpg", root / ODD)
    return root


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory):
    """The drafts of these, without masks (False) and with them (True)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "create", create_once)
        return {
            masks: annotate(photos, LABELS, tmp_path_factory.mktemp("done"), masks=masks, **OPTIONS).out
            for masks in (False, True)
        }


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    monkeypatch.setattr(backbones, "create", create_once)


@pytest.fixture
def out(done, tmp_path) -> Path:
    shutil.copytree(done[False], tmp_path / "out")
    return tmp_path / "out"


class Editor:
    """The page, and what a person does with it."""

    def __init__(self, context, address: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(10_000)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.touch = context.new_cdp_session(self.page) if self.page.evaluate("'ontouchstart' in window") else None
        self.page.goto(address)
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector(".a9s-annotationlayer")
        self.page.wait_for_function("document.getElementById('name').textContent !== ''")

    def open(self, name: str) -> None:
        if not self.page.locator("#list").is_visible():
            self.press("Pictures")
        self.page.locator(".row button", has_text=re.compile(f"{re.escape(name)}\\D")).click()
        self.page.wait_for_function("(name) => document.getElementById('name').textContent === name", arg=name)
        self.ready()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def key(self, *keys: str) -> None:
        for one in keys:
            self.page.keyboard.press(one)

    def point(self, xy) -> tuple[float, float]:
        """A point of the picture on the screen."""
        self.page.locator("#stage").scroll_into_view_if_needed()
        bounds = self.page.locator("#canvas").bounding_box()
        size = self.page.evaluate(
            "() => { const i = document.querySelector('#canvas img'); return [i.naturalWidth, i.naturalHeight] }"
        )
        return bounds["x"] + xy[0] / size[0] * bounds["width"], bounds["y"] + xy[1] / size[1] * bounds["height"]

    def drag(self, start, end) -> None:
        (x0, y0), (x1, y1) = self.point(start), self.point(end)
        steps = [(x0 + (x1 - x0) * i / 8, y0 + (y1 - y0) * i / 8) for i in range(1, 9)]
        if self.touch is None:
            self.page.mouse.move(x0, y0)
            self.page.mouse.down()
            for x, y in steps:
                self.page.mouse.move(x, y)
            self.page.mouse.up()
        else:
            touches = [("touchStart", [(x0, y0)]), *(("touchMove", [one]) for one in steps), ("touchEnd", [])]
            for kind, points in touches:
                at = [{"x": x, "y": y} for x, y in points]
                self.touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})
        self.page.wait_for_timeout(30)

    def tap(self, xy, **more) -> None:
        x, y = self.point(xy)
        if self.touch is None:
            if more:
                self.page.keyboard.down("Shift")
            self.page.mouse.click(x, y)
            if more:
                self.page.keyboard.up("Shift")
        else:
            self.page.touchscreen.tap(x, y)
        self.page.wait_for_timeout(30)

    def saved(self) -> None:
        """Waits until what was done is on the disk."""
        self.page.wait_for_function("document.getElementById('saved').textContent.match(/^(Saved|Kept)/)")

    @property
    def labels(self) -> list[str]:
        return self.page.locator("#boxes .kind").evaluate_all("(all) => all.map((one) => one.selectedOptions[0].text)")

    @property
    def boxes(self) -> list[list[int]]:
        """x, y, width and height of each."""
        titles = self.page.locator("#boxes li").evaluate_all("(all) => all.map((one) => one.title)")
        found = [list(map(int, re.findall(r"\d+", one))) for one in titles]
        return [[x, y, width, height] for width, height, x, y in found]


@pytest.fixture(params=WIDTHS)
def context(request, browser) -> Iterator:
    width, height = WIDTHS[request.param]
    phone = request.param == "phone"
    made = browser.new_context(
        viewport={"width": width, "height": height}, accept_downloads=True, has_touch=phone, is_mobile=phone
    )
    made.kind = request.param
    yield made
    made.close()


def corrections(out: Path) -> dict:
    return json.loads((out / "corrections.json").read_text())


def corrected(out: Path, name: str) -> list[list[float]]:
    return corrections(out)["pictures"][name]["boxes"]


def coco(out: Path, name: str) -> list[tuple[int, list[float]]]:
    read = json.loads((out / "coco.json").read_text())
    [image] = [one["id"] for one in read["images"] if one["file_name"] == name]
    return [(one["category_id"], one["bbox"]) for one in read["annotations"] if one["image_id"] == image]


def test_boxes_are_drawn_moved_resized_relabelled_dropped_undone_and_saved(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is to the side"
        editor.open("dogs.jpg")
        if SHOTS:
            page.screenshot(path=Path(SHOTS) / f"review-{context.kind}.png")
        [draft] = editor.boxes
        assert editor.labels == ["dog"]

        # Draw: beside the draft, then a second one without a click between.
        page.locator("#active").select_option(label="rocket (3)")
        editor.drag((20, 20), (100, 80))
        editor.saved()
        assert editor.labels == ["dog", "rocket"]
        assert editor.boxes[1] == pytest.approx([20, 20, 80, 60], abs=3)
        editor.drag((120, 20), (180, 90))
        assert len(editor.boxes) == 3
        editor.saved()
        assert len(corrected(out, "dogs.jpg")) == 3

        # Move the one drawn last, which is selected; it does not leave the picture.
        editor.drag((150, 55), (160, 75))
        assert editor.boxes[2] == pytest.approx([130, 40, 60, 70], abs=3)
        editor.drag((160, 75), (-400, 75))
        assert editor.boxes[2][0] == 0
        editor.press("Undo")
        assert editor.boxes[2][0] == pytest.approx(130, abs=3)

        # Resize at a corner.
        x, y, width, height = editor.boxes[2]
        editor.drag((x + width, y + height), (x + width + 30, y + height + 40))
        assert editor.boxes[2] == pytest.approx([x, y, width + 30, height + 40], abs=4)

        # Select by a click, relabel, drop, take back.
        editor.tap((60, 50))
        assert page.locator("#boxes .pick").nth(1).is_checked()
        page.locator("#boxes .kind").nth(1).select_option(label="bridge")
        assert editor.labels == ["dog", "bridge", "rocket"]
        page.locator("#boxes .away").first.click()
        assert editor.labels == ["bridge", "rocket"]
        assert page.locator("#dropped li").inner_text().startswith("dog")
        page.locator("#dropped button").click()
        assert editor.labels == ["bridge", "rocket", "dog"]
        for _ in range(3):
            editor.press("Undo")
        assert editor.labels == ["dog", "rocket", "rocket"]
        for _ in range(3):
            editor.press("Redo")
        assert editor.labels == ["bridge", "rocket", "dog"]
        page.get_by_role("radio", name="unsure").check()
        editor.saved()
        assert corrections(out)["reviews"]["dogs.jpg"]["status"] == "unsure"

        # A reload in the middle loses nothing.
        boxes = editor.boxes
        page.reload()
        editor.ready()
        assert page.locator("#name").inner_text() == "dogs.jpg"
        assert (editor.labels, editor.boxes) == (["bridge", "rocket", "dog"], boxes)
        assert page.get_by_role("radio", name="unsure").is_checked()
        assert editor.boxes[2] == draft

        # The button writes the exports of the run.
        before = coco(out, "dogs.jpg")
        editor.press("Write exports")
        page.wait_for_function("document.getElementById('saved').textContent.startsWith('Written to')")
        after = coco(out, "dogs.jpg")
        assert (len(before), [label for label, _ in after]) == (1, [4, 3, 2])
        assert editor.said == []
        assert all(one.startswith((address, "data:", "blob:")) for one in editor.asked), "nothing from elsewhere"


def test_every_key_does_what_the_list_of_keys_says(browser, out):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        checked = lambda: page.locator("#boxes .pick").evaluate_all("(all) => all.map((one) => one.checked)")  # noqa: E731
        name = lambda: page.locator("#name").inner_text()  # noqa: E731
        editor.open("rocket.jpg")
        first = editor.boxes
        assert editor.labels == ["bridge", "rocket", "bridge"]
        editor.key(".")
        assert checked() == [True, False, False]
        editor.key("Shift+.")
        assert checked() == [True, True, False]
        editor.key(",", ",")
        assert checked() == [False, False, True]
        editor.key("2")
        assert editor.labels == ["bridge", "rocket", "dog"]
        editor.key("Escape", "a")
        assert checked() == [True] * 3
        editor.key("m")  # their union
        assert editor.boxes == [[0, 0, 640, 427]]
        editor.key("s")
        assert editor.boxes == [[0, 0, 320, 427], [320, 0, 320, 427]]
        editor.key("x")
        assert editor.boxes == []
        editor.key("Control+z", "Control+z", "Control+z", "Control+z")
        assert (editor.boxes, editor.labels) == (first, ["bridge", "rocket", "bridge"])
        editor.key("Control+y", "Control+Shift+Z", "Control+y", "Control+y")
        assert editor.boxes == []
        editor.key("k")  # what was dropped last comes back
        assert sorted(editor.boxes) == sorted(first)
        editor.key(
            "Escape", "b", "ArrowRight", "ArrowRight", "Shift+ArrowDown", "Alt+ArrowRight", "Alt+Shift+ArrowDown"
        )
        assert editor.boxes[-1] == [242, 170, 161, 117]
        editor.key("Control+z", "Control+z", "Control+z")  # resized, moved, made: neighbouring steps are one
        assert len(editor.boxes) == 3
        editor.key("+", "+")
        width = page.locator("#canvas").bounding_box()["width"]
        editor.key("-")
        assert page.locator("#canvas").bounding_box()["width"] < width
        editor.key("f", "v")
        assert page.locator("#pan").get_attribute("aria-pressed") == "true"
        editor.key("v", "u")
        assert page.get_by_role("radio", name="unsure").is_checked()
        editor.key("o")
        assert page.get_by_role("radio", name="skipped").is_checked()
        editor.key("c")
        assert page.get_by_role("radio", name="none").is_checked()
        editor.saved()
        editor.key("?")
        assert page.locator("#help").is_visible()
        editor.key("Escape")
        editor.open("bridge.jpg")
        editor.key("r")
        page.wait_for_function("document.getElementById('name').textContent === 'drum.jpg'")
        editor.key("p")
        page.wait_for_function("document.getElementById('name').textContent === 'bridge.jpg'")
        assert page.get_by_role("radio", name="reviewed", exact=True).is_checked()
        editor.key("n")
        page.wait_for_function("document.getElementById('name').textContent === 'drum.jpg'")
        assert name() == "drum.jpg"
        # Letters that are typed are no keys.
        page.locator("#suggest-name").press_sequentially("brush 12")
        assert page.locator("#suggest-name").input_value() == "brush 12"
        assert editor.said == []
    context.close()
    assert {name: one["status"] for name, one in corrections(out)["reviews"].items()} == {
        "rocket.jpg": "none",
        "bridge.jpg": "reviewed",
    }

"""The review editor in a real browser, as a person uses it. `make test-web` runs this."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from cliploc.images import rle
from cliploc.label.annotate import annotate
from cliploc.label.editor.data_set import open_set
from cliploc.runs.label_store import Candidate, LabellingRun, PictureResult
from tests.commands import PHOTOS, cliploc_
from tests.label.checking.test_check import PHOTOS as CHECKED
from tests.label.checking.test_check import instances
from tests.web.asking import sent
from tests.web.browsing import SHOTS, in_a_browser, shoot
from tests.web.review_server import COUNT, corrections, served

pytestmark = [*in_a_browser, pytest.mark.usefixtures("one_model")]

LABELS = ['Kätzchen, "mein" & <b>|cat', "dog", "rocket", "bridge"]
ODD = "sub/<i>cat 猫.jpg"
WIDTHS = {"desk": (1440, 900), "phone": (390, 844)}
# Drafts that do not change with the recipe, nor with how chances are calibrated.
VIEWS = {"scales": (1.43,), "windows": (2,), "refine": ("affinity",)}
OPTIONS = {"device": "cpu", "formats": ["coco"], "second_look": False, **VIEWS}


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
def done(one_model, photos, tmp_path_factory):
    """The drafts of these, without masks (False) and with them (True)."""
    return {
        masks: annotate(photos, LABELS, tmp_path_factory.mktemp("done"), masks=masks, **OPTIONS).out
        for masks in (False, True)
    }


@pytest.fixture
def out(done, tmp_path) -> Path:
    shutil.copytree(done[False], tmp_path / "out")
    return tmp_path / "out"


def lonely(handles):
    """The handle that is farthest from the others: a finger on a phone covers neighbours."""
    places = handles.evaluate_all(BOUNDS)
    apart = [
        min(
            (abs(one["x"] - other["x"]) + abs(one["y"] - other["y"]) for other in places if other is not one), default=0
        )
        for one in places
    ]
    return handles.nth(apart.index(max(apart)))


BOUNDS = "(all) => all.map((one) => one.getBoundingClientRect().toJSON())"


class Editor:
    """The page, and what a person does with it."""

    def __init__(self, context, address: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(30_000)  # a shared machine may be slow
        self.console: list[str] = []
        self.requested: list[str] = []
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.goto(address)
        self.touch = context.new_cdp_session(self.page) if self.page.evaluate("navigator.maxTouchPoints") else None
        self.ready()

    def ready(self) -> None:
        self.page.wait_for_selector(".a9s-annotationlayer")
        self.page.wait_for_function("() => document.getElementById('name').textContent !== ''")
        self.drawn()  # the layer listens to the mouse when it is shown, which a busy machine does later

    def drawn(self) -> None:
        """Waits until what was asked for is on the screen."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

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
        self.drawn()

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
        self.page.wait_for_function("() => document.getElementById('saved').textContent.match(/^(Saved|Kept)/)")

    @property
    def labels(self) -> list[str]:
        return self.page.locator("#boxes .kind").all_text_contents()

    def filters(self) -> None:
        self.page.locator("#filters summary").click()

    def pick(self, button, part: str) -> None:
        """Chooses a label by a part of its name."""
        button.click()
        self.page.keyboard.type(part)
        self.page.keyboard.press("Enter")
        self.drawn()

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
    made.kind, made.viewport = request.param, width
    yield made
    made.close()


on_a_desk = pytest.mark.parametrize("context", ["desk"], indirect=True)  # a touch or a narrow screen adds nothing


@pytest.fixture
def masked(done, tmp_path) -> Path:
    shutil.copytree(done[True], tmp_path / "masked")
    return tmp_path / "masked"


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
        editor.open("rocket.jpg")  # two boxes begin at the same corner
        corners = [box["x"] for box in page.locator(".tag").evaluate_all(BOUNDS)]
        assert len(set(corners)) == len(corners) == 3, "labels lie side by side"
        editor.open("dogs.jpg")
        if SHOTS:  # a box for each dog instead of one round both
            editor.pick(page.locator("#active"), "dog")
            editor.drag((192, 282), (290, 440))
            editor.drag((126, 142), (226, 272))
            page.locator("#boxes .away").first.click()
            editor.tap((170, 200))
            editor.saved()
            page.evaluate("scrollTo(0, 0)")
            shoot(page, f"review-{context.viewport}", full_page=context.kind == "phone")
            for _ in range(3):
                editor.press("Undo")
        [draft] = editor.boxes
        x, y = editor.point((20, 20))
        page.mouse.move(x, y)
        page.mouse.down(button="right")
        page.mouse.move(x + 90, y + 60, steps=4)
        page.mouse.up(button="right")
        page.wait_for_timeout(50)
        assert editor.labels == ["dog"]

        # Draw: beside the draft, then a second one without a click between.
        editor.pick(page.locator("#active"), "rock")
        page.evaluate("window.row = document.querySelector('#boxes li')")
        editor.drag((20, 20), (100, 80))
        editor.saved()
        assert editor.labels == ["dog", "rocket"]
        assert page.evaluate("row.isConnected"), "rows are not made again: with many names that takes long"
        assert editor.boxes[1] == pytest.approx([20, 20, 80, 60], abs=3)
        editor.drag((200, 20), (260, 90))  # far enough from the corners, which a finger takes from afar
        assert len(editor.boxes) == 3
        editor.saved()
        assert len(corrected(out, "dogs.jpg")) == 3

        # Move the one drawn last, which is selected; it does not leave the picture.
        editor.drag((230, 55), (240, 75))
        assert editor.boxes[2] == pytest.approx([210, 40, 60, 70], abs=3)
        editor.drag((240, 75), (-400, 75))
        assert editor.boxes[2][0] == 0
        editor.press("Undo")
        assert editor.boxes[2][0] == pytest.approx(210, abs=3)

        # Resize at a corner.
        x, y, width, height = editor.boxes[2]
        editor.drag((x + width, y + height), (x + width + 30, y + height + 40))
        assert editor.boxes[2] == pytest.approx([x, y, width + 30, height + 40], abs=4)

        # Select by a click, relabel, drop, take back.
        editor.tap((60, 50))
        assert page.locator("#boxes .pick").nth(1).is_checked()
        editor.pick(page.locator("#boxes .kind").nth(1), "bri")
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
        page.get_by_role("radio", name="later").check()
        editor.saved()
        assert corrections(out)["reviews"]["dogs.jpg"]["status"] == "later"

        # A reload in the middle loses nothing.
        boxes = editor.boxes
        page.reload()
        editor.ready()
        assert page.locator("#name").inner_text() == "dogs.jpg"
        assert (editor.labels, editor.boxes) == (["bridge", "rocket", "dog"], boxes)
        assert page.get_by_role("radio", name="later").is_checked()
        assert editor.boxes[2] == draft

        # The button writes the exports of the run.
        before = coco(out, "dogs.jpg")
        editor.press("Write exports")
        page.wait_for_function("() => document.getElementById('saved').textContent.startsWith('Written to')")
        after = coco(out, "dogs.jpg")
        assert (len(before), [label for label, _ in after]) == (1, [4, 3, 2])
        assert editor.console == []
        assert all(one.startswith((address, "data:", "blob:")) for one in editor.requested), "nothing from elsewhere"


def test_every_key_does_what_the_list_of_keys_says(browser, out):
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        checked = lambda: page.locator("#boxes .pick").evaluate_all("(all) => all.map((one) => one.checked)")  # noqa: E731
        name = lambda: page.locator("#name").inner_text()  # noqa: E731
        editor.open("rocket.jpg")
        first, labels = editor.boxes, editor.labels
        assert sorted(labels) == ["bridge", "bridge", "rocket"]
        editor.key(".")
        assert checked() == [True, False, False]
        editor.key("Shift+.")
        assert checked() == [True, True, False]
        editor.key(",", ",")
        assert checked() == [False, False, True]
        editor.key("2")
        assert editor.labels == [*labels[:2], "dog"]
        editor.key("Escape", "a")
        assert checked() == [True] * 3
        editor.key("m")  # their union
        assert editor.boxes == [[0, 0, 640, 427]]
        editor.key("s")
        page.wait_for_function("() => document.querySelectorAll('#boxes li').length === 2")
        halves = editor.boxes  # cut where the heat is least
        (x0, y0, w0, h0), (x1, y1, w1, h1) = halves
        assert (x0, y0, w0 * h0 + w1 * h1) == (0, 0, pytest.approx(640 * 427, rel=0.01))
        assert (x1, y1) in ((w0, 0), (0, h0))
        editor.key("x")
        assert editor.boxes == []
        editor.key("Control+z", "Control+z", "Control+z", "Control+z")
        assert (editor.boxes, editor.labels) == (first, labels)
        editor.key("Control+y", "Control+Shift+Z", "Control+y", "Control+y")
        assert editor.boxes == []
        editor.key("k")  # what was dropped last comes back
        assert editor.boxes == halves
        editor.key("x", *["Control+z"] * 6)
        assert editor.boxes == first
        editor.key("a", "x", "k")  # drafts, too
        assert sorted(editor.boxes) == sorted(first)
        editor.key(
            "Escape", "b", "ArrowRight", "ArrowRight", "Shift+ArrowDown", "Alt+ArrowRight", "Alt+Shift+ArrowDown"
        )
        assert editor.boxes[-1] == [242, 170, 161, 117]
        drawn = editor.boxes
        editor.key("x")  # a drawn box is kept, too
        assert page.locator("#dropped li span").inner_text().endswith(" new")
        editor.key("k")
        assert (editor.boxes, page.locator("#dropped li").count()) == (drawn, 0)
        editor.key("Control+z", "Control+z")
        editor.key("Control+z", "Control+z", "Control+z")  # resized, moved, made: neighbouring steps are one
        assert len(editor.boxes) == 3
        page.locator("#add").click()  # a drag draws this box, and no second one
        editor.drag((30, 30), (130, 110))
        assert len(editor.boxes) == 4
        assert editor.boxes[-1] == pytest.approx([30, 30, 100, 80], abs=3)
        editor.key("Control+z", "Control+z")
        assert len(editor.boxes) == 3
        editor.key("+", "+")
        width = page.locator("#canvas").bounding_box()["width"]
        editor.key("-")
        assert page.locator("#canvas").bounding_box()["width"] < width
        editor.key("f", "v")
        assert page.locator("#pan").get_attribute("aria-pressed") == "true"
        editor.key("h")
        assert not page.locator(".tag").first.is_visible()
        editor.key("h")
        assert page.locator(".tag").first.is_visible()
        editor.key(".", "/", "d", "o", "Enter")  # a label by a part of its name
        assert editor.labels[0] == "dog"
        editor.key("Control+z", "Escape")
        editor.key("v", "u")
        assert page.get_by_role("radio", name="later").is_checked()
        editor.key("o")
        assert page.get_by_role("radio", name="skipped").is_checked()
        editor.key("c")
        assert page.get_by_role("radio", name="not reviewed").is_checked()
        editor.saved()
        editor.key("?")
        assert page.locator("#help").is_visible()
        editor.key("Escape")
        editor.filters()
        page.locator("#order").select_option(label="by name")
        editor.open("bridge.jpg")
        editor.key("r")
        page.wait_for_function("() => document.getElementById('name').textContent === 'cat.jpg'")
        editor.key("p")
        page.wait_for_function("() => document.getElementById('name').textContent === 'bridge.jpg'")
        assert page.get_by_role("radio", name="reviewed", exact=True).is_checked()
        editor.key("n")
        page.wait_for_function("() => document.getElementById('name').textContent === 'cat.jpg'")
        assert name() == "cat.jpg"
        # Letters that are typed are no keys.
        page.locator("#suggest-name").press_sequentially("brush 12")
        assert page.locator("#suggest-name").input_value() == "brush 12"
        assert editor.console == []
    context.close()
    assert {name: one["status"] for name, one in corrections(out)["reviews"].items()} == {
        "rocket.jpg": "none",
        "bridge.jpg": "reviewed",
    }


def with_unsure(out: Path) -> None:
    """Makes all boxes of a run unsure."""
    with LabellingRun.open(out) as run:
        run.store.write("UPDATE picture SET presence = ?", json.dumps(dict.fromkeys(run.names, 0.2)))
        run.store["settings"] = {**run.settings, "second_look": {}}


def test_unsure_boxes_are_dashed_and_kept_by_enter_or_a_click(context, out):
    with_unsure(out)
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        editor.open("rocket.jpg")
        count = page.locator("#doubts li").count()
        assert (editor.boxes, page.locator(".doubt").count()) == ([], count)
        assert count > 1
        assert "press Enter or click to keep" in page.locator("#doubts-part").inner_text()
        assert page.locator(".doubt").first.evaluate("(one) => getComputedStyle(one).borderStyle") == "dashed"
        best = page.locator("#doubts li span").first.inner_text()
        editor.key("Enter")
        assert (len(editor.boxes), page.locator("#doubts li").count()) == (1, count - 1)
        assert best.startswith(editor.labels[0])
        page.locator(".doubt button").first.click()
        assert len(editor.boxes) == 2
        page.locator("#boxes .away").first.click()  # a box that is dropped is unsure again
        assert (len(editor.boxes), page.locator("#doubts li").count()) == (1, count - 1)
        assert not page.locator("#dropped-part").is_visible()
        editor.saved()
        page.reload()
        editor.ready()
        assert (len(editor.boxes), page.locator("#doubts li").count()) == (1, count - 1)
        page.locator("#doubts button").first.focus()
        page.keyboard.press("Enter")  # a button's own key
        assert len(editor.boxes) == 2
        assert editor.console == []


@on_a_desk
def test_a_drag_that_ends_beside_the_picture_draws_and_exports_wait_for_what_is_saved(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        page, held = editor.page, []
        editor.filters()
        page.locator("#score-to").fill("")  # no limit
        assert "6 pictures shown" in page.locator("#count").inner_text()
        editor.open("dogs.jpg")
        editor.drag((60, 40), (-10, 100))
        assert editor.boxes[-1] == pytest.approx([0, 40, 60, 60], abs=3)
        editor.saved()
        page.route("**/pictures/*", lambda route: held.append(route))
        with page.expect_request("**/pictures/*"):
            editor.key("Shift+ArrowDown")
        exports = []
        page.on("request", lambda request: exports.append(request) if "/exports?" in request.url else None)
        page.locator("#exports").click()
        page.wait_for_timeout(300)
        assert exports == []
        held[0].continue_()
        page.get_by_text("Written to").wait_for()
        assert [box for _, box in coco(out, "dogs.jpg")][-1] == pytest.approx([0, 50, 60, 60], abs=3)
        editor.key("Shift+ArrowDown")
        page.wait_for_function("() => document.getElementById('saved').textContent === 'Saving …'")
        held[1].abort()
        page.locator("#exports").click()
        page.get_by_text("Not written: some changes are not saved yet").wait_for()
        page.unroute("**/pictures/*")
        page.wait_for_function("() => document.getElementById('unsaved').hidden")


def test_a_label_is_added_and_drawn_at_once(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        page.once("dialog", lambda dialog: dialog.accept("owl"))
        page.locator("#active").click()
        with page.expect_navigation():
            page.get_by_role("button", name="New…").click()
        editor.ready()
        editor.open("dogs.jpg")
        editor.pick(page.locator("#active"), "owl")
        editor.key("b")
        editor.saved()
        assert editor.labels[-1].startswith("owl")


@on_a_desk
def test_what_cannot_be_saved_is_said_and_kept_until_it_can(context, out):
    """Of every picture, whichever is shown."""
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        refused = {"error": "drafts cannot be written: Read-only file system: make the folder writable"}
        page.route(
            "**/pictures/*",
            lambda route: (
                route.fulfill(status=507, json=refused) if route.request.method == "POST" else route.continue_()
            ),
        )
        for name in ("dogs.jpg", "bridge.jpg"):
            editor.open(name)
            page.get_by_role("radio", name="later").check()
            page.wait_for_function("(name) => document.getElementById('unsaved').textContent.includes(name)", arg=name)
        editor.open("rocket.jpg")
        error_text = page.locator("#unsaved").inner_text()
        assert error_text.startswith(
            "Not saved: 2 pictures (dogs.jpg, bridge.jpg): drafts cannot be written: Read-only"
        )
        assert "leave it open" in error_text
        editor.open("dogs.jpg")
        assert page.get_by_role("radio", name="later").is_checked()
        assert corrections(out)["reviews"] == {}
        page.unroute("**/pictures/*")
        page.wait_for_function("() => document.getElementById('unsaved').hidden")
        saved = {"status": "later", "revision": 1}
        assert corrections(out)["reviews"] == {"dogs.jpg": saved, "bridge.jpg": saved}


def test_pictures_are_filtered_and_the_older_of_two_tabs_is_told(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        if context.kind == "phone":
            editor.press("Pictures")
        editor.filters()
        count = lambda: int(re.search(r"(\d+) pictures? shown", page.locator("#count").inner_text())[1])  # noqa: E731
        assert count() == 6
        page.locator("#by-label").select_option(label="bridge")
        assert count() == 2
        page.locator("#by-size").select_option(label="above 50 %")
        assert count() == 1
        page.locator("#by-size").select_option(label="all")
        page.locator("#by-label").select_option(label="all")
        page.locator("#score-from").fill("0.83")
        assert count() == 1
        page.locator("#score-from").fill("0")
        page.locator("#by-status").select_option(label="reviewed")
        assert count() == 0
        page.locator("#by-status").select_option(label="not reviewed")
        assert count() == 6
        margins = [one["margin"] for one in listed(page, address)]
        assert margins == sorted(margins), "the least certain comes first"
        page.locator("#order").select_option(label="by name")
        assert "bridge.jpg" in page.locator(".row button").first.inner_text()
        page.locator("#by-label").select_option(label="bridge")
        page.once("dialog", lambda dialog: dialog.accept())
        page.locator("#drop-shown").click()
        page.wait_for_function("() => document.getElementById('saved').textContent.startsWith('3 boxes dropped')")
        # Boxes of other names stay.
        assert len(corrected(out, "rocket.jpg")) == 1
        page.locator("#take-back").click()
        page.wait_for_function("() => document.getElementById('saved').textContent === '3 boxes taken back'")
        assert not {"bridge.jpg", "rocket.jpg"} & corrections(out)["pictures"].keys(), "the drafts as they were"
        assert not page.locator("#take-back").is_visible()
        page.locator("#by-label").select_option(label="all")
        editor.open("drum.jpg")

        other = Editor(context, f"{address}/#3")
        assert other.page.locator("#name").inner_text() == "drum.jpg"
        other.page.locator("#add").click()
        other.saved()
        assert (len(other.boxes), len(editor.boxes)) == (1, 0)
        editor.drag((50, 50), (150, 150))
        page.wait_for_selector("#notice:not([hidden])")
        assert "was saved in another tab or window in the meantime" in page.locator("#notice").inner_text()
        assert editor.boxes == other.boxes, "what the other tab saved, not what this one would have written over it"
        editor.drag((20, 20), (90, 90))
        editor.saved()
        assert len(editor.boxes) == 2
        assert len(corrected(out, "drum.jpg")) == 2
        assert [one for one in editor.console + other.console if "409" not in one] == []


def test_labels_of_boxes_at_one_corner_are_beside_and_below_each_other_in_the_picture(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        editor.open("drum.jpg")
        editor.key(*["b", "1"] * 7)
        right = editor.page.locator("#tags").evaluate("(all) => all.getBoundingClientRect().right")
        places = editor.page.locator(".tag:not(.chosen)").evaluate_all(BOUNDS)
        assert max(one["right"] for one in places) < right + 1
        assert len({(round(one["left"]), round(one["top"])) for one in places}) == len(places) == 6


@on_a_desk
def test_a_save_whose_answer_is_lost_or_broken_off_is_no_other_persons(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        editor.open("drum.jpg")
        broken = [lambda route, text: route.fulfill(body=text[:5]), lambda route, _: route.abort()]
        for number, answer in enumerate(broken, 1):
            editor.page.route("**/pictures/*", lambda route, _, answer=answer: answer(route, route.fetch().text()))
            editor.key("b")
            editor.page.get_by_text("Not saved: 1 picture").wait_for()
            editor.page.unroute("**/pictures/*")
            editor.saved()
            assert (len(editor.boxes), len(corrected(out, "drum.jpg"))) == (number, number)
            assert not editor.page.locator("#notice").is_visible()


@on_a_desk
def test_large_saves_are_on_their_way_at_once(context, out):
    with served(out) as address:
        boxes = [{"xyxy": [10.25, 20.25, 30.25, 40.25], "label": 1, "draft": None}] * 800
        names = {"drum.jpg", "bridge.jpg"}
        for index, picture in enumerate(sent(f"{address}/pictures")[1]):
            if picture["name"] in names:
                wanted = {"revision": 0, "status": "none", "boxes": boxes}
                assert sent(f"{address}/pictures/{index}", wanted)[0] == 200
        editor = Editor(context, address)
        editor.page.route(
            "**/pictures/*", lambda route: route.request.method == "POST" or route.continue_()
        )  # none ends
        for name in names:
            editor.open(name)
            with editor.page.expect_event("request", lambda request: request.method == "POST"):
                editor.key("u")
        assert not editor.page.locator("#unsaved").is_visible()


@on_a_desk
def test_a_page_whose_server_ended_says_so_and_does_not_save_into_another_folder(context, out, tmp_path):
    with served(out) as address:
        editor = Editor(context, address)
        editor.open("dogs.jpg")
    page, port = editor.page, int(address.rpartition(":")[2])
    page.get_by_role("radio", name="later").check()
    page.get_by_text("the server does not answer").first.wait_for()
    editor.press("Next")
    page.get_by_text("cannot be shown: the server does not answer").wait_for()
    if context.kind == "desk":  # the notices leave the tools where they are seen
        assert page.locator("#help-button").evaluate("(one) => one.getBoundingClientRect().bottom < innerHeight")
    other = shutil.copytree(out, tmp_path / "other")
    with served(other, port):
        page.get_by_text("this page shows another folder").first.wait_for()
    assert corrections(other)["reviews"] == {}
    with served(out, port):
        page.wait_for_function("() => document.getElementById('unsaved').hidden")
        assert page.locator("#notice").is_hidden()
    assert corrections(out)["reviews"]["dogs.jpg"]["status"] == "later"


@on_a_desk
def test_next_pressed_while_a_picture_is_loading_goes_on(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        pressed = "(keys) => { for (const key of keys) dispatchEvent(new KeyboardEvent('keydown', {key})); }"
        editor.page.evaluate(pressed, "nnpn")  # before any of them can be shown
        editor.page.wait_for_function("() => document.getElementById('position').textContent === '3 of 6'")
        boxes = editor.boxes
        editor.page.evaluate(pressed, "nubx")  # nobody has seen what would be changed
        editor.page.wait_for_function("() => document.getElementById('position').textContent === '4 of 6'")
        editor.page.evaluate(pressed, "rr")
        editor.page.wait_for_function("() => document.getElementById('position').textContent === '5 of 6'")
        states = editor.page.locator(".of").evaluate_all("(all) => all.map((one) => one.dataset.status)")
        assert sorted(states) == ["none"] * 5 + ["reviewed"]
        editor.key("p", "p")
        editor.page.wait_for_function("() => document.getElementById('position').textContent === '3 of 6'")
        assert editor.boxes == boxes


def test_two_fingers_zoom_and_draw_nothing(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        if editor.touch is None:
            return
        count = len(editor.boxes)
        (x, y), (far, low) = editor.point((20, 20)), editor.point((90, 80))
        fingers = [{"x": far, "y": low, "id": 0}, {"x": far + 60, "y": low + 60, "id": 1}]
        for kind, points in (
            ("touchStart", [{"x": x, "y": y, "id": 0}]),
            ("touchMove", fingers[:1]),
            ("touchStart", fingers),  # while the first one draws
            ("touchMove", [fingers[0], {**fingers[1], "y": low + 90}]),
            ("touchEnd", []),
        ):
            editor.touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        editor.page.wait_for_function("(count) => document.querySelectorAll('#boxes li').length > count", arg=count)
        assert editor.boxes[-1] == pytest.approx([20, 20, 70, 60], abs=4)
        editor.press("Undo")

        x, y = editor.point((200, 200))
        first, second = ([{"x": x, "y": y, "id": 0}, {"x": x + 40, "y": y, "id": 1}][:count] for count in (1, 2))
        apart = [[{**second[0], "x": x - 8 * i}, {**second[1], "x": x + 40 + 8 * i}] for i in range(9)]
        for kind, points in (
            ("touchStart", first),
            ("touchStart", second),
            *(("touchMove", points) for points in apart),
            ("touchEnd", []),
        ):
            editor.touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        editor.page.wait_for_function("() => visualViewport.scale > 1.2")
        assert editor.page.locator("#undo").is_disabled()


@on_a_desk
def test_a_drop_in_all_pictures_that_breaks_off_is_taken_back(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        questions = []
        page.on("dialog", lambda dialog: (questions.append(dialog.message), dialog.accept()))
        counts = lambda: sorted(re.findall(r"(\w+\.jpg)\D+(\d+) box", page.locator("#list").inner_text()))  # noqa: E731
        before, requested = counts(), []

        def gone(route):
            requested.append(route)
            one = route.request  # two pictures can be read and saved, then only the one on the stage can be read
            if len(requested) > 4 and (
                one.method == "POST" or not one.url.partition("?")[0].endswith(f"/{page.url.partition('#')[2]}")
            ):
                route.abort()
            else:
                route.continue_()

        editor.filters()
        page.route("**/pictures/*", gone)
        page.evaluate("""() => document.getElementById('drop-shown').addEventListener('click', () => setTimeout(() => {
            dispatchEvent(new KeyboardEvent('keydown', {key: 'b'}));
            window.drawn = !document.getElementById('undo').disabled;
        }))""")
        page.locator("#drop-shown").click()
        page.wait_for_function("() => document.getElementById('notice').textContent.includes('was not changed')")
        assert page.evaluate("window.drawn") is False, "what is done meanwhile would be lost"
        having = sum(number != "0" for _, number in before)
        assert 0 < having < len(before)
        assert [one.partition(" in ")[2] for one in questions] == [f"{having} pictures?"]
        dropped = counts()
        assert sum(one not in before for one in dropped) == 2
        page.locator("#take-back").click()  # in vain
        page.get_by_text("0 boxes taken back").wait_for()
        page.unroute("**/pictures/*")
        page.locator("#take-back").click()
        page.get_by_text(re.compile("[1-9] boxes taken back")).wait_for()
        assert counts() == before
        assert "Changed since" not in page.locator("#notice").inner_text()
        assert not page.locator("#take-back").is_visible()


@on_a_desk
def test_a_drop_in_all_pictures_leaves_a_persons_work_and_is_undone_as_one_step(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        page, questions = editor.page, []
        page.on("dialog", lambda dialog: (questions.append(dialog.message), dialog.accept()))
        found = lambda: {one["name"]: one["found"] for one in sent(f"{address}/pictures")[1]}  # noqa: E731
        drop = lambda error_text: (page.locator("#drop-shown").click(), page.get_by_text(error_text).wait_for())  # noqa: E731
        editor.filters()
        editor.open("dogs.jpg")
        editor.drag((20, 20), (100, 80))
        editor.saved()
        editor.open("rocket.jpg")
        page.get_by_role("radio", name="reviewed", exact=True).check()
        editor.saved()
        before = found()
        drafts = sum(len(boxes) for name, boxes in before.items() if name != "rocket.jpg") - 1
        drop(f"{drafts} boxes dropped: Undo takes them back")
        assert re.fullmatch(
            rf"Drop {drafts} drafts in \d pictures\? 4 boxes that you drew, changed or reviewed stay\.", questions[0]
        )
        left = {name: boxes for name, boxes in found().items() if boxes}
        assert left == {"dogs.jpg": before["dogs.jpg"][1:], "rocket.jpg": before["rocket.jpg"]}
        drop("No draft fits the filter: 4 boxes that you drew, changed or reviewed would stay.")
        editor.open("bridge.jpg")
        editor.key("Control+z")
        page.get_by_text(f"{drafts} boxes taken back").wait_for()
        assert (found(), page.locator("#undo").is_disabled()) == (before, True)
        page.locator("#drop-own").check()
        drop(f"{drafts + 4} boxes dropped")
        assert questions[1].endswith("pictures, with 4 boxes that you drew, changed or reviewed?")
        page.reload()
        editor.ready()
        editor.filters()
        assert not any(found().values())
        page.locator("#take-back").click()
        page.get_by_text(f"{drafts + 4} boxes taken back").wait_for()
        assert (found(), editor.console) == (before, [])


def test_masks_are_polygons_that_are_edited_split_merged_and_drawn(context, masked):
    with served(masked) as address:
        editor = Editor(context, address)
        page = editor.page
        editor.open("dogs.jpg")
        draft = page.evaluate("async () => (await (await fetch('/pictures/2')).json()).boxes[0]")
        assert draft["polygons"]
        before = json.loads((masked / "coco.json").read_text())["annotations"]

        # A corner is dragged.
        page.locator("#boxes .pick").first.check()
        corner = lonely(page.locator("circle.a9s-handle-buffer"))
        corner.scroll_into_view_if_needed()
        bounds = page.locator("#canvas").bounding_box()
        existing = corner.bounding_box()
        size = [426, 640]
        at = [
            (existing[key] + existing[side] / 2 - bounds[key]) / bounds[side] * length
            for key, side, length in zip(("x", "y"), ("width", "height"), size, strict=True)
        ]
        editor.drag(at, (20, 30))
        editor.saved()
        [box] = editor.boxes
        assert box[:2] == pytest.approx([20, 30], abs=4)
        shoot(page, f"review-masks-{context.viewport}", full_page=False)
        mask = corrections(masked)["pictures"]["dogs.jpg"]["masks"][0]
        assert mask != draft["mask"]
        page.locator("#undo").click()
        editor.saved()
        assert "dogs.jpg" not in corrections(masked)["pictures"], "as the draft was, to the pixel"

        # Two halves are the whole, and their union again.
        page.locator("#split").click()
        page.wait_for_function("() => document.querySelectorAll('#boxes li').length === 2")
        page.locator("#merge").click()
        [union] = editor.boxes
        x0, y0, x1, y1 = draft["xyxy"]
        assert union == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=6)

        # A polygon is drawn, corner by corner.
        page.locator("#polygon").click()
        page.locator("#stage").scroll_into_view_if_needed()
        for corner in ((20, 540), (120, 560), (100, 620)):
            editor.tap(corner)
            page.wait_for_timeout(350)  # two clicks in one place are a double click
        editor.key("Enter")
        editor.saved()
        assert len(editor.boxes) == 2
        assert editor.boxes[1] == pytest.approx([20, 540, 100, 80], abs=6)
        page.locator("#exports").click()
        page.wait_for_function("() => document.getElementById('saved').textContent.startsWith('Written to')")
        after = json.loads((masked / "coco.json").read_text())["annotations"]
        assert len(after) == len(before) + 1
        area = next(one["area"] for one in after if one["bbox"][1] > 500)
        assert area == pytest.approx(100 * 80 / 2, rel=0.2)
        assert editor.console == []


def test_the_model_suggests_a_box_round_a_click(context, out):
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        editor.open("dogs.jpg")
        page.locator("#suggest-name").fill("dog")
        page.get_by_role("button", name="Show heat").click()
        page.wait_for_selector("canvas.heat")
        shoot(page, f"review-heat-{context.viewport}", full_page=False)
        page.locator("#tau").fill("0.7")
        editor.tap((250, 330))
        page.wait_for_function("() => document.querySelectorAll('#boxes li').length === 2")
        x, y, width, height = editor.boxes[1]
        assert editor.labels == ["dog", "dog"]
        assert x <= 250 <= x + width
        assert y <= 330 <= y + height
        small = width * height
        page.locator("#tau").fill("0.3")
        editor.tap((250, 330))
        page.wait_for_function("() => document.querySelectorAll('#boxes li').length === 3")
        assert editor.boxes[2][2] * editor.boxes[2][3] > small
        editor.tap((5, 5))
        page.wait_for_function("() => document.getElementById('suggest-said').textContent.includes('not hot there')")
        page.locator("#suggest-end").click()
        editor.saved()
        assert len(corrected(out, "dogs.jpg")) == 3
        first = []
        page.route("**/suggestion*", lambda route: first.append(route), times=1)
        page.locator("#suggest-name").fill("rocket")
        page.get_by_role("button", name="Show heat").click()
        page.wait_for_function("() => document.getElementById('suggest-said').textContent.includes('computing')")
        page.locator("#suggest-name").fill("person")
        page.get_by_role("button", name="Show heat").click()
        page.wait_for_function("() => document.getElementById('suggest-said').textContent.includes(\"got 'person'\")")
        with page.expect_response("**/suggestion*") as late:
            first[0].continue_()
        late.value.finished()
        editor.drawn()
        assert page.locator("canvas.heat").count() == 0, "of two names asked, the last one counts"
        assert "expected a label of this run, got 'person'" in page.locator("#suggest-said").inner_text()


LEARNT = (
    "() => /^Learnt from 3 pictures: \\d+ → \\d+ corrections on pictures left out/"
    ".test(document.getElementById('learnt').textContent)"
)


@on_a_desk
def test_three_reviewed_pictures_give_the_others_new_drafts_which_can_be_undone(context, job, tmp_path):
    out, truth = shutil.copytree(job[0], tmp_path / "out"), job[1]
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        for number in range(3):
            editor.open(f"{number}.jpg")
            x0, y0, x1, y1 = truth[f"{number}.jpg"]
            editor.drag((x0, y0), (x1, y1))
            assert len(editor.boxes) == 1
            editor.saved()
            if number < 2:
                page.get_by_role("radio", name="reviewed", exact=True).check()
                editor.saved()
        editor.press("Reviewed")  # the picture that is open now has not been touched
        page.wait_for_function(LEARNT)
        page.wait_for_function("() => document.querySelectorAll('#boxes li').length === 1")
        assert page.locator("#learnt-more").inner_text() == f"New boxes in {COUNT - 3} pictures."
        assert [one["status"] for one in listed(page, address)] == ["none"] * (COUNT - 3) + ["reviewed"] * 3
        editor.open("1.jpg")
        assert editor.boxes[0] == pytest.approx(corner_and_size(truth["1.jpg"]), abs=3), "nobody changes it"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is to the side"
        editor.open("7.jpg")
        assert len(editor.boxes) == 1
        page.wait_for_timeout(100)
        shoot(page, f"learning-{context.viewport}", full_page=context.kind == "phone")
        editor.press("Undo learning")
        page.wait_for_function("() => document.querySelectorAll('#boxes li').length === 0")
        assert page.locator("#learnt").inner_text().startswith("Undone")
        assert not editor.console


def test_more_like_a_box_is_found_in_all_pictures(context, job, tmp_path):
    out, truth = shutil.copytree(job[0], tmp_path / "out"), job[1]
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        editor.open("0.jpg")
        assert page.locator("#like").is_disabled()
        x0, y0, x1, y1 = truth["0.jpg"]
        editor.drag((x0, y0), (x1, y1))
        if context.kind == "phone":
            page.locator("#like").click()
        else:
            editor.key("l")
        page.wait_for_function("() => document.getElementById('learnt').textContent.includes('unsure boxes like')")
        page.wait_for_function("(text) => document.getElementById('learnt-more').textContent === text",
                               arg=f"New boxes in {COUNT - 1} pictures.")  # fmt: skip
        assert sorted(one["unsure"] for one in listed(page, address)) == [0] + [1] * (COUNT - 1)
        editor.open("7.jpg")
        assert (editor.boxes, page.locator("#doubts li").count(), page.locator(".doubt").count()) == ([], 1, 1)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is to the side"
        shoot(page, f"like-{context.kind}")
        editor.key("Enter")
        assert editor.boxes[0] == pytest.approx(corner_and_size(truth["7.jpg"]), abs=60)
        editor.saved()
        assert not editor.console


@on_a_desk
def test_a_refit_leaves_a_picture_with_unsaved_changes_as_it_is(context, job, tmp_path):
    out, truth = shutil.copytree(job[0], tmp_path / "out"), job[1]
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        editor.open("7.jpg")
        page.route(
            "**/pictures/7*", lambda route: route.abort() if route.request.method == "POST" else route.continue_()
        )
        editor.drag((20, 20), (100, 80))
        page.wait_for_selector("#unsaved:not([hidden])")
        for number in range(3):
            box = {"xyxy": truth[f"{number}.jpg"], "label": 0, "draft": None}
            assert sent(f"{address}/pictures/{number}", {"revision": 0, "status": "reviewed", "boxes": [box]})[0] == 200
        page.evaluate("dispatchEvent(new Event('focus'))")
        page.wait_for_function(LEARNT)
        page.wait_for_timeout(700)
        [mine] = editor.boxes
        assert mine == pytest.approx([20, 20, 80, 60], abs=3)
        page.unroute("**/pictures/7*")
        page.wait_for_selector("#unsaved", state="hidden")
        assert [len(one) for one in corrected(out, "7.jpg")] == [4], "what the person drew, and nothing else"


def listed(page, address: str) -> list[dict]:
    """What the server says of the pictures, in the order of the page's list."""
    if not page.locator("#list").is_visible():
        page.get_by_role("button", name="Pictures", exact=True).click()
    names = page.locator(".row .file").evaluate_all("(all) => all.map((one) => one.title)")
    entries = {one["name"]: one for one in sent(f"{address}/pictures")[1]}
    return [entries[name] for name in names]


def corner_and_size(xyxy: list[int]) -> list[int]:
    x0, y0, x1, y1 = xyxy
    return [x0, y0, x1 - x0, y1 - y0]


def test_two_thousand_pictures_scroll(context, out, photos):
    """The list has only the rows in view, and asks for their thumbnails only."""
    root = out.parent / "many"
    root.mkdir()
    names = [f"{'long_' * 20}{number:04}.jpg" for number in range(2000)]
    for name in names:
        (root / name).symlink_to(photos / "cat.jpg")
    with LabellingRun.open(out) as run:
        cat = run.pictures()["cat.jpg"]
        presence = dict(enumerate(cat.presence.tolist()))
        found = PictureResult("cat.jpg", cat.checksum, None, *cat.size_wh, [], presence, run._boxes(cat.id, 0))
        run.remove(run.pictures())
        run.add([replace(found, picture=name) for name in names], dict.fromkeys(names, ""))
        run.store["root"] = str(root)
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        if context.kind == "phone":
            editor.press("Pictures")
        assert "2,000 pictures shown" in page.locator("#count").text_content()
        for place in (0.25, 0.5, 1):
            page.locator("#list").evaluate("(list, place) => list.scrollTo(0, place * list.scrollHeight)", place)
            page.wait_for_timeout(100)
            assert 0 < page.locator(".row").count() < 40
        last = page.locator(".row", has_text="1999.jpg")
        last.locator("img").evaluate("(image) => image.decode()")
        assert last.get_attribute("aria-posinset") == "2000"
        right = "(one) => one.getBoundingClientRect().right"
        assert last.locator(".file").evaluate(right) <= last.evaluate(right), "the end of a long name is seen"
        last.locator("button").click()
        page.wait_for_function("() => document.getElementById('name').textContent.endsWith('1999.jpg')")
        assert sum("/thumbnails/" in one for one in editor.requested) < 200
        assert page.locator("#position").inner_text() == "2,000 of 2,000"


@on_a_desk
def test_a_thousand_boxes_are_selected_at_once(context, masked):
    """With handles for each, the calls of Annotorious nest until the stack overflows."""
    random, boxes = np.random.default_rng(0), []
    with LabellingRun.open(masked) as run:
        dogs = run.pictures()["dogs.jpg"]
    for x, y in random.integers(0, 386, (1000, 2)).tolist():
        mask = np.zeros(dogs.size_wh[::-1], bool)
        mask[y : y + 40, x : x + 40] = (np.arange(40) % 8 < 4) | (np.arange(40) < 4)[:, None]  # a comb has many corners
        boxes.append(Candidate(1, (x, y, x + 40, y + 40), 0.9, 0.9, rle.encode(mask)["counts"]))
    with LabellingRun.open(masked) as run:
        presence = dict.fromkeys(range(len(LABELS)), 0.9)
        run.add([PictureResult("dogs.jpg", dogs.checksum, None, *dogs.size_wh, [], presence, boxes)], {"dogs.jpg": ""})
    with served(masked) as address:
        editor = Editor(context, address)
        editor.open("dogs.jpg")
        editor.key("a")
        assert editor.page.locator("#box-count").inner_text() == "1000, 1000 selected"
        editor.tap((400, 600))  # on no box, which selects none
        assert editor.page.locator("#box-count").inner_text() == "1000"
        editor.key("a", "x", "Control+z")
        assert editor.page.locator("#boxes li").count() == 1000
        assert editor.console == []


@on_a_desk
def test_a_suspect_is_fixed_by_a_key_and_the_set_is_equal_but_for_that_label(context, tmp_path):
    for name in CHECKED:
        shutil.copy(PHOTOS / name, tmp_path)
    content = instances()
    for one in content["annotations"]:
        one["mine"] = [1]
    (tmp_path / "set.json").write_text(json.dumps(content))
    assert cliploc_("check", tmp_path / "set.json", "--out", tmp_path / "checked").code == 0
    out = open_set(tmp_path / "checked", None, None)[0]
    with served(out) as address:
        editor = Editor(context, address)
        page = editor.page
        first = page.locator("#name").text_content()
        assert first in ("otters.jpg", "wren.jpg"), "the worst one comes first"
        seen = set()
        while (name := page.locator("#name").text_content()) in ("otters.jpg", "wren.jpg"):
            suspect = page.locator("#suspects li.chosen").text_content()
            shoot(page, "review-suspect-1440")
            editor.key("t" if "· dog" in suspect else "y")
            page.wait_for_function(
                "(was) => document.querySelector('#suspects li.chosen')?.textContent !== was", arg=suspect
            )
            editor.ready()
            seen.add(name)
        assert seen == {"otters.jpg", "wren.jpg"}
        page.wait_for_function("() => !document.getElementById('saved').textContent.startsWith('Saving')")
        editor.press("Write corrected set")
        page.wait_for_function("() => document.getElementById('saved').textContent.startsWith('Written to')")
        assert not editor.console
    [wrong] = [one for one in content["annotations"] if one["id"] == "otters.jpg-0"]
    wrong["category_id"] = "otter"
    assert json.loads((out / "corrected" / "set.json").read_text()) == content
    with served(out) as address:  # what was answered stays answered
        assert Editor(context, address).page.locator("#name").text_content() not in seen

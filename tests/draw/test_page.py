import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc.draw.page import PageItem, write_page

from .conftest import Build

EVIL = '<script>alert("x")</script>'
IMAGE = "<img src=x onerror=alert('x')>"
CLOSING = "</script></style></title>\"'><svg onload=alert(1)>"


class Reader(HTMLParser):
    """What a browser would see: tags with attributes, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input", "source", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are closed in order"

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def make_item(build: Build, evil: str = EVIL) -> PageItem:
    result = build(
        size_wh=(640, 400),
        names=("cat", evil, "dog"),
        hot=[(160, 100, 480, 300), (10, 10, 90, 90), None],
        boxes=[(0, (160, 100, 480, 300), 0.9), (1, (10, 10, 90, 90), 0.6)],
        found=[True, True, False],
        presence=[0.9, 0.6, 0.1],
        source=f"photos/{evil.replace('/', '')}.jpg",
        notes=("animated & more", evil),
        colour=(70, 80, 90),
    )
    truth = {"cat": np.array([[150, 90, 470, 320]], dtype=np.float32)}
    return PageItem(result, f"By {evil}, CC0", truth, {"cat": 0.8123, evil: None, "dog": None})


def make_page(build: Build, path: Path, evil: str = EVIL) -> str:
    write_page(path, f"Demo {evil}", [make_item(build, evil)], {"model": "mini", evil: evil}, f"use {evil}")
    return path.read_text(encoding="utf-8")


@pytest.fixture
def page(build: Build, tmp_path: Path) -> str:
    return make_page(build, tmp_path / "demo.html")


def test_it_is_self_contained_and_whole(build: Build, tmp_path: Path, page: str) -> None:
    reader = Reader(page)
    assert not reader.open, "every tag is closed"
    assert {tag for tag, _ in reader.tags}.isdisjoint({"script", "link", "iframe", "object"})
    sources = [attributes["src"] or "" for _, attributes in reader.tags if "src" in attributes]
    assert len(sources) == 4
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http" not in page
    assert "url(" not in page
    assert "@import" not in page
    assert len({image["alt"] for image in reader.all("img")}) == 4, "every picture has a text of its own"
    ids = {attributes["id"] for _, attributes in reader.tags if "id" in attributes}
    assert {(link["href"] or "")[1:] for link in reader.all("a")} <= ids
    assert {a["aria-labelledby"] for _, a in reader.tags if "aria-labelledby" in a} <= ids
    assert reader.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in reader.all("meta"))
    assert make_page(build, tmp_path / "again.html") == page, "the same photos give the same bytes"


@pytest.mark.parametrize("evil", [EVIL, IMAGE, CLOSING])
def test_everything_from_outside_stays_text(build: Build, tmp_path: Path, evil: str) -> None:
    page = make_page(build, tmp_path / "demo.html", evil)
    assert "<script" not in page.lower()
    reader = Reader(page)
    assert not reader.open
    # title, heading, setting's key and value, hint, note, credit, chip, caption, table
    assert reader.text.count(evil) >= 10
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert len(reader.all("img")) == 4
    assert not reader.all("svg")
    assert all(evil not in (value or "") for tag, a in reader.tags for k, value in a.items() if k != "alt")
    assert any(evil in (image["alt"] or "") for image in reader.all("img"))


def test_the_table_tells_what_was_found_and_how_well(page: str) -> None:
    table = page[page.index("<table") : page.index("</table>")]
    rows = [Reader(row.split("</tr>")[0]).text for row in table.split("<tr>")[2:]]
    assert len(rows) == 3
    assert "yes ✓" in rows[0]
    assert "0.81" in rows[0]
    assert "160, 100, 480, 300" in rows[0]
    assert "wrong" in rows[1], "found although it is not there"
    assert "no ✓" in rows[2]
    assert "mean IoU of the best boxes with the true ones 0.81." in page


def test_what_is_wrong_is_counted_first_and_has_a_sign_words_and_a_frame(build: Build, tmp_path: Path) -> None:
    box = (0, 0, 99, 99)
    names = ("good", "loose", "missed", "alarm", "absent", "other")
    found = [True, True, False, True, False, False]
    result = build(names=names, hot=[box] * 6, boxes=[(i, box, 0.9) for i in (0, 1, 3)], found=found)
    there = {name: np.array([box], dtype=np.float32) for name in names[:3]}
    ious = {"good": 0.5, "loose": 0.4967, "missed": 0.0, **dict.fromkeys(names[3:])}
    write_page(tmp_path / "demo.html", "t", [PageItem(result, "", there, ious)], {"model": "mini"}, "a hint")
    page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    text = " ".join(Reader(f"<html><body>{page.split('<body>')[1]}").text.split())
    assert text.startswith("t 1 found of 3 in the picture, with a box on it (IoU ≥ 0.5) 2 missed of 3 ")
    assert "1 invented of 3 not in the picture" in text.split("photo.jpg")[0]
    assert text.endswith("How it was made modelmini a hint"), "settings last"
    figures = [part.split("</figure>")[0] for part in page.split("<figure")[2:]]
    assert [figure.startswith(' class="failed"') for figure in figures] == [False, True, True, True, False, False]
    says = ["✓ IoU 0.50", "✗ wrong box: IoU 0.4967", "✗ missed: it is there", "✗ found, but it is not there"]
    for figure, words in zip(figures, [*says, *["✓ rightly not found"] * 2], strict=True):
        assert words in figure


def test_without_truth_nothing_is_judged(build: Build, tmp_path: Path) -> None:
    write_page(tmp_path / "demo.html", "t", [PageItem(build(), "", {}, {"cat": None})], {})
    page = (tmp_path / "demo.html").read_text(encoding="utf-8")
    assert "✗" not in page
    assert "✓" not in page
    assert 'class="failed"' not in page
    assert "missed" not in page


def test_each_result_has_a_row_headed_by_what_ran(build: Build, tmp_path: Path) -> None:
    result = replace(build(), method="CAM", model="mini", threshold=0.4)
    truth = {"cat": np.array([[0, 0, 9, 9]], dtype=np.float32)}
    item = PageItem(result, "", truth, {"cat": 0.7}, (replace(result, method="GEM", model="mini-vit"), {"cat": 0.2}))
    write_page(tmp_path / "demo.html", "t", [item], {})
    rows = (tmp_path / "demo.html").read_text(encoding="utf-8").split("<h3>")[1:]
    assert [row.split("</h3>")[0] for row in rows] == ["CAM · mini · τ 0.40", "GEM · mini-vit · τ 0.40"]
    assert ["✓ IoU 0.70" in rows[0], "✗ wrong box: IoU 0.20" in rows[1]] == [True, True]


def test_true_and_found_boxes_are_in_the_first_picture(page: str) -> None:
    source = Reader(page).all("img")[0]["src"] or ""
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB")).astype(int)
    assert picture.shape == (400, 640, 3)  # twice what the page shows, for dense screens: the photograph has as many
    light = picture.mean(-1) > 110  # the name's colour, on a dark photograph; a JPEG blurs thin lines
    found, true = light[106:294, 162], light[96:314, 152]
    assert found.mean() > 0.9, "solid"
    assert 0.3 < true.mean() < 0.8, "dotted"
    assert not light[200, 204:436].any()
    assert light[60:98, 164].sum() > 30, "the label's plate, whose text is twice as large, too"

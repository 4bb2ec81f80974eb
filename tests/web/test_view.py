"""The HTML of the page: complete, and inert whatever a visitor types."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cliploc.find.recipes import recipe_of
from cliploc.find.second_look import Judgement
from cliploc.web import view
from cliploc.web.service import Offer, Service
from cliploc.web.settings import Settings
from tests.commands import CAT
from tests.draw.conftest import build  # noqa: F401
from tests.html_reader import CLOSING, IMAGE, Reader

TEMPLATE = "\" onload='alert(3)' {{ 7 * 7 }}{% raw %}"


@pytest.fixture
def hostile(build):  # noqa: F811
    result = build(
        names=(IMAGE, CLOSING, TEMPLATE),
        hot=[(80, 50, 240, 150)] * 3,
        boxes=[(0, (80, 50, 240, 150), 0.9), (0, (1, 2, 3, 4), 0.5), (1, (0, 0, 9, 9), 0.4)],
        found=(True, True, False),
        presence=(0.9, 0.8, 0.1),
        source=f"{IMAGE}.jpg",
        notes=(CLOSING,),
    )
    return replace(result, reasons=(None, None, IMAGE))


@pytest.mark.parametrize("methods", [("cam",), ("cam", "layer_cam")])
def test_nothing_that_is_typed_or_named_becomes_markup(hostile, methods):
    page = Reader(view.results_html(dict.fromkeys(methods, hostile), 0.5))
    assert page.open == []
    assert {tag for tag, _ in page.tags} == {
        "div", "figure", "img", "figcaption", "b", "span", "i", "ul", "li", "table", "thead", "tbody", "tr", "th", "td",
        "br", "p", "details", "summary", *(("button", "small") if methods == ("cam",) else ()),
    }  # fmt: skip
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    for text in (IMAGE, CLOSING, TEMPLATE):
        assert text in page.text
    assert all(re.match("data:image/(jpeg|png);base64,", image["src"]) for image in page.all("img"))
    assert sum(IMAGE in image["alt"] for image in page.all("img")) >= 1


def test_the_table_says_what_was_found_and_where(hostile):
    page = Reader(view.results_html({"cam": hostile}, 0.5))
    words = re.sub(r"\s+", " ", page.text)
    boxes = "80 50 240 150 (uncalibrated 0.90)1 2 3 4 (uncalibrated 0.50)"  # a line break between them
    assert f"{IMAGE} ✓ found 0.250 0.90 {boxes}" in words
    assert f"{TEMPLATE} ✗ not found 0.250 0.10 {IMAGE}" in words
    assert len(page.all("img")) == 6  # all names, the heat of each, and those that are found
    assert "method" not in words


def test_names_that_are_found_come_first_and_absent_ones_are_a_line(hostile):
    later = replace(hostile, found=np.array([False, True, False]), reasons=("it", None, "it"))
    text = re.sub(r"\s+", " ", Reader(view.results_html({"cam": later}, 0.5)).text)
    assert text.index(f"{CLOSING} found, 1 box") < text.index(f"Not found: {IMAGE}{TEMPLATE}")


def test_several_methods_stand_beside_each_other(hostile):
    page = Reader(view.results_html({"cam": hostile, "layer_cam": hostile}, 0.5))
    assert len(page.all("img")) == 6  # all names, and the two that are found
    rows = [one for one in page.all("div") if "pictures" in one["class"]]
    assert [one["class"] for one in rows] == ["pictures many"] * 3
    assert [f"{IMAGE} · {title}" in page.text for title in ("CAM", "LayerCAM")] == [True, True]
    assert f"Not found by any: {TEMPLATE}" in page.text
    assert "method" in page.text


def test_boxes_are_those_of_the_photograph_and_pictures_those_of_the_page(build):  # noqa: F811
    """Unsure ones are dashed."""
    found = build(size_wh=(2000, 1000), boxes=[(0, (100, 200, 1900, 900), 0.9)])
    box, none = found.boxes, found.boxes.where([])
    rest = np.float32([0.3]), ("unsure",), box, np.float32([0.3]), np.zeros(1, bool)
    unsure = replace(found, found=np.array([False]), boxes=none, judged=Judgement(none, box, *rest))
    for result, kind in ((found, "box name-0"), (unsure, "box name-0 unsure")):
        page = Reader(view.results_html({"cam": result}, 0.5))
        [drawn] = [one for one in page.all("button") if "data-at" in one]
        assert drawn["class"] == kind
        assert [float(edge) for edge in drawn["data-at"].split()] == pytest.approx([5, 20, 95, 90])  # percent
        if result is found:
            image, heat = page.all("img")
            assert (image["width"], image["height"]) == (str(view.PAGE_SIDE), str(view.PAGE_SIDE // 2))
            assert heat["alt"].startswith("photo.jpg with the heatmap for “cat”: box from ")
            assert "100 200 1900 900" in re.sub(r"\s+", " ", page.text)


def test_a_name_with_an_exemplar_says_so(tmp_path):
    """The page's figure is of the name that a second upload stands for, and a note says that its presence is none."""
    service = Service([Offer("mini")], device="cpu")
    hostile = tmp_path / "<b>cup.png"
    Image.new("RGB", (40, 30), "red").save(hostile)
    settings = Settings(method="cam", exemplar_box="0,0,20,30")
    look = service.look(str(CAT), settings, exemplar=str(hostile))
    assert look.settings.prompts == ["<b>cup"]
    assert service.look(str(CAT), settings, look, exemplar=str(hostile)) is look
    other = service.look(str(CAT), replace(settings, exemplar_box=""), look, exemplar=str(hostile))
    assert other is not look
    page = Reader(view.results_html(look.cut(look.settings), 0.5))
    assert "presence is not calibrated where pictures or embeddings stand for a name: <b>cup" in page.text
    assert ["<b>cup" in image["alt"] for image in page.all("img")] == [True, True]
    assert service.look(str(CAT), Settings(names="cat", method="cam"), look).exemplar == ""


def test_a_search_counts_what_it_can_count():
    assert "turn" in view.searching((0, 0), (0, 0), None)["text"]
    assert view.searching((0, 0), (0, 0), 3) == {"kind": "busy", "text": "Searching …"}
    counted = view.searching((1200, 300), (0, 0), 3.4)
    assert "1,200 of about 1,500 masked pictures done, 3 s" in counted["text"]
    assert (counted["progress"], counted["counted"]) == (0.8, "masked pictures")
    counted = view.searching((0, 0), (275, 825), 12.2)
    assert "Once for this model: 275 of 1,100 " in counted["text"]
    assert (counted["progress"], counted["counted"]) == (0.25, view.BANK)
    assert "Searching" in view.searching((0, 0), (1100, 0), 12.2)["text"]


def test_the_recipe_that_ran_states_its_parts_and_names_are_counted(hostile):
    recipe = recipe_of("mini")
    page = Reader(view.results_html({"recipe:default": hostile}, 0.5, recipe))
    assert f"Recipe default: {recipe}" in page.text
    assert "Recipe" not in Reader(view.results_html({"cam": hostile}, 0.5)).text
    assert view.summary({"cam": hostile}) == "2 of 3 names found, 3 boxes"
    both = view.summary({"recipe:default": hostile, "cam": hostile})
    assert both.startswith(f"{hostile.method}, recipe default: 2 of 3 names found, 3 boxes · CAM: 2 of 3")

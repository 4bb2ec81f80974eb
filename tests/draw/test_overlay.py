""""""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

import cliploc
import cliploc.draw
import cliploc.evaluate.tasks
import cliploc.label.editor
import cliploc.web
from cliploc.document import to_document
from cliploc.draw import captions
from cliploc.draw.colours import VEIL_OPACITY, heat_colours, name_colour
from cliploc.draw.html import TEMPLATES
from cliploc.draw.overlay import (
    MOST_PANELS,
    OPACITY,
    _paneled,
    boxes_to_draw,
    draw_overlay,
    label_picture,
    run_line,
    scaled,
    sheet,
    verdict,
)
from cliploc.draw.sheet import MAX_SIDE
from cliploc.errors import UsageError
from cliploc.find.second_look import Judgement
from cliploc.localization import Localization
from cliploc.options import Colormap

from .conftest import Build


def changed(after: Image.Image, before: Image.Image) -> np.ndarray:
    """[H, W] bool: pixels that are not what they were."""
    return (np.asarray(after) != np.asarray(before)).any(-1)


def warm(drawn: Image.Image) -> np.ndarray:
    """[H, W] bool: pixels of a picture of one colour that are not as its cold corner is."""
    pixels = np.asarray(drawn)
    return (pixels != pixels[0, 0]).any(-1)


def test_a_box_is_drawn_along_its_edge_and_leaves_the_rest(build: Build) -> None:
    result = build(size_wh=(320, 200), boxes=[(0, (79.6, 50.2, 240.4, 149.8), 0.93)])
    drawn = draw_overlay(result, heatmap=False)
    for y, x in [(100, 80), (100, 239), (50, 200), (149, 160)]:  # the outermost pixels inside the box
        assert tuple(np.asarray(drawn)[y, x]) == (255, 255, 255)
    after = changed(drawn, result.image)
    assert not after[60:140, 90:230].any(), "the middle keeps the photograph"
    assert not after[160:].any()
    assert not after[:, :70].any()
    assert not after[:, 250:].any()
    whole = build(size_wh=(100, 60), boxes=[(0, (0, 0, 100, 60), 0.5)])
    picture = np.asarray(draw_overlay(whole, heatmap=False))
    assert (picture[59, :] == 255).all(), "the exclusive edge, up to the border"
    assert (picture[:, 99] == 255).all()


def test_the_cold_is_dimmed_and_the_hottest_are_coloured(build: Build) -> None:
    cold = build(hot=[None])
    assert not changed(draw_overlay(cold), cold.image).any(), "a map without heat leaves every pixel"
    picture = draw_overlay(build(colour=(90, 90, 90)))
    assert np.asarray(picture)[0, 0].tolist() == pytest.approx([65] * 3, abs=1), "halfway to the veil's 40"
    after = warm(picture)
    assert after[60:140, 95:225].all()
    assert not after[:40].any()
    assert not after[160:].any()
    assert not after[:, :65].any()
    assert not after[:, 255:].any()
    hottest = np.asarray(picture)[100, 160].astype(int)
    assert hottest.max() > 140
    assert hottest.max() - hottest.min() > 50


@pytest.mark.parametrize("policy", ["squash", "crop", "pad"])
@pytest.mark.parametrize("size_wh", [(400, 160), (160, 400), (200, 200)])
def test_heat_lies_where_it_was_found_whatever_the_frame(build: Build, policy: str, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    # Off the centre, yet within the central square that every policy shows.
    x0, y0 = width / 2 + 10, height / 2 - 70
    box = (x0, y0, x0 + 50, y0 + 40)
    result = build(size_wh=size_wh, hot=[box], policy=policy, colour=(90, 90, 90))
    ys, xs = np.nonzero(warm(draw_overlay(result, opacity=1.0)))
    cell = max(size_wh) / 64 + 2  # a cell of the map, interpolated
    assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == pytest.approx(box, abs=cell)


def test_several_names_have_their_own_colours_for_heat_and_boxes(build: Build) -> None:
    result = build(
        names=("cat", "dog", "bird"),
        hot=[(10, 40, 90, 160), (220, 40, 300, 160), (120, 40, 200, 160)],
        boxes=[(0, (10, 40, 90, 160), 0.9), (1, (220, 40, 300, 160), 0.8)],
        found=[True, True, False],
        colour=(80, 80, 80),
    )
    picture = np.asarray(draw_overlay(result, opacity=1.0))
    assert tuple(picture[100, 10]) == name_colour(0)
    assert tuple(picture[100, 220]) == name_colour(1)
    assert np.abs(picture[100, 50].astype(int) - name_colour(0)).max() <= 1
    assert np.abs(picture[100, 260].astype(int) - name_colour(1)).max() <= 1
    assert tuple(picture[100, 160]) == tuple(picture[10, 160]), "what was not found is not drawn among others"


@pytest.mark.parametrize("scores", [(0.9, 0.4), (0.4, 0.9)])
def test_the_better_box_is_on_top_and_unsure_ones_are_dashed(build: Build, scores: tuple[float, float]) -> None:
    place = (80, 50, 240, 150)
    both = [(label, place, score) for label, score in enumerate(scores)]
    result = build(names=("cat", "dog"), hot=[None] * 2, boxes=both, colour=(80, 80, 80))
    picture = np.asarray(draw_overlay(result, heatmap=False))
    assert (picture[149, 90:230] == name_colour(int(np.argmax(scores)))).all()
    rest = np.float32([0, 0]), (None, None), result.boxes, np.float32(scores), np.zeros(2, bool)
    none = result.boxes.where([])
    doubtful = replace(result, boxes=none, judged=Judgement(none, result.boxes, *rest))
    drawn = np.asarray(draw_overlay(scaled(doubtful, (640, 400)), heatmap=False))
    dashed = (drawn[299, 180:460] == (80, 80, 80)).all(-1)
    assert 0.2 < dashed.mean() < 0.8


def slope(build: Build, **facts: object) -> Localization:
    """Heat that rises evenly from left to right."""
    result = build(size_wh=(320, 200), colour=(90, 90, 90))
    maps = np.broadcast_to(np.linspace(0, 1, 64, dtype=np.float32), (1, 64, 64)).copy()
    return replace(result, maps=maps, **facts)


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_a_line_runs_where_the_heat_reaches_the_threshold(build: Build, threshold: float) -> None:
    plain = np.asarray(draw_overlay(slope(build)), dtype=int)
    lined = np.asarray(draw_overlay(slope(build, threshold=threshold), caption=False), dtype=int)
    columns = np.flatnonzero(np.abs(lined - plain)[100, :-5].max(-1) > 20)  # what is hot ends at the edge, too
    assert columns.mean() == pytest.approx(320 * threshold, abs=6)
    assert len(columns) < 12, "thin"


def test_the_thing_can_be_seen_under_the_hottest_heat_and_heat_sets_the_opacity(build: Build) -> None:
    """A pattern of black and white keeps half of its contrast, and heat is seen on black and on white."""
    stripes = np.zeros((200, 320, 3), dtype=np.uint8)
    stripes[::2] = 255
    drawn = np.asarray(draw_overlay(replace(slope(build), image=Image.fromarray(stripes))), dtype=int)
    contrast = np.abs(drawn[1::2] - drawn[::2]).mean((0, 2)) / 255  # of each column
    assert contrast.min() >= min(1 - OPACITY, 1 - VEIL_OPACITY) - 0.01 >= 0.49
    coloured = drawn.max(-1) - drawn.min(-1)
    for rows in (slice(0, None, 2), slice(1, None, 2)):
        of_column = coloured[rows].mean(0)
        assert of_column[0] <= 1
        assert of_column[160] > 20
        assert of_column[-1] > 40


def test_method_model_and_threshold_are_written_on_the_picture(build: Build) -> None:
    result = build(size_wh=(400, 300), hot=[None])
    said = replace(result, method="CAM", model="mini", threshold=0.4)
    assert run_line(said) == "CAM · mini · τ 0.40 · scores uncalibrated"
    said = replace(said, calibrated=np.array([True]))
    assert run_line(said) == "CAM · mini · τ 0.40"
    assert run_line(replace(said, threshold="auto")) == "CAM · mini · τ auto"
    assert run_line(result) == ""
    assert not changed(draw_overlay(said, caption=False), result.image).any()
    ys = np.nonzero(changed(draw_overlay(said), result.image))[0]
    assert len(ys) > 500
    assert max(ys) - min(ys) < 40, "a small band"
    assert min(ys) == 0 or max(ys) == 299
    assert sheet(said).image().height > sheet(result).image().height, "sheets say it below"


def test_a_choice_of_names_draws_only_them(build: Build) -> None:
    result = build(
        names=("cat", "dog"), hot=[None, None], boxes=[(0, (10, 40, 90, 160), 0.9), (1, (220, 40, 300, 160), 0.8)]
    )
    after = changed(draw_overlay(result, ["dog"]), result.image)
    assert after[100, 220]
    assert not after[:, :150].any()


def test_the_result_itself_is_never_drawn_on(build: Build) -> None:
    result = build(boxes=[(0, (80, 50, 240, 150), 0.9)])
    before = np.asarray(result.image).copy()
    for options in ({}, {"heatmap": False}, {"boxes": False}, {"heatmap": False, "boxes": False}):
        assert draw_overlay(result, **options) is not result.image
    sheet(result).image()
    assert (np.asarray(result.image) == before).all()


def test_labels_stay_inside_and_off_each_other() -> None:
    canvas = Image.new("RGB", (400, 300))
    plates = captions.Plates(canvas, 16)
    for corner in [(0, 0, 40, 40), (0, 0, 60, 60), (370, 0, 400, 30), (0, 270, 400, 300), (5, 3, 50, 50)]:
        plates.add(corner, "a rather long name", " 0.50", (255, 255, 255), 2)
    assert len(plates.taken) == 5
    for index, (x0, y0, x1, y1) in enumerate(plates.taken):
        assert 0 <= x0 < x1 <= 400
        assert 0 <= y0 < y1 <= 300
        for other in plates.taken[:index]:
            assert x1 <= other[0] or other[2] <= x0 or y1 <= other[1] or other[3] <= y0


@pytest.mark.parametrize(
    "name", ["кошка", "猫", "고양이", "قطة", "🐈", "line\nbreak\ttab", "\ud800", "", " ", "x" * 10_000]
)
def test_any_letters_can_be_drawn(build: Build, name: str) -> None:
    result = build(names=(name, "cat"), hot=[None, None], boxes=[(0, (80, 50, 240, 150), 0.9)])
    assert changed(draw_overlay(result), result.image)[50, 90]
    sheet(result).image()


@pytest.mark.parametrize("size_wh", [(8, 8), (600, 12), (12, 600), (4000, 3000), (1, 1)])
def test_sizes_from_one_pixel_to_twelve_million(build: Build, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    box = (width * 0.25, height * 0.25, width * 0.75, height * 0.75)
    result = build(size_wh=size_wh, hot=[box], boxes=[(0, box, 0.9)])
    picture = draw_overlay(result)
    assert picture.size == size_wh
    assert changed(picture, result.image).any()
    drawn = sheet(result).image()
    assert max(drawn.size) <= 1700
    assert min(drawn.size) >= 64, "large enough for captions"


def test_panels_show_the_photograph_a_panel_for_each_name_and_all_boxes(build: Build) -> None:
    names = ("cat", "dog", "bird")
    blue, box = (10, 120, 200), (0, (160, 100, 480, 300), 1)
    result = build((640, 400), names, hot=[None] * 3, found=[True, False, False], boxes=[box], colour=blue)
    drawn = np.asarray(sheet(result).image())
    is_blue = (drawn == blue).all(-1)
    rows, columns = (np.flatnonzero(is_blue.mean(axis) > 0.2) for axis in (1, 0))
    bands = [np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1) for lines in (rows, columns)]
    filled = [is_blue[np.ix_(y, x)].mean() > 0.8 for y in bands[0] for x in bands[1]]
    assert sum(filled) == 5, "photograph, three names, all together"
    orange = (drawn == name_colour(0)).all(-1)
    assert orange.sum() > 500, "boxes of all names in the names' colours"
    one = np.asarray(sheet(replace(result, names=names[:1], boxes=replace(result.boxes, names=names[:1]))).image())
    assert one.size < drawn.size


@pytest.mark.parametrize("found", [0, 1, 45, 1000])
def test_of_a_thousand_names_the_best_found_have_a_panel(build: Build, found: int) -> None:
    names = [f"name {i}" for i in range(1000)]
    boxes = [(999 - i, (80, 50, 240, 150), 1 - i / 2000) for i in range(found)]  # the last name is the best
    boxes += [(label, place, 0.1) for label, place, _ in boxes]  # by the best of its boxes
    there = [i >= 1000 - found for i in range(1000)]
    result = build(names=names, hot=[None] * 1000, boxes=boxes, found=there)
    assert _paneled(result) == [999 - i for i in range(min(found, MOST_PANELS))]
    drawn = sheet(result).image()
    assert max(drawn.size) < 65_500
    if found == 1:
        assert (np.asarray(drawn) == name_colour(999)).all(-1).sum() < 20, "no colour for a box that is white"
    assert drawn.width <= MAX_SIDE
    few = build(names=names[:MOST_PANELS], hot=[None] * MOST_PANELS, boxes=[], found=[False] * MOST_PANELS)
    assert _paneled(few) == list(range(MOST_PANELS))


def test_scaled_keeps_boxes_and_heat_on_the_same_thing(build: Build) -> None:
    result = build(size_wh=(400, 160), policy="pad", hot=[(200, 40, 320, 120)], boxes=[(0, (200, 40, 320, 120), 0.9)])
    half = scaled(result, (200, 80))
    assert half.boxes.xyxy.tolist() == [[100, 20, 160, 60]]
    assert half.heatmaps.shape == (1, 80, 200)
    assert half.heatmaps[0, 25:55, 106:154].min() > 0.9
    assert half.heatmaps[0, :, :90].max() == 0


def test_a_verdict_has_what_was_decided_by(build: Build) -> None:
    result = build(names=("cat", "dog"), hot=[None] * 2, found=[True, False], presence=[0.93, 0.12])
    assert verdict(result, 0) == "found · cosine 0.250 · presence 0.93"
    assert verdict(result, 1) == "not found · cosine 0.250 · not in the picture"


def test_faint_boxes_are_drawn_only_where_a_name_has_no_better_one(build: Build) -> None:
    boxes = [(0, (10, 10, 90, 90), 0.9), (0, (200, 10, 300, 90), 0.02), (1, (100, 100, 180, 190), 0.01)]
    result = replace(build(names=("cat", "dog"), hot=[None] * 2, boxes=boxes), calibrated=np.array([True, True]))
    assert [box.score for box in boxes_to_draw(result, {0: (1, 2, 3), 1: (4, 5, 6)})] == pytest.approx([0.9, 0.01])


@pytest.mark.parametrize("colormap", get_args(Colormap))
def test_heat_has_the_colours_of_the_map_that_is_asked_for(build: Build, colormap: Colormap) -> None:
    hot = np.asarray(draw_overlay(build(colour=(0, 0, 0)), opacity=1.0, colormap=colormap))[100, 160]
    assert tuple(hot) == heat_colours(colormap)[-1]
    lightness = np.array(heat_colours(colormap)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all() or colormap == "turbo", "what is hotter is lighter, in grey print too"


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_for_papers_letters_and_boxes_are_no_pixels_and_a_bar_tells_the_heat(build: Build, kind: str) -> None:
    result = build(names=("cat", "dog"), hot=[None] * 2, boxes=[(0, (80, 50, 240, 150), 0.93)], found=[True, False])
    result = replace(result, calibrated=np.array([True, True]))
    content = sheet(result).file(kind)
    assert sheet(result).file(kind) == content
    if kind == "svg":
        for text in (b">cat 0.93<", b">dog<", b"its maximum", b"not found"):
            assert text in content
    assert sheet(result, masks=True).colormap is None


def test_wrong_options_are_refused_in_a_line(build: Build) -> None:
    with pytest.raises(UsageError, match=r"opacity from 0 to 1, got 1\.5"):
        draw_overlay(build(), opacity=1.5)
    with pytest.raises(UsageError, match="colormap to be one of viridis"):
        draw_overlay(build(), colormap="jet")
    with pytest.raises(UsageError, match="'dog' was not asked for, only cat"):
        draw_overlay(build(), ["dog"])
    with pytest.raises(UsageError, match="expected a list of names, got the single text 'cat'"):
        draw_overlay(build(), "cat")


# -------------------------------------------------------------------------------------------------------------- masks
def masked(build, hot=((10, 10, 50, 40), None), names=("cat", "dog")):
    found = [box is not None for box in hot]
    boxes = [(i, box, 0.9) for i, box in enumerate(hot) if box is not None]
    result = build(names=names, size_wh=(64, 64), hot=hot, found=found, colour=(128, 128, 128), boxes=boxes)
    return replace(result, threshold=0.5)


@pytest.mark.parametrize("names", [["cat"], None])
def test_masks_are_shades_in_their_names_colour(build, names):
    result = masked(build)
    drawn = np.asarray(draw_overlay(result, names, opacity=0.5, boxes=False, caption=False, masks=True), int)
    plain = draw_overlay(result, names, boxes=False, caption=False, heatmap=False)
    mask = result.masks.of_boxes[0]
    expected = (np.array([128, 128, 128]) + np.array(name_colour(0))) / 2
    inner = np.zeros_like(mask)
    inner[15:35, 15:45] = True
    assert np.abs(drawn[inner] - expected).max() <= 1
    outer = np.ones_like(mask)
    outer[5:46, 5:56] = False
    assert (drawn[outer] == np.asarray(plain, int)[outer]).all()
    edge = mask & ~inner
    assert (np.abs(drawn[edge] - name_colour(0)).max(axis=-1) == 0).any()  # the outline


def test_masks_stand_in_the_place_of_heat_unless_both_are_asked_for(build):
    result = masked(build)
    alone = draw_overlay(result, masks=True)
    assert alone == draw_overlay(result, masks=True, heatmap=False)
    assert alone != draw_overlay(result, masks=True, heatmap=True)
    assert draw_overlay(result) == draw_overlay(result, heatmap=True)
    assert sheet(result, masks=True).image() != sheet(result).image()
    without = masked(build, hot=(None, None))
    assert draw_overlay(without, masks=True) == draw_overlay(without, heatmap=False)


def test_label_pictures_of_many_names_have_16_bits():
    labels = np.array([[0, 300]], np.uint16)
    picture = label_picture(labels, names=300)
    assert (np.asarray(picture) == labels).all()
    palette = label_picture(np.array([[0, 255]], np.uint16), names=255).convert("RGB")
    assert palette.getpixel((1, 0)) == name_colour(254)


# ------------------------------------------------------------------------------------------------------------- document
DOCS = Path(__file__).parents[2] / "docs" / "json.md"


@pytest.fixture
def document(build: Build) -> dict[str, Any]:
    result = build(
        names=("cat", "dog"),
        hot=[None, None],
        boxes=[(0, (1.23456, 2, 99.999, 120.005), 0.987654), (0, (5, 5, 10, 10), 0.5)],
        found=[True, False],
        presence=[0.912345, np.nan],
        scores=[0.271349, np.inf],
        notes=("animated",),
    )
    settings = {"model": "mini", "method": "cam", "threshold": np.float32(0.5), "out": Path("a/b"), "scales": (1, 1.5)}
    result = replace(result, presence_rule="calibrated")
    return to_document([result], [("bad.jpg", "bad.jpg: no such file")], settings)


def keys(value: Any) -> Any:
    """The document's shape: its keys at every depth, all entries of a list together."""
    if isinstance(value, dict):
        return {key: keys(one) for key, one in value.items()}
    if isinstance(value, list):
        merged: dict[str, Any] = {}
        for one in value:
            if isinstance(one, dict):
                for key, inner in keys(one).items():
                    merged[key] = merged.get(key) or inner
        return merged or None
    return None


def test_it_is_strict_json_with_rounded_values_where_not_a_number_is_null(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    cat, dog = document["pictures"][0]["names"]
    assert cat["boxes"][0]["xyxy"] == pytest.approx([1.23, 2.0, 100.0, 120.0], abs=0.011)
    assert [round(value, 2) for value in cat["boxes"][0]["xyxy"]] == cat["boxes"][0]["xyxy"]
    assert cat["boxes"][0]["score"] == 0.9877
    assert len(cat["boxes"]) == 2
    assert (cat["score"], cat["presence"], cat["found"], cat["reason"]) == (0.2713, 0.9123, True, None)
    assert (dog["score"], dog["presence"], dog["found"], dog["boxes"]) == (None, None, False, [])
    assert (cat["presence_rule"], dog["presence_rule"]) == ("calibrated", None)
    assert dog["reason"] == "not in the picture"
    picture = document["pictures"][0]
    assert (picture["file"], picture["width"], picture["height"]) == ("folder/photo.jpg", 320, 200)
    assert picture["notes"] == ["animated"]
    assert document["failures"] == [{"file": "bad.jpg", "error": "bad.jpg: no such file"}]
    assert document["settings"] == {
        "model": "mini", "method": "cam", "threshold": 0.5, "out": "a/b", "scales": [1, 1.5],
    }  # fmt: skip
    assert document["cliploc_version"] == cliploc.__version__


def test_the_documented_example_has_these_keys_and_every_one_is_explained(document: dict[str, Any]) -> None:
    block = re.search(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert block
    example = json.loads(block[1])
    example.pop("settings")
    assert list(example.pop("skipped")) == ["count", "files"]  # the command adds it
    shown = {key: value for key, value in document.items() if key != "settings"}
    assert keys(example) == keys(shown)
    assert list(example) == [key for key in document if key != "settings"], "in this order too"
    assert example["schema_version"] == document["schema_version"]
    text = DOCS.read_text(encoding="utf-8").split("```")[2]

    def walk(shape: Any) -> set[str]:
        return set() if not shape else {*shape, *(key for one in shape.values() for key in walk(one))}

    missing = {key for key in walk(keys({**document, "settings": {}})) if f"`{key}`" not in text}
    assert not missing


# ------------------------------------------------------------------------------------------------------------ templates
PACKAGES = [
    Path(package.__file__).parent
    for package in (cliploc.draw, cliploc.evaluate.tasks, cliploc.label.editor, cliploc.web)
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_html_is_in_the_templates_only(package: Path) -> None:
    tag = re.compile(r"</?(a|b|body|code|dd|div|dl|dt|figure|h\d|head|i|img|li|p|span|svg|t[dhr]|table|ul)[ >]")
    for path in package.rglob("*.py"):
        assert not tag.search(path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_nothing_but_style_sheets_and_scripts_is_taken_as_it_is_and_attributes_are_quoted(package: Path) -> None:
    templates = list(package.rglob("*.html"))
    assert templates
    for path in templates:
        text = path.read_text(encoding="utf-8")
        for use in re.findall(r"\{\{[^}]*\bsafe\b[^}]*\}\}", text):
            assert re.fullmatch(r'\{\{ asset\("[a-z]+\.(css|js)"\) \| safe \}\}', use), f"{path}: {use}"
        assert not re.search(r"=\{\{", text), path


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        TEMPLATES.render("base.html")

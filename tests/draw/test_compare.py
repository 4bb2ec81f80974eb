"""The sheet of several methods: all cells there, nothing cut off; and the colours of names."""

import colorsys
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cliploc.draw import comparison, sheet
from cliploc.draw.colours import INK, NAME_COLOURS, PAPER, text_colour
from cliploc.draw.comparison import MOST_CELLS, ModelResults, cell_caption, check_cells, draw_comparison
from cliploc.errors import UsageError
from cliploc.evaluate.tasks.segmentation.job import class_colours
from tests.draw.conftest import Build

RED, NAMES = (200, 30, 40), ("cat", "dog", "bird")


def titles(number: int) -> dict[str, str]:
    return {f"m{i}": f"Method {i}" for i in range(number)}


def one_model(result, number: int, model: str = "mini", missing: tuple[str, ...] = ()) -> ModelResults:
    results = {name: result for name in titles(number) if name not in missing}
    return ModelResults(model, results, {name: f"{name} does not work on {model}" for name in missing})


@pytest.mark.parametrize(("number", "names"), [(1, NAMES[:1]), (1, NAMES), (3, NAMES), (7, NAMES[:1]), (20, NAMES)])
@pytest.mark.parametrize("size_wh", [(640, 400), (300, 900), (40, 30), (2000, 100)], ids=str)
def test_each_method_and_name_has_a_cell_of_the_pictures_shape(
    build: Build, number: int, size_wh: tuple[int, int], names: tuple[str, ...]
) -> None:
    drawn = draw_comparison([one_model(build(size_wh, names), number)], titles(number))
    cells = drawn.panels
    assert [cell.title for cell in cells] == [f"Method {i}" for i in range(number) for _ in names]
    [(width, height)] = {cell.image.size for cell in cells}
    assert 160 <= max(width, height) <= sheet.CELL_SIDES[1]
    assert width / height == pytest.approx(size_wh[0] / size_wh[1], rel=0.2)
    assert drawn.image().width <= sheet.MAX_SIDE


def test_a_sheet_of_the_most_cells_is_drawn_and_one_more_is_refused(build: Build) -> None:
    names = tuple(f"name {i}" for i in range(MOST_CELLS // 20))
    result = build((64, 48), names, colour=RED)
    assert max(draw_comparison([one_model(result, 20)], titles(20)).image().size) < 8000
    with pytest.raises(UsageError, match=r"at most 400 cells .* got 21 × 20 × 1 = 420: ask for fewer"):
        check_cells(21, len(names), 1)


def test_what_does_not_fit_leaves_an_empty_cell_with_the_reason(build: Build) -> None:
    result = build(names=("cat", "dog"))
    models = [one_model(result, 2), one_model(result, 2, "mini-vit", missing=("m1",))]
    cells = draw_comparison(models, titles(2)).panels
    assert [cell.title for cell in cells[::2]] == [f"Method {i} · {m}" for i in (0, 1) for m in ("mini", "mini-vit")]
    assert [cell.line.split(":")[0] for cell in cells[:6]] == ["cat", "dog"] * 3
    for cell in cells[6:]:
        assert cell.line == "m1 does not work on mini-vit"
        assert (np.asarray(cell.image) == comparison.EMPTY).all()


@pytest.mark.parametrize("policy", ["squash", "crop", "pad"])
def test_the_peak_is_in_pixels_of_the_original(build: Build, policy: str) -> None:
    result = build((400, 200), policy=policy)
    result.maps[:] = 0
    x0, y0, *_ = result.frame.to_input(np.array([[220.0, 90.0, 220.0, 90.0]]))[0]
    result.maps[0, int(y0), int(x0)] = 0.75
    peak = result.peak(0)
    assert peak is not None
    heat, x, y = peak
    assert heat == 0.75
    scale_x, scale_y = result.frame.scale_xy
    assert abs(x - 220) <= 1 / scale_x
    assert abs(y - 90) <= 1 / scale_y
    result.maps[:] = 0.3
    assert result.peak(0) is None


def test_the_ring_is_at_the_peak_and_heat_in_the_padding_does_not_count(build: Build) -> None:
    result = build((400, 200), policy="pad", colour=RED)
    result.maps[:] = 0
    result.maps[0, 0, 0] = 1  # the padding above
    result.maps[0, 32, 32] = 0.5
    peak = result.peak(0)
    assert peak is not None
    assert peak[0] == 0.5
    picture = Image.new("RGB", (400, 200), RED)
    comparison._ring(picture, peak)
    changed = np.argwhere((np.asarray(picture) != RED).any(-1))
    np.testing.assert_allclose(changed.mean(0), (peak[2], peak[1]), atol=1)


def test_a_caption_says_what_was_found_or_why_not(build: Build) -> None:
    boxes = [(0, (80, 50, 240, 150), 0.9), (0, (1, 2, 30, 40), 0.5)]
    found = build(boxes=boxes)
    assert cell_caption(found, 0) == "found · 2 boxes"
    chances = replace(found, calibrated=np.array([True]), threshold=0.3)
    assert cell_caption(chances, 0) == "found · 2 boxes, best 0.90 · τ 0.30"
    absent = replace(build(found=(False,)), maps=np.zeros((1, 64, 64), np.float32))
    assert cell_caption(absent, 0) == "not found · not in the picture"


def test_a_note_of_one_method_has_its_name_and_rows_are_filled(build: Build) -> None:
    plain = replace(build(), notes=("animated: the first is used",))
    noted = replace(plain, notes=(*plain.notes, "2000 random masks"))
    results = ModelResults("mini", {"m0": plain, "m1": noted})
    note = draw_comparison([results], titles(2)).note
    assert "· animated: the first is used · Method 1: 2000 random masks ·" in note
    assert sheet.grid_of((300, 300), 6)[0] == 3
    assert sheet.grid_of((300, 300), 9)[0] in (3, 5)


# ----------------------------------------------------------------------------------------------------- colours of names
# Oklab (Ottosson 2020), and full protanopia and deuteranopia in linear RGB (Machado, Oliveira & Fernandes 2009).
TO_CONES = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
TO_LAB = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9690]],
}


def lab(colours: object, sight: str) -> np.ndarray:
    srgb = np.asarray(colours) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (linear @ np.transpose(SIGHT[sight])).clip(0, 1)
    return np.cbrt(seen @ np.transpose(TO_CONES)) @ np.transpose(TO_LAB)


@pytest.mark.parametrize(("sight", "least"), [("normal", 0.19), ("protanopia", 0.11), ("deuteranopia", 0.11)])
def test_no_two_colours_look_alike(sight: str, least: float) -> None:
    places = lab(NAME_COLOURS, sight)
    closest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(places, 2))
    assert closest >= least


def test_at_most_one_is_a_red() -> None:
    hues = [360 * colorsys.rgb_to_hsv(*(part / 255 for part in colour))[0] for colour in NAME_COLOURS]
    assert sum(hue < 20 or hue > 340 for hue in hues) <= 1


def test_colours_can_be_seen_on_black_and_on_white() -> None:
    for colour in NAME_COLOURS:
        assert min(np.linalg.norm(lab(colour, "normal") - lab(ground, "normal")) for ground in (INK, PAPER)) > 0.15


def test_text_on_every_colour_can_be_read() -> None:
    for colour in NAME_COLOURS:
        light = [lab(one, "normal")[0] for one in (colour, text_colour(colour))]
        assert abs(light[0] - light[1]) > 0.35


@pytest.mark.parametrize("count", [21, 150, 847])
def test_each_class_has_its_own_colour_and_the_background_is_black(count: int) -> None:
    names = [f"class {number}" for number in range(count)]
    colours = class_colours(names)[:count]
    assert len(np.unique(colours, axis=0)) == count
    assert colours.any(axis=1).all()
    assert class_colours(["background", *names])[:2].tolist() == [[0, 0, 0], [128, 0, 0]]

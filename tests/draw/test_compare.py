"""The sheet of several methods: all cells there, nothing cut off, whatever the number and shape."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cliploc.draw import comparison, sheet
from cliploc.draw.comparison import MOST_CELLS, ModelResults, cell_caption, check_cells, draw_comparison
from cliploc.errors import UsageError
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

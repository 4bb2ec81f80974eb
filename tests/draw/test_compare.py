"""The sheet of several methods: all cells there, nothing cut off, whatever the number and shape."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cliploc.draw import comparison as compare
from cliploc.draw.comparison import (
    CELL_SIDES,
    LARGEST_SIDE,
    MOST_CELLS,
    SHEET_SIDE,
    ModelResults,
    cell_caption,
    draw_comparison,
    refuse_too_many,
)
from cliploc.errors import UsageError
from tests.draw.conftest import Build

RED, NAMES = (200, 30, 40), ("cat", "dog", "bird")


def titles(number: int) -> dict[str, str]:
    return {f"m{i}": f"Method {i}" for i in range(number)}


def one_model(result, number: int, model: str = "mini", missing: tuple[str, ...] = ()) -> ModelResults:
    results = {name: result for name in titles(number) if name not in missing}
    return ModelResults(model, results, {name: f"{name} does not work on {model}" for name in missing})


@pytest.fixture
def pasted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes of the pictures that a sheet's cells show."""
    sizes: list[tuple[int, int]] = []
    ring = compare._ring

    def note(picture: Image.Image, peak) -> None:
        sizes.append(picture.size)
        ring(picture, peak)

    monkeypatch.setattr(compare, "_ring", note)
    return sizes


@pytest.mark.parametrize(("number", "names"), [(1, NAMES[:1]), (1, NAMES), (3, NAMES), (7, NAMES[:1]), (20, NAMES)])
@pytest.mark.parametrize("size_wh", [(640, 400), (300, 900), (40, 30), (2000, 100)], ids=str)
def test_each_method_and_name_has_a_cell_of_the_pictures_shape(
    build: Build, pasted: list[tuple[int, int]], number: int, size_wh: tuple[int, int], names: tuple[str, ...]
) -> None:
    sheet = draw_comparison([one_model(build(size_wh, names), number)], titles(number))
    assert sheet.mode == "RGB"
    assert len(pasted) == number * len(names)
    assert len(set(pasted)) == 1
    width, height = pasted[0]
    assert CELL_SIDES[0] <= max(width, height) + 1 <= CELL_SIDES[1] + 1
    assert width / height == pytest.approx(size_wh[0] / size_wh[1], rel=0.2)
    assert max(sheet.size) <= (SHEET_SIDE if number < 7 else 1.5 * SHEET_SIDE) < LARGEST_SIDE


def test_a_sheet_of_the_most_cells_is_drawn_and_one_more_is_refused(build: Build) -> None:
    names = tuple(f"name {i}" for i in range(MOST_CELLS // 20))
    result = build((64, 48), names, colour=RED)
    assert max(draw_comparison([one_model(result, 20)], titles(20)).size) < LARGEST_SIDE
    with pytest.raises(UsageError, match=r"at most 400 cells .* got 21 × 20 × 1 = 420: ask for fewer"):
        refuse_too_many(21, len(names), 1)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that a sheet draws, one entry a line."""
    lines: list[str] = []
    text = compare.ImageDraw.ImageDraw.text

    def note(self, xy, line, *more, **options) -> None:
        x, y = xy
        right = x + options["font"].getlength(line)
        assert right <= self.im.size[0] + 1, f"{line!r} runs over the edge"
        assert y >= 0
        lines.append(line)
        text(self, xy, line, *more, **options)

    monkeypatch.setattr(compare.ImageDraw.ImageDraw, "text", note)
    return lines


def test_titles_and_names_are_whole_however_long(build: Build, drawn: list[str]) -> None:
    long = "Donaudampfschifffahrtsgesellschaftskapitän of the old river fleet"
    method = "Grad-CAM++ + LayerCAM + Score-CAM + XGrad-CAM + VL-Score + CAM"
    model = "vit_base_patch16_clip_quickgelu_224 · some_very_long_file_of_weights.safetensors"
    results = [
        ModelResults(one, {"m0": build(names=(long, "cat"))}, {}) for one in (model, model.replace("base", "huge"))
    ]
    draw_comparison(results, {"m0": method})
    whole = "".join("".join(drawn).split())
    for text in (long, method, model):
        assert whole.count("".join(text.split())) >= 2 - (text == method)
    assert not any(line.endswith("…") for line in drawn)


def test_what_does_not_fit_leaves_an_empty_cell_with_the_reason(
    build: Build, pasted: list[tuple[int, int]], drawn: list[str]
) -> None:
    result = build(names=("cat", "dog"))
    models = [one_model(result, 3), one_model(result, 3, "mini-vit", missing=("m1",))]
    sheet = draw_comparison(models, titles(3))
    assert len(pasted) == 2 * 3 + 2 * 2
    assert "m1 does not work on mini-vit" in drawn
    assert (np.asarray(sheet) == compare.EMPTY).all(-1).sum() > 0.9 * 2 * pasted[0][0] * pasted[0][1]
    assert "names: cat, dog · models: mini, mini-vit" in drawn
    assert {"mini", "mini-vit", "cat", "dog", "Method 0", "Method 1", "Method 2"} <= set(drawn)


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
    compare._ring(picture, peak)
    changed = np.argwhere((np.asarray(picture) != RED).any(-1))
    np.testing.assert_allclose(changed.mean(0), (peak[2], peak[1]), atol=1)


def test_a_caption_says_what_was_found_or_why_not(build: Build) -> None:
    boxes = [(0, (80, 50, 240, 150), 0.9), (0, (1, 2, 30, 40), 0.5)]
    found = build(boxes=boxes)
    assert cell_caption(found, 0) == "found · 2 boxes, best 0.90"
    named = replace(found, method="CAM", model="mini", threshold=0.3)
    assert cell_caption(named, 0) == "found · 2 boxes, best 0.90 · τ 0.30"
    absent = replace(build(found=(False,)), maps=np.zeros((1, 64, 64), np.float32))
    assert cell_caption(absent, 0) == "not found · not in the picture"

"""Draws COCO's polygons and crowds by pycocotools."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from cliploc import rle

STEPS = 5  # that pycocotools takes along a pixel's side
Mask = npt.NDArray[np.bool_]
# x0, y0, x1, y1 … of a polygon; or ("runs", counts) of a crowd, column by column, first of pixels outside.
Outline = tuple[float, ...] | tuple[str, tuple[int, ...]]


def runs(outline: Outline, hw: tuple[int, int]) -> rle.Counts:
    """The runs of the pixels inside an outline; see `cliploc.rle.runs`."""
    if outline and outline[0] == "runs":
        return np.array(outline[1], np.int64)
    [code] = coco.frPyObjects([list(outline)], *hw)
    return rle.uncompressed(code["counts"])


def draw(outline: Outline, hw: tuple[int, int]) -> Mask:
    """The pixels `[H, W]` inside an outline."""
    return _filled(runs(outline, hw), hw)


def draw_all(polygons: Sequence[Sequence[Outline]], hw: tuple[int, int]) -> Mask:
    """The pixels `[H, W]` in any of many polygons, each with its holes."""
    pixels = hw[0] * hw[1]
    switches = [np.concatenate([runs(ring, hw).cumsum() for ring in polygon]) for polygon in polygons]
    several = [rle.of_switches(of_polygon, pixels) for of_polygon in switches]
    return _filled(rle.united(several), hw) if several else np.zeros(hw, np.bool_)


def _filled(counts: rle.Counts, hw: tuple[int, int]) -> Mask:
    return rle.of_runs(counts).reshape(hw[1], hw[0]).T


def steps(outline: Outline) -> int:
    """The number of steps along a polygon's edges, which is what it costs to draw it."""
    corners = np.array(outline, np.float64).reshape(-1, 2)
    return int(STEPS * np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum()) + len(corners)


def outlines_of(segmentation: object, size_wh: tuple[int, int]) -> tuple[Outline, ...]:
    """The outlines of a COCO annotation's `segmentation` in a picture of this size."""
    width, height = size_wh
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if not isinstance(counts, list):
            raise ValueError("run lengths as a compressed text: expected a list of counts, as COCO publishes them")
        runs = tuple(_whole(count) for count in counts)
        if sum(runs) != width * height:
            raise ValueError(f"run lengths of {sum(runs):.6g} pixels, expected {width}×{height}")
        return (("runs", runs),)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
        raise ValueError("expected a list of polygons")
    polygons = [_corners(polygon) for polygon in segmentation]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon of fewer than three corners")
    # Half a picture outside is more than any annotator's slip; every step of an edge is walked, and takes memory.
    for polygon in polygons:
        x, y = polygon[::2], polygon[1::2]
        if min(*x, *y) < -max(size_wh) / 2 or max(x) > 1.5 * width or max(y) > 1.5 * height:
            raise ValueError("a polygon with a corner far outside the picture")
    return tuple(polygons)


def _whole(count: object) -> int:
    if isinstance(count, bool) or not isinstance(count, int | float) or not (0 <= count <= 2**53) or count % 1:
        raise ValueError(f"expected a whole number as a run length, got {str(count)[:20]}")
    return int(count)


def _corners(polygon: object) -> tuple[float, ...]:
    if not isinstance(polygon, Sequence) or isinstance(polygon, str):
        raise ValueError("expected a polygon as a list of numbers")
    if not all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e9 for number in polygon
    ):
        raise ValueError("a polygon with a corner that is not a number, or too large")
    return tuple(map(float, polygon))

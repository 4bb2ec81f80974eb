"""Draws COCO's polygons and crowds by pycocotools."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta
from pycocotools import mask as coco

from cliploc.images import rle

STEPS = 5  # that pycocotools takes along a pixel's side
Mask = npt.NDArray[np.bool_]
Run = Annotated[int, Meta(ge=0, le=2**53)]
Corners = Annotated[list[Annotated[float, Meta(gt=-1e9, lt=1e9)]], Meta(min_length=6)]
# x0, y0, x1, y1 … of a polygon; or ("runs", counts) of a crowd, column by column, first of pixels outside.
Outline = tuple[float, ...] | tuple[str, tuple[int, ...]]


def runs(outline: Outline, hw: tuple[int, int]) -> rle.Counts:
    """The runs of the pixels inside an outline; see `cliploc.images.rle.runs`."""
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


def outlines_of(segmentation: object, size_wh: tuple[int, int]) -> tuple[Outline, ...]:
    """The outlines of a COCO annotation's `segmentation` in a picture of this size."""
    width, height = size_wh
    try:
        if isinstance(segmentation, dict):
            runs = tuple(msgspec.convert(segmentation.get("counts"), list[Run]))
            if sum(runs) != width * height:
                raise ValueError(f"run lengths of {sum(runs):.6g} pixels, expected {width}×{height}")
            return (("runs", runs),)
        polygons = [tuple(polygon) for polygon in msgspec.convert(segmentation, list[Corners])]
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"expected polygons, or a list of run lengths, as COCO publishes them ({error})") from None
    # Half a picture outside is more than any annotator's slip; every step of an edge is walked, and takes memory.
    for polygon in polygons:
        x, y = polygon[::2], polygon[1::2]
        if len(x) != len(y):
            raise ValueError("a polygon with half a corner")
        if min(*x, *y) < -max(size_wh) / 2 or max(x) > 1.5 * width or max(y) > 1.5 * height:
            raise ValueError("a polygon with a corner far outside the picture")
    return tuple(polygons)

"""Draws COCO's polygons and crowds with exactly COCO's pixels: edges walked in fifths of a pixel; as pycocotools."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

STEPS = 5  # along a pixel's side
MOST_STEPS = 2**20  # of the edges that are walked together
MOST_POLYGONS = 1_000  # of one thing; each is drawn on a whole picture
MOST_ROUNDS = 200  # length of a polygon's edges, in half perimeters of the picture
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
# x0, y0, x1, y1 … of a polygon; or ("runs", counts) of a crowd, column by column, first of pixels outside.
Outline = tuple[float, ...] | tuple[str, tuple[int, ...]]


def draw(outline: Outline, hw: tuple[int, int]) -> Mask:
    """The pixels `[H, W]` inside an outline."""
    height, width = hw
    if outline and outline[0] == "runs":
        counts = np.array(outline[1], np.int64)
        return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T
    times = np.bincount(switches(outline, hw), minlength=height * width + 1)[: height * width]
    return np.asarray((times.cumsum() % 2 == 1).reshape(width, height).T)


def steps(outline: Outline) -> int:
    """The number of steps along a polygon's edges, which is what it costs to draw it."""
    corners = np.array(outline, np.float64).reshape(-1, 2)
    return int(STEPS * np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum()) + len(corners)


def switches(outline: Outline, hw: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Where a polygon's mask switches between outside and inside: places in the row of all pixels, column by column."""
    starts, ends, _ = _edges([outline])
    return _switches(starts, ends, hw)[0]


def draw_all(polygons: Sequence[Sequence[Outline]], hw: tuple[int, int]) -> Mask:
    """The pixels `[H, W]` in any of many polygons, each with its holes; its time grows with the edges' length."""
    height, width = hw
    depth = np.zeros(height * width + 1, np.int64)  # by how many more polygons hold a pixel than the one before it
    rings = [ring for polygon in polygons for ring in polygon]
    if rings:
        starts, ends, ring = _edges(rings)
        of = np.repeat(np.arange(len(polygons)), [len(polygon) for polygon in polygons])[ring]  # [e], the polygon
        whole = np.bincount(of, _steps(starts, ends), len(polygons)).cumsum() // MOST_STEPS
        for part in _split(whole[of]):  # so that memory does not grow with the number of polygons
            at, edge = _switches(starts[part], ends[part], hw)
            at = at[np.lexsort((at, of[part][edge]))]  # of each polygon by turns where it begins and where it ends
            depth += np.bincount(at[::2], minlength=len(depth)) - np.bincount(at[1::2], minlength=len(depth))
    return np.asarray((depth[:-1].cumsum() > 0).reshape(width, height).T)


def _edges(rings: Sequence[Outline]) -> tuple[Ints, Ints, Ints]:
    """The edges of closed rings, in steps: where they start and end, `[e, 2]` each, and the ring of each `[e]`."""
    corners = [(STEPS * np.array(ring, np.float64).reshape(-1, 2) + 0.5).astype(np.int64) for ring in rings]
    ends = np.concatenate([end for ring in corners for end in (ring[1:], ring[:1])])  # many times faster than np.roll
    return np.concatenate(corners), ends, np.repeat(np.arange(len(rings)), [len(ring) for ring in corners])


def _steps(starts: Ints, ends: Ints) -> Ints:
    """The number of steps along each edge, `[e]`."""
    return np.asarray(np.abs(ends - starts).max(axis=1) + 1)


def _split(values: npt.NDArray[Any]) -> list[Ints]:
    """The places of equal values in a row."""
    return np.split(np.arange(len(values)), np.flatnonzero(np.diff(values)) + 1)


def _switches(starts: Ints, ends: Ints, hw: tuple[int, int]) -> tuple[Ints, Ints]:
    """Where closed outlines switch between outside and inside, `[m]` each: the place, column by column, and edge."""
    parts = _split(_steps(starts, ends).cumsum() // MOST_STEPS)  # every step is held in memory
    crossings = [_crossings(starts[part], ends[part], hw) for part in parts]
    edges = [part[edge] for part, (_, edge) in zip(parts, crossings, strict=True)]
    return np.concatenate([at for at, _ in crossings]), np.concatenate(edges)


def _crossings(starts: Ints, ends: Ints, hw: tuple[int, int]) -> tuple[Ints, Ints]:
    """Where edges `[e, 2]` cross the centre lines of columns, `[m]` each: the place and the edge."""
    height, width = hw
    x, y, edge = _walk(starts, ends)
    moved = (x[1:] != x[:-1]) & (edge[1:] == edge[:-1])
    column = (np.minimum(x[1:], x[:-1])[moved] + 0.5) / STEPS - 0.5
    row = (np.minimum(y[1:], y[:-1])[moved] + 0.5) / STEPS - 0.5
    crossing = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
    at = column[crossing].astype(np.int64) * height + np.ceil(row[crossing].clip(0, height)).astype(np.int64)
    return at, edge[1:][moved][crossing]


def _walk(starts: Ints, ends: Ints) -> tuple[Ints, Ints, Ints]:
    """Every step along edges `[e, 2]`: x, y and the edge, each `[m]`."""
    which = np.arange(len(starts))
    sides = np.abs(ends - starts)
    axis = (sides[:, 1] > sides[:, 0]).astype(np.int64)  # [e], the longer one
    # From the lower end on the longer axis, so that an edge has the same steps whichever way it is walked.
    flip = starts[which, axis] > ends[which, axis]
    low, high = np.where(flip[:, None], ends, starts), np.where(flip[:, None], starts, ends)
    steps = sides[which, axis]
    slope = (high - low)[which, 1 - axis] / np.maximum(steps, 1)

    edge = np.repeat(which, steps + 1)  # [m]
    t = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - steps - 1, steps + 1)
    longer = t + low[which, axis][edge]
    shorter = (low[which, 1 - axis][edge] + slope[edge] * t + 0.5).astype(np.int64)
    steep = axis[edge] == 1
    return np.where(steep, shorter, longer), np.where(steep, longer, shorter), edge


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
    if len(polygons) > MOST_POLYGONS:
        raise ValueError(f"{len(polygons):,} polygons of one thing, expected at most {MOST_POLYGONS:,}")
    # Half a picture outside is more than any annotator's slip; every step of an edge is walked, and takes memory.
    for polygon in polygons:
        x, y = polygon[::2], polygon[1::2]
        if min(*x, *y) < -max(size_wh) / 2 or max(x) > 1.5 * width or max(y) > 1.5 * height:
            raise ValueError("a polygon with a corner far outside the picture")
        corners = np.array(polygon, np.float64).reshape(-1, 2)
        length = np.abs(np.concatenate([corners[1:], corners[:1]]) - corners).max(axis=1).sum()
        if length > MOST_ROUNDS * (width + height):
            raise ValueError(f"a polygon whose edges are {length:.3g} pixels long")
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

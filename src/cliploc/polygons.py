"""Draws COCO's outlines of things (polygons, or run lengths for crowds) as masks, with exactly COCO's pixels.

COCO's own rule for the border decides which pixels a polygon holds: the polygon's edges are walked in steps of a fifth
of a pixel; where the walk crosses the centre line of a column of pixels, the mask switches from there down. Tests
compare with pycocotools.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

STEPS = 5  # along a pixel's side
MOST_POLYGONS = 1_000  # of one thing; each is drawn on a whole picture
MOST_ROUNDS = 200  # length of a polygon's edges, in half perimeters of the picture: every step is held in memory
Mask = npt.NDArray[np.bool_]
# x0, y0, x1, y1 … of a polygon; or ("runs", counts) of a crowd, column by column, first of pixels outside.
Outline = tuple[float, ...] | tuple[str, tuple[int, ...]]


def draw(outline: Outline, hw: tuple[int, int]) -> Mask:
    """The pixels `[H, W]` inside an outline.

    Example:
        >>> draw((1.0, 0.0, 3.0, 0.0, 3.0, 2.0, 1.0, 2.0), (3, 4)).astype(int).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    height, width = hw
    if outline and outline[0] == "runs":
        counts = np.array(outline[1], np.int64)
        inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)[: height * width]
        inside = np.pad(inside, (0, height * width - len(inside)))
        return np.asarray(inside.reshape(width, height).T)
    times = np.bincount(switches(outline, hw), minlength=height * width + 1)[: height * width]
    return np.asarray((times.cumsum() % 2 == 1).reshape(width, height).T)


def steps(outline: Outline) -> int:
    """The number of steps along a polygon's edges, which is what it costs to draw it."""
    corners = np.array(outline, np.float64).reshape(-1, 2)
    return int(STEPS * np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum()) + len(corners)


def switches(outline: Outline, hw: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Where a polygon's mask switches between outside and inside: places in the row of all pixels, column by column.

    Example:
        >>> switches((1.0, 0.0, 3.0, 0.0, 3.0, 2.0, 1.0, 2.0), (3, 4)).tolist()
        [3, 6, 8, 5]
    """
    height, width = hw
    corners = np.array(outline, np.float64).reshape(-1, 2)  # [k, (x, y)]
    x, y = _walk((STEPS * corners + 0.5).astype(np.int64))  # [m], in steps
    moved = x[1:] != x[:-1]
    column = (np.minimum(x[1:], x[:-1])[moved] + 0.5) / STEPS - 0.5
    row = (np.minimum(y[1:], y[:-1])[moved] + 0.5) / STEPS - 0.5
    crossing = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)  # a column's centre line
    at = column[crossing].astype(np.int64) * height + np.ceil(row[crossing].clip(0, height)).astype(np.int64)
    return np.asarray(at)


def _walk(corners: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every step along the closed polygon's edges: x and y, each `[m]`."""
    xs, ys = [], []
    for (x0, y0), (x1, y1) in zip(corners.tolist(), np.roll(corners, -1, axis=0).tolist(), strict=True):
        dx, dy = abs(x1 - x0), abs(y1 - y0)
        steps = max(dx, dy)
        along = np.arange(steps + 1)
        # From the lower end on the longer axis, so that an edge has the same steps whichever way it is walked.
        flip = (x0 > x1) if dx >= dy else (y0 > y1)
        (ax, ay), (bx, by) = ((x1, y1), (x0, y0)) if flip else ((x0, y0), (x1, y1))
        t = along[::-1] if flip else along
        if dx >= dy:
            slope = (by - ay) / steps if steps else 0.0
            xs.append(t + ax)
            ys.append((ay + slope * t + 0.5).astype(np.int64))
        else:
            slope = (bx - ax) / steps
            xs.append((ax + slope * t + 0.5).astype(np.int64))
            ys.append(t + ay)
    return np.concatenate(xs), np.concatenate(ys)


def outlines_of(segmentation: object, size_wh: tuple[int, int]) -> tuple[Outline, ...]:
    """The outlines of a COCO annotation's `segmentation` in a picture of this size.

    Raises:
        ValueError: run lengths that are compressed or do not fill the picture, corners far outside it, or something
            else.
    """
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
        length = np.abs(np.roll(corners, -1, axis=0) - corners).max(axis=1).sum()
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
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e9 for one in polygon):
        raise ValueError("a polygon with a corner that is not a number, or too large")
    return tuple(map(float, polygon))

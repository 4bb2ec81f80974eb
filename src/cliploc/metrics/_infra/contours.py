"""Boxes of contours at every threshold of a map of 256 levels, as WSOL metrics need them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.metrics._infra.regions import IntArray, Regions, compiled, regions_of_peaks

Levels = npt.NDArray[np.uint8]
OUTWARD: IntArray = np.array([-1, -1, 1, 1])  # converts sides −x0, −y0, x1, y1 to corners and back


@dataclass(frozen=True)
class ContourBoxes:
    """One map's boxes x, y, x + w, y + h at every cut c, pixels above c; 0, 0, 0, 0 where nothing is hot."""

    largest: IntArray  # [k, 4], for each cut the box of the contour that encloses the largest area
    every: IntArray  # [n, 4], the boxes of all contours, outer and inner, cut by cut
    cut: IntArray  # [n], the cut of each of these boxes, ascending; every cut has at least one


def contour_boxes(levels: Levels, *, heat: npt.NDArray[np.floating] | None = None) -> ContourBoxes:
    """cv2's contour boxes (RETR_TREE) of uint8 levels at all thresholds; `heat`, unrounded, saves time."""
    if levels.dtype != np.uint8 or levels.ndim != 2 or not levels.size:
        raise ValueError(f"expected a uint8 map [H, W], got {levels.dtype} {list(levels.shape)}")
    highest = int(levels.max())
    # A frame of zeros joins the cold regions at the edge into one, which is then not a hole.
    framed = np.pad(levels, 1)
    outside, holes = _all_regions(framed, heat)
    largest = _largest_boxes(framed, highest, outside, holes)
    if outside is not None and holes is not None:
        return _ordered(largest, outside, holes, highest)
    outer = _regions(framed, 8)
    inner = [boxes[boxes[:, 0] > 0] + (-1, -1, 1, 1) for boxes in _regions(255 - framed, 4)]  # without the frame's
    parts: list[IntArray] = []
    for cut in range(highest + 1):
        boxes = np.concatenate([outer[cut + 1], inner[255 - cut]]) - 1
        parts.append(boxes if len(boxes) else np.zeros((1, 4), np.int64))
    return ContourBoxes(largest, np.concatenate(parts), np.arange(highest + 1).repeat([len(part) for part in parts]))


def _all_regions(framed: Levels, heat: npt.NDArray[np.floating] | None) -> tuple[Regions | None, Regions | None]:
    """The hot regions at all levels, and the holes; None where they are found faster level by level."""
    if walk := compiled():
        return walk(framed)
    if heat is None:
        return None, None
    outside = regions_of_peaks(framed, np.pad(heat, 1, constant_values=-np.inf), 8)
    if outside is None:
        return None, None
    return outside, regions_of_peaks(255 - framed, np.pad(-heat, 1, constant_values=np.inf), 4, holes=True)


def _ordered(largest: IntArray, outside: Regions, holes: Regions, highest: int) -> ContourBoxes:
    """The boxes, cut by cut. Pixels above a cut's level are hot, the others cold."""
    # Both parts ascend: a hot region of level t is there at cut t − 1, a hole of level t at cut 255 − t.
    nothing: IntArray = np.array([[-1, -1, 1, 1]])  # the last cut leaves nothing
    inner = holes.level >= 255 - highest
    parts = [
        (outside.level[::-1] - 1, outside.sides[::-1]),
        (255 - holes.level[inner], holes.sides[inner] + 1),  # with the pixels around the hole
        (np.array([highest]), nothing),
    ]
    counts = np.stack([np.bincount(cut, minlength=highest + 1) for cut, _ in parts])  # [3, cuts]
    starts = np.cumsum(counts.T).reshape(-1, len(parts)).T - counts
    boxes: IntArray = np.empty((counts.sum(), 4), np.int64)
    for (cut, sides), count, start in zip(parts, counts, starts, strict=True):
        boxes[np.arange(len(cut)) + (start - np.cumsum(count) + count)[cut]] = sides
    boxes *= OUTWARD
    boxes -= 1
    return ContourBoxes(largest, boxes, np.arange(highest + 1).repeat(counts.sum(axis=0)))


def one_thread() -> None:
    """Makes OpenCV use one thread in this process, for workers that are as many as the cores."""
    cv2.setNumThreads(1)


def _largest_boxes(framed: Levels, highest: int, outside: Regions | None, holes: Regions | None) -> IntArray:
    boxes = np.zeros((highest + 1, 4), np.int64)
    present = np.bincount(framed.ravel(), minlength=256) > 0
    known = _clearly_largest(outside, holes, boxes) if outside and highest else np.zeros(highest + 1, np.bool_)
    for cut in range(highest):
        if known[cut]:
            continue
        if not present[cut]:  # the mask is the same as at the cut before
            boxes[cut] = boxes[cut - 1]
            continue
        hot = cv2.threshold(framed, cut, 1, cv2.THRESH_BINARY)[1]
        contours = cv2.findContours(hot, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        x, y, w, h = cv2.boundingRect(_largest(contours))
        boxes[cut] = x - 1, y - 1, x - 1 + w, y - 1 + h
    return boxes


def _clearly_largest(outside: Regions, holes: Regions | None, boxes: IntArray) -> npt.NDArray[np.bool_]:
    """Sets the boxes of cuts where one region's area, holes excluded, exceeds what any other can have."""
    level, sides, corners = outside.level, outside.sides, outside.corners
    most = 2 * (sides[:, 2] + sides[:, 0] - 1) * (sides[:, 3] + sides[:, 1] - 1)
    if holes is not None:
        around = 2 * (holes.sides[:, 2] + holes.sides[:, 0] + 1) * (holes.sides[:, 3] + holes.sides[:, 1] + 1)
        in_holes = np.bincount(256 - holes.level, around, 257).astype(np.int64)  # by the hot regions' level: cut + 1
        most = np.minimum(most, corners + in_holes[level])
    starts = np.flatnonzero(np.append(True, level[1:] != level[:-1]))  # of each level
    counts = np.diff(starts, append=len(level))
    largest = np.maximum.reduceat(corners, starts)
    candidates = np.flatnonzero(corners == largest.repeat(counts))
    first = candidates[np.searchsorted(candidates, starts)]  # of each level, a region that encloses most
    most[first] = -1
    clear = largest > np.maximum.reduceat(most, starts)
    cut = level[first][clear] - 1
    boxes[cut] = sides[first][clear] * OUTWARD - 1
    known = np.zeros(len(boxes), np.bool_)
    known[cut] = True
    return known


def _largest(contours: Sequence[Any]) -> Any:
    """The same as `max(contours, key=cv2.contourArea)`, faster; the first where several are largest."""
    wide = [contour for contour in contours if len(contour) > 2]  # one or two points enclose nothing; in noise, most do
    largest = max(wide, key=cv2.contourArea, default=contours[0])
    return largest if cv2.contourArea(largest) > 0 else contours[0]


def _regions(levels: Levels, connectivity: int) -> list[IntArray]:
    """Rectangles `[n, 4]` of the regions of at least level t, t = 0 … 256, from the top down by few extremes."""
    kind = cv2.CV_16U if levels.size < 2**16 else cv2.CV_32S  # the smaller is faster
    order = np.argsort(levels, axis=None, kind="stable")  # pixels, level by level
    starts = np.searchsorted(levels.ravel()[order], np.arange(257))
    y, x = np.divmod(order, levels.shape[1])
    pixels = np.stack([-x, -y, x + 1, y + 1])  # [4, pixels]: each side of a union is the greatest of its parts'
    found: list[IntArray] = [np.zeros((0, 4), np.int64)] * 257
    sides, places = pixels[:, :0], order[:0]  # of the regions above: [4, n], and a pixel of each [n]
    for t in range(255, 0, -1):
        new = slice(starts[t], starts[t + 1])
        if new.start == new.stop:
            found[t] = found[t + 1]
            continue
        mask = cv2.threshold(levels, t - 1, 1, cv2.THRESH_BINARY)[1]
        count, labels = cv2.connectedComponents(mask, connectivity=connectivity, ltype=kind)  # 0: below t
        parts, sides_of_parts = np.append(places, order[new]), np.append(sides, pixels[:, new], axis=1)
        region = labels.ravel()[parts].astype(np.intp) - 1  # [parts]
        sides, places = np.full((4, count - 1), -levels.size, np.int64), np.empty(count - 1, order.dtype)
        for side, side_of_parts in zip(sides, sides_of_parts, strict=True):
            np.maximum.at(side, region, side_of_parts)
        places[region] = parts
        found[t] = sides.T * np.array([-1, -1, 1, 1])
    return found

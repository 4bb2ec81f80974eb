"""Boxes of contours at every threshold of a map of 256 levels, as WSOL metrics need them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.boxes.parts import climb, neighbours, root_of

Levels = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
LEVELS = 256
MAX_PEAKS = 250  # a noisy map has thousands, and labelling it at each threshold is faster
NOTHING = -(2**31)  # side of a basin that has no pixel at a level
OUTWARD: IntArray = np.array([-1, -1, 1, 1])  # converts sides −x0, −y0, x1, y1 to corners and back


@dataclass(frozen=True)
class Regions:
    """The connected regions of the pixels of at least level t, for all t ≥ 1."""

    level: IntArray  # [n], t of each region, the highest first
    sides: IntArray  # [n, 4], −x0, −y0, x1, y1 of its bounding rectangle, right and bottom edge exclusive
    # [n], twice the area of the polygon through the centres of its outermost pixels, without holes: the area that
    # OpenCV gives a contour. Counted from 2×2 squares of pixels.
    corners: IntArray


NONE = Regions(np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros(0, np.int64))


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
    # The hot regions at all levels, and the holes; None where they are found faster level by level.
    outside: Regions | None = None
    holes: Regions | None = None
    if heat is not None and (outside := regions_of_peaks(framed, np.pad(heat, 1, constant_values=-np.inf), 8)):
        holes = regions_of_peaks(255 - framed, np.pad(-heat, 1, constant_values=np.inf), 4, holes=True)
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


def _ordered(largest: IntArray, outside: Regions, holes: Regions, highest: int) -> ContourBoxes:
    """The boxes, cut by cut. Pixels above a cut's level are hot, the others cold."""
    nothing: IntArray = np.array([[-1, -1, 1, 1]])  # the last cut leaves nothing
    # A hot region of level t is there at cut t − 1, a hole of level t at cut 255 − t, with the pixels around it.
    cut = np.concatenate([outside.level - 1, 255 - holes.level, [highest]]).astype(np.int16)
    sides = np.concatenate([outside.sides, holes.sides + 1, nothing])
    order = np.argsort(cut, kind="stable")
    return ContourBoxes(largest, sides[order] * OUTWARD - 1, cut[order].astype(np.int64))


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
        x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))
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


def _regions(levels: Levels, connectivity: int) -> list[IntArray]:
    """Rectangles `[n, 4]` of the regions of at least level t, t = 0 … 256."""
    regions: list[IntArray] = [np.zeros((0, 4), np.int64)] * 257
    for t in range(255, 0, -1):
        mask = cv2.threshold(levels, t - 1, 1, cv2.THRESH_BINARY)[1]
        x, y, w, h = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)[2][1:, :4].T  # 0: below t
        regions[t] = np.stack([x, y, x + w, y + h], axis=1).astype(np.int64)
    return regions


# ------------------------------------------------------------------------ the regions of a map at all of its thresholds
# Those of a smooth map are found at once, from its few peaks. From every pixel a path climbs to a peak; the pixels that
# reach a peak are its basin. A basin's pixels above a threshold are connected, as each of them climbs to the peak
# without going below the threshold. Two basins are connected above a threshold if a pair of neighbours, one in each
# basin, is above it; the highest such pair is their saddle. So the regions at all thresholds follow from the basins'
# sides at each level and from the saddles, as in a merge tree. The map is not labelled at any threshold.
def regions_of_peaks(
    levels: Levels, heat: npt.NDArray[np.floating], connectivity: Literal[4, 8], *, holes: bool = False
) -> Regions | None:
    """All regions at all levels of a map of few peaks; `holes`: without areas and the first pixel's."""
    height, width = levels.shape
    peak = climb(heat, connectivity)  # [N] the pixel at which each pixel's path ends
    flat = levels.ravel()
    warm = np.flatnonzero(flat)
    tops = warm[peak[warm] == warm]
    if len(tops) > MAX_PEAKS:
        return None
    left_out = peak[0] if holes else -1
    if holes:
        warm = warm[peak[warm] != left_out]
    if not len(warm):
        return NONE
    number = np.zeros(len(flat), np.int16)
    number[tops] = np.arange(len(tops), dtype=np.int16)
    basin = number[peak]  # [N]

    # Each basin's sides at each level, and the area it encloses: [basins, 256, 4 or 5].
    keys = basin[warm].astype(np.uint16) * np.uint16(LEVELS) + flat[warm]
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    starts = np.flatnonzero(np.append(True, sorted_keys[1:] != sorted_keys[:-1]))
    y, x = np.divmod(warm[order].astype(np.int32), np.int32(width))
    tables = np.full((len(tops), LEVELS, 4), NOTHING, np.int32)
    by_key = tables.reshape(-1, 4)
    for side, values in enumerate((-x, -y, x + 1, y + 1)):
        by_key[sorted_keys[starts], side] = np.maximum.reduceat(values, starts)
    tables = np.maximum.accumulate(tables[:, ::-1], axis=1)[:, ::-1]  # of at least t
    basins = basin.reshape(height, width)
    areas = np.zeros((len(tops), LEVELS), np.int64) if holes else _squares(levels, basins, len(tops))
    saddles = _saddles(levels, basins, connectivity, len(tops))
    return _merged(tables, areas, flat[tops].astype(np.int64), saddles, int(number[left_out]) if holes else -1)


def _saddles(
    levels: Levels, basin: npt.NDArray[np.int16], connectivity: Literal[4, 8], count: int
) -> list[tuple[int, int, int]]:
    """The saddles, each with its level and two basins, from the highest down; none of level 0."""
    highest = np.zeros(count * count, np.uint8)
    for one, other in neighbours(connectivity):
        border = np.flatnonzero(basin[one] != basin[other])
        a, b = basin[one].ravel()[border].astype(np.int64), basin[other].ravel()[border].astype(np.int64)
        level = np.minimum(levels[one].ravel()[border], levels[other].ravel()[border])
        np.maximum.at(highest, np.minimum(a, b) * count + np.maximum(a, b), level)
    pairs = np.flatnonzero(highest)
    pairs = pairs[np.argsort(-highest[pairs].astype(np.int16), kind="stable")]
    return [(int(highest[pair]), *divmod(int(pair), count)) for pair in pairs]


def _squares(levels: Levels, basin: npt.NDArray[np.int16], count: int) -> IntArray:
    """Twice the area of each basin's 2×2 squares at each level `[basins, 256]`: third-highest and lowest pixel."""
    a, b, c, d = levels[:-1, :-1], levels[:-1, 1:], levels[1:, :-1], levels[1:, 1:]
    low_of_ab, low_of_cd = np.minimum(a, b), np.minimum(c, d)
    lowest = np.minimum(low_of_ab, low_of_cd)
    third = np.minimum(np.maximum(low_of_ab, low_of_cd), np.minimum(np.maximum(a, b), np.maximum(c, d)))
    # All pixels at least as high as the third are in the same region: take the basin of the highest.
    highest = np.maximum(np.maximum(a, b), np.maximum(c, d))
    corner = [basin[:-1, :-1], basin[:-1, 1:], basin[1:, :-1], basin[1:, 1:]]
    owner = np.where(a == highest, corner[0], np.where(b == highest, corner[1], corner[2]))
    key = np.where(d == highest, corner[3], owner).astype(np.int64) * LEVELS
    sums = np.bincount((key + third).ravel(), minlength=count * LEVELS)
    sums += np.bincount((key + lowest).ravel(), minlength=count * LEVELS)
    return sums.reshape(count, LEVELS)[:, ::-1].cumsum(axis=1)[:, ::-1]  # of at least t


def _merged(
    tables: npt.NDArray[np.int32],
    areas: IntArray,
    tops: IntArray,
    saddles: Sequence[tuple[int, int, int]],
    left_out: int,
) -> Regions:
    """Regions from the top down: each lives from the level of its peak to the saddle at which it joins another."""
    roots = list(range(len(tables)))
    regions: list[tuple[IntArray, npt.NDArray[np.int32], IntArray]] = []  # levels, sides and areas, region by region

    def emit(part: int, below: int) -> None:
        if part != left_out:
            alive = slice(below + 1, int(tops[part]) + 1)
            regions.append((np.arange(alive.start, alive.stop), tables[part, alive].copy(), areas[part, alive].copy()))

    for height, *pair in saddles:
        one, other = (root_of(roots, part) for part in pair)
        if one == other:
            continue
        emit(one, height)
        emit(other, height)
        if other == left_out:  # a region that joins the left-out one is left out too
            one, other = other, one
        roots[other] = one
        if one != left_out:
            np.maximum(tables[one], tables[other], out=tables[one])
            areas[one] += areas[other]
        tops[one] = height
    for part, root in enumerate(roots):
        if part == root:
            emit(part, 0)
    if not regions:
        return NONE
    level, sides, corners = (np.concatenate(table) for table in zip(*regions, strict=True))
    order = np.argsort(-level, kind="stable")
    return Regions(level[order], sides[order].astype(np.int64), corners[order])

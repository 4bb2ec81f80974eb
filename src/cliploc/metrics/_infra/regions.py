"""The regions of a map at all of its thresholds. Those of a smooth map are found at once, from its few peaks.

From every pixel a path climbs to a peak; the pixels that reach a peak are its basin. A basin's pixels above a threshold
are connected, as each of them climbs to the peak without going below the threshold. Two basins are connected above a
threshold if a pair of neighbours, one in each basin, is above it; the highest such pair is their saddle. So the regions
at all thresholds follow from the basins' sides at each level and from the saddles, as in a merge tree. The map is not
labelled at any threshold.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cliploc import _imports
from cliploc.boxes.parts import climb, neighbours

IntArray = npt.NDArray[np.int64]
LEVELS = 256
MAX_PEAKS = 250  # a noisy map has thousands, and labelling it at each threshold is faster
NOTHING = -(2**31)  # side of a basin that has no pixel at a level


@dataclass(frozen=True)
class Regions:
    """The connected regions of the pixels of at least level t, for all t ≥ 1."""

    level: IntArray  # [n], t of each region, the highest first
    sides: IntArray  # [n, 4], −x0, −y0, x1, y1 of its bounding rectangle, right and bottom edge exclusive
    # [n], twice the area of the polygon through the centres of its outermost pixels, without holes: the area that
    # OpenCV gives a contour. Counted from 2×2 squares of pixels.
    corners: IntArray


NONE = Regions(np.zeros(0, np.int64), np.zeros((0, 4), np.int64), np.zeros(0, np.int64))


def compiled() -> Callable[..., tuple[Regions, Regions]] | None:
    """The function that finds regions in compiled code; None where numba (the extra `fast`) is not installed."""
    module = _imports.compiled("cliploc.metrics._infra.compiled")
    return None if module is None else module.regions


def regions_of_peaks(
    levels: npt.NDArray[np.uint8],
    heat: npt.NDArray[np.floating],
    connectivity: Literal[4, 8],
    *,
    holes: bool = False,
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
    merged = _Merging(tables, areas, flat[tops], int(number[left_out]) if holes else None)
    for height_of, one, other in _saddles(levels, basins, connectivity, len(tops)):
        merged.join(height_of, one, other)
    return merged.finish()


def _saddles(
    levels: npt.NDArray[np.uint8], basin: npt.NDArray[np.int16], connectivity: Literal[4, 8], count: int
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


def _squares(levels: npt.NDArray[np.uint8], basin: npt.NDArray[np.int16], count: int) -> IntArray:
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


class _Merging:
    """Regions from the top down: each lives from the level of its peak to the saddle at which it joins another."""

    def __init__(
        self, tables: npt.NDArray[np.int32], areas: IntArray, tops: npt.NDArray[np.uint8], left_out: int | None
    ) -> None:
        self._left_out = left_out
        self._tables, self._areas, self._tops = tables, areas, tops.astype(np.int64)
        self._roots = list(range(len(tables)))
        self._level: list[IntArray] = []
        self._sides: list[npt.NDArray[np.int32]] = []
        self._corners: list[IntArray] = []

    def join(self, height: int, one: int, other: int) -> None:
        one, other = self._root(one), self._root(other)
        if one == other:
            return
        for part in (one, other):
            self._emit(part, height)
        if other == self._left_out:  # a region that joins the left-out one is left out too
            one, other = other, one
        self._roots[other] = one
        if one != self._left_out:
            np.maximum(self._tables[one], self._tables[other], out=self._tables[one])
            self._areas[one] += self._areas[other]
        self._tops[one] = height

    def finish(self) -> Regions:
        for part, root in enumerate(self._roots):
            if part == root:
                self._emit(part, 0)
        if not self._level:
            return NONE
        level = np.concatenate(self._level)
        order = np.argsort(-level, kind="stable")
        return Regions(
            level[order], np.concatenate(self._sides)[order].astype(np.int64), np.concatenate(self._corners)[order]
        )

    def _emit(self, part: int, below: int) -> None:
        if part == self._left_out:
            return
        alive = slice(below + 1, int(self._tops[part]) + 1)
        self._level.append(np.arange(alive.start, alive.stop))
        self._sides.append(self._tables[part, alive].copy())
        self._corners.append(self._areas[part, alive].copy())

    def _root(self, part: int) -> int:
        while self._roots[part] != part:
            self._roots[part] = self._roots[self._roots[part]]
            part = self._roots[part]
        return part

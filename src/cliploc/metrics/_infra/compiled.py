"""Finds the regions of any map at all of its thresholds by one walk over its pixels, compiled by numba.

Pixels join in the order of their levels, the highest first; each joins the regions of its neighbours that are there
already (union–find, Tarjan 1975). After each level the regions that live are written down. numba is the extra `fast`;
without it `basins.py` and OpenCV find the same regions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from cliploc.metrics._infra.regions import LEVELS, Regions

FIRST_ROOM = 4096  # regions; more room is made when it is used up


def regions(
    levels: npt.NDArray[np.uint8], connectivity: int, *, corners: bool = False, without_first: bool = False
) -> Regions:
    """Finds all regions of a map `[H, W]` at all of its levels; arguments and result as in `basins.regions`."""
    return Regions(*_walk(levels, connectivity == 8, corners, without_first))


@njit(nogil=True, cache=True)
def _root(parent, pixel):
    while parent[pixel] != pixel:
        parent[pixel] = parent[parent[pixel]]
        pixel = parent[pixel]
    return pixel


@njit(nogil=True, cache=True)
def _from_the_highest(flat):
    """The pixels, level by level, and where each level starts: 255 − level is its place."""
    starts = np.zeros(LEVELS + 1, np.int64)
    for pixel in range(flat.size):
        starts[LEVELS - flat[pixel]] += 1
    for place in range(1, LEVELS + 1):
        starts[place] += starts[place - 1]
    free, order = starts.copy(), np.empty(flat.size, np.int32)
    for pixel in range(flat.size):
        place = LEVELS - 1 - flat[pixel]
        order[free[place]] = pixel
        free[place] += 1
    return order, starts


@njit(nogil=True, cache=True)
def _more_room(rows, used):
    larger = np.empty((2 * len(rows), rows.shape[1]), rows.dtype)
    larger[:used] = rows[:used]
    return larger


@njit(nogil=True, cache=True)
def _walk(levels, diagonal, corners, without_first):
    height, width = levels.shape
    order, starts = _from_the_highest(levels.ravel())
    parent = np.full(levels.size, -1, np.int32)  # −1: not there yet
    sides = np.empty((levels.size, 4), np.int32)  # −x0, −y0, x1, y1 of a root's region
    area = np.zeros(levels.size, np.int32)  # twice what a root's 2×2 squares enclose
    filled = np.zeros((height + 1, width + 1), np.uint8)  # pixels there of each 2×2 square
    alive, count = np.empty(levels.size, np.int32), 0  # roots
    found, used = np.empty((FIRST_ROOM, 6), np.int64), 0  # level, four sides, area
    for place in range(LEVELS - 1):
        for number in range(starts[place], starts[place + 1]):
            pixel = order[number]
            y, x = pixel // width, pixel % width
            parent[pixel] = pixel
            sides[pixel] = (-x, -y, x + 1, y + 1)
            root = pixel
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if (dy == 0 and dx == 0) or (dy != 0 and dx != 0 and not diagonal):
                        continue
                    if not (0 <= y + dy < height and 0 <= x + dx < width):
                        continue
                    if parent[pixel + dy * width + dx] < 0:
                        continue
                    other = _root(parent, pixel + dy * width + dx)
                    if other == root:
                        continue
                    if root == pixel:  # the region that is listed stays the root, not the new pixel
                        root, other = other, root
                    parent[other] = root
                    area[root] += area[other]
                    for side in range(4):
                        sides[root, side] = max(sides[root, side], sides[other, side])
            if root == pixel:
                alive[count] = pixel
                count += 1
            if corners:  # a square of three pixels encloses 1/2, of four 1
                for dy in range(2):
                    for dx in range(2):
                        filled[y + dy, x + dx] += 1
                        if filled[y + dy, x + dx] >= 3:
                            area[root] += 1
        left_out = _root(parent, 0) if without_first and parent[0] >= 0 else -1
        while used + count > len(found):
            found = _more_room(found, used)
        kept = 0
        for number in range(count):
            root = alive[number]
            if parent[root] != root:
                continue
            alive[kept] = root
            kept += 1
            if root != left_out:
                found[used, 0], found[used, 1:5], found[used, 5] = LEVELS - 1 - place, sides[root], area[root]
                used += 1
        count = kept
    return found[:used, 0].copy(), found[:used, 1:5].copy(), found[:used, 5].copy()

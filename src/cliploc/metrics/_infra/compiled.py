"""Finds the regions of any map at all of its thresholds in a few passes over its pixels, compiled by numba.

1. Each row is cut into runs that rise to a top and then fall. A run's top is linked to the run of a neighbour that is
   as high or higher, and so on to a peak. The runs linked to a peak are its basin. Above any threshold, the pixels of a
   basin are connected.
2. Pairs of neighbours in two basins, with the lower one's level, tell where the basins join. Most pixels have none.
3. From the highest level down, basins appear, join (union–find, Tarjan 1975) and grow by the pixels of the level. After
   each level the current regions are recorded.

numba is the extra `fast`; without it `contours.py` and OpenCV find the same regions.
"""

import numpy as np
import numpy.typing as npt
from numba import njit

from cliploc.metrics._infra.contours import LEVELS, Regions

FIRST_ROOM = 4096  # regions; more room is made when it is used up
OUTSIDE = 0  # the basin of the frame: nothing where pixels are hot, and not a hole where they are cold


def regions(framed: npt.NDArray[np.uint8]) -> tuple[Regions, Regions]:
    """The hot regions (8 neighbours) of a map framed by zeros, at all levels, and holes (4), not the frame's."""
    width = framed.shape[1]
    return Regions(*_walk(framed.ravel(), width, True)), Regions(*_walk((255 - framed).ravel(), width, False))


@njit(nogil=True, cache=True)
def _root(parent, node):
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@njit(nogil=True, cache=True)
def _runs(flat):
    """Where each run starts, with what lies before the first rise, and first and last pixel of its top `[n, 2]`."""
    starts, tops, count = np.zeros(flat.size + 1, np.int32), np.zeros((flat.size, 2), np.int32), 1
    falling = True
    for pixel in range(1, flat.size):
        if flat[pixel] > flat[pixel - 1]:
            if falling:
                starts[count] = pixel
                count += 1
                falling = False
            tops[count - 1, 0] = tops[count - 1, 1] = pixel
        elif flat[pixel] < flat[pixel - 1]:
            falling = True
        elif not falling:
            tops[count - 1, 1] = pixel
    starts[count] = flat.size
    return starts[: count + 1], tops[:count]


@njit(nogil=True, cache=True)
def _basins(flat, width, starts, tops, diagonal):
    """The number of each pixel's basin, and each basin's highest level."""
    runs = len(tops)
    of_pixel = np.empty(flat.size, np.int32)
    for run in range(runs):
        of_pixel[starts[run] : starts[run + 1]] = run
    reach = 1 if diagonal else 0
    parent = np.arange(runs).astype(np.int32)
    for run in range(1, runs):
        best = tops[run, 1]
        for row in (-width, width):
            for other in range(tops[run, 0] + row - reach, min(tops[run, 1] + row + reach + 1, flat.size)):
                # Of equally high ones the last, so that there is no cycle.
                if flat[other] > flat[best] or (flat[other] == flat[best] and other > best):
                    best = other
        parent[run] = of_pixel[best]
    number, highest, count = np.empty(runs, np.int32), np.empty(runs, np.uint8), 0
    for run in range(runs):
        if parent[run] == run:
            number[run], highest[count] = count, flat[tops[run, 0]]
            count += 1
    for run in range(runs):
        of_pixel[starts[run] : starts[run + 1]] = number[_root(parent, run)]
    return of_pixel, highest[:count]


@njit(nogil=True, cache=True)
def _borders(flat, basin, width, starts, diagonal):
    """Neighbours in two basins `[n, 2]`, highest level first, where levels start; needless diagonals left out."""
    size = flat.size
    last = size - width - 1
    flags = np.zeros((size + 7) // 8 * 8, np.uint8)  # 1: with the pixel below; 2, 4: the diagonals below
    for pixel in range(last):
        flags[pixel] = basin[pixel] != basin[pixel + width]
    if diagonal:
        for pixel in range(last):
            a, b, c, d = flat[pixel], flat[pixel + 1], flat[pixel + width], flat[pixel + width + 1]
            flags[pixel] |= (np.uint8(min(a, d) > max(b, c)) << 1) | (np.uint8(min(b, c) > max(a, d)) << 2)
    pairs, levels, count = np.empty((4 * size, 2), np.int32), np.empty(4 * size, np.uint8), 0
    for run in range(1, len(starts) - 1):
        a, b, level = basin[starts[run] - 1], basin[starts[run]], flat[starts[run] - 1]
        if a != b and level > 0:
            pairs[count, 0], pairs[count, 1], levels[count] = a, b, level
            count += 1
    eight = flags.view(np.uint64)
    for word in range(eight.size):
        if eight[word] == 0:
            continue
        for pixel in range(8 * word, 8 * word + 8):
            for bit in range(3):
                if not (flags[pixel] >> bit) & 1:
                    continue
                here = pixel + (1 if bit == 2 else 0)
                other = pixel + width + (1 if bit == 1 else 0)
                a, b, level = basin[here], basin[other], min(flat[here], flat[other])
                if a != b and level > 0:
                    pairs[count, 0], pairs[count, 1], levels[count] = a, b, level
                    count += 1
    return _by_level(pairs[:count], levels[:count])


@njit(nogil=True, cache=True)
def _extents(flat, width, basin, highest, starts, tops):
    """Each growth of a basin's box, from the highest level down: 4 · basin + side, value; where levels start."""
    basins, runs = len(highest), len(tops)
    box = np.empty((basins, 4), np.int32)  # x0, y0, x1, y1
    box[:, 0] = box[:, 1] = flat.size
    box[:, 2] = box[:, 3] = 0
    for run in range(1, runs):
        root, y = basin[starts[run]], starts[run] // width
        x0, x1 = starts[run] - y * width, min(starts[run + 1] - y * width, width)
        box[root, 0], box[root, 1] = min(box[root, 0], x0), min(box[root, 1], y)
        box[root, 2], box[root, 3] = max(box[root, 2], x1), max(box[root, 3], y + 1)
    columns, rows = np.zeros(basins, np.int64), np.zeros(basins, np.int64)  # where each basin's first one is kept
    size = 0
    for root in range(1, basins):
        columns[root], rows[root] = size - box[root, 0], size + box[root, 2] - box[root, 0] - box[root, 1]
        size += box[root, 2] - box[root, 0] + box[root, 3] - box[root, 1]
    peak = np.zeros(size, np.uint8)
    for run in range(1, runs):
        root, y = basin[starts[run]], starts[run] // width
        if root == OUTSIDE:
            continue
        peak[rows[root] + y] = max(peak[rows[root] + y], flat[tops[run, 0]])
        end = min(starts[run + 1], (y + 1) * width)
        across = peak[columns[root] + starts[run] - y * width :]
        along = flat[starts[run] : end]
        for x in range(len(along)):
            across[x] = max(across[x], along[x])
    grown, levels, count = np.empty((2 * size, 2), np.int32), np.empty(2 * size, np.uint8), 0
    for root in range(1, basins):
        for side in range(4):
            place = columns[root] if side % 2 == 0 else rows[root]
            low, high = box[root, side % 2], box[root, 2 + side % 2]
            best = 0
            for step in range(high - low):
                at = low + step if side < 2 else high - 1 - step
                if peak[place + at] > best:
                    best = peak[place + at]
                    grown[count, 0], grown[count, 1] = 4 * root + side, -at if side < 2 else at + 1
                    levels[count] = best
                    count += 1
                if best == highest[root]:
                    break
    return _by_level(grown[:count], levels[:count])


@njit(nogil=True, cache=True)
def _squares(flat, width, basin, basins):
    """Each growth of a basin's area by 2×2 squares, in halves: at the third-highest pixel and at the lowest."""
    last = flat.size - width - 1
    third, lowest, highest = np.empty(last, np.uint8), np.empty(last, np.uint8), np.empty(last, np.uint8)
    for pixel in range(last):
        a, b, c, d = flat[pixel], flat[pixel + 1], flat[pixel + width], flat[pixel + width + 1]
        third[pixel] = min(max(min(a, b), min(c, d)), min(max(a, b), max(c, d)))
        lowest[pixel] = min(min(a, b), min(c, d))
        highest[pixel] = max(max(a, b), max(c, d))
    # With few basins a table counts for all levels. With the many of noise it would be too large: a row for each half.
    few = basins * LEVELS <= 2 * flat.size
    table = np.zeros(basins * LEVELS if few else 0, np.int32)
    rows, levels, count = np.empty((2 * last, 2), np.int32), np.empty(2 * last, np.uint8), 0
    for pixel in range(last):
        owner = pixel
        for other in (pixel + 1, pixel + width, pixel + width + 1):
            owner = other if flat[other] == highest[pixel] else owner
        part = basin[owner]
        if few:
            table[part * LEVELS + third[pixel]] += 1
            table[part * LEVELS + lowest[pixel]] += 1
        elif third[pixel] > 0:
            rows[count, 0], rows[count, 1], levels[count] = part, 1, third[pixel]
            rows[count + 1, 0], rows[count + 1, 1], levels[count + 1] = part, 1, lowest[pixel]
            count += 2
    for cell in range(len(table)):
        if table[cell] > 0:
            rows[count, 0], rows[count, 1], levels[count] = cell // LEVELS, table[cell], cell % LEVELS
            count += 1
    return _by_level(rows[:count], levels[:count])


@njit(nogil=True, cache=True)
def _by_level(rows, levels):
    """The rows from the highest level down, and where each level starts; the index of a level is 255 − level."""
    starts = np.zeros(LEVELS + 1, np.int64)
    for part in range(len(levels)):
        starts[LEVELS - levels[part]] += 1
    for place in range(1, LEVELS + 1):
        starts[place] += starts[place - 1]
    free, ordered = starts.copy(), np.empty_like(rows)
    for part in range(len(levels)):
        place = LEVELS - 1 - levels[part]
        ordered[free[place], 0], ordered[free[place], 1] = rows[part, 0], rows[part, 1]
        free[place] += 1
    return ordered, starts


@njit(nogil=True, cache=True)
def _more_room(rows, used):
    larger = np.empty((2 * len(rows), rows.shape[1]), rows.dtype)
    larger[:used] = rows[:used]
    return larger


@njit(nogil=True, cache=True)
def _walk(flat, width, diagonal):
    starts, tops = _runs(flat)
    basin, highest = _basins(flat, width, starts, tops, diagonal)
    basins = len(highest)
    born, born_starts = _by_level(np.arange(2 * basins).astype(np.int32).reshape(basins, 2), highest)
    pairs, pair_starts = _borders(flat, basin, width, starts, diagonal)
    grown, grown_starts = _extents(flat, width, basin, highest, starts, tops)
    added, added_starts = born[:0], np.zeros(LEVELS + 1, np.int64)
    if diagonal:  # areas are of hot regions alone
        added, added_starts = _squares(flat, width, basin, basins)
    parent = np.arange(basins).astype(np.int32)
    sides = np.full((basins, 4), -flat.size, np.int32)  # −x0, −y0, x1, y1 of a root's region
    area = np.zeros(basins, np.int32)  # twice what a root's 2×2 squares enclose
    alive, count = np.empty(basins, np.int32), 0  # roots
    regions, used = np.empty((FIRST_ROOM, 6), np.int32), 0  # level, four sides, area
    for place in range(LEVELS - 1):
        for number in range(born_starts[place], born_starts[place + 1]):
            if born[number, 0] // 2 != OUTSIDE:
                alive[count] = born[number, 0] // 2
                count += 1
        for number in range(pair_starts[place], pair_starts[place + 1]):
            one, other = _root(parent, pairs[number, 0]), _root(parent, pairs[number, 1])
            if one == other:
                continue
            if other == OUTSIDE:
                one, other = other, one
            parent[other] = one
            area[one] += area[other]
            for side in range(4):
                sides[one, side] = max(sides[one, side], sides[other, side])
        for number in range(grown_starts[place], grown_starts[place + 1]):
            root, side = _root(parent, grown[number, 0] // 4), grown[number, 0] % 4
            sides[root, side] = max(sides[root, side], grown[number, 1])
        for number in range(added_starts[place], added_starts[place + 1]):
            area[_root(parent, added[number, 0])] += added[number, 1]
        while used + count > len(regions):
            regions = _more_room(regions, used)
        kept = 0
        for number in range(count):
            root = alive[number]
            if parent[root] != root:
                continue
            alive[kept] = root
            kept += 1
            regions[used, 0], regions[used, 5] = LEVELS - 1 - place, area[root]
            for side in range(4):
                regions[used, 1 + side] = sides[root, side]
            used += 1
        count = kept
    columns = regions[:used].astype(np.int64)
    return columns[:, 0].copy(), columns[:, 1:5].copy(), columns[:, 5].copy()

"""Divides a region at its peaks."""

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.values import FloatArray

MAX_SUMMITS = 64  # for more, testing the paths between them costs more than finding the basins


@dataclass(frozen=True)
class Parts:
    """The parts of one region, highest peak first."""

    xyxy: npt.NDArray[np.int64]  # [n, 4], exclusive right and bottom edge
    area: npt.NDArray[np.int64]  # [n], pixels
    peak: FloatArray  # [n], the largest value inside
    labels: npt.NDArray[np.int64]  # [h, w], 1 … n inside the parts, 0 outside the region


def divide(
    heat: FloatArray, inside: npt.NDArray[np.bool_], low: float, least: float, connectivity: Literal[4, 8]
) -> Parts | None:
    """Divides a region of `[h, w]` at peaks of prominence ≥ `least` (Chazal et al. 2013); None: fewer than two."""
    if not may_divide(heat, inside, low, least, connectivity):
        return None
    heat = np.where(inside, heat, np.float32(0))
    peak_of = climb(heat, connectivity)
    on = np.flatnonzero(inside)
    tops = on[peak_of[on] == on]
    number = np.full(heat.size, -1, np.int32)
    number[tops] = np.arange(len(tops))
    basin = np.where(inside.ravel(), number[peak_of], np.int32(-1))
    tallest = heat.ravel()[tops]
    roots = _join(_saddles(heat, basin.reshape(heat.shape), connectivity, tallest), tallest, least)
    remaining = np.unique(roots)
    if len(remaining) < 2:
        return None
    remaining = remaining[np.argsort(-tallest[remaining], kind="stable")]
    part_of_root = np.zeros(len(tops) + 1, np.int64)  # the last is for pixels outside, whose basin is -1
    part_of_root[remaining] = np.arange(1, len(remaining) + 1)
    part_of_basin = np.append(part_of_root[roots], 0)
    labels = part_of_basin[basin].reshape(heat.shape)
    xyxy, area = _extents(labels, on)
    return Parts(xyxy, area, tallest[remaining], labels)


def may_divide(
    heat: FloatArray, inside: npt.NDArray[np.bool_] | None, low: float, least: float, connectivity: Literal[4, 8]
) -> bool:
    """Whether a second peak may be prominent. Mostly none is, and this test is much faster than finding the basins.

    Without a region (`inside`), in everything above `low`: if none may be, no region above it, or above any higher
    `low`, has one.
    """
    kernel = np.ones((3, 3), np.uint8) if connectivity == 8 else cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    tall = heat - np.float32(low) >= np.float32(least)
    if inside is not None:
        tall &= inside
    # Where it is tall enough for a summit, mostly a small part of the region, and a pixel around it.
    x0, y0, width, height = cv2.boundingRect(tall.view(np.uint8))
    if not width:
        return False
    here = slice(max(y0 - 1, 0), y0 + height + 1), slice(max(x0 - 1, 0), x0 + width + 1)
    crop = heat[here]
    y, x = np.divmod(np.flatnonzero((crop >= cv2.dilate(crop, kernel)) & tall[here]), crop.shape[1])
    y, x = y + here[0].start, x + here[1].start
    if len(y) < 2 or len(y) > MAX_SUMMITS or connectivity == 4:
        return len(y) > 1
    summit = heat[y, x].astype(np.float64)
    order = np.argsort(-summit, kind="stable")
    y, x, summit = y[order], x[order], summit[order]
    # If a straight line to a higher summit does not go down far enough, the summit is not prominent.
    left = np.arange(1, len(y))
    for to in range(len(y) - 1):
        tested = left[left > to]
        if not len(tested):
            break
        dy, dx = y[to] - y[tested], x[to] - x[tested]
        steps = int(max(np.abs(dy).max(), np.abs(dx).max()))  # 1 or more
        share = np.arange(steps + 1) / steps
        rows, columns = (np.rint(away[:, None] * share).astype(np.intp) for away in (dy, dx))
        lowest = heat[rows + y[tested, None], columns + x[tested, None]].min(axis=1)  # [tested]
        left = np.concatenate([left[left <= to], tested[summit[tested] - lowest >= least]])
        if not len(left):
            return False
    return True


def outer_outlines(hot: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.int32]]:
    """The outer outline `[n, 1, 2]` of each 8-connected region; a fifth of the time of cv2's components."""
    lines, nested = cv2.findContours(hot, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not lines:
        return []
    return [np.asarray(line, np.int32) for line, (*_, parent) in zip(lines, nested[0], strict=True) if parent < 0]


def _saddles(
    heat: FloatArray, basin: npt.NDArray[np.int32], connectivity: Literal[4, 8], tallest: FloatArray
) -> list[tuple[float, int, int]]:
    """The saddles, each with its level and two basins, from the highest down; of equals, the highest peaks' first."""
    count, levels, pairs = len(tallest), [], []
    for one, other in neighbours(connectivity):
        differ = basin[one] != basin[other]
        y, x = np.divmod(np.flatnonzero(differ), differ.shape[1])
        a, b = basin[one][y, x], basin[other][y, x]
        both = (a >= 0) & (b >= 0)
        y, x, a, b = y[both], x[both], a[both].astype(np.int64), b[both].astype(np.int64)
        levels.append(np.minimum(heat[one][y, x], heat[other][y, x]))
        pairs.append(np.minimum(a, b) * count + np.maximum(a, b))
    level, pair = np.concatenate(levels), np.concatenate(pairs)
    order = np.argsort(-level, kind="stable")
    _, first = np.unique(pair[order], return_index=True)  # of each pair of basins the highest
    level, pair = level[order[first]], pair[order[first]]
    a, b = np.divmod(pair, count)
    heights = tallest[a], tallest[b]
    order = np.lexsort((-np.minimum(*heights), -np.maximum(*heights), -level))
    return list(zip(level[order].tolist(), a[order].tolist(), b[order].tolist(), strict=True))


def _join(saddles: list[tuple[float, int, int]], tallest: FloatArray, least: float) -> npt.NDArray[np.int64]:
    """For each basin the basin of the peak that its part belongs to."""
    roots = list(range(len(tallest)))
    heights, needed = tallest.tolist(), float(np.float32(least))
    for level, one, other in saddles:
        a, b = root_of(roots, one), root_of(roots, other)
        higher, lower = (a, b) if heights[a] >= heights[b] else (b, a)
        if a != b and (heights[lower] - level < needed or heights[lower] == level):  # a flat top is one peak
            roots[lower] = higher
    return np.array([root_of(roots, basin) for basin in range(len(roots))])


def root_of(roots: list[int], part: int) -> int:
    """The part that a part was joined to last; shortens the way to it."""
    while roots[part] != part:
        roots[part] = roots[roots[part]]
        part = roots[part]
    return part


def _extents(
    labels: npt.NDArray[np.int64], on: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Bounding rectangle and number of pixels of each label except 0."""
    of = labels.ravel()[on]
    order = np.argsort(of, kind="stable")
    starts = np.searchsorted(of[order], np.arange(1, of.max() + 1))
    y, x = np.divmod(on[order], labels.shape[1])
    low, high = (
        np.stack([end.reduceat(x, starts), end.reduceat(y, starts)], axis=1) for end in (np.minimum, np.maximum)
    )
    return np.concatenate([low, high + 1], axis=1).astype(np.int64), np.bincount(of)[1:].astype(np.int64)


# ---------------------------------------------------------------------------------------------------------- basins
def climb(heat: npt.NDArray[np.floating], connectivity: Literal[4, 8]) -> npt.NDArray[np.intp]:
    """Each pixel's peak `[H * W]`, by steps to the highest neighbour; the last of equal neighbours, so paths end."""
    height, width = heat.shape
    padded = np.pad(heat, 1, constant_values=-np.inf)
    kind = np.int16 if width < 2**14 else np.int32  # small numbers are compared and chosen faster
    if connectivity == 8:  # the best of each row's three, then of the three rows' best
        left, middle, right = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
        best = np.maximum(np.maximum(left, middle), right)
        is_right = right == best
        step = is_right.astype(kind) + (is_right | (middle == best)) - kind(1)
        above, here, below = (best[dy : dy + height] for dy in range(3))
        best = np.maximum(np.maximum(above, here), below)
        higher = np.where(here == best, step[1:-1], step[:-2] - kind(width))
        step = np.where(below == best, step[2:] + kind(width), higher)
    else:
        inner, row = padded[:, 1:-1], padded[1:-1]
        above, left, right, below = inner[:-2], row[:, :-2], row[:, 2:], inner[2:]
        best = np.maximum(np.maximum(np.maximum(above, left), np.maximum(right, below)), heat)
        step = np.where(left == best, kind(-1), kind(-width))
        for value, by in ((heat, 0), (right, 1), (below, width)):
            step = np.where(value == best, kind(by), step)
    target: npt.NDArray[np.intp] = np.arange(heat.size) + step.ravel()
    for _ in range(4):
        target = target[target]
    while True:
        further: npt.NDArray[np.intp] = target[target]
        if np.array_equal(further, target):
            return target
        target = further


def neighbours(connectivity: Literal[4, 8]) -> list[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """Pairs of views of a map: equal positions in the two views are neighbours, each pair of neighbours once."""
    everything, front, back = slice(None), slice(None, -1), slice(1, None)
    pairs = [((everything, front), (everything, back)), ((front, everything), (back, everything))]
    if connectivity == 8:
        pairs += [((front, front), (back, back)), ((front, back), (back, front))]
    return pairs

"""The basins of a map: from every pixel a path climbs to a peak; the pixels that reach a peak are its basin."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt


def climb(heat: npt.NDArray[np.floating], connectivity: Literal[4, 8]) -> npt.NDArray[np.intp]:
    """Each pixel's peak, reached by steps to the highest neighbour; the last of equal neighbours, so paths end.

    Args:
        heat: `[H, W]`, finite.

    Returns:
        `[H * W]`, for each pixel the index of its peak, both in row-major order.

    Example:
        >>> climb(np.array([[1.0, 3.0, 2.0, 5.0]]), 8).tolist()
        [1, 1, 3, 3]
    """
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
        step = np.where(
            below == best,
            step[2:] + kind(width),
            np.where(here == best, step[1:-1], step[:-2] - kind(width)),
        )
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
    """Pairs of views of a map: equal positions in the two views are neighbours, each pair of neighbours once.

    Example:
        >>> row = np.array([[1, 2, 3]])
        >>> [(row[one].tolist(), row[other].tolist()) for one, other in neighbours(4)][0]
        ([[1, 2]], [[2, 3]])
    """
    whole, front, back = slice(None), slice(None, -1), slice(1, None)
    pairs = [((whole, front), (whole, back)), ((front, whole), (back, whole))]
    if connectivity == 8:
        pairs += [((front, front), (back, back)), ((front, back), (back, front))]
    return pairs

"""Boxes round contours at every threshold of a map of 256 levels, as WSOL metrics want them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ContourBoxes:
    """The boxes of one map at every cut c = 0 … its maximum; what is above c is hot.

    Boxes are bounding rectangles x, y, x + w, y + h in map pixels; 0, 0, 0, 0 where a cut leaves nothing hot.

    Attributes:
        largest: `[k, 4]`, for each cut the box of the contour that encloses most.
        every: `[n, 4]`, the boxes of all contours, outer and inner, cut by cut.
        cut: `[n]`, the cut of each of those, ascending; every cut has at least one.
    """

    largest: IntArray
    every: IntArray
    cut: IntArray


def contour_boxes(levels: Levels, *, largest: bool = True, every: bool = True) -> ContourBoxes:
    """Finds the boxes of a map's contours at all of its thresholds, each threshold once.

    The same boxes as `cv2.findContours(mask, RETR_TREE, CHAIN_APPROX_SIMPLE)` gives, without making all the contours:
    an outer contour's rectangle is that of an 8-connected hot region, an inner contour's is that of a 4-connected hole
    and the pixels round it; and no inner contour encloses more than the outer one it lies in.

    Args:
        levels: `[H, W]` uint8.
        largest: whether to find the largest contours; else `largest` is `[0, 4]`.
        every: whether to find all contours; else `every` and `cut` are empty.

    Example:
        >>> levels = np.zeros((6, 6), np.uint8)
        >>> levels[1:3, 2:5] = 1
        >>> contour_boxes(levels).largest.tolist()
        [[2, 1, 5, 3], [0, 0, 0, 0]]
    """
    if levels.dtype != np.uint8 or levels.ndim != 2 or not levels.size:
        raise ValueError(f"expected a uint8 map [H, W], got {levels.dtype} {list(levels.shape)}")
    highest = int(levels.max())
    # A frame of zeros joins all that is cold at the edge into one region, which is then no hole.
    framed = cv2.copyMakeBorder(levels, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    present = np.bincount(levels.ravel(), minlength=256) > 0
    big = np.zeros((highest + 1, 4), np.int64)
    parts: list[IntArray] = []
    for cut in range(highest + 1):
        if cut == 0 or present[cut]:  # else the mask is that of the cut before
            hot = cv2.threshold(framed, cut, 1, cv2.THRESH_BINARY)[1].astype(np.uint8, copy=False)
            box = _largest(hot) if largest else big[cut]
            boxes = _every(hot) if every else big[:0]
        big[cut] = box
        parts.append(boxes)
    counts = [len(part) for part in parts]
    return ContourBoxes(big if largest else big[:0], np.concatenate(parts), np.arange(highest + 1).repeat(counts))


def one_thread() -> None:
    """Makes OpenCV use one thread in this process: for workers of which there are as many as cores."""
    cv2.setNumThreads(1)


def _largest(hot: Levels) -> IntArray:
    contours = cv2.findContours(hot, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
    if not contours:
        return np.zeros(4, np.int64)
    x, y, w, h = cv2.boundingRect(max(contours, key=cv2.contourArea))  # of equals, the first
    return np.array([x - 1, y - 1, x - 1 + w, y - 1 + h])


def _every(hot: Levels) -> IntArray:
    outer = _rectangles(hot, 8)
    holes = _rectangles(1 - hot, 4)
    holes = holes[(holes[:, :2] > 0).all(axis=1)] + (-1, -1, 1, 1)  # the frame's region is no hole
    boxes: IntArray = np.concatenate([outer, holes]) - 1
    return boxes if len(boxes) else np.zeros((1, 4), np.int64)


def _rectangles(mask: Levels, connectivity: int) -> IntArray:
    """The bounding rectangles `[n, 4]` of the regions of a mask."""
    kind = cv2.CV_16U if mask.size < 2**16 else cv2.CV_32S  # the smaller is faster
    stats = cv2.connectedComponentsWithStats(mask, connectivity=connectivity, ltype=kind)[2][1:].astype(np.int64)
    return np.concatenate([stats[:, :2], stats[:, :2] + stats[:, 2:4]], axis=1)

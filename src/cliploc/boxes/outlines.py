"""Outlines of masks as polygons."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.values import FloatArray


@dataclass(frozen=True)
class Ring:
    """A closed outline."""

    points: FloatArray  # [k, 2] float32, x and y; the last point joins the first
    hole: bool  # whether it goes round a hole, not round a piece


def outlines(mask: npt.ArrayLike, along: str = "edges") -> list[Ring]:
    """The outlines of a mask's pieces and holes, in pixels where the first pixel covers 0 to 1.

    Args:
        mask: `[H, W]`. Pixels that touch by a corner are one piece.
        along: "edges" of the pixels, as COCO's polygons are read: the area inside is that of the mask, except that
            corners of the outline that point inwards are cut by half a pixel. "centres" of the outermost pixels: for
            tools that fill a polygon with its border (`cv2.fillPoly`, after rounding down).

    Returns:
        The largest piece first, and each piece before its holes.

    Example:
        >>> outlines([[0, 1, 1], [0, 1, 1]])[0].points.tolist()
        [[1.0, 0.0], [1.0, 2.0], [3.0, 2.0], [3.0, 0.0]]
    """
    inside = np.asarray(mask, bool)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return []
    top, left = int(rows[0]), int(columns[0])
    grid = inside[top : rows[-1] + 1, left : columns[-1] + 1].astype(np.uint8)
    scale, shift = 1.0, 0.5
    if along == "edges":
        # Every second row and column is a line between pixels, so that an outline runs along these lines.
        fine = np.zeros((2 * grid.shape[0] + 1, 2 * grid.shape[1] + 1), np.uint8)
        for dy in range(3):
            for dx in range(3):
                fine[dy : dy + 2 * grid.shape[0] : 2, dx : dx + 2 * grid.shape[1] : 2] |= grid
        grid, scale, shift = fine, 0.5, 0.0
    found, nested = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corner = np.array([left, top], np.float32) + np.float32(shift)
    rings = [one[:, 0].astype(np.float32) * np.float32(scale) + corner for one in found]
    pieces = [i for i in range(len(rings)) if nested[0][i][3] < 0]
    pieces.sort(key=lambda i: (-cv2.contourArea(found[i]), -len(found[i]), *found[i][0, 0].tolist()))
    ordered: list[Ring] = []
    for piece in pieces:
        ordered.append(Ring(rings[piece], hole=False))
        ordered += [Ring(rings[i], hole=True) for i in range(len(rings)) if nested[0][i][3] == piece]
    return ordered

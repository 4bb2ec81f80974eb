"""Outlines of masks as polygons: as rings, or joined to a single polygon."""

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
    """Outlines of a mask `[H, W]`, largest piece first, then its holes; along "edges" (COCO) or "centres" (cv2)."""
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
    contours, nested = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corner = np.array([left, top], np.float32) + np.float32(shift)
    rings = [contour[:, 0].astype(np.float32) * np.float32(scale) + corner for contour in contours]
    pieces = [i for i in range(len(rings)) if nested[0][i][3] < 0]
    pieces.sort(key=lambda i: (-cv2.contourArea(contours[i]), -len(contours[i]), *contours[i][0, 0].tolist()))
    ordered: list[Ring] = []
    for piece in pieces:
        ordered.append(Ring(rings[piece], hole=False))
        ordered += [Ring(rings[i], hole=True) for i in range(len(rings)) if nested[0][i][3] == piece]
    return ordered


def merged(mask: npt.ArrayLike, along: str = "centres", tolerance: float = 0.0) -> FloatArray:
    """One even-odd polygon `[k, 2]`: rings, from which it may be so many pixels away, joined by lines of no width."""
    path = np.zeros((0, 2), np.float32)
    for ring in (_simpler(ring.points, tolerance) for ring in outlines(mask, along)):
        if len(path):  # from the nearest point round the ring and back
            apart = ((path[:, None] - ring[None]) ** 2).sum(axis=2)  # [k, m]
            at, start = np.unravel_index(int(apart.argmin()), apart.shape)
            path = np.concatenate([path[: at + 1], ring[start:], ring[: start + 1], path[at:]])
        else:
            path = ring
    return path


def _simpler(points: FloatArray, tolerance: float) -> FloatArray:
    fewer = np.asarray(cv2.approxPolyDP(points[:, None], tolerance, closed=True)[:, 0], np.float32)
    return fewer if tolerance and len(fewer) >= 3 else points

"""Outlines of masks as polygons: as rings, or joined to as few single polygons as possible."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.values import FloatArray

LEAST_IOU = 0.99  # of the polygons with the mask
Points = npt.NDArray[np.int64]
Pixel = tuple[int, int]  # x and y


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


# --------------------------------------------------------------------------------------------- as single polygons
def joined(mask: npt.ArrayLike, least_iou: float = LEAST_IOU) -> list[FloatArray]:
    """As few polygons `[k, 2]` as possible for even-odd readers with borders; holes and near pieces joined by lines."""
    inside = np.asarray(mask, bool)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return []
    corner = np.array([columns[0], rows[0]])  # [x, y]
    inside = np.pad(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1)
    pieces = np.asarray(cv2.connectedComponents(inside.astype(np.uint8), connectivity=8)[1], np.int32)
    lines = _Lines(inside)
    for one, other in _through_holes(inside):
        lines.tie(one, other)
    room = inside.sum() * (1 / least_iou - 1)
    group = np.arange(pieces.max() + 1)
    for a, b, one, other, gap in _between(inside, pieces):
        if gap <= room and group[a] != group[b]:
            room -= gap
            group[group == group[a]] = group[b]
            lines.tie(one, other)
    return [(path - 0.5 + corner).astype(np.float32) for path in lines.walks()]


@dataclass(eq=False)
class _Ring:
    """A closed outline along pixels."""

    points: list[Pixel]  # x and y of each pixel on the way
    first: dict[Pixel, int]  # pixel → where it comes first


class _Lines:
    """The outlines of a mask and the lines between them."""

    def __init__(self, inside: npt.NDArray[np.bool_]) -> None:
        contours, nested = cv2.findContours(inside.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        self._rings: list[_Ring] = []
        self._through: dict[Pixel, list[_Ring]] = {}
        pieces_first = sorted(range(len(contours)), key=lambda i: nested[0][i][3] >= 0)  # before those of holes
        for i in pieces_first:
            ring = _Ring([(x, y) for x, y in contours[i][:, 0].tolist()], {})
            for place, point in enumerate(ring.points):
                ring.first.setdefault(point, place)
            self._rings.append(ring)
            for pixel in ring.first:
                self._through.setdefault(pixel, []).append(ring)
        self._tied: dict[Pixel, list[Pixel]] = {pixel: [pixel] for pixel in self._through}

    def tie(self, one: Pixel, other: Pixel) -> None:
        """Adds a line between two pixels of outlines."""
        self._tied[one].append(other)
        self._tied[other].append(one)

    def walks(self) -> Iterator[Points]:
        """A closed path `[k, 2]` round each group of joined outlines, reduced to corners and ends of lines."""
        seen: set[_Ring] = set()
        for start in self._rings:
            if start in seen:
                continue
            seen.add(start)
            pixels: list[Pixel] = []
            todo = [self._round(start, start.points[0], seen)]
            while todo:  # no recursion: thousands of outlines can be joined
                here = next(todo[-1], None)
                if here is None:
                    todo.pop()
                elif isinstance(here, tuple):
                    pixels.append(here)
                else:
                    todo.append(here)
            path = np.array(pixels[: max(1, len(pixels) - 1)])  # the last point is the first
            step = path - np.roll(path, 1, axis=0)
            onwards = np.roll(step, -1, axis=0)
            straight = (step == onwards).all(axis=1) & (np.abs(step).max(axis=1) <= 1)
            yield path[~straight] if len(path) > 2 else path

    def _round(self, ring: _Ring, entry: Pixel, seen: set[_Ring]) -> Iterator[Pixel | Iterator[Any]]:
        """Once round a ring, from a pixel to the same; where other rings are joined, the path goes round them first."""
        start, count = ring.first[entry], len(ring.points)
        for i in range(count):
            place = (start + i) % count
            here = ring.points[place]
            yield here
            if ring.first[here] != place:
                continue
            for tied in self._tied[here]:
                for other in self._through[tied]:
                    if other not in seen:
                        seen.add(other)
                        yield self._round(other, tied, seen)
                        if tied != here or len(other.points) > 1:
                            yield here
        if count > 1:
            yield entry


def _through_holes(inside: npt.NDArray[np.bool_]) -> list[tuple[Pixel, Pixel]]:
    """For each hole a line upwards, maybe to a higher hole: the pixel above it, the last before the outside."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((~inside).astype(np.uint8), connectivity=4)
    lines = []
    for hole in range(1, count):
        top = int(stats[hole, cv2.CC_STAT_TOP])
        if top == 0:  # the outside
            continue
        left = int(stats[hole, cv2.CC_STAT_LEFT])
        x = left + int(np.argmax(labels[top, left:] == hole))
        above = top - 1 - int(np.argmin(inside[top - 1 :: -1, x]))  # the first pixel upwards that is outside
        lines.append(((x, top - 1), (x, above + 1)))
    return lines


def _between(inside: npt.NDArray[np.bool_], pieces: npt.NDArray[np.int32]) -> list[tuple[int, int, Pixel, Pixel, int]]:
    """The narrowest gaps between neighbouring pieces, narrowest first: both pieces, their pixels, pixels between."""
    if pieces.max() < 2:
        return []
    _, nearest = cv2.distanceTransformWithLabels(
        (~inside).astype(np.uint8), cv2.DIST_C, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    flat = np.zeros(int(nearest.max()) + 1, np.int64)
    flat[nearest[inside]] = np.flatnonzero(inside)
    at = flat[nearest]  # [H, W] the nearest pixel of the mask
    piece = pieces.ravel()[at]
    pairs = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = slice(0, at.shape[0] - down), slice(max(0, -right), at.shape[1] - max(0, right))
        beside = slice(down, None), slice(max(0, right), at.shape[1] + min(0, right))
        change = piece[here] != piece[beside]
        pairs.append(np.stack([at[here][change], at[beside][change]]))
    one, other = np.concatenate(pairs, axis=1)
    swap = pieces.ravel()[one] > pieces.ravel()[other]
    one, other = np.where(swap, other, one), np.where(swap, one, other)
    a, b = pieces.ravel()[one], pieces.ravel()[other]
    width = inside.shape[1]
    gap = np.maximum(np.abs(one // width - other // width), np.abs(one % width - other % width)) - 1
    order = np.lexsort((gap, b, a))
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(a[order]) != 0) | (np.diff(b[order]) != 0)
    best = order[first]
    best = best[np.argsort(gap[best], kind="stable")]
    return [(int(a[i]), int(b[i]), _xy(int(one[i]), width), _xy(int(other[i]), width), int(gap[i])) for i in best]


def _xy(flat: int, width: int) -> Pixel:
    return flat % width, flat // width

"""Masks at the picture's size, their outlines as polygons, label maps; GrabCut moves edges to those of colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.boxes.components import BoxRule, hot_levels
from cliploc.boxes.score import scored_regions
from cliploc.images.geometry import Frame
from cliploc.methods import as_tensor
from cliploc.options import SAM
from cliploc.values import BoolArray, Boxes, ByteArray, FloatArray

if TYPE_CHECKING:
    from cliploc.localization import Localization

SAME = 0.05  # pixels by which a box may differ from a region's and still count as that region's box
COLOURS = 5  # that GrabCut fits to a thing and to the rest, so that each needs as many pixels


class MaskSource(Protocol):
    """What draws the masks of boxes, instead of the heat."""

    @property
    def id(self) -> str:
        """What tells its masks from those of others."""

    def box_masks(self, found: Localization) -> Iterator[tuple[int, BoolArray]]:
        """The number and the mask `[H, W]` of each box, in any order."""


def mask_source(name: str, device: str) -> MaskSource | None:
    """What draws masks, by its name in the options; None for the heat."""
    if name == "heat":
        return None
    if not name.startswith(SAM):
        return GrabCutMasks()
    from cliploc.towers.sam import SamMasks  # here: few need it

    return SamMasks(name.removeprefix(SAM), device=device)


def box_masks(frame: Frame, maps: FloatArray, boxes: Boxes, rule: BoxRule) -> Iterator[tuple[int, BoolArray]]:
    """Number and mask `[H, W]` of each box, name by name: its region's hot pixels, or all inside without a region."""
    for p in np.unique(boxes.label).tolist():
        mine = np.flatnonzero(boxes.label == p)
        name = _NameMap(frame, maps[p], rule)
        yield from zip(mine.tolist(), name.masks(boxes.xyxy[mine]), strict=True)


def name_mask(frame: Frame, heat: FloatArray, rule: BoxRule) -> BoolArray:
    """The hot pixels `[H, W]` of the picture, of one name's map `[h, w]`, also those that no box bounds."""
    return _NameMap(frame, heat, rule).hot


def label_map(
    frame: Frame, maps: FloatArray, found: BoolArray, rule: BoxRule, mask_of: Callable[[int], BoolArray] | None = None
) -> npt.NDArray[np.uint16]:
    """`[H, W]`: 0, or 1 + the hottest of the found names `[P]` whose mask has the pixel, the first of equal ones."""
    labels = np.zeros(frame.original_hw, np.uint16)
    hottest = np.zeros(frame.original_hw, np.float32)
    for p in np.flatnonzero(found).tolist():
        name = _NameMap(frame, maps[p], rule)
        mask = name.hot if mask_of is None else mask_of(p)
        more = mask & ((name.heat > hottest) | (labels == 0))
        labels[more] = p + 1
        np.copyto(hottest, name.heat, where=more)
    return labels


class GrabCutMasks:
    """GrabCut (Rother et al. 2004) from the heat, sure `margin` above and below the threshold; tools/mask_study.py."""

    def __init__(self, side: int = 240, margin: float = 0.2, rounds: int = 1) -> None:
        self._side, self._margin, self._rounds = side, margin, rounds
        self.id = f"grabcut {side} {margin:g} {rounds}"

    def box_masks(self, found: Localization) -> Iterator[tuple[int, BoolArray]]:
        """The number and the mask `[H, W]` of each box, name by name."""
        found.check_maps()
        pixels = np.asarray(found.image.convert("RGB"))
        height, width = found.frame.original_hw  # of which the picture may be a smaller copy
        shrink = min(1.0, self._side / max(height, width))
        size = max(1, round(width * shrink)), max(1, round(height * shrink))
        small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)  # [h, w, 3]
        for p in np.unique(found.boxes.label).tolist():
            name = _NameMap(found.frame, found.maps[p], found.box_rule)
            heat = np.asarray(cv2.resize(name.heat, size, interpolation=cv2.INTER_AREA), np.float32)
            thing = self._cut(small, heat, float(name.level))
            hot = _shrunk(name.hot, size)
            mine = np.flatnonzero(found.boxes.label == p)
            for index, mask in zip(mine.tolist(), name.masks(found.boxes.xyxy[mine]), strict=True):
                cut = _part_of(thing, _shrunk(mask, size), hot).astype(np.float32)
                finer = cv2.resize(cut, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5
                yield index, finer if finer.any() else mask

    def _cut(self, pixels: ByteArray, heat: FloatArray, level: float) -> BoolArray:
        """The pixels `[h, w]` of a thing in a picture `[h, w, 3]`, by its heat and the level that hot pixels exceed."""
        margin = self._margin * float(heat.max())
        sure = np.where(heat > level, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        sure[heat > level + margin] = cv2.GC_FGD
        sure[heat < level - margin] = cv2.GC_BGD
        hot: BoolArray = heat > level
        if min(hot.sum(), (~hot).sum()) < COLOURS:
            return hot

        def work() -> None:
            nowhere, models = (0, 0, 1, 1), (np.zeros((1, 65)), np.zeros((1, 65)))
            cv2.grabCut(pixels, sure, nowhere, *models, self._rounds, cv2.GC_INIT_WITH_MASK)

        # OpenCV draws the first colours at random, with a generator of each thread: a new one begins alike every time.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(work).result()
        thing: BoolArray = (sure == cv2.GC_FGD) | (sure == cv2.GC_PR_FGD)
        return thing


class ResizedMasks:
    """The masks of a result for a copy of it that has another size."""

    def __init__(self, result: Localization) -> None:
        self._result = result
        self.id = "" if result.mask_source is None else result.mask_source.id

    def box_masks(self, found: Localization) -> Iterator[tuple[int, BoolArray]]:
        """The number and the mask `[H, W]` of each box; the copy has the same boxes."""
        height, width = found.frame.original_hw
        for index, mask in self._result.box_masks():
            yield index, cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT) > 0


def _shrunk(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    """A mask at a smaller width and height: the pixels that it covers in part."""
    return cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0


def _part_of(thing: BoolArray, mask: BoolArray, hot: BoolArray) -> BoolArray:
    """The pieces of a thing that touch a box's mask, as far as it is nearer than the name's other hot pixels."""
    here, others = (
        cv2.distanceTransform((~part).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        for part in (mask, hot & ~mask)
    )
    _, pieces = cv2.connectedComponents((thing & (here <= others)).astype(np.uint8), connectivity=8)
    touched = np.unique(pieces[mask])
    return np.isin(pieces, touched[touched > 0])


class _NameMap:
    """One name's map over the picture: its `heat` `[H, W]`, the `level` that hot pixels exceed, and `hot` `[H, W]`."""

    def __init__(self, frame: Frame, heat: FloatArray, rule: BoxRule) -> None:
        self._frame = frame
        # All regions, as the boxes may have been chosen in any way.
        self._rule = replace(rule, components="all", nms_iou=None, max_boxes=None, min_score=0.0)
        x0, y0, x1, y1 = frame.visible_xyxy
        self._corner, self._visible = (x0, y0), heat[y0:y1, x0:x1]  # boxes are made from this part
        self.heat: FloatArray = frame.map_to_original(as_tensor(heat[None]))[0].numpy()
        level = hot_levels(self._visible[None], rule.threshold)[0] if self._visible.size else np.float32(np.inf)
        self.level = max(level, np.float32(0))
        self.hot: BoolArray = self.heat > self.level

    def masks(self, xyxy: FloatArray) -> Iterator[BoolArray]:
        """The mask of each of the name's boxes `[n, 4]`: hot pixels inside, of its region; all inside if none is."""
        regions, labels = scored_regions(self._visible, self._rule)
        where = self._frame.to_original(regions.xyxy + np.array(self._corner * 2))  # [m, 4]
        region_of = self._over_picture(labels) if len(where) else None
        height, width = self._frame.original_hw
        for box in xyxy.astype(np.float64):
            edges = np.floor(box + 0.5).astype(int)  # pixels whose centres are in the box, at least one
            left, top = edges[:2].clip(0, [width - 1, height - 1])
            right, bottom = edges[2:].clip([left + 1, top + 1], [width, height])
            here = slice(top, bottom), slice(left, right)
            mask = np.zeros((height, width), bool)
            mask[here] = self.hot[here]
            away = np.abs(where - box).max(axis=1)
            if region_of is not None and away.min() <= SAME:
                mask &= region_of == regions.region[away.argmin()]
            if not mask.any():
                mask[here] = True
            yield mask

    def _over_picture(self, labels: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The region `[H, W]` that is nearest to each pixel of the picture."""
        _, nearest = cv2.distanceTransformWithLabels(
            (labels == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
        )
        of_pixel = np.zeros(int(nearest.max()) + 1, np.int32)
        of_pixel[nearest[labels > 0]] = labels[labels > 0]
        frame, sides = self._frame, []
        offsets = np.subtract(frame.offset_xy, self._corner)
        of_sides = zip(frame.original_hw, frame.scale_xy[::-1], offsets[::-1], labels.shape, strict=True)
        for side, scale, offset, length in of_sides:
            sides.append(np.floor((np.arange(side) + 0.5) * scale + offset).astype(np.intp).clip(0, length - 1))
        of_picture: npt.NDArray[np.int32] = of_pixel[nearest[np.ix_(*sides)]]
        return of_picture


# ------------------------------------------------------------------------------------------------------------- outlines
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

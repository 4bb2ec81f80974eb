"""Finds boxes that hold several things: the map splits above the threshold, or a box has other boxes inside."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.values import FloatArray

LEVELS = 12  # number of levels tried between a region's threshold and its peak
PEAK = 0.75  # lowest peak of a part, as a share of the region's; a lower one belongs to the same thing
DEPTH = 0.15  # lowest depth of the valley between parts, as a share of the region's peak
LIKE = 0.25  # smallest area of a part, as a share of the largest part's
SHARE = 0.6  # largest share of the box that its largest part may fill; a single thing fills more
INSIDE = 0.9  # share of a box's area that must lie in another box for it to be inside


def split_region(heat: FloatArray, xyxy: npt.ArrayLike, threshold: float) -> list[tuple[FloatArray, float]]:
    """Splits a region's box, map `[H, W]`, where it divides higher up into like parts → boxes and peaks, or nothing."""
    height, width = heat.shape
    x0, y0 = np.floor(np.asarray(xyxy, np.float64)[:2] + 1e-3).astype(int).clip(0)
    x1, y1 = np.minimum(np.ceil(np.asarray(xyxy, np.float64)[2:] - 1e-3).astype(int), (width, height))
    crop = np.ascontiguousarray(heat[y0:y1, x0:x1], np.float32)
    if min(crop.shape, default=0) < 2:
        return []
    top = float(heat.max())
    low, peak = threshold * top, float(crop.max())
    second = _second_summit(crop, PEAK * peak)
    if second is None:
        return []
    for level in np.linspace(low, peak, LEVELS + 2)[1:-1]:
        if level + DEPTH * peak > second:
            break
        n, labels = cv2.connectedComponents((crop > level).astype(np.uint8), connectivity=8)
        if n < 3:
            continue
        peaks = [float(crop[labels == part].max()) for part in range(1, n)]
        areas = np.bincount(labels.ravel())[1:]
        parts = [
            part
            for part in range(1, n)
            if peaks[part - 1] >= max(PEAK * peak, level + DEPTH * peak) and areas[part - 1] >= LIKE * areas.max()
        ]
        if len(parts) > 1:
            return _nearest(crop, labels, parts, low, top, (int(x0), int(y0)))
    return []


def _second_summit(crop: FloatArray, least: float) -> float | None:
    """The second highest of the summits that reach `least`; None if there is only one, and so at most one part."""
    around = cv2.dilate(crop, np.ones((3, 3), np.uint8))
    n, labels = cv2.connectedComponents(((crop >= around) & (crop >= least)).astype(np.uint8))
    return sorted(float(crop[labels == summit].max()) for summit in range(1, n))[-2] if n > 2 else None


def _nearest(
    crop: FloatArray, labels: npt.NDArray[np.int32], parts: list[int], low: float, top: float, corner: tuple[int, int]
) -> list[tuple[FloatArray, float]]:
    seeds = np.isin(labels, parts)
    _, owner = cv2.distanceTransformWithLabels(
        (~seeds).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    part_of = np.zeros(int(owner.max()) + 1, np.int32)
    part_of[owner[seeds]] = labels[seeds]
    nearest = np.where(crop > low, part_of[owner], 0)
    found: list[tuple[FloatArray, float]] = []
    for part in parts:
        rows, columns = np.nonzero(nearest == part)
        box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
        if (box[2:] - box[:2]).prod() > SHARE * crop.size:
            return []
        found.append((box + np.array([*corner, *corner], np.float32), float(crop[labels == part].max()) / top))
    return sorted(found, key=lambda one: -one[1])


def around_others(xyxy: FloatArray) -> npt.NDArray[np.bool_]:
    """For each of one name's boxes `[n, 4]`, whether it holds at least two smaller ones."""
    boxes = xyxy.astype(np.float64).reshape(-1, 4)
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)  # [n, n]
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)  # [n]
    inside = (shared >= INSIDE * areas[None]) & (areas[None] < 0.5 * areas[:, None])
    several: npt.NDArray[np.bool_] = inside.sum(axis=1) >= 2
    return several

"""The score of a box by its map: the chance that it fits, calibrated on pictures with true boxes.

Where a second look runs (`cliploc.find.second_look`), its chance replaces this score.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.boxes import components
from cliploc.boxes.components import BoxRule, MapBoxes
from cliploc.options import MIN_SCORE
from cliploc.values import BoolArray, FloatArray, Floats, IntArray, Threshold

MOVED = 0.1  # how far τ is moved to see whether a box depends on it
RING = 0.5  # how far the ring round a box goes, as a share of the box's side
PAIRS = 2**20  # of boxes that are compared at once; bounds the memory
# Fitted by tools/score_study.py on the 118 tuning pictures (tools/tuning_boxes.json), with `mini` and `mini-vit` only;
# docs/studies/box-score.md shows how far they hold.
BIAS = -5.58
WEIGHTS: Mapping[str, float] = {"contrast": 1.66, "stability": 2.79, "share": 3.49}


@dataclass(frozen=True)
class Features:
    """What a map shows of n boxes of one name. Nothing here depends on the size of the map or of the box."""

    # [n], (inside − around) / (inside + around) of the map's mean in the box and in a ring round the box. The ring is
    # half a side of the box wide, as far as the map goes; 0 where there is no ring.
    contrast: Floats
    # [n], how little the box changes when the threshold is moved: its IoU with the box that is most like it at τ + 0.1,
    # and the same at τ − 0.1, averaged
    stability: Floats
    share: Floats  # [n], the sum of the map in the box, as a share of that of the box with the greatest sum


def scored_boxes(maps: FloatArray, rule: BoxRule) -> MapBoxes:
    """The boxes of maps `[P, H, W]` with scores, by which `nms_iou`, `max_boxes` and `min_score` choose."""
    each = [scored_regions(heat, rule)[0] for heat in maps]
    return components.joined([replace(boxes, index=boxes.index + p) for p, boxes in enumerate(each)])


def scored_regions(heat: FloatArray, rule: BoxRule) -> tuple[MapBoxes, npt.NDArray[np.int32]]:
    """As `scored_boxes`, of one map `[H, W]`, with the labels `[H, W]` of the regions; see `labelled_boxes`."""
    split_peaks = rule.split_peaks
    if split_peaks < 1:
        top = float(heat.max())
        low = float(components.hot_levels(heat[None], rule.threshold)[0]) - MOVED * top
        # Mostly no region would be divided, neither at the rule's τ nor at τ − `MOVED`, and that is quickly told.
        if not components.may_divide(heat, None, low, split_peaks * top, rule.connectivity):
            split_peaks = 1.0
    every = replace(rule, split_peaks=split_peaks, nms_iou=None, max_boxes=None)  # what follows chooses by score
    boxes, labels = components.labelled_boxes(heat, every)
    if not len(boxes.index):
        return boxes, labels
    score = score_of(features_of(heat, boxes.xyxy, every))
    order = np.argsort(-score, kind="stable")  # of equal scores the higher peak stays first
    if rule.nms_iou is not None:
        order = components.suppress(boxes.xyxy, boxes.index, order, rule.nms_iou)
    order = order[: rule.max_boxes]
    order = order[high_enough(score[order], boxes.index[order], rule.min_score)]
    return MapBoxes(boxes.xyxy[order], score[order], boxes.index[order], boxes.region[order]), labels


def high_enough(score: FloatArray, index: IntArray, min_score: Threshold) -> BoolArray:
    """Which boxes `[n]`, best first within each map, have the minimum score; "auto": a map's first box stays."""
    if min_score == "auto":
        best = np.ones(len(index), bool)
        best[1:] = index[1:] != index[:-1]
        return best | (score >= MIN_SCORE)
    return score >= min_score


def score_of(features: Features) -> FloatArray:
    """`[n]` in 0–1: a logistic model of the features."""
    logit = BIAS + sum(weight * getattr(features, name) for name, weight in WEIGHTS.items())
    score: FloatArray = (1 / (1 + np.exp(-logit))).astype(np.float32)
    return score


def features_of(heat: FloatArray, xyxy: npt.ArrayLike, rule: BoxRule) -> Features:
    """Measures all boxes `[n, 4]` of one name, in pixels of its map `[H, W]`, which is not all zero."""
    boxes = np.rint(np.asarray(xyxy, np.float64)).astype(np.int64).reshape(-1, 4)
    sums: Floats = np.asarray(cv2.integral(np.ascontiguousarray(heat, np.float32)), np.float64)
    height, width = heat.shape
    reach = np.ceil(RING * (boxes[:, 2:] - boxes[:, :2])).astype(np.int64)
    low, high = np.maximum(boxes[:, :2] - reach, 0), np.minimum(boxes[:, 2:] + reach, [width, height])
    wide = np.concatenate([low, high], axis=1).astype(np.int64)
    area, within = _areas(boxes), _sums(sums, boxes)
    ring = _areas(wide) - area
    inside = within / area
    around = np.divide(_sums(sums, wide) - within, ring, out=inside.copy(), where=ring > 0).clip(min=0)
    both = inside + around
    contrast = np.divide(inside - around, both, out=np.zeros_like(both), where=both > 0)
    level, top = float(components.hot_levels(heat[None], rule.threshold)[0]), float(heat.max())
    like = [_likeness(boxes, _regions(heat, level + step * top, rule)) for step in (MOVED, -MOVED)]
    return Features(contrast, (like[0] + like[1]) / 2, within / max(within.max(initial=0), np.finfo(float).tiny))


def _areas(xyxy: IntArray) -> Floats:
    areas: Floats = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1).astype(np.float64)
    return areas


def _sums(sums: Floats, xyxy: IntArray) -> Floats:
    """`[n]`, of the map's values in each box, by its summed-area table."""
    left, top, right, bottom = xyxy.T
    total: Floats = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return total


def _regions(heat: FloatArray, level: float, rule: BoxRule) -> IntArray:
    """`[m, 4]`, all hot regions above a level; by outlines, which are faster, where 8 neighbours and no parts count."""
    if rule.split_peaks < 1 or rule.connectivity == 4:
        share = min(max(level / float(heat.max()), 0.0), 1.0)
        every = replace(rule, threshold=share, components="all", min_area=0.0, nms_iou=None, max_boxes=None)
        return components.boxes_from_maps(heat[None], every).xyxy.astype(np.int64)
    hot = (heat > np.float32(max(level, 0.0))).astype(np.uint8)
    rectangles = [cv2.boundingRect(line) for line in components.outer_outlines(hot)]
    left, top, width, height = np.array(rectangles, np.int64).reshape(-1, 4).T
    return np.stack([left, top, left + width, top + height], axis=1)


def _likeness(boxes: IntArray, others: IntArray) -> Floats:
    """`[n]`, the IoU of each box with the one of the others that is most like it; 0 where there is none."""
    best, rows = np.zeros(len(boxes)), max(1, PAIRS // max(1, len(others)))
    area, other_area = _areas(boxes), _areas(others)
    for start in range(0, len(boxes), rows):
        part = slice(start, start + rows)
        low = np.maximum(boxes[part, None, :2], others[None, :, :2])
        high = np.minimum(boxes[part, None, 2:], others[None, :, 2:])
        shared = (high - low).clip(min=0).prod(axis=2)  # [rows, m]
        best[part] = (shared / (area[part, None] + other_area - shared)).max(axis=1, initial=0)
    return best

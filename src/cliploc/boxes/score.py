"""The score of a box by its map, as a chance that it fits; and why names have no box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.boxes import components
from cliploc.boxes import components as parts
from cliploc.boxes.components import BoxRule, MapBoxes
from cliploc.boxes.sides import moved, readings
from cliploc.images.geometry import Frame
from cliploc.options import MIN_SCORE
from cliploc.values import Boxes, FloatArray, Floats, Threshold, rounded_below

if TYPE_CHECKING:
    from cliploc.localization import Localization

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
        if not parts.may_divide(heat, None, low, split_peaks * top, rule.connectivity):
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


def high_enough(score: FloatArray, index: npt.NDArray[np.int64], min_score: Threshold) -> npt.NDArray[np.bool_]:
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


def _areas(xyxy: npt.NDArray[np.int64]) -> Floats:
    areas: Floats = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1).astype(np.float64)
    return areas


def _sums(sums: Floats, xyxy: npt.NDArray[np.int64]) -> Floats:
    """`[n]`, of the map's values in each box, by its summed-area table."""
    left, top, right, bottom = xyxy.T
    total: Floats = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return total


def _regions(heat: FloatArray, level: float, rule: BoxRule) -> npt.NDArray[np.int64]:
    """`[m, 4]`, all hot regions above a level; by outlines, which are faster, where 8 neighbours and no parts count."""
    if rule.split_peaks < 1 or rule.connectivity == 4:
        share = min(max(level / float(heat.max()), 0.0), 1.0)
        every = replace(rule, threshold=share, components="all", min_area=0.0, nms_iou=None, max_boxes=None)
        return components.boxes_from_maps(heat[None], every).xyxy.astype(np.int64)
    hot = (heat > np.float32(max(level, 0.0))).astype(np.uint8)
    return components.corners_of(parts.outer_outlines(hot))


def _likeness(boxes: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> Floats:
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


NO_SCORE, NO_REGION = "no box scores", "no region of its map reaches"  # how reasons begin that depend on a rule


def boxes_of(
    frame: Frame,
    maps: FloatArray,
    found: npt.NDArray[np.bool_],
    names: tuple[str, ...],
    rule: BoxRule,
    sides: FloatArray | None = None,
) -> Boxes:
    """Maps `[P, H, W]` over a frame's input → the boxes of the names found, in original pixels."""
    indices = np.flatnonzero(found)
    x0, y0, x1, y1 = frame.visible_xyxy  # min_area is a share of the picture, not of its padding
    on_map = scored_boxes(maps[indices, y0:y1, x0:x1], rule)
    label = indices[on_map.index]
    xyxy = frame.to_original(on_map.xyxy + np.array([x0, y0, x0, y0])).astype(np.float32)
    if sides is not None:
        for p in np.unique(label):
            of_name = xyxy[label == p]
            xyxy[label == p] = moved(of_name, sides[p], readings(of_name, maps[p], frame), frame)
    return Boxes(xyxy, on_map.score, label.astype(np.int64), names)


def boxes_and_reasons(
    frame: Frame,
    maps: FloatArray,
    reasons: Sequence[str | None],
    names: tuple[str, ...],
    rule: BoxRule,
    sides: FloatArray | None = None,
) -> tuple[Boxes, tuple[str | None, ...]]:
    """The boxes of the names that are present, and the reasons of the others, now also of names without a box."""
    present = np.array([reason is None for reason in reasons], bool)
    boxes = boxes_of(frame, maps, present, names, rule, sides)
    boxless = present.copy()
    boxless[boxes.label] = False
    if not boxless.any():
        return boxes, tuple(reasons)
    low = boxes_of(frame, maps, boxless, names, replace(rule, min_score=0.0)).label
    of_rule = {True: f"{NO_SCORE} {rule.min_score:g} or more", False: f"{NO_REGION} {rule.min_area:g} of the picture"}
    return boxes, tuple(of_rule[p in low] if boxless[p] else reason for p, reason in enumerate(reasons))


def absence(presence: float, least: float, rule: str | None) -> str:
    """Why a name whose presence is below the least is not found; the rule is that of `Localization.presence_rule`."""
    guess = " (uncalibrated)" if rule == "bank" else ""
    return f"not in the picture: presence {rounded_below(presence, least)}{guess} is below {least:g}"


def _edges(rule: BoxRule) -> BoxRule:
    """A rule without what chooses among its boxes."""
    return replace(rule, max_boxes=None, min_score=0.0)


def by_rule(result: Localization, rule: BoxRule, min_presence: float) -> Localization:
    """The same maps with boxes by another rule and minimum of presence; see `Localization.by`."""
    reopened = [why is not None and why.startswith((NO_SCORE, NO_REGION)) for why in result.reasons]
    reopened = [why or result.verdict(p) == "unsure" for p, why in enumerate(reopened)]
    if result.judged is not None:
        reopened = (result.judged.contrasted | reopened).tolist()
    reasons = [None if again else why for why, again in zip(result.reasons, reopened, strict=True)]
    every, second = rule, result.second_look
    if second is not None:
        every, second = _edges(rule), replace(second, min_presence=min_presence)
        reasons = second.absences(reasons)
    elif result.presence is not None:
        for p, score in enumerate(result.presence.tolist()):
            if reasons[p] is None and score < min_presence:
                reasons[p] = absence(score, min_presence, result.presence_rule)
    boxes, why_not = boxes_and_reasons(result.frame, result.maps, reasons, result.names, every, result.sides)
    same = result.rule is not None and _edges(rule) == _edges(result.rule)
    made = replace(result, threshold=rule.threshold, rule=rule, second_look=second)
    made = made if same else replace(made, calibrated=None)  # chances were fitted to boxes of the other rule
    if second is not None:
        return made.judged_by(second.judge(boxes, why_not, rule))
    return replace(made, boxes=boxes, found=np.array([why is None for why in why_not]), reasons=why_not)

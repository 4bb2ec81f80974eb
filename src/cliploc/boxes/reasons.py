"""The boxes of the names in a picture, and why other names have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cliploc.boxes.components import BoxRule
from cliploc.boxes.score import scored_boxes
from cliploc.boxes.sides import moved, readings
from cliploc.images.geometry import Frame
from cliploc.values import BoolArray, Boxes, FloatArray, rounded_below

if TYPE_CHECKING:
    from cliploc.localization import Localization

NO_SCORE, NO_REGION = "no box scores", "no region of its map reaches"  # how reasons begin that depend on a rule


def boxes_of(
    frame: Frame,
    maps: FloatArray,
    found: BoolArray,
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

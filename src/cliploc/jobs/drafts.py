"""Chooses drafts and unsure boxes; chances follow the folder's own shares of names (Saerens et al. 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cliploc.boxes import high_enough
from cliploc.boxes.components import are_first
from cliploc.calibration import UNSURE, Floats
from cliploc.config import DEFAULTS, MIN_SCORE, OPTIONS, number, share_or_auto
from cliploc.geometry import iou_matrix
from cliploc.runs.labelling import Candidates, Correction

FEWEST = 20  # pictures, from which shares are estimated
SHARES = (0.01, 0.98)  # the least and the greatest; no picture's chance becomes 0 or 1 by the others
MOST_STEPS = 1000  # of expectation maximisation; it mostly ends after some tens
STILL = 1e-6  # a step that changes no share by more is the last


@dataclass(frozen=True)
class DraftRule:
    """What makes a candidate a draft. A run can get another one without computing anything again."""

    thresholds: tuple[float, ...]  # [P] the minimum presence of each name
    min_score: float | Literal["auto"] = MIN_SCORE  # minimum score of a box, as in `cliploc.Options`
    max_boxes: int | None = DEFAULTS.max_boxes  # maximum number of boxes of a name in a picture, best first
    # of two boxes of different names whose IoU is above this, the better one stays; None to keep all
    nms_across: float | None = None
    unsure: bool = False  # whether exports have the unsure boxes, too

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(self.thresholds))
        OPTIONS["max_boxes"].check(self.max_boxes)
        share_or_auto("min_score")(self.min_score)
        number("nms_across", 0, 1, above=True, none="boxes of all names")(self.nms_across)

    def document(self) -> dict[str, Any]:
        """As the store has it."""
        return {**asdict(self), "thresholds": list(self.thresholds)}


@dataclass(frozen=True)
class Prior:
    """How common each name is in the folder."""

    base: float  # the share of pictures with a name that a second look counts on; see `Calibration.base`
    shares: Floats | None = None  # [P] that was estimated; NaN of a name that the model does not know; None: too few

    @classmethod
    def of(cls, presence: Sequence[Floats], base: float) -> Prior:
        """The prior of pictures by the chances `[P]` of their names, in any order."""
        if len(presence) < FEWEST:
            return cls(base)
        chances = np.sort(np.stack(presence), axis=0)  # so that sums do not depend on the order
        shares = np.where(np.isnan(chances[0]), np.nan, base)
        for _ in range(MOST_STEPS):
            before = shares
            shares = cls(base, before).adjusted(chances).mean(axis=0).clip(*SHARES)
            if np.nan_to_num(np.abs(shares - before)).max() <= STILL:
                break
        return cls(base, shares.round(4))

    def adjusted(self, presence: Floats) -> Floats:
        """The chances `[…, P]` of names in pictures of this folder."""
        if self.shares is None:
            return presence
        odds = self.shares / (1 - self.shares) * (1 - self.base) / self.base
        there = presence * odds
        adjusted: Floats = there / (there + 1 - presence)
        return adjusted


@dataclass(frozen=True)
class Chosen:
    """What is shown of a picture's n candidates; they are known by their numbers."""

    drafts: tuple[int, ...]  # best first
    unsure: tuple[int, ...]  # best first
    scores: Floats  # [n] the chances that they are right, in this folder
    presence: Floats  # [P] the same of names; NaN of names that the model does not know
    margin: float  # how far the nearest name is from its threshold; 0 if the picture should be looked at first

    def shown(self, unsure: bool) -> list[int]:
        """The drafts, and `unsure` boxes, best first."""
        return self.ordered([*self.drafts, *self.unsure] if unsure else self.drafts)

    def ordered(self, boxes: Sequence[int]) -> list[int]:
        """Boxes, best first."""
        return sorted(boxes, key=lambda i: (-self.scores[i], i))


def choose(found: Candidates, rule: DraftRule, prior: Prior | None) -> Chosen:
    """Chooses among the candidates of a picture; without a prior, presence and scores are no chances."""
    presence, label = found.presence, found.labels
    score, there = found.scores.copy(), presence
    if prior is not None:
        there = prior.adjusted(presence)
        missing = 1 - presence
        moved = np.divide((there - presence).clip(min=0), missing, out=np.zeros_like(there), where=missing > 0)[label]
        score = (1 - moved) * score + moved * found.fits
    order = np.lexsort((-score, label))  # a stable sort
    if found.taught:  # of a name that is taught only these boxes count
        names, by_teaching = [*found.taught], np.arange(len(label)) >= found.untaught
        there = there.copy()
        there[names] = [*found.taught.values()]
        if prior is not None:  # without a second look a score is conditional
            score[by_teaching] *= there[label[by_teaching]]
        order = order[(by_teaching == np.isin(label, names))[order]]
    low, of = score[order].astype(np.float32), label[order]
    kept = are_first(of, rule.max_boxes)
    thresholds = np.array(rule.thresholds, np.float64)
    draft = kept & (there >= thresholds)[of] & high_enough(low, of, rule.min_score)
    rank = score if prior is not None else score * there[label]
    drafts = order[draft].tolist()
    drafts.sort(key=lambda i: (-rank[i], i))
    if rule.nms_across is not None:  # of two names' boxes that overlap the better one stays
        apart: list[int] = []
        for i in drafts:
            rivals = [other for other in apart if label[other] != label[i]]
            if not rivals or iou_matrix(found.xyxy[[i]], found.xyxy[rivals]).max() <= rule.nms_across:
                apart.append(i)
        drafts = apart
    unsure: list[int] = []
    if prior is not None:
        maybe = np.fmax(presence, there) >= UNSURE  # what is rare in the folder is not hidden for that
        unsure = order[kept & ~draft & maybe[of] & high_enough(low, of, "auto")].tolist()
        unsure.sort(key=lambda i: (-score[i], i))
    first = bool(found.several[drafts].any()) or (bool(unsure) and not drafts)
    nearest = np.abs(there - thresholds)
    margin = 0.0 if first or np.isnan(nearest).all() else float(np.nanmin(nearest))
    return Chosen(tuple(drafts), tuple(unsure), score, there, margin)


def held_drafts(found: Candidates, ids: Sequence[int]) -> Correction:
    """Drafts as the boxes that hold."""
    own = found.take(ids)
    return Correction(own.xyxy.tolist(), own.labels.tolist(), None if own.masks is None else list(own.masks), list(ids))

"""Chooses drafts and unsure boxes, and scores drafts against corrected ones: docs/annotate.md."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import astuple

from cliploc.boxes import high_enough
from cliploc.boxes.components import are_first
from cliploc.find.calibration import UNSURE, logit
from cliploc.images.geometry import iou_matrix
from cliploc.options import DEFAULTS
from cliploc.runs.label_store import Candidates, Correction, Saved
from cliploc.values import Floats

FEWEST = 20  # pictures, from which the only name asked may be taken to be in all of them
SHARES = (0.01, 0.98)  # the least and the greatest of a name; no picture's chance becomes 0 or 1 by the others
SPREAD = 0.5  # standard deviation of shifts before anything is reviewed; chosen on coco_tune
MOST_SHIFT = 30.0


@dataclass(frozen=True)
class DraftRule:
    """What makes a candidate a draft. A run can get another one without computing anything again."""

    thresholds: tuple[float, ...]  # [P] the minimum presence of each name
    min_score: float | Literal["auto"] = "auto"  # minimum score of a box, as in `cliploc.Options`
    max_boxes: int | None = DEFAULTS.max_boxes  # maximum number of boxes of a name in a picture, best first
    unsure: bool = False  # whether exports have the unsure boxes, too
    shares: tuple[float | None, ...] = ()  # [P] in which share of the pictures each name is, where a person said it


@dataclass(frozen=True, eq=False)
class Prior:
    """How far the chances of names are off in the folder, as its pictures have in common."""

    shifts: Floats  # [P] what is added to the log odds of each name
    everywhere: bool = False  # whether the only name is taken to be in all pictures

    @classmethod
    def of(cls, presence: Floats, shares: Sequence[float | None], true: Floats) -> Self:
        """By the chances `[n, P]` of names, NaN of unknown ones, in the pictures of the folder.

        `shares`: what a person said of each name, or None. `true` `[n, P]`: 1 or 0 in reviewed pictures, else NaN.
        """
        seen = ~np.isnan(true).any(axis=1)
        share = np.array([np.nan if value is None else value for value in shares], np.float64)
        everywhere = len(share) == 1 and bool(np.isnan(share[0])) and is_everywhere(presence[:, 0])
        if everywhere:
            share[0] = (1 + true[seen].sum()) / (1 + seen.sum())
        share = share.clip(*SHARES)
        known, log_odds = ~np.isnan(share), logit(np.nan_to_num(presence, nan=0.5))
        start = np.zeros(len(share))
        # The chances add up to the share.
        start[known] = _solved(lambda by: share[known] - _chances(log_odds[:, known] + by).mean(axis=0), known.sum())
        # The most likely shift by the reviewed pictures, normally distributed before.
        shifts = _solved(
            lambda by: (true[seen] - _chances(log_odds[seen] + by)).sum(axis=0) - (by - start) / SPREAD**2, len(share)
        )
        return cls(np.where(np.isnan(presence).any(axis=0), 0.0, shifts.round(4)), everywhere)

    def adjusted(self, presence: Floats) -> Floats:
        """The chances `[…, P]` of names in pictures of this folder."""
        raised = presence * np.exp(self.shifts)
        adjusted: Floats = np.where(self.shifts == 0, presence, raised / (raised + (1 - presence)))
        return adjusted


def is_everywhere(chance: Floats) -> bool:
    """Whether a name may be in all pictures, by its chances in them: in most it is not absent, and they are one heap.

    One heap: Sarle's coefficient of bimodality, (skewness² + 1) / kurtosis, is at most that of a uniform distribution.
    """
    if len(chance) < FEWEST or not UNSURE <= np.median(chance) < 1:  # 1: learnt without text
        return False
    centred = (logit(chance) - logit(chance).mean()).round(6)  # of equal chances 0
    second, third, fourth = (float((centred**power).mean()) for power in (2, 3, 4))
    return third**2 + second**3 <= 5 / 9 * fourth * second


def _chances(log_odds: Floats) -> Floats:
    chances: Floats = 1 / (1 + np.exp(-log_odds))
    return chances


def _solved(falling: Callable[[Floats], Floats], count: int) -> Floats:
    """Where functions that fall are 0, `[count]`, by bisection."""
    low, high = np.full(count, -MOST_SHIFT), np.full(count, MOST_SHIFT)
    for _ in range(50):
        middle = (low + high) / 2
        right = falling(middle) > 0
        low, high = np.where(right, middle, low), np.where(right, high, middle)
    return low


@dataclass(frozen=True)
class Chosen:
    """What is shown of a picture's n candidates; they are known by their numbers."""

    drafts: tuple[int, ...]  # best first
    unsure: tuple[int, ...]  # best first
    scores: Floats  # [n] the chances that they are right, in this folder
    presence: Floats  # [P] the same of names; NaN of names that the model does not know
    margin: float  # how far the nearest name is from its threshold; 0 if the picture should be looked at first

    def visible(self, unsure: bool) -> list[int]:
        """The drafts, and `unsure` boxes, best first."""
        return self.ordered([*self.drafts, *self.unsure] if unsure else self.drafts)

    def ordered(self, boxes: Sequence[int]) -> list[int]:
        """Boxes, best first."""
        return sorted(boxes, key=lambda i: (-self.scores[i], i))


def choose(found: Candidates, rule: DraftRule, prior: Prior | None) -> Chosen:
    """Chooses among the candidates of a picture; without a prior, presence and scores are no chances."""
    presence, label = found.presence, found.labels
    score, adjusted = found.scores.copy(), presence
    if prior is not None:
        adjusted = prior.adjusted(presence)
        missing, more = 1 - presence, (adjusted - presence).clip(min=0)
        moved = np.divide(more, missing, out=np.zeros_like(adjusted), where=missing > 0)[label]
        score = (1 - moved) * score + moved * found.fits
    order = np.lexsort((-score, label))  # a stable sort
    if found.taught:  # of a name that is taught only these boxes count
        names, by_teaching = [*found.taught], np.arange(len(label)) >= found.untaught
        adjusted = adjusted.copy()
        adjusted[names] = [*found.taught.values()]
        if prior is not None:  # without a second look a score is conditional
            score[by_teaching] *= adjusted[label[by_teaching]]
        order = order[(by_teaching == np.isin(label, names))[order]]
    low, of = score[order].astype(np.float32), label[order]
    selected = are_first(of, rule.max_boxes)
    thresholds = np.array(rule.thresholds, np.float64)
    draft = selected & (adjusted >= thresholds)[of] & high_enough(low, of, rule.min_score)
    rank = score if prior is not None else score * adjusted[label]
    drafts = order[draft].tolist()
    drafts.sort(key=lambda i: (-rank[i], i))
    unsure: list[int] = []
    if prior is not None:
        maybe = np.fmax(presence, adjusted) >= UNSURE  # what is rare in the folder is not hidden for that
        unsure = order[selected & ~draft & maybe[of] & high_enough(low, of, "auto")].tolist()
        unsure.sort(key=lambda i: (-score[i], i))
    first = bool(unsure) and not drafts
    nearest = np.abs(adjusted - thresholds)
    margin = 0.0 if first or np.isnan(nearest).all() else float(np.nanmin(nearest))
    return Chosen(tuple(drafts), tuple(unsure), score, adjusted, margin)


@dataclass(frozen=True, eq=False)
class View:
    """What is found in a picture, and what holds."""

    found: Candidates
    chosen: Chosen
    saved: Saved
    unsure: bool  # whether unsure boxes hold, too

    def drafts(self, unsure: bool = False) -> Candidates:
        """Its drafts alone, best first, and its unsure boxes behind them."""
        ids = [*self.chosen.drafts, *(self.chosen.unsure if unsure else ())]
        return replace(self.found.take(ids), scores=self.chosen.scores[ids])

    def of_drafts(self) -> Correction:
        """The boxes that hold where a person has changed nothing."""
        ids = self.chosen.visible(self.unsure)
        drafts = self.found.take(ids)
        masks = None if drafts.masks is None else list[str | None](drafts.masks)
        return Correction(drafts.xyxy.tolist(), drafts.labels.tolist(), masks, [*ids])

    def boxes(self) -> Correction:
        """The boxes that hold: those of a person, or the drafts."""
        return self.saved.correction or self.of_drafts()


# ----------------------------------------------------------------------------------------------------- scores of drafts
IOU = 0.5
ADJUSTED = 0.7  # a draft that fits a box less well than this has to be adjusted


@dataclass(frozen=True)
class Work:
    """What a person has to do with the drafts of one name in a picture."""

    delete: int  # drafts without a box
    draw: int  # boxes without a draft
    adjust: int  # drafts whose IoU with their box is below `ADJUSTED`

    @property
    def total(self) -> int:
        """The number of corrections."""
        return self.delete + self.draw + self.adjust


def work_on(drafts: npt.ArrayLike, boxes: npt.ArrayLike) -> Work:
    """The corrections of drafts `[n, 4]`, best first, that make them the boxes `[m, 4]`."""
    proposed, true = np.asarray(drafts, float).reshape(-1, 4), np.asarray(boxes, float).reshape(-1, 4)
    fits = fits_of(proposed, true)
    right = sum(fit >= IOU for fit in fits)
    return Work(len(proposed) - right, len(true) - right, sum(IOU <= fit < ADJUSTED for fit in fits))


class LabelScore(Struct, frozen=True):
    """How the drafts of one label, or of all, did."""

    drafts: int
    boxes: int  # corrected ones
    right: int  # number of drafts that are right

    def in_words(self) -> str:
        """The figures in a line."""
        return f"{self.right} of {self.drafts} drafts right; {self.right} of {self.boxes} boxes found"


def score_drafts(pairs: Iterable[tuple[Candidates, Correction]], count: int) -> tuple[LabelScore, list[LabelScore]]:
    """The score of all drafts, and of those of each label, by pictures with their corrections."""
    outcomes, true = _outcomes(pairs, count)
    each = [LabelScore(len(of), boxes, sum(hit for _, hit in of)) for of, boxes in zip(outcomes, true, strict=True)]
    every = LabelScore(*(sum(figures) for figures in zip(*map(astuple, each), strict=True)))
    return every, each


def _outcomes(
    pairs: Iterable[tuple[Candidates, Correction]], count: int
) -> tuple[list[list[tuple[float, bool]]], list[int]]:
    """Of each label the scores of its drafts, each with whether it is right, and the number of its corrected boxes."""
    outcomes: list[list[tuple[float, bool]]] = [[] for _ in range(count)]  # label → score and whether it is right
    true = [0] * count
    for found, corrected in pairs:
        scores = found.scores.tolist()
        for label in range(count):
            drafts = sorted(np.flatnonzero(found.labels == label).tolist(), key=lambda i: -scores[i])
            boxes = corrected.boxes_of(label)
            true[label] += len(boxes)
            fits = fits_of(found.xyxy[drafts], boxes)
            outcomes[label] += [(scores[i], fit >= IOU) for i, fit in zip(drafts, fits, strict=True)]
    return outcomes, true


def fits_of(drafts: npt.ArrayLike, boxes: npt.ArrayLike) -> list[float]:
    """The IoU of each draft, the best first, with the box that it takes; less than `IOU` where it takes none."""
    proposed, true = np.asarray(drafts, float).reshape(-1, 4), np.asarray(boxes, float).reshape(-1, 4)
    if not len(proposed) or not len(true):
        return [0.0] * len(proposed)
    iou = iou_matrix(proposed, true)  # [n, m]
    fits = []
    for row in iou:
        best = int(row.argmax())
        fits.append(float(row[best]))
        if fits[-1] >= IOU:
            iou[:, best] = 0  # rows that follow see that it is taken
    return fits

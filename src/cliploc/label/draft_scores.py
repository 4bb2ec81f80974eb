"""Scores drafts against corrected boxes as COCO matches (Lin et al. 2014), at IoU 0.5, best drafts first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cliploc.images.geometry import iou_matrix
from cliploc.runs.label_store import Candidates, Correction

IOU = 0.5
ADJUSTED = 0.7  # a draft that fits a box less well than this has to be adjusted
FEWEST = 10  # corrected boxes of a label, below which its figures suggest nothing


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


@dataclass(frozen=True)
class LabelScore:
    """How the drafts of one label, or of all, did."""

    drafts: int  # number of drafts
    true: int  # number of corrected boxes
    right: int  # number of drafts that are right
    # the minimum score with the greatest F1 on these pictures; None if there are fewer than 10 corrected boxes, or no
    # draft is right
    min_score: float | None = None
    selected: int = 0  # number of drafts with that score or more
    selected_right: int = 0  # number of those that are right

    def document(self) -> dict[str, Any]:
        """The figures as in draft_scores.json; shares of nothing are null."""
        suggested = {"min_score": self.min_score, **self._shares(self.selected_right, self.selected)}
        return {
            "drafts": self.drafts,
            "corrected_boxes": self.true,
            "right": self.right,
            **self._shares(self.right, self.drafts),
            "suggested": None if self.min_score is None else suggested,
        }

    def _shares(self, right: int, drafts: int) -> dict[str, float | None]:
        pairs = (("precision", drafts), ("recall", self.true))
        return {name: round(right / count, 4) if count else None for name, count in pairs}

    def in_words(self) -> str:
        """The figures in a line."""
        words = f"{self.right} of {self.drafts} drafts right; {self.right} of {self.true} boxes found"
        if self.min_score is None:
            return words
        outcome = f"{self.selected_right} of {self.selected} right, {self.selected_right} of {self.true} found"
        return f"{words}; best with --min-score {np.float32(self.min_score)!s} ({outcome})"


def score_drafts(pairs: Iterable[tuple[Candidates, Correction]], count: int) -> tuple[LabelScore, list[LabelScore]]:
    """The score of all drafts, and of those of each label, by pictures with their corrections."""
    outcomes, true = _outcomes(pairs, count)
    every = _scored([outcome for some in outcomes for outcome in some], sum(true))
    return every, [_scored(some, number) for some, number in zip(outcomes, true, strict=True)]


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


def least_score(
    pairs: Iterable[tuple[Candidates, Correction]], count: int, most_false: float
) -> tuple[float, int, int] | None:
    """The score from which (1 + wrong) / n ≤ `most_false` (Barber and Candès 2015), how many, how many wrong."""
    every = sorted((outcome for some in _outcomes(pairs, count)[0] for outcome in some), reverse=True)
    best, wrong = None, 0
    for number, (score, right) in enumerate(every, start=1):
        wrong += not right
        last = number == len(every) or every[number][0] < score  # drafts with the same score go together
        if last and (1 + wrong) / number <= most_false:
            best = score, number, wrong
    return best


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


def _scored(outcomes: list[tuple[float, bool]], true: int) -> LabelScore:
    right = sum(hit for _, hit in outcomes)
    plain = LabelScore(len(outcomes), true, right)
    if true < FEWEST or not right:
        return plain
    ordered = sorted(outcomes, reverse=True)
    scores = np.array([score for score, _ in ordered])
    hits = np.cumsum([hit for _, hit in ordered])  # [n] right among those with this score or more
    last = np.append(scores[1:] < scores[:-1], True)  # of drafts with the same score all or none are kept
    f1 = np.where(last, 2 * hits / (np.arange(1, len(scores) + 1) + true), -1)
    best = len(f1) - 1 - int(f1[::-1].argmax())  # of equals the one that keeps more
    return LabelScore(len(outcomes), true, right, float(scores[best]), best + 1, int(hits[best]))

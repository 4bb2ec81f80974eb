"""Scores drafts against corrected boxes as COCO matches (Lin et al. 2014), at IoU 0.5, best drafts first."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import astuple

from cliploc.images.geometry import iou_matrix
from cliploc.runs.label_store import Candidates, Correction

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

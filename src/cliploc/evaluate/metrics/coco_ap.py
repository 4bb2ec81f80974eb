"""Box AP and AR by COCO's protocol (Lin et al. 2014; the definitions of pycocotools), with intervals over pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import _base as base
from cliploc.evaluate.metrics import _boxes
from cliploc.values import Floats

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST_BOXES = 100  # of a name in a picture
Bools: TypeAlias = npt.NDArray[np.bool_]
NUMBERS: Mapping[str, str] = {
    "ap": "average precision, mean over names and over IoU 0.50, 0.55 … 0.95",
    "ap50": "the same at IoU 0.5",
    "ar": "share of true boxes that are found among the 100 best of a name in a picture, mean over the same",
}


@dataclass(frozen=True)
class _Judged:
    """The boxes of one name in one picture: the scores `[n]`, what is right `[10, n]`, and how many are true."""

    scores: Floats
    right: Bools
    true: int


class CocoAP:
    """AP and AR of boxes, over all names that are somewhere; no crowds and no ranges of size.

    Example:
        >>> metric = CocoAP()
        >>> metric.add("a", 0, [[0, 0, 10, 10], [5, 5, 9, 9]], [0.9, 0.4], [[0, 0, 10, 9]])
        >>> {key: round(value, 3) for key, value in metric.compute()[0].items()}
        {'ap': 0.9, 'ap50': 1.0, 'ar': 0.9}
    """

    def __init__(self) -> None:
        self._of: dict[int, dict[str, _Judged]] = {}
        self._pictures: set[str] = set()

    def __len__(self) -> int:
        return len(self._pictures)

    def add(self, picture: str, label: int, boxes: Any, scores: Sequence[float], truth: Any) -> None:
        """Counts the boxes `[n, 4]` of a name in a picture, and the true ones `[m, 4]`."""
        of_label = self._of.setdefault(label, {})
        if picture in of_label:
            raise UsageError(f"{picture} occurs twice with the same name: evaluate it once")
        self._pictures.add(picture)
        found, true = (np.asarray(of, np.float64).reshape(-1, 4) for of in (boxes, truth))
        values = np.asarray(scores, np.float64)
        order = np.argsort(-values, kind="stable")[:MOST_BOXES]
        of_label[picture] = _Judged(values[order], matches(_boxes.iou(found[order], true, 0)), len(true))

    def compute(self, bootstrap: base.Bootstrap = base.DEFAULT) -> tuple[dict[str, float], dict[str, base.Interval]]:
        """The numbers of `NUMBERS` from 0 to 1, and their intervals; empty where nothing is true."""
        pictures = sorted(self._pictures)
        place = {name: i for i, name in enumerate(pictures)}
        names = [
            _RankedBoxes(of, place) for _, of in sorted(self._of.items()) if any(judged.true for judged in of.values())
        ]
        if not names:
            return {}, {}
        point = _numbers(names, np.ones(len(pictures)))
        few = replace(bootstrap, replicates=min(bootstrap.replicates, base.POISSON_REPLICATES))
        drawn = [_numbers(names, of.astype(np.float64)) for counts in few.draws(len(pictures)) for of in counts]
        ends: dict[str, base.Interval] = {}
        for i, key in enumerate(NUMBERS):
            if len(values := [numbers[i] for numbers in drawn if np.isfinite(numbers[i])]):
                # The envelope of precision is greater in a drawn set, in which boxes repeat: this bias is taken off.
                centred = np.array(values) - np.mean(values) + point[i]
                ends[key] = few.quantiles(centred.clip(0, 1))
        return dict(zip(NUMBERS, map(float, point), strict=True)), ends


def matches(overlap: Floats) -> Bools:
    """`[10, n]`: whether each box, the best first, takes a true one at each IoU of `IOUS`, from their IoUs `[n, m]`."""
    # A box takes the true box that it fits best among those that are left; of equal ones the last, as in pycocotools.
    right = np.zeros((len(IOUS), len(overlap)), np.bool_)
    for t, least in enumerate(IOUS):
        left = overlap.copy()
        for n in range(len(overlap)):
            if not left.shape[1]:
                break
            best = left.shape[1] - 1 - int(left[n, ::-1].argmax())
            if left[n, best] >= least:
                right[t, n] = True
                left[:, best] = -1
    return right


class _RankedBoxes:
    """All boxes of a name, the best first."""

    def __init__(self, of: Mapping[str, _Judged], place: Mapping[str, int]) -> None:
        known = [(place[name], of[name]) for name in sorted(of)]
        scores = np.concatenate([judged.scores for _, judged in known])
        order = np.argsort(-scores, kind="stable")
        self.right = np.concatenate([judged.right for _, judged in known], axis=1)[:, order]  # [10, n]
        owner = np.concatenate([np.full(len(judged.scores), at, np.intp) for at, judged in known])
        self.owner = owner[order]  # [n]
        self.pictures = np.array([at for at, _ in known])
        self.true = np.array([judged.true for _, judged in known], np.float64)

    def numbers(self, weights: Floats) -> tuple[Floats, Floats] | None:
        """AP and the highest recall at each IoU, with these weights of pictures; None where nothing is true."""
        true = float((weights[self.pictures] * self.true).sum())
        if not true:
            return None
        weight = weights[self.owner]
        hits = (self.right * weight).cumsum(axis=1)  # [10, n]
        recall = hits / true
        precision = hits / np.maximum(weight.cumsum(), np.spacing(1))
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        precisions = np.zeros(len(IOUS))
        for t in range(len(IOUS)):
            at = np.searchsorted(recall[t], RECALLS, side="left")
            precisions[t] = envelope[t][at[at < recall.shape[1]]].sum() / len(RECALLS)
        highest: Floats = recall[:, -1] if recall.shape[1] else np.zeros(len(IOUS))
        return precisions, highest


def _numbers(names: Sequence[_RankedBoxes], weights: Floats) -> Floats:
    """`[3]`: the numbers of `NUMBERS`; NaN where nothing is true."""
    of_names = [numbers for name in names if (numbers := name.numbers(weights)) is not None]
    if not of_names:
        return np.full(len(NUMBERS), np.nan)
    precision, recall = (np.mean(values, axis=0) for values in zip(*of_names, strict=True))
    return np.array([precision.mean(), precision[0], recall.mean()])

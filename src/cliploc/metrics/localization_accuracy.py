"""GT-known, Top-1 and Top-5 localisation: MaxBoxAcc's box at one threshold, combined with class predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cliploc.errors import UsageError
from cliploc.metrics._infra.bootstrap import DEFAULT, Bootstrap, Interval
from cliploc.metrics._infra.curve import TAUS, BoxCurve
from cliploc.metrics._infra.metric import (
    JudgedMap,
    Metric,
    MetricSummary,
    Number,
    Row,
    Score,
    by_class,
    metric,
    refuse_empty,
    threshold_note,
)
from cliploc.metrics.max_box_acc import LARGEST_HITS, Bools, MaxBoxAcc, largest_hits

LOCATED = ("gt_known", "top1_loc", "top5_loc")  # these need a threshold
CLASSIFIED = ("top1_cls", "top5_cls")


@dataclass(frozen=True)
class LocalizationResult:
    """Localisation and classification accuracy, from 0 to 1; the box is that of MaxBoxAcc at one τ."""

    n: int  # number of images
    predicted: int  # number of images with predictions; the Top-k numbers are shares of these
    threshold: float  # τ
    oracle: bool  # whether τ was chosen on these same images
    intervals: Mapping[str, Interval]  # name of a number → its confidence interval at this τ
    per_class: Mapping[int, float]  # label → GT-known
    gt_known: float  # share of images whose box on the true class's map is right
    top1_loc: float | None = None  # share of images whose box is right and whose true class is the first prediction …
    top5_loc: float | None = None  # … or among the first five; None without (so many) predictions
    top1_cls: float | None = None  # share of images whose true class is the first prediction …
    top5_cls: float | None = None  # … or among the first five


@metric
class LocalizationAccuracy(Metric):
    """GT-known, Top-1 and Top-5 localisation, and classification.

    The map is the true class's. If the predicted class is right, that is the predicted class's map as well, so Top-1
    Loc needs no other map.

    Args:
        threshold: τ of `summarise`; None: the best on these images, which makes the numbers an oracle's.

    Example:
        >>> metric = LocalizationAccuracy()
        >>> metric.update(BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6])), label=3, predictions=[3, 1])
        >>> metric.compute(threshold=1.0).top1_loc
        1.0
    """

    name = "localization"
    position = 5
    columns: ClassVar = {"highest": "level", LARGEST_HITS: "hits", "iou": "float"}
    numbers: ClassVar = {
        "gt_known": Number("GT-known Loc", "as MaxBoxAcc, at the τ given after the numbers", "GT-known", "threshold"),
        "top1_loc": Number("Top-1 Loc", "GT-known, and the true class is the first prediction", "Top-1"),
        "top5_loc": Number("Top-5 Loc", "GT-known, and the true class is among the first five", "Top-5"),
        "top1_cls": Number("Top-1 class", "the true class is the first prediction"),
        "top5_cls": Number("Top-5 class", "the true class is among the first five"),
    }
    needs_threshold = True
    chooses_threshold = True

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__(threshold)
        self._boxes = MaxBoxAcc()
        self._rank: dict[str, int | None] = {}  # place of the true class among the predictions
        self._depth: int | None = None  # predictions of an image

    def __len__(self) -> int:
        return len(self._boxes)

    def update(self, curve: BoxCurve, label: int | None = None, predictions: Sequence[int] | None = None) -> None:
        """Counts one image.

        Args:
            predictions: classes, best first; None where there are none.
        """
        self.add(curve.image_id, largest_hits(curve), label, predictions)

    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the box is right, and its IoU at τ."""
        curve = judged.curve
        at_tau = {} if self.threshold is None else {"iou": float(curve.largest[curve.index(self.threshold)])}
        return largest_hits(curve) | at_tau

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:
        if predictions is not None:
            if label is None:
                raise UsageError(f"{sample_id} has predictions but no true class: give its label")
            if not len(predictions) or self._depth not in (None, len(predictions)):
                wanted = f"expected {self._depth or 'at least 1'} predictions, got {len(predictions)}"
                raise UsageError(f"{sample_id}: {wanted}: give as many for all")
        self._boxes.add(sample_id, columns, label, None)
        if predictions is not None:
            self._depth = len(predictions)
            order = list(predictions)
            self._rank[sample_id] = order.index(label) if label in order else None

    def compute(self, threshold: float | None = None, bootstrap: Bootstrap = DEFAULT) -> LocalizationResult:
        """The result so far.

        Args:
            threshold: τ; None for the best on these images, which makes the numbers an oracle's.
        """
        n = refuse_empty(len(self._boxes))
        oracle = threshold is None
        tau = float(TAUS[self._boxes.right_at(TAUS).sum(axis=0).argmax()]) if threshold is None else threshold
        right = self._boxes.right_at([tau])[:, 0]
        columns: dict[str, Bools] = {"gt_known": right}
        ranked = {i: self._rank[image_id] for i, image_id in enumerate(self._boxes.ids) if image_id in self._rank}
        known = list(ranked)
        for k in (1, 5):
            if known and (self._depth or 0) >= k:
                inside = np.array([rank is not None and rank < k for rank in ranked.values()])
                columns[f"top{k}_loc"], columns[f"top{k}_cls"] = inside & right[known], inside
        means = {name: float(column.mean()) for name, column in columns.items()}
        intervals = {name: bootstrap.interval(column[:, None], lambda m: m[:, 0]) for name, column in columns.items()}
        per_class = by_class(self._boxes.labels, right)
        return LocalizationResult(n, len(known), tau, oracle, intervals, per_class, **means)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:  # noqa: ARG002
        """All numbers at the metric's τ, and localisation also at the best τ of these images (an oracle)."""
        at_own, at_best = self.compute(self.threshold, bootstrap), self.compute(None, bootstrap)
        where = threshold_note(at_own.threshold, at_own.oracle)
        of = "" if at_own.predicted == at_own.n else f"of {at_own.predicted} images with predictions"
        notes = {"gt_known": where, **{name: f"{where}, {of}".strip(", ") for name in LOCATED[1:]}}
        scores = {
            name: Score(getattr(at_own, name), at_own.intervals.get(name), notes.get(name, of))
            for name in (*LOCATED, *CLASSIFIED)
        }
        for name in LOCATED:  # GT-known at the best τ is MaxBoxAcc
            scores[f"{name}_oracle"] = Score(getattr(at_best, name), at_best.intervals.get(name))
        return MetricSummary(
            scores,
            {
                "threshold": at_own.threshold,
                "threshold_chosen_on_these_images": at_own.oracle,
                "with_predictions": at_own.predicted,
            },
            {label: {"gt_known": share} for label, share in at_own.per_class.items()},
        )

"""GT-known, Top-1 and Top-5 localisation: MaxBoxAcc's box at one threshold, combined with class predictions."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from cliploc.errors import UsageError
from cliploc.metrics._infra.curve import TAUS
from cliploc.metrics._infra.metric import (
    DEFAULT,
    Bootstrap,
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


@metric
class LocalizationAccuracy(Metric):
    """GT-known, Top-1 and Top-5 localisation, and classification.

    The map is the true class's. If the predicted class is right, that is the predicted class's map as well, so Top-1
    Loc needs no other map. Without a threshold τ it is the best on these images, which makes the numbers an oracle's.

    Example:
        >>> from cliploc.metrics import BoxCurve
        >>> metric, curve = LocalizationAccuracy(1.0), BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6]))
        >>> metric.add("a", largest_hits(curve), label=3, predictions=[3, 1])
        >>> metric.summarise(False).scores["top1_loc"].value
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

    def _at(self, tau: float, bootstrap: Bootstrap) -> tuple[dict[str, Score], dict[int, float]]:
        """The numbers at a τ, those of the Top-k where there are so many predictions; and GT-known of each class."""
        right = self._boxes.right_at([tau])[:, 0]
        columns: dict[str, Bools] = {"gt_known": right}
        ranked = {i: self._rank[image_id] for i, image_id in enumerate(self._boxes.ids) if image_id in self._rank}
        known = list(ranked)
        for k in (1, 5):
            if known and (self._depth or 0) >= k:
                inside = np.array([rank is not None and rank < k for rank in ranked.values()])
                columns[f"top{k}_loc"], columns[f"top{k}_cls"] = inside & right[known], inside
        scores = {
            name: Score(float(column.mean()), bootstrap.interval(column[:, None], lambda m: m[:, 0]))
            for name, column in columns.items()
        }
        return scores, by_class(self._boxes.labels, right)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:  # noqa: ARG002
        """All numbers at the metric's τ, and localisation also at the best τ of these images (an oracle)."""
        n, oracle = refuse_empty(len(self._boxes)), self.threshold is None
        best = float(TAUS[self._boxes.right_at(TAUS).sum(axis=0).argmax()])
        tau = best if self.threshold is None else self.threshold
        (at_own, per_class), (at_best, _) = self._at(tau, bootstrap), self._at(best, bootstrap)
        where = threshold_note(tau, oracle)
        of = "" if len(self._rank) == n else f"of {len(self._rank)} pictures with predictions"
        notes = {"gt_known": where, **{name: f"{where}, {of}".strip(", ") for name in LOCATED[1:]}}
        nothing = Score(None)
        scores = {
            name: replace(at_own.get(name, nothing), note=notes.get(name, of)) for name in (*LOCATED, *CLASSIFIED)
        }
        # GT-known at the best τ is MaxBoxAcc.
        scores |= {f"{name}_oracle": at_best.get(name, nothing) for name in LOCATED}
        facts = {
            "threshold": tau,
            "threshold_chosen_on_these_images": oracle,
            "with_predictions": len(self._rank),
        }
        return MetricSummary(scores, facts, {label: {"gt_known": share} for label, share in per_class.items()})

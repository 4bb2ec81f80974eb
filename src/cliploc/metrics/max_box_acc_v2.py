"""MaxBoxAccV2 (Choe 2020): the best of all contours' boxes, averaged over three IoU thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cliploc.metrics._infra.bootstrap import DEFAULT, Bootstrap, Interval
from cliploc.metrics._infra.curve import BoxCurve
from cliploc.metrics._infra.metric import JudgedMap, Metric, MetricSummary, Number, Row, Score, metric, threshold_note
from cliploc.metrics.max_box_acc import MaxBoxAcc, MaxBoxAccResult, packed_hits

IOUS = (0.3, 0.5, 0.7)


def _percent(iou: float) -> str:
    return f"{iou * 100:.0f}"


@dataclass(frozen=True)
class MaxBoxAccV2Result:
    """The accuracy over `n` images, from 0 to 1."""

    n: int  # number of images
    accuracy: float  # mean over the IoUs of the accuracy at each one's own best τ (an oracle, as in MaxBoxAcc)
    interval: Interval  # its confidence interval
    at_iou: Mapping[float, MaxBoxAccResult]  # IoU → the result for it alone
    per_class: Mapping[int, float]  # label → mean over the IoUs, each at its best τ


@metric
class MaxBoxAccV2(Metric):
    """MaxBoxAccV2: the best pair of any contour's box and any true box; mean over IoU 0.3, 0.5 and 0.7.

    Choe et al. 2020, "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and Datasets".

    Example:
        >>> metric = MaxBoxAccV2()
        >>> metric.update(BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6])))
        >>> metric.compute().at_iou[0.3].accuracy
        1.0
    """

    name = "max_box_acc_v2"
    position = 20
    columns: ClassVar = {"highest": "level", **{f"hits_every_{_percent(iou)}": "hits" for iou in IOUS}}
    numbers: ClassVar = {
        "max_box_acc_v2": Number("MaxBoxAccV2", "mean of the accuracies at IoU 0.3, 0.5 and 0.7", "V2"),
        **{
            f"max_box_acc_iou{_percent(iou)}": Number(
                f"MaxBoxAccV2 IoU ≥ {iou:g}", "the best of all contours' boxes, at its own best τ: an oracle"
            )
            for iou in IOUS
        },
    }

    def __init__(self) -> None:
        super().__init__()
        self.parts = {iou: MaxBoxAcc(iou, "every") for iou in IOUS}

    def __len__(self) -> int:
        return len(self.parts[IOUS[0]])

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image; a second time is a `UsageError`."""
        for part in self.parts.values():
            part.update(curve, label)

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> MaxBoxAccV2Result:
        """The result so far; a `UsageError` when no image was counted."""
        both = {iou: part.replicated(bootstrap) for iou, part in self.parts.items()}
        at_iou = {iou: result for iou, (result, _) in both.items()}
        results = list(at_iou.values())
        # Each replicate draws the same images at every IoU, so the mean over IoUs is a mean within the replicate.
        drawn = [replicates for _, replicates in both.values() if replicates is not None]
        interval = bootstrap.quantiles(np.mean(drawn, axis=0)) if drawn else None
        accuracy = float(np.mean([result.accuracy for result in results]))
        per_class = {
            label: float(np.mean([part.per_class[label] for part in results])) for label in results[0].per_class
        }
        return MaxBoxAccV2Result(results[0].n, accuracy, interval, at_iou, per_class)

    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the best box is right, for each IoU."""
        hits = {f"hits_every_{_percent(iou)}": packed_hits(judged.curve, iou, "every") for iou in IOUS}
        return {"highest": len(judged.curve.best) - 1, **hits}

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        for iou, part in self.parts.items():
            part.restore(sample_id, columns["highest"], columns[f"hits_every_{_percent(iou)}"], label)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:  # noqa: ARG002
        result = self.compute(bootstrap)
        scores = {
            f"max_box_acc_iou{_percent(iou)}": Score(
                part.accuracy, part.interval, threshold_note(part.threshold, chosen=True)
            )
            for iou, part in result.at_iou.items()
        }
        scores["max_box_acc_v2"] = Score(result.accuracy, result.interval, "their mean")
        return MetricSummary(scores, {}, {label: {self.name: share} for label, share in result.per_class.items()})

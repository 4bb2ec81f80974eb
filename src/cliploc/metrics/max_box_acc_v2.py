"""MaxBoxAccV2 (Choe 2020): the best of all contours' boxes, averaged over three IoU thresholds."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from cliploc.metrics._infra.metric import (
    DEFAULT,
    Bootstrap,
    JudgedMap,
    Metric,
    MetricSummary,
    Number,
    Row,
    Score,
    metric,
    threshold_note,
)
from cliploc.metrics.max_box_acc import MaxBoxAcc, packed_hits

IOUS = (0.3, 0.5, 0.7)


def _percent(iou: float) -> str:
    return f"{iou * 100:.0f}"


@metric
class MaxBoxAccV2(Metric):
    """MaxBoxAccV2: the best pair of any contour's box and any true box; mean over IoU 0.3, 0.5 and 0.7.

    Choe et al. 2020, "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and Datasets".

    Each IoU has its own best τ, an oracle as in `MaxBoxAcc`.

    Example:
        >>> metric, heat = MaxBoxAccV2(), np.pad(np.ones((100, 100)), 62)
        >>> metric.add("a", metric.judge(JudgedMap("a", heat, np.array([[62, 62, 162, 162]]), (224, 224))), None, None)
        >>> metric.summarise(False).scores["max_box_acc_iou30"].value
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

    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the best box is right, for each IoU."""
        hits = {f"hits_every_{_percent(iou)}": packed_hits(judged.curve, iou, "every") for iou in IOUS}
        return {"highest": len(judged.curve.best) - 1, **hits}

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        for iou, part in self.parts.items():
            part.restore(sample_id, columns["highest"], columns[f"hits_every_{_percent(iou)}"], label)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:  # noqa: ARG002
        results, replicates = zip(*(part.replicated(bootstrap) for part in self.parts.values()), strict=True)
        scores = {
            f"max_box_acc_iou{_percent(iou)}": Score(
                part.accuracy, part.interval, threshold_note(part.threshold, chosen=True)
            )
            for iou, part in zip(IOUS, results, strict=True)
        }
        # Each replicate draws the same images at every IoU, so the mean over IoUs is a mean within the replicate.
        interval = bootstrap.quantiles(np.mean(replicates, axis=0)) if replicates[0] is not None else None
        accuracy = float(np.mean([part.accuracy for part in results]))
        scores[self.name] = Score(accuracy, interval, "their mean")
        per_class = {
            label: {self.name: float(np.mean([part.per_class[label] for part in results]))}
            for label in results[0].per_class
        }
        return MetricSummary(scores, {}, per_class)

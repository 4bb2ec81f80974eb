"""MaxBoxAcc (Choe 2020): the share of images whose largest contour's box is right, at the best threshold of the set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cliploc.metrics._infra.bootstrap import DEFAULT, Bootstrap, Interval
from cliploc.metrics._infra.curve import TAUS, BoxCurve, Floats
from cliploc.metrics._infra.hits import Hits, packed_hits
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

LARGEST_HITS = "hits_largest_50"


@dataclass(frozen=True)
class MaxBoxAccResult:
    """The accuracy over `n` images, from 0 to 1."""

    n: int  # number of images
    # at the τ that is best for all of them together – an oracle, chosen on the images it is reported on
    accuracy: float
    threshold: float  # that τ; the smallest where several are best
    interval: Interval  # confidence interval of `accuracy`, τ chosen anew in each bootstrap replicate
    curve: Floats  # [1000], the accuracy at each τ of `TAUS`
    per_class: Mapping[int, float]  # label → accuracy at `threshold`


@metric
class MaxBoxAcc(Metric):
    """MaxBoxAcc: the box of the largest contour has an IoU of at least 0.5 with any true box.

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", CVPR.

    Args:
        contours: "largest", or "every" for the best of all contours' boxes.

    Example:
        >>> metric = MaxBoxAcc()
        >>> metric.update(BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6])))
        >>> metric.compute().accuracy
        0.0
    """

    name = "max_box_acc"
    position = 10
    columns: ClassVar = {"highest": "level", LARGEST_HITS: "hits"}
    numbers: ClassVar = {
        "max_box_acc": Number(
            "MaxBoxAcc",
            "the largest contour's box has IoU ≥ 0.5, at the τ best for all pictures: an oracle",
            "MaxBoxAcc",
            "best_threshold",
        )
    }

    def __init__(self, iou: float = 0.5, contours: Literal["largest", "every"] = "largest") -> None:
        super().__init__()
        self.hits = Hits(iou, contours)

    def __len__(self) -> int:
        return len(self.hits)

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image."""
        packed = packed_hits(curve, self.hits.iou, self.hits.contours)
        self.hits.add(curve.image_id, len(curve.best) - 1, packed, label)

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> MaxBoxAccResult:
        """The result so far."""
        return self.replicated(bootstrap)[0]

    def replicated(self, bootstrap: Bootstrap = DEFAULT) -> tuple[MaxBoxAccResult, npt.NDArray[np.floating] | None]:
        """The result so far, and the accuracy in each bootstrap replicate, `[r]`; None when there are no replicates."""
        n = refuse_empty(len(self.hits))
        right, column = self.hits.distinct(TAUS)  # [n, U], [1000]
        curve: Floats = (right.sum(axis=0) / n)[column]
        best = int(curve.argmax())
        replicates = bootstrap.replicated(right, lambda means: means.max(axis=1))
        interval = None if replicates is None else bootstrap.quantiles(replicates)
        per_class = by_class(self.hits.labels, right[:, column[best]])
        return MaxBoxAccResult(n, float(curve[best]), float(TAUS[best]), interval, curve, per_class), replicates

    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the largest contour's box is right."""
        return largest_hits(judged.curve)

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        """Counts one sample by its columns."""
        self.hits.add(sample_id, columns["highest"], columns[LARGEST_HITS], label)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:
        """MaxBoxAcc, its threshold, and the accuracy of each class."""
        result = self.compute(bootstrap)
        images = Counter(self.hits.labels)
        return MetricSummary(
            {"max_box_acc": Score(result.accuracy, result.interval, threshold_note(result.threshold, chosen=True))},
            {"best_threshold": result.threshold, "best_threshold_is_an_oracle": not may_tune},
            {label: {"images": images[label], "max_box_acc": share} for label, share in result.per_class.items()},
        )


def largest_hits(curve: BoxCurve) -> dict[str, Any]:
    """The columns of `MaxBoxAcc` at IoU 0.5."""
    return {"highest": len(curve.best) - 1, LARGEST_HITS: packed_hits(curve, 0.5, "largest")}

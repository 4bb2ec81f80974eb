"""MaxBoxAcc (Choe 2020): the share of images whose largest contour's box is right, at the best threshold of the set."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.metrics._infra.curve import TAUS, BoxCurve, Floats, level
from cliploc.metrics._infra.metric import (
    DEFAULT,
    Bootstrap,
    Interval,
    JudgedMap,
    Metric,
    MetricSummary,
    Number,
    Row,
    Score,
    by_class,
    metric,
    refuse_empty,
    refuse_twice,
    threshold_note,
)

Bools = npt.NDArray[np.bool_]
LEVELS = 256
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

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", CVPR. With "every", the best of
    all contours' boxes counts.

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
        if not 0 < iou <= 1:
            raise UsageError(f"expected an IoU above 0 and at most 1, got {iou}: 0.5 is usual")
        self.iou, self.contours = iou, contours
        # Image → its map's highest level, its class, and at which levels its box is right: 32 bytes, enough for any τ.
        self._rows: dict[str, tuple[int, int | None, npt.NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image."""
        self.restore(curve.image_id, len(curve.best) - 1, packed_hits(curve, self.iou, self.contours), label)

    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the largest contour's box is right."""
        return largest_hits(judged.curve)

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        self.restore(sample_id, columns["highest"], columns[LARGEST_HITS], label)

    def restore(self, image_id: str, highest: int, packed: bytes, label: int | None) -> None:
        """Counts one image by its `packed_hits` and its map's highest level; a second time is an error."""
        refuse_twice(image_id, self._rows)
        bits = np.frombuffer(packed, np.uint8)
        if len(bits) != LEVELS // 8 or not 0 <= highest < LEVELS:
            raise UsageError(
                f"{image_id}: expected {LEVELS // 8} bytes and a level below {LEVELS}, got {len(bits)} bytes and level "
                f"{highest}: compute it again"
            )
        self._rows[image_id] = (highest, label, bits)

    @property
    def ids(self) -> list[str]:
        """All image ids, sorted, so that no result depends on the order of adding."""
        return sorted(self._rows)

    @property
    def labels(self) -> list[int | None]:
        """The class of each image, in the order of `ids`."""
        return [self._rows[image_id][1] for image_id in self.ids]

    def right_at(self, taus: Sequence[float] | Floats) -> Bools:
        """Whether each image is right at each τ, `[n, T]`."""
        right, column = self.distinct(taus)
        return right[:, column]

    def distinct(self, taus: Sequence[float] | Floats) -> tuple[Bools, npt.NDArray[np.intp]]:
        """As `right_at`, but with equal columns merged: `[n, U]`, and for each τ its column, `[T]`."""
        highest = sorted({row[0] for row in self._rows.values()})
        cuts = np.array([[level(tau, high) for tau in taus] for high in highest], np.intp).reshape(len(highest), -1)
        levels, column = np.unique(cuts, axis=1, return_inverse=True)  # [H, U], [T]
        at = dict(zip(highest, levels, strict=True))
        right = np.zeros((len(self), levels.shape[1]), np.bool_)
        for i, image_id in enumerate(self.ids):
            high, _, bits = self._rows[image_id]
            right[i] = np.unpackbits(bits)[at[high]]
        return right, column.reshape(-1)

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> MaxBoxAccResult:
        """The result so far."""
        return self.replicated(bootstrap)[0]

    def replicated(self, bootstrap: Bootstrap = DEFAULT) -> tuple[MaxBoxAccResult, npt.NDArray[np.floating] | None]:
        """The result so far, and the accuracy in each bootstrap replicate, `[r]`; None when there are no replicates."""
        n = refuse_empty(len(self))
        right, column = self.distinct(TAUS)  # [n, U], [1000]
        curve: Floats = (right.sum(axis=0) / n)[column]
        best = int(curve.argmax())
        replicates = bootstrap.replicated(right, lambda means: means.max(axis=1))
        interval = None if replicates is None else bootstrap.quantiles(replicates)
        per_class = by_class(self.labels, right[:, column[best]])
        return MaxBoxAccResult(n, float(curve[best]), float(TAUS[best]), interval, curve, per_class), replicates

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:
        result = self.compute(bootstrap)
        images = Counter(self.labels)
        return MetricSummary(
            {"max_box_acc": Score(result.accuracy, result.interval, threshold_note(result.threshold, chosen=True))},
            {"best_threshold": result.threshold, "best_threshold_is_an_oracle": not may_tune},
            {label: {"images": images[label], "max_box_acc": share} for label, share in result.per_class.items()},
        )


def largest_hits(curve: BoxCurve) -> dict[str, Any]:
    """The columns of `MaxBoxAcc` at IoU 0.5."""
    return {"highest": len(curve.best) - 1, LARGEST_HITS: packed_hits(curve, 0.5, "largest")}


def packed_hits(curve: BoxCurve, iou: float, contours: Literal["largest", "every"]) -> bytes:
    """At which of its map's 256 levels the box is right, as bits; level 0 is the first byte's highest bit."""
    values = curve.largest if contours == "largest" else curve.best
    right = np.zeros(LEVELS, np.bool_)
    right[: len(values)] = values >= iou
    return np.packbits(right).tobytes()


def hit_at(packed: bytes, highest: int, tau: float) -> bool:
    """Whether the box at a threshold τ is right, from what `packed_hits` gave for a map of this highest level."""
    place = level(tau, int(highest))
    return bool(packed[place // 8] >> (7 - place % 8) & 1)

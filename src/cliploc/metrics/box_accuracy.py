"""MaxBoxAcc, MaxBoxAccV2 and the localisation accuracies: the share of images whose box is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.metrics._bootstrap import DEFAULT, Bootstrap
from cliploc.metrics.curve import TAUS, BoxCurve, Floats, level

Bools = npt.NDArray[np.bool_]
Interval = tuple[float, float] | None
LEVELS = 256


class Hits:
    """For each image, at which of its map's levels the box is right: 32 bytes an image, any τ afterwards."""

    def __init__(self, iou: float, contours: Literal["largest", "every"]) -> None:
        if not 0 < iou <= 1:
            raise UsageError(f"expected an IoU above 0 and at most 1, got {iou}")
        self.iou, self.contours = iou, contours
        self._rows: dict[str, tuple[int, int | None, npt.NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, curve: BoxCurve, label: int | None) -> None:
        """One image; a second time is an error."""
        if curve.image_id in self._rows:
            raise UsageError(f"{curve.image_id} comes twice: evaluate each image once")
        self._rows[curve.image_id] = (len(curve.best) - 1, label, packed_hits(curve, self.iou, self.contours))

    def restore(self, image_id: str, highest: int, packed: bytes, label: int | None) -> None:
        """One image out of what `packed_hits` gave for it, and its map's highest level; a second time is an error."""
        if image_id in self._rows:
            raise UsageError(f"{image_id} comes twice: evaluate each image once")
        bits = np.frombuffer(packed, np.uint8)
        if len(bits) != LEVELS // 8 or not 0 <= highest < LEVELS:
            raise UsageError(
                f"{image_id}: expected {LEVELS // 8} bytes and a level below {LEVELS}, got {len(bits)} bytes"
            )
        self._rows[image_id] = (highest, label, bits)

    def merged(self, other: Hits) -> Hits:
        """Both together."""
        if (self.iou, self.contours) != (other.iou, other.contours):
            raise UsageError("expected two of the same metric with the same settings")
        if twice := self._rows.keys() & other._rows.keys():
            raise UsageError(f"{min(twice)} comes twice: evaluate each image once")
        both = Hits(self.iou, self.contours)
        both._rows = {**self._rows, **other._rows}
        return both

    @property
    def ids(self) -> list[str]:
        """All images, sorted: no result depends on the order in which they came."""
        return sorted(self._rows)

    @property
    def labels(self) -> list[int | None]:
        """The class of each, as `ids`."""
        return [self._rows[one][1] for one in self.ids]

    def at(self, taus: Sequence[float] | Floats) -> Bools:
        """Whether each image is right at each τ, `[n, T]`."""
        found, column = self.distinct(taus)
        return found[:, column]

    def distinct(self, taus: Sequence[float] | Floats) -> tuple[Bools, npt.NDArray[np.intp]]:
        """The same without columns that are equal because no map has a level between their τ: `[n, U]`, and each τ's
        column, `[T]`.
        """
        highest = sorted({row[0] for row in self._rows.values()})
        cuts = np.array([[level(tau, high) for tau in taus] for high in highest], np.intp).reshape(len(highest), -1)
        levels, column = np.unique(cuts, axis=1, return_inverse=True)  # [H, U], [T]
        at = dict(zip(highest, levels, strict=True))
        found = np.zeros((len(self), levels.shape[1]), np.bool_)
        for i, one in enumerate(self.ids):
            high, _, bits = self._rows[one]
            found[i] = np.unpackbits(bits)[at[high]]
        return found, column.reshape(-1)


def packed_hits(curve: BoxCurve, iou: float, contours: Literal["largest", "every"]) -> npt.NDArray[np.uint8]:
    """At which of its map's levels the box is right, `[32]` bytes; level 0 is the highest bit of the first.

    Example:
        >>> packed_hits(BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6])), 0.5, "largest")[0]
        np.uint8(64)
    """
    values = curve.largest if contours == "largest" else curve.best
    right = np.zeros(LEVELS, np.bool_)
    right[: len(values)] = values >= iou
    return np.packbits(right)


def some(n: int) -> int:
    """Refuses to compute anything from nothing."""
    if not n:
        raise UsageError("expected at least one image before the metric is computed, got none")
    return n


def by_class(labels: Sequence[int | None], right: npt.NDArray[np.generic]) -> dict[int, float]:
    """The mean of each class that is known."""
    rows: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        if label is not None:
            rows.setdefault(label, []).append(i)
    return {label: float(right[rows[label]].astype(np.float64).mean()) for label in sorted(rows)}


@dataclass(frozen=True)
class MaxBoxAccResult:
    """Shares from 0 to 1 of `n` images.

    Attributes:
        n: how many images.
        accuracy: at the τ that is best for all of them together – an oracle, chosen on the images it is reported on.
        threshold: that τ; the smallest of equals.
        interval: confidence interval of `accuracy`, τ chosen anew in each bootstrap replicate.
        curve: `[1000]`, the accuracy at each τ of `TAUS`.
        per_class: label → accuracy at `threshold`.
    """

    n: int
    accuracy: float
    threshold: float
    interval: Interval
    curve: Floats
    per_class: Mapping[int, float]


class MaxBoxAcc:
    """MaxBoxAcc: the box of the largest contour has an IoU of at least 0.5 with any true box.

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", CVPR.

    Args:
        iou: how good a box must be.
        contours: "largest", or "every" for the best of all contours' boxes.

    Example:
        >>> metric = MaxBoxAcc()
        >>> metric.update(BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6])))
        >>> metric.compute().accuracy
        0.0
    """

    def __init__(self, iou: float = 0.5, contours: Literal["largest", "every"] = "largest") -> None:
        self.hits = Hits(iou, contours)

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image.

        Raises:
            UsageError: an image that was counted already.
        """
        self.hits.add(curve, label)

    def restore(self, image_id: str, highest: int, packed: bytes, label: int | None = None) -> None:
        """Counts one image that was evaluated before.

        Args:
            image_id: a second time is a `UsageError`.
            highest: its map's highest level, 0–255.
            packed: `packed_hits` of its curve, at this metric's IoU and contours.
            label: the true class.
        """
        self.hits.restore(image_id, highest, packed, label)

    def merge(self, other: MaxBoxAcc) -> MaxBoxAcc:
        """A metric over the images of both, which must not share any."""
        both = MaxBoxAcc(self.hits.iou, self.hits.contours)
        both.hits = self.hits.merged(other.hits)
        return both

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> MaxBoxAccResult:
        """The result so far.

        Raises:
            UsageError: no image was counted.
        """
        return self.replicated(bootstrap)[0]

    def replicated(self, bootstrap: Bootstrap = DEFAULT) -> tuple[MaxBoxAccResult, npt.NDArray[np.floating] | None]:
        """The result so far, and the accuracy in each bootstrap replicate, `[r]`; None when there are no replicates."""
        n = some(len(self.hits))
        right, column = self.hits.distinct(TAUS)  # [n, U], [1000]
        curve: Floats = (right.sum(axis=0) / n)[column]
        best = int(curve.argmax())
        replicates = bootstrap.replicated(right, lambda means: means.max(axis=1))
        interval = None if replicates is None else bootstrap.quantiles(replicates)
        per_class = by_class(self.hits.labels, right[:, column[best]])
        return MaxBoxAccResult(n, float(curve[best]), float(TAUS[best]), interval, curve, per_class), replicates


@dataclass(frozen=True)
class MaxBoxAccV2Result:
    """Shares from 0 to 1 of `n` images.

    Attributes:
        n: how many images.
        accuracy: mean over the IoUs of the accuracy at each one's own best τ (an oracle, as in MaxBoxAcc).
        interval: its confidence interval.
        at_iou: IoU → the result for it alone.
        per_class: label → mean over the IoUs, each at its best τ.
    """

    n: int
    accuracy: float
    interval: Interval
    at_iou: Mapping[float, MaxBoxAccResult]
    per_class: Mapping[int, float]


class MaxBoxAccV2:
    """MaxBoxAccV2: the best pair of any contour's box and any true box; mean over IoU 0.3, 0.5 and 0.7.

    Choe et al. 2020, "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and Datasets".
    """

    def __init__(self, ious: Sequence[float] = (0.3, 0.5, 0.7)) -> None:
        self.parts = {iou: MaxBoxAcc(iou, "every") for iou in ious}

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image; a second time is a `UsageError`."""
        for part in self.parts.values():
            part.update(curve, label)

    def restore(self, image_id: str, highest: int, packed: Mapping[float, bytes], label: int | None = None) -> None:
        """Counts one image that was evaluated before; `packed` holds its hits for each IoU, see `MaxBoxAcc.restore`."""
        for iou, part in self.parts.items():
            part.restore(image_id, highest, packed[iou], label)

    def merge(self, other: MaxBoxAccV2) -> MaxBoxAccV2:
        """A metric over the images of both, which must not share any."""
        if self.parts.keys() != other.parts.keys():
            raise UsageError("expected two of the same metric with the same settings")
        both = MaxBoxAccV2(tuple(self.parts))
        both.parts = {iou: part.merge(other.parts[iou]) for iou, part in self.parts.items()}
        return both

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> MaxBoxAccV2Result:
        """The result so far; a `UsageError` when no image was counted."""
        both = {iou: part.replicated(bootstrap) for iou, part in self.parts.items()}
        at_iou = {iou: result for iou, (result, _) in both.items()}
        results = list(at_iou.values())
        # The same images make up each replicate at every IoU, so that their mean is the replicate's own.
        drawn = [replicates for _, replicates in both.values() if replicates is not None]
        interval = bootstrap.quantiles(np.mean(drawn, axis=0)) if drawn else None
        accuracy = float(np.mean([one.accuracy for one in results]))
        per_class = {label: float(np.mean([one.per_class[label] for one in results])) for label in results[0].per_class}
        return MaxBoxAccV2Result(results[0].n, accuracy, interval, at_iou, per_class)


@dataclass(frozen=True)
class LocalizationResult:
    """Shares from 0 to 1; the box is that of MaxBoxAcc at one τ.

    Attributes:
        n: how many images.
        predicted: for how many of them there were predictions; the Top-k numbers are shares of these.
        threshold: τ.
        oracle: whether τ was chosen on these same images.
        gt_known: the box on the true class's map is right.
        top1_loc, top5_loc: … and the true class is the first, or among the first five, of the predictions; None without
            (so many) predictions.
        top1_cls, top5_cls: the true class is, wherever the box.
        intervals: name of a number → its confidence interval at this τ.
        per_class: label → GT-known.
    """

    n: int
    predicted: int
    threshold: float
    oracle: bool
    gt_known: float
    top1_loc: float | None
    top5_loc: float | None
    top1_cls: float | None
    top5_cls: float | None
    intervals: Mapping[str, Interval]
    per_class: Mapping[int, float]


class LocalizationAccuracy:
    """GT-known, Top-1 and Top-5 localisation, and classification.

    The map is the true class's. Where the class is predicted rightly, that is the predicted class's map as well, so
    that Top-1 Loc needs no other map.
    """

    def __init__(self, iou: float = 0.5) -> None:
        self.hits = Hits(iou, "largest")
        self._rank: dict[str, int | None] = {}
        self._depth: int | None = None

    def update(self, curve: BoxCurve, label: int | None = None, predictions: Sequence[int] | None = None) -> None:
        """Counts one image.

        Args:
            curve: of the true class's map.
            label: the true class; needed with predictions.
            predictions: classes, best first; None where there are none.

        Raises:
            UsageError: an image counted already, predictions without a label or of another number than before.
        """
        self._check(curve.image_id, label, predictions)
        self.hits.add(curve, label)
        self._keep(curve.image_id, label, predictions)

    def restore(
        self,
        image_id: str,
        highest: int,
        packed: bytes,
        label: int | None = None,
        predictions: Sequence[int] | None = None,
    ) -> None:
        """Counts one image that was evaluated before; see `MaxBoxAcc.restore` and `update`."""
        self._check(image_id, label, predictions)
        self.hits.restore(image_id, highest, packed, label)
        self._keep(image_id, label, predictions)

    def _check(self, image_id: str, label: int | None, predictions: Sequence[int] | None) -> None:
        if predictions is None:
            return
        if label is None:
            raise UsageError(f"{image_id} has predictions but no true class: give its label")
        if not len(predictions) or self._depth not in (None, len(predictions)):
            wanted = self._depth or "at least 1"
            raise UsageError(f"{image_id}: expected {wanted} predictions, got {len(predictions)}")

    def _keep(self, image_id: str, label: int | None, predictions: Sequence[int] | None) -> None:
        if predictions is not None:
            self._depth = len(predictions)
            order = list(predictions)
            self._rank[image_id] = order.index(label) if label in order else None

    def merge(self, other: LocalizationAccuracy) -> LocalizationAccuracy:
        """A metric over the images of both, which must not share any."""
        depths = {self._depth, other._depth} - {None}
        if len(depths) > 1:
            raise UsageError("expected two of the same metric with equally many predictions an image")
        both = LocalizationAccuracy(self.hits.iou)
        both.hits = self.hits.merged(other.hits)
        both._rank = {**self._rank, **other._rank}
        both._depth = next(iter(depths), None)
        return both

    def compute(self, threshold: float | None = None, bootstrap: Bootstrap = DEFAULT) -> LocalizationResult:
        """The result so far.

        Args:
            threshold: τ; None for the best on these images, which makes the numbers an oracle's.
            bootstrap: how intervals are made.

        Raises:
            UsageError: no image was counted, or τ is outside 0–1.
        """
        n = some(len(self.hits))
        oracle = threshold is None
        tau = float(TAUS[self.hits.at(TAUS).sum(axis=0).argmax()]) if threshold is None else threshold
        right = self.hits.at([tau])[:, 0]
        columns: dict[str, Bools] = {"gt_known": right}
        known = [i for i, one in enumerate(self.hits.ids) if one in self._rank]
        ranks = [self._rank[one] for one in self.hits.ids if one in self._rank]
        for k in (1, 5):
            if known and (self._depth or 0) >= k:
                inside = np.array([rank is not None and rank < k for rank in ranks])
                columns[f"top{k}_loc"], columns[f"top{k}_cls"] = inside & right[known], inside
        means = {name: float(column.mean()) for name, column in columns.items()}
        intervals = {name: bootstrap.interval(column[:, None], lambda m: m[:, 0]) for name, column in columns.items()}
        return LocalizationResult(
            n,
            len(known),
            tau,
            oracle,
            means["gt_known"],
            means.get("top1_loc"),
            means.get("top5_loc"),
            means.get("top1_cls"),
            means.get("top5_cls"),
            intervals,
            by_class(self.hits.labels, right),
        )

"""MaxBoxAcc (Choe 2020), MaxBoxAccV2, and GT-known, Top-1 and Top-5 localisation: is a box of the map right?"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import _base as base
from cliploc.evaluate.metrics._base import Bootstrap, JudgedMap, Number, Score
from cliploc.evaluate.metrics._boxes import BoxCurve, level
from cliploc.values import Floats

Bools = npt.NDArray[np.bool_]
LEVELS = 256
LARGEST_HITS = "hits_largest_50"
IOUS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2
LOCATED = ("gt_known", "top1_loc", "top5_loc")  # numbers of `LocalizationAccuracy` that need a threshold
CLASSIFIED = ("top1_cls", "top5_cls")


@dataclass(frozen=True)
class MaxBoxAccResult:
    """The accuracy over `n` images, from 0 to 1."""

    n: int  # number of images
    # at the τ that is best for all of them together – an oracle, chosen on the images it is reported on
    accuracy: float
    threshold: float  # that τ; the smallest where several are best
    interval: base.Interval  # confidence interval of `accuracy`; see `Bootstrap.around`
    curve: Floats  # [1000], the accuracy at each τ of `TAUS`
    per_class: Mapping[int, float]  # label → accuracy at `threshold`


@base.metric
class MaxBoxAcc(base.Metric):
    """MaxBoxAcc: the box of the largest contour has an IoU of at least 0.5 with any true box.

    Choe et al. 2020, "Evaluating Weakly Supervised Object Localization Methods Right", CVPR.

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

    def __init__(self) -> None:
        super().__init__()
        # Image → its map's highest level, its class, and at which levels its box is right: 32 bytes, enough for any τ.
        self._rows: dict[str, tuple[int, int | None, npt.NDArray[np.uint8]]] = {}

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image."""
        self.add(curve.image_id, largest_hits(curve), label, None)

    def measure(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the largest contour's box is right."""
        return largest_hits(judged.curve)

    def count(self, sample_id: str, columns: base.Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        self._rows[sample_id] = (columns["highest"], label, np.frombuffer(columns[LARGEST_HITS], np.uint8))

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

    def compute(self, bootstrap: Bootstrap = base.DEFAULT) -> MaxBoxAccResult:
        """The result so far."""
        return self.replicated(bootstrap)[0]

    def replicated(
        self, bootstrap: Bootstrap = base.DEFAULT
    ) -> tuple[MaxBoxAccResult, npt.NDArray[np.floating] | None]:
        """The result so far, and the accuracy in each bootstrap replicate, `[r]`; None when there are no replicates."""
        n = base.check_any(len(self))
        right, column = self.distinct(base.TAUS)  # [n, U], [1000]
        curve: Floats = (right.sum(axis=0) / n)[column]
        best = int(curve.argmax())
        replicates = bootstrap.replicated(right, lambda means: means.max(axis=1), self.ids)
        interval = None if replicates is None else bootstrap.around(float(curve[best]), replicates, self.ids)
        per_class = base.by_class(self.labels, right[:, column[best]])
        return MaxBoxAccResult(n, float(curve[best]), float(base.TAUS[best]), interval, curve, per_class), replicates

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = base.DEFAULT) -> base.MetricSummary:
        result = self.compute(bootstrap)
        images = Counter(self.labels)
        return base.MetricSummary(
            {
                "max_box_acc": Score(
                    result.accuracy, result.interval, base.threshold_note(result.threshold, chosen=True)
                )
            },
            {"best_threshold": result.threshold, "best_threshold_is_an_oracle": not may_tune},
            {label: {"images": images[label], "max_box_acc": share} for label, share in result.per_class.items()},
        )


def largest_hits(curve: BoxCurve) -> dict[str, Any]:
    """The columns of `MaxBoxAcc` at IoU 0.5."""
    return {"highest": len(curve.best) - 1, LARGEST_HITS: packed_hits(curve.largest, 0.5)}


def packed_hits(values: Floats, iou: float) -> bytes:
    """At which of its map's 256 levels the box is right, as bits; level 0 is the first byte's highest bit."""
    right = np.zeros(LEVELS, np.bool_)
    right[: len(values)] = values >= iou
    return np.packbits(right).tobytes()


def hit_at(packed: bytes, highest: int, tau: float) -> bool:
    """Whether the box at a threshold τ is right, from what `packed_hits` gave for a map of this highest level."""
    place = level(tau, int(highest))
    return bool(packed[place // 8] >> (7 - place % 8) & 1)


def _percent(iou: float) -> str:
    return f"{iou * 100:.0f}"


@base.metric
class MaxBoxAccV2(base.Metric):
    """MaxBoxAccV2: the best pair of any contour's box and any true box; mean over IoU 0.3, 0.5 and 0.7.

    Choe et al. 2020, "Evaluation for Weakly Supervised Object Localization: Protocol, Metrics, and Datasets".

    Each IoU has its own best τ, an oracle as in `MaxBoxAcc`.

    Example:
        >>> metric, heat = MaxBoxAccV2(), np.pad(np.ones((100, 100)), 62)
        >>> judged = JudgedMap("a", heat, np.array([[62, 62, 162, 162]]), (224, 224))
        >>> metric.add("a", metric.measure(judged), None, None)
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
        self.parts = {iou: MaxBoxAcc() for iou in IOUS}

    def measure(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the best box is right, for each IoU."""
        hits = {f"hits_every_{_percent(iou)}": packed_hits(judged.curve.best, iou) for iou in IOUS}
        return {"highest": len(judged.curve.best) - 1, **hits}

    def count(self, sample_id: str, columns: base.Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        for iou, part in self.parts.items():
            hits = columns[f"hits_every_{_percent(iou)}"]
            part.add(sample_id, {"highest": columns["highest"], LARGEST_HITS: hits}, label, None)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = base.DEFAULT) -> base.MetricSummary:  # noqa: ARG002
        results, replicates = zip(*(part.replicated(bootstrap) for part in self.parts.values()), strict=True)
        scores = {
            f"max_box_acc_iou{_percent(iou)}": Score(
                part.accuracy, part.interval, base.threshold_note(part.threshold, chosen=True)
            )
            for iou, part in zip(IOUS, results, strict=True)
        }
        # Each replicate draws the same images at every IoU, so the mean over IoUs is a mean within the replicate.
        accuracy, interval = float(np.mean([part.accuracy for part in results])), None
        if replicates[0] is not None:
            interval = bootstrap.around(accuracy, np.mean(replicates, axis=0), self.parts[IOUS[0]].ids)
        scores[self.name] = Score(accuracy, interval, "their mean")
        per_class = {
            label: {self.name: float(np.mean([part.per_class[label] for part in results]))}
            for label in results[0].per_class
        }
        return base.MetricSummary(scores, {}, per_class)


@base.metric
class LocalizationAccuracy(base.Metric):
    """GT-known, Top-1 and Top-5 localisation, and classification.

    The map is the true class's. If the predicted class is right, that is the predicted class's map as well, so Top-1
    Loc needs no other map. Without a threshold τ it is the best on these images, which makes the numbers an oracle's.

    Example:
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

    def measure(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one map: at which of its levels the box is right, and its IoU at τ."""
        curve = judged.curve
        at_tau = {} if self.threshold is None else {"iou": float(curve.largest[curve.index(self.threshold)])}
        return largest_hits(curve) | at_tau

    def count(self, sample_id: str, columns: base.Row, label: int | None, predictions: Sequence[int] | None) -> None:
        self._boxes.add(sample_id, columns, label, None)
        if predictions is not None:
            if label is None:
                raise UsageError(f"{sample_id} has predictions but no true class: add its label")
            if not len(predictions) or self._depth not in (None, len(predictions)):
                expected = f"expected {self._depth or 'at least 1'} predictions, got {len(predictions)}"
                raise UsageError(f"{sample_id}: {expected}: write as many for all")
            self._depth = len(predictions)
            self._rank[sample_id] = list(predictions).index(label) if label in predictions else None

    def _at(self, tau: float, bootstrap: Bootstrap) -> tuple[dict[str, Score], dict[int, float]]:
        """The numbers at a τ, those of the Top-k where there are so many predictions; and GT-known of each class."""
        right = self._boxes.right_at([tau])[:, 0]
        ids = self._boxes.ids
        scores = {"gt_known": Score(float(right.mean()), bootstrap.of_mean(right, ids))}
        known = [i for i, image_id in enumerate(ids) if image_id in self._rank]
        ranked = [ids[i] for i in known]
        for k in (1, 5):
            if known and (self._depth or 0) >= k:
                ranks = [self._rank[image_id] for image_id in ranked]
                inside = np.array([rank is not None and rank < k for rank in ranks])
                for name, hits in ((f"top{k}_loc", inside & right[known]), (f"top{k}_cls", inside)):
                    scores[name] = Score(float(hits.mean()), bootstrap.of_mean(hits, ranked))
        return scores, base.by_class(self._boxes.labels, right)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = base.DEFAULT) -> base.MetricSummary:  # noqa: ARG002
        """All numbers at the metric's τ, and localisation also at the best τ of these images (an oracle)."""
        n, oracle = base.check_any(len(self._boxes)), self.threshold is None
        best = float(base.TAUS[self._boxes.right_at(base.TAUS).sum(axis=0).argmax()])
        tau = best if self.threshold is None else self.threshold
        (at_tau, per_class), (at_best, _) = self._at(tau, bootstrap), self._at(best, bootstrap)
        where = base.threshold_note(tau, oracle)
        of = "" if len(self._rank) == n else f"of {len(self._rank)} pictures with predictions"
        notes = {"gt_known": where, **{name: f"{where}, {of}".strip(", ") for name in LOCATED[1:]}}
        nothing = Score(None)
        scores = {
            name: replace(at_tau.get(name, nothing), note=notes.get(name, of)) for name in (*LOCATED, *CLASSIFIED)
        }
        # GT-known at the best τ is MaxBoxAcc.
        scores |= {f"{name}_oracle": at_best.get(name, nothing) for name in LOCATED}
        facts = {"threshold": tau, "threshold_chosen_on_these_images": oracle, "with_predictions": len(self._rank)}
        return base.MetricSummary(scores, facts, {label: {"gt_known": share} for label, share in per_class.items()})

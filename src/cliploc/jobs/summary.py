"""Parts → the numbers of each setting, by the metrics that `cliploc evaluate` uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cliploc.jobs.rows import IOUS, Row, unpack_counts
from cliploc.metrics import (
    Bootstrap,
    EnergyInBoxes,
    LocalizationAccuracy,
    MaxBoxAcc,
    MaxBoxAccV2,
    MeanBestIoU,
    PointingGame,
    PxAP,
    VLScoreRule,
)
from cliploc.metrics.box_accuracy import Interval

# All that a summary reads of the rows: neither thumbnails nor boxes.
COLUMNS = (
    "sample", "setting", "label", "status", "reason", "predictions", "highest", "hits_largest_50",
    *(f"hits_every_{iou * 100:.0f}" for iou in IOUS), "best_iou", "vl_hit", "pointing_hit", "energy", "pxap",
)  # fmt: skip
DEFAULT = Bootstrap()
Summary = dict[str, Any]


@dataclass
class _Tally:
    """The metrics of one setting, row by row."""

    threshold: float
    images: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    max_box_acc: MaxBoxAcc = field(default_factory=MaxBoxAcc)
    max_box_acc_v2: MaxBoxAccV2 = field(default_factory=lambda: MaxBoxAccV2(IOUS))
    located: LocalizationAccuracy = field(default_factory=LocalizationAccuracy)
    pxap: PxAP = field(default_factory=PxAP)
    masks: int = 0

    def __post_init__(self) -> None:
        self.means = {
            "vl_score_rule": (VLScoreRule(self.threshold), "vl_hit"),
            "pointing_game": (PointingGame(), "pointing_hit"),
            "energy_in_boxes": (EnergyInBoxes(), "energy"),
            "mean_best_iou": (MeanBestIoU(self.threshold), "best_iou"),
        }

    def add(self, row: Row) -> None:
        """One row; a sample that comes twice is an error."""
        self.images += 1
        name, label = row["sample"], row["label"]
        if row["status"] != "ok":
            self.failed.append({"sample": name, "reason": row["reason"]})
            return
        if row["highest"] is not None:
            highest, largest = row["highest"], row["hits_largest_50"]
            self.max_box_acc.restore(name, highest, largest, label)
            self.max_box_acc_v2.restore(name, highest, {iou: row[f"hits_every_{iou * 100:.0f}"] for iou in IOUS}, label)
            self.located.restore(name, highest, largest, label, row["predictions"])
            for metric, column in self.means.values():
                metric.restore(name, float(row[column]), label)
        if row["pxap"] is not None:
            self.masks += 1
            self.pxap.restore(name, *unpack_counts(row["pxap"]))

    def summary(self, tune: bool, bootstrap: Bootstrap) -> Summary:
        """The numbers, shares in percent."""
        numbers: dict[str, tuple[float | None, Interval]] = {}
        facts: Summary = {"threshold": self.threshold, "threshold_chosen_on_these_images": False}
        per_class: dict[str, dict[str, float]] = {}
        if len(self.max_box_acc.hits):
            one, two = self.max_box_acc.compute(bootstrap), self.max_box_acc_v2.compute(bootstrap)
            numbers["max_box_acc"] = one.accuracy, one.interval
            for iou, part in two.at_iou.items():
                numbers[f"max_box_acc_iou{iou * 100:.0f}"] = part.accuracy, part.interval
            numbers["max_box_acc_v2"] = two.accuracy, two.interval
            at_own, at_best = self.located.compute(self.threshold, bootstrap), self.located.compute(None, bootstrap)
            for name in ("gt_known", "top1_loc", "top5_loc", "top1_cls", "top5_cls"):
                numbers[name] = getattr(at_own, name), at_own.intervals.get(name)
            for name in ("gt_known", "top1_loc", "top5_loc"):
                # At the best τ of these images; GT-known there is MaxBoxAcc.
                numbers[f"{name}_oracle"] = getattr(at_best, name), at_best.intervals.get(name)
            means = {name: metric.compute(bootstrap) for name, (metric, _) in self.means.items()}
            numbers |= {name: (mean.mean, mean.interval) for name, mean in means.items()}
            facts |= {
                "best_threshold": one.threshold,
                "best_threshold_is_an_oracle": not tune,
                "with_predictions": at_own.predicted,
            }
            images = Counter(self.max_box_acc.hits.labels)
            for label, share in one.per_class.items():
                per_class[str(label)] = {
                    "images": images[label],
                    "max_box_acc": 100 * share,
                    "max_box_acc_v2": 100 * two.per_class[label],
                    "gt_known": 100 * at_own.per_class[label],
                    **{name: 100 * mean.per_class[label] for name, mean in means.items()},
                }
        if self.masks:
            pixels = self.pxap.compute(bootstrap)
            numbers["pxap"] = pixels.pxap, pixels.interval
        return {
            **{name: None if share is None else 100 * share for name, (share, _) in numbers.items()},
            **facts,
            "images": self.images,
            "evaluated": self.images - len(self.failed),
            "confidence_95": {name: [100 * end for end in ends] for name, (_, ends) in numbers.items() if ends},
            "per_class": per_class,
            "failed": self.failed,
        }


def summarize(
    settings: Sequence[Mapping[str, Any]], rows: Iterable[Row], tune: bool = False, bootstrap: Bootstrap = DEFAULT
) -> dict[str, Summary]:
    """The numbers of a run.

    Args:
        settings: those of its manifest: `id` and `threshold`.
        rows: those of its parts, in any order; the `COLUMNS` are enough.
        tune: whether these images may choose a threshold.
        bootstrap: how intervals are made.

    Returns:
        Setting → the keys that docs/benchmark.md explains.

    Raises:
        UsageError: a sample that comes twice.
    """
    tallies = {one["id"]: _Tally(one["threshold"]) for one in settings}
    for row in rows:
        tallies[row["setting"]].add(row)
    return {name: tally.summary(tune, bootstrap) for name, tally in tallies.items()}

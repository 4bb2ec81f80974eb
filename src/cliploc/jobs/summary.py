"""Computes the numbers of each setting from the parts, with the metrics that `cliploc evaluate` uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cliploc.jobs.rows import Row
from cliploc.metrics import Bootstrap, Interval, Metric, MetricSummary, all_metrics

DEFAULT = Bootstrap()
Summary = dict[str, Any]


def summary_columns() -> tuple[str, ...]:
    """All columns of the rows that a summary needs; neither thumbnails nor boxes."""
    own = ("sample", "setting", "label", "status", "reason", "predictions")
    return tuple(dict.fromkeys([*own, *(column for one in all_metrics() for column in one.columns)]))


@dataclass
class _Tally:
    """Counts the rows of one setting with all metrics."""

    threshold: float
    images: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics: list[Metric] = [one.at(self.threshold if one.needs_threshold else None) for one in all_metrics()]

    def add(self, row: Row) -> None:
        """Counts one row; a sample that occurs twice is an error."""
        self.images += 1
        if row["status"] != "ok":
            self.failed.append({"sample": row["sample"], "reason": row["reason"]})
            return
        # A plugin's metric that was added during the run would have counted only a part of the samples.
        self.metrics = [one for one in self.metrics if one.columns.keys() <= row.keys()]
        for one in self.metrics:
            if all(row[column] is not None for column in one.columns):
                one.add(row["sample"], row, row["label"], row["predictions"])

    def summary(self, may_tune: bool, bootstrap: Bootstrap) -> Summary:
        """The numbers, shares in percent."""
        numbers, facts, per_class = joined(one.summarise(may_tune, bootstrap) for one in self.metrics if len(one))
        return {
            "threshold": self.threshold,
            "threshold_chosen_on_these_images": False,
            **numbers,
            **facts,
            "images": self.images,
            "evaluated": self.images - len(self.failed),
            "per_class": per_class,
            "failed": self.failed,
        }


def joined(
    summaries: Iterable[MetricSummary],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, float]]]:
    """Joins the summaries of several metrics, with plain values for JSON; shares in percent.

    Returns:
        The numbers with their intervals under `confidence_95`, further facts, and the numbers of each class.
    """
    numbers: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    facts: dict[str, Any] = {}
    per_class: dict[str, dict[str, float]] = {}
    for found in summaries:
        numbers |= {key: None if score.value is None else 100 * score.value for key, score in found.scores.items()}
        intervals |= {key: score.interval for key, score in found.scores.items()}
        facts |= found.facts
        for label, values in found.per_class.items():
            of_class = per_class.setdefault(str(label), {})
            of_class |= {key: value if key == "images" else 100 * value for key, value in values.items()}
    ends = {key: [100 * end for end in interval] for key, interval in intervals.items() if interval}
    return {**numbers, "confidence_95": ends}, facts, per_class


def summarize(
    settings: Sequence[Mapping[str, Any]], rows: Iterable[Row], tune: bool = False, bootstrap: Bootstrap = DEFAULT
) -> dict[str, Summary]:
    """Computes the numbers of a run.

    Args:
        rows: the rows of its parts, in any order; the `summary_columns` are enough.

    Returns:
        For each setting the keys that `cliploc help benchmark --all` explains.
    """
    tallies = {one["id"]: _Tally(one["threshold"]) for one in settings}
    for row in rows:
        tallies[row["setting"]].add(row)
    return {name: tally.summary(tune, bootstrap) for name, tally in tallies.items()}

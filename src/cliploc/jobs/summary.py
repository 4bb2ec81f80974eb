"""Computes the numbers of each setting from the rows of a run."""

from collections.abc import Iterable, Mapping
from typing import Any

from cliploc.jobs.rows import Row
from cliploc.metrics import Bootstrap, Interval, Metric, MetricSummary, all_metrics

DEFAULT = Bootstrap()
COUNTED = ("sample", "setting", "status", "reason")  # the columns that counting pictures needs
Summary = dict[str, Any]


class Tally:
    """Counts the rows of one setting; this one only pictures, for runs whose rows are read by what follows them."""

    def add(self, row: Row) -> None:
        """Counts the row of a picture that did not fail; a sample that occurs twice is an error."""

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> Summary:  # noqa: ARG002
        """The numbers, with these counts of pictures among them."""
        return dict(counts)


def summed_up(rows: Iterable[Row], tallies: Mapping[str, Tally], bootstrap: Bootstrap = DEFAULT) -> dict[str, Summary]:
    """Computes the numbers of a run, setting → numbers; the rows may be in any order."""
    failed: dict[str, list[dict[str, str]]] = {name: [] for name in tallies}
    evaluated = dict.fromkeys(tallies, 0)
    for row in rows:
        if row["status"] != "ok":
            failed[row["setting"]].append({"sample": row["sample"], "reason": row["reason"]})
        else:
            evaluated[row["setting"]] += 1
            tallies[row["setting"]].add(row)
    return {
        name: {
            **tally.summary({"images": evaluated[name] + len(failed[name]), "evaluated": evaluated[name]}, bootstrap),
            "failed": failed[name],
        }
        for name, tally in tallies.items()
    }


# --------------------------------------------------------------------------------------------------------- localization
def summary_columns() -> tuple[str, ...]:
    """All columns of the rows of boxes that a summary needs; neither thumbnails nor boxes."""
    own = ("sample", "setting", "label", "status", "reason", "predictions")
    return tuple(dict.fromkeys([*own, *(column for one in all_metrics() for column in one.columns)]))


class BoxTally(Tally):
    """Counts the rows of one setting with all metrics, which `cliploc evaluate` uses too."""

    def __init__(self, threshold: float, may_tune: bool) -> None:
        self.threshold, self.may_tune = threshold, may_tune  # whether the pictures may choose a threshold
        self.metrics: list[Metric] = [one.at(threshold if one.needs_threshold else None) for one in all_metrics()]

    def add(self, row: Row) -> None:
        # A plugin's metric that was added during the run would have counted only a part of the samples.
        self.metrics = [one for one in self.metrics if one.columns.keys() <= row.keys()]
        for one in self.metrics:
            if all(row[column] is not None for column in one.columns):
                one.add(row["sample"], row, row["label"], row["predictions"])

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> Summary:
        """Shares in percent; `cliploc help benchmark --all` explains the keys."""
        numbers, facts, per_class = joined(one.summarise(self.may_tune, bootstrap) for one in self.metrics if len(one))
        return {
            "threshold": self.threshold,
            "threshold_chosen_on_these_images": False,
            **numbers,
            **facts,
            **counts,
            "per_class": per_class,
        }


def joined(
    summaries: Iterable[MetricSummary],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, float]]]:
    """The numbers of several metrics, with `confidence_95`; further facts; the numbers of each class. In percent."""
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

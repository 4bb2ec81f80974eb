"""The protocol of a metric and the registry: the columns it stores for each sample, and the numbers it reports.

The benchmark, `cliploc evaluate`, `summary.json`, the report and the tables read the registry. So a new metric is one
file here and its test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.metrics._infra.bootstrap import DEFAULT, Bootstrap, Interval
from cliploc.metrics._infra.curve import BoxCurve, Convention, Floats, box_curve, boxes_on_map
from cliploc.registry import Registry
from cliploc.values import FloatArray

ColumnType = Literal["float", "bool", "level", "hits", "bytes"]  # "level": 0–255; "hits": 256 bits
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Number:
    """One number that a metric reports.

    Attributes:
        title: heading of its column in tables.
        about: one line that explains it.
        column: heading in the benchmark's table on the terminal, which is narrow; "" leaves it out there.
        threshold: name of the fact with its threshold, shown beside it on the terminal; "" for none.
    """

    title: str
    about: str
    column: str = ""
    threshold: str = ""


@dataclass(frozen=True)
class Score:
    """The value of a `Number`.

    Attributes:
        value: from 0 to 1; None if it cannot be computed.
        interval: its confidence interval.
        note: the threshold, or the number of images it is a share of.
    """

    value: float | None
    interval: Interval = None
    note: str = ""


@dataclass(frozen=True)
class MetricSummary:
    """What a metric reports for all samples together.

    Attributes:
        scores: name of a number → its value.
        facts: further entries of `summary.json`, such as the best threshold.
        per_class: label → name of a number → its value from 0 to 1.
    """

    scores: Mapping[str, Score]
    facts: Mapping[str, Any] = field(default_factory=dict)
    per_class: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgedMap:
    """One sample's score map and its ground truth.

    Attributes:
        sample_id: which sample.
        heat: `[H, W]` floats in 0–1 over the whole picture.
        true_xyxy: `[m, 4]` true boxes in original pixels; may be empty.
        size_wh: width and height of the original.
        mask: `[H, W]` bool, where the object is; None where masks are not known.
        ignore: `[H, W]` bool, pixels that do not count; None for none.
        convention: how `curve` compares boxes; see `box_curve`.
    """

    sample_id: str
    heat: FloatArray
    true_xyxy: npt.NDArray[np.floating[Any]]
    size_wh: tuple[int, int]
    mask: npt.NDArray[np.bool_] | None = None
    ignore: npt.NDArray[np.bool_] | None = None
    convention: Convention = "wsoleval"

    @cached_property
    def boxes(self) -> Floats:
        """`[m, 4]` true boxes in map pixels, not rounded."""
        return boxes_on_map(self.true_xyxy, self.size_wh, self._map_hw, "exact")

    @cached_property
    def curve(self) -> BoxCurve:
        """How well the map's boxes fit at every threshold."""
        boxes = boxes_on_map(self.true_xyxy, self.size_wh, self._map_hw, self.convention)
        return box_curve(self.sample_id, self.heat, boxes, self.convention)

    @property
    def _map_hw(self) -> tuple[int, int]:
        height, width = self.heat.shape
        return height, width


class Metric(ABC):
    """A metric: judges one sample's map, stores the result as columns of a row, and computes numbers from many rows.

    Attributes:
        name: as the registry has it.
        position: its place among the metrics wherever they are listed.
        truth: what it compares with, true "boxes" or true "masks"; samples without them are left out.
        columns: what it stores for a sample: name of the column → its type. Metrics may share columns.
        numbers: what it reports: key in `summary.json` → its description.
        needs_threshold: whether its columns depend on the threshold τ.
        chooses_threshold: whether it can choose τ itself, on the images.
    """

    name: ClassVar[str]
    position: ClassVar[int] = 100
    truth: ClassVar[Literal["boxes", "masks"]] = "boxes"
    columns: ClassVar[Mapping[str, ColumnType]]
    numbers: ClassVar[Mapping[str, Number]]
    needs_threshold: ClassVar[bool] = False
    chooses_threshold: ClassVar[bool] = False

    @classmethod
    def at(cls, threshold: float | None) -> Self:  # noqa: ARG003  # for those that need one
        """The metric at a threshold τ; None: chosen on the images themselves, where the metric can do that."""
        return cls()

    @abstractmethod
    def __len__(self) -> int:
        """The number of samples counted."""

    @abstractmethod
    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one sample.

        Raises:
            InputError: a map that cannot be used.
        """

    @abstractmethod
    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:
        """Counts one sample by its columns; a second time is a `UsageError`."""

    @abstractmethod
    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:
        """The numbers so far; `may_tune` says whether these images may choose a threshold."""


metrics: Registry[type[Metric]] = Registry(
    "metric", "cliploc.metrics", "cliploc.metrics", home=lambda cls: cls.__module__
)
M = TypeVar("M", bound=type[Metric])


def metric(cls: M) -> M:
    """Registers a class as a metric."""
    metrics.register(cls.name, cls)
    return cls


def all_metrics(truth: Literal["boxes", "masks"] | None = None) -> tuple[type[Metric], ...]:
    """The registered metrics in the order of their positions; with `truth`, only those of that kind."""
    chosen = [one for one in metrics if truth is None or one.truth == truth]
    return tuple(sorted(chosen, key=lambda one: (one.position, one.name)))


def all_numbers() -> dict[str, Number]:
    """Every number of every metric: key in `summary.json` → its description.

    Tables know columns by their titles, so a title that several numbers share is followed by the key.
    """
    numbers = {key: number for one in all_metrics() for key, number in one.numbers.items()}
    uses = Counter(number.title for number in numbers.values())
    return {
        key: number if uses[number.title] == 1 else replace(number, title=f"{number.title} ({key})")
        for key, number in numbers.items()
    }


def judge_map(judged: JudgedMap, thresholds: Sequence[float]) -> Iterator[dict[str, Any]]:
    """The columns of all metrics for one map, once for each threshold τ.

    Example:
        >>> heat = np.zeros((224, 224), np.float32)
        >>> heat[50:100, 50:100] = 1
        >>> judged = JudgedMap("a", heat, np.array([[50, 50, 100, 100]]), (224, 224))
        >>> [row] = judge_map(judged, [0.5])
        >>> row["iou"], row["pointing_hit"]
        (1.0, True)
    """
    fitting = [
        one for one in all_metrics() if (len(judged.true_xyxy) > 0 if one.truth == "boxes" else judged.mask is not None)
    ]
    common: dict[str, Any] = {}
    for one in fitting:
        if not one.needs_threshold:
            common |= one.at(None).judge(judged)
    for tau in thresholds:
        columns = dict(common)
        for one in fitting:
            if one.needs_threshold:
                columns |= one.at(tau).judge(judged)
        yield columns


def refuse_empty(count: int) -> int:
    """Returns the count of samples, unless it is 0.

    Raises:
        UsageError: there are no samples.
    """
    if not count:
        raise UsageError("expected at least one image before the metric is computed, got none: add some")
    return count


def refuse_twice(sample_id: str, known: Mapping[str, object] | set[str]) -> None:
    """Raises a `UsageError` for a sample that was counted already."""
    if sample_id in known:
        raise UsageError(f"{sample_id} occurs twice: evaluate each image once")


def refuse_unlike(same: bool) -> None:
    """Raises a `UsageError` unless two metrics that are to be merged are of the same kind and settings."""
    if not same:
        raise UsageError("expected two of the same metric with the same settings, got others: merge parts of one run")


def stated(threshold: float | None, name: str) -> float:
    """Returns the threshold of a metric that cannot choose one itself.

    Raises:
        UsageError: it is None.
    """
    if threshold is None:
        raise UsageError(f"{name} needs a threshold from 0 to 1, got none: state one")
    return threshold

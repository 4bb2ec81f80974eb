"""The base of metrics that are the mean of one number for each image."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from cliploc.metrics._infra.bootstrap import DEFAULT, Bootstrap, Interval
from cliploc.metrics._infra.hits import by_class
from cliploc.metrics._infra.metric import (
    ColumnType,
    JudgedMap,
    Metric,
    MetricSummary,
    Row,
    Score,
    refuse_empty,
    refuse_twice,
    refuse_unlike,
)


@dataclass(frozen=True)
class MeanResult:
    """The mean over images."""

    n: int  # number of images
    mean: float  # from 0 to 1
    interval: Interval  # its confidence interval
    per_class: Mapping[int, float]  # label → mean


class MeanMetric(Metric):
    """A metric that is the mean of one number for each image; a subclass computes the number.

    Attributes:
        column: name of the column that stores an image's number.
        column_type: its type; "bool" if the mean is a share of images.
    """

    column: ClassVar[str]
    column_type: ClassVar[ColumnType] = "float"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.columns = {cls.column: cls.column_type}

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, int | None]] = {}

    def __len__(self) -> int:
        return len(self._values)

    @property
    def _settings(self) -> tuple[object, ...]:
        """The constructor's arguments, from which `merge` makes another metric with the same settings."""
        return ()

    @abstractmethod
    def value_of(self, judged: JudgedMap) -> float:
        """The score of one image, from 0 to 1."""

    def restore(self, image_id: str, value: float, label: int | None = None) -> None:
        """Counts one image whose value is known; a second time is a `UsageError`."""
        refuse_twice(image_id, self._values)
        self._values[image_id] = (value, label)

    def merge(self, other: Self) -> Self:
        """A metric over the images of both, which must not share any."""
        refuse_unlike(type(self) is type(other) and self._settings == other._settings)
        if twice := self._values.keys() & other._values.keys():
            refuse_twice(min(twice), self._values)
        both = type(self)(*self._settings)
        both._values = {**self._values, **other._values}
        return both

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> MeanResult:
        """The result so far; a `UsageError` when no image was counted."""
        n = refuse_empty(len(self._values))
        rows = [self._values[one] for one in sorted(self._values)]
        values = np.array([value for value, _ in rows])
        interval = bootstrap.interval(values[:, None], lambda means: means[:, 0])
        # fsum: exactly the same sum for any order and any merged parts.
        return MeanResult(n, math.fsum(values) / n, interval, by_class([label for _, label in rows], values))

    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The image's number."""
        value = self.value_of(judged)
        return {self.column: bool(value) if self.column_type == "bool" else value}

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        """Counts one sample by its column."""
        self.restore(sample_id, float(columns[self.column]), label)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:  # noqa: ARG002
        """The mean."""
        result = self.compute(bootstrap)
        per_class = {label: {self.name: share} for label, share in result.per_class.items()}
        return MetricSummary({self.name: Score(result.mean, result.interval, self.note)}, {}, per_class)

    @property
    def note(self) -> str:
        """A note that names the threshold; "" for a metric without one."""
        return ""

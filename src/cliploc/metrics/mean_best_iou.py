"""Mean best IoU: the IoU of the best of a map's boxes at a given threshold, averaged over images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np  # noqa: F401  # used by the example

from cliploc.metrics._infra.curve import BoxCurve, level
from cliploc.metrics._infra.mean import MeanMetric
from cliploc.metrics._infra.metric import JudgedMap, Number, metric, stated
from cliploc.metrics.max_box_acc import threshold_note


@metric
class MeanBestIoU(MeanMetric):
    """The IoU of the best of all contours' boxes at a given τ, averaged over images.

    Example:
        >>> MeanBestIoU(0.4).value(BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.7])))
        0.4
    """

    name: ClassVar[str] = "mean_best_iou"
    position: ClassVar[int] = 70
    column: ClassVar[str] = "best_iou"
    needs_threshold: ClassVar[bool] = True
    numbers: ClassVar[Mapping[str, Number]] = {
        "mean_best_iou": Number("Mean best IoU", "of the best of all contours' boxes at τ")
    }

    def __init__(self, threshold: float) -> None:
        super().__init__()
        level(threshold, 0)
        self.threshold = threshold

    @classmethod
    def at(cls, threshold: float | None) -> Self:
        """The metric at a threshold τ, which it needs."""
        return cls(stated(threshold, cls.name))

    @property
    def _settings(self) -> tuple[object, ...]:
        return (self.threshold,)

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image; a second time is a `UsageError`."""
        self.restore(curve.image_id, self.value(curve), label)

    def value(self, curve: BoxCurve) -> float:
        """The score of one image, from 0 to 1."""
        return float(curve.best[curve.index(self.threshold)])

    def value_of(self, judged: JudgedMap) -> float:
        """The score of one image, from 0 to 1."""
        return self.value(judged.curve)

    @property
    def note(self) -> str:
        """A note that names the threshold."""
        return threshold_note(self.threshold, chosen=False)

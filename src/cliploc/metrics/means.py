"""Metrics that are the mean of one number an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.errors import UsageError
from cliploc.metrics._bootstrap import DEFAULT, Bootstrap
from cliploc.metrics.box_accuracy import Interval, by_class, some
from cliploc.metrics.curve import BoxCurve, checked_map, iou, level


@dataclass(frozen=True)
class MeanResult:
    """The mean over images.

    Attributes:
        n: how many images.
        mean: from 0 to 1.
        interval: its confidence interval.
        per_class: label → mean.
    """

    n: int
    mean: float
    interval: Interval
    per_class: Mapping[int, float]


class _Mean:
    """Values by image; subclasses say what an image's value is."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[float, int | None]] = {}

    @property
    def _settings(self) -> tuple[object, ...]:
        return ()

    def _new(self) -> Self:
        return type(self)(*self._settings)

    def restore(self, image_id: str, value: float, label: int | None = None) -> None:
        """Counts one image whose value is known; a second time is a `UsageError`."""
        if image_id in self._values:
            raise UsageError(f"{image_id} comes twice: evaluate each image once")
        self._values[image_id] = (value, label)

    def merge(self, other: Self) -> Self:
        """A metric over the images of both, which must not share any."""
        if type(self) is not type(other) or self._settings != other._settings:
            raise UsageError("expected two of the same metric with the same settings")
        if twice := self._values.keys() & other._values.keys():
            raise UsageError(f"{min(twice)} comes twice: evaluate each image once")
        both = self._new()
        both._values = {**self._values, **other._values}
        return both

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> MeanResult:
        """The result so far; a `UsageError` when no image was counted."""
        n = some(len(self._values))
        rows = [self._values[one] for one in sorted(self._values)]
        values = np.array([value for value, _ in rows])
        interval = bootstrap.interval(values[:, None], lambda means: means[:, 0])
        # fsum: the same to the last bit in whatever parts the images came.
        return MeanResult(n, math.fsum(values) / n, interval, by_class([label for _, label in rows], values))


class MeanBestIoU(_Mean):
    """How well the best of all contours' boxes fits at a stated τ, IoU averaged over images.

    Args:
        threshold: τ.

    Raises:
        UsageError: τ outside 0–1.
    """

    def __init__(self, threshold: float) -> None:
        super().__init__()
        level(threshold, 0)
        self.threshold = threshold

    @property
    def _settings(self) -> tuple[object, ...]:
        return (self.threshold,)

    def update(self, curve: BoxCurve, label: int | None = None) -> None:
        """Counts one image; a second time is a `UsageError`."""
        self.restore(curve.image_id, self.value(curve), label)

    def value(self, curve: BoxCurve) -> float:
        """What one image counts, from 0 to 1."""
        return float(curve.best[curve.index(self.threshold)])


class VLScoreRule(_Mean):
    """VL-Score's own rule: right if any predicted box has an IoU of at least 0.5 with any true box.

    Gao & Wang 2022. Boxes are those of 4-connected regions above τ·max that cover at least 0.1 % of the map. More
    lenient than MaxBoxAcc, which takes one box: report both.

    Args:
        threshold: τ; 0.6 is what the paper reports.

    Raises:
        UsageError: τ outside 0–1.
    """

    def __init__(self, threshold: float = 0.6) -> None:
        super().__init__()
        self.threshold = threshold
        self._rule = BoxRule(threshold, min_area=0.001, nms_iou=None, connectivity=4)

    @property
    def _settings(self) -> tuple[object, ...]:
        return (self.threshold,)

    def update(
        self, image_id: str, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike, label: int | None = None
    ) -> None:
        """Counts one image.

        Args:
            image_id: a second time is a `UsageError`.
            score_map: `[H, W]` in 0–1.
            true_xyxy: `[m, 4]` in map pixels, exclusive right and bottom edge.
            label: the true class.
        """
        self.restore(image_id, self.value(score_map, true_xyxy), label)

    def value(self, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike) -> float:
        """What one image counts: 1 or 0."""
        heat = checked_map(score_map, "exact").astype(np.float32)
        found = boxes_from_maps(heat[None], self._rule).xyxy
        return float(iou(found, true_xyxy, 0).max(initial=0.0) >= 0.5)


class PointingGame(_Mean):
    """The hottest pixel is on a true box, or at most 15 pixels beside it.

    Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop". Of equally hot pixels the first counts; a map
    that is the same everywhere points nowhere: a miss.

    Args:
        tolerance_px: in map pixels.
    """

    def __init__(self, tolerance_px: float = 15) -> None:
        super().__init__()
        if not tolerance_px >= 0:
            raise UsageError(f"expected a tolerance of at least 0 pixels, got {tolerance_px}")
        self.tolerance_px = tolerance_px

    @property
    def _settings(self) -> tuple[object, ...]:
        return (self.tolerance_px,)

    def update(
        self, image_id: str, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike, label: int | None = None
    ) -> None:
        """Counts one image; arguments as in `VLScoreRule.update`."""
        self.restore(image_id, self.value(score_map, true_xyxy), label)

    def value(self, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike) -> float:
        """What one image counts: 1 or 0."""
        heat = checked_map(score_map, "exact")
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        boxes = np.asarray(true_xyxy, dtype=np.float64).reshape(-1, 4)
        last = np.maximum(np.ceil(boxes[:, 2:]) - 1, boxes[:, :2])  # the last pixel that a box touches
        outside = np.maximum(np.maximum(boxes[:, :2] - (x, y), (x, y) - last), 0)  # [m, 2]
        near = bool((np.hypot(*outside.T) <= self.tolerance_px).any())
        return float(near and heat.min() < heat.max())


class EnergyInBoxes(_Mean):
    """The share of a map's sum that lies inside the true boxes (Wang et al. 2020, Score-CAM).

    A pixel is inside when its centre is. A map without energy has none inside: 0.
    """

    def update(
        self, image_id: str, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike, label: int | None = None
    ) -> None:
        """Counts one image; arguments as in `VLScoreRule.update`."""
        self.restore(image_id, self.value(score_map, true_xyxy), label)

    def value(self, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike) -> float:
        """What one image counts, from 0 to 1."""
        heat = checked_map(score_map, "exact").astype(np.float64)
        y, x = (np.arange(size) + 0.5 for size in heat.shape)
        inside = np.zeros(heat.shape, np.bool_)
        for x0, y0, x1, y1 in np.asarray(true_xyxy, dtype=np.float64).reshape(-1, 4):
            inside |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
        total = float(heat.sum())
        return float(heat[inside].sum()) / total if total > 0 else 0.0

"""The pointing game (Zhang et al. 2018): is the hottest pixel on the object?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.metrics._infra.curve import checked_map
from cliploc.metrics._infra.mean import MeanMetric
from cliploc.metrics._infra.metric import ColumnType, JudgedMap, Number, metric


@metric
class PointingGame(MeanMetric):
    """The hottest pixel is on a true box, or at most 15 pixels beside it.

    Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop". Of equally hot pixels the first counts. A
    constant map is a miss.

    Example:
        >>> heat = np.zeros((64, 64))
        >>> heat[10, 20] = 1
        >>> PointingGame().value(heat, [[30, 5, 40, 15]])
        1.0
    """

    name: ClassVar[str] = "pointing_game"
    position: ClassVar[int] = 50
    column: ClassVar[str] = "pointing_hit"
    column_type: ClassVar[ColumnType] = "bool"
    numbers: ClassVar[Mapping[str, Number]] = {
        "pointing_game": Number("Pointing game", "the hottest pixel is on the object or at most 15 pixels beside it")
    }

    def __init__(self, tolerance_px: float = 15) -> None:
        super().__init__()
        if not tolerance_px >= 0:
            raise UsageError(f"expected a tolerance of at least 0 pixels, got {tolerance_px}: 15 is usual")
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
        """The score of one image: 1 or 0."""
        heat = checked_map(score_map, "exact")
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        boxes = np.asarray(true_xyxy, dtype=np.float64).reshape(-1, 4)
        last = np.maximum(np.ceil(boxes[:, 2:]) - 1, boxes[:, :2])  # the last pixel that a box touches
        outside = np.maximum(np.maximum(boxes[:, :2] - (x, y), (x, y) - last), 0)  # [m, 2]
        near = bool((np.hypot(*outside.T) <= self.tolerance_px).any())
        return float(near and heat.min() < heat.max())

    def value_of(self, judged: JudgedMap) -> float:
        """The score of one image: 1 or 0."""
        return self.value(judged.heat, judged.boxes)

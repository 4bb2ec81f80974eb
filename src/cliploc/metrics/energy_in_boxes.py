"""Energy in boxes (Wang et al. 2020): how much of a map's sum lies inside the true boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.metrics._infra.curve import checked_map
from cliploc.metrics._infra.mean import MeanMetric
from cliploc.metrics._infra.metric import JudgedMap, Number, metric


@metric
class EnergyInBoxes(MeanMetric):
    """The share of a map's sum that lies inside the true boxes (Wang et al. 2020, Score-CAM).

    A pixel is inside when its centre is. The score of an all-zero map is 0.

    Example:
        >>> EnergyInBoxes().value(np.ones((8, 8)), [[0, 0, 4, 8]])
        0.5
    """

    name: ClassVar[str] = "energy_in_boxes"
    position: ClassVar[int] = 60
    column: ClassVar[str] = "energy"
    numbers: ClassVar[Mapping[str, Number]] = {
        "energy_in_boxes": Number("Energy in boxes", "the share of the map's sum inside the true boxes")
    }

    def update(
        self, image_id: str, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike, label: int | None = None
    ) -> None:
        """Counts one image; arguments as in `VLScoreRule.update`."""
        self.restore(image_id, self.value(score_map, true_xyxy), label)

    def value(self, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike) -> float:
        """The score of one image, from 0 to 1."""
        heat = checked_map(score_map, "exact").astype(np.float64)
        y, x = (np.arange(size) + 0.5 for size in heat.shape)
        inside = np.zeros(heat.shape, np.bool_)
        for x0, y0, x1, y1 in np.asarray(true_xyxy, dtype=np.float64).reshape(-1, 4):
            inside |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
        total = float(heat.sum())
        return float(heat[inside].sum()) / total if total > 0 else 0.0

    def value_of(self, judged: JudgedMap) -> float:
        """The score of one image, from 0 to 1."""
        return self.value(judged.heat, judged.boxes)

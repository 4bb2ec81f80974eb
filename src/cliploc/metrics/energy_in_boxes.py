"""Energy in boxes (Wang et al. 2020): how much of a map's sum lies inside the true boxes."""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.metrics._infra.curve import checked_map
from cliploc.metrics._infra.metric import JudgedMap, MeanMetric, Number, metric


@metric
class EnergyInBoxes(MeanMetric):
    """The share of a map's sum that lies inside the true boxes (Wang et al. 2020, Score-CAM).

    A pixel is inside when its centre is. The score of an all-zero map is 0.

    Example:
        >>> EnergyInBoxes().value_of(JudgedMap("a", np.ones((8, 8)), np.array([[0, 0, 4, 8]]), (8, 8)))
        0.5
    """

    name = "energy_in_boxes"
    position = 60
    column = "energy"
    numbers: ClassVar = {
        "energy_in_boxes": Number("Energy in boxes", "the share of the map's sum inside the true boxes")
    }

    def value_of(self, judged: JudgedMap) -> float:
        heat = checked_map(judged.heat, "exact").astype(np.float64)
        return share_inside(heat, judged.inside)


def share_inside(heat: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]) -> float:
    """The share of a map's sum that lies in a region; 0 of an all-zero map."""
    total = float(heat.sum())
    return float(heat[inside].sum()) / total if total > 0 else 0.0

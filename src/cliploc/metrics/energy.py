"""Energy in boxes and in masks: how much of a map's sum lies on the object."""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.metrics._infra.curve import checked_map
from cliploc.metrics._infra.metric import JudgedMap, MeanMetric, Number, checked_masks, metric


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


@metric
class EnergyInMasks(MeanMetric):
    """The share of a map's sum that lies inside the true mask.

    It is the attribution localisation of Kohlbrenner et al. 2020, "Towards Best Practice in Explaining Neural Network
    Decisions with LRP", and the relevance mass accuracy of Arras et al. 2022, "CLEVR-XAI". Against boxes the same
    number is `energy_in_boxes`. Ignored pixels do not count, unless they are of the object.

    Example:
        >>> mask = np.array([[True, False]])
        >>> EnergyInMasks().value_of(JudgedMap("a", np.array([[0.75, 0.25]]), np.zeros((0, 4)), (2, 1), mask))
        0.75
    """

    name = "energy_in_masks"
    position = 82
    truth = "masks"
    column = "mask_energy"
    numbers: ClassVar = {"energy_in_masks": Number("Energy in masks", "the share of the map's sum on the object")}

    def value_of(self, judged: JudgedMap) -> float:
        heat = checked_map(judged.heat, "exact").astype(np.float64)
        mask, outside = checked_masks(judged)
        return share_inside(np.where(mask | outside, heat, 0), mask)


def share_inside(heat: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]) -> float:
    """The share of a map's sum that lies in a region; 0 of an all-zero map."""
    total = float(heat.sum())
    return float(heat[inside].sum()) / total if total > 0 else 0.0

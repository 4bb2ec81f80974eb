"""How much of the heat lies on the object, the mean over images: pointing game, energy, relevance rank."""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.evaluate.metrics import _base as base
from cliploc.evaluate.metrics._base import JudgedMap, Number
from cliploc.evaluate.metrics._boxes import checked_map
from cliploc.values import FloatArray

TOLERANCE = 15  # pixels beside a box, of the pointing game


@base.metric
class PointingGame(base.MeanMetric):
    """The hottest pixel is on a true box, or at most 15 pixels beside it.

    Zhang et al. 2018, "Top-Down Neural Attention by Excitation Backprop". Of equally hot pixels the first counts. A
    constant map is a miss.

    Example:
        >>> heat = np.zeros((64, 64))
        >>> heat[10, 20] = 1
        >>> PointingGame().value_of(JudgedMap("a", heat, np.array([[30, 5, 40, 15]]), (64, 64)))
        1.0
    """

    name = "pointing_game"
    position = 50
    column = "pointing_hit"
    column_type = "bool"
    numbers: ClassVar = {
        "pointing_game": Number("Pointing game", "the hottest pixel is on the object or at most 15 pixels beside it")
    }

    def value_of(self, judged: JudgedMap) -> float:
        heat, boxes = checked_map(judged.heat, "exact"), judged.boxes
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        first, last = np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:]) - 1  # of the pixels that a box touches
        outside = np.maximum(np.maximum(first - (x, y), (x, y) - last), 0)  # [m, 2]
        near = bool((np.hypot(*outside.T) <= TOLERANCE).any())
        return float(near and heat.min() < heat.max())


@base.metric
class EnergyInBoxes(base.MeanMetric):
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


@base.metric
class EnergyInMasks(base.MeanMetric):
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
        mask, outside = base.checked_masks(judged)
        return share_inside(np.where(mask | outside, heat, 0), mask)


def share_inside(heat: npt.NDArray[np.float64], inside: npt.NDArray[np.bool_]) -> float:
    """The share of a map's sum that lies in a region; 0 of an all-zero map."""
    total = float(heat.sum())
    return float(heat[inside].sum()) / total if total > 0 else 0.0


@base.metric
class RelevanceRank(base.MeanMetric):
    """Of the K hottest pixels, the share inside the true boxes, which have K pixels.

    Arras et al. 2022, "CLEVR-XAI: A benchmark dataset for the ground truth evaluation of neural network explanations".
    A pixel is inside when its centre is. Of pixels as hot as the K-th, each counts as much as any other.

    Example:
        >>> heat = np.array([[0.9, 0.5], [0.7, 0.1]])
        >>> RelevanceRank().value_of(JudgedMap("a", heat, np.array([[0, 0, 2, 1]]), (2, 2)))
        0.5
    """

    name = "relevance_rank"
    position = 62
    column = "rank_accuracy"
    numbers: ClassVar = {
        "relevance_rank": Number("Relevance rank", "the share of the hottest pixels that is inside the true boxes")
    }

    def value_of(self, judged: JudgedMap) -> float:
        return rank_accuracy(checked_map(judged.heat, "exact"), judged.inside)


@base.metric
class RelevanceRankMasks(base.MeanMetric):
    """The same as `relevance_rank` against the true mask; ignored pixels are left out, unless they are of the object.

    Example:
        >>> heat, mask = np.array([[0.9, 0.5, 0.1]]), np.array([[True, False, True]])
        >>> RelevanceRankMasks().value_of(JudgedMap("a", heat, np.zeros((0, 4)), (3, 1), mask))
        0.5
    """

    name = "relevance_rank_masks"
    position = 84
    truth = "masks"
    column = "mask_rank_accuracy"
    numbers: ClassVar = {
        "relevance_rank_masks": Number("Relevance rank, masks", "the share of the hottest pixels that is on the object")
    }

    def value_of(self, judged: JudgedMap) -> float:
        mask, outside = base.checked_masks(judged)
        counted = mask | outside
        return rank_accuracy(checked_map(judged.heat, "exact")[counted], mask[counted])


def rank_accuracy(heat: FloatArray, inside: npt.NDArray[np.bool_]) -> float:
    """The share of the K hottest of these pixels that is inside, with K inside; 0 if K is 0."""
    count = int(inside.sum())
    if not count:
        return 0.0
    last = np.partition(heat.ravel(), heat.size - count)[heat.size - count]  # the K-th hottest
    above, tied = heat > last, heat == last
    hits = (above & inside).sum() + (count - above.sum()) * (tied & inside).sum() / tied.sum()
    return float(hits) / count

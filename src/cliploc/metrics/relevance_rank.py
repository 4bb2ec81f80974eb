"""Relevance rank accuracy (Arras et al. 2022): how many of the hottest pixels lie on the object."""

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.metrics._infra.curve import checked_map
from cliploc.metrics._infra.metric import JudgedMap, MeanMetric, Number, checked_masks, metric
from cliploc.values import FloatArray


@metric
class RelevanceRank(MeanMetric):
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


@metric
class RelevanceRankMasks(MeanMetric):
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
        mask, outside = checked_masks(judged)
        there = mask | outside
        return rank_accuracy(checked_map(judged.heat, "exact")[there], mask[there])


def rank_accuracy(heat: FloatArray, inside: npt.NDArray[np.bool_]) -> float:
    """The share of the K hottest of these pixels that is inside, with K inside; 0 if K is 0."""
    count = int(inside.sum())
    if not count:
        return 0.0
    last = np.partition(heat.ravel(), heat.size - count)[heat.size - count]  # the K-th hottest
    above, tied = heat > last, heat == last
    hits = (above & inside).sum() + (count - above.sum()) * (tied & inside).sum() / tied.sum()
    return float(hits) / count

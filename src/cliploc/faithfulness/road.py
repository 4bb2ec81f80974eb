"""ROAD: remove and debias; removed pixels are imputed from their neighbours, so that no edge shows where they were."""

from typing import ClassVar

import torch
from torch import Tensor

from cliploc.faithfulness import faithfulness_metric
from cliploc.faithfulness._infra.fill import imputed
from cliploc.faithfulness._infra.judged import Axis, FaithfulnessMetric, FaithfulNumber, Judged, Measured

SHARES = (0.2, 0.4, 0.6, 0.8)


@faithfulness_metric
class Road(FaithfulnessMetric):
    """(least − most)/2: the mean probability without the coldest 20, 40, 60, 80 %, minus that without the hottest.

    Removed pixels are noisy linear imputations (`imputed`). The paper takes the accuracy over a set. As in
    pytorch-grad-cam's `ROADCombined`, we take each picture's probability and combine both ends. It is between −0.5 and
    0.5.
    """

    name = "road"
    position = 8
    paper = "Rong et al. 2022, A Consistent and Efficient Evaluation Strategy for Attribution Methods, ICML"
    numbers: ClassVar = {
        "road": FaithfulNumber(
            "ROAD ↑", "probability without the coldest pixels minus without the hottest, divided by 2", "high"
        )
    }
    curves: ClassVar = {
        "road_most": Axis("share of the hottest pixels removed", SHARES),
        "road_least": Axis("share of the coldest pixels removed", SHARES),
    }

    def measure(self, judged: Judged) -> Measured:
        hottest = [judged.order < int(judged.pixels * share) for share in SHARES]
        coldest = [judged.order >= judged.pixels - int(judged.pixels * share) for share in SHARES]
        removed = [*hottest, *coldest]

        def make(first: int, last: int) -> Tensor:
            return torch.cat([imputed(judged.images, mask, judged.seed) for mask in removed[first:last]])

        scores = judged.scores(len(removed), make).probability
        most, least = scores[: len(SHARES)], scores[len(SHARES) :]
        return Measured(
            {"road": float(least.mean() - most.mean()) / 2},
            {"road_most": most.tolist(), "road_least": least.tolist()},
        )

"""Negative perturbation: how long the prediction is right when the coldest pixels go."""

from __future__ import annotations

from typing import ClassVar

from cliploc.faithfulness._infra.metric import (
    Axis,
    FaithfulnessMetric,
    FaithfulNumber,
    Judged,
    Measured,
    faithfulness_metric,
)
from cliploc.faithfulness._infra.order import area

SHARES = tuple(tenth / 10 for tenth in range(1, 10))


@faithfulness_metric
class Negative(FaithfulnessMetric):
    """The area under the zero-shot top-1 accuracy when the coldest 10, 20 … 90 % of the pixels are black.

    As `positive`, from the other end of the map.
    """

    name = "negative"
    position = 4
    paper = "Chefer et al. 2021, Transformer Interpretability Beyond Attention Visualization, CVPR"
    numbers: ClassVar = {
        "negative": FaithfulNumber("negative ↑", "top-1 accuracy as the coldest pixels go, its area", "high")
    }
    curves: ClassVar = {"negative": Axis("share of pixels gone", SHARES)}

    def measure(self, judged: Judged) -> Measured:
        """See the class."""
        kept = [judged.pixels - int(judged.pixels * share) for share in SHARES]
        scores = judged.scores(len(kept), judged.keeping(kept, judged.options.baseline or "black"))
        right = (scores.first == judged.meant).float().tolist()
        return Measured({"negative": area(right)}, {"negative": right})

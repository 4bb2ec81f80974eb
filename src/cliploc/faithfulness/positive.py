"""Positive perturbation: how soon the prediction is wrong when the hottest pixels go."""

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
class Positive(FaithfulnessMetric):
    """The area under the zero-shot top-1 accuracy when the hottest 10, 20 … 90 % of the pixels are black.

    Black is zero before normalisation. The prediction is compared with the true name, or, where that is not known, with
    the model's own on the whole picture. The area is that of the nine accuracies at equal distances, divided by their
    range: between 0 and 1.
    """

    name = "positive"
    position = 3
    paper = "Chefer et al. 2021, Transformer Interpretability Beyond Attention Visualization, CVPR"
    numbers: ClassVar = {
        "positive": FaithfulNumber("positive ↓", "top-1 accuracy as the hottest pixels go, its area", "low")
    }
    curves: ClassVar = {"positive": Axis("share of pixels gone", SHARES)}

    def measure(self, judged: Judged) -> Measured:
        """See the class."""
        gone = [int(judged.pixels * share) for share in SHARES]
        scores = judged.scores(len(gone), judged.removing(gone, judged.options.baseline or "black"))
        right = (scores.first == judged.meant).float().tolist()
        return Measured({"positive": area(right)}, {"positive": right})

"""Insertion: how fast the score rises when the hottest pixels come."""

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
from cliploc.faithfulness._infra.scores import joined


@faithfulness_metric
class Insertion(FaithfulnessMetric):
    """The area under the score of a blurred picture that is uncovered from its hottest pixels on; RISE's protocol.

    The blur is a convolution of the normalised picture with an 11×11 Gaussian of σ 5, reflected at the kernel's edges,
    with zeros beyond the picture's. Steps, score and area are those of `deletion`.
    """

    name = "insertion"
    position = 2
    paper = "Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC"
    numbers: ClassVar = {
        "insertion": FaithfulNumber("insertion ↑", "area under the probability as the hottest pixels come", "high"),
        "insertion_cosine": FaithfulNumber("insertion, cosine ↑", "the same of the bare cosine", "high", shown=False),
    }
    curves: ClassVar = {"insertion": Axis("share of pixels shown"), "insertion_cosine": Axis("share of pixels shown")}

    def measure(self, judged: Judged) -> Measured:
        """See the class."""
        kind = judged.options.baseline or "blur"
        inner = judged.steps[1:-1]
        scores = joined([judged.empty(kind), judged.scores(len(inner), judged.keeping(inner, kind)), judged.whole])
        curves = {"insertion": scores.probability.tolist(), "insertion_cosine": scores.cosine.tolist()}
        return Measured({name: area(curve) for name, curve in curves.items()}, curves)

"""Deletion: how fast the score falls when the hottest pixels are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cliploc.faithfulness._infra.judged import Axis, FaithfulnessMetric, FaithfulNumber, Judged, Measured
from cliploc.faithfulness._infra.metric_registry import faithfulness_metric
from cliploc.faithfulness._infra.order import area
from cliploc.faithfulness._infra.scores import Scores, joined


@faithfulness_metric
class Deletion(FaithfulnessMetric):
    """The area under the score while the hottest pixels are removed step by step; RISE's protocol.

    At 224×224 a step is 224 pixels, so there are 225 scores. Removed pixels are 0 of the normalised picture. The score
    is the softmax probability of the name in question among all names; the area is (Σ − first/2 − last/2)/(n − 1). The
    same pictures also give the area under the cosine, which needs no other names. RISE does not fix the order of
    equally hot pixels; here they are removed row by row from the upper left.
    """

    name = "deletion"
    position = 1
    paper = "Petsiuk et al. 2018, RISE: Randomized Input Sampling for Explanation of Black-box Models, BMVC"
    numbers: ClassVar = {
        "deletion": FaithfulNumber(
            "deletion ↓", "area under the probability while the hottest pixels are removed", "low"
        ),
        "deletion_cosine": FaithfulNumber("deletion, cosine ↓", "the same for the cosine alone", "low", shown=False),
    }
    curves: ClassVar = {"deletion": Axis("share of pixels removed"), "deletion_cosine": Axis("share of pixels removed")}
    fill: ClassVar[str] = "zero"  # what replaces removed pixels, unless the options say

    def measure(self, judged: Judged) -> Measured:
        scores = joined(self.series(judged, judged.steps[1:-1], judged.options.baseline or self.fill))
        curves = {self.name: scores.probability.tolist(), f"{self.name}_cosine": scores.cosine.tolist()}
        return Measured({name: area(curve) for name, curve in curves.items()}, curves)

    def series(self, judged: Judged, inner: Sequence[int], fill: str) -> Sequence[Scores]:
        """From the whole picture to none of it; `inner`: how many pixels differ after each step but the last."""
        return [judged.whole, judged.scores(len(inner), judged.removing(inner, fill)), judged.empty(fill)]

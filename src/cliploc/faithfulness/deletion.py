"""Deletion: how fast the score falls when the hottest pixels are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cliploc.faithfulness._infra.curves import ScoreArea
from cliploc.faithfulness._infra.metric import Axis, FaithfulNumber, Judged
from cliploc.faithfulness._infra.registration import faithfulness_metric
from cliploc.faithfulness._infra.scores import Scores


@faithfulness_metric
class Deletion(ScoreArea):
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
    fill = "zero"

    def series(self, judged: Judged, inner: Sequence[int], fill: str) -> Sequence[Scores]:
        """From the whole picture to none of it."""
        return [judged.whole, judged.scores(len(inner), judged.removing(inner, fill)), judged.empty(fill)]

"""Deletion: how fast the score falls when the hottest pixels are removed."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base

AXIS = base.Axis("share of pixels removed")


@base.faithfulness_metric
class Deletion(base.FaithfulnessMetric):
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
        "deletion": base.Number("deletion ↓", "area under the probability while the hottest pixels are removed", "low"),
        "deletion_cosine": base.Number("deletion, cosine ↓", "the same for the cosine alone", "low", False),
    }
    curves: ClassVar = {"deletion": AXIS, "deletion_cosine": AXIS}
    fill: ClassVar[str] = "zero"  # what replaces removed pixels, unless the options say
    shows: ClassVar[bool] = False  # whether it goes from none of the picture to the whole of it

    def measure(self, judged: base.Judged) -> base.Measured:
        fill, inner = judged.options.baseline or self.fill, judged.steps[1:-1]
        whole, empty = judged.original, judged.empty(fill)
        first, last, make = (empty, whole, judged.keeping) if self.shows else (whole, empty, judged.removing)
        scores = base.joined([first, judged.scores(len(inner), make(inner, fill)), last])
        curves = {self.name: scores.probability.tolist(), f"{self.name}_cosine": scores.cosine.tolist()}
        return base.Measured({name: base.area(curve) for name, curve in curves.items()}, curves)

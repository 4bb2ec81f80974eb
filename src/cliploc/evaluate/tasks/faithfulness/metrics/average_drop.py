"""Average drop: how much of the score is lost when only what the map marks is seen."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base


@base.faithfulness_metric
class AverageDrop(base.FaithfulnessMetric):
    """max(0, Y − O) / Y, with Y the probability of the picture and O that of the picture times its map.

    Normalised values are multiplied with heat in 0–1. The paper gives a percentage, we a share. A name that fits so
    much worse than another that Y is 0 as a float has nothing to lose: its drop is 0.
    """

    name = "average_drop"
    position = 5
    paper = "Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, WACV"
    numbers: ClassVar = {
        "average_drop": base.Number("average drop ↓", "probability lost when the map masks the picture", "low")
    }

    def measure(self, judged: base.Judged) -> base.Measured:
        return base.Measured({"average_drop": judged.drop})

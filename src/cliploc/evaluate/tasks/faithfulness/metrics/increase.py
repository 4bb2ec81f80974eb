"""Increase in confidence: how often the score grows when only what the map marks is seen."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base


@base.faithfulness_metric
class Increase(base.FaithfulnessMetric):
    """1 where Y < O, else 0, with Y and O of `average_drop`. The paper gives a percentage of pictures, we a share."""

    name = "increase"
    position = 6
    paper = "Chattopadhay et al. 2018, Grad-CAM++: Improved Visual Explanations, WACV"
    numbers: ClassVar = {
        "increase": base.Number("increase ↑", "pictures that score higher when the map masks them", "high")
    }

    def measure(self, judged: base.Judged) -> base.Measured:
        return base.Measured({"increase": float(judged.masked.probability > judged.original.probability)})

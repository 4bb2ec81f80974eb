"""Negative perturbation: how long the prediction stays right when the coldest pixels are removed."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base
from cliploc.evaluate.tasks.faithfulness.metrics.positive import TENTHS, Positive


@base.faithfulness_metric
class Negative(Positive):
    """The area under the zero-shot top-1 accuracy when the coldest 10, 20 … 90 % of the pixels are black.

    As `positive`, from the other end of the map.
    """

    name = "negative"
    position = 4
    numbers: ClassVar = {
        "negative": base.Number(
            "negative ↑", "area under the top-1 accuracy while the coldest pixels are removed", "high"
        )
    }
    curves: ClassVar = {"negative": base.Axis("share of pixels removed", TENTHS)}
    coldest = True

"""Positive perturbation: how soon the prediction becomes wrong when the hottest pixels are removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from cliploc.faithfulness._infra.curves import TENTHS, AccuracyArea
from cliploc.faithfulness._infra.metric import Axis, FaithfulNumber, Judged
from cliploc.faithfulness._infra.registration import faithfulness_metric
from cliploc.faithfulness._infra.scores import Make


@faithfulness_metric
class Positive(AccuracyArea):
    """The area under the zero-shot top-1 accuracy when the hottest 10, 20 … 90 % of the pixels are black.

    Black is zero before normalisation. The prediction is compared with the true name, or, where that is not known, with
    the model's own prediction for the whole picture. The area is that of the nine accuracies at equal distances,
    divided by their range: between 0 and 1.
    """

    name = "positive"
    position = 3
    paper = "Chefer et al. 2021, Transformer Interpretability Beyond Attention Visualization, CVPR"
    numbers: ClassVar = {
        "positive": FaithfulNumber(
            "positive ↓", "area under the top-1 accuracy while the hottest pixels are removed", "low"
        )
    }
    curves: ClassVar = {"positive": Axis("share of pixels removed", TENTHS)}

    def without(self, judged: Judged, gone: Sequence[int], fill: str) -> Make:
        """Makes pictures without their hottest pixels."""
        return judged.removing(gone, fill)

"""Positive perturbation: how soon the prediction becomes wrong when the hottest pixels are removed."""

from typing import ClassVar

from cliploc.evaluate.tasks.faithfulness import measure as base

TENTHS = tuple(tenth / 10 for tenth in range(1, 10))


@base.faithfulness_metric
class Positive(base.FaithfulnessMetric):
    """The area under the zero-shot top-1 accuracy when the hottest 10, 20 … 90 % of the pixels are black.

    Black is zero before normalisation. The prediction is compared with the true name, or, where that is not known, with
    the model's own prediction for the whole picture. The area is that of the nine accuracies at equal distances,
    divided by their range: between 0 and 1.
    """

    name = "positive"
    position = 3
    paper = "Chefer et al. 2021, Transformer Interpretability Beyond Attention Visualization, CVPR"
    numbers: ClassVar = {
        "positive": base.Number(
            "positive ↓", "area under the top-1 accuracy while the hottest pixels are removed", "low"
        )
    }
    curves: ClassVar = {"positive": base.Axis("share of pixels removed", TENTHS)}
    coldest: ClassVar[bool] = False  # whether the coldest pixels are removed

    def measure(self, judged: base.Judged) -> base.Measured:
        gone, fill = [int(judged.pixels * share) for share in TENTHS], judged.options.baseline or "black"
        hottest = [judged.pixels - count for count in gone]  # that stay where the coldest are removed
        make = judged.keeping(hottest, fill) if self.coldest else judged.removing(gone, fill)
        scores = judged.scores(len(gone), make)
        right = (scores.first == judged.meant).float().tolist()
        return base.Measured({self.name: base.area(right)}, {self.name: right})

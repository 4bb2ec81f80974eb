"""Mean best IoU: the IoU of the best of a map's boxes at a given threshold, averaged over images."""

from typing import ClassVar

from cliploc.metrics._infra.metric import JudgedMap, MeanMetric, Number, metric


@metric
class MeanBestIoU(MeanMetric):
    """The IoU of the best of all contours' boxes at a given τ, averaged over images."""

    name = "mean_best_iou"
    position = 70
    column = "best_iou"
    needs_threshold = True
    numbers: ClassVar = {"mean_best_iou": Number("Mean best IoU", "of the best of all contours' boxes at τ")}

    def value_of(self, judged: JudgedMap) -> float:
        assert self.threshold is not None
        return float(judged.curve.best[judged.curve.index(self.threshold)])

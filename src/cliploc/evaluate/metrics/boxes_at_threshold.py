"""Boxes at one threshold τ, the mean over images: the IoU of the best one, and VL-Score's rule."""

from typing import ClassVar

import numpy as np

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.evaluate.metrics import _base as base
from cliploc.evaluate.metrics import _boxes


@base.metric
class MeanBestIoU(base.MeanMetric):
    """The IoU of the best of all contours' boxes at a given τ, averaged over images."""

    name = "mean_best_iou"
    position = 70
    column = "best_iou"
    needs_threshold = True
    numbers: ClassVar = {"mean_best_iou": base.Number("Mean best IoU", "of the best of all contours' boxes at τ")}

    def value_of(self, judged: base.JudgedMap) -> float:
        assert self.threshold is not None
        return float(judged.curve.best[judged.curve.index(self.threshold)])


@base.metric
class VLScoreRule(base.MeanMetric):
    """VL-Score's own rule: right if any predicted box has an IoU of at least 0.5 with any true box.

    Gao & Wang 2022. Boxes are those of 4-connected regions above τ·max that cover at least 0.1 % of the map. The rule
    is more lenient than MaxBoxAcc, which takes one box: report both.

    Example:
        >>> heat = np.zeros((32, 32))
        >>> heat[4:12, 4:12] = 1
        >>> VLScoreRule(0.6).value_of(base.JudgedMap("a", heat, np.array([[4, 4, 12, 12]]), (32, 32)))
        1.0
    """

    name = "vl_score_rule"
    position = 40
    column = "vl_hit"
    column_type = "bool"
    needs_threshold = True
    numbers: ClassVar = {
        "vl_score_rule": base.Number(
            "VL-Score's rule", "any of the predicted boxes has IoU ≥ 0.5 with any true box: more lenient"
        )
    }

    def __init__(self, threshold: float) -> None:
        super().__init__(threshold)
        self._rule = BoxRule(threshold, min_area=0.001, nms_iou=None, connectivity=4)

    def value_of(self, judged: base.JudgedMap) -> float:
        heat = _boxes.checked_map(judged.heat, "exact").astype(np.float32)
        predicted = boxes_from_maps(heat[None], self._rule).xyxy
        return float(_boxes.iou(predicted, judged.boxes, 0).max(initial=0.0) >= 0.5)

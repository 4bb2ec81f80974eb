"""VL-Score's own rule (Gao & Wang 2022): right if any predicted box fits any true box."""

from typing import ClassVar

import numpy as np

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.metrics._infra.curve import checked_map, iou
from cliploc.metrics._infra.metric import JudgedMap, MeanMetric, Number, metric


@metric
class VLScoreRule(MeanMetric):
    """VL-Score's own rule: right if any predicted box has an IoU of at least 0.5 with any true box.

    Gao & Wang 2022. Boxes are those of 4-connected regions above τ·max that cover at least 0.1 % of the map. The rule
    is more lenient than MaxBoxAcc, which takes one box: report both.

    Example:
        >>> heat = np.zeros((32, 32))
        >>> heat[4:12, 4:12] = 1
        >>> VLScoreRule(0.6).value_of(JudgedMap("a", heat, np.array([[4, 4, 12, 12]]), (32, 32)))
        1.0
    """

    name = "vl_score_rule"
    position = 40
    column = "vl_hit"
    column_type = "bool"
    needs_threshold = True
    numbers: ClassVar = {
        "vl_score_rule": Number(
            "VL-Score's rule", "any of the predicted boxes has IoU ≥ 0.5 with any true box: more lenient"
        )
    }

    def __init__(self, threshold: float) -> None:
        super().__init__(threshold)
        self._rule = BoxRule(threshold, min_area=0.001, nms_iou=None, connectivity=4)

    def value_of(self, judged: JudgedMap) -> float:
        heat = checked_map(judged.heat, "exact").astype(np.float32)
        predicted = boxes_from_maps(heat[None], self._rule).xyxy
        return float(iou(predicted, judged.boxes, 0).max(initial=0.0) >= 0.5)

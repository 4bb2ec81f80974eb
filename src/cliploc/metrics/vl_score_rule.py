"""VL-Score's own rule (Gao & Wang 2022): right if any predicted box fits any true box."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.metrics._infra.curve import checked_map, iou
from cliploc.metrics._infra.mean import MeanMetric
from cliploc.metrics._infra.metric import ColumnType, JudgedMap, Number, metric, stated
from cliploc.metrics.max_box_acc import threshold_note


@metric
class VLScoreRule(MeanMetric):
    """VL-Score's own rule: right if any predicted box has an IoU of at least 0.5 with any true box.

    Gao & Wang 2022. Boxes are those of 4-connected regions above τ·max that cover at least 0.1 % of the map. The rule
    is more lenient than MaxBoxAcc, which takes one box: report both.

    Example:
        >>> heat = np.zeros((32, 32))
        >>> heat[4:12, 4:12] = 1
        >>> VLScoreRule().value(heat, [[4, 4, 12, 12]])
        1.0
    """

    name: ClassVar[str] = "vl_score_rule"
    position: ClassVar[int] = 40
    column: ClassVar[str] = "vl_hit"
    column_type: ClassVar[ColumnType] = "bool"
    needs_threshold: ClassVar[bool] = True
    numbers: ClassVar[Mapping[str, Number]] = {
        "vl_score_rule": Number(
            "VL-Score's rule", "any of the predicted boxes has IoU ≥ 0.5 with any true box: more lenient"
        )
    }

    def __init__(self, threshold: float = 0.6) -> None:
        super().__init__()
        self.threshold = threshold
        self._rule = BoxRule(threshold, min_area=0.001, nms_iou=None, connectivity=4)

    @classmethod
    def at(cls, threshold: float | None) -> Self:
        """The metric at a threshold τ, which it needs."""
        return cls(stated(threshold, cls.name))

    @property
    def _settings(self) -> tuple[object, ...]:
        return (self.threshold,)

    def update(
        self, image_id: str, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike, label: int | None = None
    ) -> None:
        """Counts one image.

        Args:
            score_map: `[H, W]` in 0–1.
            true_xyxy: `[m, 4]` in map pixels, exclusive right and bottom edge.
        """
        self.restore(image_id, self.value(score_map, true_xyxy), label)

    def value(self, score_map: npt.ArrayLike, true_xyxy: npt.ArrayLike) -> float:
        """The score of one image: 1 or 0."""
        heat = checked_map(score_map, "exact").astype(np.float32)
        found = boxes_from_maps(heat[None], self._rule).xyxy
        return float(iou(found, true_xyxy, 0).max(initial=0.0) >= 0.5)

    def value_of(self, judged: JudgedMap) -> float:
        """The score of one image: 1 or 0."""
        return self.value(judged.heat, judged.boxes)

    @property
    def note(self) -> str:
        """A note that names the threshold."""
        return threshold_note(self.threshold, chosen=False)

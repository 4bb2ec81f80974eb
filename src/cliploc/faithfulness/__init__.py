"""Faithfulness: whether a heatmap shows what the model uses. Each metric is one file that registers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc._imports import on_first_use

if TYPE_CHECKING:
    from cliploc.faithfulness._infra.fill import in_8_bits
    from cliploc.faithfulness._infra.judged import Axis, FaithfulnessMetric, FaithfulNumber, Judged, Measured, OtherMaps
    from cliploc.faithfulness._infra.measure import AskedPicture, Faithfulness, Region, Spent, with_random_weights
    from cliploc.faithfulness._infra.metric_registry import chosen_metrics, faithfulness_metric, faithfulness_metrics
    from cliploc.faithfulness._infra.order import area, spearman
    from cliploc.faithfulness._infra.scores import Scorer, Scores

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.faithfulness._infra.fill": ["in_8_bits"],
        "cliploc.faithfulness._infra.measure": [
            "AskedPicture", "Faithfulness", "Region", "Spent", "with_random_weights",
        ],
        "cliploc.faithfulness._infra.judged": [
            "Axis", "FaithfulnessMetric", "FaithfulNumber", "Judged", "Measured", "OtherMaps",
        ],
        "cliploc.faithfulness._infra.order": ["area", "spearman"],
        "cliploc.faithfulness._infra.metric_registry": [
            "chosen_metrics",
            "faithfulness_metric",
            "faithfulness_metrics",
        ],
        "cliploc.faithfulness._infra.scores": ["Scorer", "Scores"],
    },
)  # fmt: skip

"""Faithfulness: whether a heatmap shows what the model uses. Each metric is one file that registers itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cliploc._imports import on_first_use

if TYPE_CHECKING:
    from cliploc.faithfulness._infra.fill import blur_kernel, blurred, fill_of, imputed
    from cliploc.faithfulness._infra.measure import Faithfulness, Region, Seen, with_random_weights
    from cliploc.faithfulness._infra.metric import Axis, FaithfulnessMetric, FaithfulNumber, Judged, Measured, OtherMaps
    from cliploc.faithfulness._infra.order import area, counts, pearson, removal_order, spearman
    from cliploc.faithfulness._infra.registration import chosen_metrics, faithfulness_metric, faithfulness_metrics
    from cliploc.faithfulness._infra.scores import Scorer, Scores

__all__ = [
    "Axis",
    "FaithfulNumber",
    "Faithfulness",
    "FaithfulnessMetric",
    "Judged",
    "Measured",
    "OtherMaps",
    "Region",
    "Scorer",
    "Scores",
    "Seen",
    "area",
    "blur_kernel",
    "blurred",
    "chosen_metrics",
    "counts",
    "faithfulness_metric",
    "faithfulness_metrics",
    "fill_of",
    "imputed",
    "pearson",
    "removal_order",
    "spearman",
    "with_random_weights",
]

__getattr__ = on_first_use(
    __name__,
    {
        "cliploc.faithfulness._infra.fill": ["blur_kernel", "blurred", "fill_of", "imputed"],
        "cliploc.faithfulness._infra.measure": ["Faithfulness", "Region", "Seen", "with_random_weights"],
        "cliploc.faithfulness._infra.metric": [
            "Axis",
            "FaithfulNumber",
            "FaithfulnessMetric",
            "Judged",
            "Measured",
            "OtherMaps",
        ],
        "cliploc.faithfulness._infra.order": ["area", "counts", "pearson", "removal_order", "spearman"],
        "cliploc.faithfulness._infra.registration": ["chosen_metrics", "faithfulness_metric", "faithfulness_metrics"],
        "cliploc.faithfulness._infra.scores": ["Scorer", "Scores"],
    },
)

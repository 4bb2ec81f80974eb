"""Faithfulness: whether a heatmap shows what the model uses. Each metric is one file that registers itself."""

from __future__ import annotations

from cliploc.faithfulness._infra.fill import blur_kernel, blurred, fill_of, imputed
from cliploc.faithfulness._infra.measure import Faithfulness, Region, Seen, with_random_weights
from cliploc.faithfulness._infra.metric import (
    Axis,
    FaithfulnessMetric,
    FaithfulNumber,
    Judged,
    Measured,
    OtherMaps,
    chosen_metrics,
    faithfulness_metric,
    faithfulness_metrics,
)
from cliploc.faithfulness._infra.order import area, counts, pearson, removal_order, spearman
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

"""Metrics. A localisation metric registers itself (see `Metric`); `MeanIoU` is for label maps."""

from typing import Literal

from cliploc.evaluate.metrics._base import (
    DEFAULT,
    TAUS,
    Bootstrap,
    Interval,
    JudgedMap,
    MeanMetric,
    Metric,
    MetricSummary,
    Number,
    all_metrics,
    all_numbers,
    joined,
    known_mean,
    measure_map,
    metric,
    metrics,
    ratio,
)
from cliploc.evaluate.metrics._boxes import (
    CONVENTIONS,
    BoxCurve,
    Convention,
    box_curve,
    boxes_on_map,
    check_header,
    checked_map,
    contour_boxes,
)
from cliploc.evaluate.metrics.coco_ap import CocoAP
from cliploc.evaluate.metrics.max_box_acc import LARGEST_HITS, MaxBoxAcc, hit_at, largest_hits
from cliploc.evaluate.metrics.miou import MeanIoU, MeanIoUResult, PixelPairs, average_precision, pixel_pairs
from cliploc.evaluate.metrics.pxap import PxAP


def list_metrics(*, truth: Literal["boxes", "masks"] | None = None) -> list[str]:
    """The names of the metrics that a benchmark computes, in the order of its tables.

    Args:
        truth: only those that compare with this truth: "boxes" or "masks".

    Example:
        >>> list_metrics(truth="masks")
        ['pxap', 'energy_in_masks', 'relevance_rank_masks']
    """
    return [each.name for each in all_metrics(truth)]

"""Metrics. Each localisation metric is one file that registers itself (see `Metric`); `MeanIoU` is for label maps."""

from cliploc.metrics._infra.contours import contour_boxes, one_thread
from cliploc.metrics._infra.curve import (
    CONVENTIONS,
    SIDE,
    TAUS,
    BoxCurve,
    Convention,
    box_curve,
    boxes_on_map,
    check_header,
    checked_map,
)
from cliploc.metrics._infra.metric import (
    DEFAULT,
    Bootstrap,
    Interval,
    JudgedMap,
    MeanMetric,
    Metric,
    MetricSummary,
    Number,
    Score,
    all_metrics,
    all_numbers,
    joined,
    judge_map,
    metric,
    metrics,
    ratio,
)
from cliploc.metrics.coco_ap import CocoAP
from cliploc.metrics.energy import EnergyInBoxes, EnergyInMasks
from cliploc.metrics.localization_accuracy import LocalizationAccuracy
from cliploc.metrics.max_box_acc import LARGEST_HITS, MaxBoxAcc, hit_at, largest_hits, packed_hits
from cliploc.metrics.max_box_acc_v2 import MaxBoxAccV2
from cliploc.metrics.mean_best_iou import MeanBestIoU
from cliploc.metrics.miou import MeanIoU, MeanIoUResult, PixelPairs, average_precision, pixel_pairs
from cliploc.metrics.pointing_game import PointingGame
from cliploc.metrics.pxap import PxAP
from cliploc.metrics.relevance_rank import RelevanceRank, RelevanceRankMasks
from cliploc.metrics.vl_score_rule import VLScoreRule

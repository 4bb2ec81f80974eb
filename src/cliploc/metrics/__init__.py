"""Numbers for localisation: each metric has `update`, `merge` and `compute`, and a frozen result."""

from __future__ import annotations

from cliploc.metrics._bootstrap import Bootstrap
from cliploc.metrics.box_accuracy import (
    LocalizationAccuracy,
    LocalizationResult,
    MaxBoxAcc,
    MaxBoxAccResult,
    MaxBoxAccV2,
    MaxBoxAccV2Result,
    packed_hits,
)
from cliploc.metrics.curve import CONVENTIONS, TAUS, BoxCurve, Convention, box_curve, boxes_on_map
from cliploc.metrics.means import EnergyInBoxes, MeanBestIoU, MeanResult, PointingGame, VLScoreRule
from cliploc.metrics.pxap import PxAP, PxAPResult, pixel_counts

__all__ = [
    "CONVENTIONS",
    "TAUS",
    "Bootstrap",
    "BoxCurve",
    "Convention",
    "EnergyInBoxes",
    "LocalizationAccuracy",
    "LocalizationResult",
    "MaxBoxAcc",
    "MaxBoxAccResult",
    "MaxBoxAccV2",
    "MaxBoxAccV2Result",
    "MeanBestIoU",
    "MeanResult",
    "PointingGame",
    "PxAP",
    "PxAPResult",
    "VLScoreRule",
    "box_curve",
    "boxes_on_map",
    "packed_hits",
    "pixel_counts",
]

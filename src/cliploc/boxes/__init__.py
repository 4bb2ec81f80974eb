"""Boxes of heatmaps: threshold, connected components, a score for each box, non-maximum suppression."""

from __future__ import annotations

from cliploc.boxes.components import BoxRule, MapBoxes, boxes_from_maps, hot_levels
from cliploc.boxes.quality import ScoredBoxes, features_of, score_of, scored_boxes

__all__ = [
    "BoxRule",
    "MapBoxes",
    "ScoredBoxes",
    "boxes_from_maps",
    "features_of",
    "hot_levels",
    "score_of",
    "scored_boxes",
]

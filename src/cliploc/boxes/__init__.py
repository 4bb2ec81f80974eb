"""Heatmap → boxes: a threshold, connected components, a score for each, suppression."""

from __future__ import annotations

from cliploc.boxes.components import BoxRule, MapBoxes, boxes_from_maps, hot_levels

__all__ = ["BoxRule", "MapBoxes", "boxes_from_maps", "hot_levels"]

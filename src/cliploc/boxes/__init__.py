"""Heatmap → boxes: a threshold, connected components, a score for each, suppression; contours, for metrics."""

from __future__ import annotations

from cliploc.boxes.components import BoxRule, MapBoxes, boxes_from_maps
from cliploc.boxes.contours import ContourBoxes, contour_boxes, one_thread

__all__ = ["BoxRule", "ContourBoxes", "MapBoxes", "boxes_from_maps", "contour_boxes", "one_thread"]

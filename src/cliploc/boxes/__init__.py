"""Boxes of heatmaps: threshold, connected components, a score for each box, non-maximum suppression."""

from cliploc.boxes.components import BoxRule, MapBoxes, boxes_from_maps, hot_levels, labelled_boxes, share_of_peak
from cliploc.boxes.score import features_of, high_enough, score_of, scored_boxes, scored_regions

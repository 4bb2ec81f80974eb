"""The score of a box: its features against loops over pixels, its order, and that it is the same from every side."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cliploc.boxes import BoxRule, boxes_from_maps, features_of, score_of, scored_boxes
from cliploc.boxes.score import BIAS, MOVED, WEIGHTS, Features
from cliploc.images.geometry import iou_matrix
from cliploc.options import MIN_SCORE

LEVELS = [0, 0, 0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1]
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)  # arrays of hypothesis's own are mostly alike all over
heats = seeds.map(lambda rng: rng.choice(np.float32(LEVELS), rng.integers(1, 13, 2))).filter(np.any)
# No level is this share of another, nor 0.1 more or less: rounding decides nothing.
rules = st.builds(
    BoxRule,
    threshold=st.sampled_from([0.0, 0.22, 0.33, 0.57, 0.83, 0.93]),
    min_area=st.just(0.0),
    connectivity=st.sampled_from([4, 8]),
    split_peaks=st.sampled_from([1.0, 1.0, 0.3]),
    nms_iou=st.just(None),
)


def by_hand(heat, boxes, rule):
    """Contrast, stability and share of each box, pixel by pixel."""
    height, width = heat.shape
    total = [sum(float(heat[y, x]) for y in range(t, b) for x in range(l, r)) for l, t, r, b in boxes]  # noqa: E741
    found = []
    for (left, top, right, bottom), inside in zip(boxes, total, strict=True):
        dx, dy = math.ceil((right - left) / 2), math.ceil((bottom - top) / 2)
        ring = [
            float(heat[y, x])
            for y in range(max(0, top - dy), min(height, bottom + dy))
            for x in range(max(0, left - dx), min(width, right + dx))
            if not (top <= y < bottom and left <= x < right)
        ]
        mean = inside / ((right - left) * (bottom - top))
        around = sum(ring) / len(ring) if ring else mean
        moved = []
        for step in (MOVED, -MOVED):
            others = boxes_from_maps(heat[None], replace(rule, threshold=min(max(rule.threshold + step, 0), 1))).xyxy
            moved.append(iou_matrix([[left, top, right, bottom]], others).max(initial=0))
        found.append([(mean - around) / (mean + around), sum(moved) / 2, inside / max(total)])
    return np.array(found)


@given(heats, rules)
def test_features_are_those_counted_by_hand(heat, rule):
    boxes = boxes_from_maps(heat[None], rule).xyxy
    if len(boxes):
        found = features_of(heat, boxes, rule)
        features = np.stack([found.contrast, found.stability, found.share], axis=1)
        np.testing.assert_allclose(features, by_hand(heat, boxes.astype(int).tolist(), rule), atol=1e-5)
        logit = BIAS + sum(weight * getattr(found, name) for name, weight in WEIGHTS.items())
        np.testing.assert_allclose(score_of(found), 1 / (1 + np.exp(-logit)), rtol=1e-5)


@given(heats, rules, st.booleans())
def test_scores_are_shares_and_the_best_come_first_and_none_is_lost(heat, rule, otsu):
    rule = replace(rule, threshold="auto") if otsu else rule
    found, regions = scored_boxes(heat[None], rule), boxes_from_maps(heat[None], rule)
    assert ((found.score > 0) & (found.score < 1)).all()
    assert (np.diff(found.score) <= 0).all()
    assert sorted(found.xyxy.tolist()) == sorted(regions.xyxy.tolist())
    assert found.score.dtype == found.xyxy.dtype == np.float32
    if len(found.xyxy):  # also where no region can be divided, and that is known before
        assert found.score.tolist() == score_of(features_of(heat, found.xyxy, rule)).tolist()


stacks = seeds.map(lambda rng: rng.choice(np.float32(LEVELS), [rng.integers(5), *rng.integers(1, 13, 2)]))


@pytest.mark.parametrize("least", [0.0, MIN_SCORE, 0.5, 1.0, "auto"])
@given(stacks, rules, st.sampled_from([None, 1, 2]))
def test_a_minimum_score_leaves_out_what_is_below_and_auto_keeps_the_best_of_each_map(least, maps, rule, most):
    rule = replace(rule, max_boxes=most)
    whole, found = scored_boxes(maps, rule), scored_boxes(maps, replace(rule, min_score=least))
    kept, seen = [], set()
    for xyxy, score, index in zip(whole.xyxy.tolist(), whole.score.tolist(), whole.index.tolist(), strict=True):
        high = np.float32(score) >= np.float32(MIN_SCORE if least == "auto" else least)
        if high or (least == "auto" and index not in seen):
            kept.append((xyxy, score, index))
        seen.add(index)
    assert list(zip(found.xyxy.tolist(), found.score.tolist(), found.index.tolist(), strict=True)) == kept
    assert least != "auto" or set(found.index) == set(whole.index)
    unscored = [boxes_from_maps(maps, replace(rule, min_score=one)).xyxy.tolist() for one in (0.0, 1.0)]
    assert unscored[0] == unscored[1]


@given(heats, rules, st.data())
def test_neither_mirroring_nor_the_order_of_boxes_nor_the_maps_scale_changes_a_score(heat, rule, data):
    boxes = boxes_from_maps(heat[None], rule).xyxy
    if not len(boxes):
        return
    scores = score_of(features_of(heat, boxes, rule))
    height, width = heat.shape
    whole = replace(rule, split_peaks=1.0)  # where parts of equal height meet, the later pixel decides
    whole_scores = score_of(features_of(heat, boxes, whole))
    mirrored = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    np.testing.assert_allclose(score_of(features_of(heat[:, ::-1], mirrored, whole)), whole_scores, atol=1e-6)
    upside_down = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    np.testing.assert_allclose(score_of(features_of(heat[::-1], upside_down, whole)), whole_scores, atol=1e-6)
    turned = boxes[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(score_of(features_of(heat.T, turned, whole)), whole_scores, atol=1e-6)
    order = np.array(data.draw(st.permutations(range(len(boxes)))))
    np.testing.assert_allclose(score_of(features_of(heat, boxes[order], rule)), scores[order], atol=1e-6)
    np.testing.assert_allclose(score_of(features_of(heat / 4, boxes, rule)), scores, atol=1e-6)


@given(heats, rules, st.sampled_from([0.05, 0.2, 0.5]), st.sampled_from([2, 4, None]))
def test_of_boxes_that_overlap_and_of_too_many_the_best_scored_stay(heat, rule, iou, most):
    every = scored_boxes(heat[None], rule)
    kept: list[int] = []
    for place in range(len(every.score)):
        if all(iou_matrix(every.xyxy[[place]], every.xyxy[[other]])[0, 0] <= iou for other in kept):
            kept.append(place)
    found = scored_boxes(heat[None], replace(rule, nms_iou=iou, max_boxes=most))
    np.testing.assert_array_equal(found.xyxy, every.xyxy[kept[:most]])


def test_a_hole_with_a_thing_in_it_and_a_map_hot_all_over():
    heat = np.zeros((15, 15), np.float32)
    heat[1:14, 1:14], heat[3:12, 3:12], heat[6:9, 6:9] = 1, 0, 1  # a frame round a spot
    found = features_of(heat, [[1, 1, 14, 14], [6, 6, 9, 9]], BoxRule(threshold=0.5))
    assert found.stability.tolist() == [1, 1]
    everywhere = features_of(np.ones((4, 4), np.float32), [[0, 0, 4, 4]], BoxRule(threshold=0.5))
    assert (everywhere.contrast.tolist(), everywhere.share.tolist()) == ([0], [1])


def test_weights_are_those_that_the_study_gives():
    """The features, and the constants that docs/mini.md states."""
    assert list(WEIGHTS) == list(Features.__dataclass_fields__)
    assert all(weight > 0 for weight in WEIGHTS.values())
    assert pytest.approx(0.91, abs=0.005) == 1 / (1 + math.exp(-BIAS - sum(WEIGHTS.values())))  # docs/json.md

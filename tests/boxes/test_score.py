"""What a box's score is made of, and where its sides are put."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from cliploc.boxes import BoxRule, boxes_from_maps, features_of, score_of, scored_boxes
from cliploc.boxes.score import BIAS, MOVED, WEIGHTS, Features
from cliploc.boxes.sides import LENGTH, READINGS, common, learnt, moved, offsets, readings
from cliploc.images.geometry import Frame, iou_matrix
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


# ---------------------------------------------------------------------------------------------------------------- sides
FRAME = Frame.fit("squash", (80, 100), (80, 100))
NOTHING = np.zeros((1, 4, READINGS))


def test_sides_that_are_always_off_are_moved_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    drafts = np.tile(np.array([[10, 10, 30, 30]], np.float32), (30, 1))
    # The upper side is 10 % too high in every picture; the left side is off at random.
    found = [offsets(one[None], (one + np.array([rng.normal(0, 1), 2, 0, 0], np.float32))[None])[0] for one in drafts]
    by = common(np.concatenate(found))
    assert by[1] == pytest.approx(0.1, abs=0.01)
    assert abs(by[0]) < 0.02
    np.testing.assert_allclose(learnt((one, NOTHING) for one in found)[:4], by)  # nothing is read: nothing is added
    sides = np.array([0, 0.1, 0, -1] + [0.0] * READINGS)
    assert moved(drafts[:1], sides, NOTHING, FRAME).tolist() == [[10, 12, 30, 36]], "at most by 0.3"
    outwards = np.array([-0.3] * 4 + [0.0] * READINGS)
    assert moved(np.array([[0, 10, 95, 78]]), outwards, NOTHING, FRAME).tolist() == [[0, 0, 100, 80]], "in the picture"
    far = np.array([[80, 70, 90, 79]])
    assert offsets(np.concatenate([drafts[:1], far]), far)[1].tolist() == [0, 1]
    assert offsets(drafts[:1], drafts[:1] + 9)[0].round(2).tolist() == [[0.3, 0.3, -0.3, -0.3]], "no farther than that"
    # Half of two moves' sum, less 2 · (0.02 + 2 · 0.01) / (2 · 3) / 0.2² of it.
    np.testing.assert_allclose(common(np.array([[0.1] * 4, [0.3] * 4])), [0.2 * (1 - 1 / 3)] * 4)
    for some, boxes in ((drafts[:2], far[:0]), (drafts[:0], far)):
        assert [one.tolist() for one in offsets(some, boxes)] == [[[0] * 4] * len(some), [0] * len(some)]
    assert learnt([]).tolist() == [0] * LENGTH


@pytest.mark.parametrize("count", [2, 9])
def test_what_sides_do_not_have_in_common_is_a_ridge_regression_on_their_readings(count: int) -> None:
    rng = np.random.default_rng(2)
    away, read = rng.normal([0.1, -0.1, 0.2, 0], 0.05, (count, 4)), rng.normal(1, 1, (count, 4, READINGS))
    left, mean = away - common(away), read.mean(axis=(0, 1))
    noise = (left.ravel() @ left.ravel() + 8 * 0.1**2) / (4 * count + 8)
    ridge = Ridge(noise / 0.03**2, fit_intercept=False).fit((read - mean).reshape(-1, READINGS), left.ravel())
    found = learnt([(away[:1], read[:1]), (away[1:], read[1:])])
    np.testing.assert_allclose(found[4:], ridge.coef_, atol=1e-9)
    np.testing.assert_allclose(found[:4] + mean @ found[4:], common(away), atol=1e-9)


def test_a_side_is_read_from_outside_to_inside() -> None:
    heat = np.zeros((80, 100), np.float32)
    heat[20:60, 30:70] = 1
    [found] = readings(np.array([[30.0, 20, 70, 60]]), heat, FRAME)
    assert found.shape == (4, READINGS)
    np.testing.assert_array_equal(found[:, :9], [[0] * 4 + [1] * 5] * 2 + [[0] * 5 + [1] * 4] * 2)  # a place at a side
    np.testing.assert_allclose(found[:, 9:], [[0.4, 0]] * 4)  # far from the edges of the picture
    [found] = readings(np.array([[0.0, 20, 40, 80]]), heat, FRAME)
    np.testing.assert_allclose(found[:, 9:], [[0, 1], [20 / 60, 0], [0.4, 0], [0, 1]], atol=1e-6)


def test_the_map_across_a_side_tells_where_it_belongs() -> None:
    """Drafts lie too far in or out by chance: their common offset is nothing, but the map shows where each belongs."""
    rng = np.random.default_rng(1)
    pictures, before, after = [], [], []
    for number in range(40):
        corner, size = rng.integers(15, 25, 2), rng.integers(20, 40, 2)
        true = np.array([[*corner, *(corner + size)]], np.float64)
        draft = true + rng.uniform(-0.2, 0.2, 4) * np.tile(size, 2)
        heat = np.zeros((80, 100), np.float32)
        heat[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]] = 1
        read = readings(draft, heat, FRAME)
        if number < 20:
            pictures.append((offsets(draft, true)[0], read))
            continue
        before.append(iou_matrix(draft, true).item())
        after.append(iou_matrix(moved(draft, learnt(pictures), read, FRAME), true).item())
    assert np.mean(before) < 0.75
    assert np.mean(after) > np.mean(before) + 0.1

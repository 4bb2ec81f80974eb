"""Heatmaps → boxes, against a flood fill written pixel by pixel."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchvision.ops import batched_nms

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.boxes.components import climb, divide
from cliploc.errors import UsageError
from cliploc.evaluate.metrics import JudgedMap
from cliploc.evaluate.metrics.boxes_at_threshold import VLScoreRule

LEVELS = [0, 0, 0, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 1]  # sums and shares of these are exact enough to compare
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)  # arrays of hypothesis's own are mostly alike all over
heats = seeds.map(lambda rng: rng.choice(np.float32(LEVELS), rng.integers(1, 10, 2)))
stacks = seeds.map(lambda rng: rng.choice(np.float32(LEVELS), rng.integers(1, [6, 10, 10])))


def regions(heat, threshold, connectivity):
    """Every connected hot region as (box, peak, area), by flood fill."""
    hot = (heat > np.float32(threshold)) & (heat > 0)
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if connectivity == 8 else [])
    seen, found = np.zeros(hot.shape, bool), []
    for start in zip(*np.nonzero(hot), strict=True):
        if seen[start]:
            continue
        seen[start], region = True, [start]
        for y, x in region:  # grows while it is walked
            for dy, dx in steps:
                to = (y + dy, x + dx)
                if 0 <= to[0] < hot.shape[0] and 0 <= to[1] < hot.shape[1] and hot[to] and not seen[to]:
                    seen[to] = True
                    region.append(to)
        ys, xs = zip(*region, strict=True)
        peak = max(heat[pixel] for pixel in region) / heat.max()
        found.append(((min(xs), min(ys), max(xs) + 1, max(ys) + 1), peak, len(region)))
    return found


def as_set(boxes):
    pairs = zip(boxes.xyxy.tolist(), boxes.score.tolist(), strict=True)
    return sorted((tuple(box), round(peak, 5)) for box, peak in pairs)


plain = {"min_area": 0, "nms_iou": None}


@given(heats, st.sampled_from([0, 0.2, 0.4, 0.6, 0.9, 1]), st.sampled_from([4, 8]), st.sampled_from([0, 0.05, 0.3]))
def test_regions_are_those_of_a_flood_fill_that_have_enough_pixels(heat, tau, connectivity, min_area):
    boxes = boxes_from_maps(heat[None], BoxRule(tau, connectivity=connectivity, min_area=min_area, nms_iou=None))
    found = regions(heat, np.float32(tau) * heat.max(), connectivity)
    kept = [(box, peak) for box, peak, area in found if area >= min_area * heat.size]
    assert as_set(boxes) == sorted((tuple(map(float, box)), round(float(peak), 5)) for box, peak in kept)
    assert (np.diff(boxes.score) <= 0).all()  # best first


@given(heats, st.sampled_from([0, 0.2, 0.6]))
def test_the_largest_region_is_the_one_with_most_pixels(heat, tau):
    boxes = boxes_from_maps(heat[None], BoxRule(tau, components="largest", **plain))
    expected = regions(heat, np.float32(tau) * heat.max(), 8)
    assert len(boxes.xyxy) == min(1, len(expected))
    if expected:
        most = max(area for _, _, area in expected)
        largest = [(tuple(map(float, box)), round(float(peak), 5)) for box, peak, area in expected if area == most]
        assert as_set(boxes)[0] in largest


@given(stacks, st.integers(1, 3), st.sampled_from([None, 0.3]))
def test_max_boxes_keeps_the_best_of_every_map(maps, limit, nms_iou):
    everything = boxes_from_maps(maps, BoxRule(0.2, min_area=0, nms_iou=nms_iou))
    some = boxes_from_maps(maps, BoxRule(0.2, min_area=0, nms_iou=nms_iou, max_boxes=limit))
    for p in range(len(maps)):
        np.testing.assert_array_equal(some.xyxy[some.index == p], everything.xyxy[everything.index == p][:limit])
        np.testing.assert_array_equal(some.score[some.index == p], everything.score[everything.index == p][:limit])


RING = ((0, 0), (1, 1), (1, 1))  # one pixel round each map
SPOT = np.ones((1, 4, 4), np.float32)
IN_A_RING = np.pad(np.pad(SPOT, RING), RING, constant_values=0.75)


@given(stacks, st.sampled_from([0.125, 0.25, 0.5]))  # which float32, torchvision's, holds exactly
@example(IN_A_RING, 0.25)  # the IoU of the boxes of the spot and the ring
def test_suppression_keeps_what_torchvisions_keeps(maps, iou):
    without = boxes_from_maps(maps, BoxRule(0.2, connectivity=4, **plain))
    order = torch.arange(len(without.index), 0, -1, dtype=torch.float32)
    kept = batched_nms(torch.from_numpy(without.xyxy), order, torch.from_numpy(without.index), iou).sort().values
    boxes = boxes_from_maps(maps, BoxRule(0.2, connectivity=4, min_area=0, nms_iou=iou))
    np.testing.assert_array_equal(boxes.xyxy, without.xyxy[kept.numpy()])


@given(
    seeds.map(lambda rng: rng.random(rng.integers(1, [6, 10, 10]), np.float32)),  # no ties, which have no order
    st.sampled_from([0.3, 0.6, "auto"]),
    st.sampled_from(["all", "largest"]),
    st.sampled_from([None, 0.4]),
    st.sampled_from([0.0, 0.2, 1.0]),
)
def test_many_maps_at_once_are_one_by_one(maps, tau, components, nms_iou, split):
    rule = BoxRule(tau, components, min_area=0.05, nms_iou=nms_iou, max_boxes=2, split_peaks=split)
    together = boxes_from_maps(maps, rule)
    assert (np.diff(together.index) >= 0).all()
    for p in range(len(maps)):
        alone = boxes_from_maps(maps[p : p + 1], rule)
        np.testing.assert_array_equal(together.xyxy[together.index == p], alone.xyxy)
        np.testing.assert_array_equal(together.score[together.index == p], alone.score)


def test_hot_edges_do_not_leak_into_the_map_below_nor_across_the_chunks():
    maps = np.zeros((150, 4, 5), np.float32)  # more than are labelled in one call
    maps[:, 0, :] = maps[:, -1, :] = 1
    boxes = boxes_from_maps(maps, BoxRule(0.5))
    assert boxes.index.tolist() == [p for p in range(150) for _ in range(2)]
    assert sorted(map(tuple, boxes.xyxy[boxes.index == 149].tolist())) == [(0, 0, 5, 1), (0, 3, 5, 4)]


@given(stacks, st.sampled_from([0.33, 0.6, "auto"]), st.data())
def test_the_maps_scale_does_not_matter(maps, tau, data):
    """No level lies at τ·max, where rounding would decide; of exact multiples Otsu's 256 levels are the same."""
    factors = [2.0**-100, 0.5, 2.0**60] if tau == "auto" else [1e-6, 0.5, 3.0, 255.0, 1e6]
    scaled = maps * np.float32(data.draw(st.sampled_from(factors)))
    one, other = (boxes_from_maps(m, BoxRule(tau, min_area=0)) for m in (maps, scaled))
    np.testing.assert_array_equal(one.xyxy, other.xyxy)
    np.testing.assert_allclose(one.score, other.score, rtol=1e-6)


def otsu(values):
    """The split of 256 levels that separates the two classes' means most (Otsu 1979); None: one level only."""
    levels = np.floor(values / values.max() * np.float32(255)).astype(int)
    best, best_level = 0.0, None
    for level in range(255):
        low, high = levels[levels <= level], levels[levels > level]
        if len(low) and len(high):
            between = len(low) * len(high) * (low.mean() - high.mean()) ** 2
            if between > best * (1 + 1e-9):
                best, best_level = between, level
    return None if best_level is None else levels > best_level


@given(hnp.arrays(np.float32, (1, 40), elements=st.floats(0, 1, width=32)))
def test_the_automatic_threshold_is_otsus_on_positive_values(heat):
    boxes = boxes_from_maps(heat[None], BoxRule("auto", min_area=0, nms_iou=None))
    positive = heat[0] > 0
    hot = np.zeros(40, bool)
    for x0, _, x1, _ in boxes.xyxy.astype(int):
        hot[x0:x1] = True
    expected = np.zeros(40, bool)
    if positive.any():
        upper = otsu(heat[0][positive])
        expected[positive] = True if upper is None else upper
    np.testing.assert_array_equal(hot, expected)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, "auto"])
def test_nothing_positive_has_no_box_and_nothing_is_above_the_maximum(tau):
    assert len(boxes_from_maps(np.zeros((3, 5, 6), np.float32), BoxRule(tau)).xyxy) == 0
    assert len(boxes_from_maps(np.full((1, 5, 6), -0.5, np.float32), BoxRule(tau)).xyxy) == 0
    assert len(boxes_from_maps(np.zeros((0, 5, 6), np.float32), BoxRule(tau)).xyxy) == 0
    constant = boxes_from_maps(np.full((1, 5, 6), 0.7, np.float32), BoxRule(tau))
    assert constant.xyxy.tolist() == ([] if tau == 1 else [[0, 0, 6, 5]])  # strictly above τ·max


@pytest.mark.parametrize(
    ("option", "value"),
    [("threshold", "otsu"), ("components", "some"), ("max_boxes", 0), ("split_peaks", None), ("connectivity", 6)],
)
def test_a_rule_refuses_what_it_cannot_be_in_one_line(option, value):
    with pytest.raises(UsageError, match=rf"^expected {option}[^\n]+, got {value!r}[^\n]*$"):
        BoxRule(**{option: value})


# ------------------------------------------------------------------------------------------------------ separate peaks
distinct = st.tuples(st.integers(1, 9), st.integers(2, 9)).flatmap(
    lambda s: st.permutations(range(1, s[0] * s[1] + 1)).map(
        lambda order: (np.array(order, np.float32) / len(order)).reshape(s)
    )
)  # no two values alike: where they are, a border may lie on either side
connected = st.sampled_from([4, 8])
cutoffs = st.sampled_from([0.0, 0.05, 0.2, 0.35, 0.5, 0.8])


def prominences(heat, low, connectivity):
    """Each hot peak's height over the highest level at which it hangs together with a higher one, by the definition."""

    def around(place, level):
        pixels = (heat >= level).astype(np.uint8)
        labels = cv2.connectedComponents(pixels, connectivity=connectivity)[1]
        return heat[labels == labels[place]].max()

    levels = sorted((value for value in heat.ravel() if value > low), reverse=True)
    found = {}
    for place in zip(*np.nonzero(heat > low), strict=True):
        higher = [level for level in levels if level <= heat[place] and around(place, level) > heat[place]]
        saddle = float(higher[0]) if higher else -np.inf  # -inf: it is the highest of its region
        if saddle < heat[place]:  # else it is no peak
            found[float(heat[place])] = float(heat[place]) - saddle
    return found


def as_parts(heat, tau, split, connectivity):
    """The parts that `divide` makes of each region, as sets of pixels; a region that stays whole is one."""
    n, labels = cv2.connectedComponents(
        (heat > np.float32(tau) * heat.max()).astype(np.uint8), connectivity=connectivity
    )
    found = []
    for region in range(1, n):
        inside = labels == region
        low, least = np.float32(tau) * heat.max(), np.float32(split * heat.max())
        parts = divide(heat, inside, low, least, connectivity)
        if parts is None:
            found.append(inside)
            continue
        assert ((parts.labels > 0) == inside).all()  # they cover the region, and share no pixel
        assert parts.area.sum() == inside.sum()
        assert parts.labels.max() == len(parts.area) == len(parts.peak) >= 2
        assert (np.diff(parts.peak) <= 0).all()
        for number, (box, area, peak) in enumerate(zip(parts.xyxy, parts.area, parts.peak, strict=True), start=1):
            part = parts.labels == number
            ys, xs = np.nonzero(part)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            assert (area, peak) == (part.sum(), heat[part].max())
            assert cv2.connectedComponents(part.astype(np.uint8), connectivity=connectivity)[0] == 2  # one piece
            found.append(part)
    return found


@given(distinct, connected)
def test_from_each_pixel_a_path_climbs_by_the_highest_neighbours(heat, connectivity):
    ends = []
    for place in np.ndindex(heat.shape):
        end, before = place, None
        while end != before:
            before = y, x = end
            around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if connectivity == 8 or not dy * dx]
            inside = [(v, u) for v, u in around if 0 <= v < heat.shape[0] and 0 <= u < heat.shape[1]]
            end = max(inside, key=heat.__getitem__)
        ends.append(end[0] * heat.shape[1] + end[1])
    assert climb(heat, connectivity).tolist() == ends


@given(distinct, st.sampled_from([0.0, 0.3, 0.6]), cutoffs, connected)
def test_a_region_has_a_part_for_each_prominent_peak(heat, tau, split, connectivity):
    parts = as_parts(heat, tau, split, connectivity)
    hot = heat > np.float32(tau) * heat.max()
    assert (np.sum(parts, axis=0) == hot).all()
    wanted = prominences(heat, np.float32(tau) * heat.max(), connectivity)
    least = float(np.float32(split * heat.max()))
    assert {float(heat[part].max()) for part in parts} == {top for top, over in wanted.items() if over >= least}


@given(stacks, st.sampled_from([0.1, 0.3]), cutoffs, connected)
def test_boxes_of_parts_hold_what_the_boxes_of_regions_do_and_peaks_are_their_own(maps, tau, split, connectivity):
    for heat in maps:
        boxes = boxes_from_maps(heat[None], BoxRule(tau, connectivity=connectivity, split_peaks=split, **plain))
        parts = as_parts(heat, tau, split, connectivity) if heat.max() > 0 else []
        assert as_set(boxes) == sorted(
            (
                tuple(map(float, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1))),
                round(float(heat[part].max() / heat.max()), 5),
            )
            for part in parts
            for ys, xs in [np.nonzero(part)]
        )


def gaussians(*peaks, size=(60, 100), floor=0.0):
    """The largest of (x, y, height, width) at each pixel."""
    y, x = np.mgrid[: size[0], : size[1]]
    bells = [h * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * w**2)) for cx, cy, h, w in peaks]
    return np.maximum(np.max(bells, axis=0), floor).astype(np.float32)


@given(st.integers(3, 8), st.booleans())
def test_two_equal_peaks_far_enough_apart_are_two_boxes_that_touch(width, turned):
    """3 widths apart: their saddle is near e^(-9/8) = 0.32, above τ 0.3; the prominence near 0.68."""
    left, right = 50 - 3 * width // 2, 50 - 3 * width // 2 + 3 * width
    heat = gaussians((left, 30, 1, width), (right, 30, 1, width))
    radius = int(width * np.sqrt(-2 * np.log(0.3)))  # what is above τ
    middle = (left + right) / 2
    expected = [
        [left - radius, 30 - radius, middle, 31 + radius],
        [middle, 30 - radius, right + radius + 1, 31 + radius],
    ]
    heat, expected = (heat.T, [[b, a, d, c] for a, b, c, d in expected]) if turned else (heat, expected)
    whole, parts = (boxes_from_maps(heat[None], BoxRule(0.3, split_peaks=split)) for split in (0.75, 0.5))
    assert len(whole.xyxy) == 1
    assert len(parts.xyxy) == 2
    np.testing.assert_allclose(sorted(parts.xyxy.tolist()), sorted(expected), atol=1)  # the pixel between is of either
    assert parts.score.tolist() == [1, 1]


def test_a_parts_score_is_its_own_peak_and_the_largest_part_is_the_largest():
    heat = gaussians((30, 30, 1, 6), (62, 30, 0.8, 11), floor=0.1)[None]
    parts = boxes_from_maps(heat, BoxRule(0.2, split_peaks=0.1))
    np.testing.assert_allclose(parts.score, [1, 0.8])
    largest = boxes_from_maps(heat, BoxRule(0.2, "largest", split_peaks=0.1))
    np.testing.assert_array_equal(largest.xyxy, parts.xyxy[1:])
    assert len(boxes_from_maps(heat, BoxRule(0.2, "largest")).xyxy) == 1


def test_a_region_stays_whole_where_only_one_part_is_large_enough():
    heat = np.float32([[[1, 0.9, 0.9, 0.9, 0.4, 0.8, 0, 0, 0, 0]]])
    for least, boxes in ((0.2, [[0, 0, 6, 1]]), (0.1, [[0, 0, 5, 1], [5, 0, 6, 1]])):
        assert boxes_from_maps(heat, BoxRule(0.2, min_area=least, split_peaks=0.2)).xyxy.tolist() == boxes


def test_a_rule_of_which_nothing_is_said_never_splits_nor_does_a_published_metric():
    heat = gaussians((22, 30, 1, 8), (50, 30, 1, 8), (78, 30, 1, 8))
    assert len(boxes_from_maps(heat[None], BoxRule(0.1)).xyxy) == 1
    assert len(boxes_from_maps(heat[None], BoxRule(0.1, split_peaks=1)).xyxy) == 1
    parts = boxes_from_maps(heat[None], BoxRule(0.1, split_peaks=0.2)).xyxy
    assert len(parts) == 3
    judged = JudgedMap("a", heat, parts[:1], heat.shape[::-1])
    assert VLScoreRule(0.1).value_of(judged) == 0  # the box round all three fits none

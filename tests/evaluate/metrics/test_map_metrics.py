"""Metrics that read the map itself, by hand and against definitions; mIoU against mmsegmentation's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.metrics import Bootstrap, JudgedMap, MeanIoU, PxAP, average_precision, pixel_pairs
from cliploc.evaluate.metrics._base import poisson_draws
from cliploc.evaluate.metrics.boxes_at_threshold import MeanBestIoU, VLScoreRule
from cliploc.evaluate.metrics.heat_on_object import (
    EnergyInBoxes,
    EnergyInMasks,
    PointingGame,
    RelevanceRank,
    RelevanceRankMasks,
)

maps = hnp.arrays(np.float64, (6, 6), elements=st.floats(0, 1))


def of_one(metric, heat, boxes):
    return metric.value_of(JudgedMap("a", heat, np.array(boxes), heat.shape[::-1]))


def pxap(*rows, replicates=0):
    """The score of PxAP for maps with their masks and regions to ignore."""
    metric = PxAP()
    for i, (heat, *masks) in enumerate(rows):
        judged = JudgedMap(f"{i}", heat, np.zeros((0, 4)), heat.shape[::-1], *masks)
        metric.add(judged.sample_id, metric.measure(judged), None, None)
    return metric.summarise(False, Bootstrap(replicates=replicates)).scores["pxap"]


@pytest.mark.parametrize(
    ("right", "points"),
    [(1, [(50, 50), (40, 40), (59, 59), (25, 45), (74, 45), (31, 28)]), (0, [(24, 45), (75, 45), (28, 28)])],
)
def test_pointing_game_takes_fifteen_pixels_of_distance(right, points):
    # The boxes touch pixels 40 … 59: 25 and 74 are 15 away; (31, 28) is 9, 12 away = 15; (28, 28) is 12, 12 away = 17.
    for x, y in points:
        heat = np.zeros((100, 100))
        heat[y, x] = 1
        for box in ([40, 40, 60, 60], [40.7, 40.2, 59.3, 59.8]):
            assert of_one(PointingGame(), heat, [box]) == right


def test_a_map_without_a_peak_points_nowhere():
    for value in (0.0, 0.5, 1.0):
        assert of_one(PointingGame(), np.full((10, 10), value), [[0, 0, 10, 10]]) == 0


def test_energy_by_hand():
    heat = np.array([[1.0, 0.5], [0.25, 0.25]])
    assert of_one(EnergyInBoxes(), heat, [[0, 0, 1, 1]]) == 0.5
    assert of_one(EnergyInBoxes(), heat, [[0, 0, 1, 2], [0, 0, 1, 1]]) == 0.625  # overlapping boxes count once
    assert of_one(EnergyInBoxes(), heat, [[0, 0, 2, 2]]) == 1
    assert of_one(EnergyInBoxes(), np.zeros((2, 2)), [[0, 0, 2, 2]]) == 0


def masked(metric, heat, *masks):
    return metric.value_of(JudgedMap("a", heat, np.zeros((0, 4)), heat.shape[::-1], *masks))


def test_energy_in_masks_by_hand():
    heat, mask = np.array([[1.0, 0.5], [0.25, 0.25]]), np.array([[True, False], [True, False]])
    assert masked(EnergyInMasks(), heat, mask) == 0.625
    ignore = np.array([[True, True], [False, False]])  # 0.5 does not count, 1.0 is of the object
    assert masked(EnergyInMasks(), heat, mask, ignore) == pytest.approx(1.25 / 1.5)
    assert masked(EnergyInMasks(), np.zeros((2, 2)), mask) == 0
    with pytest.raises(InputError, match="expected mask as booleans"):
        masked(EnergyInMasks(), heat, mask[:1])


def test_rank_accuracy_by_hand():
    heat = np.array([[0.9, 0.8, 0.7, 0.1]])
    assert of_one(RelevanceRank(), heat, [[1, 0, 4, 1]]) == pytest.approx(2 / 3)  # of 0.9, 0.8, 0.7
    assert of_one(RelevanceRank(), heat, [[0, 0, 0.4, 1]]) == 0  # no pixel's centre
    mask = np.array([[False, True, False, True]])
    assert masked(RelevanceRankMasks(), heat, mask) == 0.5
    assert masked(RelevanceRankMasks(), heat, mask, np.array([[True, False, True, False]])) == 1
    flat = np.array([[0.5, 0.5, 0.5, 0.1]])  # two of three that are equally hot: one of them is of the object
    assert masked(RelevanceRankMasks(), flat, mask) == pytest.approx((2 / 3) / 2)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_rank_accuracy_and_energy_in_masks_are_those_of_quantus(seed):
    quantus = pytest.importorskip("quantus", reason="needs quantus")
    random = np.random.default_rng(seed)
    heat, mask = random.random((6, 6)), random.random((6, 6)) < 0.4
    mask[0, 0], mask[5, 5] = True, False
    arguments = {
        "model": None, "x_batch": np.zeros((1, 1, 6, 6)), "y_batch": np.zeros(1, int), "a_batch": heat[None, None],
        "s_batch": mask[None, None], "channel_first": True,
    }  # fmt: skip
    for ours, theirs in (
        (RelevanceRankMasks(), quantus.RelevanceRankAccuracy),
        (EnergyInMasks(), quantus.RelevanceMassAccuracy),
        (EnergyInMasks(), quantus.AttributionLocalisation),
    ):
        [expected] = theirs(normalise=False, disable_warnings=True)(**arguments)
        assert masked(ours, heat, mask) == pytest.approx(expected, abs=1e-6)


def test_vl_scores_rule_takes_the_best_of_all_regions_but_specks():
    heat = np.zeros((100, 100))
    heat[10:50, 10:50], heat[70:80, 70:80], heat[90:93, 90:93] = 1, 0.7, 1
    assert of_one(VLScoreRule(0.6), heat, [[70, 70, 80, 85]]) == 1  # IoU 2/3, though the other region is larger
    assert of_one(VLScoreRule(0.8), heat, [[70, 70, 80, 85]]) == 0  # 0.7 is not above 0.8
    assert of_one(VLScoreRule(0.6), heat, [[90, 90, 93, 93]]) == 0  # 9 of 10,000 pixels are below 0.1 %
    assert of_one(VLScoreRule(0.6), heat, [[70, 70, 80, 90]]) == 1  # just 0.5
    heat[80:90, 80:90] = 1  # touches by a corner: another region
    assert of_one(VLScoreRule(0.6), heat, [[70, 70, 80, 80]]) == 1
    assert of_one(VLScoreRule(0.6), np.zeros((9, 9)), [[0, 0, 9, 9]]) == 0


def test_the_best_iou_is_that_at_the_threshold():
    heat = np.zeros((224, 224))
    heat[10:50, 10:50], heat[20:40, 20:40] = 0.5, 1
    assert of_one(MeanBestIoU(0.499), heat, [[20, 20, 40, 40]]) == 1
    assert of_one(MeanBestIoU(0.498), heat, [[20, 20, 40, 40]]) < 0.3  # 127 of 255 are above it


def test_pxap_by_hand():
    # Descending: 0.9 true, 0.6 false, 0.3 true → precision 1 at recall ½, ⅔ at recall 1: ½ · 1 + ½ · ⅔ = 5/6.
    heat, mask = np.array([[0.9, 0.6, 0.3]]), np.array([[True, False, True]])
    assert pxap((heat, mask)).value == pytest.approx(5 / 6)
    assert pxap((heat, mask, np.array([[True, True, False]]))).value == 1  # ignored where no object is
    with pytest.raises(InputError, match="expected mask as booleans"):
        pxap((heat, mask.T))
    with pytest.raises(InputError, match="expected a mask of the object, got none"):
        pxap((heat, None))
    with pytest.raises(UsageError, match="expected masks with an object, got only empty ones"):
        pxap((heat, np.zeros_like(mask)))


def test_pxaps_interval_leaves_out_replicates_without_an_object():
    """A third of the replicates do not draw the only image: its interval must not reach down to 0 for that."""
    heat, mask = np.array([[0.9, 0.6, 0.3]]), np.array([[True, False, True]])
    assert pxap((heat, mask), replicates=200).interval == pytest.approx((5 / 6, 5 / 6))
    low, high = pxap((heat, mask), (heat, np.zeros_like(mask)), replicates=200).interval
    assert 0 < low < high == pytest.approx(5 / 6)


def literal_pxap(pairs):
    """Precision and recall at each threshold, pixels counted one by one."""
    heat = np.concatenate([h.ravel() for h, _ in pairs])
    mask = np.concatenate([m.ravel() for _, m in pairs])
    area = recall_before = 0.0
    for tau in [1.0, *np.arange(0, 1, 0.001)[::-1]]:
        hot = heat >= tau
        recall = (hot & mask).sum() / mask.sum()
        area += (recall - recall_before) * ((hot & mask).sum() / max(hot.sum(), 1))
        recall_before = recall
    return area


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(maps, hnp.arrays(np.bool_, (6, 6))), min_size=2, max_size=4))
def test_pxap_is_the_area_of_its_definition(pairs):
    pairs[0][1][0, 0] = True
    assert pxap(*pairs).value == pytest.approx(literal_pxap(pairs))


# ----------------------------------------------------------------------------------------------------------------- mIoU
def label_maps(count: int, classes: int, seed: int = 0) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Predicted and true maps; some true pixels are ignored, and some are no class."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        shape = tuple(random.integers(5, 12, 2))
        truth = random.integers(0, classes - 1, shape)
        predicted = np.where(random.random(shape) < 0.6, truth, random.integers(0, classes - 1, shape))
        truth[random.random(shape) < 0.1] = 255
        truth[random.random(shape) < 0.05] = classes + 3
        made.append((f"picture {number}", predicted, truth))
    return made


def intersect_and_union(maps, classes):
    """mmsegmentation 1.x, `IoUMetric.intersect_and_union` and `total_area_to_metrics`, pixel by pixel."""
    intersect, predicted_area, true_area = ([0] * classes for _ in range(3))
    for _, predicted, truth in maps:
        for guess, meant in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if meant == 255:
                continue
            predicted_area[guess] += 1
            if meant < classes:  # histc counts no values above its range
                true_area[meant] += 1
            if guess == meant:
                intersect[guess] += 1
    iou, accuracy = [], []
    for i, p, t in zip(intersect, predicted_area, true_area, strict=True):
        iou.append(i / (p + t - i) if p + t - i else math.nan)
        accuracy.append(i / t if t else math.nan)
    return iou, accuracy, sum(intersect) / sum(true_area)


def test_with_more_than_255_classes_label_255_is_one():
    pairs = pixel_pairs("a", np.array([[255, 1]]), np.array([[255, 65535]]), 459)
    assert (pairs.true.tolist(), pairs.predicted.tolist(), pairs.pixels.tolist()) == ([255], [255], [1])


def test_the_numbers_are_those_of_mmsegmentation():
    maps = label_maps(6, classes=7)  # the last class is nowhere
    metric = MeanIoU(7)
    for one in maps:
        metric.update(*one)
    result = metric.compute()
    iou, accuracy, pixel_accuracy = intersect_and_union(maps, 7)
    np.testing.assert_allclose(result.iou, iou, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.accuracy, accuracy, rtol=0, atol=1e-12)
    assert math.isnan(result.iou[-1])
    assert result.miou == pytest.approx(np.nanmean(iou), abs=1e-12)
    assert result.mean_accuracy == pytest.approx(np.nanmean(accuracy), abs=1e-12)
    assert result.pixel_accuracy == pytest.approx(pixel_accuracy, abs=1e-12)
    assert result.n == 6
    drawn = []
    for times in np.stack([poisson_draws(name) for name, _, _ in maps], axis=1):
        again = [one for one, count in zip(maps, times, strict=True) for _ in range(count)]
        drawn += [np.nanmean(intersect_and_union(again, 7)[0])] if again else []
    assert result.interval == pytest.approx(Bootstrap().quantiles(np.array(drawn)), abs=1e-12)


def test_labels_below_0_are_no_class_and_every_pixel_may_be_ignored():
    pairs = pixel_pairs("a", np.array([[1, 1]]), np.array([[-1, 1]]), 2)
    assert (pairs.true.tolist(), pairs.predicted.tolist()) == ([1, -1], [1, 1])
    metric = MeanIoU(2)
    metric.update("a", np.array([[0, 1]]), np.array([[255, 255]]))
    assert math.isnan(metric.compute().miou)
    assert metric.compute().interval is None


def test_the_order_of_images_does_not_matter():
    maps = label_maps(5, classes=4)
    forth, back = MeanIoU(4), MeanIoU(4)
    for one, other in zip(maps, reversed(maps), strict=True):
        forth.update(*one)
        back.update(*other)
    assert forth.compute().confusion.tolist() == back.compute().confusion.tolist()
    assert forth.compute().interval == back.compute().interval
    with pytest.raises(UsageError, match="occurs twice"):
        forth.update(*maps[0])


def test_errors():
    square = np.zeros((2, 3), int)
    with pytest.raises(InputError, match="a: expected a label map of 3×2 pixels, like the true one, got 2×2"):
        pixel_pairs("a", np.zeros((2, 2), int), square, 2)
    with pytest.raises(InputError, match="a: expected labels from 0 to 1, got 2"):
        pixel_pairs("a", square + 2, square, 2)
    with pytest.raises(UsageError, match="at least one picture"):
        MeanIoU(2).compute()


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_by_its_definition(seed):
    random = np.random.default_rng(seed)
    scores, right = random.integers(0, 9, 60) / 8, random.random(60) < 0.3
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        hot = scores >= threshold
        recall = (right & hot).sum() / right.sum()
        total += (recall - before) * (right & hot).sum() / hot.sum()
        before = recall
    assert average_precision(scores, right) == pytest.approx(total, abs=1e-12)
    assert average_precision(scores, np.zeros(60, bool)) == 0

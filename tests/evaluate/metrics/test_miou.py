"""mIoU against mmsegmentation's definition in plain loops, and average precision against its definition."""

import math

import numpy as np
import pytest

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.metrics import Bootstrap, MeanIoU, average_precision, pixel_pairs
from cliploc.evaluate.metrics._base import poisson_draws


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

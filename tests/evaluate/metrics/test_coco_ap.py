"""Box AP and AR: equal to pycocotools' on random boxes, with equal scores and many boxes too; and their intervals."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import Bootstrap, CocoAP
from cliploc.evaluate.metrics.coco_ap import matches


def drawn(seed, pictures=12, names=3, most=8, levels=10):
    """(picture, label) → boxes, scores, true boxes; scores and corners are coarse, so that many are equal."""
    random = np.random.default_rng(seed)

    def boxes(count):
        corner, side = random.integers(0, 8, (count, 2)) * 5, random.integers(1, 6, (count, 2)) * 5
        return np.concatenate([corner, corner + side], axis=1).astype(float)

    found = {}
    for picture in range(pictures):
        for label in range(names):
            true = boxes(random.integers(0, 4))
            near = true[random.integers(0, len(true), most)] + random.integers(-2, 3, (most, 4)) if len(true) else []
            mine = np.concatenate([np.reshape(near, (-1, 4)), boxes(random.integers(0, most))])
            mine[:, 2:] = np.maximum(mine[:, 2:], mine[:, :2] + 1)
            found[f"{picture:02}", label] = mine, random.integers(0, levels, len(mine)) / levels, true
    return found


def theirs(cases):
    """AP, AP50 and AR with 100 boxes."""

    def wh(box):
        return [*map(float, box[:2]), float(box[2] - box[0]), float(box[3] - box[1])]

    labels = sorted({label for _, label in cases})
    images = {name: i for i, name in enumerate(sorted({name for name, _ in cases}), start=1)}
    truth, mine = [], []
    for (name, label), (boxes, scores, true) in cases.items():
        about = {"image_id": images[name], "category_id": label + 1}
        truth += [
            {**about, "id": len(truth) + i, "bbox": wh(one), "area": wh(one)[2] * wh(one)[3], "iscrowd": 0}
            for i, one in enumerate(true, start=1)
        ]
        mine += [{**about, "bbox": wh(one), "score": float(s)} for one, s in zip(boxes, scores, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        document = COCO()
        document.dataset = {
            "images": [{"id": i} for i in images.values()],
            "categories": [{"id": label + 1} for label in labels],
            "annotations": truth,
        }
        document.createIndex()
        judged = COCOeval(document, document.loadRes(mine), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {"ap": judged.stats[0], "ap50": judged.stats[1], "ar": judged.stats[8]}


def ours(cases):
    metric = CocoAP()
    for (name, label), (boxes, scores, true) in reversed(cases.items()):  # of equal scores the first picture goes first
        metric.add(name, label, boxes, scores, true)
    return metric


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [3, 1000])
def test_equal_to_pycocotools(seed, levels):
    cases = drawn(seed, levels=levels)
    assert ours(cases).compute(Bootstrap(replicates=0))[0] == pytest.approx(theirs(cases), abs=1e-12)


def test_only_the_hundred_best_of_a_name_in_a_picture_count():
    cases = drawn(1, pictures=2, names=1, most=150, levels=1000)
    assert max(len(boxes) for boxes, _, _ in cases.values()) > 100
    assert ours(cases).compute()[0] == pytest.approx(theirs(cases), abs=1e-12)


def test_a_name_that_is_nowhere_does_not_count():
    cases = drawn(2)
    expected = ours(cases).compute()
    metric = ours(cases)
    metric.add("00", 9, [[0, 0, 5, 5]], [1.0], [])
    assert metric.compute() == expected
    assert CocoAP().compute() == ({}, {})


def test_a_replicate_is_the_pictures_drawn_again():
    cases = drawn(3, pictures=5, levels=10**6)  # equal scores would be in another order
    twice = Bootstrap(replicates=2, seed=4, confidence=0.9999)
    (counted,) = twice.draws(5)
    left_out = np.argmin(counted[0])  # not in the first replicate, nor is a name that is there alone
    assert counted[0][left_out] == 0
    for (name, label), (boxes, scores, true) in cases.items():
        cases[name, label] = boxes, scores, true[: None if label or int(name) == left_out else 0]
    drawn_again = []
    for counts in counted:
        metric = CocoAP()
        for (name, label), one in cases.items():
            for copy in range(counts[int(name)]):
                metric.add(f"{name} {copy}", label, *one)
        drawn_again.append(metric.compute(Bootstrap(replicates=0))[0])
    found, ends = ours(cases).compute(twice)
    assert ends.keys() == found.keys()
    for key, (low, high) in ends.items():
        half = abs(drawn_again[0][key] - drawn_again[1][key]) / 2  # around the number itself
        assert (low, high) == pytest.approx((found[key] - half, found[key] + half), abs=1e-4)


def test_of_true_boxes_that_fit_equally_the_last_is_taken():
    assert matches(np.array([[0.62, 0.62], [0.62, 0]]))[:4].tolist() == [[True, True]] * 3 + [[False, False]]


def test_intervals_are_of_replicates_with_something_true_and_within_0_and_1():
    metric = CocoAP()
    for picture, boxes in (("a", [[0, 0, 9, 9]]), ("b", [])):
        metric.add(picture, 0, boxes, [0.5] * len(boxes), [[0, 0, 9, 9]])
    metric.add("c", 0, [], [], [])  # drawn alone it says nothing
    for low, high in metric.compute()[1].values():
        assert 0 <= low < high <= 1


def test_a_picture_counts_once():
    metric = ours(drawn(0))
    with pytest.raises(UsageError, match="occurs twice"):
        metric.add("00", 0, [], [], [])

"""MaxBoxAcc and its relatives: by hand, on degenerate maps, and to the digit against the definition restated."""

import contextlib
import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import TAUS, Bootstrap, BoxCurve, CocoAP, MaxBoxAcc, box_curve, boxes_on_map, largest_hits
from cliploc.evaluate.metrics.boxes_at_threshold import MeanBestIoU
from cliploc.evaluate.metrics.coco_ap import matches
from cliploc.evaluate.metrics.max_box_acc import LocalizationAccuracy, MaxBoxAccV2, packed_hits
from tests.evaluate.metrics import literal

NONE = Bootstrap(replicates=0)


def noisy(seed, smooth):
    """Blobs under noise, as blurred as asked."""
    random = np.random.default_rng(seed)
    heat = random.random((224, 224)) ** 3
    if smooth:
        heat = cv2.GaussianBlur(heat, (0, 0), smooth)
    heat -= heat.min()
    return (heat / heat.max()).astype(np.float32)


def counted(metric, curve, label=None, predictions=None):
    """Counts a curve by the columns that would be stored of its map."""
    every = {f"hits_every_{iou}": packed_hits(curve.best, iou / 100) for iou in (30, 50, 70)}
    metric.add(curve.image_id, largest_hits(curve) | every, label, predictions)


def values_of(metric, bootstrap=NONE):
    return {name: score.value for name, score in metric.summarise(True, bootstrap).scores.items()}


def at_all(values):
    return np.array([values[int(tau * (len(values) - 1))] for tau in TAUS])


# ------------------------------------------------------------------------------------------------------ to the digit
@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.uint8, (6, 7), elements=st.integers(0, 4)))
def test_few_levels_have_the_ious_of_the_literal_definition(levels):
    heat = np.kron(levels, np.ones((40, 32), np.uint8))[:224, :224] / 5.1
    curve = box_curve("a", heat, [(40, 32, 100, 90)])
    for every, values in ((False, curve.largest), (True, curve.best)):
        assert (at_all(values)[::20] == literal.ious(heat, [(40, 32, 100, 90)], every, TAUS[::20])).all()


@pytest.mark.parametrize("smooth", [0, 1, 3, 12])
def test_every_threshold_has_the_ious_of_the_literal_definition(smooth):
    heat = noisy(smooth, smooth)
    truths = [(20, 30, 150, 180), (100, 5, 223, 90)]
    curve = box_curve("a", heat, truths)
    taus = TAUS if smooth >= 3 else TAUS[::50]  # the literal evaluation takes seconds where contours are many
    for every, values in ((False, curve.largest), (True, curve.best)):
        assert (at_all(values)[:: 1000 // len(taus)] == literal.ious(heat, truths, every, taus)).all()


def test_scores_over_images_are_those_of_the_literal_definition():
    maps = [noisy(seed, 10) for seed in range(5)]
    truths = [literal.true_boxes([(40 + 20 * i, 30, 300, 250 + 10 * i)], (333, 500)) for i in range(5)]
    one, two = MaxBoxAcc(), MaxBoxAccV2()
    for i, (heat, boxes) in enumerate(zip(maps, truths, strict=True)):
        curve = box_curve(f"{i}", heat, boxes)
        one.update(curve)
        counted(two, curve)
    result = one.compute(NONE)
    assert (result.accuracy, result.threshold) == literal.max_box_acc(maps, truths, False, 0.5)
    scores = two.summarise(True, NONE).scores
    shares = []
    for level in (0.3, 0.5, 0.7):
        share, tau = literal.max_box_acc(maps, truths, True, level)
        part = scores[f"max_box_acc_iou{100 * level:.0f}"]
        assert (part.value, part.note.split(",")[0]) == (share, f"τ {tau:g}")
        shares.append(share)
    assert scores["max_box_acc_v2"].value == np.mean(shares)


@given(
    st.lists(st.tuples(*[st.integers(0, 4000)] * 4), min_size=1, max_size=3), st.integers(1, 4000), st.integers(1, 4000)
)
def test_true_boxes_are_scaled_and_truncated_as_the_definition_does(boxes, width, height):
    ours = boxes_on_map(boxes, (width, height), (224, 224))
    assert [tuple(map(int, box)) for box in ours] == literal.true_boxes(boxes, (width, height))


# ------------------------------------------------------------------------------------------------------------ by hand
def square(value=1.0):
    heat = np.zeros((224, 224), np.float32)
    heat[10:20, 30:50] = value
    return heat


def test_a_square_by_hand():
    # x 30…49, y 10…19 → box 30 10 50 20, counted as 21 × 11 pixels; the true box 30 10 49 19 as 20 × 10.
    curve = box_curve("a", square(), [[30, 10, 49, 19]])
    assert len(curve.largest) == 256
    assert (curve.largest[:255] == 200 / 231).all()
    assert curve.largest[255] == 0  # nothing is above the maximum: box 0 0 0 0
    assert box_curve("a", square(), [[30, 10, 50, 20]], "exact").largest[0] == 1.0


@pytest.mark.parametrize(
    ("hot", "value", "box"),
    [
        (np.s_[:0], 0, [0, 0, 0, 0]), (np.s_[:], 1, [0, 0, 223, 223]), (np.s_[:], 0.5, [0, 0, 223, 223]),
        (np.s_[5, 7], 1, [7, 5, 8, 6]), (np.s_[223, 223], 1, [223, 223, 223, 223]),
        (np.s_[:, 220:], 1, [220, 0, 223, 223]),
    ],
    ids=["zeros", "full", "constant", "one pixel", "corner", "right border"],
)  # fmt: skip
def test_degenerate_maps(hot, value, box):
    heat = np.zeros((224, 224))
    heat[hot] = value
    curve = box_curve("a", heat, [box])
    assert len(curve.largest) == int(255 * value) + 1
    assert curve.largest[0] == curve.best[0] == 1.0
    for every, values in ((False, curve.largest), (True, curve.best)):
        assert (at_all(values)[::50] == literal.ious(heat, [box], every, TAUS[::50])).all()


def test_top_k_by_hand():
    right, wrong = BoxCurve("", np.array([0.5, 0]), np.array([0.5, 0])), BoxCurve("", np.zeros(2), np.zeros(2))
    metrics = {tau: LocalizationAccuracy(tau) for tau in (0.4, 1.0, None)}
    rows = [(right, [3, 1, 2, 4, 5]), (right, [1, 2, 4, 5, 3]), (right, [1, 2, 4, 5, 6]), (wrong, [3, 1, 2, 4, 5])]
    for i, (curve, predictions) in enumerate(rows):
        for metric in metrics.values():
            counted(metric, BoxCurve(f"{i}", curve.largest, curve.best), 3, predictions)
    found = values_of(metrics[0.4])
    assert (found["gt_known"], found["top1_loc"], found["top5_loc"]) == (0.75, 0.25, 0.5)
    assert (found["top1_cls"], found["top5_cls"]) == (0.5, 0.75)
    facts = {tau: metric.summarise(True, NONE).facts for tau, metric in metrics.items()}
    assert (facts[0.4]["threshold"], facts[0.4]["threshold_chosen_on_these_images"]) == (0.4, False)
    assert facts[None]["threshold_chosen_on_these_images"]
    assert values_of(metrics[1.0])["gt_known"] == 0
    counted(metrics[0.4], BoxCurve("none", right.largest, right.best), 3)  # no prediction: in GT-known only
    found = values_of(metrics[0.4])
    assert (found["gt_known"], found["top1_loc"]) == (0.8, 0.25)
    assert metrics[0.4].summarise(True, NONE).facts["with_predictions"] == 4


def test_a_tie_is_right_and_the_smallest_best_threshold_is_named():
    metric = MaxBoxAcc()
    metric.update(BoxCurve("a", np.array([0.1, 0.5, 0.5, 0]), np.zeros(4)), 7)
    metric.update(BoxCurve("b", np.array([0.1, 0.2, 0.5, 0]), np.zeros(4)), 8)
    result = metric.compute(NONE)
    assert (result.accuracy, result.threshold) == (1.0, 0.667)  # ⌊0.667 · 3⌋ = 2
    assert result.per_class == {7: 1.0, 8: 1.0}
    assert (result.curve[[0, 333, 334, 666, 667]] == [0, 0, 0.5, 0.5, 1]).all()


# -------------------------------------------------------------------------------------------------------- properties
curves = st.lists(
    st.integers(1, 256).flatmap(
        lambda k: st.tuples(*[hnp.arrays(np.float64, k, elements=st.floats(0, 1), fill=st.just(0.4))] * 2)
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=30, deadline=None)
@given(curves, st.floats(0, 1))
def test_scores_are_shares_of_right_boxes_in_any_order(values, tau):
    rows = [BoxCurve(f"{i}", largest, np.maximum(largest, best)) for i, (largest, best) in enumerate(values)]
    few = Bootstrap(replicates=20)
    for make in (MaxBoxAcc, MaxBoxAccV2, LocalizationAccuracy):
        forth, back = make(), make()
        for i in range(len(rows)):
            counted(forth, rows[i], i % 2)
            counted(back, rows[~i], (len(rows) - 1 - i) % 2)
        assert forth.summarise(True, few) == back.summarise(True, few)
    stated = LocalizationAccuracy(tau)
    for curve in rows:
        counted(stated, curve)
    assert values_of(stated)["gt_known"] == np.mean([c.largest[c.index(tau)] >= 0.5 for c in rows])


def test_intervals_cover_what_they_should():
    # 400 images, half right: the interval of a mean is 0.5 ± 1.96 · √(0.25 / 400) = 0.5 ± 0.049.
    metric = LocalizationAccuracy(0.0)
    for i in range(400):
        counted(metric, BoxCurve(f"{i}", np.array([i % 2 * 1.0]), np.zeros(1)))
    low, high = metric.summarise(True).scores["gt_known"].interval
    assert low == pytest.approx(0.451, abs=0.006)
    assert high == pytest.approx(0.549, abs=0.006)


def test_what_cannot_be_computed_is_refused():
    curve = BoxCurve("a", np.ones(1), np.ones(1))
    with pytest.raises(UsageError, match="no true class"):
        counted(LocalizationAccuracy(), curve, None, [1])
    metric = LocalizationAccuracy()
    counted(metric, curve, 1, [1])
    with pytest.raises(UsageError, match="expected 1 predictions, got 2: write as many for all"):
        counted(metric, BoxCurve("b", np.ones(1), np.ones(1)), 1, [1, 2])
    with pytest.raises(UsageError, match="threshold from 0 to 1"):
        MeanBestIoU(1.5)


# -------------------------------------------------------------------------------------------------------------- coco ap
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

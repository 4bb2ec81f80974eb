"""`benchmark presence`: the numbers by hand and by scikit-learn, and the folder."""

import json

import numpy as np
import pytest
from sklearn import metrics

pytest.importorskip("pyarrow")

from cliploc.evaluate.metrics import Bootstrap
from cliploc.evaluate.tasks.page import write_report
from cliploc.evaluate.tasks.presence.job import COLUMNS, PresenceTally
from cliploc.evaluate.tasks.task import summed_up
from cliploc.find.calibration import reliability
from cliploc.runs.evaluation import rows_in
from tests.commands import cliploc_, localizer_of
from tests.evaluate.samples import coco_folder

pytestmark = pytest.mark.usefixtures("one_model")
LISTS = ("there", "verdicts", "unknown", "unknown_there", "box_scores", "box_right")
FIRST = [0.0, 0.0, 10.0, 10.0]  # a right box by hand, and the thing of its name


def row(sample, *columns):
    lists = dict(zip(LISTS, columns, strict=True))
    right = lists["box_right"]
    lists |= {"box_labels": [*range(len(right))], "boxes": [FIRST if one else [20, 20, 30, 30] for one in right]}
    lists |= {"true_labels": [i for i, one in enumerate(right) if one], "true_boxes": [FIRST for one in right if one]}
    return {"sample": sample, "setting": "s", "status": "ok", "reason": None, **lists}


HAND = [
    row("a", [True, True, False, False], ["found", "unsure", "found", "not found"], [7], [True],
        [0.9, 0.3], [True, False]),
    row("b", [True, False, False], ["found", "not found", "unsure"], [7], [False], [0.8, 0.2], [False, True]),
]  # fmt: skip


def test_numbers_by_hand():
    failed = {**HAND[0], "sample": "c", "status": "failed", "reason": "x"}
    found = summed_up([*HAND, failed], {"s": PresenceTally()})["s"]
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["false_finds"] == pytest.approx(1 / 4)
    assert found["unsure"] == pytest.approx(2 / 7)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["average_precision"] == pytest.approx((1 + 2 / 4) / 2)
    assert found["ap50"] == pytest.approx((1 + 1 / 2) / 2)  # two names with a thing each, the second found second
    assert found["calibration_error"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.8) / 4)
    counts = ("names", "names_there", "unknown", "unknown_there", "boxes", "right_boxes", "images", "evaluated")
    assert [found[key] for key in counts] == [7, 3, 2, 1, 4, 2, 3, 2]
    assert [one["boxes"] for one in found["reliability"]] == [1, 1, 1, 1]


def drawn(count):
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        there = random.random(9) < 0.3
        found = np.where(random.random(9) < 0.3 + 0.4 * there, "found", "not found")
        scores = random.random(20).round(2).astype(np.float32)  # some are equal
        rows.append(row(f"{i:03}", there.tolist(), found.tolist(), [], [], scores.tolist(),
                        (random.random(20) < scores / 2).tolist()))  # fmt: skip
    return rows


def test_numbers_are_scikit_learns_in_any_order_of_rows():
    rows = drawn(30)
    found = summed_up(rows, {"s": PresenceTally()})["s"]
    there, said, scores, right = (
        np.concatenate([one[key] for one in rows]) for key in ("there", "verdicts", "box_scores", "box_right")
    )
    said = said == "found"
    assert found["mcc"] == pytest.approx(metrics.matthews_corrcoef(there, said))
    assert found["f1"] == pytest.approx(metrics.f1_score(there, said))
    assert found["recall"] == pytest.approx(metrics.recall_score(there, said))
    assert found["precision"] == pytest.approx(metrics.precision_score(there, said))
    assert found["average_precision"] == pytest.approx(metrics.average_precision_score(right, scores))
    assert found["calibration_error"] == pytest.approx(reliability(scores, right))
    assert found == summed_up(rows[::-1], {"s": PresenceTally()})["s"]
    for key, (low, high) in found["confidence_95"].items():
        assert low <= found[key] <= high, key


def test_the_interval_of_the_calibration_error_holds_it_in_small_sets():
    for seed in range(40):
        random = np.random.default_rng(seed)
        rows = []
        for i in range(25):
            scores = random.random(4)
            rows.append(
                row(f"{i:02}", [True], ["found"], [], [], scores.tolist(), (random.random(4) < scores).tolist())
            )
        found = summed_up(rows, {"s": PresenceTally()}, Bootstrap(replicates=200))["s"]
        low, high = found["confidence_95"]["calibration_error"]
        assert low <= found["calibration_error"] <= high, seed


def test_intervals_are_those_of_pictures_drawn_again():
    rows = drawn(6)
    twice = summed_up(rows, {"s": PresenceTally()}, Bootstrap(replicates=1, seed=3))["s"]["confidence_95"]
    times = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6))
    again = [{**one, "sample": f"{i} {j}"} for i, one in enumerate(rows) for j in range(times[i])]
    expected = summed_up(again, {"s": PresenceTally()})["s"]
    for key in twice.keys() - {"ap50", "calibration_error"}:  # whose bias is taken off
        low, high = twice[key]
        assert low == high == pytest.approx(expected[key], abs=1e-5), key


def test_what_does_not_exist_is_null():
    found = summed_up([row("a", [True], ["not found"], [], [], [], [])], {"s": PresenceTally()})["s"]
    assert found["recall"] == 0
    assert [found[key] for key in ("precision", "false_finds", "average_precision", "calibration_error")] == [None] * 4
    assert "names" not in summed_up([], {"s": PresenceTally()})["s"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three photographs in COCO's layout; one of the names is known to no model of the package."""
    things = [("cat.jpg", "cat", [0, 0, 400, 290]), ("coffee.jpg", "cup", [5, 5, 99, 99])]
    things += [("coffee.jpg", "sun", [0, 0, 50, 50]), ("dogs.jpg", "dog", [10, 10, 300, 200])]
    return coco_folder(tmp_path_factory.mktemp("coco"), {"val2017": things})


def benchmark(root, out, *more):
    return cliploc_("benchmark", "presence", "--dataset", "coco", "--root", root, "--out", out, *more)


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("presence") / "out"
    ran = benchmark(root, out)
    assert ran.code == 0, ran.err
    return out, ran


def test_rows_are_what_the_localizer_says(root, done):
    out, ran = done
    assert "3 of 3 samples × 1 settings done" in ran.err
    assert "mini does not know 1 of 4 names, such as 'sun'" in ran.err
    rows = {one["sample"]: one for one in rows_in(out)}
    assert list(rows) == ["val2017/cat.jpg", "val2017/coffee.jpg", "val2017/dogs.jpg"]
    for name, one in rows.items():
        assert list(one) == [*COLUMNS]
        found = localizer_of("mini")(root / name, ["cat", "cup", "dog"])
        assert one["labels"] == [0, 1, 2]
        assert one["unknown"] == [3]
        assert one["verdicts"] == [found.verdict(p) for p in range(3)]
        np.testing.assert_allclose(one["presence"], found.presence, atol=1e-3)
        assert len(one["box_scores"]) == len(found.judged.candidates)
    assert rows["val2017/cat.jpg"]["there"] == [True, False, False]
    assert rows["val2017/coffee.jpg"]["unknown_there"] == [True]
    assert any(rows["val2017/cat.jpg"]["box_right"])
    [numbers] = json.loads((out / "summary.json").read_text())["settings"].values()
    assert (numbers["names"], numbers["names_there"], numbers["unknown"], numbers["unknown_there"]) == (9, 3, 3, 1)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["dataset"]["negatives"] == "all"
    assert "second_look" in manifest["settings"][0]


def test_the_report_has_tables_and_reliability(done):
    out, _ = done
    page = (out / "report.html").read_text()
    said = ("All numbers, with 95 % intervals", "box ECE", "Reliability of the scores", "absent found")
    assert not [words for words in said if words not in page]
    [numbers] = json.loads((out / "summary.json").read_text())["settings"].values()
    assert sum(one["boxes"] for one in numbers["reliability"]) == sum(len(one["box_scores"]) for one in rows_in(out))
    assert (out / "tables.csv").read_text().startswith("setting,model,method,recall,recall_low")
    write_report(out)
    assert (out / "report.html").read_text() == page


def test_a_named_method_is_measured_as_published(root, tmp_path):
    ran = benchmark(root, tmp_path, "--method", "cam,layer_cam", "--negatives", "random")
    assert ran.code == 0, ran.err
    rows = [one for one in rows_in(tmp_path) if one["setting"] == "mini_cam"]
    for one in rows:
        assert "unsure" not in one["verdicts"]
        found = localizer_of("mini", method="cam")(root / one["sample"], ["cat", "cup", "dog", "sun"])
        assert one["verdicts"] == [found.verdict(label) for label in one["labels"]]
        assert len(one["labels"]) + len(one["unknown"]) == 2 * sum(one["there"] + one["unknown_there"])

"""What every registered metric must do; a new metric's file is tested here unedited."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import Bootstrap, JudgedMap, MeanMetric, Metric, all_metrics, all_numbers, measure_map
from cliploc.evaluate.tasks.boxes.job import BoxTally, CountedRow
from cliploc.evaluate.tasks.measuring import measure_sample
from cliploc.evaluate.tasks.rows import box_columns, to_table
from cliploc.evaluate.tasks.task import summed_up
from cliploc.values import Sample

FEW = Bootstrap(replicates=20)
TAU = 0.4
TYPES = {"float": float, "bool": bool, "level": int, "hits": bytes, "bytes": bytes}
metrics = pytest.mark.parametrize("cls", all_metrics(), ids=lambda cls: cls.name)


def judged(number: int) -> JudgedMap:
    """A blob near a true box, and the box's mask."""
    random = np.random.default_rng(number)
    x0, y0 = random.integers(10, 90, 2)
    y, x = np.mgrid[:224, :224]
    heat = np.exp(-((x - x0 - 40) ** 2 + (y - y0 - 50) ** 2) / 2000).astype(np.float32)
    box = np.array([[x0, y0, x0 + 80, y0 + 90]], np.float32)
    mask = (x >= x0) & (x < x0 + 80) & (y >= y0) & (y < y0 + 90)
    return JudgedMap(f"sample {number}", heat, box, (224, 224), mask)


def counted(cls: type[Metric], numbers: list[int]) -> Metric:
    one = cls.at(TAU)
    for number in numbers:
        item = judged(number)
        one.add(item.sample_id, one.measure(item), number % 3, [number % 3, 7, 8, 9, 10])
    return one


@metrics
def test_what_it_says_of_itself(cls):
    assert cls.numbers
    assert all(number.title and number.about for number in cls.numbers.values())
    assert set(cls.columns) <= set(CountedRow.of_metrics().__struct_fields__)
    assert set(cls.columns) <= set(box_columns())
    columns = cls.at(TAU).measure(judged(0))
    assert {name: type(value) for name, value in columns.items()} == {
        name: TYPES[kind] for name, kind in cls.columns.items()
    }


@metrics
def test_samples_of_one_picture_are_drawn_together(cls):
    """Each sample twice, as two names of its picture, tells no more than each once."""
    if cls.name == "pxap":
        pytest.skip("pictures with masks have one name")
    once, twice = counted(cls, list(range(8))), counted(cls, list(range(8)))
    pictures = {}
    for number in range(8):
        sample_id = f"again {number}"
        pictures |= dict.fromkeys((sample_id, f"sample {number}"), f"{number}.jpg")
        twice.add(sample_id, twice.measure(judged(number)), number % 3, [number % 3, 7, 8, 9, 10])
    together = twice.summarise(False, replace(FEW, image_of=pictures))
    for key, score in once.summarise(False, FEW).scores.items():
        assert together.scores[key].interval == pytest.approx(score.interval, abs=1e-5)
    assert together.scores.keys() >= cls.numbers.keys()


def test_samples_count_alike_where_pictures_have_unequal_numbers_of_them():
    pictures = replace(FEW, image_of={"a": "1.jpg", "b": "1.jpg", "c": "2.jpg"})
    assert pictures.of_mean(np.ones(3), ["a", "b", "c"]) == pytest.approx((1, 1))


@metrics
def test_its_numbers_are_shares_within_their_intervals(cls):
    summary = counted(cls, list(range(6))).summarise(may_tune=False, bootstrap=FEW)
    assert set(cls.numbers) <= set(summary.scores)
    for score in summary.scores.values():
        assert score.value is not None
        assert 0 <= score.value <= 1
        assert score.interval is None or score.interval[0] <= score.value + 1e-6  # replicates are float32
    if issubclass(cls, MeanMetric):
        for label in range(3):
            alone = counted(cls, [label, label + 3]).summarise(may_tune=False, bootstrap=FEW).scores[cls.name]
            assert summary.per_class[label] == pytest.approx({"images": 2, cls.name: alone.value})


@metrics
def test_the_order_of_samples_does_not_matter(cls):
    forth, back = (counted(cls, order).summarise(False, FEW) for order in ([0, 1, 2, 3], [3, 2, 1, 0]))
    assert forth == back


@metrics
def test_a_sample_that_comes_twice_is_refused_and_so_is_no_sample(cls):
    one = counted(cls, [0])
    with pytest.raises(UsageError, match="sample 0 occurs twice"):
        one.add("sample 0", one.measure(judged(0)), None, None)
    assert len(cls.at(TAU)) == 0
    with pytest.raises(UsageError, match="expected at least one picture"):
        cls.at(TAU).summarise(False, FEW)


@metrics
def test_stored_as_a_row_and_read_again_gives_the_same(cls):
    rows = []
    for number in range(3):
        [columns] = measure_map(judged(number), [TAU])
        base = {"sample": f"sample {number}", "setting": "a", "status": "ok"}
        rows.append(base | {"predictions": [number % 3, 7, 8, 9, 10]} | columns)
    restored = cls.at(TAU)
    for number, row in enumerate(to_table(rows, box_columns()).to_pylist()):
        restored.add(row["sample"], row, number % 3, row["predictions"])
    direct = counted(cls, [0, 1, 2]).summarise(False, FEW)
    for key, score in restored.summarise(False, FEW).scores.items():
        assert score.value == pytest.approx(direct.scores[key].value)  # rows keep float32


def test_the_summary_has_every_number_of_every_metric():
    rows = []
    for number in range(4):
        item = judged(number)
        [columns] = measure_map(item, [TAU])
        base = {"sample": item.sample_id, "setting": "a", "label": 1, "predictions": [1, 2, 3, 4, 5]}
        rows.append(CountedRow.of_metrics()(**base, **columns))
    summary = summed_up(rows, {"a": BoxTally(TAU, False)}, FEW)["a"]
    assert set(all_numbers()) <= set(summary)


def test_metrics_of_masks_are_left_out_without_masks():
    sample = Sample("a", Path("a.png"), 0, (224, 224), judged(0).true_xyxy)
    [row] = measure_sample(sample, judged(0).heat[None], [TAU])
    assert "iou" in row
    assert "pxap" not in row

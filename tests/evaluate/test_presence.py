"""`benchmark presence`: the numbers by hand and by scikit-learn, and the folder."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from cliploc.errors import UsageError
from cliploc.evaluate import calibrate as job
from cliploc.evaluate.calibrate import Examples, ExamplesEvaluator, as_setting, fitted
from cliploc.evaluate.metrics import Bootstrap
from cliploc.evaluate.tasks.page import write_report
from cliploc.evaluate.tasks.presence.job import COLUMNS, PresenceRow, PresenceTally
from cliploc.evaluate.tasks.task import summed_up
from cliploc.evaluate.tasks.worker import NameEvaluator
from cliploc.find.calibration import OF_BOX, OF_NAME, load_calibration, package_calibration, reliability
from cliploc.label.results import reviewed_pictures
from cliploc.localizer import Localizer
from cliploc.runs.picture_files import PromptedPicture
from cliploc.runs.store import rows_in
from cliploc.support.reporter import SILENT
from tests import commands
from tests.commands import CAT, PHOTOS, Outcome, cliploc_, localizer_of, refused, succeeded
from tests.evaluate.samples import boxes_folder, coco_folder
from tests.label.labelled import save_boxes
from tests.tiny import tower

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.usefixtures("one_model")
LISTS = ("there", "verdicts", "unknown", "unknown_there", "box_scores", "box_right")
FIRST = [0.0, 0.0, 10.0, 10.0]  # a right box by hand, and the thing of its name


def row(sample, *columns):
    lists = dict(zip(LISTS, columns, strict=True))
    right = lists["box_right"]
    lists |= {"box_labels": [*range(len(right))], "boxes": [FIRST if one else [20, 20, 30, 30] for one in right]}
    lists |= {"true_labels": [i for i, one in enumerate(right) if one], "true_boxes": [FIRST for one in right if one]}
    return {"sample": sample, "setting": "s", "status": "ok", "reason": None, **lists}


def numbers_of(rows, *bootstrap):
    return summed_up(msgspec.convert(rows, list[PresenceRow]), {"s": PresenceTally()}, *bootstrap)["s"]


HAND = [
    row("a", [True, True, False, False], ["found", "unsure", "found", "not found"], [7], [True],
        [0.9, 0.3], [True, False]),
    row("b", [True, False, False], ["found", "not found", "unsure"], [7], [False], [0.8, 0.2], [False, True]),
]  # fmt: skip


def test_numbers_by_hand():
    failed = {**HAND[0], "sample": "c", "status": "failed", "reason": "x"}
    found = numbers_of([*HAND, failed])
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
    found = numbers_of(rows)
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
    assert found == numbers_of(rows[::-1])
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
        found = numbers_of(rows, Bootstrap(replicates=200))
        low, high = found["confidence_95"]["calibration_error"]
        assert low <= found["calibration_error"] <= high, seed


def test_intervals_are_those_of_pictures_drawn_again():
    rows = drawn(6)
    twice = numbers_of(rows, Bootstrap(replicates=1, seed=3))["confidence_95"]
    times = np.random.default_rng(3).multinomial(6, np.full(6, 1 / 6))
    again = [{**one, "sample": f"{i} {j}"} for i, one in enumerate(rows) for j in range(times[i])]
    expected = numbers_of(again)
    for key in twice.keys() - {"ap50", "calibration_error"}:  # whose bias is taken off
        low, high = twice[key]
        assert low == high == pytest.approx(expected[key], abs=1e-5), key


def test_what_does_not_exist_is_null():
    found = numbers_of([row("a", [True], ["not found"], [], [], [], [])])
    assert found["recall"] == 0
    assert [found[key] for key in ("precision", "false_finds", "average_precision", "calibration_error")] == [None] * 4
    assert "names" not in numbers_of([])


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


# ------------------------------------------ A command that is stopped amid its pictures, as by Ctrl-C, and then resumed
def stopped_and_resumed(
    command: Sequence[object], folder: Path, evaluator: type[NameEvaluator], at: int, patch: pytest.MonkeyPatch
) -> tuple[Outcome, list[str]]:
    """What a command stopped at so many pictures says when resumed, and evaluates then; a.json is b.json in the end."""
    judged, stops_at, own = list[str](), at, evaluator.evaluate

    def counted(self: NameEvaluator, seen: Any, *more: Any) -> Any:
        judged.append(seen.sample.id)
        if len(judged) == stops_at:
            raise KeyboardInterrupt
        return own(self, seen, *more)

    patch.setattr(evaluator, "evaluate", counted)
    first, other = (*command, "--out", folder / "a.json"), (*command, "--out", folder / "b.json")
    assert cliploc_(*first).code == 130
    assert [one.name for one in folder.iterdir()] == ["a.json.partial"]
    assert "holds a run with other settings" in refused(*first, "--flip")
    judged, stops_at = [], 0
    ran, again = cliploc_(*first), [*judged]
    assert ran.code == 0, ran.err
    assert cliploc_(*other).code == 0
    assert sorted(one.name for one in folder.iterdir()) == ["a.json", "b.json"]
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()
    return ran, again


# ------------------------------------------------------------------------------------------------------------ calibrate
BOXES, NAMES = 12, 6  # of each picture that is made up


def examples(seed):
    """A picture whose boxes and names are right by a law that a logistic model can learn."""
    random = np.random.default_rng(seed)

    def drawn(count, width):
        features = random.normal(size=(count, width))
        return features, random.random(count) < 1 / (1 + np.exp(-(features.sum(axis=1) - 1)))

    of_boxes, right = drawn(BOXES, len(OF_BOX))
    of_names, there = drawn(NAMES, len(OF_BOX))
    of_all, all_there = drawn(NAMES, len(OF_NAME))
    return Examples(of_boxes, right, right | (random.random(BOXES) < 0.5), of_names, there, of_all, all_there)


def of(pictures):
    return fitted(pictures, package_calibration("mini"), "a-model", "a set")


def test_each_picture_is_measured_by_a_fit_to_other_folds():
    pictures = [examples(seed) for seed in range(40)]
    result = of(pictures)
    score, right = np.zeros(0), np.zeros(0, bool)
    for fold in range(5):
        others = Examples.together(one for i, one in enumerate(pictures) if i % 5 != fold)
        own = Examples.together(one for i, one in enumerate(pictures) if i % 5 == fold)
        mean, deviation = others.of_boxes.mean(axis=0), others.of_boxes.std(axis=0)
        model = LogisticRegression(max_iter=1000).fit((others.of_boxes - mean) / deviation, others.right)
        score = np.append(score, model.predict_proba((own.of_boxes - mean) / deviation)[:, 1])
        right = np.append(right, own.right)
    assert result.after.box_error == pytest.approx(reliability(score, right), abs=1e-6)
    assert result.after.box_precision == pytest.approx(average_precision_score(right, score), abs=1e-6)
    assert result.after.box_precision > result.before.box_precision
    assert result.after.box_error < result.before.box_error
    assert result.after.name_error < result.before.name_error
    assert (result.pictures, result.boxes, result.right) == (40, 40 * BOXES, right.sum())
    assert result.calibration.models == ("a-model",)
    assert result.calibration.about == "a set"
    assert result.calibration.lifts == package_calibration("mini").lifts != {}  # with which the features were read


def test_what_cannot_be_fitted_is_one_line():
    pictures = [examples(seed) for seed in range(40)]
    with pytest.raises(UsageError, match="expected at least 20 pictures and 30 right boxes to fit, got 19 and"):
        of(pictures[:19])
    none = np.zeros(BOXES, bool)
    few = [Examples(**{**vars(one), "right": none} if i else vars(one)) for i, one in enumerate(pictures)]
    with pytest.raises(UsageError, match=rf"got 40 and {pictures[0].right.sum()}: take more pictures"):
        of(few)
    everywhere = [Examples(**{**vars(one), "all_present": np.ones(NAMES, bool)}) for one in pictures]
    with pytest.raises(UsageError, match="expected names that are there and others that are not, got only these"):
        of(everywhere)


def test_examples_know_synonyms_and_the_size_that_boxes_belong_to():
    localizer, classes = localizer_of("mini"), ["cat|kitten", "sun", "sofa"]
    found = localizer(CAT, ["cat|kitten", "sofa"])
    boxes = found.judged.candidates
    own = boxes.where(boxes.label == 0).xyxy[0]
    width, height = found.image.size
    setup, setting = as_setting(localizer)
    evaluator = ExamplesEvaluator(classes, setup, [setting], None)
    assert evaluator.localizer.options.text_cache  # names are embedded once for all benchmarks

    def row(labels, truth, size):
        seen = evaluator.look(PromptedPicture("cat.jpg", CAT, size, labels, truth))
        return evaluator.evaluate(seen, evaluator.maps(seen, [setting.method], SILENT)[setting.method], setting, SILENT)

    scaled = row((0, 1, 2), {0: own[None] * [2, 3, 2, 3]}, (2 * width, 3 * height))
    assert scaled["all_present"] == [True, False]  # the model does not know "sun"
    assert sum(scaled["right"]) >= 1
    plain = row((0,), {0: own[None]}, (width, height))
    assert sum(plain["right"]) == sum(scaled["right"])


def test_what_is_fitted_reads_the_whole_bank(gap):
    localizer = Localizer(gap, method="cam", second_look=True)
    setup, setting = as_setting(localizer)
    evaluator = ExamplesEvaluator(["cat"], setup, [setting], None)
    banks = [one.describe()["second_look"]["bank"] for one in (localizer, evaluator.localizer)]
    assert banks == ["1, every 8 of ImageNet", 1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Copies of photographs with boxes that a model finds there, of which it does not find all good."""
    root = tmp_path_factory.mktemp("set")
    localizer, names = localizer_of("mini"), ["cat", "dog"]
    lines = ["path,label,x0,y0,x1,y1"]
    for number in range(10):
        with Image.open(PHOTOS / ("dogs.jpg" if number % 2 else "cat.jpg")) as photo:
            photo.resize((200 + 5 * number, 160)).save(root / f"{number}.png")
        boxes = localizer(root / f"{number}.png", names).judged.candidates
        own = boxes.xyxy[boxes.label == number % 2][:1]
        if number % 5 < 2:
            own[:, 2:] = own.reshape(-1, 2, 2).mean(1)  # a quarter of it
        lines += [",".join(map(str, (f"{number}.png", names[number % 2], *box))) for box in own.tolist()]
    lines.append(lines[1].replace("cat", "tabby"))  # which is asked for in all pictures, and has boxes in others
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


def test_from_pictures_to_the_scores_of_the_next_run(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(job, "FEWEST_PICTURES", 10)
    monkeypatch.setattr(job, "FEWEST_RIGHT", 2)
    out = tmp_path / "calibration.json"
    ran = succeeded("calibrate", folder, "--truth", "folder", "--method", "layer_cam", "--out", out)
    assert load_calibration(out).models == ("mini",)
    _, fitted = ran.err.rsplit("next: cliploc localize photo.jpg -p cat ", 1)
    plain, calibrated = (
        succeeded("localize", CAT, "-p", "cat", *words).out
        for words in (("--method=layer_cam", "--second-look"), fitted.split())
    )
    assert "  uncalibrated 0." in plain
    assert "  score 0." in calibrated


@pytest.fixture
def tiny(monkeypatch):
    """A quick tower, and as few pictures as there are."""
    monkeypatch.setattr(commands, "create_once", lambda *_, **__: tower("gap_cnn", (8, 8)))
    monkeypatch.setattr(job, "FEWEST_PICTURES", 4)
    monkeypatch.setattr(job, "SHARD", 4)


@pytest.fixture
def pictures(tmp_path):
    return boxes_folder(tmp_path / "set", 10)


@pytest.mark.usefixtures("tiny")
def test_a_run_that_was_stopped_goes_on_with_the_same_examples(monkeypatch, pictures, tmp_path):
    out = tmp_path / "out"
    out.mkdir()

    def told(pictures, before, model, about):
        values = [value.tolist() for one in pictures for value in vars(one).values()]
        said = dataclasses.replace(before, about=json.dumps([model, about, values]))
        return job.Calibrated(said, job.Reliability(0, 0, 0), job.Reliability(0, 0, 0), len(pictures), 0, 0)

    monkeypatch.setattr(job, "fitted", told)
    command = ("calibrate", pictures, "--truth", "folder", "--device", "cpu")
    ran, judged = stopped_and_resumed(command, out, ExamplesEvaluator, 7, monkeypatch)
    assert "expected calibration error of scores" in ran.out
    assert "10 pictures" in ran.err
    assert ran.err.endswith(f"\nnext: cliploc localize photo.jpg -p cat --device=cpu --calibration={out / 'a.json'}\n")
    assert len(judged) == 6  # the first part is kept
    assert len(json.loads(load_calibration(out / "a.json").about)[2]) == 10 * len(dataclasses.fields(Examples))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}", "--truth", "folder", "--limit", "3"], "expected at least 20 pictures, got 3"),
        (["{folder}", "--truth", "reviewed", "--split", "val"], "--split is an option of datasets"),
        (["{folder}/no", "--truth", "folder"], "expected a plain folder at {folder}/no, found no folder there"),
    ],
)
def test_what_is_refused_is_one_line_and_nothing_is_written(folder, tmp_path, arguments, said):
    words = [one.format(folder=folder) for one in arguments]
    assert said.format(folder=folder) in refused("calibrate", *words, "--out", tmp_path / "calibration.json")
    assert not list(tmp_path.iterdir())


def test_reviewed_pictures_have_the_boxes_that_a_person_left(tmp_path):
    root, out = tmp_path / "pictures", tmp_path / "out"
    root.mkdir()
    for name in ("cat", "dogs", "coffee"):
        (root / f"{name}.jpg").write_bytes((PHOTOS / f"{name}.jpg").read_bytes())
    (tmp_path / "labels.txt").write_text("cat|kitten\ndog\n")
    run = ("annotate", root, "--labels", tmp_path / "labels.txt", "--out", out)
    assert cliploc_(*run).code == 0
    with pytest.raises(UsageError, match=r"expected reviewed pictures in .*, found none"):
        reviewed_pictures(out)
    one = {"xyxy": [1, 2, 30, 40], "label": 0, "draft": None}
    boxes = {"reviewed": {"dogs.jpg": [one], "cat.jpg": []}, "none": {"coffee.jpg": [one]}}
    for status, some in boxes.items():
        save_boxes(out, some, status)
    found = reviewed_pictures(out)
    assert [one.id for one in found.samples] == ["cat.jpg", "dogs.jpg"]
    assert {label: boxes.tolist() for label, boxes in found.samples[1].truth.items()} == {0: [[1, 2, 30, 40]]}
    assert found.samples[0].truth == {}
    assert [one.synonyms for one in found.classes] == [("cat", "kitten"), ("dog",)]
    (root / "dogs.jpg").write_bytes(CAT.read_bytes())
    assert [one.source for one in reviewed_pictures(out).problems] == ["dogs.jpg"]


def test_what_lies_where_a_stopped_run_would_is_not_removed(pictures, tmp_path):
    thesis = tmp_path / "a.json.partial/thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("work")
    said = refused("calibrate", pictures, "--truth", "folder", "--limit", "4", "--out", tmp_path / "a.json")
    assert "to be free, or of a stopped run: move it away, or choose another --out" in said
    assert thesis.read_text() == "work"

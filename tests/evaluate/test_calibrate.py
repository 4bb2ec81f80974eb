"""`cliploc calibrate`: what is fitted and what is printed of it, from files to the scores of the next run."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from cliploc.errors import UsageError
from cliploc.evaluate import calibrate as job
from cliploc.evaluate.calibrate import Examples, ExamplesJudge, fitted
from cliploc.find.calibration import OF_BOX, OF_NAME, load_calibration, package_calibration, reliability
from cliploc.label.results import reviewed_pictures
from cliploc.runs.plan import as_setting
from cliploc.runs.samples import PromptedPicture
from cliploc.support.reporter import SILENT
from tests import commands
from tests.commands import CAT, PHOTOS, cliploc_, localizer_of, refused, succeeded
from tests.evaluate.samples import boxes_folder
from tests.evaluate.stopping import stopped_and_resumed
from tests.label.labelled import save_boxes
from tests.tiny import tower

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
    judge = ExamplesJudge(classes, setup, [setting], None)
    assert judge.localizer.options.text_cache  # names are embedded once for all benchmarks

    def row(labels, truth, size):
        seen = judge.look(PromptedPicture("cat.jpg", CAT, size, labels, truth))
        return judge.judge(seen, setting, judge.maps(seen, [setting.method], SILENT)[setting.method], SILENT)

    scaled = row((0, 1, 2), {0: own[None] * [2, 3, 2, 3]}, (2 * width, 3 * height))
    assert scaled["all_present"] == [True, False]  # the model does not know "sun"
    assert sum(scaled["right"]) >= 1
    plain = row((0,), {0: own[None]}, (width, height))
    assert sum(plain["right"]) == sum(scaled["right"])


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
    ran, judged = stopped_and_resumed(command, out, ExamplesJudge, 7, monkeypatch)
    assert "expected calibration error of scores" in ran.out
    assert "10 pictures" in ran.err
    assert ran.err.endswith(f"\nnext: cliploc localize photo.jpg -p cat --device=cpu --calibration={out / 'a.json'}\n")
    assert len(judged) == 6  # the first part is kept
    assert len(json.loads(load_calibration(out / "a.json").about)[2]) == 10 * len(dataclasses.fields(Examples))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}", "--truth", "folder", "--limit", "3"], "expected at least 20 pictures, got 3"),
        (["{folder}", "--truth", "coc"], "unknown dataset 'coc'"),
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

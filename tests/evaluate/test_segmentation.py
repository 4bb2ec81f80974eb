"""`cliploc benchmark segmentation` and `evaluate segmentation`, as a user runs them."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

from cliploc.errors import UsageError
from cliploc.evaluate.data import LabelledDataset, label_file, open_labelled
from cliploc.evaluate.metrics import MeanIoU, average_precision
from cliploc.evaluate.tasks.page import write_report
from cliploc.evaluate.tasks.segmentation.job import COLUMNS, evaluate_labels, run_segmentation
from cliploc.find.segmentation.protocol import classes_of, protocol_of
from cliploc.find.segmentation.segmenter import Segmenter
from cliploc.localizer import Localizer
from cliploc.runs.picture_files import LabelledPicture
from cliploc.runs.store import open_run, rows_in
from tests.commands import cliploc_, document_of, succeeded
from tests.evaluate.data import labelled

FAST = ("--template", "name-only", "--short-side", "64", "--window", "64", "--stride", "32")


def benchmark(root, out, *more, dataset="coco_object"):
    asked = ("--dataset", dataset, "--root", root, "--out", out)
    return cliploc_("benchmark", "segmentation", *asked, *(() if dataset == "imagenet_seg" else FAST), *more)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return labelled.coco_object(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    ran = benchmark(root, out, "--model", "mini-vit", "--method", "maskclip,clearclip")
    assert ran.code == 0, ran.err
    return out, ran


def test_the_numbers_are_those_of_the_label_maps(root, done):
    out, ran = done
    assert "mIoU" in ran.out
    assert "2 of 2 samples × 2 settings done" in ran.err
    settings = json.loads((out / "summary.json").read_text())["settings"]
    assert list(settings) == ["mini-vit_maskclip_name-only", "mini-vit_clearclip_name-only"]
    dataset, protocol = open_labelled("coco_object", root), json.loads((out / "manifest.json").read_text())["protocol"]
    assert (protocol["short_side"], protocol["window"], protocol["logit_scale"]) == (64, 64, 40)
    asked = replace(protocol_of("coco_object"), short_side=64, window=64, stride=32)
    localizer = Localizer("mini-vit", method="maskclip", templates="name-only")
    segmenter = Segmenter(localizer, asked, {"maskclip": {}, "clearclip": {}})
    for method in ("maskclip", "clearclip"):
        metric = MeanIoU(81)
        for one in dataset.samples:
            metric.update(one.id, segmenter.label_maps(one.picture())[method], one.truth.read())
        found, expected = settings[f"mini-vit_{method}_name-only"], metric.compute()
        assert found["miou"] == pytest.approx(100 * expected.miou, rel=1e-6)
        assert found["mean_accuracy"] == pytest.approx(100 * expected.mean_accuracy, rel=1e-6)
        assert found["pixel_accuracy"] == pytest.approx(100 * expected.pixel_accuracy, rel=1e-6)
        assert found["per_class"]["16"]["name"] == "cat"
        assert found["known_classes"] == len(segmenter.classes) < 81
        assert found["images"] == found["evaluated"] == 2
        assert found["failed"] == []


def test_rows_hold_what_the_schema_says_and_little_else(done):
    rows = list(rows_in(done[0]))
    assert len(rows) == 4
    for row in rows:
        assert list(row) == [*COLUMNS]
        assert sum(row["pixels"]) == row["width"] * row["height"]
        assert len(row["true"]) == len(row["predicted"]) == len(row["pixels"]) <= 81
        assert len(row["preview"]) < 3000


def test_the_report_has_numbers_classes_and_examples(done):
    out = done[0]
    page = (out / "report.html").read_text()
    for said in ("All numbers, with 95 % intervals", "IoU of each class", "spread over the set"):
        assert said in page
    assert page.count("<img") == 2 * (2 + 2)  # photograph, truth and two settings of each picture
    rows = list(csv.DictReader((out / "tables.csv").open()))
    assert {row["setting"] for row in rows} == {"mini-vit_maskclip_name-only", "mini-vit_clearclip_name-only"}
    assert "mini-vit_maskclip_name-only" in (out / "tables.md").read_text()
    before = page
    write_report(out)
    assert (out / "report.html").read_text() == before
    write_report(out, pictures=False)
    assert (out / "report.html").read_text().count("<img") == 2 * (1 + 2)


@pytest.mark.parametrize("refine", ["affinity", "affinity,guided"])
def test_refinements_change_label_maps_and_are_part_of_the_identity(refine, root, done, tmp_path):
    ran = benchmark(root, tmp_path / "out", "--model", "mini-vit", "--method", "maskclip", "--refine", refine)
    assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["settings"][0]["refine"] == refine.split(",")
    refined, bare = list(rows_in(tmp_path / "out")), [one for one in rows_in(done[0]) if "maskclip" in one["setting"]]
    assert [row["pixels"] for row in refined] != [row["pixels"] for row in bare]


def test_imagenet_segmentation_takes_the_mean_as_its_threshold(tmp_path):
    pytest.importorskip("h5py")
    wnids = ("n02123045", "n02099601")
    root = labelled.imagenet_seg(tmp_path / "data", wnids)
    ran = benchmark(root, tmp_path / "out", "--method", "cam", dataset="imagenet_seg")
    assert ran.code == 0, ran.err
    [found] = json.loads((tmp_path / "out" / "summary.json").read_text())["settings"].values()
    localizer = Localizer("mini", method="cam", templates="openai-80")
    segmenter = Segmenter(localizer, protocol_of("imagenet_seg"), {"cam": {}})
    totals, right, precisions = np.zeros((2, 2)), 0, []
    for one in open_labelled("imagenet_seg", root).samples:
        heat = segmenter.heat_maps(one.picture(), one.name)["cam"]
        assert heat.shape == (224, 224)
        assert (heat.min(), heat.max()) == (0, 1)
        assert (heat == 0).sum() > 1, "what is below 0 is 0"
        truth = np.asarray(Image.fromarray(one.truth.read().astype(np.uint8)).resize((224, 224), 0))
        said = heat > heat.mean()
        right += (said == truth).sum()
        for label in (0, 1):
            totals[label] += ((said == label) & (truth == label)).sum(), ((said == label) | (truth == label)).sum()
        precisions.append(average_precision(np.stack([1 - heat, heat]), np.stack([truth == 0, truth == 1])))
    assert found["pixel_accuracy"] == pytest.approx(100 * right / (2 * 224 * 224), rel=1e-6)
    assert found["miou"] == pytest.approx(100 * (totals[:, 0] / totals[:, 1]).mean(), rel=1e-6)
    assert found["mean_average_precision"] == pytest.approx(100 * np.mean(precisions), rel=1e-6)


def predicted(root, folder, dataset="coco_object"):
    """Label maps that are half right."""
    folder.mkdir(parents=True)
    metric = MeanIoU(81)
    for one in open_labelled(dataset, root).samples:
        truth = one.truth.read()
        labels = np.where(np.arange(truth.shape[1]) < truth.shape[1] // 2, truth, 5).astype(np.uint8)
        Image.fromarray(labels).save(folder / f"{one.id}.png")
        metric.update(one.id, labels, truth)
    return metric.compute()


def test_label_maps_of_any_tool_have_the_same_numbers(root, tmp_path):
    expected = predicted(root, tmp_path / "labels")
    asked = ("--predictions", tmp_path / "labels", "--dataset", "coco_object", "--root", root)
    found = document_of("evaluate", "segmentation", *asked)
    assert found["miou"] == pytest.approx(100 * expected.miou, rel=1e-6)
    assert (found["images"], found["evaluated"]) == (2, 2)
    assert f"{100 * expected.miou:.2f} %" in succeeded("evaluate", "segmentation", *asked).out


def test_saved_label_maps_are_evaluated_alike_and_a_resumed_run_saves_what_is_missing(root, tmp_path):
    flags = ("--model", "mini", "--method", "cam", "--save-maps")
    assert benchmark(root, tmp_path / "out", *flags).code == 0
    maps = tmp_path / "out/maps/mini_cam_name-only"
    before = {path.name: path.read_bytes() for path in maps.iterdir()}
    assert before.keys() == {"000.png", "001.png"}
    ours = json.loads((tmp_path / "out/summary.json").read_text())["settings"]["mini_cam_name-only"]
    theirs = document_of("evaluate", "segmentation", "--predictions", maps, "--dataset", "coco_object", "--root", root)
    assert theirs["miou"] == pytest.approx(ours["miou"], abs=1e-9)
    sample = ("--dataset", "coco_object", "--root", root, "--sample", "1")
    assert document_of("evaluate", "segmentation", "--predictions", maps, *sample)["images"] == 1
    with open_run(tmp_path / "out") as run, run.transaction():  # as a run that was stopped in between leaves it
        run.write("DELETE FROM picture WHERE sample = ?", "001")
        run.write("DELETE FROM row WHERE sample = ?", "001")
    (maps / "001.png").unlink()
    assert benchmark(root, tmp_path / "out", *flags).code == 0
    assert {path.name: path.read_bytes() for path in maps.iterdir()} == before
    with pytest.raises(UsageError, match="expected a set with label maps for --save-maps, got coco_object"):
        run_segmentation(
            open_labelled("coco_object", root), (), (), tmp_path, protocol=protocol_of("imagenet_seg"), save_maps=True
        )


@pytest.mark.parametrize("mode", ["L", "I;16", "P"])
def test_label_maps_as_tools_save_them(mode, tmp_path):
    """16 bits and palettes, whose colours play no part; in 16 bits 255 is no class either."""
    random, metric = np.random.default_rng(0), MeanIoU(16)
    for folder in ("truth", "predicted"):
        (tmp_path / folder).mkdir()
    truth, labels = random.integers(0, 16, (2, 20, 30))
    truth[:5] = 255
    for folder, values in (("truth", truth), ("predicted", labels)):
        picture = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))
        if mode == "P":
            picture = picture.convert("P")
            picture.putdata(values.ravel().tolist())
            picture.putpalette([0, 0, 0, 128, 0, 0] * 128)  # labels of one colour
        picture.save(tmp_path / folder / "a.png")
    metric.update("a", labels, truth)
    pictures = (LabelledPicture("a", tmp_path / "a.jpg", (0, 0), label_file(tmp_path / "truth/a.png")),)
    classes = classes_of([f"class {number}" for number in range(16)])
    truths = LabelledDataset("own", tmp_path, "all", "report", classes, pictures, ())
    found = evaluate_labels(tmp_path / "predicted", truths)
    assert found.document["failed"] == []
    assert found.document["miou"] == pytest.approx(100 * metric.compute().miou, abs=1e-9)


def test_missing_and_wrong_label_maps_are_named(root, tmp_path):
    predicted(root, tmp_path / "labels")
    truth = open_labelled("coco_object", root)
    (tmp_path / "labels" / "000.png").unlink()
    [missing] = evaluate_labels(tmp_path / "labels", truth).document["failed"]
    assert (missing["kind"], missing["source"]) == ("prediction", "000")
    Image.new("RGB", labelled.SIZE).save(tmp_path / "labels" / "000.png")
    [colours] = evaluate_labels(tmp_path / "labels", truth).document["failed"]
    assert "expected a label map, one number per pixel, got an image of mode RGB" in colours["reason"]
    Image.new("L", (3, 3)).save(tmp_path / "labels" / "001.png")
    with pytest.raises(UsageError, match="none of 2 pictures could be evaluated"):
        evaluate_labels(tmp_path / "labels", truth)

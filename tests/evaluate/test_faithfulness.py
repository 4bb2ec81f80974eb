"""`benchmark faithfulness`, `evaluate faithfulness` and `explain`: folder, page and document, failures."""

import json

import numpy as np
import pytest

from cliploc.evaluate.metrics import Bootstrap
from cliploc.evaluate.tasks.faithfulness.job import ValueRow, ValueTally
from cliploc.evaluate.tasks.faithfulness.measure import area
from cliploc.evaluate.tasks.task import summed_up
from cliploc.runs.store import rows_in
from tests.commands import CAT, cliploc_, document_of, succeeded
from tests.evaluate.samples import judged_here, wsol_folder

RUN = ("benchmark", "faithfulness", "--dataset", "wsol", "--steps", "3", "--method", "cam,layer_cam")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return wsol_folder(tmp_path_factory.mktemp("wsol"), 4)


@pytest.fixture(scope="module")
def done(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("faithfulness") / "out"
    outcome = succeeded(*RUN, "--root", root, "--out", out, "--metric", "deletion,insertion,positive,names")
    return out, outcome


def test_the_folder_and_the_contract(done):
    """summary.json → settings → setting → deletion, insertion, in 0–1; a random map and a Gaussian beside."""
    out, outcome = done
    summary = json.loads((out / "summary.json").read_text())
    assert list(summary["settings"]) == ["mini_cam", "mini_layer_cam", "mini_centre_gaussian", "mini_random"]
    for one in summary["settings"].values():
        assert 0 <= one["deletion"] <= 1
        assert 0 <= one["insertion"] <= 1
        low, high = one["confidence_95"]["deletion"]
        assert low <= one["deletion"] <= high
        assert len(one["curves"]["deletion"]["mean"]) == 4
        assert one["curves"]["deletion"]["mean"][0] == pytest.approx(one["curves"]["insertion"]["mean"][-1])
        assert one["deletion"] == pytest.approx(area(one["curves"]["deletion"]["mean"]), abs=1e-5)
        assert one["evaluated"] == one["images"] == 4
    assert summary["settings"]["mini_random"]["names"] == pytest.approx(1)
    assert "deletion ↓" in outcome.out
    assert "4 of 4 samples × 4 settings done" in outcome.err
    rows = list(rows_in(out))
    assert len(rows) == 16
    assert dict(rows[0]["curves"]).keys() >= {"deletion", "insertion", "positive"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["protocol"] == {"steps": 3, "baseline": None, "target": None}
    assert manifest["metrics"] == ["deletion", "insertion", "positive", "names"]
    assert manifest["numbers"]["deletion"]["best"] == "low"


def test_the_report_has_tables_and_curves(done):
    out, _ = done
    page = (out / "report.html").read_text()
    for words in ("deletion ↓", "Mean curves", "mini_random", "share of pixels removed"):
        assert words in page
    assert (out / "tables.csv").read_text().splitlines()[0].startswith("setting,model,method,deletion,deletion_low")
    assert "| mini\\_cam |" in (out / "tables.md").read_text()


def test_maps_of_other_tools_have_the_benchmarks_numbers(root, tmp_path, monkeypatch):
    """The same maps, saved and read again."""
    monkeypatch.setattr("cliploc.evaluate.tasks.page.write_report", lambda *_, **__: None)  # figures take long
    with judged_here():
        localized = cliploc_(
            "benchmark", "boxes", "--dataset", "wsol", "--root", root, "--method", "centre_gaussian", "--no-baselines",
            "--save-maps", "--out", tmp_path / "maps",
        )  # fmt: skip
    assert localized.code == 0, localized.err
    [folder] = (tmp_path / "maps/maps").iterdir()
    asked = ("evaluate", "faithfulness", "--maps", folder, "--root", root, "--steps", "3")
    ours = document_of(*asked)["settings"]["maps"]
    out = tmp_path / "out"
    assert cliploc_(*RUN[:-1], "centre_gaussian", "--root", root, "--out", out, "--no-baselines").code == 0
    theirs = json.loads((out / "summary.json").read_text())["settings"]["mini_centre_gaussian"]
    for key in ("deletion", "insertion", "deletion_cosine"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-4)
    (folder / "val/000.jpg.npy").unlink()
    lost = cliploc_(*asked, "--model", "mini-vit")  # no method runs, so none has to fit the tower
    assert lost.code == 1
    assert "3 of 4 pictures measured by mini-vit" in lost.err
    assert document_of(*asked, "--sample", "1", "--seed", "2")["settings"]["maps"]["images"] == 1  # as a benchmark


def test_means_leave_out_what_cannot_be_computed():
    rows = [
        ValueRow(sample="a", setting="s", values={"v": 0.2}, curves={"c": [0.0, None]}),
        ValueRow(sample="b", setting="s", values={"v": None}, curves={"c": [1.0, None]}),
        ValueRow(sample="c", setting="s", status="failed", reason="no"),
    ]
    found = summed_up(rows, {"s": ValueTally(["v"])}, Bootstrap(replicates=0))["s"]
    assert (found["v"], found["measured"]) == (pytest.approx(0.2), {"v": 1})
    assert found["curves"] == {"c": {"mean": [0.5, None]}}
    assert found["failed"] == [{"sample": "c", "reason": "no"}]


def test_intervals_draw_pictures_and_not_their_names():
    rows = [
        ValueRow(sample=one, path="a.jpg", setting="s", values={"v": v}, curves={"c": [v]})
        for one, v in (("a/cat", 0.2), ("a/dog", 0.8))
    ]
    found = summed_up(rows, {"s": ValueTally(["v"])})["s"]
    assert found["confidence_95"]["v"] == pytest.approx([0.5, 0.5], abs=1e-6)  # there is one picture to draw


# ------------------------------------------------------------------------------------------------------ cliploc explain
FAST = ("--method", "cam", "--no-baselines", "--steps", "2")


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    out = tmp_path_factory.mktemp("explain")
    words = ("-p", "cat", "-p", "pizza", "--method", "cam", "--steps", "4", "--out", out)
    return out, document_of("explain", CAT, *words)


def test_the_document_has_the_numbers_of_its_curves(explained):
    out, document = explained
    assert json.loads((out / "explain.json").read_text()) == document
    assert (document["score"], document["among"], document["protocol"]["steps"]) == ("probability", 2, 4)
    cat, pizza = document["names"]
    assert cat["name"] == "cat"
    assert cat["probability"] + pizza["probability"] == pytest.approx(1)
    for name in (cat, pizza):
        assert list(name["methods"]) == ["cam", "centre_gaussian", "random"], "beside the baselines"
        for one in name["methods"].values():
            assert 0 < one["share"] < 1
            for which in ("deletion", "insertion"):
                assert len(one["curves"][which]) == 5
                assert one[which] == pytest.approx(area(one["curves"][which]), abs=1e-6)
            assert one["curves"]["deletion"][0] == pytest.approx(name["probability"], abs=1e-4)


def test_the_marked_region_is_that_of_the_threshold(explained):
    """The Gaussian's region is known: where it exceeds τ of its largest value."""
    _, document = explained
    one = document["names"][0]["methods"]["centre_gaussian"]
    y, x = np.mgrid[0:224, 0:224] / 224 + 0.5 / 224 - 0.5
    heat = np.exp(-(x**2 + y**2) / (2 * 0.25**2))
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    assert one["share"] == pytest.approx((heat > one["threshold"]).mean(), abs=0.005)


def test_without_a_method_it_is_that_of_the_models_recipe(tmp_path):
    asked = ("-p", "cat", "--no-baselines", "--steps", "2", "--image-size", "64", "--out", tmp_path)
    for model, method in (("mini", "cam"), ("mini-vit", "naclip")):
        assert list(document_of("explain", CAT, *asked, "--model", model)["methods"]) == [method]


def test_of_a_single_name_the_score_is_its_cosine(tmp_path):
    document = document_of("explain", CAT, "-p", "cat", *FAST, "--out", tmp_path)
    [name] = document["names"]
    assert (document["score"], name["probability"]) == ("cosine", None)
    assert name["methods"]["cam"]["curves"]["deletion"][0] == pytest.approx(name["cosine"], abs=1e-4)


def test_other_names_take_part_in_the_softmax(tmp_path):
    (tmp_path / "names.txt").write_text("dog\nbus\ncat|tabby\n")  # the last is what is explained, by other synonyms
    among = ("--among", tmp_path / "names.txt")
    document = document_of("explain", CAT, "-p", "cat|kitten", *among, *FAST, "--out", tmp_path)
    assert (document["score"], document["among"]) == ("probability", 3)
    assert len(document["names"]) == 1

"""What a run reads is never written over: not under its own name, nor through a link of an output's name."""

import json
import os
import shutil

import pytest

from cliploc.errors import UsageError
from cliploc.label.annotate import annotate
from cliploc.support.files import Inputs
from tests.commands import CAT, refused, succeeded
from tests.evaluate.samples import wsol_folder

pytestmark = pytest.mark.usefixtures("one_model")
LINKS = {"hard": os.link, "symbolic": os.symlink}


def test_an_input_is_known_under_whatever_path_leads_to_its_name(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "photos")
    photo = tmp_path / "photos/a.jpg"
    photo.write_bytes(b"photo")
    monkeypatch.chdir(tmp_path / "photos")
    inputs = Inputs(["a.jpg"])
    for path in (photo, "a.jpg", "./a.jpg", "../photos/a.jpg", "../linked/a.jpg", tmp_path / "linked/a.jpg"):
        assert path in inputs
    os.link(photo, "b.jpg")
    for path in ("b.jpg", "c.jpg", tmp_path / "a.jpg", tmp_path / "no/a.jpg", "a.jpg/b", "a.jpg/", "", "a\x00b"):
        assert path not in inputs


def test_a_folder_that_holds_an_input_is_refused(tmp_path):
    (tmp_path / "out/yolo/images").mkdir(parents=True)
    inputs = Inputs([tmp_path / "out/yolo/images/a.jpg"])
    with pytest.raises(UsageError, match="yolo holds what this run reads, and its content would be replaced"):
        inputs.check_outputs([], [tmp_path / "out/yolo"])
    inputs.check_outputs([tmp_path / "out/coco.json"], [tmp_path / "out/voc", tmp_path / "out/yol"])


@pytest.mark.parametrize("kind", LINKS)
def test_links_of_the_outputs_names_are_replaced_and_what_they_lead_to_stays(kind, tmp_path):
    photo, other, out = tmp_path / "cat.jpg", tmp_path / "notes", tmp_path / "out"
    shutil.copy(CAT, photo)
    other.write_text("mine")
    out.mkdir()
    LINKS[kind](photo, out / "cat_overlay.jpg")
    LINKS[kind](other, out / "results.json")
    succeeded("localize", photo, "-p", "cat", "--out", out, "--recipe", "fast")
    assert photo.read_bytes() == CAT.read_bytes()
    assert other.read_text() == "mine"
    (picture,) = json.loads((out / "results.json").read_text())["pictures"]
    overlay = out / picture["overlay"]
    assert overlay.read_bytes() != CAT.read_bytes()
    assert not overlay.is_symlink()
    assert not (out / "results.json").is_symlink()


@pytest.mark.parametrize("what", ["photo", "link to it", "classes"])
def test_results_are_not_written_over_an_input(what, tmp_path, monkeypatch):
    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("tests.commands.create_once", never)
    given, link = tmp_path / "results.json", tmp_path / "photo.jpg"
    if what == "classes":
        given.write_text("cat\n")
    else:
        shutil.copy(CAT, given)
    link.symlink_to(given)
    arguments = {"photo": [given, "-p", "cat"], "link to it": [link, "-p", "cat"], "classes": [CAT, "--labels", given]}[
        what
    ]
    before = given.read_bytes()
    said = refused("localize", *arguments, "--out", tmp_path)
    assert said == f"cliploc: {given} is read by this run, and would be overwritten: choose another --out\n"
    assert given.read_bytes() == before


@pytest.mark.parametrize("name", ["coco.json", "boxes.csv", "voc/a.jpg", "yolo/images/a.jpg"])
def test_an_annotation_is_not_written_over_its_pictures(name, tmp_path):
    picture = tmp_path / "out" / name
    picture.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(CAT, picture)
    options = {"formats": ["coco", "csv", "voc", "yolo"], "device": "cpu", "batch_size": 2}
    with pytest.raises(UsageError, match="choose another --out"):
        annotate([picture], ["cat"], tmp_path / "out", **options)
    assert picture.read_bytes() == CAT.read_bytes()
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == {picture}


def test_a_benchmark_is_not_written_over_what_it_reads(tmp_path):
    pytest.importorskip("pyarrow")
    root = wsol_folder(tmp_path / "wsol", 3)
    classes = root / "tables.csv"
    classes.write_text("teapot\ncat\n")
    said = refused("benchmark", "boxes", "--dataset", "wsol", "--root", root, "--out", root, "--classes", classes)
    assert f"{classes} is read by this run, and would be overwritten" in said
    assert classes.read_text() == "teapot\ncat\n"

"""Runs over pictures from the command line, and the files that they take."""

import errno
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.progress import Progress, TaskID

from cliploc.errors import UsageError
from cliploc.evaluate.data import open_dataset
from cliploc.evaluate.tasks.evaluate import evaluate_folder
from cliploc.evaluate.train.trainer import read_folder
from cliploc.label.annotate import annotate
from cliploc.localizer import Localizer
from cliploc.methods import methods
from cliploc.runs.picture_files import find_pictures
from cliploc.support.files import Inputs
from tests.commands import CAT, COFFEE, cliploc_, document_of, refused, succeeded
from tests.evaluate.samples import wsol_folder
from tests.tiny import tower

pytestmark = pytest.mark.usefixtures("one_model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs and three files that are none."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    shutil.copy(CAT, root / "cat.jpg")
    shutil.copy(COFFEE, root / "sub/cup.JPG")
    for name in ("notes.txt", "sub/clip.mov", ".hidden"):
        (root / name).write_text("no picture")
    return root


@pytest.mark.parametrize("command", ["localize", "classify", "compare --method cam", "segment"])
def test_the_bar_counts_pictures_that_failed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: Counter[TaskID] = Counter()
    monkeypatch.setattr(Progress, "advance", lambda self, task, count: counted.update({task: count}))
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    into = () if command == "classify" else ("--out", tmp_path / "out")
    assert cliploc_(*command.split(), CAT, tmp_path / "none.jpg", "-p", "cat", "-p", "dog", *into).code == 1
    assert 2 in counted.values()  # of the pictures; the bank of names has a bar of its own


def test_a_folder_is_localized_and_what_is_skipped_is_said_and_written_down(folder: Path) -> None:
    out = folder / "found"
    words = ("localize", folder, COFFEE, "-p", "cat", "--out", out, "--json", "--recipe", "fast")
    for _ in range(2):  # the second time the overlays of the first lie in the folder
        result = succeeded(*words)
        document = json.loads(result.out)
        files = [picture["file"] for picture in document["pictures"]]
        assert files == [str(folder / "cat.jpg"), str(folder / "sub/cup.JPG"), str(COFFEE)]
        skipped = {one["file"]: one["reason"] for one in document["skipped"]["files"]}
        message = f"skipped in {folder}: 2 without a picture's extension: notes.txt, sub/clip.mov"
        assert message in " ".join(result.err.split())
    assert skipped == {
        str(folder / "notes.txt"): "without a picture's extension",
        str(folder / "sub/clip.mov"): "without a picture's extension",
        f"{folder / 'found'}/": "of results",
    }
    assert document["skipped"]["count"] == 3
    assert json.loads((out / "results.json").read_text()) == document


def test_classify_takes_a_folder_and_a_pattern_too(folder: Path) -> None:
    found = document_of("classify", f"{folder}/c*.jpg", "-p", "cat")
    assert [one["file"] for one in found["pictures"]] == [str(folder / "cat.jpg")]
    result = succeeded("classify", folder, "-p", "cat", "-p", "coffee", "--top-k", 1)
    assert [line.split()[1] for line in result.out.splitlines() if line.startswith("  1")] == ["cat", "coffee"]
    assert "notes.txt" in result.err


def test_a_folder_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, closed = os.scandir, str(folder / "sub")

    def scandir(path: str) -> object:
        if os.fspath(path).rstrip("/") == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return theirs(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_pictures(folder)
    assert [one.id for one in found.pictures] == ["cat.jpg"]
    assert (found.skipped_note() or "").endswith("1 that cannot be read: sub/")
    with pytest.raises(UsageError, match=r"expected pictures in .*sub, but .*sub cannot be read: check permissions"):
        find_pictures(closed)
    with pytest.raises(UsageError, match=r"sub cannot be read \(Permission denied\): check permissions"):
        read_folder(folder)  # of a class
    (folder / "classes.txt").write_text("cat")
    with pytest.raises(UsageError, match=r"sub cannot be read \(Permission denied\): check permissions"):
        open_dataset("yolo", folder)


def test_maps_are_kept_for_each_name_as_evaluate_takes_them(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("localize", folder, CAT, "-p", "cat|kitten", "-p", "a/b: pizza", "--out", out, "--recipe", "fast")
    pictures = document_of(*words, "--save-maps")["pictures"]
    assert [[name["map"] for name in picture["names"]] for picture in pictures] == [
        ["maps/cat/cat.jpg.npy", "maps/a_b_ pizza/cat.jpg.npy"],
        ["maps/cat/sub/cup.JPG.npy", "maps/a_b_ pizza/sub/cup.JPG.npy"],
        ["maps/cat/cat.jpg-2.npy", "maps/a_b_ pizza/cat.jpg-2.npy"],
    ]
    remaining = np.load(out / "maps/cat/cat.jpg.npy")
    found = Localizer("mini", text_cache=False, recipe="fast")(CAT, ["cat|kitten"])
    assert (remaining.dtype, remaining.shape) == (np.float32, (224, 224))
    np.testing.assert_allclose(remaining, found.maps_over_picture((224, 224))[0], atol=1e-6)
    assert np.load(out / "maps/a_b_ pizza/cat.jpg.npy").max() == pytest.approx(1, abs=0.02)  # though it is not found

    metadata = tmp_path / "metadata"
    metadata.mkdir()
    box = ",".join(f"{value:.0f}" for value in found.boxes.xyxy[0])
    lines = {"image_ids": "", "class_labels": ",0", "image_sizes": ",451,300", "localization": f",{box}"}
    for name, values in lines.items():
        (metadata / f"{name}.txt").write_text(f"cat.jpg{values}\n")
    numbers = evaluate_folder(out / "maps/cat", metadata, threshold=methods.get("cam").threshold).document
    assert numbers["gt_known"] == 100
    assert "map" not in document_of(*words)["pictures"][0]["names"][0]


@pytest.mark.parametrize(
    ("hw", "message"),
    [
        ((40, 96), "50% of it, left and right"),
        ((120, 48), "67% of it, top and bottom"),
        ((40, 48), None),
        ((400, 481), None),  # a pixel of rounding
    ],
)
def test_a_note_says_what_a_crop_discards(hw: tuple[int, int], message: str | None) -> None:
    note = () if message is None else (f"cropped: the model does not see {message}; resize squash or pad shows it all",)
    for policy, notes in (("crop", note), ("squash", ()), ("pad", ())):
        localizer = Localizer(tower("gap_cnn", (5, 6)), method="cam", resize=policy, min_presence=0)
        assert localizer(Image.new("RGB", hw[::-1], "grey"), ["red"]).notes == notes


def test_a_model_that_crops_sees_the_whole_picture_unless_asked() -> None:
    backbone = tower("gap_cnn", (5, 6))
    backbone.resize_policy = "crop-floor"
    picture = Image.new("RGB", (96, 40), "grey")
    for resize, policy in ((None, "pad"), ("crop", "crop-floor"), ("squash", "squash")):
        localizer = Localizer(backbone, method="cam", resize=resize, min_presence=0)
        assert localizer.resize == policy
        assert bool(localizer(picture, ["red"]).notes) == (resize == "crop")


def test_a_pattern_follows_no_links_to_folders(folder: Path) -> None:
    (folder / "sub/up").symlink_to("..")
    found = find_pictures(f"{folder}/**/*")
    assert [one.id for one in found.pictures] == ["cat.jpg", "sub/cup.JPG"]
    assert [one.file for one in found.skipped] == ["notes.txt", "sub/clip.mov"]
    assert [one.id for one in find_pictures(f"{folder}/*/*.JPG").pictures] == ["sub/cup.JPG"]


# ------------------------------------------------------------------------------------------------- files that runs take
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

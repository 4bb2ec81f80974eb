"""Annotating a folder: what is boxed, and that neither a stop nor a fault nor a second call loses or doubles any."""

import contextlib
import errno
import json
import os
import pickle
import re
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cliploc.errors import CliplocWarning, UsageError
from cliploc.find.flow import Flow
from cliploc.find.prompts import labels_of, read_labels
from cliploc.formats import exports
from cliploc.images import rle
from cliploc.label.annotate import annotate
from cliploc.label.worker import LEAST_FIT, AnnotateWorker
from cliploc.localizer import Localizer
from cliploc.options import Options
from cliploc.runs.engine import Ready
from cliploc.runs.label_store import Candidates, LabellingRun, Picture
from cliploc.runs.picture_files import find_pictures
from cliploc.runs.store import FILE, DiskFullError
from cliploc.support.reporter import Reporter
from tests.commands import PHOTOS, begun, cliploc_, create_once
from tests.label.labelled import held

pytestmark = pytest.mark.usefixtures("one_model")
LABELS = ["cat|kitten", "dog", "bee @0.01", "teapot"]
# The fast recipe sees a picture once, the default ten times. Nothing here depends on it; one command has the default.
# Nor does anything depend on how chances are calibrated, so every name that the first look lets through gives drafts.
OPTIONS = {"batch_size": 2, "device": "cpu", "shard": 2, "recipe": "fast", "min_presence": 0.01, "min_score": 0.01}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four photographs, one stored sideways, one in a sub-folder; and one that is none."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("cat", "dogs"):
        with Image.open(PHOTOS / f"{name}.jpg") as opened:
            opened.resize((opened.width // 2, opened.height // 2)).save(root / f"{name}.png")
    with Image.open(root / "cat.png") as upright:
        exif = Image.Exif()
        exif[0x0112] = 6  # stored turned to the left
        upright.transpose(Image.Transpose.ROTATE_90).save(root / "cat turned, 猫.png", exif=exif)
    (root / "sub").mkdir()
    shutil.copy(PHOTOS / "bee.jpg", root / "sub/bee.jpg")
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("not meant")
    (root / ".hidden.jpg").write_bytes(b"not meant")
    return root


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    """A run that nothing happened to."""
    return annotate(folder, LABELS, tmp_path_factory.mktemp("plain"), formats=["coco", "csv"], **OPTIONS)


def same_files(out: Path, other: Path) -> None:
    for name in ("coco.json", "boxes.csv"):
        assert (out / name).read_bytes() == (other / name).read_bytes(), name


def pictures_in(out: Path) -> int:
    """The number of pictures that a run holds, as another process sees them."""
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(out / FILE)) as db:
        return db.execute("SELECT count(*) FROM picture").fetchone()[0]
    return 0


def rows(out: Path) -> dict[str, tuple[Picture, Candidates]]:
    with LabellingRun.open(out) as run:
        return {name: (one, run.candidates(one)) for name, one in run.pictures().items()}


def coco_boxes(out: Path) -> dict[str, list[tuple[str, list[float]]]]:
    read = json.loads((out / "coco.json").read_text())
    names = {one["id"]: one["name"] for one in read["categories"]}
    boxes = {one["id"]: [] for one in read["images"]}
    for one in read["annotations"]:
        boxes[one["image_id"]].append((names[one["category_id"]], one["bbox"]))
    return {one["file_name"]: boxes[one["id"]] for one in read["images"]}


# ------------------------------------------------------------------------------------------------------------- inputs
def test_labels_have_synonyms_and_thresholds(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeff# mine\ncat|kitten @0.3\n  traffic   light \nn01440764 @ .9\n\nmail@home\n")
    labels = read_labels(path)
    assert labels.entries == ("cat|kitten", "traffic light", "tench|Tinca tinca", "mail@home")
    assert labels.thresholds == (0.3, None, 0.9, None)
    assert labels.names == ("cat", "traffic light", "tench", "mail@home")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat @1.5"], "cat @1.5: expected a threshold from 0 to 1 after @, got 1.5"),
        (["cat @high"], "got high"),
        (["cat", "cat @0.2"], "expected each name once, got 'cat' 2 times"),
        (["cat", "Background: lawn"], "got 'Background: lawn': give each name its contrast instead: cat~lawn"),
        (["a\x00b"], "control character"),
        ("cat", "expected a list of names"),
    ],
)
def test_labels_that_are_refused(lines, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        labels_of(lines)


def test_a_label_with_commas_is_one_name_and_labels_that_differ_in_capitals_are_two(tmp_path):
    (tmp_path / "labels.txt").write_text("cat\na dog, a wolf\n")
    with pytest.warns(CliplocWarning, match=r"labels\.txt: 'a dog, a wolf' is taken as one name"):
        assert read_labels(tmp_path / "labels.txt").names == ("cat", "a dog, a wolf")
    with pytest.warns(CliplocWarning, match=r"^'dog' and 'Dog' differ in capitals only, and are two labels"):
        assert labels_of(["dog", "cat", "Dog"]).names == ("dog", "cat", "Dog")


def test_where_no_picture_can_be_read_nothing_is_said_of_boxes(folder, tmp_path):
    message = cliploc_("annotate", folder / "broken.jpg", "-p", "cat", "--out", tmp_path / "out", "--recipe", "fast")
    assert message.code == 2
    assert "1 failed" in message.err
    assert "no boxes" not in message.err


def test_pictures_of_a_folder_a_pattern_a_list_and_paths(folder, tmp_path, monkeypatch):
    everything = ["broken.jpg", "cat turned, 猫.png", "cat.png", "dogs.png", "sub/bee.jpg"]
    found = find_pictures(folder)
    assert (found.root, [one.id for one in found.pictures]) == (folder, everything)
    assert [one.id for one in find_pictures(f"{folder}/**/*.jpg").pictures] == ["broken.jpg", "sub/bee.jpg"]
    listing = folder.parent / f"{tmp_path.name}.txt"
    listing.write_text(
        f"# mine\n{folder.name}/cat.png\n\n{folder}/sub/bee.jpg\n{folder.name}/cat.png\n/elsewhere/a.jpg\n"
    )
    found = find_pictures(listing)
    assert [one.id for one in found.pictures] == [
        f"{folder.name}/cat.png",
        f"{folder.name}/sub/bee.jpg",
        "/elsewhere/a.jpg",
    ]
    for nothing in (tmp_path, f"{tmp_path}/*.jpg", tmp_path / "no"):
        with pytest.raises(UsageError, match="expected"):
            find_pictures(nothing)
    monkeypatch.chdir(folder)
    found = find_pictures(["cat.png", folder / "sub/bee.jpg", "../elsewhere.png"])
    assert (found.root, [one.id for one in found.pictures]) == (folder, ["cat.png", "sub/bee.jpg", "../elsewhere.png"])


def test_results_within_the_folder_are_no_pictures_of_it(tmp_path):
    shutil.copy(PHOTOS / "cat.jpg", tmp_path / "cat.jpg")
    (tmp_path / "mine").mkdir()
    shutil.copy(PHOTOS / "cat.jpg", tmp_path / "mine/cat.jpg")
    (tmp_path / "mine/manifest.json").write_text('{"kind": "mine"}')
    options = {**OPTIONS, "formats": ["yolo"]}
    for pictures in (tmp_path, f"{tmp_path}/**/*.jpg", tmp_path):
        result = annotate(pictures, LABELS, tmp_path / "drafts/of cats", **options)
        assert result.pictures == 2
    assert len(list((tmp_path / "drafts/of cats/yolo/images").rglob("*.jpg"))) == 2


def test_file_names_that_no_export_could_hold_fail_by_name(tmp_path):
    names = [b"bytes \xff.jpg", b"two\nlines.jpg"]
    try:
        for name in names:
            shutil.copy(PHOTOS / "cat.jpg", os.path.join(os.fsencode(tmp_path), name))
    except OSError as error:  # some file systems know UTF-8 only
        pytest.skip(f"this file system refuses such names: {error}")
    shutil.copy(PHOTOS / "bee.jpg", tmp_path / "bee.jpg")
    arguments = ("annotate", tmp_path, "-p", "bee", "--out", tmp_path / "out", "--batch-size", 2, "--recipe", "fast")
    for requested in (
        ("--format", "coco,yolo,voc,labelstudio,csv,cvat"),
        ("--json",),
    ):  # the second time nothing is new
        result = cliploc_(*arguments, *requested)
        assert result.code == 1, result.err
        assert result.err.count("rename it") == 2
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert {os.fsencode(one["picture"]) for one in summary["failed"]} == set(names)
    assert list(coco_boxes(tmp_path / "out")) == ["bee.jpg"]


# -------------------------------------------------------------------------------------------------------------- boxes
def test_a_name_that_is_there_is_boxed_as_the_localizer_does_and_no_other(folder, plain):
    assert plain.failed == {"broken.jpg": "not a picture that can be read: expected JPEG, PNG, WebP or similar"}
    assert (plain.pictures, plain.computed, plain.empty) == (5, 4, 0)
    assert {name for name, count in plain.with_label.items() if count} >= {"cat", "dog", "bee"}
    localizer, exported = Localizer(create_once(), batch_size=2, recipe="fast"), coco_boxes(plain.out)
    for name, (picture, row) in rows(plain.out).items():
        if picture.error is not None:
            continue
        found = localizer(folder / name, ["cat|kitten", "dog", "bee", "teapot"])
        every, fit = found.judged.candidates, found.judged.map_scores
        best = [fit[every.label == p].max(initial=0) for p in every.label]
        some = [i for i in np.argsort(-every.score, kind="stable") if fit[i] >= LEAST_FIT or fit[i] == best[i]]
        np.testing.assert_allclose(row.xyxy, every.xyxy[some], atol=0.02)
        np.testing.assert_allclose(row.scores, every.score[some], atol=1e-3)
        np.testing.assert_allclose(row.fits, fit[some], atol=1e-3)
        np.testing.assert_allclose(row.presence, found.presence, atol=1e-3)
        drafts = [i for i in some if every.score[i] >= 0.01 and found.presence[every.label[i]] >= 0.01]
        assert [label for label, _ in exported[name]] == [found.names[p] for p in every.label[drafts]]
        assert drafts


def test_a_photograph_stored_sideways_has_its_boxes_where_it_is_shown(plain):
    found = rows(plain.out)
    upright, turned = found["cat.png"][1], found["cat turned, 猫.png"][1]
    assert upright.size_wh == turned.size_wh
    np.testing.assert_allclose(turned.xyxy, upright.xyxy, atol=0.5)
    boxes = coco_boxes(plain.out)
    assert [name for name, _ in boxes["cat turned, 猫.png"]] == [name for name, _ in boxes["cat.png"]]


def test_a_named_method_compares_names_with_a_bank(folder, tmp_path):
    named = {"recipe": None, "method": "cam", "min_presence": None}  # without a second look
    options = {"formats": ["csv"], **OPTIONS, **named}
    result = annotate(folder / "*.png", ["cat", "dog", "teapot"], tmp_path, **options)
    assert dict(result.with_label) == {"cat": 2, "dog": 1, "teapot": 0}


# ------------------------------------------------------------------------------------------------- stops and repetition
def test_the_same_command_again_changes_no_file(folder, plain, monkeypatch):
    files = [path for path in sorted(plain.out.rglob("*")) if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    computed = []
    monkeypatch.setattr(Flow, "compute", lambda *_, **__: computed.append(1))
    written = []
    reporter = Reporter(phase=written.append)
    again = annotate(folder, LABELS, plain.out, formats=["coco", "csv"], reporter=reporter, **OPTIONS)
    assert (again.computed, computed, written) == (0, [], ["annotate"])
    assert again.document() == plain.document()
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(plain.out.rglob("*")) if p.is_file()} == before


def test_new_pictures_and_mended_ones_join(folder, plain, tmp_path):
    root, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(folder, root)
    shutil.copytree(plain.out, out)
    shutil.copy(root / "cat.png", root / "a new one.png")
    result = annotate(root, LABELS, out, **OPTIONS)
    assert (result.computed, result.pictures) == (1, 6)
    assert coco_boxes(out)["a new one.png"] == coco_boxes(out)["cat.png"]
    shutil.copy(folder / "dogs.png", root / "broken.jpg")
    result = annotate(root, LABELS, out, **OPTIONS)
    assert (result.computed, dict(result.failed)) == (1, {})
    assert coco_boxes(out)["broken.jpg"] == coco_boxes(out)["dogs.png"]
    (root / "dogs.png").unlink()
    annotate(root, LABELS, out, **OPTIONS)
    assert "dogs.png" not in coco_boxes(out)


def annotate_slowly(folder: Path, out: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    slowly = Reporter(images=lambda _: time.sleep(1))
    annotate(folder, LABELS, out, formats=["coco", "csv"], reporter=slowly, **OPTIONS)


def test_a_process_killed_without_warning_is_gone_on_with_to_the_same_bytes(folder, plain, tmp_path):
    out = tmp_path / "out"
    process = begun(annotate_slowly, folder, out, torch.get_num_threads())
    try:
        deadline = time.monotonic() + 120
        while process.is_alive() and not pictures_in(out) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    (out / f".cliploc-{0:016x}.tmp/sub").mkdir(parents=True)  # what a kill in the midst of writing leaves
    (out / f".cliploc-{1:016x}.tmp").write_text("half of it")
    assert 0 < annotate(folder, LABELS, out, formats=["coco", "csv"], **OPTIONS).computed < 5
    assert held(out) == held(plain.out)
    assert {path.name for path in out.iterdir()} == {path.name for path in plain.out.iterdir()}
    same_files(out, plain.out)


def test_a_full_disk_keeps_what_is_done_and_the_run_goes_on_from_there(folder, plain, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(exports.get("csv")), "write", refuse)
        with pytest.raises(DiskFullError, match=r"no room left on the disk for .* run the same command again"):
            annotate(folder, LABELS, tmp_path, formats=["coco", "csv"], **OPTIONS)
    assert annotate(folder, LABELS, tmp_path, formats=["coco", "csv"], **OPTIONS).computed == 0
    same_files(tmp_path, plain.out)


def test_what_ray_sends_survives_being_sent():
    make = partial(AnnotateWorker, labels_of(LABELS), Options(batch_size=2))
    assert pickle.loads(pickle.dumps(Ready(make, object())))().describe() == make().describe()


# ------------------------------------------------------------------------------------------------------------- review
def corrected_coco(out: Path, path: Path, names: dict[str, str]) -> dict[str, list[tuple[str, list[float]]]]:
    """The drafts of some pictures under other names: the first box gone, the others wider, one box more."""
    read = json.loads((out / "coco.json").read_text())
    images = [one for one in read["images"] if one["file_name"] in names]
    remaining = []
    for image in images:
        for one in [one for one in read["annotations"] if one["image_id"] == image["id"]][1:]:
            x, y, width, height = one["bbox"]
            remaining.append({**one, "bbox": [x, y, max(1, width - 1), height]})
        remaining.append({"image_id": image["id"], "category_id": 4, "bbox": [1, 2, 30, 40]})
    expected = {}
    for image in images:
        theirs = [one for one in remaining if one["image_id"] == image["id"]]
        expected[image["file_name"]] = [(LABELS[one["category_id"] - 1].split("|")[0], one["bbox"]) for one in theirs]
        image["file_name"] = names[image["file_name"]]
    path.write_text(json.dumps({**read, "images": images, "annotations": remaining}))
    return {name: [(label.split(" @")[0], box) for label, box in boxes] for name, boxes in expected.items()}


def test_a_corrected_set_takes_the_place_of_drafts_and_lasts(folder, plain, tmp_path):
    out, file = tmp_path / "out", tmp_path / "corrected.json"
    shutil.copytree(plain.out, out)
    before = coco_boxes(out)
    expected = corrected_coco(
        out, file, {"dogs.png": "project/dogs.png", "sub/bee.jpg": "bee.jpg", "cat.png": "no.png"}
    )
    del expected["cat.png"]
    result = annotate(folder, LABELS, out, decisions=file, **OPTIONS)
    assert (result.corrected, result.reviewed, result.computed) == (2, 2, 0)
    assert result.not_applied == {"no.png": "no annotated picture of this run has this name"}
    after = coco_boxes(out)
    for name, boxes in after.items():
        wanted = expected.get(name, before[name])
        assert [label for label, _ in boxes] == [label for label, _ in wanted]
        np.testing.assert_allclose([box for _, box in boxes], [box for _, box in wanted], atol=0.02)
    rows = [line.split(",") for line in (out / "boxes.csv").read_text().splitlines()]
    assert {(row[2], *row[-2:]) for row in rows if row[0] in expected} == {
        ("1.0", "1.0", "reviewed")
    }  # a person has seen them
    scores = json.loads((out / "summary.json").read_text())["draft_scores"]
    drafts = sum(len(before[name]) for name in expected)
    # Of each picture one has gone, and one has come.
    assert scores[""] == {"drafts": drafts, "boxes": drafts, "right": drafts - 2}
    assert (scores["teapot"]["boxes"], scores["teapot"]["right"]) == (2, 0)
    assert any("drafts right" in line for line in result.closing(1.0))
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = annotate(folder, LABELS, out, **OPTIONS)  # without the file: the corrections stay
    assert (again.document(), again.not_applied) == (result.document(), {})
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    text = (out / "coco.json").read_bytes()
    for inside in ("coco.json", "yolo", "voc/Annotations"):  # it is written again, and what was not taken would be lost
        with pytest.raises(UsageError, match=r"choose another --out"):
            annotate(folder, LABELS, out, decisions=out / inside, **OPTIONS)
    assert (out / "coco.json").read_bytes() == text


def test_the_command_names_what_it_could_not_apply(folder, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    labels = ("--labels", tmp_path / "labels.txt")
    arguments = ("annotate", folder / "cat.png", *labels, "--out", tmp_path / "out", "--recipe", "fast")
    assert cliploc_(*arguments).code == 0
    for name, code in (("cat.png", 0), ("bird.png", 1)):
        corrected_coco(tmp_path / "out", tmp_path / "corrected.json", {"cat.png": name})
        result = cliploc_(*arguments, "--apply", tmp_path / "corrected.json")
        assert result.code == code, result.err
        assert ("not corrected: bird.png: no annotated picture of this run has this name" in result.err) == bool(code)
        assert "compared with corrected boxes: " in result.err


# ------------------------------------------------------------------------------------------------------ command, Python
def test_the_command(folder, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    out = tmp_path / "out"
    arguments = ("annotate", folder, "--labels", labels, "--out", out, "--batch-size", 2, "--device", "cpu")
    result = cliploc_(*arguments, "--format", "coco,labelstudio")
    assert json.loads((tmp_path / "out/labelstudio.json").read_text())[0]["data"]["image"].startswith(
        f"/data/local-files/?d={folder.name}/"  # Label Studio serves folders below its root, not the root itself
    )
    assert result.code == 1, result.err
    assert result.out.splitlines()[0].split() == ["label", "drafts", "unsure", "pictures"]
    assert {line.split()[0] for line in result.out.splitlines()[1:]} == {"cat", "dog", "bee", "teapot"}
    assert "failed: broken.jpg: not a picture" in result.err
    assert "4 of 5 pictures done, 4 of them now" in result.err
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"coco.json", "labelstudio.json"}
    again = cliploc_(*arguments, "--json")
    assert again.code == 1
    assert json.loads(again.out)["pictures"] == 5
    assert "0 of them now" in again.err


# -------------------------------------------------------------------------------------------------------------- masks
@pytest.fixture(scope="module")
def masked(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("masked")
    return annotate(folder, LABELS, out, formats=["coco", "csv"], masks=True, **OPTIONS)


def test_drafts_have_the_masks_of_their_boxes(folder, plain, masked):
    """The boxes are those of a run without masks; the masks are the localizer's."""
    localizer = Localizer(batch_size=2, device="cpu", recipe="fast")
    with_masks, without = rows(masked.out), rows(plain.out)
    seen = 0
    for name, (picture, theirs) in without.items():
        other = with_masks[name][1]
        assert all((getattr(other, key) == getattr(theirs, key)).all() for key in ("xyxy", "labels", "scores", "fits"))
        if picture.error is not None or not len(theirs.labels):
            continue
        found = localizer(folder / name, [*LABELS[:2], "bee", "teapot"])
        found = replace(found, boxes=found.judged.candidates)
        masks = found.masks
        for box, label, counts in zip(theirs.xyxy, theirs.labels, other.masks, strict=True):
            same = np.abs(found.boxes.xyxy - box).max(axis=1) + 1e9 * (found.boxes.label != label)
            mask = rle.decode({"size": theirs.size_wh[::-1], "counts": counts})
            assert (mask == masks.of_boxes[same.argmin()]).mean() > 0.999
            seen += 1
    assert seen > 2


def test_coco_has_the_masks_and_a_second_call_touches_nothing(folder, masked):
    read = json.loads((masked.out / "coco.json").read_text())["annotations"]
    assert read
    assert any(isinstance(one["segmentation"], list) for one in read)
    before = held(masked.out)
    again = annotate(folder, LABELS, masked.out, formats=["coco"], masks=True, **OPTIONS)
    assert (again.computed, held(masked.out)) == (0, before)


def test_more_names_than_a_mask_can_hold_are_refused(folder, tmp_path):
    many = [f"cat {number}" for number in range(255)]
    with pytest.raises(UsageError, match="expected at most 254 names for masks"):
        annotate(folder, many, tmp_path, formats=["voc"], masks=True, **OPTIONS)
    assert not list(tmp_path.iterdir())


def test_lessons_are_kept_unless_nothing_is_to_be_taught(folder, plain, tmp_path):
    annotate(folder, LABELS, tmp_path, limit=2, teach=False, **OPTIONS)
    for out, remaining in ((plain.out, True), (tmp_path, False)):
        with LabellingRun.open(out) as run:
            features = dict(run.store.rows("SELECT name, f.picture FROM features f JOIN picture ON id = f.picture"))
            assert ("teaching" in run.settings) == remaining
            assert list(features) == [n for n, one in run.pictures().items() if remaining and one.error is None]


def test_ctrl_c_keeps_the_pictures_that_are_done(folder, tmp_path):
    done = []

    def interrupt(count):
        done.append(count)
        if len(done) == 3:
            raise KeyboardInterrupt

    complete = annotate(folder, LABELS, tmp_path / "whole", **OPTIONS)
    requested = {**OPTIONS, "shard": 4}
    with pytest.raises(KeyboardInterrupt, match=r"3 pictures in .* are kept, and the same command goes on"):
        annotate(folder, LABELS, tmp_path / "out", **requested, reporter=Reporter(images=interrupt))
    resumed = annotate(folder, LABELS, tmp_path / "out", **requested)
    assert resumed.computed == complete.computed - 3 + 1  # one of the three failed
    assert (resumed.boxes, resumed.failed) == (complete.boxes, complete.failed)

"""The folder of a run: nobody else's files are touched, and what is damaged or out of date is noticed and said."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc import towers
from cliploc.errors import InputError, UsageError
from cliploc.formats import exports
from cliploc.images.rle import encode
from cliploc.label import results as annotation_results
from cliploc.label import worker
from cliploc.label.annotate import annotate
from cliploc.label.editor.page import ReviewPicture, polygons_of
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.teach.teach import lessons_of
from cliploc.label.worker import AnnotateWorker
from cliploc.runs.label_store import Correction, LabellingRun, PictureResult, Saved
from cliploc.runs.picture_files import UNREAD
from cliploc.runs.store import FILE
from cliploc.support.files import locked
from cliploc.support.reporter import Reporter
from tests.commands import PHOTOS
from tests.label.labelled import correct, corrections, held
from tests.tiny import tower

from .annotated import annotated

LABELS = ["cat", "dog", "bee"]
# A tiny tower and drafts of every name: what becomes of files does not depend on what is found.
OPTIONS = {"batch_size": 1, "device": "cpu", "shard": 1, "recipe": "fast"}
OPTIONS |= {"min_presence": 0, "min_score": 0}


@pytest.fixture(scope="module", autouse=True)
def tiny():
    made = tower("gap_cnn", (8, 8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "create", lambda *_, **__: made)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three small photographs."""
    root = tmp_path_factory.mktemp("pictures")
    for name in ("bee", "cat", "dogs"):
        with Image.open(PHOTOS / f"{name}.jpg") as opened:
            opened.resize((opened.width // 3, opened.height // 3)).save(root / f"{name}.png")
    return root


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory):
    """A run that nothing happened to."""
    return annotate(photos, LABELS, tmp_path_factory.mktemp("made"), formats=["coco", "csv"], **OPTIONS)


@pytest.fixture
def copy(photos, made, tmp_path):
    """Its folder and pictures, to be changed."""
    shutil.copytree(photos, tmp_path / "pictures")
    shutil.copytree(made.out, tmp_path / "out")
    return tmp_path / "pictures", tmp_path / "out"


def content(folder: Path) -> dict[str, object]:
    """What depends on neither the time nor the place of a run."""
    found: dict[str, object] = {}
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        found[str(path.relative_to(folder))] = held(folder) if path.name == FILE else path.read_bytes()
    return found


# ------------------------------------------------------------------------------------------------ the users own files
def test_other_settings_are_refused_with_what_differs(copy):
    pictures, out = copy
    before = content(out)
    for labels, options, message in (
        (LABELS, {"flip": True}, "holds a run with other settings .*flip: false there, true asked for"),
        (["cat", "bee", "fox"], {}, "also has dog: name all that it has, or --remove or --rename some"),
        (LABELS, {"rename": {"dgo": "hound"}}, "unknown name of the run 'dgo': did you mean dog"),
    ):
        with pytest.raises(UsageError, match=message):
            annotate(pictures, labels, out, **OPTIONS, **options)
    assert content(out) == before


@pytest.fixture
def asked(monkeypatch):
    """What the model is asked for in each picture, in order."""
    asked, request = [], worker.prepare.Request

    def noted(picture, path, names):
        asked.append((picture, names))
        return request(picture, path, names)

    monkeypatch.setattr(worker.prepare, "Request", noted)
    return asked


def found_in(out: Path, *names: str) -> dict[tuple[str, str], list[tuple]]:
    """Picture and name → edges, score and fit of each candidate, best first."""
    found: dict[tuple[str, str], list[tuple]] = {}
    for picture, generation, _, name, *numbers, _, _ in held(out)["boxes"]:
        if generation == 0 and name in (names or LABELS):
            found.setdefault((picture, name), []).append(tuple(numbers))
    return found


def assert_as_if_together(out: Path, fresh: Path, names: list[str]) -> None:
    """What was found of names in several calls is what one call finds, but for the last bits."""
    one, other = found_in(out, *names), found_in(fresh, *names)
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_allclose(one[key], other[key], rtol=1e-3, atol=1e-3, err_msg=str(key))
    lessons, presences = [], []
    for folder in (out, fresh):
        with LabellingRun.open(folder) as run:
            pictures = sorted(run.pictures().values(), key=lambda picture: picture.name)
            assert run.names == tuple(names)
            lessons.append(lessons_of(run, pictures))
            presences.append([picture.presence for picture in pictures])
    np.testing.assert_allclose(*presences, atol=1e-3)
    for mine, theirs in zip(*lessons, strict=True):
        assert mine.names == theirs.names
        np.testing.assert_allclose(mine.heat, theirs.heat, atol=5e-3)


def test_names_that_are_added_are_looked_for_alone_and_all_else_stays(copy, tmp_path, asked):
    pictures, out = copy
    before, drafts = found_in(out), rows(out, "cat.png")
    box = Correction([[3.0, 4.0, 30.0, 40.0]], [1], drafts=[1])
    correct(out, {"cat.png": box, "bee.png": None})
    message: list[str] = []

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with ReviewFolder.opened(out) as opened:
        with pytest.raises(KeyboardInterrupt):
            annotate(pictures, ["owl", *LABELS], out, reporter=Reporter(note=message.append, images=stop), **OPTIONS)
        with pytest.raises(InputError, match=r"names of the run .* were changed .*: open the folder again"):
            opened.entries()
    with ReviewFolder.opened(out) as opened:  # the pictures that are not computed again are there, too
        assert [entry["status"] for entry in opened.entries()] == ["reviewed", "reviewed", "none"]
    assert annotate(pictures, ["owl", *LABELS], out, **OPTIONS).computed == 2
    assert {names[0] for _, names in asked} == {"owl"}
    assert {len(names) for _, names in asked} == {1}
    assert found_in(out) == before
    seen = "2 pictures (bee.png, cat.png); what is reviewed stays: look there again"
    assert message == [f"reviewed before names were added: {seen}"]
    held_now = corrections(out)
    assert held_now["reviews"]["cat.png"] == {"status": "reviewed", "revision": 1}
    assert (held_now["pictures"]["cat.png"]["boxes"], held_now["pictures"]["cat.png"]["labels"]) == (box.boxes, [1])
    assert rows(out, "cat.png")[held_now["pictures"]["cat.png"]["drafts"][0]] == drafts[1]
    names = [*LABELS, "owl"]  # those of before keep their numbers
    fresh = annotate(pictures, names, tmp_path / "fresh", **OPTIONS).out
    assert_as_if_together(out, fresh, names)
    with LabellingRun.open(out) as run:
        run.add([PictureResult("cat.png", UNREAD, "it cannot be read")], {})  # as a disk that fails meanwhile
    asked.clear()
    assert annotate(pictures, ["owl", *LABELS], out, retry=True, **OPTIONS).computed == 1
    assert asked == [("cat.png", names)]
    assert_as_if_together(out, fresh, names)
    assert corrections(out) == held_now


def test_a_name_that_was_added_in_the_editor_is_looked_for_alone(copy, asked):
    pictures, out = copy
    with ReviewFolder.opened(out) as opened:
        opened.rename(None, "owl")
        assert opened.entries()
    annotate(pictures, [*LABELS, "owl"], out, **OPTIONS)
    assert [names for _, names in asked] == [["owl"]] * 3


def test_new_pictures_are_asked_for_all_names_and_those_of_before_for_the_new_one(copy, tmp_path, asked):
    pictures, out = copy
    shutil.copy(pictures / "cat.png", pictures / "a.png")
    names = [*LABELS, "owl"]
    annotate(pictures, names, out, **OPTIONS)
    others = [(name, ["owl"]) for name in ("bee.png", "cat.png", "dogs.png")]
    assert asked == [("a.png", names), *others]
    assert_as_if_together(out, annotate(pictures, names, tmp_path / "fresh", **OPTIONS).out, names)


def test_where_maps_of_names_depend_on_each_other_all_names_are_looked_for_again(copy, tmp_path, asked):
    pictures, _ = copy
    options = {key: value for key, value in OPTIONS.items() if key != "recipe"} | {"method": "finer_cam"}
    out = annotate(pictures, LABELS, tmp_path / "run", formats=["csv"], **options).out
    before = found_in(out)
    asked.clear()
    annotate(pictures, [*LABELS, "owl"], out, formats=["csv"], **options)
    assert [names for _, names in asked] == [[*LABELS, "owl"]] * 3
    assert found_in(out) != before
    fresh = annotate(pictures, [*LABELS, "owl"], tmp_path / "fresh", formats=["csv"], **options).out
    assert content(out) == content(fresh)


DRAWN = Correction([[3.0, 4.0, 30.0, 40.0], [5.0, 6.0, 20.0, 20.0], [9.0, 9.0, 20.0, 20.0]], [0, 1, 2])


def test_a_name_is_called_otherwise_and_what_people_did_stays(copy, tmp_path, asked):
    pictures, out = copy
    before = found_in(out, "cat", "bee")
    correct(out, {"cat.png": DRAWN, "bee.png": None})
    kept = corrections(out)
    labels, how = ["cat", "hound", "bee"], {"formats": ["coco", "csv"], "rename": {"dog": "hound"}}
    for computed in (3, 0):  # the other word is looked for; the second time it is called so already
        result = annotate(pictures, labels, out, **OPTIONS, **how)
        assert (result.computed, result.boxes.keys(), result.notes) == (computed, {*labels}, ())
    assert [names for _, names in asked] == [["hound"]] * 3
    assert (found_in(out, "cat", "bee"), corrections(out)) == (before, kept)
    assert_as_if_together(out, annotate(pictures, labels, tmp_path / "fresh", **OPTIONS).out, labels)


@pytest.mark.parametrize("renamed_first", [False, True])
def test_a_name_that_is_split_is_two_new_ones(copy, tmp_path, asked, renamed_first):
    pictures, out = copy
    correct(out, {"cat.png": DRAWN})
    names = ["cat", "hound", "bee", "dog"]
    if renamed_first:  # in the editor, which has no model look for the other word
        with ReviewFolder.opened(out) as opened:
            opened.rename("dog", "hound")
    annotate(pictures, names, out, **OPTIONS, rename={} if renamed_first else {"dog": "hound"})
    assert [looked_for for _, looked_for in asked] == [["hound", "dog"]] * 3
    assert_as_if_together(out, annotate(pictures, names, tmp_path / "fresh", **OPTIONS).out, names)
    held_now = corrections(out)["pictures"]["cat.png"]
    assert (held_now["boxes"], held_now["labels"]) == (DRAWN.boxes, DRAWN.labels), "they are the first of the two"


def test_a_name_that_went_is_looked_for_when_it_is_back_and_lessons_are_of_the_names_of_now(copy, made, asked):
    pictures, out = copy
    before = found_in(out)
    annotate(pictures, ["cat", "bee"], out, remove=["dog"], **OPTIONS)
    for wanted in (["cat", "bee"], ["cat", "bee", "dog"]):
        annotate(pictures, wanted, out, **OPTIONS)
        with LabellingRun.open(out) as run, LabellingRun.open(made.out) as whole:
            for name in run.pictures():
                [now], [then] = (lessons_of(one, [one.pictures()[name]]) for one in (run, whole))
                for number, label in enumerate(wanted):
                    atol = 5e-3 if label == "dog" else 0
                    np.testing.assert_allclose(now.map_of(number), then.map_of(LABELS.index(label)), atol=atol)
    assert [looked_for for _, looked_for in asked] == [["dog"]] * 3
    assert (found_in(out).keys(), found_in(out, "cat", "bee")) == (before.keys(), found_in(made.out, "cat", "bee"))


def test_two_names_become_one_and_a_name_goes(copy, tmp_path):
    pictures, out = copy
    other = shutil.copytree(out, tmp_path / "other")
    for folder in (out, other):
        correct(folder, {"cat.png": replace(DRAWN, drafts=[None, 1, None])})
    drafts = rows(out, "dogs.png")
    result = annotate(pictures, ["cat", "bee"], out, rename={"dog": "cat"}, **OPTIONS)
    assert (result.computed, corrections(out)["pictures"]["cat.png"]["labels"]) == (0, [0, 0, 1])
    assert rows(out, "dogs.png") == [("cat" if name == "dog" else name, *box) for name, *box in drafts]
    origin = rows(other, "cat.png")[1]
    result = annotate(pictures, ["cat", "dog"], other, remove=["bee"], **OPTIONS)
    assert (result.computed, result.notes) == (0, ("bee: removed, with 1 boxes of reviewed pictures",))
    assert rows(other, "dogs.png") == [box for box in drafts if box[0] != "bee"]
    held_now = corrections(other)["pictures"]["cat.png"]
    assert held_now["boxes"] == DRAWN.boxes[:2]
    place = held_now["drafts"][1]  # of the draft that it was made from
    assert place is None if origin[0] == "bee" else rows(other, "cat.png")[place] == origin
    with ReviewFolder.opened(other) as opened:
        assert opened.names == ("cat", "dog")
        assert all(opened.state(number)["drafts"] for number in range(3))


def rows(out: Path, picture: str) -> list[tuple]:
    """Name and box of each candidate of a picture, in order of their numbers."""
    with LabellingRun.open(out) as run:
        found = run.candidates(run.pictures()[picture])
    return [(run.names[label], *box) for label, box in zip(found.labels, found.xyxy.tolist(), strict=True)]


def test_a_misspelt_name_is_asked_about_before_the_run(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(AnnotateWorker, "doubts", lambda _, names: [f"no {name}: did you mean cat?" for name in names])
    with pytest.raises(UsageError, match=r"no caat: did you mean cat\? Correct the name, or give --as-typed"):
        annotate(photos, ["caat"], tmp_path, **OPTIONS)
    assert not list(tmp_path.iterdir())
    for as_typed in (True, False):  # a name that the run has is not asked about again
        annotate(photos, ["caat"], tmp_path, as_typed=as_typed, **OPTIONS)


@pytest.mark.parametrize("name", ["coco.json", "yolo/labels/mine.txt", "summary.json"])
def test_a_file_of_the_user_is_not_written_over(photos, copy, tmp_path, name):
    message = f"holds {name.split('/')[0]}, not written by this run.*move it away"
    (tmp_path / "new" / name).parent.mkdir(parents=True)
    (tmp_path / "new" / name).write_text("mine")
    options = {**OPTIONS, "formats": ["coco", "yolo"]}
    with pytest.raises(UsageError, match=message):
        annotate(photos, LABELS, tmp_path / "new", **options)
    assert content(tmp_path / "new") == {name: b"mine"}
    if name.startswith("yolo"):  # nor is one that came into the folder of a run
        (copy[1] / name).parent.mkdir(parents=True, exist_ok=True)
        (copy[1] / name).write_text("mine")
        with pytest.raises(UsageError, match=message):
            annotate(copy[0], LABELS, copy[1], **options)
        assert (copy[1] / name).read_text() == "mine"


def test_every_export_says_what_it_writes(photos, tmp_path):
    result = annotate(photos, LABELS, tmp_path, formats=exports.names(), **OPTIONS)
    assert {name: set(files) for name, files in result.files.items()} == {one.name: set(one.outputs) for one in exports}


# -------------------------------------------------------------------------------------------------------- several runs
def test_two_runs_at_once_do_not_share_a_folder(copy):
    pictures, out = copy
    before = content(out)
    shutil.copy(pictures / "cat.png", pictures / "new.png")
    with locked(out), pytest.raises(UsageError, match=r"another run is writing into .*wait until it ends, or choose"):
        annotate(pictures, LABELS, out, **OPTIONS)
    assert content(out) == before
    assert annotate(pictures, LABELS, out, **OPTIONS).computed == 1


# ---------------------------------------------------------------------------------------------------- replaced pictures
@pytest.mark.parametrize("times_restored", [False, True])
def test_a_picture_replaced_under_its_name_is_done_anew_and_said(copy, made, times_restored):
    pictures, out = copy
    for path in pictures.iterdir():
        os.utime(path, ns=(1, 1))
    assert annotate(pictures, LABELS, out, **OPTIONS).computed == 0  # they were only touched
    assert content(out) == content(made.out)
    old = (pictures / "cat.png").stat()
    correct(out, dict.fromkeys(("cat.png", "dogs.png"), Correction([], [])))
    shutil.copy(pictures / "bee.png", pictures / "cat.png")
    if times_restored:
        os.utime(pictures / "cat.png", ns=(old.st_atime_ns, old.st_mtime_ns))
    message = []
    result = annotate(pictures, LABELS, out, reporter=Reporter(note=message.append), **OPTIONS)
    ending = "1 picture (cat.png); what was corrected in 1 of them is dropped"
    assert message == [f"replaced since they were annotated, and annotated again: {ending}"]
    written = json.loads((out / "coco.json").read_text())
    boxes = {image["id"]: [] for image in written["images"]}  # in the order of names: bee, cat, dogs
    for one in written["annotations"]:
        boxes[one["image_id"]].append((one["category_id"], one["bbox"]))
    bee, cat, dogs = boxes.values()
    assert (result.computed, cat, dogs) == (1, bee, [])
    assert bee
    assert list(corrections(out)["pictures"]) == ["dogs.png"]
    assert len(held(out)["pictures"]) == 3
    before = content(out)
    assert annotate(pictures, LABELS, out, **OPTIONS).computed == 0
    assert content(out) == before
    assert "cat.png" in (out / "coco.json").read_text()
    shutil.copy(pictures / "bee.png", pictures / "dogs.png")
    result = annotate(pictures, LABELS, out, **OPTIONS)
    assert (result.corrected, result.draft_scores) == (0, {})


# -------------------------------------------------------------------------------------------------------------- exports
@pytest.mark.parametrize("killed_at", ["csv", "summary"])
def test_an_export_of_a_killed_run_is_kept_up_to_date(copy, monkeypatch, killed_at):
    pictures, out = copy
    shutil.rmtree(out)

    def kill(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if killed_at == "csv":
            patch.setattr(type(exports.get("csv")), "write", kill)
        else:
            patch.setattr(annotation_results, "AnnotateResult", kill)
        with pytest.raises(KeyboardInterrupt):
            annotate(pictures, LABELS, out, formats=["yolo", "csv"], image_url="https://host/", **OPTIONS)
    assert (out / "yolo/labels/cat.txt").exists()
    assert not (out / "summary.json").exists()
    shutil.copy(pictures / "bee.png", pictures / "new.png")
    result = annotate(pictures, LABELS, out, formats=["labelstudio"], **OPTIONS)
    assert set(result.files) == {"yolo", "labelstudio", "csv"}
    assert (out / "yolo/labels/new.txt").exists()
    assert "https://host/new.png" in (out / "labelstudio.json").read_text()


def test_an_export_is_written_again_where_boxes_changed_or_it_is_gone(copy):
    pictures, out = copy

    def phases():
        message = []
        annotate(pictures, LABELS, out, reporter=Reporter(phase=message.append), **OPTIONS)
        return message[1:]

    assert phases() == ["writing coco", "writing csv"]  # the pictures lie elsewhere
    assert phases() == []
    (out / "boxes.csv").unlink()
    assert phases() == ["writing csv"]
    correct(out, {"cat.png": Correction([], [])})
    assert phases() == ["writing coco", "writing csv"]
    assert phases() == []


def test_ids_in_exports_do_not_depend_on_when_a_picture_was_added(photos, tmp_path):
    """The editor's exports are those of `annotate`, and both are those of one run over all pictures."""
    root = tmp_path / "pictures"
    (root / "a").mkdir(parents=True)
    for name in ("cat.png", "a/dogs.png"):
        shutil.copy(photos / Path(name).name, root / name)
    out = annotate(root, LABELS, tmp_path / "out", formats=["coco", "csv"], **OPTIONS).out
    shutil.copy(photos / "bee.png", root)
    shutil.copy(photos / "bee.png", root / "a")
    annotate(root, LABELS, out, **OPTIONS)
    complete = annotate(root, LABELS, tmp_path / "whole", formats=["coco", "csv"], **OPTIONS).out
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"pictures/{name}\n" for name in ("cat.png", "a/dogs.png", "bee.png", "a/bee.png")))
    of_list = annotate(listed, LABELS, tmp_path / "of_list", formats=["coco", "csv"], **OPTIONS).out
    names = [one["file_name"] for one in json.loads((complete / "coco.json").read_text())["images"]]
    assert names == ["bee.png", "cat.png", "a/bee.png", "a/dogs.png"]
    wanted = [(complete / name).read_bytes() for name in ("coco.json", "boxes.csv")]
    assert [(out / name).read_bytes() for name in ("coco.json", "boxes.csv")] == wanted
    for written in ("coco.json", "boxes.csv"):
        (out / written).unlink()
    with ReviewFolder.opened(out) as opened:
        assert [one.id for one in opened.pictures] == names
        opened.write_exports()
    assert [(out / name).read_bytes() for name in ("coco.json", "boxes.csv")] == wanted
    assert (of_list / "coco.json").read_text().replace("pictures/", "") == (complete / "coco.json").read_text()


# --------------------------------------------------------------------------------------------------------------- review
def test_a_box_of_a_draft_that_is_gone_counts_as_new(tmp_path: Path) -> None:
    drafts = annotated("a.png", tmp_path / "a.png", (40, 30), [[1, 2, 30, 20]])
    box = ReviewPicture(drafts, frozenset(), Correction([[1, 2, 25, 20]], [1], None, [9]), Saved("reviewed", 1))
    assert box.entry()["found"] == [[1, 1.0, 0.36, True]]


def test_outlines_of_masks_are_in_the_pictures_pixels(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (960, 600)).save(path)  # twice what the page shows
    mask = np.zeros((600, 960), bool)
    mask[100:300, 200:600] = True
    picture = annotated("a.png", path, (960, 600), [[200, 100, 600, 300]], masks=(encode(mask),))
    visible = ReviewPicture(
        picture, frozenset(), Correction([[200, 100, 600, 300]], [0], [encode(mask)["counts"]], [0]), Saved()
    )
    for kind in ("drafts", "boxes"):
        assert visible.state()[kind][0]["polygons"] == [[[200, 100, 200, 300, 600, 300, 600, 100]]]


def test_every_mask_that_is_not_empty_has_a_polygon_to_edit():
    """A box without any is saved with an empty list once it is moved, which nothing takes."""
    mask = np.zeros((40, 600), bool)
    mask[3, 3] = True
    assert polygons_of(encode(mask)["counts"], (600, 40)) == [[[3, 3, 3, 4, 4, 4, 4, 3]]]
    mask[20:22, 10:590] = True  # the largest piece, too thin to be simplified
    thin = [[10, 20, 10, 22, 590, 22, 590, 20]]
    assert polygons_of(encode(mask)["counts"], (600, 40)) == [thin]
    mask[25:39, 100:400] = True
    mask[28:34, 150:200] = False
    (outline, hole), *rest = polygons_of(encode(mask)["counts"], (600, 40))
    assert (outline[:2], len(hole), rest) == ([100, 25], 8, [])


def test_the_box_of_an_empty_mask_is_edited_as_a_box():
    empty = encode(np.zeros((30, 40), bool))
    picture = annotated("a.png", Path("a.png"), (40, 30), [[1, 2, 30, 20]], masks=(empty,))
    state = ReviewPicture(
        picture, frozenset(), Correction([[1, 2, 30, 20]], [0], [empty["counts"]], [0]), Saved()
    ).state()
    for kind in ("drafts", "boxes"):
        assert (state[kind][0]["mask"], "polygons" in state[kind][0]) == (empty["counts"], False)

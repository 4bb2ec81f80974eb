"""A finished run gets other drafts without its model; what people decided, and a kill, change nothing of that."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from cliploc import towers
from cliploc.errors import UsageError
from cliploc.find.flow import Flow
from cliploc.images.rle import encode
from cliploc.label.annotate import annotate
from cliploc.label.corrections import ReviewedBox, ReviewedPicture, correction_of
from cliploc.label.drafts import FEWEST
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.promise import order_of
from cliploc.label.worker import AnnotateWorker
from cliploc.runs.label_store import Candidate, Candidates, Correction, Found
from tests.label.labelled import correct, corrections, held, save_boxes
from tests.tiny import tower

LABELS = ["red", "blue"]
OPTIONS: dict[str, Any] = {"device": "cpu", "recipe": "fast", "formats": ["coco", "csv"], "batch_size": 4, "shard": 4}
BOXES = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [0, 20, 10, 30]]
PLANTED: dict[str, Any] = {  # red is there, blue is doubtful
    "presence": [0.8, 0.2], "boxes": BOXES, "scores": [0.6, 0.4, 0.3, 0.1], "fits": [0.7] * 4,
    "labels": [0, 1, 0, 0],
}  # fmt: skip
COMMON: dict[str, Any] = {**PLANTED, "presence": [0.25, 0.0], "scores": [0.05] * 4, "labels": [0, 1, 0, 0]}


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose rows are known; in pictures called "common" a name is doubtful."""

    def found(self: AnnotateWorker, picture: str, digest: str, result: Any, features: bytes) -> Found:
        own = COMMON if "common" in result.source else PLANTED
        keys = ("labels", "boxes", "scores", "fits")
        masks = own.get("masks", [None] * len(own["boxes"]))
        boxes = [Candidate(*one, mask) for *one, mask in zip(*(own[key] for key in keys), masks, strict=True)]
        return Found(picture, digest, None, 60, 40, [], own["presence"], boxes, features)

    monkeypatch.setattr(AnnotateWorker, "_found", found)
    monkeypatch.setattr(towers, "create", lambda *_, **__: tower("gap_cnn", (8, 8), seed=0))


def photos(root: Path, *names: str) -> Path:
    root.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (60, 40), (number, 2 * number, 90)).save(root / f"{name}.png")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path / "photos", "a", "b", "c")


def drafts(out: Path, name: str = "a.png") -> list[list[float]]:
    """x0, y0 and the score of each box of a picture."""
    read = json.loads((out / "coco.json").read_text())
    [image] = [one["id"] for one in read["images"] if one["file_name"] == name]
    return [[*one["bbox"][:2], one["score"]] for one in read["annotations"] if one["image_id"] == image]


def files(out: Path) -> dict[str, Any]:
    return {one: (out / one).read_bytes() for one in ("coco.json", "boxes.csv")} | {"held": held(out)}


FIRST, BLUE, SECOND, LOW = [0, 0, 0.6], [20, 0, 0.4], [40, 0, 0.3], [0, 20, 0.1]


def test_other_options_give_other_drafts_without_the_model(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    before = annotate(root, LABELS, out, **OPTIONS)
    assert drafts(out) == [FIRST, SECOND]
    assert (dict(before.boxes), dict(before.unsure)) == ({"red": 6, "blue": 0}, {"red": 0, "blue": 3})
    assert ("red", "6", "0", "3") in before.table()
    assert any(line.startswith("3 unsure boxes") for line in before.closing(1.0))
    written = files(out)
    monkeypatch.setattr(Flow, "compute", lambda *_, **__: pytest.fail("the model ran"))
    for changed, expected in [
        ({"min_score": 0.5}, [FIRST]),
        ({"min_score": 0}, [FIRST, SECOND, LOW]),
        ({"min_presence": 0.1}, [FIRST, BLUE, SECOND]),
        ({"labels": ["red", "blue @0.1"]}, [FIRST, BLUE, SECOND]),
        ({"max_boxes": 1}, [FIRST]),
        ({"unsure": True}, [FIRST, BLUE, SECOND]),
        ({"min_presence": 0.9}, []),
        ({"min_presence": 0.9, "unsure": True}, [FIRST, BLUE, SECOND]),
    ]:
        result = annotate(**{"pictures": root, "labels": LABELS, "out": out, **OPTIONS, **changed})
        assert (drafts(out), result.computed, result.empty) == (expected, 0, 3 * (not expected))
    assert dict(result.unsure) == {"red": 0, "blue": 0}, "they are exported"
    annotate(root, LABELS, out, **OPTIONS)
    assert files(out) == written


def test_what_failed_is_tried_again_if_asked_and_its_last_reason_holds(root, tmp_path, monkeypatch):
    for least, retry, of_side in ((50, False, "50"), (55, True, "55"), (8, False, "55"), (8, True, None)):
        monkeypatch.setattr("cliploc.images.reading.MIN_SIDE", least)
        result = annotate(root, LABELS, tmp_path / "out", retry=retry, **OPTIONS)
        assert [f"at least {of_side}×" in reason for reason in result.failed.values()] == [True] * (3 if of_side else 0)
    assert result.computed == 3


def test_corrections_survive_other_drafts(root, tmp_path):
    out = tmp_path / "out"
    annotate(root, LABELS, out, **OPTIONS)
    remaining = {"xyxy": BOXES[3], "label": 0, "draft": 3}  # from another page: under the rule now it is not shown
    moved = {"xyxy": [1, 0, 10, 10], "label": 1, "draft": 0}
    save_boxes(out, {"b.png": [remaining, moved]}, "none")
    for changed, of_c in [
        ({}, [FIRST, SECOND]),
        ({"min_score": 0.5}, [FIRST]),
        ({"min_presence": 0.9}, []),
        ({"min_score": 0}, [FIRST, SECOND, LOW]),
    ]:
        result = annotate(root, LABELS, out, **{**OPTIONS, **changed})
        assert drafts(out, "c.png") == of_c
        assert drafts(out, "b.png") == [[0, 20, 1.0], [1, 0, 1.0]]
        assert result.corrected == 1
        of_b = [line for line in (out / "boxes.csv").read_text().splitlines() if line.startswith("b.png,")]
        assert [line.split(",")[-2] for line in of_b] == ["1.0", "1.0"], "a person is certain"
        with ReviewFolder.opened(out) as folder:
            b = folder.state(1)
        assert {0, 3} <= {one["draft"] for one in b["drafts"]}, "the editor knows what boxes were made from"
    correct(out, {"b.png": Correction([BOXES[3]], [0], drafts=[9])})  # a draft that was lost
    with ReviewFolder.opened(out) as folder:
        assert [one["draft"] for one in folder.state(1)["boxes"]] == [9]


def test_a_picture_counts_as_corrected_unless_its_drafts_were_saved_and_not_reviewed(root, tmp_path, monkeypatch):
    out, how = tmp_path / "new" / "out", {**OPTIONS, "masks": True}
    inside = np.zeros((4, 40, 60), bool)
    for mask, (x0, y0, x1, y1) in zip(inside, BOXES, strict=True):
        mask[y0:y1, x0:x1] = True
    monkeypatch.setitem(PLANTED, "masks", [encode(mask)["counts"] for mask in inside])
    annotate(root, LABELS, out, **how)
    first, second = ({"xyxy": BOXES[draft], "label": 0, "draft": draft} for draft in (0, 2))
    cases: list[tuple[list[dict[str, Any]], str, int]] = [
        ([first, second], "none", 0),
        ([{**first, "xyxy": [0, 0, 10, 9.5]}, second], "none", 1),
        ([{**first, "label": 1}, second], "none", 1),
        ([{**first, "draft": None}, second], "none", 1),
        ([{**first, "mask": PLANTED["masks"][2]}, second], "none", 1),
        ([first, second], "reviewed", 1),
        ([first, second], "none", 0),
    ]
    for revision, (boxes, status, corrected) in enumerate(cases):  # the first changes nothing
        save_boxes(out, {"b.png": boxes}, status)
        result = annotate(root, LABELS, out, **how)
        assert (result.corrected, bool(result.draft_scores)) == (corrected, status == "reviewed")
        assert result.unsure["blue"] == 3 - corrected
        assert corrections(out)["reviews"].get("b.png", {"revision": 0})["revision"] == revision


def test_unsure_boxes_are_shown_apart_and_their_pictures_come_early(root, tmp_path):
    out = tmp_path / "out"
    annotate(photos(root, "common"), LABELS, out, **OPTIONS)
    assert drafts(out, "common.png") == []
    with ReviewFolder.opened(out) as folder:
        margins = {entry["name"]: entry["margin"] for entry in folder.entries()}
        assert min(margins, key=margins.get) == "common.png"
        state = folder.state(0)
        assert [(one["draft"], one["unsure"]) for one in state["drafts"]] == [(0, False), (1, True), (2, False)]
        assert ([one["draft"] for one in state["boxes"]], state["unsure"]) == ([0, 2], 1)
        boxes = [{key: one[key] for key in ("xyxy", "label", "draft")} for one in (*state["boxes"], state["drafts"][1])]
        folder.save(0, msgspec.convert({"revision": 0, "status": "none", "boxes": boxes}, ReviewedPicture))
        assert folder.state(0)["unsure"] == 0
        folder.write_exports()
    assert [one[:2] for one in drafts(out)] == [one[:2] for one in (FIRST, SECOND, BLUE)]


def test_a_larger_folder_of_several_names_has_the_same_drafts_and_what_is_known_of_it_moves_them(tmp_path):
    names = [f"common {number:02}" for number in range(FEWEST)]
    root, out = photos(tmp_path / "photos", *names), tmp_path / "out"
    result = annotate(root, LABELS, out, **OPTIONS)
    assert (sum(result.boxes.values()), result.unsure["red"]) == (0, FEWEST), "as with one picture"
    result = annotate(root, LABELS, out, share={"red": 1}, **OPTIONS)
    scores = [score for *_, score in drafts(out, f"{names[0]}.png")]
    assert (len(scores), result.computed) == (3, 0)
    assert min(scores) > 0.6, "most of what was missing of the presence is made up for"

    with ReviewFolder.opened(out) as folder:
        np.testing.assert_allclose([one["score"] for one in folder.state(0)["drafts"]], scores, atol=1e-3)


def test_reviewed_pictures_say_how_common_a_name_is(tmp_path):
    names = [f"common {number:02}" for number in range(FEWEST)]
    root, out = photos(tmp_path / "photos", *names), tmp_path / "out"
    annotate(root, LABELS, out, teach=False, **OPTIONS)
    reviewed = [f"{name}.png" for name in names[:10]]
    correct(out, {name: Correction([BOXES[0]], [0]) for name in reviewed})
    result = annotate(root, LABELS, out, min_score=0.05, teach=False, **OPTIONS)
    assert result.boxes == {"red": 10 + 10 * 3, "blue": 0}
    written = files(out)
    with ReviewFolder.opened(out) as folder:
        folder.write_exports()
    assert files(out) == written


def test_the_only_name_of_a_folder_is_drafted_in_all_pictures_that_do_not_speak_against_it(tmp_path, monkeypatch):
    names = [f"common {number:02}" for number in range(FEWEST)]
    root = photos(tmp_path / "photos", *names)
    monkeypatch.setitem(COMMON, "presence", [0.25])
    monkeypatch.setitem(COMMON, "labels", [0, 0, 0, 0])
    result = annotate(root, ["red"], tmp_path / "out", **OPTIONS)
    assert result.with_label == {"red": FEWEST}
    assert "red: taken to be in nearly all pictures; if it is not: --share 'red=0.5'" in result.notes
    assert annotate(root, ["red"], tmp_path / "out", share={"red": 0.25}, **OPTIONS).with_label == {"red": 0}


def test_a_share_that_cannot_be_used_is_refused(root, tmp_path):
    for wrong, message in (
        ({"green": 1}, "expected --share of a label, one of red, blue, got green"),
        ({"red": 2}, "got {'red': 2}"),
        ({"red": "many"}, "got {'red': 'many'}"),
        ("red", "got 'red'"),
    ):
        with pytest.raises(UsageError, match=re.escape(message)):
            annotate(root, LABELS, tmp_path / "out", share=wrong, **OPTIONS)
    with pytest.raises(UsageError, match="expected --share with a second look"):
        annotate(root, LABELS, tmp_path / "out", share={"red": 1}, second_look=False, **OPTIONS)


def test_a_run_in_the_folder_of_its_pictures_does_not_take_what_it_wrote(root: Path) -> None:
    for where in (root, root, f"{root}/**/*.png"):
        assert annotate(where, LABELS, root, **{**OPTIONS, "formats": ["yolo", "voc"]}).pictures == 3
    with pytest.raises(UsageError, match=r"expected a corrected set outside of .*, whose exports are overwritten"):
        annotate(root, LABELS, root, decisions=root, **OPTIONS)  # its XML would be found in voc/


def test_only_reviewed_pictures_are_exported_and_split(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    annotate(root, LABELS, out, **OPTIONS)
    correct(out, {"a.png": Correction([BOXES[0]], [0]), "c.png": None})
    annotate(root, LABELS, out, reviewed=True, val=0.5, **{**OPTIONS, "formats": ["coco", "yolo"]})
    images = json.loads((out / "coco.json").read_text())["images"]
    assert [(one["file_name"], one["state"]) for one in images] == [("a.png", "reviewed"), ("c.png", "reviewed")]
    texts = sorted(path.relative_to(out / "yolo/labels").as_posix() for path in (out / "yolo/labels").rglob("*.txt"))
    assert [Path(text).parent.name for text in texts] == ["train", "val"]
    with ReviewFolder.opened(out) as folder:  # the editor writes the same again
        folder.write_exports()
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 2


def test_drafts_that_need_no_look_and_counts_by_pictures_in_random_order(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos", *(f"p{number:02}" for number in range(60))), tmp_path / "out"
    how = {**OPTIONS, "second_look": False, "min_score": 0.2}  # so that scores are not adjusted to the folder
    annotate(root, LABELS, out, **how)
    names = sorted((path.name for path in root.iterdir()), key=order_of)
    right = {name: Correction([BOXES[0]], [0], None, [None]) for name in names}  # of the drafts 0.6 and 0.3 the first
    for count, left, message in (
        (5, 2, "no draft can be trusted at 20%: 5 pictures with 10 drafts were reviewed in random order"),
        (40, 1, "all names: 50% of the drafts, of score 0.60 and more, need no look: at most 20% of them are wrong"),
    ):
        correct(out, {name: right[name] for name in names[:count]})
        result = annotate(root, LABELS, out, max_false=0.2, **how)
        assert any(note.startswith(message) for note in result.notes), result.notes
        assert (result.computed, len(drafts(out, names[-1]))) == (0, left)
    assert result.counts["red"].things.count == pytest.approx(60)
    assert 0 < result.counts["blue"].pictures.error < 12
    assert any(line.startswith("red: about 60 ± ") for line in result.closing(1.0))


def test_a_folder_that_was_moved_is_reviewed_where_it_is_now(root: Path, tmp_path: Path) -> None:
    annotate(root, LABELS, tmp_path / "out", **OPTIONS)
    assert annotate(root.rename(tmp_path / "moved"), LABELS, tmp_path / "out", **OPTIONS).computed == 0
    with ReviewFolder.opened(tmp_path / "out") as folder:
        assert [one.path.parent.name for one in folder.pictures] == ["moved"] * 3


def test_a_run_without_masks_makes_none_for_what_is_saved() -> None:
    box = ReviewedBox((1, 1, 9, 9), 0, mask="none is read")
    assert correction_of([box], Candidates.of((60, 40), np.ones(1), [], False), 1).masks is None


def test_corrections_stay_while_a_picture_cannot_be_read(root: Path, tmp_path: Path) -> None:
    out, file, away = tmp_path / "out", tmp_path / "b.png", tmp_path / "away.png"  # as on a disk that is not mounted
    (root / "b.png").rename(file)
    (root / "b.png").symlink_to(file)
    annotate(root, LABELS, out, **OPTIONS)
    correct(out, {"b.png": Correction([BOXES[0]], [0], None, [None])})
    file.rename(away)
    result = annotate(root, LABELS, out, **OPTIONS)
    assert (result.pictures, [*result.failed], result.computed, result.corrected) == (3, ["b.png"], 0, 0)
    away.rename(file)
    result = annotate(root, LABELS, out, **OPTIONS)
    assert (result.failed, result.computed, result.corrected) == ({}, 0, 1)
    assert drafts(out, "b.png") == [[0, 0, 1.0]]
    (root / "b.png").rename(root / "d.png")
    result = annotate(root, LABELS, out, **OPTIONS)
    assert result.notes == ("corrected, but not there now: 1 picture (b.png); corrections go by the name",)


def test_a_label_as_it_was_given_is_a_label_of_a_corrected_set(root: Path, tmp_path: Path) -> None:
    value = {"x": 10, "y": 10, "width": 50, "height": 50, "rectanglelabels": ["red|crimson"]}
    drawn = {"result": [{"type": "rectanglelabels", "value": value}]}
    (tmp_path / "set.json").write_text(json.dumps([{"data": {"image": "a.png"}, "annotations": [drawn]}]))
    annotate(root, ["red|crimson", "blue"], tmp_path / "out", **OPTIONS)
    result = annotate(root, ["red|crimson", "blue"], tmp_path / "out", decisions=tmp_path / "set.json", **OPTIONS)
    assert (result.not_applied, result.corrected) == ({}, 1)

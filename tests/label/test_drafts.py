"""Which candidates are drafts: by hand-made rows, and in finished runs that get other drafts."""

import json
import math
import re
from dataclasses import replace
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
from cliploc.label.drafts import FEWEST, SHARES, SPREAD, DraftRule, Prior, choose
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.estimates import order_of
from cliploc.label.worker import AnnotateWorker
from cliploc.runs.label_store import Candidate, Candidates, Correction, PictureResult
from cliploc.runs.picture_files import PictureFile
from tests.label.labelled import correct, corrections, held, save_boxes
from tests.tiny import tower

NO_FOLDER = Prior(np.zeros(1))  # nothing is known of it


def row(*candidates: tuple[int, float], presence: tuple[float | None, ...] = (0.8, 0.2, 0.01), **more: Any) -> Any:
    """Candidates side by side, each with label and score."""
    boxes = [Candidate(label, (10 * i, 0, 10 * i + 8, 8), score, 0.7) for i, (label, score) in enumerate(candidates)]
    found = Candidates.of((100, 10), np.array(presence, float), boxes, False)
    return replace(found, **{key: np.array(one) if isinstance(one, list) else one for key, one in more.items()})


CANDIDATES = row((0, 0.6), (1, 0.5), (0, 0.3), (1, 0.1), (0, 0.05), (2, 0.9))
RULE = DraftRule((0.35, 0.35, 0.35), min_score=0.2)


def test_names_that_are_there_give_drafts_and_doubtful_ones_are_unsure():
    chosen = choose(CANDIDATES, RULE, NO_FOLDER)
    assert (chosen.drafts, chosen.unsure) == ((0, 2), (1,))  # 2 is hidden: its name's chance is below that of unsure
    np.testing.assert_array_equal(chosen.scores, CANDIDATES.scores)
    assert chosen.margin == pytest.approx(0.15)
    assert (chosen.visible(False), chosen.visible(True)) == ([0, 2], [0, 1, 2])  # unsure boxes only if asked for


def test_auto_keeps_the_best_box_of_a_name_that_is_there():
    low = row((0, 0.1), (0, 0.05))
    assert choose(low, replace(RULE, min_score="auto"), NO_FOLDER).drafts == (0,)
    assert choose(low, RULE, NO_FOLDER).drafts == ()
    assert choose(low, RULE, NO_FOLDER).unsure == (0,)


def test_without_a_second_look_nothing_is_unsure_and_presence_counts_in_the_order():
    two = row((0, 0.6), (1, 0.5), (2, 0.9), presence=(0.5, 0.9, 0.3))
    chosen = choose(two, replace(RULE, thresholds=(0.5, 0.5, 0.5)), None)
    assert (chosen.drafts, chosen.unsure) == ((1, 0), ())


def test_of_a_taught_name_only_taught_boxes_count_and_their_scores_mean_the_same():
    both = row((0, 0.6), (1, 0.9), (1, 0.5), presence=(0.5, 0.9), taught={1: 0.7}, untaught=2)
    rule = DraftRule((0.35, 0.35))
    chosen = choose(both, rule, None)
    assert (chosen.drafts, chosen.scores[[0, 2]].tolist()) == ((2, 0), [0.6, 0.5])  # 0.5 · 0.7 > 0.6 · 0.5
    chosen = choose(both, rule, NO_FOLDER)
    assert (chosen.drafts, chosen.scores[[0, 2]].tolist()) == ((0, 2), [0.6, 0.5 * 0.7])
    np.testing.assert_array_equal(chosen.presence, [0.5, 0.7])


def test_what_a_person_should_look_at_first():
    assert choose(row((1, 0.5)), RULE, NO_FOLDER).margin == 0  # nothing but unsure boxes
    assert choose(row((0, 0.5), presence=(0.4, None, None)), RULE, NO_FOLDER).margin == pytest.approx(0.05)
    assert choose(row(presence=(None, None, None)), RULE, NO_FOLDER).margin == 0


def chances_of(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def prior_of(presence: Any, shares: Any = None, true: Any = None) -> Prior:
    """`presence` `[n, P]`; nothing said, and nothing reviewed, unless it is given."""
    presence = np.array(presence, np.float64)
    unknown = np.full(presence.shape, np.nan)
    return Prior.of(presence, shares or [None] * presence.shape[1], unknown if true is None else np.array(true, float))


RANDOM = np.random.default_rng(0)
DOUBTFUL = chances_of(RANDOM.normal(-1.8, 1.2, (200, 1)))  # one heap, as of a name known by relatives only
MIXED = chances_of(np.concatenate([RANDOM.normal(-2.3, 1, (110, 1)), RANDOM.normal(2, 1, (64, 1))]))  # as of a person


def test_in_a_mixed_folder_nothing_is_moved_whatever_is_asked():
    assert prior_of(MIXED).shifts == [0]
    assert prior_of(np.hstack([MIXED, DOUBTFUL[:174]])).shifts.tolist() == [0, 0], "two names are in some pictures"
    rare = chances_of(np.random.default_rng(1).normal(-5, 1, (200, 1)))
    assert prior_of(rare).shifts == [0], "one heap of pictures without it"
    assert prior_of(DOUBTFUL[: FEWEST - 1]).shifts == [0]
    assert not prior_of(MIXED).everywhere


def test_the_only_name_that_is_doubtful_everywhere_is_taken_to_be_everywhere_until_reviews_say_otherwise():
    prior = prior_of(DOUBTFUL)
    assert prior.everywhere
    assert prior.adjusted(DOUBTFUL).mean() == pytest.approx(SHARES[1], abs=1e-3)
    assert prior_of([[0.25]] * FEWEST).everywhere, "all alike"
    true = np.full(DOUBTFUL.shape, np.nan)
    true[:10, 0] = [1] * 5 + [0] * 5
    assert prior_of(DOUBTFUL, true=true).adjusted(DOUBTFUL).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("message", "share"), [(1.0, SHARES[1]), (0.3, 0.3), (0.0, SHARES[0])])
def test_with_a_share_that_a_person_says_the_chances_add_up_to_it(message, share):
    two = np.hstack([MIXED, DOUBTFUL[:174]])
    prior = prior_of(two, [None, message])
    assert prior.shifts[0] == 0
    assert prior.adjusted(two)[:, 1].mean() == pytest.approx(share, abs=1e-3)


def test_reviewed_pictures_count_by_what_the_model_said_of_them():
    doubtful, true = np.full((30, 2), 0.2), np.full((30, 2), np.nan)
    true[:10] = [1, 0]
    first, second = prior_of(doubtful, true=true).shifts
    likelihood = [-0.5 * (moved / SPREAD) ** 2 + 10 * np.log(chances_of(math.log(0.25) + moved)) for moved in GRID]
    assert first == pytest.approx(GRID[int(np.argmax(likelihood))], abs=2e-3)
    assert -0.5 < second < 0
    as_foreseen = np.full((30, 2), 0.5)
    true[:10] = [[1, 0]] * 5 + [[0, 1]] * 5
    np.testing.assert_allclose(prior_of(as_foreseen, true=true).shifts, 0, atol=1e-3)


GRID = np.linspace(-5, 5, 10_001)


def test_a_name_that_the_model_does_not_know_is_not_moved():
    prior = prior_of([[0.5, np.nan]] * FEWEST, true=[[1, 1]] * FEWEST)
    assert prior.shifts[0] > 0
    assert prior.shifts[1] == 0
    assert choose(row((0, 0.5), presence=(0.5, None)), DraftRule((0.35, 0.35)), prior).drafts == (0,)


def test_what_is_known_of_a_name_moves_its_scores_their_order_and_what_is_unsure():
    alone = row((0, 0.03), presence=(0.25,))
    rule = DraftRule((0.35,), min_score=0.2)
    assert choose(alone, rule, Prior(np.zeros(1))).drafts == ()
    prior = Prior(np.array([math.log(441)]))
    chosen = choose(alone, rule, prior)
    assert chosen.drafts == (0,)
    existing = 0.25 * 441 / (0.25 * 441 + 0.75)
    moved = (existing - 0.25) / 0.75
    np.testing.assert_allclose(chosen.presence, [existing])
    np.testing.assert_allclose(chosen.scores, [(1 - moved) * 0.03 + moved * 0.7])

    prior = Prior(np.array([math.log(27 / 7)]))
    swapped = row((0, 0.03), (0, 0.02), fits=[0.2, 0.9], presence=(0.25,))
    assert choose(swapped, DraftRule((0.35,), min_score=0, max_boxes=1), prior).drafts == (1,)
    rare = row((0, 0.03), presence=(0.03,))
    assert choose(rare, RULE, Prior(np.zeros(1))).unsure == ()
    assert choose(rare, DraftRule((0.35,), min_score=0), prior).unsure == (0,)


def test_what_is_rare_in_the_folder_is_doubted_and_certain_names_stay():
    prior = Prior(np.array([-3.0, -3.0]))
    chosen = choose(row((0, 0.5), (1, 0.5), presence=(0.36, 1.0)), DraftRule((0.35, 1.0)), prior)
    assert chosen.drafts == (1,)
    assert chosen.presence[0] < 0.05
    assert chosen.unsure == (0,), "the folder hides nothing"
    assert chosen.presence[1] == 1
    np.testing.assert_array_equal(chosen.scores, [0.5, 0.5])


# A finished run gets other drafts without its model; what people decided, and a kill, change nothing of that
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

    def found(self: AnnotateWorker, picture: PictureFile, digest: str, result: Any, features: bytes) -> PictureResult:
        own = COMMON if "common" in result.source else PLANTED
        keys = ("labels", "boxes", "scores", "fits")
        masks = own.get("masks", [None] * len(own["boxes"]))
        boxes = [Candidate(*one, mask) for *one, mask in zip(*(own[key] for key in keys), masks, strict=True)]
        return PictureResult(picture.id, digest, None, 60, 40, [], dict(enumerate(own["presence"])), boxes, features)

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
        ({"min_score": 0.5}, [FIRST]), ({"min_score": 0}, [FIRST, SECOND, LOW]),
        ({"min_presence": 0.1}, [FIRST, BLUE, SECOND]), ({"labels": ["red", "blue @0.1"]}, [FIRST, BLUE, SECOND]),
        ({"max_boxes": 1}, [FIRST]), ({"unsure": True}, [FIRST, BLUE, SECOND]), ({"min_presence": 0.9}, []),
        ({"min_presence": 0.9, "unsure": True}, [FIRST, BLUE, SECOND]),
    ]:  # fmt: skip
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

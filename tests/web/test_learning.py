"""The editor's server learns from what is saved: other drafts for pictures that nobody touched, and the way back."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc.errors import UsageError
from cliploc.find.learnt import load_learnt
from cliploc.images.geometry import iou_matrix
from cliploc.label.annotate import annotate
from cliploc.label.editor import review_folder
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.label_studio.app import PictureSource, Predictor, application
from cliploc.label.teach.teach import teach
from cliploc.options import Options
from cliploc.runs.label_store import LabellingRun
from cliploc.web.server import Hosts
from tests.commands import cliploc_
from tests.label.labelled import held, taught
from tests.web.asking import running, sent
from tests.web.review_server import COUNT, NAME, OPTIONS, corrections, make, served

pytestmark = pytest.mark.usefixtures("one_model")


@pytest.fixture
def address(out: Path) -> Iterator[str]:
    with served(out) as address:
        yield address


def drawn(truth: dict[str, list[int]], number: int, revision: int = 0, status: str = "reviewed") -> dict:
    """What a person saves who draws the thing of a picture."""
    boxes = [{"xyxy": truth[f"{number}.jpg"], "label": 0, "draft": None}]
    return {"revision": revision, "status": status, "boxes": boxes}


def review(address: str, truth: dict[str, list[int]], *numbers: int) -> None:
    for number in numbers:
        assert sent(f"{address}/pictures/{number}", drawn(truth, number)) == (200, {"revision": 1})


def learnt(address: str) -> dict:
    """What the page is told once the server has learnt."""
    for _ in range(600):
        status, state = sent(f"{address}/learning")
        assert status == 200
        if not state["working"]:
            return state
        time.sleep(0.05)
    raise AssertionError("it never ended")


def pictures(address: str) -> list[dict]:
    return [sent(f"{address}/pictures/{number}")[1] for number in range(COUNT)]


def found(address: str, truth: dict[str, list[int]], numbers: range) -> int:
    """In how many of these pictures the only draft is on the thing."""
    states = [pictures(address)[number] for number in numbers]
    boxes = [(one["drafts"][0]["xyxy"], truth[one["name"]]) for one in states if len(one["drafts"]) == 1]
    return sum(iou_matrix(np.array([draft]), np.array([true]))[0, 0] > 0.5 for draft, true in boxes)


def test_three_boxes_of_a_name_that_no_model_knows_give_drafts_to_the_other_pictures(out, truth, address):
    assert all(not one["drafts"] and not one["boxes"] for one in pictures(address))
    assert "0 so far" in learnt(address)["said"]
    review(address, truth, 0, 1)
    state = learnt(address)
    assert ("2 so far" in state["said"], state["ready"]) == (True, False)
    assert sent(f"{address}/learning", {})[0] == 409, "two teach nothing, whoever asks"
    review(address, truth, 2)
    state = learnt(address)
    assert state["said"].startswith("Learnt from 3 pictures: 3 → ")
    assert (state["changed"], state["undo"], state["failed"]) == (5, True, "")
    assert found(address, truth, range(3, COUNT)) == 5
    for one in pictures(address)[:3]:
        assert [box["xyxy"] for box in one["boxes"]] == [truth[one["name"]]], "nobody changes what a person drew"
        assert one["drafts"] == []
    entries = sent(f"{address}/pictures")[1]
    assert [one["changed"] for one in entries] == [False] * 3 + [True] * 5
    assert len({one["margin"] for one in entries[3:]}) > 1, "the least certain can come first"
    assert load_learnt(out / "learnt.safetensors").names == (NAME,)
    assert sent(f"{address}/exports", {})[0] == 200
    annotations = json.loads((out / "coco.json").read_text())["annotations"]
    assert [one["image_id"] for one in annotations] == [*range(1, COUNT + 1)]
    assert [one["score"] == 1 for one in annotations] == [True] * 3 + [False] * 5


def test_a_refit_is_undone_and_stays_so_until_more_is_reviewed(job, out, truth):
    with served(out) as address:
        review(address, truth, 0, 1, 2)
        learnt(address)
        remaining = pictures(address)[3]["boxes"]
        assert sent(f"{address}/pictures/3", {"revision": 0, "status": "later", "boxes": remaining})[0] == 200
        with_drafts = pictures(address)[3]
    with served(out) as address:
        assert learnt(address)["undo"], "a restart knows what it was before"
        status, state = sent(f"{address}/learning/undo", {})
        assert (status, state["undo"], state["changed"]) == (200, False, 0)
        assert "Undone" in state["said"]
        assert sent(f"{address}/learning/undo", {})[0] == 409
        assert pictures(address)[3]["drafts"] == with_drafts["drafts"], "a person has said something of these"
        assert not any(one["drafts"] for one in pictures(address)[4:])
        assert not (out / "learnt.safetensors").exists()
    before = held(out)
    annotate(job[0].parent / "photos", [NAME], out, **OPTIONS)
    assert held(out) == before, "a later call does not do it again"
    with served(out) as address:
        assert "Undone" in learnt(address)["said"]
        review(address, truth, 4, 5)
        assert not pictures(address)[6]["drafts"]
        review(address, truth, 6)
        assert learnt(address)["said"].startswith("Learnt from 6 pictures")
        assert found(address, truth, range(7, COUNT)) == 1


def test_an_undo_holds_for_three_more_pictures_also_where_reviewed_ones_are_away(job, out, truth, tmp_path):
    with served(out) as address:
        review(address, truth, 0, 1, 2)
        learnt(address)
        assert sent(f"{address}/learning/undo", {})[0] == 200
    left = shutil.copytree(job[0].parent / "photos", tmp_path / "left", ignore=shutil.ignore_patterns("[012].jpg"))
    annotate(left, [NAME], out, **OPTIONS)
    with served(out) as address:
        for place in range(3):
            assert sent(f"{address}/pictures/{place}", drawn(truth, place + 3))[0] == 200
        assert learnt(address)["said"].startswith("Learnt from 3 pictures")


def test_a_refit_that_broke_off_is_not_what_undo_goes_back_to(out, truth, address, monkeypatch):
    def full(*_):
        raise OSError("no space left on device")

    review(address, truth, 0, 1, 2)
    assert learnt(address)["undo"]
    before = (out / "learnt.safetensors").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(LabellingRun, "teach", full)
        review(address, truth, 3, 4, 5)
        assert learnt(address)["failed"]
    assert sent(f"{address}/learning", {})[0] == 200
    assert learnt(address)["undo"]
    assert (out / "learnt.safetensors").read_bytes() != before
    assert sent(f"{address}/learning/undo", {})[0] == 200
    assert (out / "learnt.safetensors").read_bytes() == before


def test_a_person_can_ask_for_what_was_undone(truth, address):
    review(address, truth, 0, 1, 2)
    learnt(address)
    sent(f"{address}/learning/undo", {})
    assert sent(f"{address}/learning", {})[0] == 200
    assert learnt(address)["said"].startswith("Learnt from 3 pictures")
    assert found(address, truth, range(3, COUNT)) == 5
    assert sent(f"{address}/learning", {})[0] == 200
    assert learnt(address)["said"] == "Nothing new to learn from."


def test_nobody_waits_for_it_and_what_is_touched_meanwhile_stays(out, truth, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder, again, write, stop):
        def wait():
            begun.set()  # what it computes with holds no lock that a save or a page needs
            assert go_on.wait(60)
            stop()

        return teach(folder, again, write=write, stop=wait)

    monkeypatch.setattr(review_folder, "teach", slow)
    with served(out) as address:
        review(address, truth, 0, 1, 2)
        assert begun.wait(60)
        assert sent(f"{address}/learning")[1]["working"]
        assert sent(f"{address}/learning/undo", {})[0] == 409
        moved = drawn(truth, 3, status="none")
        assert sent(f"{address}/pictures/3", moved) == (200, {"revision": 1})
        assert len(sent(f"{address}/pictures")[1]) == len(pictures(address)) == COUNT
        go_on.set()
        assert learnt(address)["changed"] == 5, "of those that nobody had touched when it began"
        touched = pictures(address)[3]
        assert [box["xyxy"] for box in touched["boxes"]] == [truth["3.jpg"]]
        assert touched["drafts"] == [], "its drafts are those that the person saw"
        assert found(address, truth, range(4, COUNT)) == 4


def test_a_page_with_earlier_drafts_keeps_what_the_person_made_of_them(truth, address):
    review(address, truth, 0, 1, 2)
    learnt(address)
    seen = pictures(address)[7]
    review(address, truth, 3, 4, 5)
    learnt(address)
    now = pictures(address)[7]
    assert seen["drawn"] != now["drawn"]
    [box] = seen["boxes"]
    second = {"xyxy": [1, 2, 50, 60], "label": 0, "draft": None}
    body = {"revision": 0, "status": "none", "boxes": [box, second], "drawn": seen["drawn"]}
    assert sent(f"{address}/pictures/7", body) == (200, {"revision": 1})
    after = pictures(address)[7]
    assert [one["xyxy"] for one in after["boxes"]] == [box["xyxy"], [1, 2, 50, 60]]
    assert [one["draft"] for one in after["boxes"]] == [None, None], "number 0 is another draft now"
    assert sent(f"{address}/pictures/6", {**body, "boxes": pictures(address)[6]["boxes"]})[0] == 200
    assert pictures(address)[6]["boxes"][0]["draft"] == 0, "the same box is the same draft"


def test_the_editor_goes_on_where_nothing_can_be_learnt(out, truth, monkeypatch):
    def broken(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(review_folder, "teach", broken)
    with served(out) as address:
        review(address, truth, 0, 1, 2)
        assert learnt(address)["failed"] == "Not learnt: no space left on device"
        review(address, truth, 3)
        assert not learnt(address)["working"], "it is not tried at each save"
    with served(out) as address:
        assert not pictures(address)[4]["drafts"]


def test_a_run_that_kept_nothing_does_not_learn(tmp_path):
    out, truth = make(tmp_path, ["dog"], teach=False)
    with ReviewFolder.opened(out) as drafts, pytest.raises(UsageError, match="annotate the pictures with --teach on"):
        Predictor(Options.of(text_cache=False, **MODEL), PictureSource(), 10**7, drafts)
    with served(out) as address:
        review(address, truth, 0, 1, 2)
        assert not learnt(address)["ready"] or sent(f"{address}/learning", {})[0] == 409
        assert taught(out) == ([], [], None)


def test_new_drafts_of_a_run_with_masks_have_masks(tmp_path):
    out, truth = make(tmp_path, [NAME, "dog"], masks=True)
    with served(out) as address:
        review(address, truth, 0, 1, 2)
        assert learnt(address)["changed"] == 5
        [box] = pictures(address)[7]["boxes"]
        assert box["polygons"]
        seen = pictures(address)[7]
        body = {
            "revision": 0,
            "status": "reviewed",
            "boxes": [{key: box[key] for key in ("xyxy", "label", "draft", "mask")}],
        }
        assert sent(f"{address}/pictures/7", {**body, "drawn": seen["drawn"]})[0] == 200
        review(address, truth, 3, 4)
        assert learnt(address)["said"].startswith("Learnt from 6 pictures")
        assert pictures(address)[7]["boxes"] == [box], "reviewed with the drafts that it had"
        assert sent(f"{address}/exports", {})[0] == 200


def test_one_box_finds_unsure_boxes_until_three_pictures_teach(job, out, truth):
    with served(out) as address:
        assert sent(f"{address}/pictures/0/like", {"name": NAME})[0] == 409, "nothing is drawn yet"
        assert sent(f"{address}/pictures/0", drawn(truth, 0, status="none")) == (200, {"revision": 1})
        assert sent(f"{address}/pictures/0/like", {"name": NAME})[0] == 200
        state = learnt(address)
        assert (state["changed"], state["undo"], state["failed"]) == (COUNT - 1, True, "")
        assert state["said"].startswith(f"{NAME}: unsure boxes")
        states = pictures(address)
        assert [box["xyxy"] for box in states[0]["boxes"]] == [truth["0.jpg"]]
        assert not any(one["boxes"] for one in states[1:]), "none is exported unless a person keeps it"
        best = [(one["drafts"][0]["xyxy"], truth[one["name"]]) for one in states[1:]]
        assert sum(iou_matrix(np.array([draft]), np.array([true]))[0, 0] > 0.5 for draft, true in best) >= 5
        assert not (out / "learnt.safetensors").exists(), "one picture teaches no others"
    before = held(out)
    annotate(job[0].parent / "photos", [NAME], out, **OPTIONS)
    assert held(out) == before
    with served(out) as address:
        assert "0 so far" in learnt(address)["said"]
        assert sent(f"{address}/learning/undo", {})[0] == 200
        assert not any(one["drafts"] for one in pictures(address)[1:])
        assert sent(f"{address}/pictures/0", drawn(truth, 0, 1)) == (200, {"revision": 2})
        review(address, truth, 1, 2)
        assert learnt(address)["said"].startswith("Learnt from 3 pictures")
        assert found(address, truth, range(3, COUNT)) == 5
        assert sent(f"{address}/pictures/0/like", {"name": NAME})[0] == 200
        assert "reviewed pictures" in learnt(address)["said"], "three say more than one"
        assert found(address, truth, range(3, COUNT)) == 5


# -------------------------------- Label Studio's events teach a folder: their payloads are those of Label Studio 1.23.2
CONFIG = f"""<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="{NAME}"/></RectangleLabels></View>"""
WIDTH, HEIGHT = 450, 350  # of the job's pictures
MODEL: dict[str, Any] = {key: OPTIONS[key] for key in ("device", "recipe", "image_size")}


@contextlib.contextmanager
def backend(job: tuple[Path, Any], out: Path, message: list[str] | None = None) -> Iterator[str]:
    source, say = PictureSource(job[0].parent), print if message is None else message.append
    with ReviewFolder.opened(out) as drafts:
        predictor = Predictor(Options.of(text_cache=False, min_score=0.2, **MODEL), source, 10**7, drafts)
        with running(application(predictor, Hosts(), say=say, drafts=drafts)) as address:
            yield address


def task(number: int) -> dict[str, Any]:
    data = {"image": f"/data/local-files/?d=photos/{number}.jpg"}
    return {"id": 20 + number, "data": data, "meta": {}, "project": 3, "is_labeled": True, "overlap": 1}


def annotation(box: list[int], label: str = NAME, **more: Any) -> dict[str, Any]:
    x, y, right, bottom = (100 * one / side for one, side in zip(box, (WIDTH, HEIGHT) * 2, strict=True))
    value = {"x": x, "y": y, "width": right - x, "height": bottom - y, "rotation": 0, "rectanglelabels": [label]}
    shape = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0, "value": value, "id": "Dx_aB1"}
    ends = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "origin": "manual"}
    return {"id": 9, "result": [{**shape, **ends}], "was_cancelled": False, "ground_truth": False, "task": 20, **more}


def happens(address: str, action: str, **more: Any) -> str:
    """What the backend says of an event."""
    project = {"id": 3, "title": "job", "label_config": CONFIG, "task_number": COUNT}
    status, answer = sent(f"{address}/webhook", {"action": action, **more, "project": project})
    assert (status, answer["status"]) == (201, "ok")
    return answer["result"]


def annotated(address: str, truth: dict[str, list[int]], *numbers: int) -> str:
    for number in numbers:
        drawn = annotation(truth[f"{number}.jpg"])
        message = happens(address, "ANNOTATION_CREATED", annotation=drawn, task=task(number))
    return message


def version(address: str) -> str:
    return sent(f"{address}/health")[1]["model_version"]


def version_after(address: str, before: str) -> str:
    """The version of the model once it has learnt."""
    for _ in range(1200):
        if (now := version(address)) != before:
            return now
        time.sleep(0.05)
    raise AssertionError("it never learnt")


def predicted(address: str, number: int) -> np.ndarray:
    """The boxes `[n, 4]` that a picture gets."""
    status, answer = sent(f"{address}/predict", {"tasks": [task(number)], "label_config": CONFIG, "project": "3.17"})
    assert status == 200
    values = [one["value"] for one in answer["results"][0]["result"]]
    corners = [[v["x"], v["y"], v["x"] + v["width"], v["y"] + v["height"]] for v in values]
    return np.array(corners).reshape(-1, 4) * [WIDTH, HEIGHT, WIDTH, HEIGHT] / 100


def right(address: str, truth: dict[str, list[int]], number: int) -> bool:
    boxes = predicted(address, number)
    return len(boxes) == 1 and iou_matrix(boxes, np.array([truth[f"{number}.jpg"]]))[0, 0] > 0.5


def test_annotations_teach_predictions_also_after_a_restart(job, out, truth):
    with backend(job, out) as address:
        assert sent(f"{address}/setup", {"schema": CONFIG, "project": "3.17"})[0] == 200, "no name is known yet"
        before = version(address)
        assert len(predicted(address, 5)) == 0
        assert annotated(address, truth, 0, 1).endswith("from 3 reviewed pictures on; 2 so far.")
        assert annotated(address, truth, 2).startswith("2.jpg: corrected; ")
        now = version_after(address, before)
        assert all(right(address, truth, number) for number in range(3, COUNT))
    with backend(job, out) as address:
        assert version(address) == now
        assert right(address, truth, 5)
        happens(address, "ANNOTATION_UPDATED", annotation=annotation([9, 9, 99, 99]), task=task(0))
        annotated(address, truth, 3, 4, 5)
        version_after(address, now)
    stored = corrections(out)
    assert [stored["pictures"][f"{number}.jpg"]["boxes"] for number in (0, 1)] == [
        [[9, 9, 99, 99]],
        [[float(one) for one in truth["1.jpg"]]],
    ]
    assert {one["status"] for one in stored["reviews"].values()} == {"reviewed"}


def test_training_is_started_by_its_button_and_never_is_an_error(job, out, truth):
    """An error would mark the whole backend as broken, and it may be sent after each annotation."""
    with backend(job, out) as address:
        before = version(address)
        assert "expected 3 reviewed pictures to learn from, got 0" in happens(address, "START_TRAINING")
        annotated(address, truth, 0, 1, 2)
        now = version_after(address, before)
        happens(address, "START_TRAINING")
        assert version(address) == now, "nothing new"


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"annotation": annotation([9, 9, 99, 99], "dog")}, "photos/1.jpg: nothing is learnt from it: 'dog' is not a"),
        ({"task": {"id": 1, "data": {"image": "other.jpg"}}}, "no annotated picture of this run has this name"),
        ({"annotation": annotation([9, 9, 99, 99], was_cancelled=True)}, "0 so far"),
        ({"annotation": None}, "expected annotated tasks of Label Studio"),
        ({"annotation": {"result": [{"type": "rectanglelabels", "value": 7}]}}, "nothing is learnt from it: its boxes"),
        ({"action": "TASKS_CREATED", "tasks": [{"id": 1}]}, ""),
        ({"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 9}]}, ""),
        ({"action": "ANNOTATIONS_CREATED", "annotation": [annotation([9, 9, 99, 99])], "task": [task(1)]}, ""),
    ],
)
def test_what_cannot_be_used_is_said_and_changes_nothing(event, message, job, out):
    lines: list[str] = []
    drawn = annotation([9, 9, 99, 99])
    with backend(job, out, lines) as address:
        found = happens(address, **{"action": "ANNOTATION_CREATED", "annotation": drawn, "task": task(1), **event})
    assert message in found
    assert bool(found) == bool(message)
    assert "; ".join(lines) == found
    assert corrections(out)["pictures"] == {}


def test_a_picture_elsewhere_is_not_the_one_of_its_name(job, out):
    photos, others = job[0].parent / "photos", job[0].parent / "others"
    others.mkdir()
    (others / "1.jpg").write_bytes((photos / "2.jpg").read_bytes())
    (others / "2.jpg").write_bytes((photos / "2.jpg").read_bytes())
    drawn = annotation([9, 9, 99, 99])
    with backend(job, out) as address:
        for number, message in (
            (1, "1.jpg: nothing is learnt from it: the picture of this name in this run is another file"),
            (2, "2.jpg: corrected"),
        ):
            of = {"id": 21, "data": {"image": f"/data/local-files/?d=others/{number}.jpg"}}
            assert message in happens(address, "ANNOTATION_CREATED", annotation=drawn, task=of)
    assert [*corrections(out)["pictures"]] == ["2.jpg"]


def test_another_model_than_that_of_the_folder_is_refused(out):
    with ReviewFolder.opened(out) as drafts:
        options = Options.of(text_cache=False, **{**MODEL, "image_size": 224})
        with pytest.raises(UsageError, match=r"learnt with image_size \[352, 352\], and image_size is \[224, 224\]"):
            Predictor(options, PictureSource(), 10**7, drafts)
    done = cliploc_("label-studio", "--learn", out.parent)
    assert (done.code, "expected a run in" in done.err) == (2, True)
